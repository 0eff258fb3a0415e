"""When a rate has fallen and come back, from the times of requests."""

from __future__ import annotations

import pytest

from benchmarks.measures.qos_backend import (
    LASTING_S,
    STEP_S,
    WINDOW_S,
    Phase,
    until_below,
    until_recovered,
)

PHASE = Phase(begin_s=10.0, end_s=30.0, requests_per_s=100.0)


def times(*parts: tuple[float, float, float]) -> list[float]:
    """Return the times of requests that come evenly, of (begin, end, requests a second)."""
    return [
        begin_s + number / per_s
        for begin_s, end_s, per_s in parts
        for number in range(round((end_s - begin_s) * per_s))
    ]


def test_below_is_the_end_of_the_first_slow_window() -> None:
    asked = times((10, 11, 2000), (11, 30, 80))
    assert until_below(asked, PHASE) == pytest.approx(1 + WINDOW_S, abs=2 * STEP_S)
    assert until_below(times((10, 30, 101)), PHASE) == pytest.approx(20)
    assert until_below(times((10, 30, 50)), PHASE) == pytest.approx(WINDOW_S)


def test_recovered_is_what_lasts() -> None:
    taken = times((10, 14, 80), (14, 15, 99), (15, 17, 70), (17, 30, 95))
    assert until_recovered(taken, PHASE) == pytest.approx(7 + 0.9 * LASTING_S, abs=0.3)
    assert until_recovered(times((10, 30, 85)), PHASE) == pytest.approx(20, abs=WINDOW_S)
    # A burst at the very beginning is none.
    assert until_recovered(times((10, 10.4, 1000), (10.4, 30, 50)), PHASE) > 19
