"""Extents that this process holds open: how many, and giving them back when they are evicted.

An open extent keeps its bytes on the device even after eviction, so a process that reads nothing
must let go too: a thread of its own looks at the epoch ten times a second. Thread safe.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections.abc import Callable

from tiercache.client.entry import Entry, Held, Segment
from tiercache.ports import ExtentDirectory

# A quarter of what the process may open, so that the job keeps the rest.
_SHARE = 4
_AT_MOST = 4096
# The agent waits this long, on average half of it, for space that an idle reader still holds. A
# look costs ~10 µs.
JANITOR_S = 0.1


class Handles:
    """Held extents by id, least recently opened first."""

    def __init__(self, extents: ExtentDirectory, epoch: Callable[[], int]) -> None:
        # Constant after construction
        self._extents = extents
        self._epoch = epoch
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(16, min(_AT_MOST, soft // _SHARE))
        self.chores: list[Callable[[], None]] = []
        # Guarded by _lock (a look-up of the dict is atomic by itself)
        self._lock = threading.Lock()
        self._held: dict[int, Held] = {}
        self._janitor: threading.Thread | None = None
        self._stop = threading.Event()
        self._seen_epoch = -1

    def open(self, entry: Entry, segment: Segment) -> bool:
        """Open the segment's extent for the entry; False where it is gone (evicted)."""
        held = self._held.get(segment.extent_id)
        if held is None or held.ext is None:
            held = self._open(segment.extent_id)
            if held is None:
                return False
        entry.opened(segment, held)
        return True

    def _open(self, extent_id: int) -> Held | None:
        with self._lock:
            held = self._held.get(extent_id)
            if held is not None:
                return held
            ext = self._extents.open(extent_id) if extent_id else None
            if ext is None:
                return None
            held = self._held[extent_id] = Held(ext)
            while len(self._held) > self._limit:
                self._drop(next(iter(self._held)))
            if self._janitor is None:
                self._start_janitor()
            return held

    def _drop(self, extent_id: int) -> None:
        self._held.pop(extent_id).let_go()

    def drop_evicted(self) -> None:
        """Let go of every extent that is no longer where it was."""
        epoch = self._epoch()
        if epoch == self._seen_epoch:
            return
        self._seen_epoch = epoch
        with self._lock:
            gone = [i for i in self._held if not os.path.exists(self._extents.path(i))]
            for extent_id in gone:
                self._drop(extent_id)

    def _start_janitor(self) -> None:
        self._stop = threading.Event()
        self._janitor = threading.Thread(
            target=_janitor,
            args=(weakref.ref(self), self._stop),
            daemon=True,
            name="tiercache-janitor",
        )
        self._janitor.start()

    def close(self) -> None:
        """Let go of everything and end the thread."""
        self._stop.set()
        self.chores.clear()
        with self._lock:
            for extent_id in list(self._held):
                self._drop(extent_id)
            self._janitor = None

    def abandon(self) -> None:
        """In a forked child, which has no thread but this: let go of everything, or the parent's
        locks on evicted extents would last as long as the child. The lock may be held by a thread
        that is not here."""
        for held in list(self._held.values()):
            held.let_go()
        self._held.clear()

    @property
    def count(self) -> int:
        return len(self._held)


def _janitor(handles: weakref.ref[Handles], stop: threading.Event) -> None:
    while not stop.wait(JANITOR_S):
        alive = handles()
        if alive is None:
            return
        alive.drop_evicted()
        for chore in alive.chores:
            chore()
        del alive
