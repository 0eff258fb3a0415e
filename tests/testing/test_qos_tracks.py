"""Rates, waits and pauses follow from the tracks: made-up ones here."""

from __future__ import annotations

from array import array

import pytest

from tiercache.testing import qos_tracks as tracks
from tiercache.testing.qos_tracks import Track, Window

MS = 1_000_000
WINDOW = Window(2_000 * MS, 7_000 * MS)


def regular(period_ms: float, took_ms: float, *, until_ms: int = 8_000, size: int = 100) -> Track:
    """One operation every ``period_ms`` from 0 on."""
    begins = [round(n * period_ms * MS) for n in range(int(until_ms / period_ms))]
    return Track(
        operation_bytes=size,
        began_ns=array("q", begins),
        ended_ns=array("q", [begun + round(took_ms * MS) for begun in begins]),
    )


def made(*spans_ms: tuple[int, int], given_up_ms: int | None = None) -> Track:
    began = [begin * MS for begin, _ in spans_ms]
    return Track(
        operation_bytes=100,
        began_ns=array("q", began + ([] if given_up_ms is None else [given_up_ms * MS])),
        ended_ns=array("q", [end * MS for _, end in spans_ms]),
    )


def test_rates_count_what_ended_in_the_window() -> None:
    both = [regular(10, 3), regular(20, 3, size=1000)]
    assert WINDOW.seconds == 5.0
    assert tracks.operations(both, WINDOW) == 750
    assert tracks.operation_rate(both, WINDOW) == 150.0
    assert tracks.byte_rate(both, WINDOW) == 100 * 100 + 50 * 1000
    assert tracks.took_ns(both[:1], WINDOW) == [3 * MS] * 500
    assert tracks.operations([made((1_999, 2_000), (6_999, 7_000))], WINDOW) == 1


def test_a_longest_wait_counts_what_was_under_way_at_the_edges() -> None:
    assert tracks.longest_wait_s([regular(10, 3)], WINDOW) == pytest.approx(0.003)
    assert tracks.longest_wait_s([made((0, 1_900), (1_950, 2_300))], WINDOW) == 0.35
    assert tracks.longest_wait_s([made((2_000, 2_100), (6_000, 7_900))], WINDOW) == 1.0
    assert tracks.longest_wait_s([made((2_000, 2_100), given_up_ms=4_000)], WINDOW) == 3.0
    assert tracks.longest_wait_s([made((0, 10), (7_500, 9_900))], WINDOW) == 0.0


def test_a_pause_is_one_of_all_tracks_together() -> None:
    early = made((2_000, 2_500), (2_600, 3_000))
    late = made((2_000, 5_500))
    assert tracks.longest_pause_s([early], WINDOW) == 4.0
    assert tracks.longest_pause_s([early, late], WINDOW) == 2.5
    assert tracks.longest_pause_s([made((0, 10))], WINDOW) == 5.0
    assert tracks.longest_pause_s([], WINDOW) == 5.0


def test_bins_are_whole_and_add_up() -> None:
    found = tracks.binned([regular(10, 3)], WINDOW, 0.5)
    assert found == [50 * 100 / 0.5] * 10
    assert len(tracks.binned([], WINDOW, 0.3)) == 16


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert tracks.quantile(values, 0.99) == 99.0
    assert tracks.quantile(values, 1.0) == 100.0
    assert tracks.quantile([5.0], 0.5) == 5.0
    with pytest.raises(ValueError, match="no values"):
        tracks.quantile([], 0.5)
