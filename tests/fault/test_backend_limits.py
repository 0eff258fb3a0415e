"""Limits of accounts, buckets and prefixes, and of servers that put off, on SeaweedFS behind a
proxy that counts what it was asked. Rates are asserted with wide margins: the exact bar is the
benchmark ``qos-backend``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tiercache import work
from tiercache.agent.memory import MemoryBudget
from tiercache.clock import BootClock, FakeClock
from tiercache.errors import OriginThrottled
from tiercache.origins import obstore_origin
from tiercache.origins.backend import Ask, Grant
from tiercache.origins.bucket import Kind
from tiercache.origins.endpoint import Endpoints
from tiercache.origins.open import open_origin
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy.adaptive import PAUSE_MOST_S
from tiercache.policy.qos import BackendPlan
from tiercache.policy.retry import RetryPolicy
from tiercache.testing.network import Fault, NetworkProfile
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import FaultyProxy
from tiercache.work import Work

pytestmark = pytest.mark.emulator

LIMIT = 60.0  # far below what even a busy machine asks for
READERS = 32
BODY = bytes(16 << 10)


class Bench:
    """Buckets behind one proxy, whose origins share one endpoint."""

    def __init__(self, server: S3Server, new_bucket: Callable[[], str]) -> None:
        self.server = server
        self.new_bucket = new_bucket
        self.proxy = FaultyProxy(server.endpoint).start()
        self.clock = BootClock()
        self.endpoints = Endpoints(clock=self.clock)
        self.origins: list[ResilientOrigin] = []

    def origin(
        self, *keys: str, deadline_s: float = 30.0, concurrency: int = 64
    ) -> ResilientOrigin:
        """Return the origin of a new bucket with these objects."""
        bucket = self.new_bucket()
        for key in keys:
            self.server.put(bucket, key, BODY)
        profile = msgspec.structs.replace(self.server.profile(endpoint=self.proxy.url))
        found = ResilientOrigin(
            open_origin(self.server.url(bucket), profile, clock=self.clock),
            endpoint=self.endpoints.of("proxied", concurrency=concurrency),
            backends=self.endpoints.backends,
            clock=self.clock,
            policy=RetryPolicy(deadline_s=deadline_s, base_s=0.01, cap_s=0.1),
            attempt_timeout_s=10.0,
        )
        self.origins.append(found)
        return found

    def plan(self, *plans: BackendPlan) -> None:
        self.endpoints.limit(plans)

    def asked(self, begin_s: float, end_s: float, *, taken: bool = False, path: str = "") -> float:
        """Return GETs a second that arrived then."""
        found = [
            exchange
            for exchange in self.proxy.exchanges("GET", path)
            if begin_s <= exchange.started_s < end_s
            and (exchange.status in (200, 206) or not taken)
        ]
        return len(found) / (end_s - begin_s)

    async def close(self) -> None:
        for origin in self.origins:
            await origin.close()
        self.proxy.stop()


@pytest_asyncio.fixture
async def bench(s3: S3Server, new_bucket: Callable[[ObjectServer], str]) -> AsyncIterator[Bench]:
    found = Bench(s3, lambda: new_bucket(s3))
    yield found
    await found.close()


async def busy(read: Callable[[], Awaitable[object]], *, for_s: float, readers: int) -> int:
    """Let so many readers read on and on; return how many reads there were. Any error is raised."""
    end_s = time.monotonic() + for_s
    count = 0

    async def on_and_on() -> None:
        nonlocal count
        while time.monotonic() < end_s:
            await read()
            count += 1

    await asyncio.gather(*(on_and_on() for _ in range(readers)))
    return count


def name_of(origin: ResilientOrigin) -> str:
    """Return what a plan calls its bucket."""
    return origin.url.partition("@")[0]


# -- servers that put off -------------------------------------------------------------------------


async def test_the_rate_falls_below_the_servers_and_comes_back(bench: Bench) -> None:
    origin = bench.origin("k")
    bench.proxy.set_network(NetworkProfile(name="limited", source="test", requests_per_s=LIMIT))
    begun_s = time.monotonic()
    await busy(lambda: origin.get("k"), for_s=7.0, readers=READERS)
    slowest = min(bench.asked(begun_s + n / 4, begun_s + n / 4 + 0.5) for n in range(2, 12))
    assert slowest < 1.2 * LIMIT
    asked = bench.asked(begun_s + 3, begun_s + 7)
    taken = bench.asked(begun_s + 3, begun_s + 7, taken=True)
    assert 0.5 * LIMIT < taken < 1.2 * LIMIT and asked < 1.25 * taken
    (limit,) = origin.snapshot()["limits"]
    assert limit["scope"] == "endpoint:proxied" and limit["kind"] == "get"
    assert limit["limit"] is None and 0.3 * LIMIT < limit["rate"] < 3 * LIMIT
    assert limit["throttled"] == origin.counters.throttles > 0 and limit["waiting"] == 0


async def test_advice_is_kept(bench: Bench) -> None:
    """obstore hides the header; the SDK is asked for it, and soon all keep to it."""
    origin = bench.origin("k")
    await origin.get("k")
    bench.proxy.clear()
    bench.proxy.inject(Fault(respond_status=429, retry_after_s=2))
    first = asyncio.create_task(origin.get("k"))
    async with asyncio.timeout(20):
        while not (limits := origin.snapshot()["limits"]) or limits[0]["paused_s"] < 1.0:
            await asyncio.sleep(0.005)
    bench.proxy.heal()
    begun_s, pause_s = time.monotonic(), limits[0]["paused_s"]
    await asyncio.gather(first, *(origin.get("k") for _ in range(5)))
    times_s = [one.started_s for one in bench.proxy.exchanges("GET") if one.status == 200]
    assert len(times_s) == 6 and min(times_s) >= begun_s + pause_s - 0.05


async def test_advice_of_a_day_is_forgotten_after_a_minute(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again when something is put off, and not before."""
    origin = bench.origin("k", deadline_s=3.0)
    await origin.get("k")
    bench.proxy.inject(Fault(respond_status=503, retry_after_s=86400))
    await asyncio.gather(*(origin.get("k") for _ in range(20)), return_exceptions=True)
    raw: Any = origin.raw
    await raw._advice
    bench.proxy.heal()
    later = time.monotonic() + 2 * PAUSE_MOST_S
    monkeypatch.setattr(obstore_origin, "time", SimpleNamespace(monotonic=lambda: later))
    bench.proxy.inject(Fault(respond_status=503, times=1))
    with pytest.raises(OriginThrottled) as caught:
        await raw.get("k")
    assert caught.value.retry_after_s == 0.0


