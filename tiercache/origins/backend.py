"""What may be sent to whom: limits of accounts, buckets and prefixes, and the rates that servers
turn out to bear, in one queue with the requests in flight.

A request leaves when all that cover it grant it: each plan's requests and bytes a second, the rate
that the server's 429 and 503 have left, and a free place at its endpoint. Until then it waits, by
priority of the work it is for (``tiercache.work``). Without any plan the last two remain.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from tiercache import work
from tiercache.clock import Clock
from tiercache.errors import OriginThrottled
from tiercache.model import BackendStatus, BackendWait
from tiercache.origins.bucket import Bucket, Kind
from tiercache.policy.qos import BackendPlan, covers
from tiercache.policy.turns import Turn, Turns, is_oldests_turn

# Whoever waits for tokens looks after so long at the latest whether its endpoint went offline.
LOOK_S = 0.25
# Timers are no finer; a wait of less would be one turn of the loop after another.
SHORTEST_S = 0.001
ENDPOINT = "endpoint:"


class Server(Protocol):
    """What is asked of an endpoint here."""

    name: str
    concurrency: int

    @property
    def is_offline(self) -> bool: ...


@dataclass(slots=True)
class _Room:
    """The requests in flight at one endpoint."""

    server: Server
    in_flight: int = 0

    def delay_s(self) -> float:
        return 0.0 if self.in_flight < self.server.concurrency else inf


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request, or a part of one under way, is to be granted: ``kind`` None is no request
    but bytes alone, ``count_bytes`` None moves none that count."""

    kind: Kind | None
    key: str
    count_bytes: int | None = None


@dataclass(slots=True, eq=False)
class _Lane:
    """Those who wait for the same. ``adapts`` is what falls when the server puts off."""

    room: _Room | None
    requests: tuple[Bucket, ...]
    bytes: tuple[Bucket, ...]
    adapts: Bucket | None
    turns: Turns[_Waiter] = field(default_factory=Turns)

    @property
    def refuses(self) -> bool:
        """Whether nothing that is granted will be sent: its endpoint is offline."""
        return self.room is not None and self.room.server.is_offline

    def delay_s(self, now_s: float) -> float:
        """Return how long its first has to wait at least, inf for a place."""
        delay_s = 0.0 if self.room is None else self.room.delay_s()
        if not self.refuses:
            for bucket in (*self.requests, *self.bytes):
                delay_s = max(delay_s, bucket.delay_s(now_s))
        return delay_s

    def take(self, count_bytes: int, now_s: float) -> None:
        """Charge one that leaves now."""
        if self.room is not None:
            self.room.in_flight += 1
        if self.refuses:
            return
        for bucket in self.requests:
            bucket.charge(1, now_s)
        for bucket in self.bytes:
            bucket.charge(count_bytes, now_s)

    def binding(self, now_s: float) -> str:
        """Name what its first waits for."""
        buckets = [*self.requests, *self.bytes]
        slowest = max(buckets, key=lambda bucket: bucket.delay_s(now_s), default=None)
        if slowest is not None and slowest.delay_s(now_s) > 0.0 and not self.refuses:
            return f"{slowest.scope} {slowest.kind}"
        return f"{ENDPOINT}{self.room.server.name} in flight" if self.room is not None else ""

    def count_waiting(self, change: int) -> None:
        for bucket in (*self.requests, *self.bytes):
            bucket.waiting += change

    def is_wanted(self) -> bool:
        """Whether anybody waits for any part of it."""
        return bool(self.turns) or any(one.waiting for one in (*self.requests, *self.bytes))

    @property
    def answered_s(self) -> float:
        """When the server last took such a request."""
        return -inf if self.adapts is None else self.adapts.answered_s

    def given_up(
        self, now_s: float, *, since_s: float, patience_s: float
    ) -> OriginThrottled | None:
        """Return the error for those who have waited since then and should no longer, None where
        they should."""
        adapts = self.adapts
        if adapts is None or not adapts.throttled:
            return None
        pause_s = adapts.adaptive.paused_until_s - now_s
        heard_s = max(since_s, self.answered_s)
        silent_s = now_s - heard_s
        if pause_s > patience_s:
            said = f"asked to be left alone for {pause_s:.1f} s"
        elif silent_s > patience_s and adapts.adaptive.throttled_s > heard_s:
            said = f"has put off every request for {silent_s:.0f} s"
        else:
            return None
        error = OriginThrottled(f"{adapts.scope} {said}", remedy="ask again later, or for less")
        error.retry_after_s = max(0.0, pause_s)
        return error


