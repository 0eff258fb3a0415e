"""The agent's one memory budget: every data buffer is reserved here before it is filled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar

# What the request at hand holds until its answer has been sent.
_answer: ContextVar[ExitStack] = ContextVar("answer")


@contextmanager
def answering() -> Iterator[ExitStack]:
    """The time from a request to the end of its answer; ``hold_until_answered`` lasts so long."""
    with ExitStack() as held:
        token = _answer.set(held)
        try:
            yield held
        finally:
            _answer.reset(token)


class MemoryBudget:
    """Bytes, given out first come first served. Owned by the event loop.

    A request larger than the whole budget is granted when nothing else is held, so that it runs
    alone instead of never.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def _fits(self, count: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + count <= self.limit_bytes

    async def acquire(self, count: int) -> None:
        """Wait for ``count`` bytes. Cancellable; the place in the queue is lost then."""
        if not self._waiting and self._fits(count):
            self.held_bytes += count
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, granted)
        self._waiting.append(entry)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(count)
            else:
                self._waiting.remove(entry)
            raise

    def release(self, count: int) -> None:
        self.held_bytes -= count
        while self._waiting and self._fits(self._waiting[0][0]):
            count, granted = self._waiting.popleft()
            if not granted.done():
                self.held_bytes += count
                granted.set_result(None)

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        await self.acquire(count)
        try:
            yield
        finally:
            self.release(count)

    async def hold_until_answered(self, count: int) -> None:
        """Wait for bytes that travel with the answer to the request at hand; they are given back
        when it has been sent."""
        await self.acquire(count)
        _answer.get().callback(self.release, count)