async def test_whoever_waits_for_a_server_that_takes_nothing_is_told_in_time(bench: Bench) -> None:
    origin = bench.origin("k", deadline_s=3.0)
    bench.proxy.inject(Fault(respond_status=503))
    begun_s = time.monotonic()
    ends = await asyncio.gather(*(origin.get("k") for _ in range(50)), return_exceptions=True)
    assert all(isinstance(end, OriginThrottled) for end in ends)
    assert 2.5 < time.monotonic() - begun_s < 15.0
    assert bench.asked(begun_s + 2.5, begun_s + 3.0) < 100
    bench.proxy.heal()
    assert len((await origin.get("k")).data) == len(BODY)


# -- configured limits ----------------------------------------------------------------------------


async def test_whoever_waits_for_a_place_is_told_of_no_refusal_of_long_ago() -> None:
    """As behind writes that take minutes: a 503 of yesterday says nothing of the server now."""
    clock = FakeClock()
    endpoints = Endpoints(clock=clock)
    server = endpoints.of("busy", concurrency=1)
    meter = endpoints.backends.of(url="s3://b", server=server, scope="s3://b")

    async def admitted() -> Grant:
        arrived, now_s = endpoints.backends.arrive(), clock.now()
        ask = Ask(Kind.GET, "k", 0)
        return await meter.admitted(ask, arrived=arrived, since_s=now_s, patience_s=0.5)

    long_ago = await admitted()
    long_ago.throttled(OriginThrottled("slow down"))
    clock.advance(3600.0)
    waiting = asyncio.create_task(admitted())
    await asyncio.sleep(0.1)
    clock.advance(10.0)
    done, _ = await asyncio.wait((waiting,), timeout=1.0)
    assert not done
    long_ago.release()
    (await waiting).release()


