"""The engine: what an agent can do, one method a request. Owned by one event loop.

It is the same whether it runs in its own process or, embedded, on a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from tiercache import records, wire, work
from tiercache.agent.catalog import Catalog
from tiercache.agent.chunks import checksums
from tiercache.agent.contents import BadPages, without_data
from tiercache.agent.device import NotCached
from tiercache.agent.expired import MIN_NAMES, Expired
from tiercache.agent.fill import Filler, Target
from tiercache.agent.jobs import Jobs
from tiercache.agent.mounts import Located, Mounts, OpenOrigin, ProbeWrites
from tiercache.agent.names import Names
from tiercache.agent.plane import build_plane
from tiercache.agent.qos_plane import QosParts, build_qos
from tiercache.agent.reach import Reach
from tiercache.agent.snapshots import Snapshots
from tiercache.agent.writes import Writes, check_writable
from tiercache.clock import Clock
from tiercache.errors import (
    CacheFull,
    IsADirectory,
    NotFound,
    OriginUnavailable,
    StaleHandle,
    TiercacheError,
    Unsupported,
)
from tiercache.model import PAGE_BYTES, Consistency, Kind
from tiercache.policy import pages
from tiercache.ports import Endpoints, ExtentStore, IndexStore, MetadataStore, SharedState
from tiercache.records import PinRecord
from tiercache.settings import Settings

log = logging.getLogger("tiercache.agent")

# Four disk threads: NVMe wants depth, and Python's share of a write is small.
DISK_THREADS = 4
TICK_S = 1.0
# One reader's window takes at most this share of a small cache.
AHEAD_SHARE = 8
# Readers that were killed keep their slots in the index, and old pages, for so long. The slots are
# 4,096: a node that kills a hundred readers a second would need this to be shorter.
READER_CHECK_S = 30.0
# Removing a tree sends this many DELETEs at once.
REMOVE_CONCURRENCY = 16
# A whole file that is evicted this often before it is whole does not fit beside its neighbours.
LOCAL_ROUNDS = 8


OpenMetadata = Callable[[], Awaitable[MetadataStore]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What compose hands to an engine."""

    store: IndexStore
    extents: ExtentStore
    state: SharedState
    qos: QosParts
    open_origin: OpenOrigin
    probe_writes: ProbeWrites
    open_metadata: OpenMetadata
    endpoints: Endpoints
    clock: Clock


