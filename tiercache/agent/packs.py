"""Packs: small objects appended one behind the other into shared extents.

Appends that arrive while the device is busy are written together by the next call, and one group
commit of the index makes them known: at 64 KiB an object that is what several thousand objects a
second on one core need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from tiercache import records
from tiercache.agent.index import Index
from tiercache.agent.space import ExtentState, Space
from tiercache.policy.placement import PACK_ALIGN_BYTES
from tiercache.ports import Buffer, ExtentStore


@dataclass(slots=True)
class _Append:
    data: Buffer
    offset: int
    reserved: int
    done: asyncio.Future[None]


class PackWriter:
    """One open pack. Owned by the event loop.

    ``survivors``: what it takes has been in the cache before, and keeps its place in the queue.
    """

    def __init__(
        self,
        *,
        space: Space,
        index: Index,
        extents: ExtentStore,
        executor: Executor,
        pinned: bool = False,
        survivors: bool = False,
    ) -> None:
        self._space = space
        self._index = index
        self._extents = extents
        self._executor = executor
        self._pinned = pinned
        self._survivors = survivors
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
        # Blocks are 4 KiB: an append may touch one more at each end.
        reserved = aligned + 8192
        await self._space.reserve(reserved, use_headroom=use_headroom)
        state: ExtentState | None = None
        queued = False
        try:
            state, offset = await self._place(aligned)
            state.busy += 1
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
                self._space.ledger.release(reserved)

    async def _place(self, aligned: int) -> tuple[ExtentState, int]:
        async with self._opening:
            state = self._open
            if (
                state is None
                or state.id not in self._space.live
                or state.used_bytes + aligned > state.length_bytes
            ):
                await self._drain()
                if state is not None:
                    state.sealed = True
                state = self._space.new_extent(
                    length=self._space.placement.pack_bytes, survivors=self._survivors
                )
                state.sealed = False
                state.pinned = self._pinned
                self._open = state
        offset = state.used_bytes
        state.used_bytes += aligned
        return state, offset

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

    def seal(self) -> None:
        """Close the open pack, so that it may be evicted."""
        if self._open is not None:
            self._open.sealed = True
            self._open = None
