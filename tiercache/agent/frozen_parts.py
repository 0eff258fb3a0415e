"""The parts of a snapshot on their way into the index, in path order and in bounded memory.

Objects come in any order, mostly sorted: they are sorted a batch at a time and written as runs;
where there is more than one run in the end, they are merged into parts behind them. Nobody finds
any of it before the snapshot's record is put. Owned by the event loop.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from tiercache import catalog
from tiercache.agent.index import Index
from tiercache.catalog import PART_OBJECTS, SnapshotObject, SnapshotPart

# A part's objects are ~1 MiB encoded, however long their names: far below the stores' 16 MiB.
PART_BYTES = 1 << 20
# What is sorted at a time: ~50,000 objects of common length, some 40 MB in memory.
SORT_BYTES = 8 << 20
# What an object costs encoded, beside its strings.
OBJECT_BYTES = 40

_path = attrgetter("path")


@dataclass(slots=True)
class _Run:
    """Parts [first, end) in path order; ``last`` is the last path in them."""

    first: int
    end: int
    last: str


class FrozenParts:
    """One snapshot's parts, from the number ``first`` on."""

    def __init__(self, index: Index, name: str, first: int) -> None:
        self._index = index
        self._name = name
        self._first = self._next = first
        self._waiting: list[SnapshotObject] = []
        self._waiting_bytes = 0
        self._runs: list[_Run] = []
        # Of what is written last: the paths that its parts begin with, objects and bytes
        self.firsts: list[str] = []
        self.objects = 0
        self.size_bytes = 0

    @property
    def first_part(self) -> int:
        return self._next - len(self.firsts)

    async def add(self, objects: Iterable[SnapshotObject]) -> None:
        """Raises OSError from the device."""
        for one in objects:
            self._waiting.append(one)
            self._waiting_bytes += _bytes_of(one)
        if self._waiting_bytes >= SORT_BYTES:
            await self._write_run()

    async def finish(self) -> None:
        """Write the rest; all is in order and durable then. Of equal paths one is kept. Raises
        OSError from the device."""
        await self._write_run()
        if len(self._runs) > 1:
            runs, self._runs = self._runs, []
            before = self._next
            self.firsts, self.objects, self.size_bytes = [], 0, 0
            merged = heapq.merge(*(self._read(run) for run in runs), key=_path)
            await self._write(_unique(merged))
            self._drop(self._first, before)
            self._first = before
            await self._index.flush()

    async def discard(self) -> None:
        """Take everything out again. Raises OSError from the device."""
        self._drop(self._first, self._next)
        await self._index.flush()

    async def _write_run(self) -> None:
        self._waiting.sort(key=_path)
        objects, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not objects:
            return
        last = objects[-1].path
        run = self._runs[-1] if self._runs else None
        if run is None or objects[0].path <= run.last:
            run = _Run(self._next, self._next, last)
            self._runs.append(run)
        await self._write(_unique(iter(objects)))
        run.end, run.last = self._next, last

    async def _write(self, objects: Iterator[SnapshotObject]) -> None:
        """Write sorted objects behind what is there, one durable part after the other."""
        part: list[SnapshotObject] = []
        part_bytes = 0
        for one in objects:
            part.append(one)
            part_bytes += _bytes_of(one)
            if len(part) == PART_OBJECTS or part_bytes >= PART_BYTES:
                await self._write_part(part)
                part, part_bytes = [], 0
        if part:
            await self._write_part(part)

    async def _write_part(self, part: list[SnapshotObject]) -> None:
        key = catalog.snapshot_part_key(self._name, self._next)
        self._next += 1
        self._index.put(key, catalog.encode(SnapshotPart(tuple(part))))
        self.firsts.append(part[0].path)
        self.objects += len(part)
        self.size_bytes += sum(one.size_bytes for one in part)
        await self._index.flush()

    def _read(self, run: _Run) -> Iterator[SnapshotObject]:
        for number in range(run.first, run.end):
            key = catalog.snapshot_part_key(self._name, number)
            raw = self._index.get(key)
            assert raw is not None
            part = catalog.decode(key, raw)
            assert isinstance(part, SnapshotPart)
            yield from part.objects

    def _drop(self, first: int, end: int) -> None:
        for number in range(first, end):
            self._index.put(catalog.snapshot_part_key(self._name, number), None)


def _bytes_of(one: SnapshotObject) -> int:
    return len(one.path) + len(one.origin) + len(one.key) + len(one.token) + OBJECT_BYTES


def _unique(objects: Iterator[SnapshotObject]) -> Iterator[SnapshotObject]:
    last = None
    for one in objects:
        if one.path != last:
            yield one
        last = one.path
