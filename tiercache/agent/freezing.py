"""Freezing: what paths name now, object by object, with the checksums of their bytes if asked.

What is listed is what the origins say now, never what was known of them. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from math import inf

import crc32c
import msgspec

from tiercache import wire
from tiercache.agent.device import NotCached
from tiercache.agent.fill import Filler, Target
from tiercache.agent.flights import gathered
from tiercache.agent.governing import Governing
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.names import Names
from tiercache.agent.plane import Plane
from tiercache.catalog import SnapshotObject
from tiercache.errors import NotFound, PreconditionFailed, StaleHandle
from tiercache.model import Consistency, Entry, Kind
from tiercache.policy import checksums, snapshots
from tiercache.policy.globs import GlobFilter
from tiercache.policy.pages import RUN_PAGES, page_count, page_span
from tiercache.records import ObjectRecord

RUN_BYTES = RUN_PAGES * 64 * 1024
# HEADs and small objects in flight, as a prefetch has; of large ones runs, as it has of one.
IN_FLIGHT = 64
RUNS_IN_FLIGHT = 8

# Puts what was frozen of a name into the index, where that knows nothing of it.
Know = Callable[[Located, SnapshotObject], None]


class Freezing:
    """One pass over the paths of a snapshot. The counts grow while it runs."""

    def __init__(
        self,
        plane: Plane,
        mounts: Mounts,
        names: Names,
        filler: Filler,
        governing: Governing,
        know: Know,
        spec: wire.SnapshotCreate,
    ) -> None:
        # Constant after construction
        self._index = plane.index
        self._chunks = plane.chunks
        self._memory = plane.memory
        self._mounts = mounts
        self._names = names
        self._filler = filler
        self._governing = governing
        self._know = know
        self._spec = spec
        self._globs = GlobFilter(spec.include, spec.exclude)
        # Owned by the event loop
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        self._runs = asyncio.Semaphore(RUNS_IN_FLIGHT)
        self.objects = 0
        self.size_bytes = 0
        self.checked = 0
        self.checked_bytes = 0

    async def all(self) -> AsyncIterator[list[SnapshotObject]]:
        """Yield everything, in batches. Raises NotFound for a path that names nothing,
        OriginUnavailable where an origin cannot be asked, and StaleHandle for an object that is
        replaced while it is read."""
        for path in self._spec.paths:
            for source in [*self._mounts.below(path), path]:
                if source == path and self._mounts.is_virtual(path):
                    continue
                located = self._mounts.locate(source)
                above = located.path if source == path else path
                async for batch in self._source(located, above=above):
                    yield await self._frozen(located, batch)

    async def _frozen(self, located: Located, batch: list[SnapshotObject]) -> list[SnapshotObject]:
        self.objects += len(batch)
        self.size_bytes += sum(one.size_bytes for one in batch)
        if not self._spec.checksums or self._spec.dry_run:
            return batch
        return await gathered(
            self._with_checksum(self._mounts.sibling(located, one.key), one) for one in batch
        )

    # -- names ------------------------------------------------------------------------------

    async def _source(self, located: Located, *, above: str) -> AsyncIterator[list[SnapshotObject]]:
        """Yield what one mount shows at and below a name; the globs apply to paths below
        ``above``."""
        path = located.path
        looked = await self._names.current(located)
        if looked.kind is Kind.FILE:
            yield [_object(located.origin.url, located.key, path, looked)]
            return
        if looked.kind is Kind.ABSENT:
            if snapshots.is_scratch(self._spec.name):
                return  # a comparison says that all of it is gone
            raise NotFound("no such object or directory", path=path)
        # Where another mount lies over names of this one, that is what the namespace shows.
        hidden = tuple(f"{mount}/" for mount in self._mounts.below(path))
        base = self._mounts.sibling(located, located.directory_prefix + "-").path[:-1]
        start = len(above.rstrip("/")) + 1
        async for _, entries in self._names.walk(located, refresh=True):
            batch = []
            for entry in entries:
                full = base + entry.name
                if entry.kind is Kind.FILE and self._globs.matches(full[start:]):
                    if not hidden or not full.startswith(hidden):
                        batch.append((full, entry))
            if not batch:
                continue
            if located.mount.consistency is Consistency.IMMUTABLE:
                yield await self._bound(located, batch)
            else:
                yield await self._listed(located, batch)

    async def _listed(
        self, located: Located, batch: list[tuple[str, Entry]]
    ) -> list[SnapshotObject]:
        origin, prefix = located.origin.url, located.directory_prefix
        objects = [_object(origin, prefix + entry.name, path, entry) for path, entry in batch]
        if all(one.token for one in objects):
            return objects
        asked = await gathered(self._complete(located, one) for one in objects)
        return [one for one in asked if one is not None]

    async def _complete(self, located: Located, one: SnapshotObject) -> SnapshotObject | None:
        """Return the object with its version, which its listing did not tell; None where it is
        gone since."""
        if one.token:
            return one
        async with self._gate:
            looked = await self._names.current(self._mounts.sibling(located, one.key))
        if looked.kind is not Kind.FILE:
            return None
        return _object(one.origin, one.key, one.path, looked)

    async def _bound(
        self, located: Located, batch: list[tuple[str, Entry]]
    ) -> list[SnapshotObject]:
        """The same for an immutable mount: where a name is bound to a version, that is what its
        readers see, whatever the origin lists."""
        objects = await self._listed(located, batch)
        for place, one in enumerate(objects):
            record = self._index.get_object(self._mounts.sibling(located, one.key).digest)
            if record is not None and record.kind is Kind.FILE and record.validated_s > -inf:
                objects[place] = _object(one.origin, one.key, one.path, record)
        return objects

    # -- checksums --------------------------------------------------------------------------

    async def _with_checksum(self, located: Located, one: SnapshotObject) -> SnapshotObject:
        self._know(located, one)
        target = Target.of(located, one.token)
        async with self._gate:
            crc = 0
            spans = [
                (start, min(RUN_BYTES, one.size_bytes - start))
                for start in range(0, one.size_bytes, RUN_BYTES)
            ]
            # A few runs at a time: their checksums are put together in order.
            for first in range(0, len(spans), RUNS_IN_FLIGHT):
                some = spans[first : first + RUNS_IN_FLIGHT]
                crcs = await gathered(self._run(target, span) for span in some)
                for part, (_, length) in zip(crcs, some, strict=True):
                    crc = checksums.combine(crc, part, length)
        self.checked += 1
        self.checked_bytes += one.size_bytes
        return msgspec.structs.replace(one, crc32c=crc)

    async def _run(self, target: Target, span: tuple[int, int]) -> int:
        """Return the checksum of one run, from those of its pages in the cache, or, where that
        takes no more, of its bytes as they come."""
        known = self._of_pages(self._filler.record_of(target), span)
        if known is not None:
            return known
        async with self._governing.admitted(target.path, read=span[1]), self._runs:
            try:
                await self._filler.ensure(target, [span], is_read=False)
                known = self._of_pages(self._filler.record_of(target), span)
            except NotCached:
                known = None
            if known is not None:
                return known
            offset, length = span
            async with self._memory.hold(length):
                try:
                    fetched = await target.origin.get(
                        target.key, start=offset, end=offset + length, token=target.token
                    )
                except (PreconditionFailed, FileNotFoundError) as error:
                    raise StaleHandle("replaced while it was frozen", path=target.path) from error
                return int(crc32c.crc32c(fetched.data))

    def _of_pages(self, record: ObjectRecord, span: tuple[int, int]) -> int | None:
        """Return the checksum of whole pages from theirs; None where one is not here (any more).
        They were taken of the bytes as they came, so nothing is read again."""
        offset, length = span
        first, end = page_span(offset, length)
        if record.packed:
            raw = record.crcs[first * 4 : end * 4]
        elif record.data_id and all(
            self._chunks.has(record.data_id, page) for page in range(first, end)
        ):
            raw = b"".join(self._chunks.crc(record.data_id, page) for page in range(first, end))
        else:
            return None
        if len(raw) != page_count(length) * 4:
            return None
        crcs = (int.from_bytes(raw[place : place + 4], "little") for place in range(0, len(raw), 4))
        return checksums.of_pages(crcs, length)


def _object(
    origin: str, key: str, path: str, known: Entry | wire.Found | ObjectRecord
) -> SnapshotObject:
    return SnapshotObject(
        path=path,
        origin=origin,
        key=key,
        token=known.token,
        size_bytes=known.size_bytes,
        mtime_s=known.mtime_s,
    )
