"""The simulators against traces worked by hand, and against an optimum found by trying all."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.belady import Trace, belady, lru, sieve, trace


def reads(text: str, size: int = 1) -> list[tuple[str, int]]:
    return [(letter, size) for letter in text]


@pytest.mark.parametrize(
    ("text", "capacity", "expected"),
    [
        # (lru, belady)
        ("", 2, (0, 0)),
        ("aaaa", 1, (1, 1)),
        ("abab", 0, (4, 4)),
        ("abcabc", 2, (6, 4)),
        ("abacaba", 2, (4, 3)),
        # The example of the text-books: 9 where everything read must be kept first.
        ("70120304230321201701", 3, (12, 8)),
    ],
)
def test_by_hand(text: str, capacity: int, expected: tuple[int, int]) -> None:
    assert (lru(reads(text), capacity), belady(reads(text), capacity)) == expected
    assert expected[1] <= sieve(reads(text), capacity) <= len(text)


def test_bytes_are_counted_and_what_does_not_fit_passes_through() -> None:
    mixed = [("big", 10), ("a", 2), ("b", 2), ("big", 10), ("a", 2), ("b", 2)]
    for simulate in (lru, sieve, belady):
        assert simulate(mixed, 4) == 24
    assert belady(mixed, 14) == lru(mixed, 14) == 14


def least(trace: Trace[str], capacity: int) -> int:
    """The fewest misses of objects of one byte, by trying every choice."""

    @cache
    def from_here(place: int, held: frozenset[str]) -> int:
        if place == len(trace):
            return 0
        name = trace[place][0]
        if name in held:
            return from_here(place + 1, held)
        full = held | {name}
        choices = [full] if len(full) <= capacity else [full - {out} for out in full]
        return 1 + min(from_here(place + 1, choice) for choice in choices)

    return from_here(0, frozenset())


@settings(max_examples=60, deadline=None)
@given(st.text("abcde", max_size=14), st.integers(1, 4))
def test_belady_is_the_optimum_of_objects_of_one_size(text: str, capacity: int) -> None:
    found = belady(reads(text), capacity)
    assert found == least(reads(text), capacity)
    assert found <= min(lru(reads(text), capacity), sieve(reads(text), capacity))


def test_a_trace_reads_everything_once_an_epoch_in_a_new_order_each() -> None:
    objects = [(number, number + 1) for number in range(50)]
    found = trace(objects, epochs=3, seed=7)
    epochs = [found[start : start + 50] for start in (0, 50, 100)]
    assert all(sorted(epoch) == objects for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert found == trace(objects, epochs=3, seed=7) != trace(objects, epochs=3, seed=8)


def test_of_shuffled_epochs_the_optimum_keeps_the_share_that_fits() -> None:
    """No cache of a quarter can serve more than a quarter of an epoch from the one before."""
    found = trace([(number, 1) for number in range(400)], epochs=3, seed=1)
    assert belady(found, 100) == 400 + 2 * 300
    assert belady(found, 100) < sieve(found, 100) < lru(found, 100) < 3 * 400
