"""What a process grants itself without a governor: never more than its rate, never nothing."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.alone import (
    BURST_S,
    HOLD_S,
    LEAST_OPERATIONS,
    LEAST_READ,
    LOOK_OPERATIONS,
    Alone,
)
from tiercache.policy.lease_words import UNLIMITED

MB = 1e6


def read_for(alone: Alone, seconds: float, *, since_s: float, block: int) -> int:
    """Read blocks whenever granted, looking each millisecond; return how many bytes that gave."""
    used = operations = 0
    for step in range(int(seconds * 1000)):
        grants = alone.grants((used, operations), since_s + step / 1000)
        while used < grants[0] and operations < grants[1]:
            used, operations = used + block, operations + 1
    return used


def test_the_last_rate_holds_and_then_the_safe_one() -> None:
    alone = Alone((20 * MB, inf), (2 * MB, inf), 100.0)
    held = read_for(alone, HOLD_S, since_s=100.0, block=65536)
    assert held == pytest.approx(20 * MB * HOLD_S, rel=0.01)
    used = held
    operations = held // 65536
    alone.grants((used, operations), 100.0 + HOLD_S)
    assert alone.rates == (2 * MB, inf)
    grants = alone.grants((used, operations), 100.0 + HOLD_S + 5)
    assert 0 < grants[0] - used <= 2 * MB * BURST_S


def test_operations_bind_as_bytes_do() -> None:
    alone = Alone((inf, 100.0), (inf, 100.0), 0.0)
    assert read_for(alone, 5.0, since_s=0.0, block=1000) == pytest.approx(500_000, rel=0.01)
    alone.grants((500_000, 600), 5.0)
    assert alone.wait_s(0) == 0.0 < alone.wait_s(1) <= 1.0


@pytest.mark.parametrize(
    ("rates", "safe", "expected"),
    [
        ((5 * MB, 10.0), (MB, 5.0), (5 * MB, 10.0)),
        # Idle when the governor fell silent: the safe share at least.
        ((0.0, 0.0), (MB, 5.0), (MB, 5.0)),
        ((0.0, 0.0), (0.0, 0.0), (LEAST_READ, LEAST_OPERATIONS)),
        ((inf, inf), (inf, inf), (inf, inf)),
    ],
)
def test_rates(
    rates: tuple[float, float], safe: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert Alone(rates, safe, 0.0).rates == expected


def test_what_is_not_rationed_is_looked_at_now_and_then() -> None:
    alone = Alone((inf, inf), (inf, inf), 0.0)
    assert alone.grants((1 << 50, 1 << 40), 0.0) == (UNLIMITED, (1 << 40) + LOOK_OPERATIONS)
    assert alone.wait_s(1) == 0.0


def test_a_debt_is_paid_off_and_never_forgiven() -> None:
    alone = Alone((MB, inf), (MB, inf), 0.0)
    assert alone.grants((0, 0), 0.0)[0] > 0
    used = 8 << 20  # one operation
    assert alone.grants((used, 1), 0.0)[0] == used
    assert alone.wait_s(1) == pytest.approx(8.388608 - BURST_S)
    assert alone.grants((used, 1), 8.3)[0] == used
    assert alone.grants((used, 1), 8.4)[0] > used


@given(
    rate=st.floats(LEAST_READ, 1e10),
    safe=st.floats(0, 1e10),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 8 << 20)), max_size=60),
)
def test_never_more_than_the_rate_and_a_burst_and_an_operation(
    rate: float, safe: float, steps: list[tuple[float, int]]
) -> None:
    alone = Alone((rate, inf), (safe, inf), 0.0)
    highest = max(rate, safe, LEAST_READ)
    now_s, used, largest = 0.0, 0, 0
    for passed_s, count in steps:
        now_s += passed_s
        if used < alone.grants((used, 0), now_s)[0]:
            used, largest = used + count, max(largest, count)
        assert used <= highest * now_s + max(1.0, highest * BURST_S) + largest + 1
