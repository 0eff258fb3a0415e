"""How an amount is divided."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.sharing import water_fill, whole_operations


@pytest.mark.parametrize(
    ("amount", "weights", "wants", "had", "given_"),
    [
        (12, (1, 1, 1), (inf, inf, inf), (0, 0, 0), (4, 4, 4)),
        (12, (3, 1), (inf, inf), (0, 0), (9, 3)),
        (12, (1, 1, 1), (2, inf, inf), (0, 0, 0), (2, 5, 5)),
        (12, (1, 1), (2, 3), (0, 0), (2, 3)),
        (12, (1, 1), (inf, inf), (8, 0), (2, 10)),
        (4, (1, 1), (inf, inf), (8, 0), (0, 4)),
        (12, (3, 1), (inf, inf), (12, 0), (6, 6)),
        (0, (1, 1), (inf, inf), (0, 0), (0, 0)),
        (12, (1,), (inf,), (0,), (12,)),
        (inf, (1, 1), (2, 3), (0, 0), (2, 3)),
        (12, (1, 2), (0, inf), (0, 0), (0, 12)),
    ],
)
def test_water_fill(
    amount: float,
    weights: tuple[float, ...],
    wants: tuple[float, ...],
    had: tuple[float, ...],
    given_: tuple[float, ...],
) -> None:
    assert water_fill(amount, weights=weights, wants=wants, had=had) == pytest.approx(list(given_))


VESSELS = st.lists(
    st.tuples(st.floats(0.01, 100), st.one_of(st.just(inf), st.floats(0, 1e9)), st.floats(0, 1e9)),
    min_size=1,
    max_size=20,
)


@given(st.floats(0, 1e10), VESSELS)
def test_all_is_given_that_is_wanted_and_who_lacks_has_no_less_than_who_got(
    amount: float, vessels: list[tuple[float, float, float]]
) -> None:
    weights, wants, had = (list(column) for column in zip(*vessels, strict=True))
    parts = water_fill(amount, weights=weights, wants=wants, had=had)
    slack = 1e-6 * max(1.0, amount, *had)
    assert sum(parts) == pytest.approx(min(amount, sum(wants)), abs=slack)
    levels = [(h + p) / w for h, p, w in zip(had, parts, weights, strict=True)]
    got = [n for n, part in enumerate(parts) if part > slack]
    lacks = [n for n, part in enumerate(parts) if part < wants[n] - slack]
    for one in got:
        for other in lacks:
            assert levels[one] <= levels[other] + slack / min(weights)


@pytest.mark.parametrize(
    ("share", "wants", "grants"),
    [
        (1, (64, 64, 64), (1, 0, 0)),
        (65, (64, 64, 64), (1, 1, 0)),
        (64 * 4, (64, 64), (65, 65)),
        (64 * 80, (64, 64), (64 * 40, 64 * 40)),
        (0, (64, 64), (0, 0)),
        (-5, (64,), (0,)),
        (1, (0, 64, 64), (1, 1, 0)),
    ],
)
def test_whole_operations(
    share: float, wants: tuple[float, ...], grants: tuple[float, ...]
) -> None:
    assert whole_operations(share, wants) == pytest.approx(list(grants))