@dataclass(slots=True, eq=False)
class _Waiter:
    meter: Meter
    ask: Ask
    with_room: bool
    granted: asyncio.Future[Grant]
    lane: _Lane
    turn: Turn[_Waiter] | None = None
    identity: str = field(default_factory=lambda: work.current.get().identity)
    since_s: float = 0.0


class Grant:
    """Leave to send one request; the caller says how it went, and releases it in any case."""

    __slots__ = ("_backends", "_count_bytes", "_has_place", "_lane", "sent_s")

    def __init__(self, backends: Backends, lane: _Lane, count_bytes: int, sent_s: float) -> None:
        self._backends = backends
        self._lane = lane
        self._count_bytes = count_bytes
        self._has_place = lane.room is not None
        self.sent_s = sent_s

    def answered(self) -> None:
        """The server took the request, whatever it said."""
        adapts = self._lane.adapts
        if adapts is not None:
            adapts.answered(self._backends.clock.now(), sent_s=self.sent_s)

    def throttled(self, error: OriginThrottled) -> bool:
        """The server put it off. Return whether the next attempt may ask at once for another
        grant, which comes when it is time; else the caller waits by itself."""
        self.transferred(0)
        adapts = self._lane.adapts
        return adapts is not None and adapts.put_off(
            self._backends.clock.now(),
            sent_s=self.sent_s,
            retry_after_s=error.retry_after_s,
            draw=self._backends.rng(),
        )

    def transferred(self, count_bytes: int) -> None:
        """Charge what it really was instead of what was announced."""
        now_s = self._backends.clock.now()
        for bucket in self._lane.bytes:
            bucket.charge(count_bytes - self._count_bytes, now_s)
        self._count_bytes = count_bytes

    def release(self) -> None:
        """Give the place at the endpoint to the next. Once more is no error."""
        if self._has_place and self._lane.room is not None:
            self._has_place = False
            self._lane.room.in_flight -= 1
            self._backends.pump()


class Meter:
    """The limits that one origin's requests meet. Owned by the event loop."""

    def __init__(self, backends: Backends, room: _Room, *, url: str, scope: str) -> None:
        # Constant after construction
        self._backends = backends
        self._room = room
        self._names = (*_names(url), ENDPOINT + room.server.name)
        self._scope = scope
        # Owned by the event loop; of the plans in force
        self._always: tuple[BackendPlan, ...] = ()
        self._below: tuple[tuple[str, BackendPlan], ...] = ()
        self._lanes: dict[object, _Lane] = {}

    async def admitted(self, ask: Ask, *, arrived: int, since_s: float, patience_s: float) -> Grant:
        """Wait until one request may leave, and return leave to send it. Cancellable.

        ``arrived`` is from ``Backends.arrive``; who comes back with it has kept its place. Raises
        OriginThrottled where the server has put off everything for ``patience_s`` since
        ``since_s``, when the caller was first asked, or asks to be left alone for longer.
        """
        return await self._backends.admitted(
            self, ask, arrived, with_room=True, since_s=since_s, patience_s=patience_s
        )

    async def charged(self, ask: Ask, *, patience_s: float) -> None:
        """Wait until a part of a request under way may be sent. As ``admitted``, without a place
        in flight."""
        lane = self.lane(ask, with_room=False)
        if lane.requests or lane.bytes:
            backends = self._backends
            await backends.admitted(
                self,
                ask,
                backends.arrive(),
                with_room=False,
                since_s=backends.clock.now(),
                patience_s=patience_s,
            )

    def lane(self, ask: Ask, *, with_room: bool) -> _Lane:
        """Return the queue of such a request."""
        below = [plan for start, plan in self._below if covers(start, ask.key)]
        moves = ask.count_bytes is not None
        name = (ask.kind, moves, with_room, *(plan.origin for plan in below))
        found = self._lanes.get(name)
        if found is None:
            room = self._room if with_room else None
            covering = (*self._always, *below)
            found = self._backends.lane(ask.kind, moves, covering, room, scope=self._scope)
            self._lanes[name] = found
        return found

    def plan(self, plans: Iterable[BackendPlan]) -> None:
        """Keep to these plans from now on."""
        always, below = [], []
        for plan in plans:
            rests = {_rest(plan.origin, name) for name in self._names} - {None}
            if "" in rests:
                always.append(plan)
            else:
                below += [(rest, plan) for rest in rests if rest]
        self._always = tuple(always)
        self._below = tuple(below)
        self._lanes.clear()

    def report(self) -> list[BackendStatus]:
        """Return the limits that its requests have met, and what has become of them."""
        lanes = self._lanes.values()
        met = {bucket for lane in lanes for bucket in (*lane.requests, *lane.bytes)}
        return self._backends.statuses(met)


