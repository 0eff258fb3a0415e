"""Waits between attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.retry import RetryPolicy, delay_s, next_delay_s, remaining_s

POLICY = RetryPolicy(deadline_s=60.0, base_s=0.1, cap_s=5.0)


@pytest.mark.parametrize(
    ("attempt", "rng_value", "retry_after_s", "expected_s"),
    [
        (1, 0.0, 0.0, 0.0),
        (1, 0.5, 0.0, 0.05),
        (2, 0.5, 0.0, 0.1),
        (3, 1.0, 0.0, 0.4),
        (6, 1.0, 0.0, 3.2),
        (7, 1.0, 0.0, 5.0),  # the cap
        (10_000, 1.0, 0.0, 5.0),
        (1, 0.5, 7.0, 7.0),  # the origin's advice is a floor
        (7, 1.0, 2.0, 5.0),
    ],
)
def test_delay(attempt: int, rng_value: float, retry_after_s: float, expected_s: float) -> None:
    found_s = delay_s(attempt, rng_value, policy=POLICY, retry_after_s=retry_after_s)
    assert found_s == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("elapsed_s", "retry_after_s", "expected_s"),
    [(0.0, 0.0, 0.1), (59.8, 0.0, 0.1), (59.9, 0.0, None), (61.0, 0.0, None), (50.0, 10.0, None)],
)
def test_no_attempt_starts_past_the_deadline(
    elapsed_s: float, retry_after_s: float, expected_s: float | None
) -> None:
    found_s = next_delay_s(1, 1.0, elapsed_s=elapsed_s, policy=POLICY, retry_after_s=retry_after_s)
    assert found_s == (None if expected_s is None else pytest.approx(expected_s))


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True), st.floats(0, 100))
def test_a_wait_is_bounded(attempt: int, rng_value: float, elapsed_s: float) -> None:
    wait_s = next_delay_s(attempt, rng_value, elapsed_s=elapsed_s, policy=POLICY)
    if wait_s is None:
        assert elapsed_s >= POLICY.deadline_s - POLICY.cap_s
    else:
        assert 0 <= wait_s <= POLICY.cap_s
        assert wait_s < remaining_s(elapsed_s, policy=POLICY)
