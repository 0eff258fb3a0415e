"""Write-through: to the origin and into the cache at once, with bounded memory.

An object up to SINGLE_PUT_BYTES goes up in one conditional PUT; a longer one streams as multipart
while its pages go to the cache device. It becomes visible, on the node and at the origin, when
the origin has it whole; until then nobody sees anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import msgspec

from tiercache.agent.chunks import checksums
from tiercache.agent.device import NotCached
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.fill import Filler
from tiercache.agent.mounts import Located
from tiercache.agent.names import Names
from tiercache.agent.plane import Plane
from tiercache.errors import (
    AccessDenied,
    AgentUnavailable,
    CacheFull,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
    Unsupported,
)
from tiercache.model import PAGE_BYTES, Consistency, Kind, ObjectInfo
from tiercache.policy import pages
from tiercache.ports import (
    Always,
    Condition,
    IfAbsent,
    IfVersion,
)
from tiercache.records import ObjectRecord

# One PUT of 8 MiB is one part's worth: below it multipart would only add two requests.
SINGLE_PUT_BYTES = 8 << 20
# Parts queued between client and upload; with the part in flight this bounds a writer's memory.
QUEUED_PARTS = 2
# A plain write of a strong mount is repeated when another comes between its look and its PUT. Of N
# sites that write one name as fast as they can, one wins each round, so a site of 4 is kept
# waiting for 4 rounds in the mean and for 16 once in a hundred.
REPLACE_ROUNDS = 16
# How long an aborted upload may take to remove its parts at the origin: one request's time-out.
ABORT_S = 30.0


@dataclass(slots=True)
class CacheCopy:
    """The pages of a streaming write on their way to the device, charged to ``identity``.
    ``failed`` stops the copy only."""

    data_id: int
    identity: str
    extent_bytes: int
    tail: bytearray = field(default_factory=bytearray)
    pages_done: int = 0
    crcs: bytearray = field(default_factory=bytearray)
    extents: list[ExtentState] = field(default_factory=list)
    failed: bool = False


@dataclass(slots=True)
class Write:
    """One open write."""

    located: Located
    condition: Condition
    write_id: str
    head: bytearray = field(default_factory=bytearray)
    total_bytes: int = 0
    queue: asyncio.Queue[bytes | None] | None = None
    upload: asyncio.Task[ObjectInfo] | None = None
    copy: CacheCopy | None = None
    aborted: bool = False


class Writes:
    """All open writes, by number. Owned by the event loop."""

    def __init__(self, plane: Plane, names: Names, filler: Filler) -> None:
        self._index = plane.index
        self._names = names
        self._contents = plane.contents
        self._filler = filler
        self._chunks = plane.chunks
        self._space = plane.space
        self._extents = plane.extents
        self._state = plane.state
        self._memory = plane.memory
        self._device = plane.device
        self._clock = plane.clock
        self._executor = plane.executor
        self._open: dict[int, Write] = {}
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._next = 1

    def begin(self, located: Located, mode: str, token: str) -> int:
        """Open a write; returns its number. Raises AccessDenied on a read-only mount."""
        check_writable(located)
        condition: Condition
        match mode:
            case "overwrite":
                condition = Always()
            case "create":
                strong = located.mount.consistency is Consistency.STRONG
                condition = IfAbsent(may_repeat=not strong)
            case "if-version":
                condition = IfVersion(token)
            case _:
                raise TiercacheError(f"unknown write mode {mode!r}", path=located.path)
        number = self._next
        self._next += 1
        # Letters only: some stores fold or reject other characters in metadata.
        write_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(24))
        self._open[number] = Write(located, condition, write_id)
        return number

    def _write(self, number: int) -> Write:
        write = self._open.get(number)
        if write is None:
            raise AgentUnavailable(
                "the agent does not know this write",
                remedy="it was restarted since: write the object again",
            )
        return write

    def path_of(self, number: int) -> str:
        """Return where a write that was begun writes to. Raises as ``data``."""
        return self._write(number).located.path

    async def data(self, number: int, data: bytes) -> None:
        """Take the next bytes; returns when there is room for more."""
        write = self._write(number)
        write.total_bytes += len(data)
        if write.upload is None:
            write.head += data
            if len(write.head) > SINGLE_PUT_BYTES:
                await self._start_stream(write)
            return
        await self._feed(write, data)

    async def _start_stream(self, write: Write) -> None:
        write.queue = asyncio.Queue(QUEUED_PARTS)
        write.copy = self._new_copy()
        write.upload = asyncio.create_task(self._upload(write))
        head, write.head = bytes(write.head), bytearray()
        await self._feed(write, head)

    async def _upload(self, write: Write) -> ObjectInfo:
        located = write.located
        condition = write.condition
        if self._replaces(write):
            condition = _as_it_stands(await self._standing(located))
        try:
            return await located.origin.put_stream(
                located.key, self._parts(write), condition=condition, write_id=write.write_id
            )
        except Unsupported as error:
            if not self._replaces(write):
                raise
            raise Unsupported(
                f"{error.message}, and every write of a strong mount bears one",
                path=located.path,
                remedy="write objects of 64 MiB at most here; or use S3, with tiercache[s3] "
                'installed, or a mount with consistency = "close-to-open"',
            ) from error
        except PreconditionFailed as error:
            if not self._replaces(write):
                raise
            raise PreconditionFailed(
                "another version was written while this one was streamed",
                path=located.path,
                remedy="write it again",
            ) from error

    def _replaces(self, write: Write) -> bool:
        """Return whether the caller gave no condition, and the mount wants one."""
        strong = write.located.mount.consistency is Consistency.STRONG
        return strong and isinstance(write.condition, Always)

    async def _standing(self, located: Located) -> ObjectInfo | None:
        try:
            return await located.origin.head(located.key)
        except NotFound:
            return None

    async def _replace(self, write: Write) -> ObjectInfo:
        """Write over whatever is there, on the condition that it is: then a request that a network
        delivers twice, or late, does nothing the second time."""
        located = write.located
        for _ in range(REPLACE_ROUNDS):
            standing = await self._standing(located)
            if standing is not None and standing.write_id == write.write_id:
                return standing  # a gateway refused what its server had carried out
            with contextlib.suppress(PreconditionFailed):
                return await located.origin.put(
                    located.key,
                    bytes(write.head),
                    condition=_as_it_stands(standing),
                    write_id=write.write_id,
                )
        raise PreconditionFailed(
            f"other writers replaced it {REPLACE_ROUNDS} times while this one tried to",
            path=located.path,
            remedy="write it again",
        )

    async def _parts(self, write: Write) -> AsyncIterator[bytes]:
        assert write.queue is not None
        while True:
            part = await write.queue.get()
            if write.aborted:
                raise TiercacheError("the write was aborted", path=write.located.path)
            if part is None:
                return
            yield part

    async def _feed(self, write: Write, data: bytes | None) -> None:
        """Hand a part to the upload; where the upload has failed, raise its error instead."""
        assert write.queue is not None and write.upload is not None
        put = asyncio.create_task(write.queue.put(data))
        await asyncio.wait({put, write.upload}, return_when=asyncio.FIRST_COMPLETED)
        if not put.done():
            put.cancel()
            await write.upload
            raise TiercacheError("the upload ended early", path=write.located.path)
        if data is not None and write.copy is not None and not write.copy.failed:
            await self._copy(write, write.copy, data, last=False)

    async def finish(self, number: int) -> ObjectRecord:
        """Complete the object at its origin, then on the node; returns its record.

        Writers of one name take turns, so that the last to return is the version that stands.
        """
        write = self._write(number)
        try:
            async with self._doubted_after_failure(write.located), self._turn(write.located):
                sent_s = self._clock.now()
                info = await self._complete(write)
                return await self._publish(write, info, sent_s)
        finally:
            self._open.pop(number, None)
            self._discard(write)

    @contextlib.asynccontextmanager
    async def _doubted_after_failure(self, located: Located) -> AsyncIterator[None]:
        try:
            yield
        except TiercacheError:
            # A conflict says that what we know is old; a lost answer, that it may be.
            self._names.doubt(located)
            await self._names.settle()
            raise

    def _turn(self, located: Located) -> asyncio.Lock:
        return self._turns.setdefault(located.digest, asyncio.Lock())

    async def _complete(self, write: Write) -> ObjectInfo:
        located = write.located
        if write.upload is not None:
            await self._feed(write, None)
            return await write.upload
        async with self._memory.hold(len(write.head)):
            if self._replaces(write):
                return await self._replace(write)
            return await located.origin.put(
                located.key,
                bytes(write.head),
                condition=write.condition,
                write_id=write.write_id,
            )

    async def _publish(self, write: Write, info: ObjectInfo, sent_s: float) -> ObjectRecord:
        """Put name and bytes where the next read finds them; a device that refuses the bytes
        costs only speed."""
        small = self._space.placement.is_small(write.total_bytes)
        if write.copy is None and not small:
            write.copy = self._new_copy()
            await self._copy(write, write.copy, bytes(write.head), last=True)
        elif write.copy is not None and not write.copy.failed:
            await self._copy(write, write.copy, b"", last=True)
        info = msgspec.structs.replace(info, size_bytes=write.total_bytes)
        record = self._names.changed_here(write.located, Kind.FILE, info, sent_s)
        if write.copy is not None:
            if not write.copy.failed:
                record = self._adopt(write, write.copy, record)
        elif record.size_bytes:
            with contextlib.suppress(NotCached, TiercacheError):
                await self._filler.store_small(write.located.digest, record, bytes(write.head))
        await self._names.settle()
        # Not what the index says by now: another's version may have been learnt meanwhile, and a
        # writer that took it for its own would overwrite it unseen (``if_version``).
        return record

    # -- the copy on the device -------------------------------------------------------------

    def _new_copy(self) -> CacheCopy:
        identity = self._space.payer()
        extent_bytes = self._space.quotas.placement(identity).extent_bytes
        return CacheCopy(self._space.next_id(), identity, extent_bytes)

    async def _copy(self, write: Write, copy: CacheCopy, data: bytes, *, last: bool) -> None:
        copy.tail += data
        whole = len(copy.tail) if last else len(copy.tail) // PAGE_BYTES * PAGE_BYTES
        block, copy.tail = memoryview(bytes(copy.tail[:whole])), copy.tail[whole:]
        while len(block):
            offset = copy.pages_done * PAGE_BYTES
            number, inside = divmod(offset, copy.extent_bytes)
            part = block[: copy.extent_bytes - inside]
            block = block[len(part) :]
            try:
                await self._copy_part(write, copy, number, inside, part)
            except (CacheFull, OSError) as error:
                self._device.refused(error)
                copy.failed = True
                return
            copy.pages_done += pages.page_count(len(part))

    async def _copy_part(
        self, write: Write, copy: CacheCopy, number: int, inside: int, part: memoryview
    ) -> None:
        if number == len(copy.extents):
            copy.extents.append(await self._new_extent(write, copy, number))
        state = copy.extents[number]
        reserved = await self._space.reserve_in(state, len(part))
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._executor, self._extents.write, state.id, inside, part
            )
        finally:
            self._space.settle(state, reserved)
        copy.crcs += checksums(part)

    async def _new_extent(self, write: Write, copy: CacheCopy, number: int) -> ExtentState:
        return await self._contents.admit_extent(
            length=copy.extent_bytes,
            identity=copy.identity,
            owner=write.located.digest,
            data_id=copy.data_id,
            first_page=number * copy.extent_bytes // PAGE_BYTES,
        )

    def _adopt(self, write: Write, copy: CacheCopy, record: ObjectRecord) -> ObjectRecord:
        """Give the copied pages to the record of the version that was written."""
        whole = pages.page_count(record.size_bytes) * PAGE_BYTES
        single = len(copy.extents) == 1
        record = msgspec.structs.replace(
            record,
            data_id=copy.data_id,
            extent_bytes=whole if single else copy.extent_bytes,
            extents=tuple((state.id, state.slot) for state in copy.extents),
        )
        self._index.put_object(write.located.digest, record)
        self._chunks.mark(copy.data_id, 0, bytes(copy.crcs))
        last = copy.extents[-1]
        last.length_bytes = record.size_bytes - last.first_page * PAGE_BYTES
        self._extents.truncate(last.id, last.length_bytes)
        self._space.put_record(last)
        for state in copy.extents:
            state.busy -= 1
        self._contents.pin_covered(copy.extents, record)
        copy.extents = []
        return record

    def _discard(self, write: Write) -> None:
        """Free what was copied for a write that did not come to pass."""
        if write.copy is None:
            return
        for state in write.copy.extents:
            state.busy -= 1
            self._contents.free(state)
        write.copy.extents = []

    async def abort(self, number: int) -> None:
        """Forget the write; nothing of it becomes visible."""
        write = self._open.pop(number, None)
        if write is None:
            return
        write.aborted = True
        if write.upload is not None and write.queue is not None:
            # An upload that hears of it takes its parts back; one that does not is cut off.
            last_word = asyncio.create_task(write.queue.put(None))
            await asyncio.wait({write.upload}, timeout=ABORT_S)
            for task in (last_word, write.upload):
                task.cancel()
            await asyncio.gather(last_word, write.upload, return_exceptions=True)
        self._discard(write)

    async def stop(self) -> None:
        for number in list(self._open):
            await self.abort(number)

    # -- removal and copies -----------------------------------------------------------------

    async def remove(self, located: Located) -> None:
        """Remove the object. Raises NotFound where the origin has none."""
        check_writable(located)
        found = await self._names.lookup(located, revalidate=True)
        if found.kind is not Kind.FILE:
            raise NotFound("no such object", path=located.path)
        await self.remove_known(located)

    async def remove_known(self, located: Located) -> None:
        """Remove an object that a listing has just named."""
        check_writable(located)
        async with self._turn(located):
            sent_s = self._clock.now()
            async with self._doubted_after_failure(located):
                # It bears no condition: a second one might remove what was written since.
                strong = located.mount.consistency is Consistency.STRONG
                await located.origin.delete(located.key, may_repeat=not strong)
            self._names.changed_here(located, Kind.ABSENT, None, sent_s)
            self._names.forget(located)  # a directory of that name may be left
            await self._names.settle()

    async def copy(self, source: Located, target: Located) -> None:
        """Copy on the origin's side. Raises Unsupported between two origins (the client streams
        those)."""
        check_writable(target)
        async with self._turn(target):
            async with self._doubted_after_failure(target):
                await source.origin.copy(source.key, target.key)
            # What is there now is for the next look-up to say; the old is no fallback for it.
            self._names.changed_here(target, Kind.ABSENT, None, self._clock.now())
            self._names.forget(target)
            await self._names.settle()
        with contextlib.suppress(OriginUnavailable):
            await self._names.lookup(target)


def _as_it_stands(standing: ObjectInfo | None) -> Condition:
    return IfAbsent() if standing is None else IfVersion(standing.token)


def check_writable(located: Located) -> None:
    if located.mount.read_only:
        raise AccessDenied(
            f"mount {located.mount.path} is read-only",
            path=located.path,
            remedy="set read_only = false for this mount",
        )