class Engine:
    """All of the agent but its socket."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self.clock = parts.clock
        self.executor = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="tiercache-disk")
        # A commit never waits behind writes of data.
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="tiercache-index")
        self._extents = parts.extents
        self._state = parts.state
        self._store = parts.store
        plane = build_plane(
            settings=settings.cache,
            store=parts.store,
            extents=parts.extents,
            state=parts.state,
            clock=parts.clock,
            executor=self.executor,
            committer=self._committer,
        )
        self.index, self.space, self.chunks = plane.index, plane.space, plane.chunks
        self.contents, self.pins = plane.contents, plane.pins
        self.memory, self.device = plane.memory, plane.device
        self.mounts = Mounts(
            settings.mounts, settings.profiles, parts.open_origin, parts.probe_writes
        )
        self.qos = build_qos(
            parts.qos,
            state=parts.state,
            plane=plane,
            mounts=self.mounts,
            endpoints=parts.endpoints,
            clock=parts.clock,
            executor=self.executor,
        )
        self.governing, self.pinning = self.qos.governing, self.qos.pinning
        self.catalog = Catalog(settings.metadata, parts.open_metadata, plane.index, parts.clock)
        self.catalog.imported_pins = self._imported_pins
        self.catalog.imported_jobs = self._imported_jobs
        self.names = Names(plane, self.mounts, self.catalog)
        self.endpoints = parts.endpoints
        self._reach = Reach(self.index, parts.endpoints, parts.clock)
        self.expired = Expired(plane.index, self.mounts, self.names, parts.clock)
        self.filler = Filler(plane)
        self.filler.version_changed = self._version_changed
        self.writes = Writes(plane, self.names, self.filler)
        self.snapshots = Snapshots(
            plane, self.mounts, self.names, self.filler, self.catalog, self.governing
        )
        self.catalog.attached = self.snapshots.recover
        self.jobs = Jobs(plane, self.mounts, self.names, self.filler, self.snapshots, self.qos)
        self.corrupt_pages = 0
        self.disputed_pages = 0
        # Reported by clients, by mount: (reads, bytes) answered without us.
        self.hits: dict[str, list[int]] = {}
        self._ticker: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over the directory: repair what a crash left, come below the limit, resume jobs."""
        # A predecessor killed in the middle of a look-up left its snapshot behind, and the index
        # would grow past it with every commit.
        self._store.reader_check()
        self.space.load()
        for state in self.space.lost():
            log.warning("extent %016x is gone from the device", state.id)
            await self.space.evict(state)
        self.contents.refresh_pins()
        self._state.bump_generation()
        self._state.bump_epoch()
        await self._shrink()
        self.qos.load(self.space.capacity_bytes)
        self.space.books.begin()
        self._reach.recall()
        await self.index.flush()
        if not self.settings.metadata.url:
            self.snapshots.recover()
        self.catalog.start()
        self.jobs.resume()
        self._reach.start()
        self.qos.start()
        self._ticker = asyncio.create_task(self._tick())

    def _imported_pins(self) -> None:
        self.pins.load()
        self.contents.refresh_pins()

    def _imported_jobs(self) -> None:
        self.jobs.resume()

    async def _shrink(self) -> None:
        """Come below a limit that was lowered."""
        with contextlib.suppress(TiercacheError):  # all that is left is pinned: shown by status
            await self.space.reserve(0)

    async def _tick(self) -> None:
        checked_s = self.clock.now()
        while True:
            await asyncio.sleep(TICK_S)
            with contextlib.suppress(OSError, TiercacheError):  # the device's next user reports it
                self.space.measure_overhead()
                self.space.reap()
                await self.space.come_below()
                self.space.books.tell()
                if self.clock.now() - checked_s >= READER_CHECK_S:
                    checked_s = self.clock.now()
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._committer, self._store.reader_check)

    async def stop(self) -> None:
        """End jobs and fills, make everything durable, close everything."""
        if self._ticker is not None:
            self._ticker.cancel()
        await self.qos.stop()
        await self._reach.stop()
        await self.jobs.table.stop()
        await self.snapshots.table.stop()
        await self.writes.stop()
        await self.filler.stop()
        await self.names.stop()
        with contextlib.suppress(OSError):  # a broken device loses what only it would hold
            self.space.books.put()
            self.space.books.tell(now=True)
            await self.index.flush()
            await self.catalog.stop()
            await self.index.flush()
        await self.mounts.close()
        self.executor.shutdown(wait=True)
        self._committer.shutdown(wait=True)
        self._store.close()

    # -- names ------------------------------------------------------------------------------

    async def lookup(self, request: wire.Lookup) -> wire.Found:
        located = self.mounts.locate(request.path)
        return await self.names.lookup(located, revalidate=request.revalidate)

    async def list_names(self, request: wire.ListNames) -> wire.Listed:
        located = self.mounts.locate(request.path)
        listing = await self.names.listing(
            located, recursive=request.recursive, refresh=request.refresh
        )
        inline = msgspec.msgpack.encode(listing.parts) if listing.parts else None
        return wire.Listed(
            stale=listing.stale,
            validated_s=listing.validated_s,
            inline=inline,
            partial=listing.partial,
        )

    # -- reading ----------------------------------------------------------------------------

    async def fill(self, request: wire.Fill) -> wire.Filled:
        target = Target.of(self.mounts.locate(request.path), request.token)
        try:
            return await self._filled(request, target)
        except OriginUnavailable as error:
            raise self.filler.explained(target, error) from error

    async def _filled(self, request: wire.Fill, target: Target) -> wire.Filled:
        try:
            waits = self.filler.begin(target, request.spans)  # what is waited for goes first
            self._read_ahead(target, request.ahead)
            inline = request.inline and request.spans[0][1] <= wire.MAX_INLINE_BYTES
            await self.filler.finish(waits, durable=not inline)
            if not inline:
                return wire.Filled((None,))
            data = await self.filler.read_present(target, request.spans[0], waits)
            if data is not None:
                if not waits:  # it was here, and only the index did not say so yet
                    self._count_hits(target.mount, 1, len(data))
                return wire.Filled((data,))
            await self.filler.finish(set())
            return wire.Filled((None,))
        except NotCached:
            pass
        # One frame holds one run: what is more is asked for with ReadThrough. No name is given to
        # the bytes: this frame outlives its return with the traceback of what was caught.
        offset, length = request.spans[0]
        length = min(length, wire.MAX_SPAN_BYTES)
        return wire.Filled((await self.filler.read_through(target, offset, length),))

    async def read_through(self, request: wire.ReadThrough) -> wire.Filled:
        target = Target.of(self.mounts.locate(request.path), request.token)
        length = min(request.length, wire.MAX_SPAN_BYTES)
        try:
            return wire.Filled((await self.filler.read_through(target, request.offset, length),))
        except OriginUnavailable as error:
            raise self.filler.explained(target, error) from error

    def _read_ahead(self, target: Target, span: tuple[int, int]) -> None:
        if not span[1]:
            return
        # What is fetched ahead must still be there when its reader comes.
        length = min(span[1], self.space.capacity_bytes // AHEAD_SHARE)
        # Read-ahead is a favour: whatever forbids it is the next read's to report.
        with contextlib.suppress(NotCached, TiercacheError):
            self.filler.begin(target, [(span[0], length)])

    def advise(self, request: wire.Advise) -> None:
        with contextlib.suppress(TiercacheError):
            target = Target.of(self.mounts.locate(request.path), request.token)
            before = work.current.set(self.governing.work_at(target.path))
            try:
                self._read_ahead(target, (request.offset, request.length))
            finally:
                work.current.reset(before)

    def report_use(self, request: wire.ReportUse) -> None:
        for mount, reads, count in request.hits:
            self._count_hits(mount, reads, count)

    def _count_hits(self, mount: str, reads: int, count: int) -> None:
        totals = self.hits.setdefault(mount, [0, 0])
        totals[0] += reads
        totals[1] += count

    async def fill_many(self, request: wire.FillMany) -> wire.FilledMany:
        came_s = self.clock.now()
        if len(request.items) >= MIN_NAMES:
            await self.expired.revalidate(path for path, _, _ in request.items)
        done = await asyncio.gather(*(self._fill_item(item, came_s) for item in request.items))
        return wire.FilledMany(
            tuple(failed for failed, _ in done), tuple(found for _, found in done)
        )

    async def _fill_item(
        self, item: tuple[str, int, int | None], came_s: float
    ) -> tuple[wire.Failure | None, wire.Found | None]:
        path, offset, length = item
        found: wire.Found | None = None
        try:
            located = self.mounts.locate(path)
            found = await self.names.lookup(located, came_s=came_s)
            if found.kind is Kind.FILE:
                length = found.size_bytes if length is None else length
                length = max(0, min(length, found.size_bytes - offset))
                await self._fill_found(Target.of(located, found.token), (offset, length))
            else:
                async with self.governing.admitted(located.path):
                    pass  # a look-up as any other
        except StaleHandle:
            return None, None  # the client reads this one by itself
        except NotCached:
            return None, found
        except (TiercacheError, OSError) as error:
            return wire.failure_of(error, path), None
        return None, found

    async def _fill_found(self, target: Target, span: tuple[int, int]) -> None:
        try:
            async with self.governing.admitted(target.path, read=span[1]):
                await self.filler.ensure(target, [span])
        except OriginUnavailable as error:
            raise self.filler.explained(target, error) from error

    async def _version_changed(self, target: Target) -> None:
        located = self.mounts.locate(target.path)
        await self.names.lookup(located, revalidate=True)

    async def report_corrupt(self, request: wire.ReportCorrupt) -> wire.Done:
        """Look at the pages ourselves; drop those that are bad, and count them."""
        located = self.mounts.locate(request.path)
        dropped = await self._drop_bad(located.digest, request.path, request.data_id, request.pages)
        return wire.Done(dropped)

    async def _drop_bad(
        self, digest: bytes, path: str, data_id: int, suspects: Iterable[int]
    ) -> int:
        record = self.index.get_object(digest)
        if record is None or not data_id or record.data_id != data_id:
            return 0
        suspects = list(suspects)
        bad = [page for page in suspects if self._is_bad(record, page)]
        if suspects and not bad:
            # Evicted or moved since the client looked; if it comes often, something is amiss.
            self.disputed_pages += len(suspects)
            log.warning(
                "pages %s of %s failed their checksum in a client and not here", suspects, path
            )
        if bad and record.packed:
            self.contents.drop_object(record)
            self.index.put_object(digest, without_data(record))
        elif bad:
            for page in bad:
                self.chunks.drop(record.data_id, page, page + 1)
        if bad:
            log.error("dropped %d corrupt pages of %s", len(bad), path)
            self.corrupt_pages += len(bad)
            self._state.bump_epoch()
            await self.index.flush()
        return len(bad)

    def _is_bad(self, record: records.ObjectRecord, page: int) -> bool:
        length = pages.page_bytes(page, record.size_bytes)
        if record.packed:
            extent_id, offset = record.extents[0][0], record.pack_offset + page * PAGE_BYTES
            expected = record.crcs[page * 4 : page * 4 + 4]
        else:
            number, inside = divmod(page * PAGE_BYTES, record.extent_bytes)
            extent_id, offset = record.extents[number][0], inside
            if not self.chunks.has(record.data_id, page):
                return False
            expected = self.chunks.crc(record.data_id, page)
        try:
            data = self._extents.read(extent_id, offset, length)
        except OSError:
            return True
        return checksums(memoryview(data)) != expected or len(data) != length

    async def local_path(self, request: wire.LocalPath) -> wire.Local:
        """Make the object one file with exactly its bytes, whole and (if asked) pinned."""
        located = self.mounts.locate(request.path)
        token = request.token or await self._token_of(located, request.path)
        target = Target.of(located, token)
        if request.pin:
            pin = PinRecord(located.path, located.origin.url, located.key, False)
            await self.pinning.add(pin, coming_bytes=self._missing_bytes(target))
        try:
            record = await self._make_local(target)
        except OriginUnavailable as error:
            raise self.filler.explained(target, error) from error
        except (NotCached, CacheFull) as error:
            raise CacheFull(
                f"no room for the whole object: {error}",
                path=request.path,
                remedy="raise cache.capacity or unpin something",
            ) from error
        self._state.bump_epoch()
        await self.index.flush()
        return wire.Local(self._extents.path(record.extents[0][0]))

    async def _token_of(self, located: Located, path: str) -> str:
        found = await self.names.lookup(located)
        if found.kind is Kind.DIRECTORY:
            raise IsADirectory("a directory has no local file", path=path)
        if found.kind is Kind.ABSENT:
            raise NotFound("no such object", path=path)
        return found.token

    async def _make_local(self, target: Target) -> records.ObjectRecord:
        """Fill the object and lay it out as one file; what is evicted or found bad meanwhile is
        filled again."""
        record = self.filler.record_of(target)
        async with self.governing.admitted(target.path, read=record.size_bytes):
            return await self._lay_out_local(target)

    def _missing_bytes(self, target: Target) -> int:
        record = self.filler.record_of(target)
        return record.size_bytes - self.contents.cached_bytes(record)

    async def _lay_out_local(self, target: Target) -> records.ObjectRecord:
        for _ in range(LOCAL_ROUNDS):
            record = self.filler.record_of(target)
            await self.filler.ensure(target, [(0, record.size_bytes)])
            record = self.filler.record_of(target)
            if not record.size_bytes:
                record = self.contents.lay_out(target.digest, record)
                place = await self.filler.place(target, record, 0, 0)
                if place is None:
                    continue
                place.state.busy -= 1
                self.space.settle(place.state, place.reserved)
                return self.filler.record_of(target)
            if not self.contents.is_whole(record):
                continue
            try:
                single = await self.contents.make_single(target.digest, record)
            except BadPages as error:
                await self._drop_bad(target.digest, target.path, record.data_id, error.suspects)
                continue
            if single is not None:
                return single
        raise NotCached("the object is evicted as fast as it is fetched")

    # -- changing ---------------------------------------------------------------------------

    async def remove(self, request: wire.Remove) -> wire.Done:
        located = self.mounts.locate(request.path)
        check_writable(located)
        await self.names.admit(located)
        if not request.recursive:
            await self.writes.remove(located)
            return wire.Done(1)
        gate = asyncio.Semaphore(REMOVE_CONCURRENCY)

        async def one(key: str) -> None:
            async with gate:
                await self.writes.remove_known(self.mounts.sibling(located, key))

        removed = 0
        found = await self.names.lookup(located, revalidate=True)
        if found.kind is Kind.FILE:
            await one(located.key)
            removed += 1
        prefix = located.directory_prefix
        async for page in located.origin.list(prefix, recursive=True):
            await asyncio.gather(*(one(info.key) for info in page.objects))
            removed += len(page.objects)
        if not removed:
            raise NotFound("no such object or directory", path=request.path)
        return wire.Done(removed)

    async def copy(self, request: wire.CopyObject) -> wire.Done:
        source = self.mounts.locate(request.source)
        target = self.mounts.locate(request.target)
        if source.digest == target.digest:
            # A copy onto itself does nothing; removing the source afterwards would lose the object.
            found = await self.names.lookup(source)
            if found.kind is not Kind.FILE:
                raise NotFound("no such object", path=request.source)
            return wire.Done(1)
        if source.origin is not target.origin:
            raise Unsupported("a server-side copy needs one origin", path=request.target)
        if target.mount.consistency is Consistency.STRONG:
            raise Unsupported("a server-side copy bears no condition", path=request.target)
        if request.remove_source:
            check_writable(source)
        await self.writes.copy(source, target)
        if request.remove_source:
            await self.writes.remove_known(source)
        return wire.Done(1)

    async def pin(self, request: wire.Pin) -> wire.Done:
        located = self.mounts.locate(request.path)
        found = await self.names.lookup(located)
        if found.kind is Kind.ABSENT:
            raise NotFound("no such object or directory", path=request.path)
        tree = found.kind is Kind.DIRECTORY
        await self.pinning.add(PinRecord(located.path, located.origin.url, located.key, tree))
        await self.index.flush()
        return wire.Done(1)

    async def unpin(self, request: wire.Unpin) -> wire.Done:
        removed = self.pins.remove(self.mounts.locate(request.path).path)
        if not removed:
            raise NotFound(
                "not pinned", path=request.path, remedy="tiercache status lists the pins"
            )
        self.contents.refresh_pins()
        await self.index.flush()
        return wire.Done(1)

    async def evict(self, request: wire.Evict) -> wire.Done:
        """Drop the bytes of a name, or of all names below it; pinned ones too: it was asked."""
        located = self.mounts.locate(request.path)
        dropped = self.names.evict(located)
        async for sibling in self._known_below(located):
            dropped += self.names.evict(sibling)
        self._state.bump_epoch()
        await self.index.flush()
        await self._drop_dead_packs()
        return wire.Done(dropped)

    async def _drop_dead_packs(self) -> None:
        self.contents.seal_packs()
        for state in list(self.space.live.values()):
            if state.is_pack and not state.busy and state.sealed:
                if not self.contents.members(state):
                    await self.space.evict(state)

    async def _known_below(self, located: Located) -> AsyncIterator[Located]:
        """Yield all names below a directory that the index knows, letting others run between."""
        prefix = located.directory_prefix
        async for _, raw in self.index.walk(b"o"):
            record = records.decode_object(raw)
            if record.origin == located.origin.url and record.key.startswith(prefix):
                if record.key != located.key:
                    yield self.mounts.sibling(located, record.key)

    async def invalidate(self, request: wire.Invalidate) -> wire.Done:
        """Forget how fresh this name, all below it and their listings are; the bytes stay."""
        located = self.mounts.locate(request.path)
        self.names.forget(located)
        count = 1
        async for sibling in self._known_below(located):
            self.names.forget(sibling)
            count += 1
        async for key, raw in self.index.walk(b"l"):
            part = records.decode_listing(raw)
            inside = part.prefix.startswith(located.directory_prefix)
            if part.origin == located.origin.url and inside:
                self.index.put(key, None)
        self.names.forget_listings(located.origin.url, located.key)
        self._state.bump_epoch()
        await self.index.flush()
        return wire.Done(count)
