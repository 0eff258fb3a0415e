"""Packs: small objects appended one behind the other into shared extents, each of one identity.

Appends that arrive while the device is busy are written together by the next call, and one group
commit of the index makes them known: at 64 KiB an object that is what several thousand objects a
second on one core need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum

from tiercache import records
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.index import Index
from tiercache.agent.space import BLOCK_BYTES, EXTENT_OVERHEAD_BYTES, Space
from tiercache.errors import CacheFull
from tiercache.policy.placement import PACK_ALIGN_BYTES
from tiercache.ports import Buffer, ExtentStore


@dataclass(slots=True)
class _Append:
    data: Buffer
    offset: int
    reserved: int
    done: asyncio.Future[None]


class Kind(Enum):
    """What a pack takes: what comes from an origin, what is never to be evicted, or what has been
    in the cache before and keeps its place in the queue."""

    NEW = "new"
    PINNED = "pinned"
    SURVIVORS = "survivors"


class PackWriter:
    """One open pack. Owned by the event loop."""

    def __init__(
        self,
        *,
        space: Space,
        index: Index,
        extents: ExtentStore,
        executor: Executor,
        identity: str,
        kind: Kind,
    ) -> None:
        self._space = space
        self._index = index
        self._extents = extents
        self._executor = executor
        self._identity = identity
        self._kind = kind
        self._open: ExtentState | None = None
        self._opening = asyncio.Lock()
        self._queue: list[_Append] = []
        # Held, since the loop itself keeps no task alive.
        self._writer: asyncio.Task[None] | None = None

    async def append(
        self,
        data: Buffer,
        *,
        digest: bytes,
        commit: Callable[[ExtentState, int], None],
        use_headroom: bool = False,
    ) -> None:
        """Write ``data`` into the pack, then call ``commit(extent, offset)`` to put the records.

        The pack cannot be evicted in between. Raises CacheFull, or OSError from the device.
        Memory is the caller's to bound.
        """
        length = max(len(data), 1)
        aligned = -(-length // PACK_ALIGN_BYTES) * PACK_ALIGN_BYTES
        # An append may touch one block more at each end, and may be the first of its pack.
        reserved = aligned + 2 * BLOCK_BYTES + EXTENT_OVERHEAD_BYTES
        await self._space.reserve(reserved, identity=self._identity, use_headroom=use_headroom)
        state: ExtentState | None = None
        queued = False
        try:
            state, offset, opened = await self._place(aligned, reserved)
            reserved -= EXTENT_OVERHEAD_BYTES if opened else 0
            state.busy += 1
            self._space.ledger.hold(state.id, reserved)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(_Append(data, offset, reserved, done))
            queued = True
            if self._writer is None:
                self._writer = asyncio.create_task(self._write(state))
            await done
            self._index.put(records.member_key(state.id, offset), digest)
            commit(state, offset)
        finally:
            if state is not None:
                state.busy -= 1
            if not queued:
                self._space.ledger.release(reserved, self._identity)

    async def _place(self, aligned: int, reserved: int) -> tuple[ExtentState, int, bool]:
        """Return the pack, the place in it, and whether the pack is new. Raises CacheFull where it
        would be pinned and may not be."""
        opened = False
        async with self._opening:
            state = self._open
            if (
                state is None
                or state.id not in self._space.live
                or state.used_bytes + aligned > state.length_bytes
            ):
                await self._drain()
                self._check_pin(reserved)
                if state is not None:
                    state.sealed = True
                state = self._space.new_extent(
                    length=self._space.quotas.placement(self._identity).pack_bytes,
                    identity=self._identity,
                    survivors=self._kind is Kind.SURVIVORS,
                )
                state.sealed = False
                self._space.set_pinned(state, self._kind is Kind.PINNED)
                self._open, opened = state, True
            else:
                self._check_pin(reserved)
            # Nothing is awaited from here until the caller holds its bytes: the check still holds.
            offset = state.used_bytes
            state.used_bytes += aligned
            return state, offset, opened

    def _check_pin(self, count: int) -> None:
        if self._kind is Kind.PINNED and not self._space.quotas.may_pin(self._identity, count):
            raise CacheFull(f"{self._identity!r} has pinned as much as its pin_max allows")

    async def _drain(self) -> None:
        """Wait until nothing is queued for the pack that is about to be sealed."""
        while self._writer is not None:
            waiting = [append.done for append in self._queue]
            if waiting:
                await asyncio.wait(waiting)
            else:
                await asyncio.sleep(0)

    async def _write(self, state: ExtentState) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                # The queue keeps its appends until they are written, for _drain to wait on.
                batch = list(self._queue)
                failure: BaseException | None = None
                try:
                    await loop.run_in_executor(
                        self._executor,
                        self._extents.write_many,
                        state.id,
                        [(append.offset, append.data) for append in batch],
                    )
                except OSError as error:
                    failure = error
                del self._queue[: len(batch)]
                try:
                    self._space.settle(state, sum(append.reserved for append in batch))
                except OSError as error:
                    failure = error
                for append in batch:
                    if append.done.done():
                        continue
                    if failure is None:
                        append.done.set_result(None)
                    else:
                        append.done.set_exception(failure)
        finally:
            self._writer = None

    @property
    def is_idle(self) -> bool:
        """Whether a pack is open, with something in it, to which nobody appends now."""
        state = self._open
        return state is not None and not state.busy and state.used_bytes > 0

    def seal(self) -> None:
        """Close the open pack, so that it may be evicted."""
        if self._open is not None:
            self._open.sealed = True
            self._open = None


class Packs:
    """The open packs of all identities. Owned by the event loop."""

    def __init__(
        self, *, space: Space, index: Index, extents: ExtentStore, executor: Executor
    ) -> None:
        self._space = space
        self._index = index
        self._extents = extents
        self._executor = executor
        self._writers: dict[tuple[str, Kind], PackWriter] = {}

    def of(self, identity: str, kind: Kind) -> PackWriter:
        writer = self._writers.get((identity, kind))
        if writer is None:
            writer = self._writers[identity, kind] = PackWriter(
                space=self._space,
                index=self._index,
                extents=self._extents,
                executor=self._executor,
                identity=identity,
                kind=kind,
            )
        return writer

    def seal(self) -> None:
        """Close all open packs."""
        for writer in self._writers.values():
            writer.seal()

    def seal_idle(self, identity: str) -> bool:
        """Close those packs of one identity that nobody appends to; return whether there were any
        that may be evicted now."""
        idle = [w for (i, _), w in self._writers.items() if i == identity and w.is_idle]
        for writer in idle:
            writer.seal()
        return bool(idle)
