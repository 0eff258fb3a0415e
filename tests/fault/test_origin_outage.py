"""An origin that is down, silent, refusing, cutting or slow: the right error in time, and what is
cached goes on being served. An outage is never "not found"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fault.origin_rig import Rig, eventually, kill_agent, origin_status, rig_of
from tiercache.errors import OriginThrottled, OriginUnavailable
from tiercache.model import Consistency, JobState, Kind, Listing
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault, FaultyProxy
from tiercache.units import MIB

# The deadline of 2 s (twice for what asks two things in turn), and a busy machine.
IN_TIME_S = 6.0
# "At once": no request is waited for. One patience (names.py) may pass at the first sign.
AT_ONCE_S = 3.0

BIG = object_bytes("big", 3 * MIB + 12345)
SMALL = object_bytes("small", 50_000)


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.put("big.bin", BIG)
        rig.put("dir/small.bin", SMALL)
        rig.put("cold.bin", SMALL)
        rig.put("unseen.bin", SMALL)
        yield rig


def down(proxy: FaultyProxy) -> None:
    proxy.refuse()


def black_hole(proxy: FaultyProxy) -> None:
    proxy.black_hole()


def status(code: int, retry_after_s: int | None = None) -> Callable[[FaultyProxy], None]:
    def inject(proxy: FaultyProxy) -> None:
        proxy.inject(Fault(respond_status=code, retry_after_s=retry_after_s))

    return inject


def resetting(proxy: FaultyProxy) -> None:
    proxy.inject(Fault(lose_answer=True))


def late(proxy: FaultyProxy) -> None:
    proxy.inject(Fault(first_byte_delay_s=20.0))


OUTAGES = {
    "down": (down, OriginUnavailable),
    "black hole": (black_hole, OriginUnavailable),
    "500": (status(500), OriginUnavailable),
    "503": (status(503), OriginThrottled),
    "503 retry after": (status(503, 2), OriginThrottled),
    "429": (status(429), OriginThrottled),
    "429 retry after": (status(429, 4), OriginThrottled),
    "resetting": (resetting, OriginUnavailable),
    "late": (late, OriginUnavailable),
}


def fails(call: Callable[[], object], kind: type[Exception]) -> float:
    """Run a call that must fail with ``kind``; return how long it took."""
    started = time.monotonic()
    with pytest.raises(OriginUnavailable) as caught:
        call()
    took = time.monotonic() - started
    assert isinstance(caught.value, kind), repr(caught.value)
    assert not isinstance(caught.value, FileNotFoundError)
    return took


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_is_the_right_error_in_time(rig: Rig, outage: str) -> None:
    inject, kind = OUTAGES[outage]
    ns = rig.namespace()
    assert ns.read("/m/big.bin") == BIG
    ns.read("/m/cold.bin", 0, 10)
    inject(rig.proxy)
    calls: list[Callable[[], object]] = [
        lambda: ns.stat("/m/unseen.bin"),
        lambda: ns.exists("/m/unseen.bin"),
        lambda: ns.exists("/m/never"),
        lambda: ns.list("/m"),
        lambda: ns.list("/m/dir", recursive=True),
        lambda: ns.read("/m/unseen.bin"),
        lambda: ns.open("/m/unseen.bin"),
        lambda: ns.read_many([("/m/unseen.bin", 0, None)]),
        lambda: ns.write("/m/new.bin", b"x"),
        lambda: ns.remove("/m/unseen.bin"),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        for took in pool.map(lambda call: fails(call, kind), calls):
            assert took < IN_TIME_S
    many = ns.read_many_or_errors([("/m/unseen.bin", 0, None), ("/m/big.bin", 0, 100)])
    assert isinstance(many[0], OriginUnavailable) and many[1] == BIG[:100]
    job = ns.prefetch(["/m/unseen.bin"])
    if kind is OriginThrottled:
        ended = job.wait(20)
        assert ended.state is JobState.FAILED and ended.error_class == "OriginThrottled"
    else:
        eventually(lambda: job.progress().state is JobState.PAUSED, what="the job pauses")
    # What is cached is there all the while.
    started = time.monotonic()
    assert ns.read("/m/big.bin") == BIG
    assert time.monotonic() - started < 0.5
    rig.proxy.heal()
    eventually(lambda: reads(ns, "/m/unseen.bin", SMALL), within_s=20, what="the origin is back")
    assert not ns.exists("/m/never")
    ended = job.wait(20)
    assert ended.state is (JobState.FAILED if kind is OriginThrottled else JobState.DONE)


def reads(ns: Namespace, path: str, data: bytes) -> bool:
    try:
        return ns.read(path) == data
    except OriginUnavailable:
        return False


def test_truncated_and_cut_answers_are_fetched_again(rig: Rig) -> None:
    ns = rig.namespace()
    rig.proxy.inject(Fault(methods=("GET",), truncate_after_bytes=1000, times=2))
    assert ns.read("/m/big.bin", 0, MIB) == BIG[:MIB]
    rig.proxy.inject(Fault(methods=("GET",), reset_after_bytes=1000, times=2))
    assert ns.read("/m/unseen.bin") == SMALL
    rig.proxy.inject(
        Fault(methods=("GET",), truncate_after_bytes=1000, truncate_stalls=True, times=1)
    )
    assert ns.read("/m/cold.bin") == SMALL


@pytest.mark.parametrize(
    "fault",
    [
        Fault(methods=("GET",), truncate_after_bytes=1000),
        Fault(methods=("GET",), reset_after_bytes=1000),
        Fault(methods=("GET",), truncate_after_bytes=1000, truncate_stalls=True),
    ],
    ids=["truncating", "resetting", "stalling"],
)
def test_an_origin_that_always_cuts_is_unavailable_and_leaves_no_byte(
    rig: Rig, fault: Fault
) -> None:
    ns = rig.namespace()
    assert ns.stat("/m/big.bin").size_bytes == len(BIG)
    rig.proxy.inject(fault)
    assert fails(lambda: ns.read("/m/big.bin"), OriginUnavailable) < IN_TIME_S
    assert fails(lambda: ns.read("/m/cold.bin"), OriginUnavailable) < IN_TIME_S
    assert ns.cached_bytes("/m/big.bin") == ns.cached_bytes("/m/cold.bin") == 0
    rig.proxy.heal()
    eventually(lambda: reads(ns, "/m/big.bin", BIG), within_s=20)


@pytest.mark.parametrize("outage", ["down", "black hole", "503"])
def test_cached_data_is_served_at_once_and_marked_stale(rig: Rig, outage: str) -> None:
    ns = rig.namespace(ttl_s=0.3)
    assert ns.read("/m/big.bin") == BIG
    assert ns.read("/m/dir/small.bin") == SMALL
    names = ns.list("/m")
    assert not names.stale and names.age_s < 0.3
    assert not ns.stat("/m/big.bin").stale
    OUTAGES[outage][0](rig.proxy)
    time.sleep(0.4)  # the ttl, in real time
    for _ in range(3):
        started = time.monotonic()
        assert ns.read("/m/big.bin") == BIG
        assert ns.read("/m/dir/small.bin") == SMALL
        assert ns.read_many([("/m/big.bin", 5, 5)]) == [BIG[5:10]]
        assert bytes(ns.view("/m/big.bin", 7, 9)) == BIG[7:16]
        with ns.open("/m/big.bin") as file:
            assert file.read(100) == BIG[:100]
        found = ns.stat("/m/big.bin")
        assert found.stale and found.age_s > 0.3 and found.size_bytes == len(BIG)
        assert ns.exists("/m/dir/small.bin")
        listing = ns.list("/m")
        assert listing == names and listing.stale and listing.age_s > 0.3
        assert ns.stat("/m/dir").kind is Kind.DIRECTORY
        assert time.monotonic() - started < AT_ONCE_S
    rig.put("big.bin", SMALL)
    rig.proxy.heal()
    eventually(lambda: not ns.stat("/m/big.bin").stale, within_s=20, what="fresh again")
    assert ns.read("/m/big.bin") == SMALL
    assert not ns.list("/m").stale


@pytest.mark.parametrize("outage", ["down", "black hole"])
def test_cached_data_is_served_after_a_restart_while_offline(rig: Rig, outage: str) -> None:
    ns = rig.namespace(ttl_s=0.3, embedded=False)
    assert ns.prefetch("/m").wait(30).state is JobState.DONE
    kill_agent(ns)
    rig.close(ns)
    OUTAGES[outage][0](rig.proxy)
    again = rig.namespace(ttl_s=0.3, embedded=False)
    started = time.monotonic()
    assert again.read("/m/big.bin") == BIG
    assert again.read("/m/dir/small.bin") == SMALL
    assert [entry.name for entry in again.list("/m/dir")] == ["small.bin"]
    assert {entry.name for entry in again.list("/m")} == {
        "big.bin", "cold.bin", "dir", "unseen.bin",
    }  # fmt: skip
    everything = again.list("/", recursive=True)
    assert len(everything) == 5 and everything.stale and 0.3 < everything.age_s < 60
    assert again.stat("/m/dir").is_dir
    assert again.exists("/m/cold.bin")
    assert time.monotonic() - started < 2 * AT_ONCE_S
    assert again.stat("/m/cold.bin").stale
    fails(lambda: again.exists("/m/not-known"), OriginUnavailable)


def test_an_immutable_mount_never_notices_an_outage(rig: Rig) -> None:
    ns = rig.namespace(Consistency.IMMUTABLE, ttl_s=0.0)
    assert ns.read("/m/big.bin") == BIG
    rig.proxy.black_hole()
    started = time.monotonic()
    assert ns.read("/m/big.bin") == BIG
    found = ns.stat("/m/big.bin")
    assert not found.stale and found.size_bytes == len(BIG)
    assert time.monotonic() - started < 0.5


def test_close_to_open_fails_offline_unless_told_to_serve_stale(rig: Rig) -> None:
    strict = rig.namespace(Consistency.CLOSE_TO_OPEN, name="strict")
    loose = rig.namespace(Consistency.CLOSE_TO_OPEN, name="loose", offline="stale")
    handle = strict.open("/m/big.bin")
    for ns in (strict, loose):
        assert ns.read("/m/big.bin") == BIG
        ns.list("/m")
    rig.proxy.refuse()
    # A handle that is open reads its version on.
    assert handle.read(100) == BIG[:100]
    for call in (
        lambda: strict.read("/m/big.bin"),
        lambda: strict.open("/m/big.bin"),
        lambda: strict.stat("/m/big.bin"),
        lambda: strict.list("/m"),
    ):
        assert fails(call, OriginUnavailable) < IN_TIME_S
    started = time.monotonic()
    assert loose.read("/m/big.bin") == BIG
    assert loose.stat("/m/big.bin").stale
    assert len(loose.list("/m")) == 4 and loose.list("/m").stale
    assert time.monotonic() - started < AT_ONCE_S
    handle.close()


def test_an_eventual_mount_can_be_told_to_fail_offline(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=1.0, offline="error")
    long = rig.namespace(ttl_s=3600.0, offline="error", name="long")
    for each in (ns, long):
        assert each.read("/m/big.bin") == BIG
        each.list("/m")
    rig.proxy.refuse()
    assert long.read("/m/big.bin") == BIG and not long.stat("/m/big.bin").stale
    assert len(long.list("/m")) == 4 and not long.list("/m").stale
    time.sleep(1.0)
    for call in (
        lambda: ns.read("/m/big.bin"),
        lambda: ns.open("/m/big.bin"),
        lambda: ns.stat("/m/big.bin"),
        lambda: ns.list("/m"),
    ):
        assert fails(call, OriginUnavailable) < IN_TIME_S


def test_the_breaker_opens_and_closes_and_status_shows_it(rig: Rig) -> None:
    ns = rig.namespace()
    ns.read("/m/big.bin")
    before = origin_status(ns)
    assert before["breaker"]["mode"] == "closed"
    assert before["requests"]["get"] >= 1 and before["requests"]["head"] >= 1
    assert before["bytes_read"] == len(BIG) and before["errors"] == 0
    rig.proxy.refuse()

    def is_open() -> bool:
        with pytest.raises(OriginUnavailable):
            ns.stat("/m/unseen.bin")
        return bool(origin_status(ns)["breaker"]["mode"] != "closed")

    eventually(is_open, within_s=15, what="the breaker opens")
    found = origin_status(ns)
    assert found["errors"] >= 5 and found["breaker"]["since_s"] > 0
    started = time.monotonic()
    with pytest.raises(OriginUnavailable, match="breaker"):
        ns.stat("/m/unseen.bin")
    assert time.monotonic() - started < 1.0
    rig.proxy.heal()
    eventually(lambda: reads(ns, "/m/unseen.bin", SMALL), within_s=20)
    assert origin_status(ns)["breaker"]["mode"] == "closed"
    assert origin_status(ns)["rejected"] >= 1


def test_throttling_is_counted_and_does_not_open_the_breaker(rig: Rig) -> None:
    ns = rig.namespace()
    # Of this object's: what is asked for the server's Retry-After is not counted among requests.
    rig.proxy.inject(Fault(path_contains="unseen.bin", respond_status=503, times=3))
    assert ns.read("/m/unseen.bin") == SMALL
    found = origin_status(ns)
    assert found["throttled"] == 3 and found["breaker"]["mode"] == "closed"
    assert found["errors"] == 0


@pytest.mark.parametrize("recursive", [False, True])
def test_a_listing_that_fails_midway_is_never_kept(rig: Rig, recursive: bool) -> None:
    for number in range(1100):  # two pages of 1,000 keys
        rig.put(f"many/{number:05}", b"")
    ns = rig.namespace(ttl_s=0.3)
    whole = {f"{number:05}" for number in range(1100)}
    # The second page is asked for with a token of the first.
    for marker in ("continuation-token",):
        rig.proxy.inject(Fault(methods=("GET",), path_contains=marker, respond_status=500))
    fails(lambda: ns.list("/m/many", recursive=recursive), OriginUnavailable)
    fails(lambda: ns.list("/m/many", recursive=recursive), OriginUnavailable)
    rig.proxy.heal()
    rig.proxy.drop_connections()
    found = eventually(lambda: listed(ns, "/m/many", recursive), within_s=20)
    assert found == whole
    # The same once more, with a whole listing to fall back on: it stays, whole.
    rig.proxy.inject(Fault(methods=("GET",), path_contains="continuation-token", lose_answer=True))
    time.sleep(0.4)
    for _ in range(3):
        assert listed(ns, "/m/many", recursive) == whole


def listed(ns: Namespace, path: str, recursive: bool) -> set[str]:
    try:
        return {entry.name for entry in ns.list(path, recursive=recursive)}
    except OriginUnavailable:
        return set()


def test_an_empty_listing_is_marked_stale_too(rig: Rig) -> None:
    ns = rig.namespace(prefix="nothing", ttl_s=0.05)
    assert ns.list("/m") == []
    rig.proxy.black_hole()
    marked: list[Listing] = []

    def is_stale() -> bool:
        marked.append(ns.list("/m"))
        return marked[-1].stale

    eventually(is_stale, what="it is stale")
    assert marked[-1] == [] and marked[-1].age_s > 0.05


def test_absence_is_never_served_stale(rig: Rig) -> None:
    ns = rig.namespace(negative_ttl_s=0.2)
    assert not ns.exists("/m/never")
    rig.proxy.refuse()
    time.sleep(0.3)
    fails(lambda: ns.exists("/m/never"), OriginUnavailable)
    rig.proxy.heal()
    eventually(lambda: is_absent(ns, "/m/never"), within_s=20)


def is_absent(ns: Namespace, path: str) -> bool:
    try:
        return not ns.exists(path)
    except OriginUnavailable:
        return False


@pytest.mark.parametrize("outage", ["black hole", "500", "503", "down"])
@pytest.mark.parametrize("cloud", ["azure", "gcs"])
def test_an_outage_of_another_cloud(
    request: pytest.FixtureRequest,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
    cloud: str,
    outage: str,
) -> None:
    server: ObjectServer = request.getfixturevalue(cloud)
    with rig_of(server, new_bucket(server), tmp_path) as rig:
        rig.put("big.bin", BIG)
        rig.put("unseen.bin", SMALL)
        ns = rig.namespace(ttl_s=0.3)
        assert ns.read("/m/big.bin") == BIG
        names = ns.list("/m")
        inject, kind = OUTAGES[outage]
        inject(rig.proxy)
        calls: list[Callable[[], object]] = [
            lambda: ns.read("/m/unseen.bin"),
            lambda: ns.exists("/m/never"),
            lambda: ns.list("/m", recursive=True),
        ]
        if cloud != "gcs":  # obstore asks the cloud for a token before any write
            calls.append(lambda: ns.write("/m/new", b"x"))
        with ThreadPoolExecutor(len(calls)) as pool:
            for took in pool.map(lambda call: fails(call, kind), calls):
                assert took < IN_TIME_S
        started = time.monotonic()
        assert ns.read("/m/big.bin") == BIG and ns.stat("/m/big.bin").stale
        assert ns.list("/m") == names
        assert time.monotonic() - started < AT_ONCE_S
        rig.proxy.heal()
        eventually(lambda: reads(ns, "/m/unseen.bin", SMALL), within_s=20)
