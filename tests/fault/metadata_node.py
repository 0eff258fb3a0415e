"""An agent's index and catalog over a metadata store in memory, without the rest of the agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiercache import records
from tiercache.agent import catalog as catalog_module
from tiercache.agent.catalog import Catalog
from tiercache.agent.index import Index
from tiercache.agent.projection import WRITER_KEY, to_store
from tiercache.clock import FakeClock
from tiercache.errors import MetadataUnavailable
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.model import Entry, Kind
from tiercache.policy.retry import RetryPolicy
from tiercache.ports import NOTHING_REQUIRED, MetadataStore
from tiercache.records import ListingPart, ObjectRecord, PinRecord
from tiercache.settings import MetadataSettings
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory
from tiercache.units import MIB

ORIGIN = "s3://bucket"
SETTINGS = MetadataSettings(url="memory:", commit_interval_s=0.0)


class LoggedMetadata(MemoryMetadata):
    """Keeps the batches that were committed, less what says who did it. ``fail`` is asked before
    each commit: "no" commits, "before" and "after" raise MetadataUnavailable around it."""

    def __init__(self, shared: SharedMemory) -> None:
        super().__init__(shared)
        self.batches: list[dict[bytes, bytes | None]] = []
        self.fail: Callable[[], str] = lambda: "no"

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        outcome = self.fail()
        await asyncio.sleep(0)
        if outcome == "before":
            raise MetadataUnavailable("lost on its way", path=self.url)
        sequence = await super().commit(batch, preconditions=preconditions)
        self.batches.append({key: batch[key] for key in batch if key != WRITER_KEY})
        if outcome == "after":
            raise MetadataUnavailable("the answer was lost", path=self.url)
        return sequence


class Node:
    """``start`` and ``stop`` it on one event loop; ``crash`` leaves everything as it lies."""

    def __init__(
        self, folder: Path, shared: SharedMemory, *, settings: MetadataSettings = SETTINGS
    ):
        folder.mkdir(exist_ok=True)
        self.shared = shared
        self.clock = FakeClock()
        self.index_store = LmdbStore(folder / "index.lmdb", map_bytes=64 * MIB)
        self._executor = ThreadPoolExecutor(1)
        self.index = Index(self.index_store, self._executor)
        self.store: LoggedMetadata | None = None
        self.catalog = Catalog(settings, self._open, self.index, self.clock)

    async def _open(self) -> MetadataStore:
        if not self.shared.available:
            raise MetadataUnavailable("switched off by the test", path=self.shared.url)
        self.store = LoggedMetadata(self.shared)
        return self.store

    async def crash(self) -> None:
        for task in self.catalog._tasks:
            task.cancel()
        await asyncio.gather(*self.catalog._tasks, return_exceptions=True)
        self._executor.shutdown(wait=True)
        self.index_store.close()

    async def stop(self) -> None:
        await self.index.flush()
        await self.catalog.stop()
        await self.index.flush()
        self._executor.shutdown(wait=True)
        self.index_store.close()

    async def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.catalog.status()
            await asyncio.sleep(0.002)

    async def attached(self) -> None:
        await self.until(lambda: self.catalog.status()["state"] == "attached")

    async def committed(self) -> None:
        """Return when all that is known was committed."""
        await self.index.flush()
        status = self.catalog.status
        await self.until(lambda: not status()["pending_keys"] and status()["state"] == "attached")

    def learn(self, name: str, token: str = "v1", kind: Kind = Kind.FILE) -> bytes:
        record = object_record(name, token, kind, self.clock)
        self.index.learn_object(records.name_hash(ORIGIN, name), record)
        return object_key(name)

    def pin(self, path: str) -> bytes:
        key = records.pin_key(path)
        self.index.put(key, records.encode(PinRecord(path, ORIGIN, path, True)))
        return key

    def list(self, prefix: str, parts: int, names: int = 2, *, count: int | None = None) -> None:
        """Put a listing of ``parts`` parts, of which ``count`` are written."""
        for number in reversed(range(parts if count is None else count)):
            part = listing_part(prefix, number, parts, names, self.clock)
            key = records.listing_key(ORIGIN, prefix, True, number)
            self.index.put(key, records.encode(part))

    def mirrored(self) -> dict[bytes, bytes]:
        """Return what the store must hold when all is committed."""
        found = {}
        for letter in records.KNOWLEDGE:
            for key, raw in self.index.scan(bytes([letter])):
                value = to_store(key, raw)
                if value is not None:
                    found[key] = value
        return found

    def stored(self) -> dict[bytes, bytes]:
        return {key: raw for key, raw in self.shared.records.items() if key != WRITER_KEY}


def object_key(name: str) -> bytes:
    return records.object_key(records.name_hash(ORIGIN, name))


def object_record(name: str, token: str, kind: Kind, clock: FakeClock) -> ObjectRecord:
    return ObjectRecord(
        origin=ORIGIN,
        key=name,
        kind=kind,
        token=token,
        size_bytes=5,
        validated_s=clock.now(),
        boot=clock.boot_id,
        validated_unix_s=clock.unix(),
    )


def listing_part(prefix: str, number: int, parts: int, names: int, clock: FakeClock) -> ListingPart:
    return ListingPart(
        origin=ORIGIN,
        prefix=prefix,
        recursive=True,
        parts=0 if number else parts,
        validated_s=clock.now(),
        boot=clock.boot_id,
        entries=tuple(Entry(f"{number}-{name}", Kind.FILE, 1, "t") for name in range(names)),
        validated_unix_s=clock.unix(),
    )


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Let retries and heartbeats pass in a test's time."""
    retries = RetryPolicy(deadline_s=60.0, base_s=0.01, cap_s=0.02)
    patch.setattr(catalog_module, "RETRIES", retries)
    patch.setattr(catalog_module, "HEARTBEAT_S", 0.02)
    patch.setattr(catalog_module, "LEAVE_S", 0.2)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50.0):
            await work()

    asyncio.run(bounded())


def parts_of(node: Node, prefix: str) -> list[ListingPart]:
    key = records.listing_key(ORIGIN, prefix, True, 0)
    raws = [raw for _, raw in node.index.scan(records.listing_hash_key(key))]
    return [records.decode_listing(raw) for raw in raws]
