"""Names served stale, and asked for again when their endpoint answers. Owned by the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from tiercache.agent.flights import endpoint_of
from tiercache.agent.mounts import Located
from tiercache.errors import OriginUnavailable, TiercacheError
from tiercache.ports import Endpoint

# An outage may leave a whole data set to be asked for: a few requests at a time leave the network
# to readers. At 25 ms a HEAD eight ask for 320 names a second.
DRAIN_IN_FLIGHT = 8
# After a round that an origin has put off or broken off.
RETRY_S = 1.0
# ~500 B each. Names beyond are asked for at their next use, as all are without this.
KEPT_NAMES = 1 << 15

# A name, or with True or False the listing of all below it or of one level.
Question = tuple[Located, bool | None]


class Pending:
    """What is to be revalidated, by endpoint. ``ask`` brings one name or listing up to date."""

    def __init__(self, ask: Callable[[Located, bool | None], Awaitable[None]]) -> None:
        self._ask = ask
        self._questions: dict[str, dict[tuple[bytes, bool | None], Question]] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}

    def count(self, endpoint: Endpoint) -> int:
        return len(self._questions.get(endpoint.name, ()))

    def add(self, located: Located, recursive: bool | None = None) -> None:
        """Ask for a name, or a listing, when its endpoint answers again."""
        endpoint = endpoint_of(located.origin)
        if endpoint is None:
            return
        questions = self._questions.setdefault(endpoint.name, {})
        if len(questions) < KEPT_NAMES:
            questions[located.digest, recursive] = (located, recursive)
        drain = self._drains.get(endpoint.name)
        if drain is None or drain.done():
            self._drains[endpoint.name] = asyncio.create_task(self._drain(endpoint, questions))

    async def _drain(
        self, endpoint: Endpoint, questions: dict[tuple[bytes, bool | None], Question]
    ) -> None:
        while questions:
            # Silent, it goes offline or answers within seconds.
            await endpoint.heard()
            await asyncio.gather(*(self._work(endpoint, questions) for _ in range(DRAIN_IN_FLIGHT)))

    async def _work(
        self, endpoint: Endpoint, questions: dict[tuple[bytes, bool | None], Question]
    ) -> None:
        while questions and not endpoint.is_offline:
            key = next(iter(questions))
            question = questions.pop(key)
            try:
                await self._ask(*question)
            except OriginUnavailable:
                questions.setdefault(key, question)
                return
            except (TiercacheError, OSError):
                continue  # its next use tells whoever uses it

    async def stop(self) -> None:
        tasks = list(self._drains.values())
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
