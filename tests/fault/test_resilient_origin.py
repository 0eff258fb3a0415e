"""Retries, deadline, breaker and the settling of lost answers, against SeaweedFS behind a proxy."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tiercache.clock import BootClock, FakeClock
from tiercache.errors import (
    AlreadyExists,
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    PreconditionFailed,
)
from tiercache.model import EndpointState, ObjectInfo
from tiercache.origins.backend import Backends
from tiercache.origins.endpoint import PROBE_KEY, Endpoint, Endpoints
from tiercache.origins.open import open_origin
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy.breaker import BreakerPolicy, Mode
from tiercache.policy.retry import RetryPolicy
from tiercache.ports import Buffer, IfAbsent, IfVersion
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault, FaultyProxy

pytestmark = pytest.mark.emulator

NEVER = BreakerPolicy(failing_s=1e9)


class Bench:
    """A bucket behind a proxy, and origins that reach it with little patience."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.proxy = FaultyProxy(server.endpoint).start()
        self.origins: list[ResilientOrigin] = []
        self.around_endpoints: list[Endpoint] = []

    def origin(
        self,
        *,
        deadline_s: float = 10.0,
        request_timeout_s: float = 5.0,
        concurrency: int = 64,
        endpoint: Endpoint | None = None,
    ) -> ResilientOrigin:
        clock = BootClock()
        profile = msgspec.structs.replace(
            self.server.profile(endpoint=self.proxy.url),
            connect_timeout_s=1.0,
            request_timeout_s=request_timeout_s,
        )
        found = ResilientOrigin(
            open_origin(self.server.url(self.bucket), profile, clock=clock),
            endpoint=endpoint
            or Endpoint("test", concurrency=concurrency, clock=clock, policy=NEVER),
            clock=clock,
            backends=Backends(clock=BootClock()),
            policy=RetryPolicy(deadline_s=deadline_s, base_s=0.01, cap_s=0.1),
            attempt_timeout_s=request_timeout_s,
        )
        self.origins.append(found)
        return found

    def around(self, inner: Any, *, deadline_s: float = 10.0) -> ResilientOrigin:
        """Return an origin that asks ``inner``, with limits and an endpoint of its own."""
        clock = BootClock()
        found = ResilientOrigin(
            inner,
            endpoint=Endpoint("inner", concurrency=64, clock=clock, policy=NEVER),
            backends=Backends(clock=clock),
            clock=clock,
            policy=RetryPolicy(deadline_s=deadline_s, base_s=0.01, cap_s=0.1),
            attempt_timeout_s=30.0,
        )
        self.around_endpoints.append(found.endpoint)
        return found

    def seed(self, key: str, data: bytes) -> None:
        self.server.put(self.bucket, key, data)

    def peek(self, key: str) -> bytes:
        return self.server.get(self.bucket, key)

    async def close(self) -> None:
        for origin in self.origins:
            await origin.close()
        for endpoint in self.around_endpoints:
            endpoint.rest()
        self.proxy.stop()


@pytest_asyncio.fixture
async def bench(s3: S3Server, new_bucket: Callable[[ObjectServer], str]) -> AsyncIterator[Bench]:
    found = Bench(s3, new_bucket(s3))
    yield found
    await found.close()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(respond_status=503, methods=("GET",), times=3),
        Fault(respond_status=500, times=3),
        Fault(respond_status=429, methods=("GET",), times=3),
        Fault(reset_after_bytes=10, times=3),
        Fault(truncate_after_bytes=10, times=3),
        Fault(lose_answer=True, times=3),
    ],
    ids=["503", "500", "429", "reset", "truncated", "lost"],
)
async def test_reads_ride_out_faults(bench: Bench, fault: Fault) -> None:
    bench.seed("k", b"x" * 1000)
    origin = bench.origin()
    bench.proxy.inject(fault)
    assert bytes((await origin.get("k")).data) == b"x" * 1000
    counts = origin.counters.snapshot()
    assert counts["retries"] == 3 and counts["requests_get"] == 4 and counts["calls"] == 1
    assert counts["throttles"] + counts["errors"] == 3 and counts["bytes_read"] == 1000


