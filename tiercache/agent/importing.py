"""What a metadata store knows, brought into the index: all of it once, single names before that.

Nothing that is known here is replaced by something older, and nothing that changed here and was
not sent yet by anything. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from tiercache import records
from tiercache.agent.index import Index
from tiercache.agent.outbox import Outbox
from tiercache.agent.projection import to_index
from tiercache.catalog import CatalogListing, Record
from tiercache.errors import FormatError
from tiercache.ports import MetadataStore

log = logging.getLogger("tiercache.agent")

# Between two commits of the index: ~5 ms of the event loop, and a few MiB of memory.
BATCH_RECORDS = 500
BATCH_BYTES = 4 << 20
# Damaged records that are named in the log; the rest is counted.
NAMED_DAMAGE = 10


class Importer:
    """One store into one index."""

    def __init__(self, index: Index, outbox: Outbox, store: MetadataStore) -> None:
        self._index = index
        self._outbox = outbox
        self._store = store
        self._records = 0
        self._bytes = 0
        self.imported = 0
        self.damaged = 0

    # -- all of it --------------------------------------------------------------------------

    async def small(self, prefix: bytes, *, authoritative: bool) -> None:
        """Import pins, jobs or snapshots. ``authoritative``: what the store lacks was removed
        by whoever owned it since."""
        seen = set()
        async for key, _, raw in self._records_of(prefix):
            seen.add(key)
            if not self._outbox.has(key):
                await self._adopt(key, raw)
        if authoritative:
            for key, _ in list(self._index.scan(prefix)):
                if key not in seen and not self._outbox.has(key):
                    self._index.adopt(key, None)
        await self._index.flush()

    async def quotas(self) -> None:
        """Have what the store tells of quotas replaced by what is so here."""
        async for key, _, _ in self._records_of(b"u"):
            self._outbox.note(key)
        await self._index.flush()

    async def objects(self) -> None:
        """Import names that are not known here."""
        async for key, _, raw in self._records_of(b"o"):
            await self._adopt_object(key, raw)
        await self._index.flush()

    async def listings(self) -> None:
        """Import listings that are newer than what is known here."""
        group = _Group(self._index, self._outbox)
        async for key, record, raw in self._records_of(b"l"):
            if isinstance(record, CatalogListing):
                if not group.holds(key):
                    self.imported += group.publish()
                await self._adopt_part(group, key, record, raw)
        self.imported += group.publish()
        await self._index.flush()

    # -- single names -----------------------------------------------------------------------

    async def one(self, key: bytes) -> None:
        """Import one name, or one listing by the key of its first part."""
        if key.startswith(b"l"):
            await self._listing(key)
        else:
            await self.object(key[1:])

    async def object(self, digest: bytes) -> None:
        """Import one name, where it is not known here."""
        key = records.object_key(digest)
        value = await self._store.get(key)
        if value is not None:
            converted = self._converted(key, value)
            if converted is not None:
                await self._adopt_object(key, converted[1])

    async def _listing(self, key: bytes) -> None:
        group = _Group(self._index, self._outbox)
        async for part, record, raw in self._records_of(records.listing_hash_key(key)):
            if isinstance(record, CatalogListing):
                await self._adopt_part(group, part, record, raw)
        self.imported += group.publish()

    # -- the parts of it --------------------------------------------------------------------

    async def _records_of(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Record, bytes]]:
        async for key, value in self._store.scan(prefix):
            converted = self._converted(key, value)
            if converted is not None:
                yield key, *converted

    def _converted(self, key: bytes, value: bytes) -> tuple[Record, bytes] | None:
        try:
            return to_index(key, value)
        except FormatError as error:
            self.damaged += 1
            if self.damaged <= NAMED_DAMAGE:
                log.warning("a record of the metadata store is left out: %s", error)
            return None

    async def _adopt_object(self, key: bytes, raw: bytes) -> None:
        if self._index.get(key) is None and not self._outbox.has(key):
            await self._adopt(key, raw)

    async def _adopt_part(
        self, group: _Group, key: bytes, record: CatalogListing, raw: bytes
    ) -> None:
        if group.add(key, record, raw):
            await self._count(raw)

    async def _adopt(self, key: bytes, raw: bytes) -> None:
        self._index.adopt(key, raw)
        await self._count(raw)

    async def _count(self, raw: bytes) -> None:
        self.imported += 1
        self._records += 1
        self._bytes += len(raw)
        if self._records >= BATCH_RECORDS or self._bytes >= BATCH_BYTES:
            self._records = self._bytes = 0
            await self._index.flush()
            await asyncio.sleep(0)


class _Group:
    """The parts of one listing on their way into the index. The first is held back until all are
    there: without it nobody finds the others."""

    def __init__(self, index: Index, outbox: Outbox) -> None:
        self._index = index
        self._outbox = outbox
        self._first: tuple[bytes, CatalogListing, bytes] | None = None
        self._count = 0

    def holds(self, key: bytes) -> bool:
        """Return whether this is a part of the same listing."""
        hash_key = records.listing_hash_key(key)
        return self._first is not None and records.listing_hash_key(self._first[0]) == hash_key

    def add(self, key: bytes, record: CatalogListing, raw: bytes) -> bool:
        """Take a part, in order; return whether it was put into the index."""
        number = records.listing_part(key)
        if number == 0:
            self._first, self._count = None, 1
            if self._is_newer(key, record):
                self._first = key, record, raw
                if record.parts > 1 and self._index.get(key) is not None:
                    self._index.adopt(key, None)  # its other parts are about to be replaced
            return False
        if self._first is None or not self.holds(key) or number >= self._first[1].parts:
            return False  # of a listing that is known better here, or was longer once
        if (
            number != self._count
            or record.validated_unix_s != self._first[1].validated_unix_s
            or self._outbox.has(self._first[0])
        ):
            self._first = None  # cut off on its way to the store, or listed anew meanwhile
            return False
        self._count += 1
        self._index.adopt(key, raw)
        return True

    def _is_newer(self, key: bytes, record: CatalogListing) -> bool:
        if self._outbox.has(key):
            return False
        known = self._index.get(key)
        if known is None:
            return True
        return records.decode_listing(known).validated_unix_s < record.validated_unix_s

    def publish(self) -> bool:
        """Make the listing findable; return whether all of it was there."""
        if self._first is None:
            return False
        key, record, raw = self._first
        self._first = None
        if self._count != record.parts or self._outbox.has(key):
            return False
        self._index.adopt(key, raw)
        return True
