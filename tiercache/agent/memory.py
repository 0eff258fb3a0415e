"""The agent's one memory budget: every data buffer is reserved here before it is filled."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Self

from tiercache import work
from tiercache.policy.turns import Turns

# Bytes on their way through to a client exist as the origin's answer, as a message, and as the
# frame that is being built of it.
COPIES = 3


class Answer:
    """The time from a request to the end of its answer, and what the request holds of the budget
    until its answer is built, and until it is sent. A context manager."""

    __slots__ = ("_token", "building", "sending")

    def __init__(self) -> None:
        self.building: list[Callable[[], None]] = []
        self.sending: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        self._token = _answer.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _answer.reset(self._token)
        self.built()
        for release in self.sending:
            release()

    def built(self) -> None:
        """Give back all but what waits in the socket."""
        for release in self.building:
            release()
        self.building.clear()


_answer: ContextVar[Answer] = ContextVar("answer")


@dataclass(slots=True)
class _Asked:
    count_bytes: int
    granted: asyncio.Future[None]


class MemoryBudget:
    """Bytes, given out by priority of the work at hand, else first come first served. Owned by
    the event loop.

    A request larger than the whole budget is granted when nothing else is held, so that it runs
    alone instead of never. Whoever is next and does not fit yet lets nobody of its rank or below
    pass, so a large request is never starved by small ones.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._arrivals = itertools.count()
        self._waiting: Turns[_Asked] = Turns()

    def _fits(self, count: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + count <= self.limit_bytes

    async def acquire(self, count: int) -> None:
        """Wait for ``count`` bytes. Cancellable; the place in the queue is lost then."""
        if not self._waiting and self._fits(count):
            self.held_bytes += count
            return
        asked = _Asked(count, asyncio.get_running_loop().create_future())
        arrived = next(self._arrivals)
        turn = self._waiting.join(asked, priority=work.priority(), arrived=arrived)
        self._grant()  # it may go before those that wait

        def promote(priority: int) -> None:
            nonlocal turn
            turn = self._waiting.promote(turn, priority)
            self._grant()

        try:
            with work.queueing(promote):
                await asked.granted
        except asyncio.CancelledError:
            if asked.granted.cancelled():
                self._waiting.leave(turn)
                self._grant()  # what stood behind it may fit
            else:
                self.release(count)
            raise

    def release(self, count: int) -> None:
        self.held_bytes -= count
        self._grant()

    def _grant(self) -> None:
        while (turn := self._waiting.next()) is not None:
            asked = turn.item
            if asked.granted.done():  # cancelled, and not yet told
                self._waiting.leave(turn)
            elif self._fits(asked.count_bytes):
                self._waiting.serve(turn)
                self.held_bytes += asked.count_bytes
                asked.granted.set_result(None)
            else:
                return

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        await self.acquire(count)
        try:
            yield
        finally:
            self.release(count)

    async def hold_until_answered(self, count: int) -> None:
        """Wait for room for ``count`` bytes that travel with the answer to the request at hand:
        COPIES of them until it is built, one until it has been sent."""
        await self.acquire(count * COPIES)
        answer = _answer.get()
        answer.sending.append(partial(self.release, count))
        answer.building.append(partial(self.release, count * (COPIES - 1)))
