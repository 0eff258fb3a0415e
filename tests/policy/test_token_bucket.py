"""Admit on the level, charge in full."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.token_bucket import TokenBucket


def bucket(*, rate: float = 100.0, burst: float = 10.0) -> TokenBucket:
    return TokenBucket(rate=rate, burst=burst, now_s=0.0)


def admitted_in(seconds: float, *, n: float, asks_for_all: bool) -> float:
    """Return the tokens a greedy client gets that asks for ``n`` at a time, every millisecond."""
    tokens = bucket()
    got = 0.0
    for step in range(int(seconds * 1000)):
        tokens.refill(step / 1000)
        if tokens.level >= n if asks_for_all else tokens.is_open():
            tokens.charge(n)
            got += n
    return got


def test_who_asks_for_more_than_a_burst_starves_where_all_tokens_must_be_there() -> None:
    assert admitted_in(10, n=40, asks_for_all=True) == 0
    assert admitted_in(10, n=40, asks_for_all=False) == pytest.approx(1000, abs=50)


def test_who_asks_for_less_gets_the_same_either_way() -> None:
    assert admitted_in(10, n=1, asks_for_all=True) == pytest.approx(1000, abs=15)
    assert admitted_in(10, n=1, asks_for_all=False) == pytest.approx(1000, abs=15)


def test_a_time_that_goes_back_adds_nothing_and_a_gap_adds_a_burst() -> None:
    tokens = bucket()
    tokens.refill(5.0)
    tokens.charge(30)
    tokens.refill(4.0)
    assert tokens.level == -20
    tokens.refill(5.1)
    assert tokens.level == pytest.approx(-10)
    tokens.refill(1e9)
    assert tokens.level == 10


@pytest.mark.parametrize(
    ("level", "ahead", "wait_s"), [(5, 0, 0), (0, 0, 0), (-20, 0, 0.2), (5, 25, 0.2), (5, 4, 0)]
)
def test_the_wait_is_until_the_level_passes_what_stands_ahead(
    level: float, ahead: float, wait_s: float
) -> None:
    tokens = bucket()
    tokens.level = level
    assert tokens.wait_s(ahead) == pytest.approx(wait_s)


def test_without_a_rate_a_debt_lasts() -> None:
    tokens = bucket(rate=0.0, burst=0.0)
    assert not tokens.is_open()
    assert tokens.wait_s() == inf


def test_other_terms_keep_debts_and_take_what_exceeds_the_burst() -> None:
    tokens = bucket()
    tokens.change(rate=10, burst=4, now_s=1.0)
    assert tokens.level == 4
    tokens.charge(24)
    tokens.change(rate=20, burst=100, now_s=2.0)
    assert tokens.level == -10
    tokens.refill(3.0)
    assert tokens.level == 10


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0.1, 500)), max_size=60),
    st.floats(1, 1000),
    st.floats(0, 100),
)
def test_what_is_admitted_stays_below_rate_and_burst_and_one_operation(
    asks: list[tuple[float, float]], rate: float, burst: float
) -> None:
    tokens = bucket(rate=rate, burst=burst)
    now_s = admitted = last = 0.0
    for passed_s, n in asks:
        now_s += passed_s
        tokens.refill(now_s)
        if tokens.is_open():
            tokens.charge(n)
            admitted, last = admitted + n, n
        assert admitted <= rate * now_s + burst + last + 1e-6 * admitted
