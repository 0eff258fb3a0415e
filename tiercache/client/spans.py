"""Byte spans: what a caller asks for, and what one request asks the agent for."""

from __future__ import annotations

from tiercache import wire
from tiercache.model import PAGE_SHIFT


def clamp(offset: int, length: int | None, size_bytes: int) -> tuple[int, int]:
    """Return the bytes [start, end) that exist. Raises ValueError for negative arguments."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"negative offset or length: {offset}, {length}")
    start = min(offset, size_bytes)
    return start, size_bytes if length is None else min(size_bytes, start + length)


def spans_of(missing: list[tuple[int, int]], start: int, end: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) in bytes, adjacent page spans joined, cut to what was asked."""
    joined: list[tuple[int, int]] = []
    for first, last in missing:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    spans = []
    for first, last in joined:
        begin, stop = max(start, first << PAGE_SHIFT), min(end, last << PAGE_SHIFT)
        for part in range(begin, stop, wire.MAX_SPAN_BYTES):
            spans.append((part, min(wire.MAX_SPAN_BYTES, stop - part)))
    return tuple(spans)
