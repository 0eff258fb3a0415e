"""Extents that this process holds open: how many, and giving them back when they are evicted.

An open extent keeps its bytes on the device even after eviction, so a process that reads nothing
must let go too: a thread of its own looks at the epoch twice a second. Thread safe.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

from tiercache.client.entry import Entry, Segment
from tiercache.ports import ExtentDirectory, ExtentReader

# A quarter of what the process may open, so that the job keeps the rest.
_SHARE = 4
_AT_MOST = 4096
JANITOR_S = 0.5


class Handles:
    """Open extents by id, least recently opened first."""

    def __init__(self, extents: ExtentDirectory, epoch: Callable[[], int]) -> None:
        # Constant after construction
        self._extents = extents
        self._epoch = epoch
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(16, min(_AT_MOST, soft // _SHARE))
        self.chores: list[Callable[[], None]] = []
        # Guarded by _lock
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[ExtentReader, weakref.WeakSet[Entry]]] = OrderedDict()
        self._janitor: threading.Thread | None = None
        self._stop = threading.Event()
        self._seen_epoch = -1

    def open(self, entry: Entry, segment: Segment) -> bool:
        """Open the segment's extent for the entry; False where it is gone (evicted)."""
        with self._lock:
            held = self._open.get(segment.extent_id)
            if held is None:
                ext = self._extents.open(segment.extent_id) if segment.extent_id else None
                if ext is None:
                    return False
                held = (ext, weakref.WeakSet())
                self._open[segment.extent_id] = held
                while len(self._open) > self._limit:
                    self._drop(next(iter(self._open)))
            held[1].add(entry)
            entry.opened(segment, held[0])
            if self._janitor is None:
                self._start_janitor()
        return True

    def share(self, entry: Entry) -> None:
        """Note an entry that took over open extents from the one before it."""
        with self._lock:
            for segment in entry.segments:
                if segment.ext is None:
                    continue
                held = self._open.get(segment.extent_id)
                if held is not None and held[0] is segment.ext:
                    held[1].add(entry)
                else:
                    entry.let_go(segment.extent_id)

    def _drop(self, extent_id: int) -> None:
        _, users = self._open.pop(extent_id)
        for entry in list(users):
            entry.let_go(extent_id)

    def drop_evicted(self) -> None:
        """Let go of every extent that is no longer where it was."""
        epoch = self._epoch()
        if epoch == self._seen_epoch:
            return
        self._seen_epoch = epoch
        with self._lock:
            gone = [i for i in self._open if not os.path.exists(self._extents.path(i))]
            for extent_id in gone:
                self._drop(extent_id)

    def _start_janitor(self) -> None:
        self._stop = threading.Event()
        self._janitor = threading.Thread(
            target=_janitor, args=(weakref.ref(self), self._stop), daemon=True,
            name="tiercache-janitor",
        )  # fmt: skip
        self._janitor.start()

    def close(self) -> None:
        """Let go of everything and end the thread."""
        self._stop.set()
        with self._lock:
            for extent_id in list(self._open):
                self._drop(extent_id)
            self._janitor = None

    def abandon(self) -> None:
        """In a forked child, which has no thread but this: let go of everything, or the parent's
        locks on evicted extents would last as long as the child. The lock may be held by a thread
        that is not here."""
        for extent_id, (_, users) in list(self._open.items()):
            for entry in list(users):
                entry.let_go(extent_id)
        self._open.clear()

    @property
    def count(self) -> int:
        return len(self._open)


def _janitor(handles: weakref.ref[Handles], stop: threading.Event) -> None:
    while not stop.wait(JANITOR_S):
        alive = handles()
        if alive is None:
            return
        alive.drop_evicted()
        for chore in alive.chores:
            chore()
        del alive
