"""What processes did under a QoS policy, and what follows from it: rates, waits, pauses.

Pure functions of tracks. Times are nanoseconds of CLOCK_MONOTONIC, which all processes share; a
window is cut by whoever asks, after the fact.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise
from typing import NamedTuple


class Window(NamedTuple):
    """From ``begin_ns`` to before ``end_ns``."""

    begin_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """The operations of one process, one after another: ``ended_ns[n]`` is when the one that began
    at ``began_ns[n]`` was done. One more began than ended where the last was given up. Each moved
    ``operation_bytes``."""

    operation_bytes: int
    began_ns: array[int]
    ended_ns: array[int]

    def ended_in(self, window: Window) -> range:
        """Return the numbers of the operations that ended in it."""
        return range(
            bisect_left(self.ended_ns, window.begin_ns), bisect_left(self.ended_ns, window.end_ns)
        )


def operations(tracks: Iterable[Track], window: Window) -> int:
    return sum(len(track.ended_in(window)) for track in tracks)


def operation_rate(tracks: Iterable[Track], window: Window) -> float:
    """Return operations a second."""
    return operations(tracks, window) / window.seconds


def byte_rate(tracks: Iterable[Track], window: Window) -> float:
    """Return bytes a second."""
    moved = sum(len(track.ended_in(window)) * track.operation_bytes for track in tracks)
    return moved / window.seconds


def took_ns(tracks: Iterable[Track], window: Window) -> list[int]:
    """Return how long each operation took that ended in the window."""
    return [
        track.ended_ns[number] - track.began_ns[number]
        for track in tracks
        for number in track.ended_in(window)
    ]


def longest_wait_s(tracks: Iterable[Track], window: Window) -> float:
    """Return the longest that an operation took which was under way in the window. Of one that went
    on when the window closed, what it had waited by then counts."""
    longest = 0
    for track in tracks:
        first = bisect_left(track.ended_ns, window.begin_ns)
        for number in range(first, len(track.began_ns)):
            began = track.began_ns[number]
            if began >= window.end_ns:
                break
            ended = track.ended_ns[number] if number < len(track.ended_ns) else window.end_ns
            longest = max(longest, min(ended, window.end_ns) - began)
    return longest / 1e9


def longest_pause_s(tracks: Iterable[Track], window: Window) -> float:
    """Return the longest time within the window in which none of the tracks ended an operation."""
    ends = merge(*([track.ended_ns[n] for n in track.ended_in(window)] for track in tracks))
    return max(late - early for early, late in pairwise(_framed(ends, window))) / 1e9


def _framed(ends: Iterable[int], window: Window) -> Iterator[int]:
    yield window.begin_ns
    yield from ends
    yield window.end_ns


def binned(tracks: Iterable[Track], window: Window, bin_s: float) -> list[float]:
    """Return bytes a second in each whole ``bin_s`` of the window."""
    counts = [0] * math.floor(window.seconds / bin_s + 1e-9)
    for track in tracks:
        for number in track.ended_in(window):
            place = int((track.ended_ns[number] - window.begin_ns) / (bin_s * 1e9))
            if place < len(counts):
                counts[place] += track.operation_bytes
    return [count / bin_s for count in counts]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least ``share`` of them do not exceed. Raises ValueError for
    none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
