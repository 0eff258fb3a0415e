"""Read-ahead: when reads of one handle are sequential, how far ahead to fetch.

A read that begins where the last one ended, or later within that page, continues a sequence: what
is read of a page already there never comes this way. The window then starts at four
requests' worth, doubles each time half of it is used up, and stops at MAX_WINDOW_BYTES, where each
TOP_UP_BYTES used up are asked for anew: so the number of runs in flight stays the same. A jump
ends the sequence, so random reads fetch exactly their own pages.
"""

from __future__ import annotations

from tiercache.model import PAGE_BYTES

# Eight runs of 8 MiB in flight: the concurrency at which the measured fill path is at its best.
MAX_WINDOW_BYTES = 64 << 20
MIN_WINDOW_BYTES = 4 << 20
TOP_UP_BYTES = 8 << 20  # one run


class ReadAhead:
    """The detector of one handle. Not thread safe; a lost update costs a smaller window only."""

    __slots__ = ("_ahead_end", "_next", "_window")

    def __init__(self) -> None:
        self._next = -1  # where a sequential reader would go on
        self._ahead_end = 0  # everything before this was asked for already
        self._window = 0

    @property
    def is_sequential(self) -> bool:
        """Whether a window is open: the last read continued the one before."""
        return self._window > 0

    def plan(self, offset: int, length: int, size_bytes: int) -> tuple[int, int]:
        """Note a read and return (start, length) of bytes to begin fetching, (0, 0) for none.

        One read proves nothing, wherever it is; the one that continues it does.
        """
        end = offset + length
        # The last read's page was fetched whole, so a sequential reader is seen again at its end.
        page_end = -(-self._next // PAGE_BYTES) * PAGE_BYTES
        continues = 0 <= self._next <= offset <= page_end
        self._next = end
        if not continues:
            self._window, self._ahead_end = 0, 0
            return (0, 0)
        if end >= size_bytes:
            return (0, 0)
        used_up = TOP_UP_BYTES if self._window == MAX_WINDOW_BYTES else self._window // 2
        if self._window and self._ahead_end - end > self._window - used_up:
            return (0, 0)
        self._window = min(MAX_WINDOW_BYTES, max(self._window * 2, 4 * length, MIN_WINDOW_BYTES))
        start = max(end, self._ahead_end)
        stop = min(size_bytes, end + self._window)
        if stop <= start:
            return (0, 0)
        self._ahead_end = stop
        return (start, stop - start)