async def test_head_and_listing_are_retried(bench: Bench) -> None:
    bench.seed("l/k", b"1")
    origin = bench.origin()
    bench.proxy.inject(Fault(respond_status=503, times=2))
    assert (await origin.head("l/k")).size_bytes == 1
    for recursive in (True, False):
        bench.proxy.inject(Fault(respond_status=500, times=2))
        pages = [page async for page in origin.list("l/", recursive=recursive)]
        assert [info.key for page in pages for info in page.objects] == ["l/k"]


async def test_a_listing_that_breaks_midway_raises(bench: Bench) -> None:
    bench.server.put_many(bench.bucket, ((f"l/{n:05}", b"") for n in range(1500)))
    origin = bench.origin(deadline_s=1.0)
    pages = origin.list("l/", recursive=True)
    assert len((await anext(pages)).objects) == 1000
    bench.proxy.inject(Fault(respond_status=500))
    with pytest.raises(OriginUnavailable):
        await anext(pages)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(methods=("GET",), respond_status=503, times=3),
        Fault(methods=("GET",), truncate_after_bytes=10, times=3),
    ],
    ids=["503", "truncated"],
)
async def test_a_listing_goes_on_where_it_broke(bench: Bench, fault: Fault) -> None:
    names = [f"l/{n:05}" for n in range(2200)]
    bench.server.put_many(bench.bucket, ((name, b"1") for name in names))
    origin = bench.origin()
    found = []
    async for page in origin.list("l/", recursive=True):
        found += [info.key for info in page.objects]
        if len(found) in (1000, 2000):
            bench.proxy.inject(fault)
    assert found == names
    counts = origin.counters.snapshot()
    assert counts["retries"] == 6 and counts["throttles"] + counts["errors"] == 6
    # What had come was not asked for again.
    answered = [one for one in bench.proxy.exchanges("GET") if one.status == 200]
    assert len(answered) == 3 + (0 if fault.respond_status else 6)


async def test_what_is_no_outage_is_not_retried(bench: Bench) -> None:
    bench.seed("k", b"1")
    origin = bench.origin()
    with pytest.raises(NotFound):
        await origin.get("absent")
    with pytest.raises(PreconditionFailed):
        await origin.get("k", token='"other"')
    assert origin.counters.retries == 0 and origin.counters.requests_get == 2


async def test_the_deadline_holds(bench: Bench) -> None:
    bench.seed("k", b"1")
    origin = bench.origin(deadline_s=0.6, request_timeout_s=30.0)
    await origin.head("k")
    clock = BootClock()
    for break_it in (lambda: bench.proxy.inject(Fault(respond_status=503)), bench.proxy.black_hole):
        break_it()
        started_s = clock.now()
        with pytest.raises(OriginUnavailable):
            await origin.get("k")
        assert clock.now() - started_s < 1.5
    bench.proxy.heal()
    assert bytes((await origin.get("k")).data) == b"1"


async def test_retry_after_is_a_floor(bench: Bench) -> None:
    """Exact: nothing was asked before, so nothing is measured that a rate could come from."""
    inner = bench.origin()
    asked_s: list[float] = []

    class Advising:
        url = inner.url
        capabilities = inner.capabilities

        async def head(self, key: str) -> ObjectInfo:
            asked_s.append(BootClock().now())
            if len(asked_s) == 1:
                error = OriginThrottled("slow down")
                error.retry_after_s = 0.4
                raise error
            return await inner.head(key)

    bench.seed("k", b"1")
    origin = bench.around(Advising(), deadline_s=60.0)
    assert (await origin.head("k")).size_bytes == 1
    assert 0.4 <= asked_s[1] - asked_s[0] < 5.0
    asked_s.clear()
    with pytest.raises(OriginThrottled, match=r"left alone for 0\.[45] s"):
        await bench.around(Advising(), deadline_s=0.3).head("k")
    assert len(asked_s) == 1, "advice past the deadline is told at once"


