"""Freshness, counted at the origin: what is asked, how often, and what must not be asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fault.origin_rig import Rig, eventually, in_other_process, rig_of
from tiercache.errors import AlreadyExists, NotFound
from tiercache.model import Consistency, Kind
from tiercache.namespace import Namespace
from tiercache.policy.freshness import fresh_until_s, listing_fresh_until_s, may_serve_stale
from tiercache.settings import MountSettings
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import MIB

INF = float("inf")
TTL_S = 0.3
# The ttl, one request, and a machine that is busy with other tests.
SEEN_WITHIN_S = 3.0
DATA = object_bytes("fresh", 2 * MIB)


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}
        rig.put("object", DATA)
        yield rig


def mount(consistency: Consistency, *, offline: str | None = None) -> MountSettings:
    return MountSettings(
        path="/m",
        origin="s3://bucket",
        consistency=consistency,
        ttl_s=60.0,
        negative_ttl_s=5.0,
        offline=offline,
    )


IMMUTABLE = mount(Consistency.IMMUTABLE)
EVENTUAL = mount(Consistency.EVENTUAL)
CLOSE_TO_OPEN = mount(Consistency.CLOSE_TO_OPEN)


@pytest.mark.parametrize(
    ("settings", "kind", "validated_s", "same_boot", "until_s"),
    [
        (IMMUTABLE, Kind.FILE, 100.0, True, INF),
        (IMMUTABLE, Kind.FILE, 100.0, False, INF),
        (IMMUTABLE, Kind.FILE, -INF, True, -INF),
        (IMMUTABLE, Kind.ABSENT, 100.0, True, 105.0),
        (IMMUTABLE, Kind.DIRECTORY, 100.0, True, 160.0),
        (EVENTUAL, Kind.FILE, 100.0, True, 160.0),
        (EVENTUAL, Kind.FILE, 100.0, False, -INF),
        (EVENTUAL, Kind.ABSENT, 100.0, True, 105.0),
        (EVENTUAL, Kind.ABSENT, 100.0, False, -INF),
        (EVENTUAL, Kind.DIRECTORY, 100.0, True, 160.0),
        (EVENTUAL, Kind.FILE, -INF, True, -INF),
        (CLOSE_TO_OPEN, Kind.FILE, 100.0, True, -INF),
        (CLOSE_TO_OPEN, Kind.ABSENT, 100.0, True, -INF),
        (CLOSE_TO_OPEN, Kind.DIRECTORY, 100.0, True, -INF),
    ],
)
def test_until_when_a_name_is_fresh(
    settings: MountSettings, kind: Kind, validated_s: float, same_boot: bool, until_s: float
) -> None:
    found = fresh_until_s(settings, kind=kind, validated_s=validated_s, same_boot=same_boot)
    assert found == until_s


@pytest.mark.parametrize(
    ("settings", "same_boot", "until_s"),
    [
        (IMMUTABLE, True, 160.0),
        (IMMUTABLE, False, -INF),
        (EVENTUAL, True, 160.0),
        (EVENTUAL, False, -INF),
        (CLOSE_TO_OPEN, True, -INF),
    ],
)
def test_until_when_a_listing_is_fresh(
    settings: MountSettings, same_boot: bool, until_s: float
) -> None:
    assert listing_fresh_until_s(settings, validated_s=100.0, same_boot=same_boot) == until_s


@pytest.mark.parametrize(
    ("settings", "kind", "may"),
    [
        (IMMUTABLE, Kind.FILE, True),
        (EVENTUAL, Kind.FILE, True),
        (EVENTUAL, Kind.DIRECTORY, True),
        (EVENTUAL, Kind.ABSENT, False),
        (IMMUTABLE, Kind.ABSENT, False),
        (CLOSE_TO_OPEN, Kind.FILE, False),
        (mount(Consistency.CLOSE_TO_OPEN, offline="stale"), Kind.FILE, True),
        (mount(Consistency.CLOSE_TO_OPEN, offline="stale"), Kind.ABSENT, False),
    ],
)
def test_what_may_be_served_stale(settings: MountSettings, kind: Kind, may: bool) -> None:
    assert may_serve_stale(settings, kind) is may


def test_a_hot_open_costs_no_request(rig: Rig) -> None:
    ns = rig.namespace()
    assert ns.read("/m/object") == DATA
    ns.list("/m")
    assert not ns.exists("/m/never")
    rig.proxy.clear()
    for _ in range(100):
        with ns.open("/m/object") as file:
            assert file.read(10) == DATA[:10]
        assert ns.stat("/m/object").size_bytes == len(DATA)
        assert ns.exists("/m/object") and not ns.exists("/m/never")
        ns.list("/m")
    assert rig.proxy.counts() == {}


def test_an_unchanged_object_costs_one_head_and_no_data(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=TTL_S)
    assert ns.read("/m/object") == DATA
    time.sleep(TTL_S)
    rig.proxy.clear()
    assert ns.read("/m/object") == DATA
    assert rig.proxy.counts() == {"HEAD": 1}


def test_a_change_is_seen_within_the_ttl(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=TTL_S, negative_ttl_s=TTL_S)
    for number in range(3):
        data = object_bytes(number, 100_000 + number)
        rig.put("object", data)
        eventually(lambda data=data: ns.read("/m/object") == data, within_s=SEEN_WITHIN_S)  # type: ignore[misc]  # bound now
        assert ns.stat("/m/object").size_bytes == len(data)
    assert not ns.exists("/m/new")
    rig.put("new", b"x")
    eventually(lambda: ns.exists("/m/new"), within_s=SEEN_WITHIN_S)
    eventually(lambda: len(ns.list("/m")) == 2, within_s=SEEN_WITHIN_S)
    rig.delete("new")
    eventually(lambda: not ns.exists("/m/new"), within_s=SEEN_WITHIN_S)
    with pytest.raises(NotFound):
        ns.read("/m/new")
    eventually(lambda: len(ns.list("/m")) == 1, within_s=SEEN_WITHIN_S)


def test_within_the_ttl_nothing_is_asked_again(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=3600.0, negative_ttl_s=3600.0)
    ns.read("/m/object")
    assert not ns.exists("/m/new")
    rig.put("object", b"changed")
    rig.put("new", b"x")
    rig.proxy.clear()
    assert ns.read("/m/object") == DATA and not ns.exists("/m/new")
    assert rig.proxy.counts() == {}
    assert ns.invalidate("/m") >= 2
    assert ns.read("/m/object") == b"changed" and ns.exists("/m/new")


def test_an_immutable_binding_is_never_asked_for_again(rig: Rig) -> None:
    ns = rig.namespace(Consistency.IMMUTABLE, ttl_s=0.0, negative_ttl_s=0.0)
    assert ns.read("/m/object") == DATA
    rig.proxy.clear()
    for _ in range(20):
        assert ns.read("/m/object", 5, 5) == DATA[5:10]
        ns.open("/m/object").close()
        ns.stat("/m/object")
    assert rig.proxy.counts() == {}
    # A name that is not bound yet is no promise: it may appear.
    assert not ns.exists("/m/new")
    rig.put("new", b"x")
    assert ns.exists("/m/new")


def test_close_to_open_costs_one_head_an_open(rig: Rig) -> None:
    ns = rig.namespace(Consistency.CLOSE_TO_OPEN)
    assert ns.read("/m/object") == DATA
    rig.proxy.clear()
    with ns.open("/m/object") as file:
        for _ in range(50):
            file.seek(0)
            assert file.read(1000) == DATA[:1000]
    assert rig.proxy.counts() == {"HEAD": 1}
    for _ in range(9):
        ns.open("/m/object").close()
    assert rig.proxy.counts() == {"HEAD": 10}


@pytest.mark.parametrize("consistency", [Consistency.EVENTUAL, Consistency.CLOSE_TO_OPEN])
def test_many_who_revalidate_one_name_share_a_request(rig: Rig, consistency: Consistency) -> None:
    ns = rig.namespace(consistency, ttl_s=TTL_S)
    others = [Namespace(ns.settings) for _ in range(4)]
    rig.opened.extend(others)
    for each in (ns, *others):
        assert each.read("/m/object", 0, 10) == DATA[:10]
    time.sleep(TTL_S)
    rig.proxy.clear()
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.5))
    with ThreadPoolExecutor(40) as pool:
        reads = [
            pool.submit(each.read, "/m/object", 0, 10) for _ in range(8) for each in (ns, *others)
        ]
        assert all(read.result() == DATA[:10] for read in reads)
    counts = rig.proxy.counts()
    # Under close-to-open those who come while a HEAD is out share the next one. With times to
    # live shorter than a HEAD takes, so do the late of the others.
    assert set(counts) == {"HEAD"} and counts["HEAD"] <= 3


def test_names_that_expire_during_a_read_of_many_are_asked_for_once(rig: Rig) -> None:
    """What was current when the call asked serves the call, though answers take longer than the
    time to live."""
    keys = [f"expired/{number}" for number in range(20)]
    for key in keys:
        rig.put(key, key.encode())
    ns = rig.namespace(ttl_s=TTL_S)
    items = [(f"/m/{key}", 0, None) for key in keys]
    expected = [key.encode() for key in keys]
    assert ns.read_many(items) == expected
    time.sleep(TTL_S)
    rig.proxy.clear()
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=1.2 * TTL_S))
    assert ns.read_many(items) == expected
    assert rig.proxy.counts() == {"HEAD": len(keys)}


def test_age_counts_from_when_the_request_was_sent(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=1.0)
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.7, times=1))
    started = time.monotonic()
    age_s = ns.stat("/m/object").age_s
    assert 0.6 < age_s <= time.monotonic() - started
    rig.put("object", b"changed")
    # Fresh for the 0.3 s that are left of the second, not for a second from the answer on.
    eventually(lambda: ns.read("/m/object") == b"changed")
    assert time.monotonic() - started < 1.7


@pytest.mark.parametrize(
    "consistency", [Consistency.EVENTUAL, Consistency.CLOSE_TO_OPEN, Consistency.STRONG]
)
def test_many_names_past_their_time_are_asked_for_at_once(
    rig: Rig, consistency: Consistency
) -> None:
    names = [f"many/{number:02}" for number in range(40)]
    for name in names:
        rig.put(name, name.encode())
    ns = rig.namespace(consistency, ttl_s=TTL_S, profile=rig.profile(concurrency=8))
    items = [(f"/m/{name}", 0, None) for name in names]
    expected = [name.encode() for name in names]
    assert ns.read_many(items) == expected
    time.sleep(TTL_S)
    rig.proxy.clear()
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.05))
    assert ns.read_many(items) == expected
    assert rig.proxy.counts() == {"HEAD": len(names)}, "no data, and nothing twice"
    assert 4 <= rig.proxy.peak_in_flight <= 8


def test_many_names_of_one_directory_are_asked_for_by_one_list(rig: Rig) -> None:
    names = [f"many/{number:03}" for number in range(100)]
    for name in names:
        rig.put(name, name.encode())
    # A busy server that takes its time is waited for, not made do without.
    ns = rig.namespace(ttl_s=1.0, offline="error")
    items = [(f"/m/{name}", 0, None) for name in names]
    expected = [name.encode() for name in names]
    assert len(ns.list("/m/many")) == len(names)
    assert ns.read_many(items) == expected
    rig.put("many/003", b"changed")
    rig.delete("many/004")
    time.sleep(1.0)
    rig.proxy.clear()
    answers = ns.read_many_or_errors(items)
    assert answers[3] == b"changed" and isinstance(answers[4], NotFound)
    assert answers[:3] + answers[5:] == expected[:3] + expected[5:]
    heads, lists = rig.proxy.exchanges("HEAD"), rig.proxy.exchanges("GET", "list-type")
    # One listing; for what it lacks a HEAD, and a listing for whether that is a directory.
    assert len(heads) == 1 and len(lists) == 2
    (changed,) = [one for one in rig.proxy.exchanges("GET") if one not in lists]
    assert changed.path.endswith("/many/003"), "no data of what has not changed"
    # A handful is asked for one by one.
    time.sleep(1.0)
    rig.proxy.clear()
    assert ns.read_many(items[5:15]) == expected[5:15]
    assert rig.proxy.counts() == {"HEAD": 10}


def test_a_slow_head_keeps_nobody_from_a_change(rig: Rig) -> None:
    """Who asks a ttl after a HEAD was sent that is still out must not be told what it saw."""
    ns = rig.namespace(ttl_s=TTL_S)
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.8, times=1))
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(ns.stat, "/m/object")
        eventually(lambda: rig.proxy.exchanges("HEAD"))
        time.sleep(0.1)  # the server has answered; its answer is on its way
        rig.put("object", b"changed")
        time.sleep(TTL_S)
        late = pool.submit(ns.stat, "/m/object")
        assert late.result().size_bytes == 7
        assert early.result().size_bytes in (len(DATA), 7)


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


@pytest.mark.parametrize("consistency", [Consistency.CLOSE_TO_OPEN, Consistency.EVENTUAL])
def test_a_failed_write_does_not_make_others_see_what_it_called_into_doubt(
    rig: Rig, consistency: Consistency
) -> None:
    ns = rig.namespace(consistency, ttl_s=0.0, negative_ttl_s=0.0)
    assert ns.read("/m/object") == DATA
    rig.put("object", b"replaced")
    rig.proxy.clear()
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.8, times=1))
    asking = in_thread(lambda: ns.stat("/m/object"))
    eventually(lambda: rig.proxy.counts()["HEAD"], what="the stat has asked")
    with pytest.raises(AlreadyExists):
        ns.write("/m/object", b"mine", "create")
    found = asking.result(30)
    # On a slow machine the stat may have lost its patience; it must say so then.
    assert found.stale or found.size_bytes == len(b"replaced")


def test_an_absence_that_was_asked_for_long_ago_is_shared_by_nobody(rig: Rig) -> None:
    ns = rig.namespace(Consistency.IMMUTABLE, negative_ttl_s=0.05)
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=1.0, times=1))
    asking = in_thread(lambda: ns.exists("/m/new"))
    eventually(lambda: rig.proxy.counts()["HEAD"], what="the first has asked")
    time.sleep(0.1)  # its answer was given by now, and is late
    rig.put("new", b"x")
    time.sleep(0.05)  # the negative ttl, after which nobody may miss the object
    assert ns.exists("/m/new")
    asking.result(30)


@pytest.mark.parametrize("consistency", [Consistency.IMMUTABLE, Consistency.EVENTUAL])
def test_reading_on_in_a_handle_does_not_make_its_name_fresh_again(
    rig: Rig, consistency: Consistency
) -> None:
    ns = rig.namespace(consistency, ttl_s=3600.0)
    assert ns.read("/m/object") == DATA
    with ns.open("/m/object") as file:
        assert file.read(10) == DATA[:10]
        rig.put("object", b"replaced")
        ns.invalidate("/m/object")
        assert file.read_at(0, 10) == DATA[:10]
        assert ns.read("/m/object") == b"replaced"


def test_processes_share_what_is_known(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=3600.0)
    assert ns.read("/m/object") == DATA
    assert not ns.exists("/m/never")
    rig.proxy.clear()
    body = (
        "result = [len(ns.read('/m/object')), ns.stat('/m/object').size_bytes, "
        "ns.exists('/m/never'), ns.exists('/m')]"
    )
    assert in_other_process(ns.settings, body) == [len(DATA), len(DATA), False, True]
    assert rig.proxy.counts() == {}


def test_a_stat_after_a_list_costs_nothing(rig: Rig) -> None:
    for number in range(20):
        rig.put(f"d/{number:02}", b"x" * number)
    ns = rig.namespace()
    assert len(ns.list("/m/d")) == 20
    rig.proxy.clear()
    assert [ns.stat(f"/m/d/{n:02}").size_bytes for n in range(20)] == list(range(20))
    assert rig.proxy.counts() == {}
