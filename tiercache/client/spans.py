"""From missing pages to the byte spans that one request asks for."""

from __future__ import annotations

from tiercache import wire
from tiercache.model import PAGE_SHIFT


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