async def test_a_limit_of_a_bucket_holds_and_goes_when_it_is_taken_back(bench: Bench) -> None:
    origin = bench.origin("k")
    bench.plan(BackendPlan(origin=name_of(origin), get=40.0))
    count = await busy(lambda: origin.get("k"), for_s=3.0, readers=8)
    assert 0.7 * 40 * 3 <= count <= 1.03 * 40 * 3 + 12  # the last of each reader came after
    bench.plan()
    assert await busy(lambda: origin.get("k"), for_s=1.0, readers=8) > 80
    bench.plan(BackendPlan(origin=name_of(origin), get=0.5))
    reading = [asyncio.ensure_future(origin.get("k")) for _ in range(20)]
    await asyncio.sleep(0.1)
    (told,) = (one for one in bench.endpoints.limits() if one.limit)
    assert told.limit == 0.5 and told.waiting >= 18
    bench.plan()  # those that wait go by what holds now
    async with asyncio.timeout(10):
        await asyncio.gather(*reading)


async def test_a_limit_of_a_prefix_is_for_what_is_below_it(bench: Bench) -> None:
    origin = bench.origin("slow/k", "slower/k")
    bench.plan(
        BackendPlan(origin=f"{name_of(origin)}/slow", get=20.0),
        BackendPlan(origin=name_of(origin), get=1e6),
    )
    begun_s = time.monotonic()
    slow, other = await asyncio.gather(
        busy(lambda: origin.get("slow/k"), for_s=2.0, readers=4),
        busy(lambda: origin.get("slower/k"), for_s=2.0, readers=4),
    )
    assert slow <= 1.03 * 20 * (time.monotonic() - begun_s) + 3
    assert other > 3 * slow


async def test_all_origins_of_an_endpoint_share_its_limit(bench: Bench) -> None:
    one, other = bench.origin("k"), bench.origin("k")
    bench.plan(BackendPlan(origin="endpoint:proxied", get=50.0))
    begun_s = time.monotonic()
    counts = await asyncio.gather(
        busy(lambda: one.get("k"), for_s=2.0, readers=4),
        busy(lambda: other.get("k"), for_s=2.0, readers=4),
    )
    assert sum(counts) <= 1.03 * 50 * (time.monotonic() - begun_s) + 5
    assert min(counts) > 0.3 * sum(counts)


async def test_bytes_are_limited_whether_announced_or_not(bench: Bench) -> None:
    origin = bench.origin("k")
    bench.plan(BackendPlan(origin="s3://", bytes=1e6))
    for read in (lambda: origin.get("k", start=0, end=len(BODY)), lambda: origin.get("k")):
        begun_s = time.monotonic()
        count = await busy(read, for_s=2.0, readers=4)
        passed_s = time.monotonic() - begun_s
        # A tenth of a second may come at once, and what was not announced is owed afterwards.
        assert count * len(BODY) <= 1.05e6 * passed_s + 1e5 + 4 * len(BODY)
        assert count * len(BODY) >= 0.6e6 * passed_s
    await origin.head("k")


async def test_a_streams_bytes_and_parts_wait_too(bench: Bench) -> None:
    origin = bench.origin()
    bench.plan(BackendPlan(origin=name_of(origin), bytes=8e6, put=1.5))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(1 << 20)

    begun_s = time.monotonic()
    assert (await origin.put_stream("s", chunks())).size_bytes == 10 << 20
    # 10 MiB are 1.3 s, less what came at once and the last piece, which is owed.
    assert time.monotonic() - begun_s > 0.9


# -- the queue ------------------------------------------------------------------------------------


async def test_a_miss_of_a_higher_class_overtakes_queued_prefetches(bench: Bench) -> None:
    origin = bench.origin("k", concurrency=4)
    await origin.get("k")
    bench.proxy.inject(Fault(first_byte_delay_s=0.02))
    done: list[str] = []

    async def read(name: str, priority: int) -> None:
        work.current.set(Work(identity=name, priority=priority))
        await origin.get("k")
        done.append(name)

    prefetches = [asyncio.create_task(read("prefetch", -1)) for _ in range(100)]
    while not done:
        await asyncio.sleep(0.005)
    before = len(done)
    await asyncio.create_task(read("training", 10))
    # Those in flight, and one more round of them for a late machine.
    assert done.index("training") - before <= 8
    await asyncio.gather(*prefetches)


