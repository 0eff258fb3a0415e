"""A MetadataStore in memory: the fake that passes the conformance suite of the real engines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping

from tiercache.errors import MetadataFenced, MetadataUnavailable
from tiercache.metadata.bookkeeping import check_commit, new_identity, unmet
from tiercache.ports import NOTHING_REQUIRED


class SharedMemory:
    """What outlives a MemoryMetadata, as a bucket does: make several on it, and the latest owns
    it. ``available`` is switched by the test; while it is False every call of every store
    raises MetadataUnavailable, and nothing is applied."""

    def __init__(self, url: str = "memory:") -> None:
        self.url = url
        self.identity = new_identity()
        self.available = True
        self.sequence = 1  # making a store is its first commit
        # Replaced, never changed, by a commit; so a scan's snapshot is the dict it began with.
        self.records: dict[bytes, bytes] = {}
        self.owner: MemoryMetadata | None = None


class MemoryMetadata:
    """One agent's handle on a SharedMemory; making it takes the store over. One event loop."""

    def __init__(self, shared: SharedMemory | None = None) -> None:
        self._shared = shared or SharedMemory()
        self._shared.owner = self
        self._closed = False

    @property
    def url(self) -> str:
        return self._shared.url

    @property
    def identity(self) -> str:
        return self._shared.identity

    @property
    def sequence(self) -> int:
        return self._shared.sequence

    async def get(self, key: bytes) -> bytes | None:
        self._reach()
        return self._shared.records.get(key)

    async def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        self._reach()
        records = self._shared.records
        ordered = sorted(records)
        position = bisect_left(ordered, max(prefix, start))
        end = len(ordered) if limit is None else min(len(ordered), position + limit)
        for key in ordered[position:end]:
            if not key.startswith(prefix):
                return
            yield key, records[key]

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        check_commit(batch, preconditions)
        shared = self._shared
        await self.check_owner()
        for key, required in preconditions.items():
            if shared.records.get(key) != required:
                raise unmet(key, path=self.url)
        if batch:
            merged = {**shared.records, **batch}
            shared.records = {key: value for key, value in merged.items() if value is not None}
            shared.sequence += 1
        return shared.sequence

    async def flush(self) -> None:
        await self.check_owner()

    async def check_owner(self) -> None:
        self._reach()
        if self._shared.owner is not self:
            raise MetadataFenced("another agent has taken the store over", path=self.url)

    async def close(self) -> None:
        self._closed = True

    def _reach(self) -> None:
        if self._closed:
            raise ValueError("the metadata store is closed")
        if not self._shared.available:
            raise MetadataUnavailable("switched off by the test", path=self.url)
