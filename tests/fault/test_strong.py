"""Strong mounts: every call asks, every write bears a condition, and nothing is served unasked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.origin_rig import QUICK, Rig, eventually, origin_status, rig_of
from tiercache.errors import (
    AccessDenied,
    AlreadyExists,
    MetadataFenced,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    StaleHandle,
    Unsupported,
)
from tiercache.fs.filesystem import TierCacheFileSystem
from tiercache.model import Consistency, Kind
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import AzureServer, ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import MIB

NewBucket = Callable[[ObjectServer], str]
STRONG = Consistency.STRONG
DATA = object_bytes("strong", 2 * MIB)
# The first write into a bucket of SeaweedFS takes a second on a busy machine.
PATIENT = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}


@pytest.fixture
def rig(s3: S3Server, new_bucket: NewBucket, tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits = dict(PATIENT)
        rig.put("object", DATA)
        yield rig


def strong(rig: Rig, **mount: Any) -> Namespace:
    """A strong namespace that has read the object and probed its origin."""
    ns = rig.namespace(STRONG, **mount)
    assert ns.read("/m/object") == DATA
    rig.proxy.clear()
    return ns


def read_into(ns: Namespace, path: str) -> bytes:
    buffer = bytearray(len(DATA))
    return bytes(buffer[: ns.read_into(path, 0, buffer)])


READS: dict[str, Callable[[Namespace, str], bytes]] = {
    "read": lambda ns, path: ns.read(path),
    "read a part": lambda ns, path: ns.read(path, 0, 3 * MIB),
    "view": lambda ns, path: bytes(ns.view(path)),
    "read_into": read_into,
    "read_many": lambda ns, path: ns.read_many([(path, 0, None)])[0],
    "open": lambda ns, path: ns.open(path).readall(),
    "local_path": lambda ns, path: Path(ns.local_path(path, pin=False)).read_bytes(),
    "cat_file": lambda ns, path: TierCacheFileSystem.cat_file(filesystem(ns), path),
}


def filesystem(ns: Namespace) -> TierCacheFileSystem:
    fs = TierCacheFileSystem(cache_dir=ns.settings.cache.dir)
    fs.namespace = ns
    return fs


# -- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["read", "read a part", "view", "read_into", "read_many"])
def test_each_read_costs_one_head_and_no_data(rig: Rig, call: str) -> None:
    ns = strong(rig)
    for count in range(1, 4):
        assert READS[call](ns, "/m/object") == DATA
        assert rig.proxy.counts() == {"HEAD": count}


def test_each_look_at_a_name_asks(rig: Rig) -> None:
    ns = strong(rig)
    for look in (ns.stat, ns.exists, lambda path: ns.open(path).close()):
        rig.proxy.clear()
        look("/m/object")
        assert rig.proxy.counts() == {"HEAD": 1}
    rig.proxy.clear()
    for _ in range(3):
        assert [entry.name for entry in ns.list("/m")] == ["object"]
    assert rig.proxy.counts() == {"GET": 3}, "listings always ask"


@pytest.mark.parametrize("call", READS)
def test_a_change_made_elsewhere_is_seen_by_the_next_call(rig: Rig, call: str) -> None:
    ns = strong(rig)
    for number in range(3):
        data = object_bytes(f"{call}/{number}", 100_000 + number)
        rig.put("object", data)
        assert READS[call](ns, "/m/object") == data
        assert ns.stat("/m/object").size_bytes == len(data)
    rig.delete("object")
    with pytest.raises(NotFound):
        READS[call](ns, "/m/object")
    assert not ns.exists("/m/object") and not ns.list("/m")
    rig.put("object", b"again")
    assert READS[call](ns, "/m/object") == b"again"
    assert len(ns.list("/m")) == 1


def test_a_handle_asks_at_each_read_and_never_mixes(rig: Rig) -> None:
    ns = strong(rig)
    buffer = bytearray(10)
    with ns.open("/m/object") as file, ns.open("/m/object") as other:
        rig.proxy.clear()
        for count in range(1, 4):
            assert file.read(10) == DATA[10 * count - 10 : 10 * count]
            assert rig.proxy.counts() == {"HEAD": count}
        assert file.readinto(buffer) == 10 and file.read_at(5, 5) == DATA[5:10]
        assert rig.proxy.counts() == {"HEAD": 5}
        rig.put("object", object_bytes("next", len(DATA)))
        for call in (
            lambda: file.read(1),
            lambda: file.readinto(buffer),
            lambda: file.read_at(0, 1),
            lambda: other.readall(),
        ):
            with pytest.raises(StaleHandle):
                call()
    with ns.open("/m/object") as file:
        rig.delete("object")
        with pytest.raises(StaleHandle):
            file.read(1)
        rig.put("object", b"another")
        with pytest.raises(StaleHandle):
            file.read(1)


def test_what_was_given_out_stays_what_it_was(rig: Rig) -> None:
    ns = strong(rig)
    view = ns.view("/m/object")
    file = ns.local_path("/m/object")
    places = ns.locate("/m/object")
    rig.put("object", b"changed")
    assert ns.read("/m/object") == b"changed"
    rig.proxy.refuse()
    assert bytes(view) == DATA
    assert sum(place.length for place in places) == len(DATA)
    with pytest.raises(OriginUnavailable):
        ns.local_path("/m/object")
    assert not Path(file).exists() or Path(file).read_bytes() == DATA


def test_a_snapshot_of_a_strong_mount_is_bound(rig: Rig) -> None:
    ns = strong(rig)
    ns.snapshots.create("frozen", "/m").wait(30)
    rig.proxy.clear()
    frozen = "tiercache://frozen@snapshot/m/object"
    with ns.open(frozen) as file:
        for _ in range(3):
            assert ns.read(frozen) == DATA and file.read_at(0, 5) == DATA[:5]
    assert rig.proxy.counts() == {}
    assert ns.stat(frozen).consistency is Consistency.IMMUTABLE


def test_read_many_asks_for_all_names_at_once(rig: Rig) -> None:
    names = [f"many/{number:02}" for number in range(30)]
    for name in names:
        rig.put(name, name.encode())
    ns = strong(rig)
    items = [(f"/m/{name}", 0, None) for name in names]
    expected = [name.encode() for name in names]
    assert ns.read_many(items) == expected
    rig.proxy.clear()
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.2))
    # A name that is asked for twice in one call costs one request.
    assert ns.read_many([*items, *items]) == [*expected, *expected]
    assert rig.proxy.counts() == {"HEAD": len(names)}
    assert rig.proxy.peak_in_flight > len(names) // 2, "they wait for each other"
    rig.put("many/07", b"changed")
    rig.delete("many/08")
    answers = ns.read_many_or_errors(items)
    assert answers[7] == b"changed" and isinstance(answers[8], NotFound)
    assert answers[:7] + answers[9:] == expected[:7] + expected[9:]


def test_callers_share_only_requests_sent_after_they_came(rig: Rig) -> None:
    ns = strong(rig)
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.6, times=1))
    with ThreadPoolExecutor(16) as pool:
        early = pool.submit(ns.read, "/m/object")
        eventually(lambda: rig.proxy.exchanges("HEAD"))
        time.sleep(0.1)  # the server has answered; its answer is on its way
        rig.put("object", b"changed")
        late = [pool.submit(ns.read, "/m/object") for _ in range(15)]
        assert {read.result() for read in late} == {b"changed"}
        assert early.result() in (DATA, b"changed")
    # The first, one for the late, one for a reader whose version was gone when it was fetched.
    assert len(rig.proxy.exchanges("HEAD")) <= 4


@pytest.mark.parametrize("consistency", [STRONG, Consistency.CLOSE_TO_OPEN])
def test_an_own_write_whose_answer_is_late_hides_nothing_newer(
    rig: Rig, consistency: Consistency
) -> None:
    """Ours was replaced elsewhere before its answer came; a look-up that was sent after that and
    answered after ours has ended must tell the newer one."""
    ns = rig.namespace(consistency)
    ns.write("/m/object", b"first")
    rig.proxy.inject(Fault(methods=("PUT",), first_byte_delay_s=0.6, times=1))
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(ns.write, "/m/object", b"ours")
        eventually(lambda: rig.get("object") == b"ours")
        rig.put("object", b"theirs!")
        rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=1.2, times=1))
        reading = pool.submit(ns.stat, "/m/object")
        writing.result()
        assert reading.result().size_bytes == len(b"theirs!")
    assert ns.read("/m/object") == b"theirs!"


def test_a_strong_mount_is_strong_beside_others_of_its_origin(rig: Rig) -> None:
    settings = rig.settings(STRONG)
    (mount,) = settings.mounts
    bound = msgspec.structs.replace(mount, path="/bound", consistency=Consistency.IMMUTABLE)
    ns = rig.open(msgspec.structs.replace(settings, mounts=(mount, bound)))
    assert ns.read("/bound/object") == DATA == ns.read("/m/object")
    rig.put("object", b"changed")
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.3))
    ns.invalidate("/bound/object")
    with ThreadPoolExecutor(2) as pool:
        # Neither may be told what the other's rules make of an answer.
        both = [pool.submit(ns.read, f"/{top}/object") for top in ("bound", "m")]
        assert [read.result() for read in both] == [b"changed", b"changed"]
    rig.put("object", b"again!")
    assert ns.read("/m/object") == b"again!"


# -- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 100, 9 * MIB])
def test_writes_are_seen_at_once_by_another_site(rig: Rig, length: int) -> None:
    here, there = strong(rig), rig.namespace(STRONG, name="there")
    for number in range(3):
        data = object_bytes(number, length + number)
        for writer, reader in ((here, there), (there, here)):
            version = writer.write("/m/object", data).version
            assert reader.read("/m/object") == data
            assert reader.stat("/m/object").version == version
    there.remove("/m/object")
    assert not here.exists("/m/object") and not here.list("/m")
    here.write("/m/object", b"created", mode="create")
    assert there.read("/m/object") == b"created"
    with pytest.raises(AlreadyExists):
        there.write("/m/object", b"again", mode="create")
    stood = there.stat("/m/object").version
    there.write("/m/object", b"replaced", if_version=stood)
    with pytest.raises(PreconditionFailed):
        here.write("/m/object", b"too late", if_version=stood)
    assert rig.get("object") == b"replaced"


@pytest.mark.parametrize("before", [b"before", None])
def test_a_plain_write_bears_a_condition_and_is_repeated_where_it_fails(
    rig: Rig, before: bytes | None
) -> None:
    ns = strong(rig)
    if before is None:
        rig.delete("object")
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.5, times=1))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(ns.write, "/m/object", b"ours")
        eventually(lambda: rig.proxy.exchanges("HEAD"))
        time.sleep(0.1)  # the server has answered; its answer is on its way
        rig.put("object", b"theirs")
        stat = writing.result()
    assert rig.get("object") == b"ours" == ns.read("/m/object")
    assert stat.version == ns.stat("/m/object").version
    statuses = [exchange.status for exchange in rig.proxy.exchanges("PUT")]
    assert statuses == [412, 200]


def test_of_many_writers_at_two_sites_each_write_is_made_once(rig: Rig) -> None:
    """Counters by ``if_version`` lose nothing, whoever else overwrites beside them."""
    sites = [rig.namespace(STRONG, name=name) for name in ("here", "there")]
    sites[0].write("/m/counter", b"0")

    def count(ns: Namespace) -> int:
        done = 0
        while done < 5:
            known = ns.stat("/m/counter")
            try:
                value = int(ns.read("/m/counter"))
                ns.write("/m/counter", b"%d" % (value + 1), if_version=known.version)
            except PreconditionFailed:
                continue
            if ns.stat("/m/counter").kind is Kind.FILE:
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(count, [*sites, *sites])) == 20
    assert [ns.read("/m/counter") for ns in sites] == [b"20", b"20"]


@pytest.mark.parametrize("mode", ["overwrite", "create", "if-version"])
def test_own_success_with_a_lost_answer_is_a_success(rig: Rig, mode: str) -> None:
    ns = strong(rig)
    path = "/m/new" if mode == "create" else "/m/object"
    version = ns.stat("/m/object").version
    rig.proxy.inject(Fault(methods=("PUT",), lose_answer=True, times=1))
    if mode == "if-version":
        ns.write(path, b"ours", if_version=version)
    else:
        ns.write(path, b"ours", mode="create" if mode == "create" else "overwrite")
    assert rig.get(path.removeprefix("/m/")) == b"ours" == ns.read(path)
    assert origin_status(ns)["settled"] == 1
    assert len(rig.proxy.exchanges("PUT")) == 1


def test_a_lost_answer_that_another_write_followed_is_unknown(rig: Rig) -> None:
    """Ours may have stood there for a moment: neither success nor conflict can be told."""
    ns = strong(rig)
    rig.proxy.inject(Fault(methods=("PUT",), lose_answer=True, times=1))
    rig.proxy.inject(Fault(methods=("HEAD",), first_byte_delay_s=0.5))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(ns.write, "/m/object", b"ours")
        eventually(lambda: rig.get("object") == b"ours")
        rig.put("object", b"theirs!")
        # Either it was replaced before we looked, or after.
        error = writing.exception()
    if error is not None:
        assert isinstance(error, OriginUnavailable) and "unknown" in str(error)
    assert ns.read("/m/object") == b"theirs!"


def test_a_removal_is_sent_once(rig: Rig) -> None:
    """It bears no condition: sent again, it could remove what was written since."""
    ns = strong(rig)
    rig.proxy.inject(Fault(methods=("DELETE",), lose_answer=True, times=1))
    with pytest.raises(OriginUnavailable, match="outcome is unknown"):
        ns.remove("/m/object")
    rig.put("object", b"written since")
    assert ns.read("/m/object") == b"written since"
    assert len(rig.proxy.exchanges("DELETE")) == 1
    ns.remove("/m/object")
    with pytest.raises(NotFound):
        ns.remove("/m/object")


def test_a_long_write_that_another_overtakes_fails(rig: Rig) -> None:
    """Its parts are gone by then: it cannot be repeated as a short one is."""
    ns = strong(rig)
    file = ns.open("/m/object", "wb")
    file.write(bytes(12 * MIB))
    eventually(lambda: rig.proxy.exchanges("HEAD"))
    rig.put("object", b"theirs")
    with pytest.raises(PreconditionFailed, match="write it again"):
        file.close()
    assert rig.get("object") == b"theirs" == ns.read("/m/object")


def test_longer_than_one_request_may_be(
    rig: Rig, azure: AzureServer, new_bucket: NewBucket
) -> None:
    """S3 completes uploads on a condition; the others have no such request."""
    ns = strong(rig)
    length = 66 * MIB
    assert ns.write("/m/object", bytes(length)).size_bytes == length
    with ns.open("/m/object", "wb") as file:
        file.write(bytes(length + 1))
        rig.put("object", b"theirs")
        with pytest.raises(PreconditionFailed):
            file.close()
    assert ns.read("/m/object") == b"theirs"
    with rig_of(azure, new_bucket(azure), rig.directory / "azure") as other:
        other.limits = dict(PATIENT)
        ns = other.namespace(STRONG)
        ns.write("/m/object", b"short")
        with pytest.raises(Unsupported, match="every write of a strong mount") as caught:
            ns.write("/m/object", bytes(length))
        assert "64 MiB" in caught.value.remedy and caught.value.path == "/m/object"
        assert ns.read("/m/object") == b"short"


def test_copies_bear_a_condition_too(rig: Rig) -> None:
    ns = strong(rig)
    before = origin_status(ns)["requests"]["copy"]  # the probe's
    ns.copy("/m/object", "/m/copy")
    assert ns.read("/m/copy") == DATA == rig.get("copy")
    ns.rename("/m/copy", "/m/moved")
    assert ns.read("/m/moved") == DATA and not ns.exists("/m/copy")
    assert origin_status(ns)["requests"]["copy"] == before


# -- the origin down ------------------------------------------------------------------------


def test_nothing_is_served_while_the_origin_does_not_answer(rig: Rig) -> None:
    rig.limits = dict(QUICK)
    ns = eventually(lambda: opened(rig), what="the bucket is warm")
    handle = ns.open("/m/object")
    ns.list("/m")
    rig.proxy.refuse()
    calls: list[Callable[[], Any]] = [partial(read, ns, "/m/object") for read in READS.values()]
    calls += [
        lambda: ns.stat("/m/object"),
        lambda: ns.exists("/m/object"),
        lambda: ns.exists("/m/never"),
        lambda: ns.list("/m"),
        lambda: ns.write("/m/object", b"x"),
        lambda: ns.remove("/m/object"),
        lambda: handle.read(1),
        lambda: ns.read_many([("/m/object", 0, 1), ("/m/object", 1, 1)]),
    ]
    for call in calls:
        with pytest.raises(OriginUnavailable):
            call()
    rig.proxy.heal()
    eventually(lambda: answers(ns), within_s=20)
    assert handle.read(10) == DATA[:10]


def opened(rig: Rig) -> Namespace | None:
    ns = rig.namespace(STRONG)
    try:
        assert ns.read("/m/object") == DATA
    except OriginUnavailable:
        rig.close(ns)
        return None
    return ns


def answers(ns: Namespace) -> bool:
    try:
        return ns.read("/m/object") == DATA
    except OriginUnavailable:
        return False


def test_an_origin_that_is_down_at_first_use_is_unavailable_and_not_refused(rig: Rig) -> None:
    rig.limits = dict(QUICK)
    ns = rig.namespace(STRONG)
    rig.proxy.refuse()
    for call in (ns.read, ns.stat, ns.list):
        with pytest.raises(OriginUnavailable):
            call("/m/object")
    rig.proxy.heal()
    eventually(lambda: answers(ns), within_s=20)


# -- what it needs --------------------------------------------------------------------------


def test_the_origin_is_probed_once_by_all(rig: Rig) -> None:
    ns = rig.namespace(STRONG)
    with ThreadPoolExecutor(8) as pool:
        assert {len(data) for data in pool.map(ns.read, ["/m/object"] * 8)} == {len(DATA)}
    probes = {exchange.path.partition("?")[0] for exchange in rig.proxy.exchanges("PUT")}
    assert len({path.removesuffix("-copy") for path in probes}) == 1
    assert rig.server.keys(rig.bucket) == ["object"]


def test_a_read_only_mount_is_not_probed(rig: Rig) -> None:
    ns = rig.namespace(STRONG, read_only=True)
    assert ns.read("/m/object") == DATA and ns.list("/m")
    assert not rig.proxy.exchanges("PUT")
    rig.put("object", b"changed")
    assert ns.read("/m/object") == b"changed"
    with pytest.raises(AccessDenied):
        ns.write("/m/object", b"x")


def test_an_origin_that_ignores_conditions_is_refused(
    moto_s3: S3Server, new_bucket: NewBucket, tmp_path: Path
) -> None:
    with rig_of(moto_s3, new_bucket(moto_s3), tmp_path) as rig:
        rig.limits = dict(PATIENT)
        rig.put("object", b"kept")
        # What the proxy strips takes the signature with it.
        moto_s3.client.put_bucket_acl(Bucket=rig.bucket, ACL="public-read-write")
        rig.proxy.inject(Fault(methods=("PUT",), ignore_if_match=True))
        ns = rig.namespace(STRONG)
        calls: list[Callable[[], Any]] = [
            lambda: ns.read("/m/object"),
            lambda: ns.stat("/m/object"),
            lambda: ns.list("/m"),
            lambda: ns.write("/m/object", b"x"),
            lambda: ns.write("/m/object", b"x", mode="create"),
            lambda: ns.remove("/m/object"),
            lambda: ns.remove("/m", recursive=True),
        ]
        for call in calls:
            with pytest.raises(Unsupported) as caught:
                call()
            assert caught.value.path == "/m/object" or caught.value.path == "/m"
            assert f"s3://{rig.bucket}" in caught.value.message
            assert "read_only = true" in caught.value.remedy
        assert rig.server.keys(rig.bucket) == ["object"] and rig.get("object") == b"kept"
        reader = rig.namespace(STRONG, name="reader", read_only=True)
        assert reader.read("/m/object") == b"kept"
        rig.put("object", b"changed")
        assert reader.read("/m/object") == b"changed"


def test_azure_keeps_conditions(azure: AzureServer, new_bucket: NewBucket, tmp_path: Path) -> None:
    with rig_of(azure, new_bucket(azure), tmp_path) as rig:
        rig.limits = dict(PATIENT)
        here, there = (rig.namespace(STRONG, name=name) for name in ("here", "there"))
        first = here.write("/m/object", b"first", mode="create").version
        assert there.read("/m/object") == b"first"
        there.write("/m/object", b"second")
        with pytest.raises(PreconditionFailed):
            here.write("/m/object", b"third", if_version=first)
        with here.open("/m/object") as file:
            assert file.read() == b"second"
            there.remove("/m/object")
            with pytest.raises(StaleHandle):
                file.read_at(0, 1)


def test_a_fenced_agent_serves_no_strong_mount(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ns = rig.namespace(STRONG)
    assert ns.read("/m/object") == DATA
    agent = ns.client.engine
    assert agent is not None and agent._agent is not None and agent._agent.engine is not None

    def fenced() -> None:
        raise MetadataFenced("another agent has taken over")

    monkeypatch.setattr(agent._agent.engine.catalog, "assert_not_fenced", fenced)
    for call in (ns.read, ns.stat, ns.list, ns.remove, partial(ns.write, data=b"x")):
        with pytest.raises(MetadataFenced):
            call("/m/object")
    assert rig.get("object") == DATA


# -- what is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", list(Consistency))
def test_stat_and_handle_tell_version_age_mode_and_staleness(
    rig: Rig, consistency: Consistency
) -> None:
    began_s = time.time()
    ns = rig.namespace(consistency)
    written = ns.write("/m/written", b"x")
    assert written.consistency is consistency and not written.stale
    assert began_s - 1 < written.validated_unix_s < time.time() + 1
    for _ in range(2):
        stat = ns.stat("/m/object")
        with ns.open("/m/object") as file:
            told = file.stat
            info = filesystem(ns).open("/m/object").info()
        for known in (stat, told):
            assert (known.path, known.size_bytes) == ("/m/object", len(DATA))
            assert known.version == file.version == info["version"]
            assert known.consistency is consistency and not known.stale
            assert 0 <= known.age_s < time.time() - began_s + 1
            assert known.validated_at is not None and known.validated_at.tzinfo is not None
            assert began_s - 1 < known.validated_at.timestamp() < time.time() + 1
        assert info["consistency"] == str(consistency) and info["stale"] is False
        assert abs(info["validated"] - told.validated_unix_s) < time.time() - began_s + 1
    assert ns.stat("/m").consistency is consistency
    assert filesystem(ns).info("/m/object")["consistency"] == str(consistency)


def test_a_handle_of_a_strong_mount_tells_its_last_read(rig: Rig) -> None:
    ns = strong(rig)
    with ns.open("/m/object") as file:
        opened_s = file.stat.validated_unix_s
        time.sleep(0.05)
        file.read(1)
        assert file.stat.validated_unix_s > opened_s
        assert file.stat.age_s < file.stat.age_s + 0.05