async def test_what_urgent_work_has_joined_is_urgent_too(bench: Bench) -> None:
    """A prefetch has asked for it already, and is far back in the queue."""
    origin = bench.origin("k", concurrency=2)
    await origin.get("k")
    bench.proxy.inject(Fault(first_byte_delay_s=0.02))
    done: list[str] = []

    async def read(name: str, priority: int) -> None:
        work.current.set(Work(identity=name, priority=priority))
        await origin.get("k")
        done.append(name)

    prefetches = [asyncio.create_task(read("prefetch", -1)) for _ in range(60)]
    shared = asyncio.create_task(read("shared", -1))
    while not done:
        await asyncio.sleep(0.005)
    before = len(done)

    async def join() -> None:
        work.current.set(Work(identity="training", priority=10))
        work.hurry(shared)
        await shared

    await asyncio.create_task(join())
    assert done.index("shared") - before <= 6
    await asyncio.gather(*prefetches)


async def test_low_priority_goes_on_under_any_load(bench: Bench) -> None:
    origin = bench.origin("k", concurrency=2)
    token = work.current.set(Work(priority=5))
    loading = asyncio.create_task(busy(lambda: origin.get("k"), for_s=2.0, readers=16))
    work.current.reset(token)
    await asyncio.sleep(0.2)
    begun_s = time.monotonic()
    for _ in range(3):
        await origin.get("k")
    assert time.monotonic() - begun_s < 1.5 and not loading.done()
    await loading


async def test_whoever_is_cancelled_leaves_nothing_behind(bench: Bench) -> None:
    origin = bench.origin("k", concurrency=2)
    bench.plan(BackendPlan(origin=name_of(origin), get=1000.0))
    bench.proxy.inject(Fault(first_byte_delay_s=0.05))
    for wait_s in (0.0, 0.01, 0.06, 0.11):
        reading = [asyncio.create_task(origin.get("k")) for _ in range(20)]
        await asyncio.sleep(wait_s)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    bench.proxy.heal()
    assert not any(limit.waiting for limit in bench.endpoints.limits())
    async with asyncio.timeout(5):
        await asyncio.gather(*(origin.get("k") for _ in range(20)))


async def test_memory_is_given_by_priority_and_a_large_request_is_not_starved() -> None:
    memory = MemoryBudget(100)
    await memory.acquire(100)
    order: list[str] = []

    async def take(name: str, count: int, priority: int) -> None:
        work.current.set(Work(priority=priority))
        async with memory.hold(count):
            order.append(name)
            await asyncio.sleep(0)

    asked = [("low", 60, 0), ("large", 90, 1), ("small", 10, 1), ("high", 60, 5)]
    tasks = [asyncio.create_task(take(*one)) for one in asked]
    tasks.append(gone := asyncio.create_task(take("gone", 100, 9)))
    await asyncio.sleep(0)
    gone.cancel()
    memory.release(100)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["high", "large", "small", "low"] and memory.held_bytes == 0


async def test_memory_goes_to_whom_urgent_work_waits_for() -> None:
    memory = MemoryBudget(10)
    await memory.acquire(10)
    order: list[str] = []

    async def take(name: str) -> None:
        async with memory.hold(10):
            order.append(name)

    tasks = [asyncio.create_task(take(name)) for name in ("first", "joined", "last")]
    early = asyncio.create_task(take("joined before it queued"))
    work.current.set(Work(priority=3))
    work.hurry(early)
    await asyncio.sleep(0)
    work.hurry(tasks[1])
    memory.release(10)
    await asyncio.gather(early, *tasks)
    assert order == ["joined", "joined before it queued", "first", "last"]


async def test_memory_of_the_cancelled_comes_back_at_any_moment() -> None:
    memory = MemoryBudget(10)

    async def take(count: int) -> None:
        async with memory.hold(count):
            await asyncio.sleep(0)

    for turns in range(8):
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(take(3 + number % 8)) for number in range(12)
        ]
        for number, task in enumerate(tasks):
            if number % 3 == turns % 3:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert memory.held_bytes == 0
    await memory.acquire(10)
    memory.release(10)