async def test_in_flight_limit(bench: Bench) -> None:
    bench.seed("k", b"1")
    origin = bench.origin(concurrency=3)
    bench.proxy.inject(Fault(first_byte_delay_s=0.05))
    await asyncio.gather(*[origin.get("k") for _ in range(12)])
    assert bench.proxy.peak_in_flight == 3


async def test_cancelling_frees_the_gate(bench: Bench) -> None:
    bench.seed("k", b"1")
    origin = bench.origin(concurrency=1)
    bench.proxy.inject(Fault(first_byte_delay_s=30.0, times=1))
    stuck = asyncio.create_task(origin.get("k"))
    while not bench.proxy.exchanges():
        await asyncio.sleep(0.005)
    stuck.cancel()
    assert bytes((await origin.get("k")).data) == b"1"


async def test_breaker_opens_names_the_endpoint_and_heals(bench: Bench) -> None:
    bench.seed("k", b"1")
    clock = FakeClock()
    endpoints = Endpoints(clock=clock, policy=BreakerPolicy(failures=3, failing_s=1.0, open_s=5.0))
    endpoint = endpoints.of("store.example", concurrency=8)
    assert endpoints.of("store.example", concurrency=1) is endpoint
    one = bench.origin(deadline_s=0.3, endpoint=endpoint)
    other = bench.origin(deadline_s=0.3, endpoint=endpoint)
    await one.head("k")
    bench.proxy.refuse()
    for _ in range(2):
        with pytest.raises(OriginUnavailable):
            await one.head("k")
        clock.advance(2.0)
    assert endpoint.mode is Mode.OPEN
    bench.proxy.clear()
    with pytest.raises(OriginUnavailable, match=r"store.example is offline: .* for \d+ s"):
        await other.get("k")
    assert other.counters.rejected == 1 and other.counters.requests_get == 0
    bench.proxy.heal()
    with pytest.raises(OriginUnavailable):
        await other.head("k")  # still open: no caller is the one that finds out
    clock.advance(6.0)
    async with asyncio.timeout(5):
        await endpoint.back()
    asked = [exchange for exchange in bench.proxy.exchanges() if exchange.method == "HEAD"]
    assert [exchange.path for exchange in asked] == [f"/{bench.bucket}/{PROBE_KEY}"]
    assert (await other.head("k")).size_bytes == 1
    assert endpoint.status().state is EndpointState.DEGRADED


class Broken:
    """An origin whose credentials cannot be had."""

    async def head(self, key: str) -> ObjectInfo:
        raise OriginUnavailable("the credential endpoint does not answer")


class Empty:
    async def head(self, key: str) -> ObjectInfo:
        raise NotFound("no such object", path=key)


async def test_one_broken_origin_does_not_keep_its_endpoint_offline() -> None:
    policy = BreakerPolicy(failures=1, failing_s=0.0, open_s=0.05)
    endpoint = Endpoint("e", concurrency=1, clock=BootClock(), policy=policy)
    for origin in (Broken(), Empty(), Broken()):
        endpoint.attach(origin)
    endpoint.failed(OriginUnavailable("down"))
    assert endpoint.is_offline and endpoint.status().last_error == "down"
    async with asyncio.timeout(10):
        await endpoint.back()
    endpoint.rest()