class Backends:
    """All limits of one agent's requests. Owned by the event loop."""

    def __init__(self, *, clock: Clock, rng: Callable[[], float] = random.random) -> None:
        # Constant after construction
        self.clock = clock
        self.rng = rng
        # Owned by the event loop
        self._plans: tuple[BackendPlan, ...] = ()
        self._buckets: dict[tuple[str, Kind], Bucket] = {}
        self._rooms: dict[str, _Room] = {}
        self._meters: list[Meter] = []
        self._arrivals = itertools.count()
        self._waiting: set[_Lane] = set()
        self._served = 0
        self._timer: asyncio.TimerHandle | None = None

    def of(self, *, url: str, server: Server, scope: str) -> Meter:
        """Return the limits of one origin's requests. ``scope`` is what one server limits as a
        whole, where no plan says: its rate falls when it puts off."""
        room = self._rooms.setdefault(server.name, _Room(server))
        meter = Meter(self, room, url=url, scope=scope)
        meter.plan(self._plans)
        self._meters.append(meter)
        return meter

    def forget(self, meter: Meter) -> None:
        """An origin is closed."""
        self._meters.remove(meter)

    def replace(self, plans: Sequence[BackendPlan]) -> None:
        """Keep to these plans from now on. What servers bear, and what is owed, is not forgotten;
        whoever waits goes on waiting, for what holds now."""
        self._plans = tuple(plans)
        now_s = self.clock.now()
        limits = {(plan.origin, kind): inf for plan in plans for kind in Kind}
        for plan in plans:
            for kind in Kind:
                name = (plan.origin, kind)
                limits[name] = min(limits[name], getattr(plan, kind))
        for name, bucket in list(self._buckets.items()):
            bucket.configure(limits.get(name, inf), now_s)
        for name, limit in limits.items():
            self._bucket(*name).configure(limit, now_s)
        for meter in self._meters:
            meter.plan(plans)
        self._queue_anew()
        self.pump()

    def _queue_anew(self) -> None:
        before, self._waiting = self._waiting, set()
        for turn in [turn for lane in before for turn in lane.turns.all()]:
            waiter = turn.item
            self._leave(waiter)
            waiter.lane = waiter.meter.lane(waiter.ask, with_room=waiter.with_room)
            self._join(waiter, priority=turn.priority, arrived=turn.arrived)

    def lane(
        self,
        kind: Kind | None,
        moves_bytes: bool,
        covering: Sequence[BackendPlan],
        room: _Room | None,
        *,
        scope: str,
    ) -> _Lane:
        """Return a new queue before all limits of such requests."""
        adapts, requests, bytes_ = None, [], []
        if kind is not None:
            requests = [self._bucket(one.origin, kind) for one in covering]
            narrowest = max(covering, key=_narrowness, default=None)
            if narrowest is None:
                adapts = self._bucket(scope, kind)
                requests = [adapts]
            elif narrowest.adaptive:
                adapts = self._bucket(narrowest.origin, kind)
        if moves_bytes:
            bytes_ = [self._bucket(one.origin, Kind.BYTES) for one in covering]
        return _Lane(room, tuple(dict.fromkeys(requests)), tuple(dict.fromkeys(bytes_)), adapts)

    def _bucket(self, scope: str, kind: Kind) -> Bucket:
        found = self._buckets.get((scope, kind))
        if found is None:
            found = self._buckets[scope, kind] = Bucket(scope, kind, self.clock.now())
        return found

    # -- the queue ------------------------------------------------------------------------------

    def arrive(self) -> int:
        """Return the number of whoever comes now."""
        return next(self._arrivals)

    async def admitted(
        self,
        meter: Meter,
        ask: Ask,
        arrived: int,
        *,
        with_room: bool,
        since_s: float,
        patience_s: float,
    ) -> Grant:
        """As ``Meter.admitted``."""
        lane = meter.lane(ask, with_room=with_room)
        now_s = self.clock.now()
        if not lane.is_wanted() and not lane.delay_s(now_s):
            return self._grant(lane, ask, now_s)
        granted: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(meter, ask, with_room, granted, lane)
        self._join(waiter, priority=work.priority(), arrived=arrived)
        self.pump()

        def promote(priority: int) -> None:
            assert waiter.turn is not None
            waiter.turn = waiter.lane.turns.promote(waiter.turn, priority)
            self.pump()

        try:
            with work.queueing(promote):
                await self._wait(waiter, since_s, patience_s)
        except BaseException:
            if granted.done():
                granted.result().release()
            else:
                self._leave(waiter)
            raise
        return granted.result()

    async def _wait(self, waiter: _Waiter, since_s: float, patience_s: float) -> None:
        while not waiter.granted.done():
            now_s = self.clock.now()
            error = waiter.lane.given_up(now_s, since_s=since_s, patience_s=patience_s)
            if error is not None:
                raise error
            left_s = max(since_s, waiter.lane.answered_s) + patience_s - now_s
            await asyncio.wait((waiter.granted,), timeout=max(left_s, LOOK_S))

    def _join(self, waiter: _Waiter, *, priority: int, arrived: int) -> None:
        lane = waiter.lane
        waiter.since_s = waiter.since_s or self.clock.now()
        waiter.turn = lane.turns.join(waiter, priority=priority, arrived=arrived)
        self._waiting.add(lane)
        lane.count_waiting(1)

    def _leave(self, waiter: _Waiter) -> None:
        assert waiter.turn is not None
        lane = waiter.lane
        lane.turns.leave(waiter.turn)
        lane.count_waiting(-1)
        if not lane.turns:
            self._waiting.discard(lane)

    def _grant(self, lane: _Lane, ask: Ask, now_s: float) -> Grant:
        count_bytes = ask.count_bytes or 0
        lane.take(count_bytes, now_s)
        return Grant(self, lane, count_bytes, now_s)

    def pump(self) -> None:
        """Grant whatever may leave now, and come again when more may."""
        if not self._waiting:
            return
        now_s = self.clock.now()
        while (turn := self._next(now_s)) is not None:
            waiter = turn.item
            waiter.lane.turns.serve(turn)
            self._leave(waiter)
            self._served += 1
            waiter.granted.set_result(self._grant(waiter.lane, waiter.ask, now_s))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay_s = min((lane.delay_s(now_s) for lane in self._waiting), default=inf)
        if delay_s < inf:
            delay_s = max(min(delay_s, LOOK_S), SHORTEST_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    def _next(self, now_s: float) -> Turn[_Waiter] | None:
        """Return who goes next of those whose limits all grant it. A lane that lacks one thing
        takes nothing of the others', so that nothing lies idle."""
        oldest = is_oldests_turn(self._served)
        best: Turn[_Waiter] | None = None
        for lane in self._waiting:
            if lane.delay_s(now_s) > 0.0:
                continue
            turn = lane.turns.oldest() if oldest else lane.turns.first()
            assert turn is not None, "a lane without waiters"
            if best is None or (turn < best if oldest else turn.goes_before(best)):
                best = turn
        return best

    # -- what it says of itself -----------------------------------------------------------------

    def report(self) -> list[BackendStatus]:
        """Return every limit that is configured or has met a request."""
        return self.statuses(self._buckets.values())

    def waits(self) -> list[BackendWait]:
        """Return who waits, and at which limit, the longest first."""
        now_s = self.clock.now()
        since: dict[tuple[str, str], list[float]] = {}
        for lane in self._waiting:
            bucket = lane.binding(now_s)
            for turn in lane.turns.all():
                since.setdefault((turn.item.identity, bucket), []).append(turn.item.since_s)
        found = [
            BackendWait(
                identity=identity, bucket=bucket, waiting=len(all_s), longest_s=now_s - min(all_s)
            )
            for (identity, bucket), all_s in since.items()
        ]
        return sorted(found, key=lambda one: -one.longest_s)

    def statuses(self, buckets: Iterable[Bucket]) -> list[BackendStatus]:
        """Return these that have something to tell, by scope and kind."""
        now_s = self.clock.now()
        found = [bucket.status(now_s) for bucket in buckets]
        return sorted(
            (one for one in found if one.limit or one.throttled or one.waiting or one.sent_per_s),
            key=lambda one: (one.scope, one.kind),
        )


def _names(url: str) -> tuple[str, ...]:
    """Return what a plan may call an origin: its identity, and that without account and server."""
    scheme, _, rest = url.partition("://")
    parts = [rest] if scheme in ("file", "local") else rest.split("@")
    return tuple(f"{scheme}://{'@'.join(parts[:end])}" for end in range(1, len(parts) + 1))


def _rest(origin: str, name: str) -> str | None:
    """Return the prefix of keys that a plan for ``origin`` is about in the origin called
    ``name``: "" for all of it, None for none."""
    text = origin.rstrip("/")
    if covers(text, name):
        return ""
    return text[len(name) + 1 :] if text.startswith(f"{name}/") else None


def _narrowness(plan: BackendPlan) -> tuple[bool, int]:
    return not plan.origin.startswith(ENDPOINT), len(plan.origin)
