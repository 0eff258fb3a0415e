"""Filling: missing pages are fetched once, whoever asks, and become present when they are whole.

A page is fetched by one GET however many readers wait for it, and the fetch belongs to nobody: a
reader that is killed leaves it running for the others. Order within a run: reserve memory and
space, GET with the version pinned, write and checksum, put the index, wake the waiters, who see to
the commit; what nobody waits for is committed with what comes after it.
Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import msgspec

from tiercache import wire
from tiercache.agent.chunks import checksums
from tiercache.agent.device import NotCached
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.flights import endpoint_of, is_offline
from tiercache.agent.mounts import Located
from tiercache.agent.offline import missing_bytes
from tiercache.agent.plane import Plane
from tiercache.agent.space import EXTENT_OVERHEAD_BYTES, whole_blocks
from tiercache.errors import CacheFull, OriginUnavailable, PreconditionFailed, StaleHandle
from tiercache.model import PAGE_BYTES
from tiercache.policy import pages
from tiercache.ports import Buffer, Origin
from tiercache.records import ObjectRecord
from tiercache.work import hurry

# Runs up to this size are written on the loop: a thread hop costs as much as the write.
INLINE_WRITE_BYTES = 128 * 1024
# A piece is written right behind its checksums, while the processor's cache still holds it: whole
# runs of 8 MiB would be fetched from memory twice.
PIECE_BYTES = 256 * 1024
# Fills that no reader waits for are committed together: a commit costs ~0.5 ms of processor, as
# much as fetching a small object. A crash loses at most this much of a prefetch.
COMMIT_DELAY_S = 0.1
# Those whose bytes went with the answer: their reader finds them in the index when it comes again.
INLINE_COMMIT_DELAY_S = 0.01

T = TypeVar("T")
# A small run as it came: (offset in the object, bytes).
Fetched = tuple[int, Buffer] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One object version to be filled. ``digest`` is the hash of its name."""

    origin: Origin
    digest: bytes
    key: str
    token: str
    path: str
    mount: str

    @classmethod
    def of(cls, located: Located, token: str) -> Self:
        return cls(
            origin=located.origin,
            digest=located.digest,
            key=located.key,
            token=token,
            path=located.path,
            mount=located.mount.path,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """An extent to write into, held busy, and the room reserved for that."""

    state: ExtentState
    reserved: int


class Filler:
    """Single flight by page for large objects, by object for small ones."""

    def __init__(self, plane: Plane) -> None:
        self._index = plane.index
        self._space = plane.space
        self._chunks = plane.chunks
        self._contents = plane.contents
        self._extents = plane.extents
        self._memory = plane.memory
        self._device = plane.device
        self._executor = plane.executor
        self._pages: dict[tuple[int, int], asyncio.Task[Fetched]] = {}
        self._objects: dict[tuple[bytes, str], asyncio.Task[Fetched]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committers: dict[float, asyncio.Task[None]] = {}
        # Set by the engine: called when an origin says that the version has changed.
        self.version_changed: Callable[[Target], Coroutine[None, None, None]]
        # Set by whoever follows readers: called with the name of each object that a read missed.
        self.missed: Callable[[bytes], None] = _nobody
        # Bytes by mount
        self.filled: dict[str, int] = {}
        self.read_through_total: dict[str, int] = {}

    # -- the record of a version ------------------------------------------------------------

    def record_of(self, target: Target) -> ObjectRecord:
        """Return the record of this very version. Raises StaleHandle where the name has moved."""
        record = self._index.get_object(target.digest)
        if record is None or record.token != target.token:
            raise StaleHandle("the version of this handle is gone", path=target.path)
        return record

    # -- demand -----------------------------------------------------------------------------

    async def ensure(
        self, target: Target, spans: Iterable[tuple[int, int]], *, is_read: bool = True
    ) -> None:
        """Make all bytes of ``spans`` ((offset, length)) present and, if a reader waits for them
        (``is_read``), visible to clients and safe in the index; else that happens within
        COMMIT_DELAY_S.

        Raises NotCached where the device has no room or fails, StaleHandle where the version is
        gone, and the origin's errors.
        """
        await self.finish(self.begin(target, spans, is_read=is_read), durable=is_read)

    async def finish(self, waits: set[asyncio.Task[Fetched]], *, durable: bool = True) -> None:
        """Wait for what ``begin`` started. Raises as ``ensure``."""
        if len(waits) > 1:
            await asyncio.wait(waits)
        for task in waits:
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
                raise NotCached("the agent is stopping") from None
        if durable and not self._index.is_durable:
            await self._device.durable(self._index.flush())

    def begin(
        self, target: Target, spans: Iterable[tuple[int, int]], *, is_read: bool = True
    ) -> set[asyncio.Task[Fetched]]:
        """Start what is missing and return the tasks to wait for; read-ahead ignores them."""
        if is_read:
            self.missed(target.digest)
        if not self._device.usable:
            raise NotCached("the cache device is not usable")
        record = self.record_of(target)
        if record.size_bytes == 0:
            return set()
        if self._space.placement.is_small(record.size_bytes):
            # It may lie in a file of its own, for local_path().
            whole = record.packed or self._contents.is_whole(record)
            return set() if whole else {self.begin_small(target)}
        record = self._contents.lay_out(target.digest, record)
        waits: set[asyncio.Task[Fetched]] = set()
        for offset, length in spans:
            end = min(offset + length, record.size_bytes)
            if offset < end:
                first, last = pages.page_span(offset, end - offset)
                self._begin_pages(target, record, (first, last), waits)
        return waits

    def _begin_pages(
        self,
        target: Target,
        record: ObjectRecord,
        span: tuple[int, int],
        waits: set[asyncio.Task[Fetched]],
    ) -> None:
        data_id = record.data_id

        def is_missing(page: int) -> bool:
            running = self._pages.get((data_id, page))
            if running is not None:
                hurry(running)
                waits.add(running)
                return False
            return not self._chunks.has(data_id, page)

        runs = pages.missing_runs(
            *span, is_missing, boundary_pages=record.extent_bytes // PAGE_BYTES
        )
        if runs:
            self._refuse_offline(target)
        for run in runs:
            task = self._spawn(self._fill_run(target, record, run))
            for page in range(*run):
                self._pages[data_id, page] = task
            task.add_done_callback(lambda _, run=run: self._forget(data_id, run))  # type: ignore[misc]  # default binds the loop variable
            waits.add(task)

    def _refuse_offline(self, target: Target) -> None:
        """Raise what the endpoint would, before room is made for bytes that cannot come."""
        endpoint = endpoint_of(target.origin)
        refused = endpoint.refusal(target.path) if endpoint is not None else None
        if refused is not None:
            raise refused

    def explained(self, target: Target, error: OriginUnavailable) -> OriginUnavailable:
        """Return the error of a miss; offline it says how much of the object is missing."""
        if not is_offline(target.origin):
            return error
        record = self._index.get_object(target.digest)
        if record is None or record.token != target.token:
            return error
        return missing_bytes(
            target.path,
            error,
            cached_bytes=self._contents.cached_bytes(record),
            size_bytes=record.size_bytes,
        )

    def _forget(self, data_id: int, run: tuple[int, int]) -> None:
        for page in range(*run):
            self._pages.pop((data_id, page), None)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Retrieved: read-ahead has nobody else who would.
        error = None if task.cancelled() else task.exception()
        seen: set[int] = set()
        # Two errors may name each other: a shared request's, raised again while one that it caused
        # is handled.
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            # Its frames hold whole runs, and would until the collector of cycles comes.
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__

    def _commit_within(self, delay_s: float) -> None:
        if delay_s not in self._committers:
            self._committers[delay_s] = self._spawn(self._commit(delay_s))

    async def _commit(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        del self._committers[delay_s]
        await self._device.durable(self._index.flush())

    # -- large objects ----------------------------------------------------------------------

    async def _fill_run(
        self, target: Target, record: ObjectRecord, run: tuple[int, int]
    ) -> Fetched:
        first, end = run
        start = first * PAGE_BYTES
        stop = min(end * PAGE_BYTES, record.size_bytes)
        if self.record_of(target).data_id != record.data_id:
            return None  # evicted since it was asked for: who still wants it asks again
        number = first * PAGE_BYTES // record.extent_bytes
        async with self._memory.hold(stop - start):
            with self._refusing():
                place = await self.place(target, record, number, stop - start)
            if place is None:
                return None
            return await self._fill_place(target, place, first, (start, stop))

    async def _fill_place(
        self, target: Target, place: Place, first: int, span: tuple[int, int]
    ) -> Fetched:
        """Bring the bytes of ``span``, which begin with page ``first``, to their place."""
        state, (start, stop) = place.state, span
        settled = False
        try:
            data = await self._get(target, start, stop)
            crcs = await self._write(state, start - state.first_page * PAGE_BYTES, data)
            # Replaced or evicted meanwhile: its pages must not come back, or they would be taken
            # for present in the next extent of this place, which has never seen them.
            if crcs is None or not self._is_place_of(state, self.record_of(target), first):
                return None
            self._chunks.mark(state.data_id, first, crcs)
            settled = True
            self._space.settle(state, place.reserved)
            _count(self.filled, target.mount, stop - start)
            self._commit_within(COMMIT_DELAY_S)
            return _kept(start, data)
        finally:
            state.busy -= 1
            if not settled:
                self._space.settle(state, place.reserved)

    def _is_place_of(self, state: ExtentState, record: ObjectRecord, page: int) -> bool:
        if state.id not in self._space.live or record.data_id != state.data_id:
            return False
        return record.extents[page * PAGE_BYTES // record.extent_bytes][0] == state.id

    async def place(
        self, target: Target, record: ObjectRecord, number: int, count: int
    ) -> Place | None:
        """Return an extent of the object, made now if it is not there, held busy, with room for
        ``count`` bytes (``Space.settle``); None where the object was evicted meanwhile. Raises
        CacheFull, or OSError from the device."""
        space, contents = self._space, self._contents
        state = contents.extent_of(self.record_of(target), number)
        if state is None:
            identity = contents.admitter(record)
            # All at once: who waits for room waits for all that it needs.
            reserved = EXTENT_OVERHEAD_BYTES + whole_blocks(count)
            await space.reserve(reserved, identity=identity)
            try:
                current = self.record_of(target)
                if current.data_id != record.data_id:
                    return None
                if contents.extent_of(current, number) is None:
                    state = contents.make_extent(target.digest, current, number, identity=identity)
                    state.busy += 1
                    reserved -= EXTENT_OVERHEAD_BYTES
                    place = Place(state, space.begin_write(state, reserved))
                    reserved = 0
                    return place
                state = contents.extent_of(current, number)
            finally:
                space.ledger.release(reserved, identity)
        assert state is not None
        state.busy += 1
        try:
            return Place(state, await space.reserve_in(state, count))
        except BaseException:
            state.busy -= 1
            raise

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the device or a limit says into NotCached."""
        try:
            yield
        except (OSError, CacheFull) as error:  # an eviction, too, may meet a device that fails
            raise self._device.refused(error) from error

    async def _get(self, target: Target, start: int, stop: int) -> Buffer:
        try:
            fetched = await target.origin.get(target.key, start=start, end=stop, token=target.token)
        except (PreconditionFailed, FileNotFoundError) as error:
            await self.version_changed(target)
            raise StaleHandle("the object was replaced at its origin", path=target.path) from error
        return fetched.data

    async def _write(self, state: ExtentState, offset: int, data: Buffer) -> bytes | None:
        """Write into the extent and return the checksums; None where its file has gone."""
        view = memoryview(data)
        try:
            if len(view) <= INLINE_WRITE_BYTES:
                return self._write_now(state.id, offset, view)
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, self._write_now, state.id, offset, view
            )
        except FileNotFoundError:
            if state.id in self._space.live:  # removed behind our back
                await self._space.evict(state)
            return None
        except OSError as error:
            raise self._device.refused(error) from error

    def _write_now(self, extent_id: int, offset: int, view: memoryview) -> bytes:
        crcs = b""
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            crcs += checksums(piece)
            self._extents.write(extent_id, offset + start, piece)
        return crcs

    # -- small objects ----------------------------------------------------------------------

    def begin_small(self, target: Target) -> asyncio.Task[Fetched]:
        """Fetch a small object whole into a pack, once for all who ask."""
        key = (target.digest, target.token)
        task = self._objects.get(key)
        if task is None:
            self._refuse_offline(target)
            task = self._spawn(self._fill_small(target))
            self._objects[key] = task
            task.add_done_callback(lambda _: self._objects.pop(key, None))
        else:
            hurry(task)
        return task

    async def _fill_small(self, target: Target) -> Fetched:
        record = self.record_of(target)
        held = record.size_bytes
        await self._memory.acquire(held)
        try:
            try:
                # One whole answer names its own version, so no range and no condition.
                fetched = await target.origin.get(target.key, token=target.token)
            except (PreconditionFailed, FileNotFoundError) as error:
                await self.version_changed(target)
                raise StaleHandle(
                    "the object was replaced at its origin", path=target.path
                ) from error
            await self.store_small(target.digest, record, fetched.data)
        finally:
            self._memory.release(held)
        _count(self.filled, target.mount, record.size_bytes)
        self._commit_within(COMMIT_DELAY_S)
        return _kept(0, fetched.data)

    async def store_small(self, digest: bytes, record: ObjectRecord, data: Buffer) -> None:
        """Append to a pack and put the record; the caller flushes. Raises NotCached."""
        crcs = checksums(memoryview(data))
        data_id = self._space.next_id()

        def commit(state: ExtentState, offset: int) -> None:
            current = self._index.get_object(digest)
            if current is None or current.token != record.token or current.packed:
                return  # replaced meanwhile; the appended bytes are dead space
            self._contents.drop_object(current)  # what is left of a file of its own
            slot = state.slot + offset * state.slots // state.length_bytes
            self._index.put_object(
                digest,
                msgspec.structs.replace(
                    current,
                    data_id=data_id,
                    packed=True,
                    extents=((state.id, slot),),
                    pack_offset=offset,
                    crcs=crcs,
                ),
            )

        with self._refusing():
            await self._contents.pack(record, data, digest=digest, commit=commit)

    # -- answering with bytes ---------------------------------------------------------------

    async def read_present(
        self, target: Target, span: tuple[int, int], waits: set[asyncio.Task[Fetched]]
    ) -> bytes | None:
        """Return bytes (offset, length) that were waited for, as they came or from the cache;
        None where they are not all there."""
        offset, length = span
        self._commit_within(INLINE_COMMIT_DELAY_S)
        await self._memory.hold_until_answered(length)
        for task in waits:
            start, data = task.result() or (0, b"")
            if start <= offset and offset + length <= start + memoryview(data).nbytes:
                return bytes(memoryview(data)[offset - start : offset - start + length])
        return self._contents.read(self.record_of(target), offset, length)

    async def read_through(self, target: Target, offset: int, length: int) -> bytes:
        """Return bytes straight from the origin, of this version, without caching them."""
        self.missed(target.digest)
        record = self.record_of(target)
        stop = min(offset + length, record.size_bytes)
        if stop <= offset:
            return b""
        await self._memory.hold_until_answered(stop - offset)
        data = await self._get(target, offset, stop)
        _count(self.read_through_total, target.mount, stop - offset)
        return bytes(data)

    async def stop(self) -> None:
        """Cancel what is in flight and wait for it to end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _nobody(_: bytes) -> None:
    """Nobody follows readers."""


def _kept(start: int, data: Buffer) -> Fetched:
    """Return what a task keeps for those who wait for it and want the bytes with the answer."""
    return (start, data) if memoryview(data).nbytes <= wire.MAX_INLINE_BYTES else None


def _count(totals: dict[str, int], mount: str, count: int) -> None:
    totals[mount] = totals.get(mount, 0) + count