async def test_reads_in_flight_end_when_it_goes_offline() -> None:
    """And nobody else's cancellation is taken for it."""
    policy = BreakerPolicy(failures=1, failing_s=0.0)
    endpoint = Endpoint("e", concurrency=4, clock=BootClock(), policy=policy)

    async def read() -> None:
        with endpoint.request(is_read=True):
            await asyncio.Event().wait()

    async def write() -> str:
        with endpoint.request(is_read=False):
            await asyncio.sleep(0.05)
        return "written"

    cut, cancelled = asyncio.create_task(read()), asyncio.create_task(read())
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    cancelled.cancel()
    endpoint.failed(OriginUnavailable("down"))
    with pytest.raises(OriginUnavailable, match="e is offline"):
        await cut
    assert cut.cancelling() == 0
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await writing == "written"
    endpoint.rest()


async def test_an_answer_keeps_the_breaker_closed(bench: Bench) -> None:
    clock = FakeClock()
    endpoint = Endpoint(
        "e", concurrency=8, clock=clock, policy=BreakerPolicy(failures=1, failing_s=0)
    )
    origin = bench.origin(deadline_s=1.0, endpoint=endpoint)
    bench.proxy.inject(Fault(respond_status=503))
    with pytest.raises(OriginThrottled):
        await origin.head("k")
    assert endpoint.mode is Mode.CLOSED


async def test_put_whose_answer_was_lost_is_settled(bench: Bench) -> None:
    origin = bench.origin()
    bench.proxy.inject(Fault(lose_answer=True, methods=("PUT",), times=1))
    info = await origin.put("k", b"mine", condition=IfAbsent(), write_id="w-1")
    assert bench.peek("k") == b"mine" and info.write_id == "w-1"
    assert info.token == (await origin.head("k")).token
    assert origin.counters.settled == 1 and origin.counters.requests_put == 1


async def test_settling_rides_out_faults_too(bench: Bench) -> None:
    origin = bench.origin()
    first = await origin.put("k", b"1")
    bench.proxy.inject(Fault(lose_answer=True, methods=("PUT",), times=1))
    bench.proxy.inject(Fault(respond_status=503, methods=("HEAD",), times=1))
    info = await origin.put("k", b"2", condition=IfVersion(first.token))
    assert bench.peek("k") == b"2" and info.token == (await origin.head("k")).token


async def test_own_success_is_no_conflict(bench: Bench) -> None:
    """The write is carried out late, after the HEAD that looked for it: the repeated PUT meets
    our own object."""
    inner = bench.origin()
    first = await inner.put("k", b"1")

    class Late:
        url = inner.url
        capabilities = inner.capabilities
        heads = puts = 0

        async def put(self, key: str, data: bytes, **how: Any) -> ObjectInfo:
            self.puts += 1
            if self.puts == 1:
                self.late = functools.partial(inner.put, key, data, **how)
                raise OriginUnavailable("lost")
            return await inner.put(key, data, **how)

        async def head(self, key: str) -> ObjectInfo:
            self.heads += 1
            found = await inner.head(key)
            if self.heads == 1:
                await self.late()
            return found

    late = Late()
    origin = bench.around(late)
    info = await origin.put("k", b"2", condition=IfVersion(first.token), write_id="w")
    assert (late.puts, late.heads) == (2, 2)
    assert info.write_id == "w" and bench.peek("k") == b"2"


async def test_a_put_that_never_arrived_is_repeated(bench: Bench) -> None:
    origin = bench.origin()
    first = await origin.put("k", b"1")
    bench.proxy.inject(Fault(respond_status=500, methods=("PUT",), times=2))
    await origin.put("k", b"22", condition=IfVersion(first.token))
    bench.proxy.inject(Fault(respond_status=500, methods=("PUT",), times=1))
    await origin.put("new", b"3", condition=IfAbsent(may_repeat=True))
    bench.proxy.inject(Fault(respond_status=500, methods=("PUT",), times=1))
    await origin.put("k", b"4444")
    assert (bench.peek("k"), bench.peek("new")) == (b"4444", b"3")


