"""One server, as all its origins share it: a breaker, and whether it answers.

While an endpoint is online nothing is sent to it but what callers ask for. Once requests fail or
stay unanswered it is asked for a name that nobody uses, which costs it nothing and tells an outage
from a slow answer within seconds; while it is offline such probes alone are sent, so that it comes
back without traffic, and no caller is ever the one that finds out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Protocol

from tiercache.clock import Clock
from tiercache.errors import OriginThrottled, OriginUnavailable, TiercacheError
from tiercache.model import BackendStatus, BackendWait, EndpointState, EndpointStatus, ObjectInfo
from tiercache.origins.backend import Backends
from tiercache.origins.counters import Throughput
from tiercache.policy import breaker
from tiercache.policy.qos import BackendPlan

log = logging.getLogger("tiercache.origins")

# A name that no job uses: whatever is said of it, somebody answered.
PROBE_KEY = ".tiercache-probe"
# How often an endpoint with requests in flight is looked at: an outage is noticed so much later.
TICK_S = 0.25
# Silence of so long is looked into before anything is sent that can wait.
PATIENT_S = 0.5
# An error's text may hold a whole answer.
SHOWN_ERROR_CHARS = 300


class Asked(Protocol):
    """What a probe needs of an origin: raw, without retries."""

    def head(self, key: str) -> Awaitable[ObjectInfo]: ...


class Endpoint:
    """Owned by the event loop. ``name`` is shown to users and holds no secret; ``concurrency`` is
    how many requests may be in flight, which ``Backends`` keeps."""

    def __init__(
        self,
        name: str,
        *,
        concurrency: int,
        clock: Clock,
        policy: breaker.BreakerPolicy = breaker.BreakerPolicy(),
        rng: Callable[[], float] = random.random,
    ) -> None:
        # Constant after construction
        self.name = name
        self.concurrency = concurrency
        self._clock = clock
        self._policy = policy
        self._rng = rng
        # Owned by the event loop
        self.state = breaker.HEALTHY
        self.answered_s = 0.0
        self.throughput = Throughput(clock)
        self.last_error = ""
        self._troubled_s = -inf
        self._shown = EndpointState.ONLINE
        self._shown_s = clock.now()
        self._in_flight = 0
        self._heard_s = 0.0  # the same, of answers that put off too
        self._asked_s = 0.0  # when the first request was sent that is not answered
        self._reads: set[asyncio.Task[object]] = set()  # ended early when it goes offline
        self._cut: set[asyncio.Task[object]] = set()
        self._draw = 1.0
        self._probed_s = -inf
        self._quiet_for_s = policy.silent_s
        self._origins: list[Asked] = []  # probed in turn
        self._watcher: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] | None = None

    # -- what it is -------------------------------------------------------------------------

    @property
    def mode(self) -> breaker.Mode:
        return self.state.mode

    @property
    def is_offline(self) -> bool:
        return self.state.mode is not breaker.Mode.CLOSED

    @property
    def down_s(self) -> float:
        """For how long it has been offline, 0.0 while it is not."""
        return self._clock.now() - self.state.since_s if self.is_offline else 0.0

    def status(self) -> EndpointStatus:
        """Return what users are told of it now."""
        self._observe()
        now_s = self._clock.now()
        due_s = breaker.due_s(self.state, self._draw) - now_s
        return EndpointStatus(
            name=self.name,
            state=self._shown,
            since_s=self.down_s or now_s - self._shown_s,
            last_error=self.last_error,
            next_probe_s=max(0.0, due_s) if self.mode is breaker.Mode.OPEN else 0.0,
            bytes_per_s=self.throughput.bytes_per_s(),
        )

    def refusal(self, path: str) -> OriginUnavailable | None:
        """Return the error to raise instead of a request while it is offline."""
        if not self.is_offline:
            return None
        self._watch()  # if it ended by a defect, the probes begin again with this
        last = f"; last: {self.last_error}" if self.last_error else ""
        return OriginUnavailable(
            f"{self.name} is offline: it has not answered for {self.down_s:.0f} s "
            f"(breaker {self.state.mode}){last}",
            path=path,
            remedy="nothing to do: it is probed, and used again with its first answer",
        )

    # -- what becomes of requests -----------------------------------------------------------

    @contextmanager
    def request(self, *, is_read: bool) -> Iterator[None]:
        """Around one request: it is watched, and a read ends with OriginUnavailable when the
        endpoint goes offline. The caller says how the request ended."""
        if self._asked_s <= self._heard_s or not (self._in_flight or self.state.failure_count):
            self._asked_s = self._clock.now()
        self._in_flight += 1
        self._watch()
        task = asyncio.current_task() if is_read else None
        if task is None:
            try:
                yield
            finally:
                self._in_flight -= 1
            return
        before = task.cancelling()
        self._reads.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._cut and task.uncancel() <= before:
                refused = self.refusal("")
                raise refused or OriginUnavailable(f"{self.name} went offline") from None
            raise
        finally:
            self._in_flight -= 1
            self._reads.discard(task)
            self._cut.discard(task)

    def answered(self) -> None:
        """Note an answer that was one: not "come back later"."""
        self.answered_s = self._heard_s = self._clock.now()
        if self.state is not breaker.HEALTHY:
            self.succeeded()

    def succeeded(self) -> None:
        self.state = breaker.succeeded(self.state)
        self._quiet_for_s = self._policy.silent_s
        self._observe()

    def throttled(self, error: OriginThrottled) -> None:
        """Note an answer that puts off: there is somebody, who answers nothing."""
        self._note(error)
        self._heard_s = self._clock.now()
        self.succeeded()

    def failed(self, error: OriginUnavailable) -> None:
        """Note that a request found nobody. What returns while it is offline, being cut short or
        late, says nothing new: there the probes tell."""
        if not self.is_offline:
            self._failed(error)

    def _failed(self, error: OriginUnavailable) -> None:
        was_offline = self.is_offline
        self._note(error)
        self.state = breaker.failed(self.state, self._clock.now(), policy=self._policy)
        self._opened(was_offline)

    def _note(self, error: OriginUnavailable) -> None:
        self._troubled_s = self._clock.now()
        self.last_error = error.message[:SHOWN_ERROR_CHARS]
        self._watch()

    def _opened(self, was_offline: bool) -> None:
        """Go on after the breaker may have opened: whoever waits for an answer waits no more."""
        self._draw = self._rng()
        self._observe()
        if self.is_offline and not was_offline:
            me = asyncio.current_task()
            for task in self._reads - {me}:
                self._cut.add(task)
                task.cancel()

    def _observe(self) -> None:
        """Bring what users are told up to date; a change is one line of the log."""
        now_s = self._clock.now()
        state = breaker.endpoint_state(
            self.state, now_s, troubled_s=self._troubled_s, policy=self._policy
        )
        if state is self._shown:
            return
        lasted_s = now_s - self._shown_s
        level = logging.WARNING if EndpointState.OFFLINE in (state, self._shown) else logging.INFO
        why = f": {self.last_error}" if state is not EndpointState.ONLINE else ""
        log.log(level, "%s is %s after %.0f s %s%s", self.name, state, lasted_s, self._shown, why)
        self._shown, self._shown_s = state, now_s
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- waiting for it ---------------------------------------------------------------------

    async def changed(self) -> None:
        """Return when its state has changed."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    async def back(self) -> None:
        """Return when it is not offline."""
        while self.is_offline:
            self._watch()
            await self.changed()

    async def heard(self) -> None:
        """Return when it is not offline, and is not about to be found so."""
        await self._looked_into()
        while self.is_offline:
            await self.back()
            await self._looked_into()

    async def verdict(self) -> bool:
        """Return, after a request has failed, whether it is offline: a probe tells within seconds
        whether that request failed alone."""
        await self._looked_into()
        return self.is_offline

    async def _looked_into(self) -> None:
        while not self.is_offline and (
            self.state.failure_count or self._clock.now() - self._silent_since_s() > PATIENT_S
        ):
            self._watch()
            await asyncio.sleep(TICK_S)

    # -- probes -----------------------------------------------------------------------------

    def attach(self, origin: Asked) -> None:
        """Probe through this origin too, in turn with the others: one whose credentials cannot
        be had must not keep them all offline."""
        self._origins.append(origin)
        if self.is_offline:
            self._watch()

    def remember(self, down_s: float) -> None:
        """Take over from an agent that was here before: it has been offline for so long."""
        now_s = self._clock.now()
        self.state = breaker.remembered(now_s, since_s=now_s - down_s)
        self.last_error = "offline when the agent started"
        self._observe()

    def rest(self) -> None:
        """Stop watching; the next request begins again."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            with contextlib.suppress(RuntimeError):  # without a loop nothing is in flight
                self._watcher = asyncio.get_running_loop().create_task(self._watching())

    async def _watching(self) -> None:
        """Look at it for as long as something is in flight or not well. Outlasts short pauses
        between requests, since a task costs more than a tick."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._origins and self._probe_due():
                self._origins.append(origin := self._origins.pop(0))
                await self._probe(origin)
            self._observe()
            if not self._in_flight and self._shown is EndpointState.ONLINE:
                return

    def _silent_since_s(self) -> float:
        """Return since when nothing has been heard that was asked for."""
        if not self._in_flight and not self.state.failure_count:
            return self._clock.now()
        return max(self._asked_s, self._heard_s)

    def _probe_due(self) -> bool:
        now_s = self._clock.now()
        if self.is_offline:
            self.state, admitted = breaker.admit(self.state, now_s, draw=self._draw)
            return admitted
        if now_s - self._probed_s < self._policy.probe_every_s:
            return False
        return bool(self.state.failure_count) or now_s - self._silent_since_s() > self._quiet_for_s

    async def _probe(self, origin: Asked) -> None:
        self._probed_s = self._clock.now()
        silent_since_s = self._silent_since_s()
        was_troubled = self.state is not breaker.HEALTHY
        try:
            async with asyncio.timeout(self._policy.probe_timeout_s):
                await origin.head(PROBE_KEY)
        except OriginThrottled as error:
            self.throttled(error)
        except OriginUnavailable as error:
            self._probe_failed(error, silent_since_s)
        except TimeoutError:
            silence = OriginUnavailable(f"no answer within {self._policy.probe_timeout_s:g} s")
            self._probe_failed(silence, silent_since_s)
        except asyncio.CancelledError:
            self.state = breaker.abandoned(self.state)
            raise
        except TiercacheError:
            self._probe_answered(was_troubled)  # if only to refuse
        else:
            self._probe_answered(was_troubled)

    def _probe_answered(self, was_troubled: bool) -> None:
        """Somebody is there. A long transfer alone in flight is not asked about every second."""
        quiet_for_s = self._policy.silent_s if was_troubled else 2 * self._quiet_for_s
        self.answered()
        self._quiet_for_s = quiet_for_s

    def _probe_failed(self, error: OriginUnavailable, silent_since_s: float) -> None:
        self._failed(error)
        if self._heard_s <= silent_since_s:
            was_offline = self.is_offline
            self.state = breaker.silent(
                self.state, self._clock.now(), since_s=silent_since_s, policy=self._policy
            )
            self._opened(was_offline)


