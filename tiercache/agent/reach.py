"""What the agent remembers of its endpoints over its own end, so that an agent that is started in
the middle of an outage need not find it out anew. Owned by the event loop."""

from __future__ import annotations

import asyncio
import contextlib

from tiercache import records
from tiercache.agent.index import Index
from tiercache.clock import Clock
from tiercache.ports import Endpoints
from tiercache.records import EndpointRecord

# How soon an outage is written down that was noticed.
LOOK_S = 0.25
# And how often again. After a kill the next agent believes what is at most
# BELIEVED_S old: long enough for a restart of the node, short enough that nobody who comes back
# the next day begins with an outage of yesterday. The first probe is sent at once in any case.
KEEP_EVERY_S = 10.0
BELIEVED_S = 120.0


class Reach:
    """Writes down which endpoints are offline, and reads it at the start."""

    def __init__(self, index: Index, endpoints: Endpoints, clock: Clock) -> None:
        self._index = index
        self._endpoints = endpoints
        self._clock = clock
        self._kept_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def recall(self) -> None:
        """Begin with what a former agent left."""
        now_s = self._clock.unix()
        for key, raw in list(self._index.scan(records.ENDPOINTS)):
            record = records.decode_endpoint(raw)
            if 0 <= now_s - record.seen_unix_s < BELIEVED_S:
                self._endpoints.remember(record.name, max(0.0, now_s - record.down_unix_s))
                self._kept_s[record.name] = 0.0
            else:
                self._index.put(key, None)

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._keep():
                with contextlib.suppress(OSError):  # the device's next user reports it
                    await self._index.flush()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _keep(self) -> bool:
        """Put what has changed, and say whether anything has."""
        now_s = self._clock.now()
        changed = False
        for endpoint in self._endpoints.all():
            kept_s = self._kept_s.get(endpoint.name)
            key = records.endpoint_key(endpoint.name)
            if not endpoint.is_offline:
                if kept_s is not None:
                    del self._kept_s[endpoint.name]
                    self._index.put(key, None)
                    changed = True
            elif kept_s is None or now_s - kept_s >= KEEP_EVERY_S:
                self._kept_s[endpoint.name] = now_s
                seen_s = self._clock.unix()
                record = EndpointRecord(endpoint.name, seen_s - endpoint.down_s, seen_s)
                self._index.put(key, records.encode(record))
                changed = True
        return changed
