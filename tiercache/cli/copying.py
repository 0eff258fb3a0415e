"""A copy of many objects with its meter: what get and put share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from tiercache.cli.output import Tally, say
from tiercache.cli.parallel import Stopped, for_all
from tiercache.cli.progress import State, Style, meter
from tiercache.errors import TiercacheError
from tiercache.units import format_bytes

T = TypeVar("T")

# One block in memory a thread; a multiple of the page, large enough that the call is noise.
BLOCK_BYTES = 4 << 20


class Copying:
    """Counts of one command. ``moved`` and ``check`` may be called from any thread."""

    def __init__(self, title: str, style: Style, tally: Tally) -> None:
        # Constant after construction
        self._title = title
        self._says_end = style is not Style.NONE
        self._meter = meter(title, style)
        self._tally = tally
        self._stopping = threading.Event()
        # Guarded by _lock
        self._lock = threading.Lock()
        self._moved_bytes = 0
        # The main thread's
        self.total_bytes: int | None = 0
        self.skipped = 0
        self.skipped_bytes = 0
        self.copied = 0

    @property
    def moved_bytes(self) -> int:
        return self._moved_bytes

    def moved(self, count: int) -> None:
        """Count bytes of a copy. Raises Stopped where the command was interrupted."""
        if self._stopping.is_set():
            raise Stopped
        with self._lock:
            self._moved_bytes += count

    def skip(self, size_bytes: int) -> None:
        self.skipped += 1
        self.skipped_bytes += size_bytes
        self._tally.succeeded += 1

    def run(self, items: Iterable[T], act: Callable[[T], None]) -> None:
        """Copy all items, a few at a time."""
        try:
            for_all(items, act, ended=self._ended, tick=self._show, stop=self._stopping.set)
            self._show()
        finally:
            self._meter.close()
            if self._says_end:
                say(f"{self._title}: {self._counts()}, {format_bytes(self._moved_bytes)} moved")

    def _ended(self, item: object, error: BaseException | None) -> None:
        if error is None:
            self.copied += 1
            self._tally.succeeded += 1
        elif isinstance(error, TiercacheError | OSError):
            self._tally.fail(error)
        else:
            raise error

    def _counts(self) -> str:
        counts = [f"{self.copied} copied"]
        if self.skipped:
            counts.append(f"{self.skipped} there already")
        if self._tally.failed:
            counts.append(f"{self._tally.failed} failed")
        return ", ".join(counts)

    def _show(self) -> None:
        self._meter.update(
            State(
                done_bytes=self._moved_bytes + self.skipped_bytes,
                moved_bytes=self._moved_bytes,
                total_bytes=self.total_bytes,
                counts=self._counts(),
            )
        )
