"""Read-ahead: nothing for random reads, a window that grows for sequential ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.readahead import (
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    TOP_UP_BYTES,
    ReadAhead,
)
from tiercache.units import GIB, KIB, MIB

NONE = (0, 0)


def test_one_read_proves_nothing_wherever_it_is() -> None:
    assert ReadAhead().plan(0, MIB, GIB) == NONE
    assert ReadAhead().plan(5 * MIB, MIB, GIB) == NONE


def test_the_second_read_in_a_row_starts_the_smallest_window() -> None:
    ahead = ReadAhead()
    ahead.plan(0, 64 * KIB, GIB)
    assert ahead.plan(64 * KIB, 64 * KIB, GIB) == (128 * KIB, MIN_WINDOW_BYTES)


def test_large_reads_start_with_four_requests() -> None:
    ahead = ReadAhead()
    ahead.plan(0, 8 * MIB, GIB)
    assert ahead.plan(8 * MIB, 8 * MIB, GIB) == (16 * MIB, 32 * MIB)


def test_reads_shorter_than_a_page_are_seen_where_the_next_page_begins() -> None:
    ahead = ReadAhead()
    assert ahead.plan(0, 10 * KIB, GIB) == NONE
    # Those in between found their page there. This one crosses into the second.
    assert ahead.plan(60 * KIB, 10 * KIB, GIB) == (70 * KIB, MIN_WINDOW_BYTES)
    random = ReadAhead()
    assert random.plan(0, 10 * KIB, GIB) == NONE
    assert random.plan(65 * KIB, 10 * KIB, GIB) == NONE, "beyond the page"
    assert ReadAhead().plan(0, 10 * KIB, GIB) == NONE


def test_a_jump_ends_the_sequence() -> None:
    ahead = ReadAhead()
    ahead.plan(0, MIB, GIB)
    assert ahead.plan(MIB, MIB, GIB) != NONE
    assert ahead.plan(100 * MIB, MIB, GIB) == NONE
    assert ahead.plan(101 * MIB, MIB, GIB) == (102 * MIB, MIN_WINDOW_BYTES)


def test_the_end_of_the_object_ends_the_window() -> None:
    ahead = ReadAhead()
    ahead.plan(0, MIB, 3 * MIB)
    assert ahead.plan(MIB, MIB, 3 * MIB) == (2 * MIB, MIB)
    assert ahead.plan(2 * MIB, MIB, 3 * MIB) == NONE


@given(
    offsets=st.lists(st.integers(0, 1000), unique=True, max_size=50),
    length=st.integers(1, MIB),
)
def test_random_reads_fetch_exactly_their_own_pages(offsets: list[int], length: int) -> None:
    ahead = ReadAhead()
    previous_end = -1
    for number in offsets:
        start = number * 2 * MIB  # never where another read ended
        assert start != previous_end
        assert ahead.plan(start, length, 4 * GIB) == NONE
        previous_end = start + length


@given(
    length=st.integers(1, 20 * MIB),
    size=st.integers(1, 2 * GIB),
    start=st.integers(0, GIB),
)
def test_a_sequential_reader_is_kept_ahead_of_within_the_window(
    length: int, size: int, start: int
) -> None:
    ahead = ReadAhead()
    asked_end = 0
    position = min(start, size - 1)
    for reads in range(200):
        step = min(length, size - position)
        if step <= 0:
            break
        begin, count = ahead.plan(position, step, size)
        position += step
        if not count:
            continue
        assert reads > 0
        assert begin == max(position, asked_end)  # never the same bytes twice, no gap
        asked_end = begin + count
        assert asked_end <= size
        assert asked_end - position <= MAX_WINDOW_BYTES


def test_at_full_speed_each_run_that_is_used_up_is_asked_for_anew() -> None:
    ahead = ReadAhead()
    asked = [ahead.plan(n * MIB, MIB, 4 * GIB) for n in range(512)]
    late = [count for _, count in asked[256:] if count]
    assert set(late) == {TOP_UP_BYTES}
    assert len(late) == 256 * MIB // TOP_UP_BYTES
