"""One request for all who ask the same, and how long to wait for one where there is a fallback.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from tiercache.clock import Clock
from tiercache.errors import OriginUnavailable
from tiercache.ports import Endpoint, Origin
from tiercache.work import hurry

# How long a look-up that may be served stale waits for an origin that answers nobody: longer
# than a HEAD around the world takes (0.7 s with its handshakes: three round trips of 0.22 s), and
# short enough that a training loop that loses its network stands still for less than a second.
PATIENCE_S = 0.75

T = TypeVar("T")


class SingleFlight:
    """One running call a key; everybody who may share it gets its outcome.

    Whoever needs an answer no older than ``since_s`` and finds a call that was begun earlier
    waits for its end and shares the next one with all who came since.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[object, tuple[asyncio.Task[Any], float]] = {}
        self._next: dict[object, asyncio.Task[Any]] = {}

    def join(
        self, key: object, work: Callable[[], Coroutine[Any, Any, T]], *, since_s: float
    ) -> asyncio.Task[T]:
        """Return the call. Shield it: it is not the caller's to cancel."""
        running = self._running.get(key)
        if running is None:
            return self._begin(key, work)
        hurry(running[0])  # or what waits for its end
        if running[1] >= since_s:
            return running[0]
        task = self._next.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._after(key, work))
            task.add_done_callback(retrieve)
            self._next[key] = task
        return task

    def _begin(self, key: object, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work())
        self._running[key] = task, self._clock.now()
        task.add_done_callback(lambda ended: self._ended(key, ended))
        return task

    def _ended(self, key: object, task: asyncio.Task[Any]) -> None:
        running = self._running.get(key)
        if running is not None and running[0] is task:
            del self._running[key]
        retrieve(task)

    async def stop(self) -> None:
        """Cancel all calls and wait for them to end."""
        tasks = [*self._next.values(), *(task for task, _ in self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _after(self, key: object, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while key in self._running:
            await asyncio.wait({self._running[key][0]})
        self._next.pop(key, None)
        return await asyncio.shield(self._begin(key, work))


def retrieve(task: asyncio.Task[Any]) -> None:
    """Look at a task's error, so that one nobody waits for any more is not reported as lost."""
    if not task.cancelled():
        task.exception()


class Patience:
    """Which origins are silent, by what waiting for them has shown.

    An origin is silent from the moment a request to it found no answer in time until it answers
    anybody again. While it is, nobody with a fallback waits, and one request at a time probes it;
    one whose endpoint is offline is silent, and its endpoint probes it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._silent_at_s: dict[str, float] = {}
        self._probes: dict[str, asyncio.Task[Any]] = {}
        # Those who wait hear of the first whose patience ends: none waits longer than it did.
        self._silence: dict[str, asyncio.Future[None]] = {}

    def is_silent(self, origin: Origin) -> bool:
        return self._silent_at_s.get(origin.url, 0.0) > answered_s(origin)

    async def answer(self, origin: Origin, begin: Callable[[], asyncio.Task[T]]) -> T | None:
        """Begin a request and return its outcome; None where its origin does not answer. The
        request goes on in that case. Raises what else it raised."""
        if is_offline(origin):
            return None
        if self.is_silent(origin):
            probe = self._probes.get(origin.url)
            if probe is not None and not probe.done():
                return None
            task = self._probes[origin.url] = begin()
            # A refused connection and an open breaker answer at once; nothing else is waited for.
            await asyncio.wait({task}, timeout=0)
        else:
            task = begin()
            await self._wait(origin, task)
        if not task.done():
            return None
        try:
            return task.result()
        except OriginUnavailable:
            self._fall_silent(origin)
            return None

    async def _wait(self, origin: Origin, task: asyncio.Task[Any]) -> None:
        """Wait while the origin answers anybody at all: a busy one is not a silent one."""
        asked_s = self._clock.now()
        silence = self._silence.get(origin.url)
        if silence is None or silence.done():
            silence = self._silence[origin.url] = asyncio.get_running_loop().create_future()
        while not (task.done() or silence.done()):
            left_s = max(asked_s, answered_s(origin)) + PATIENCE_S - self._clock.now()
            if left_s <= 0:
                self._fall_silent(origin)
                return
            await asyncio.wait({task, silence}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _fall_silent(self, origin: Origin) -> None:
        self._silent_at_s[origin.url] = self._clock.now()
        silence = self._silence.pop(origin.url, None)
        if silence is not None and not silence.done():
            silence.set_result(None)


def answered_s(origin: Origin) -> float:
    """Return when the origin's server last answered, where its wrapper knows."""
    return float(getattr(origin, "answered_s", 0.0))


def endpoint_of(origin: Origin) -> Endpoint | None:
    """Return the server behind an origin, where its wrapper knows it."""
    return getattr(origin, "endpoint", None)


def is_offline(origin: Origin) -> bool:
    endpoint = endpoint_of(origin)
    return endpoint is not None and endpoint.is_offline


async def gathered(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results in order. With the first failure the rest is cancelled, and raised."""
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