class Endpoints:
    """The endpoints of one agent, by name. Owned by the event loop."""

    def __init__(
        self, *, clock: Clock, policy: breaker.BreakerPolicy = breaker.BreakerPolicy()
    ) -> None:
        self.backends = Backends(clock=clock)
        self._clock = clock
        self._policy = policy
        self._by_name: dict[str, Endpoint] = {}
        self._remembered: dict[str, float] = {}

    def of(self, name: str, *, concurrency: int) -> Endpoint:
        """Return the endpoint of that name; the first caller's ``concurrency`` holds."""
        found = self._by_name.get(name)
        if found is None:
            found = Endpoint(name, concurrency=concurrency, clock=self._clock, policy=self._policy)
            down_s = self._remembered.pop(name, None)
            if down_s is not None:
                found.remember(down_s)
            self._by_name[name] = found
        return found

    def remember(self, name: str, down_s: float) -> None:
        """Begin with this endpoint offline, as it was ``down_s`` ago when another agent left."""
        self._remembered[name] = down_s

    def all(self) -> list[Endpoint]:
        return list(self._by_name.values())

    def limit(self, plans: Sequence[BackendPlan]) -> None:
        """Keep to these limits of accounts, buckets and prefixes from now on."""
        self.backends.replace(plans)

    def limits(self) -> list[BackendStatus]:
        """Return every limit that is configured or has met a request."""
        return self.backends.report()

    def waits(self) -> list[BackendWait]:
        """Return who waits to send requests, and at which limit."""
        return self.backends.waits()
