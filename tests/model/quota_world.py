"""A node's data plane over a temporary directory, with several identities, and an oracle that looks
at the device, and at the index as bytes, to say what each identity really holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec

from tiercache import records, work
from tiercache.agent.device import NotCached
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.fill import Filler, Target
from tiercache.agent.memory import Answer
from tiercache.agent.pinning import Pinning
from tiercache.agent.plane import build_plane
from tiercache.clock import BootClock
from tiercache.errors import CacheFull
from tiercache.extents.files import ExtentFiles
from tiercache.extents.shared_state import SharedStateWriter
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.model import Kind, ObjectInfo
from tiercache.policy.qos import Capacity
from tiercache.ports import Fetched, Origin
from tiercache.records import ObjectRecord, PinRecord
from tiercache.settings import CacheSettings, TotalBytes
from tiercache.testing.datasets import object_bytes
from tiercache.units import MIB

ORIGIN = "mem://bucket"
# What docs/qos.md says is counted for an extent beside its blocks.
OVERHEAD_BYTES = 8192
IDENTITIES = ("ann", "bob", "cat", "default")
MARKS = {10: "ann", 11: "bob", 12: "cat", 13: "default"}


class MemoryOrigin:
    """As much of an origin as filling needs."""

    url = ORIGIN

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, token: str | None = None
    ) -> Fetched:
        await asyncio.sleep(0)
        data = self.objects[key]
        return Fetched(ObjectInfo(key, len(data), "1", 0.0), data[start:end])


class EverybodyIsAdmitted:
    """The part of ``Governing`` that pinning needs."""

    @contextlib.asynccontextmanager
    async def admitted(self, path: str) -> AsyncIterator[None]:
        yield


@contextlib.contextmanager
def working_for(identity: str) -> Iterator[None]:
    token = work.current.set(work.Work(identity=identity))
    try:
        yield
    finally:
        work.current.reset(token)


class World:
    """One agent after the other over one directory. Every method runs on one event loop."""

    def __init__(self, root: Path, sizes: dict[str, int], *, capacity_bytes: int) -> None:
        self.root = root
        self.capacity_bytes = capacity_bytes
        self.origin = MemoryOrigin({key: object_bytes(key, size) for key, size in sizes.items()})
        self.capacities: dict[str, Capacity] = {}
        # Who is above a bound that was lowered, and how far; it must never rise.
        self.above: dict[tuple[str, str], int] = {}
        # Oracle: extents chosen to go, and whose each file was.
        self.chosen: set[int] = set()
        self.whose: dict[int, str] = {}
        self.failures: list[str] = []
        self.most_seen: dict[str, int] = {}
        self.evicted_for_others = 0
        self.passed_on = 0
        self.begin()

    # -- agents -----------------------------------------------------------------------------

    def begin(self) -> None:
        self.executor = ThreadPoolExecutor(2)
        self.extents = ExtentFiles(self.root / "extents")
        self.store = LmdbStore(self.root / "index.lmdb")
        self.state = SharedStateWriter(self.root / "shared.state")
        self.plane = build_plane(
            settings=CacheSettings(
                dir=str(self.root), limit=TotalBytes(self.capacity_bytes), memory_bytes=64 * MIB
            ),
            store=self.store,
            extents=self.extents,
            state=self.state,
            clock=BootClock(),
            executor=self.executor,
            committer=self.executor,
        )
        self.filler = Filler(self.plane)
        self.pinning = Pinning(self.plane, cast(Any, EverybodyIsAdmitted()))
        space = self.plane.space
        space.victims.reader_of = lambda mark: MARKS.get(mark, "")
        for_node, evict, pass_on = space.victims.for_node, space.evict, space.pass_on

        def chosen_for(worker: str, wanted_bytes: int) -> list[ExtentState]:
            found = for_node(worker, wanted_bytes)
            self.chosen.update(state.id for state in found)
            for whose in {state.identity for state in found} - {worker}:
                self.evicted_for_others += 1
                self._check_min(whose)
            return found

        async def evicting(state: ExtentState, *, own: bool = False) -> bool:
            try:
                return await evict(state, own=own)
            finally:
                self.chosen.discard(state.id)

        def passing_on(state: ExtentState, identity: str) -> bool:
            passed = pass_on(state, identity)
            self.passed_on += passed
            return passed

        space.victims._pass_on = passing_on
        space.victims.for_node = chosen_for  # type: ignore[method-assign]  # the oracle looks on
        space.evict = evicting  # type: ignore[method-assign]  # the oracle looks on

    async def start(self) -> None:
        """What the engine does when it starts."""
        space = self.plane.space
        space.load()
        for state in space.lost():
            await space.evict(state)
        self.plane.contents.refresh_pins()
        space.set_quotas(self.capacities)
        if not self.plane.index.get(b"\0names"):
            for key, data in self.origin.objects.items():
                record = ObjectRecord(ORIGIN, key, Kind.FILE, "1", len(data))
                self.plane.index.put_object(records.name_hash(ORIGIN, key), record)
            self.plane.index.put(b"\0names", b"1")
        await self.plane.index.flush()

    async def end(self, *, crash: bool) -> None:
        """Leave: in good order, or as a killed agent does, with what is committed by now."""
        await self.filler.stop()
        if not crash:
            self.plane.space.books.put()
            await self.plane.index.flush()
        self.executor.shutdown(wait=True)
        self.store.close()
        self.state.close()
        self.extents.close()
        self.chosen.clear()

    # -- what happens -----------------------------------------------------------------------

    def target(self, key: str) -> Target:
        return Target(
            origin=cast(Origin, self.origin),
            digest=records.name_hash(ORIGIN, key),
            key=key,
            token="1",
            path=f"/m/{key}",
            mount="/m",
        )

    async def read(self, identity: str, key: str, start: int, length: int) -> None:
        """Read as a client of this identity does: from the cache, filled before, or through."""
        data = self.origin.objects[key]
        length = min(length, len(data) - start)
        with working_for(identity), Answer():
            target = self.target(key)
            try:
                await self.filler.ensure(target, [(start, length)])
            except NotCached:
                got: bytes | None = await self.filler.read_through(target, start, length)
            else:
                record = self.filler.record_of(target)
                # Longer spans lie in several extents; those that are gone again are read through.
                got = self.plane.contents.read(record, start, min(length, 4096))
                self._visit(identity, record)
        if got is not None and got != data[start : start + len(got)]:
            self.failures.append(f"{key} has other bytes")

    def _visit(self, identity: str, record: ObjectRecord) -> None:
        mark = next(mark for mark, who in MARKS.items() if who == identity)
        for extent_id, slot in record.extents:
            if extent_id:
                self.state.visited[slot] = mark

    async def pin(self, identity: str, prefix: str, *, tree: bool) -> bool:
        """Return whether it was allowed."""
        with working_for(identity):
            try:
                await self.pinning.add(PinRecord(f"/m/{prefix}", ORIGIN, prefix, tree))
            except CacheFull:
                return False
        await self.plane.index.flush()
        return True

    async def unpin(self, path: str) -> None:
        self.plane.pins.remove(path)
        self.plane.contents.refresh_pins()
        await self.plane.index.flush()

    async def drop(self, key: str) -> None:
        """What an explicit ``evict`` of a name does."""
        record = self.plane.index.get_object(records.name_hash(ORIGIN, key))
        if record is not None and record.data_id:
            self.plane.contents.drop_object(record)
            bare = ObjectRecord(ORIGIN, key, Kind.FILE, "1", record.size_bytes)
            self.plane.index.put_object(records.name_hash(ORIGIN, key), bare)
        await self.plane.index.flush()

    def set_capacities(self, capacities: dict[str, Capacity]) -> None:
        self.capacities = capacities
        self.plane.space.set_quotas(capacities)
        self.above = {}
        used, pinned = self.used(), self.pinned()
        for identity, capacity in capacities.items():
            for name, value, bound in (
                ("max", used.get(identity, 0), capacity.max_bytes),
                ("pin_max", pinned.get(identity, 0), capacity.pin_max_bytes),
            ):
                if bound is not None and value > bound:
                    self.above[identity, name] = value

    # -- the oracle -------------------------------------------------------------------------

    def _blocks(self, extent_id: int) -> int:
        name = f"{extent_id:016x}"
        for place in (f"{name[:2]}/{name[2:]}", f"trash/{name}"):
            with contextlib.suppress(FileNotFoundError):
                return os.stat(self.root / "extents" / place).st_blocks * 512 + OVERHEAD_BYTES
        return 0

    def live(self) -> dict[str, int]:
        """Return what each identity has that can be read, by the files and who they are of."""
        found: dict[str, int] = {}
        for state in list(self.plane.space.live.values()):
            self.whose[state.id] = state.identity
            found[state.identity] = found.get(state.identity, 0) + self._blocks(state.id)
        return found

    def used(self) -> dict[str, int]:
        """The same with the files in the trash that readers still hold."""
        found = self.live()
        for extent_id, identity in list(self.whose.items()):
            if extent_id not in self.plane.space.live:
                count = self._blocks(extent_id)
                if count:
                    found[identity] = found.get(identity, 0) + count
                else:
                    del self.whose[extent_id]
        return found

    def pinned(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for state in self.plane.space.live.values():
            if state.pinned:
                found[state.identity] = found.get(state.identity, 0) + self._blocks(state.id)
        return found

    def _check_min(self, identity: str) -> None:
        capacity = self.capacities.get(identity)
        if capacity is None:
            return
        left = sum(
            self._blocks(state.id)
            for state in self.plane.space.live.values()
            if state.identity == identity and state.id not in self.chosen
        )
        if left < capacity.min_bytes:
            self.failures.append(f"{identity} is left {left} of its min {capacity.min_bytes}")

    def look(self) -> None:
        """Note whatever is above a bound now."""
        used, pinned = self.used(), self.pinned()
        for identity, capacity in self.capacities.items():
            for name, value, bound in (
                ("max", used.get(identity, 0), capacity.max_bytes),
                ("pin_max", pinned.get(identity, 0), capacity.pin_max_bytes),
            ):
                allowed = bound
                if bound is not None and (identity, name) in self.above:
                    allowed = max(bound, self.above[identity, name])
                    self.above[identity, name] = value
                    if value <= bound:
                        del self.above[identity, name]
                if allowed is not None and value > allowed:
                    self.failures.append(f"{identity} has {value}, its {name} is {allowed}")
            self.most_seen[identity] = max(self.most_seen.get(identity, 0), used.get(identity, 0))

    async def keep_looking(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.001)  # a look costs that much

    async def check_still(self) -> None:
        """Hold ledger, device and index against one another while nothing happens."""
        space = self.plane.space
        await asyncio.wait_for(self._settled(), 20)
        space.reap()
        space.ledger.assert_invariants()
        self.look()
        used, live = self.used(), self.live()
        for identity, account in space.ledger.accounts.items():
            if identity:
                assert account.reserved_bytes == 0, identity
                assert account.leaving_bytes == 0, identity
                assert account.live_bytes == live.get(identity, 0), identity
                assert account.used_bytes == used.get(identity, 0), identity
        self.plane.index.put(b"\0tick", None)  # so that there is a commit
        await self.plane.index.flush()
        self._check_records(live)
        assert not self.failures, self.failures

    async def _settled(self) -> None:
        while self.filler._tasks:
            await asyncio.sleep(0.001)

    def _check_records(self, live: dict[str, int]) -> None:
        """The index as another program would read it."""
        recorded = {}
        for _, raw in self.store.scan(b"u"):
            identity, used_bytes, _, extents = msgspec.msgpack.decode(raw)
            recorded[identity] = used_bytes, extents
        counts: dict[str, int] = {}
        for _, raw in self.store.scan(b"x"):
            identity = msgspec.msgpack.decode(raw)[5] or "default"
            counts[identity] = counts.get(identity, 0) + 1
        expected = {i: (live[i], counts[i]) for i in counts} if self.capacities else {}
        assert recorded == expected