@pytest.mark.parametrize("may_repeat", [True, False])
async def test_what_was_created_and_removed_comes_back_only_where_it_may(
    bench: Bench, may_repeat: bool
) -> None:
    """The creation's answer is lost, and before anybody looks, another removes what it made."""
    origin = bench.origin(deadline_s=20.0)
    bench.proxy.inject(Fault(respond_status=503, methods=("HEAD",)))
    bench.proxy.inject(Fault(lose_answer=True, methods=("PUT",), times=1))
    condition = IfAbsent(may_repeat=may_repeat)
    putting = asyncio.ensure_future(origin.put("new", b"mine", condition=condition))
    while not bench.proxy.counts()["HEAD"]:
        await asyncio.sleep(0.01)
    bench.server.delete(bench.bucket, "new")
    bench.proxy.heal()
    if may_repeat:
        assert (await putting).size_bytes == 4 and bench.peek("new") == b"mine"
        return
    with pytest.raises(OriginUnavailable, match="outcome is unknown"):
        await putting
    assert bench.server.keys(bench.bucket) == []


async def test_a_true_conflict_stays_one(bench: Bench) -> None:
    bench.seed("k", b"theirs")
    origin = bench.origin()
    with pytest.raises(AlreadyExists):
        await origin.put("k", b"mine", condition=IfAbsent())
    with pytest.raises(PreconditionFailed):
        await origin.put("k", b"mine", condition=IfVersion('"other"'))
    assert bench.peek("k") == b"theirs" and origin.counters.requests_put == 2


async def test_an_outcome_nobody_knows_is_told(bench: Bench) -> None:
    bench.seed("k", b"theirs")
    origin = bench.origin()
    # Ours may have stood there before theirs: neither success nor conflict can be claimed.
    bench.proxy.inject(Fault(respond_status=500, methods=("PUT",), times=1))
    with pytest.raises(OriginUnavailable, match="outcome is unknown"):
        await origin.put("k", b"mine", condition=IfAbsent())
    bench.proxy.inject(Fault(lose_answer=True, methods=("PUT", "HEAD")))
    origin = bench.origin(deadline_s=0.3)
    with pytest.raises(OriginUnavailable, match="outcome is unknown"):
        await origin.put("k", b"mine")


async def test_throttled_writes_are_repeated(bench: Bench) -> None:
    origin = bench.origin()
    bench.proxy.inject(Fault(respond_status=503, methods=("PUT",), times=3))
    await origin.put("k", b"1", condition=IfAbsent())
    assert origin.counters.throttles == 3 and origin.counters.requests_head == 0


async def test_stream_whose_answer_was_lost_is_settled(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[Buffer]:
        for _ in range(4):
            yield bytes(3 << 20)

    origin = bench.origin()
    # The request that completes a multipart upload carries its id and no part number.
    bench.proxy.inject(Fault(lose_answer=True, methods=("POST",), path_contains="uploadId"))
    info = await origin.put_stream("big", chunks(), write_id="w-2")
    assert info.write_id == "w-2" and info.size_bytes == 12 << 20
    assert origin.counters.settled == 1


async def test_a_stream_that_fails_is_not_repeated(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[Buffer]:
        for _ in range(4):
            yield bytes(3 << 20)

    origin = bench.origin()
    bench.proxy.inject(Fault(respond_status=500, methods=("PUT",)))
    with pytest.raises(OriginUnavailable, match="outcome is unknown"):
        await origin.put_stream("big", chunks())
    bench.proxy.heal()
    with pytest.raises(NotFound):
        await origin.head("big")


async def test_delete_and_copy_survive_lost_answers(bench: Bench) -> None:
    bench.seed("k", b"1")
    origin = bench.origin()
    bench.proxy.inject(Fault(lose_answer=True, methods=("PUT",), times=1))
    await origin.copy("k", "copy")
    assert bench.peek("copy") == b"1"
    bench.proxy.inject(Fault(lose_answer=True, methods=("DELETE",), times=1))
    await origin.delete("k")
    with pytest.raises(NotFound):
        await origin.head("k")
    assert origin.counters.requests_delete == 1
