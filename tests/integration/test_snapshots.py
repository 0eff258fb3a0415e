"""Dataset snapshots: what was frozen is read, or it fails loudly; never other bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    cache_settings,
    end,
    kill_agent,
    namespace,
    start_script,
    wait_for,
)
from tests.fault.origin_rig import Rig, rig_of
from tests.integration.snapshot_kit import (  # noqa: F401  # fixtures
    SIZES,
    keys,
    make,
    ns_fixture,
    origin_fixture,
    rig_fixture,
    settings_fixture,
)
from tests.integration.test_odd_names import NAMES, data_of
from tiercache import catalog
from tiercache.errors import (
    AlreadyExists,
    FormatError,
    IsADirectory,
    NotFound,
    OriginUnavailable,
    StaleHandle,
    TiercacheError,
    Unsupported,
)
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.model import Consistency, JobState, Kind
from tiercache.namespace import Namespace
from tiercache.settings import MetadataSettings, Settings
from tiercache.snapshots import Snapshot
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)


def read_in_every_way(snap: Snapshot, path: str, data: bytes) -> None:
    size = len(data)
    assert snap.read(path) == data
    assert snap.read(path, 3, 4) == data[3:7]
    assert bytes(snap.view(path)) == data
    buffer = bytearray(size + 1)
    assert snap.read_into(path, 0, buffer) == size and buffer[:size] == data
    assert snap.read_many([(path, 0, 4), (path, 2, None)]) == [data[:4], data[2:]]
    with snap.open(path) as file:
        assert file.read() == data
    assert snap.exists(path) and snap.stat(path).size_bytes == size


# -- reading --------------------------------------------------------------------------------


def test_what_was_frozen_is_read_in_every_way(ns: Namespace, origin: FileOrigin) -> None:
    objects = origin.fill(1, SIZES, prefix="d/")
    snap = make(ns, "v1", "/m/d")
    assert (snap.record.objects, snap.record.size_bytes) == (6, sum(SIZES))
    for key, data in objects.items():
        read_in_every_way(snap, f"/m/{key}", data)
        assert ns.read(f"/v1@snapshot/m/{key}") == data
        assert Path(snap.local_path(f"/m/{key}", pin=False)).read_bytes() == data


def test_names_outside_are_not_found_and_nothing_can_be_written(
    ns: Namespace, origin: FileOrigin
) -> None:
    origin.put("d/x", b"1")
    origin.put("e/y", b"2")
    snap = make(ns, "v1", "/m/d")
    origin.put("d/new", b"3")
    for path in ("/m/e/y", "/m/d/new", "/m/d/x/z", "/other"):
        with pytest.raises(NotFound, match="not in the snapshot v1"):
            snap.read(path)
        assert not snap.exists(path)
    with pytest.raises(IsADirectory):
        snap.read("/m/d")
    assert snap.stat("/m/d").is_dir and snap.stat("/").is_dir
    with pytest.raises(NotFound, match="no such snapshot"):
        ns.snapshot("v2")
    inside = "/v1@snapshot/m/d/x"
    for change in (
        lambda: snap.open("/m/d/x", "wb"),
        lambda: ns.write(inside, b"x"),
        lambda: ns.remove(inside),
        lambda: ns.copy("/m/d/x", inside),
        lambda: ns.pin(inside),
        lambda: ns.evict(inside),
    ):
        with pytest.raises(Unsupported, match="read only"):
            change()
    ns.copy(inside, "/m/copied")
    assert ns.read("/m/copied") == b"1"


def test_listings_come_from_the_snapshot_alone(ns: Namespace, origin: FileOrigin) -> None:
    for key in ("a/1", "a/2", "a/b/3", "a-/4", "c"):
        origin.put(key, key.encode())
    snap = make(ns, "v1")
    origin.put("a/later", b"")
    os.unlink(origin.root / "c")
    assert [entry.name for entry in snap.list()] == ["m"]
    shown = [(entry.name, entry.kind) for entry in snap.list("/m")]
    assert shown == [("a", Kind.DIRECTORY), ("a-", Kind.DIRECTORY), ("c", Kind.FILE)]
    assert [entry.name for entry in snap.list("/m/a")] == ["1", "2", "b"]
    assert [e.name for e in snap.list("/m", recursive=True)] == ["a-/4", "a/1", "a/2", "a/b/3", "c"]
    assert [entry.name for entry in snap.list("/m/c")] == ["c"]
    assert snap.list("/m/a").age_s < 60
    with pytest.raises(NotFound):
        snap.list("/m/none")


def test_a_replaced_object_is_never_read_as_another(ns: Namespace, origin: FileOrigin) -> None:
    objects = origin.fill(2, SIZES[:4])
    snap = make(ns, "v1")
    held = snap.open("/m/00003")
    assert held.read(5) == objects["00003"][:5]
    for key in objects:
        origin.put(key, b"other " + objects[key])
    frozen = {one.path: one.token for one in snap.objects()}
    for key in ("00000", "00001"):
        found = origin_token(origin, ns, key)
        with pytest.raises(StaleHandle) as caught:
            snap.read(f"/m/{key}")
        text = str(caught.value)
        assert all(word in text for word in (f"/m/{key}", "v1", frozen[f"/m/{key}"], found))
    with pytest.raises(StaleHandle, match="snapshot v1"):
        held.read_at(2 * MIB, 100)
    buffer = bytearray(10)
    with pytest.raises(StaleHandle, match="snapshot v1"):
        snap.read_into("/m/00002", 0, buffer)
    with pytest.raises(StaleHandle):
        snap.view("/m/00002", 0, 10)
    with pytest.raises(StaleHandle):
        snap.local_path("/m/00002")
    assert bytes(buffer) == bytes(10)
    outcomes = ns.read_many_or_errors([(snap.path(f"/m/{key}"), 0, None) for key in objects])
    assert {type(outcome) for outcome in outcomes} == {StaleHandle}
    ns.invalidate("/m")
    assert ns.read("/m/00000") == b"other " + objects["00000"]


def origin_token(origin: FileOrigin, ns: Namespace, key: str) -> str:
    ns.invalidate(f"/m/{key}")
    return ns.stat(f"/m/{key}").version


def test_an_object_put_back_is_read_again(ns: Namespace, origin: FileOrigin) -> None:
    data = object_bytes("back", 100_000)
    origin.put("x", data)
    kept = origin.root / "x.kept"
    os.link(origin.root / "x", kept)
    snap = make(ns, "v1", "/m/x")
    os.unlink(origin.root / "x")
    with pytest.raises(StaleHandle, match="has none"):
        snap.read("/m/x")
    os.rename(kept, origin.root / "x")
    assert snap.read("/m/x") == data


@pytest.mark.parametrize("mode", list(Consistency))
def test_a_bound_read_asks_nobody_whatever_the_mode(rig: Rig, mode: Consistency) -> None:
    data = object_bytes("bound", 300_000)
    for number in range(5):
        rig.put(f"d/{number}", data)
    ns = rig.namespace(mode, ttl_s=0.001) if mode is Consistency.EVENTUAL else rig.namespace(mode)
    snap = make(ns, "v1")
    assert snap.prefetch().wait(30).state is JobState.DONE
    rig.proxy.clear()
    rig.proxy.refuse()
    for number in range(5):
        read_in_every_way(snap, f"/m/d/{number}", data)
    assert len(snap.list("/m/d")) == 5
    assert rig.proxy.exchanges() == []


def test_bytes_that_are_not_here_cost_one_get_and_no_head(rig: Rig) -> None:
    data = object_bytes("one", 100_000)
    rig.put("x", data)
    ns = rig.namespace(Consistency.CLOSE_TO_OPEN)
    snap = make(ns, "v1")
    rig.proxy.clear()
    assert snap.read("/m/x") == data
    assert [exchange.method for exchange in rig.proxy.exchanges()] == ["GET"]


def test_offline_after_a_restart_what_is_cached_is_read(rig: Rig) -> None:
    data = object_bytes("offline", 100_000)
    for key in ("here", "there"):
        rig.put(key, data)
    settings = rig.settings(Consistency.CLOSE_TO_OPEN)
    ns = rig.open(settings, embedded=False)
    snap = make(ns, "v1")
    assert snap.prefetch("/m/here").wait(30).state is JobState.DONE
    rig.proxy.refuse()
    ns.shut_down_agent()
    rig.close(ns)
    again = rig.open(settings, embedded=False)
    snap = again.snapshot("v1")
    assert snap.read("/m/here") == data
    assert snap.stat("/m/there").size_bytes == len(data)
    with pytest.raises(OriginUnavailable):
        snap.read("/m/there")
    with pytest.raises(TiercacheError):
        again.read("/m/here")  # the mount's own promise cannot be kept
    rig.proxy.heal()
    wait_for(lambda: _reads(snap, "/m/there", data))


def _reads(snap: Snapshot, path: str, data: bytes) -> bool:
    try:
        return snap.read(path) == data
    except OriginUnavailable:
        return False


def test_another_version_in_the_cache_is_no_stand_in(rig: Rig) -> None:
    rig.put("x", b"frozen")
    ns = rig.namespace(ttl_s=0.001)
    snap = make(ns, "v1")
    rig.put("x", b"newer")
    ns.invalidate("/m")
    assert ns.read("/m/x") == b"newer"
    rig.proxy.refuse()
    with pytest.raises((StaleHandle, OriginUnavailable)):
        snap.read("/m/x")


def test_an_immutable_mount_freezes_what_its_readers_are_bound_to(
    tmp_path: Path, origin: FileOrigin
) -> None:
    origin.put("x", b"first")
    settings = cache_settings(tmp_path / "cache", origin.url, consistency=Consistency.IMMUTABLE)
    with namespace(settings, embedded=True) as ns:
        assert ns.read("/m/x") == b"first"
        origin.put("x", b"second")
        assert make(ns, "v1").read("/m/x") == b"first"


# -- prefetch -------------------------------------------------------------------------------


def test_prefetch_fetches_the_frozen_versions_and_no_others(
    ns: Namespace, origin: FileOrigin
) -> None:
    objects = origin.fill(7, SIZES, prefix="d/")
    snap = make(ns, "v1")
    origin.put("d/00001", b"replaced")
    origin.put("d/later", b"not in it")
    ended = ns.prefetch(["v1@snapshot"], pin=True).wait(30)
    assert (ended.state, ended.listed, ended.failed) == (JobState.FAILED, len(SIZES), 1)
    ((path, message),) = ended.errors
    assert path == "/m/d/00001" and "v1" in message and "froze" in message
    assert ended.error_class == "StaleHandle"
    assert ns.cached_bytes("/m/d/00002") == SIZES[2] and ns.cached_bytes("/m/d/later") == 0
    assert ns.status()["pins"] == ["/m"]
    again = snap.prefetch("/m/d/00003").wait(30)
    assert (again.state, again.hit, again.filled) == (JobState.DONE, 1, 0)
    some = ns.prefetch("/v1@snapshot/m/d", include=["*2"], dry_run=True).wait(30)
    assert (some.listed, some.hit) == (1, 1)
    missing = ns.prefetch(["none@snapshot"]).wait(30)
    assert (missing.state, missing.error_class) == (JobState.FAILED, "NotFound")
    outside = ns.prefetch(["v1@snapshot/elsewhere"]).wait(30)
    assert outside.error_class == "NotFound"
    assert snap.read("/m/d/00005") == objects["d/00005"]


def test_a_background_prefetch_of_a_snapshot_goes_on_after_a_crash(
    settings: Settings, origin: FileOrigin
) -> None:
    objects = origin.fill(8, [300_000] * 60)
    with namespace(settings) as ns:
        snap = make(ns, "v1")
        job = ns.prefetch(["v1@snapshot"], concurrency=1)
        kill_agent(settings.cache.dir)
        wait_for(lambda: ns.job(job.id).progress().ended, timeout_s=30)
        assert all(snap.read(f"/m/{key}") == data for key, data in objects.items())


# -- processes, crashes, scale --------------------------------------------------------------


def test_a_kill_in_the_middle_leaves_nothing_half_visible(
    settings: Settings, origin: FileOrigin
) -> None:
    origin.fill(9, [100_000] * 300)
    with namespace(settings) as ns:
        make(ns, "old")
        for seen in (1, 40, 120):
            job = ns.snapshots.create("new", "/m", checksums=True)
            wait_for(lambda job=job, seen=seen: job.progress().filled >= seen)  # type: ignore[misc]
            kill_agent(settings.cache.dir)
            with pytest.raises(NotFound, match="nothing is left"):
                job.progress()
            assert [record.name for record in ns.snapshots.list()] == ["old"]
            ns.evict("/m")
        assert {key[:2] for key in keys(settings)} == {b"so", b"to"}
        assert make(ns, "new").record.objects == 300


def test_parts_that_a_killed_agent_left_are_removed(settings: Settings, origin: FileOrigin) -> None:
    origin.put("x", b"x")
    with namespace(settings, embedded=True) as ns:
        first = make(ns, "v1").record.first_part
    left = {
        catalog.snapshot_part_key(name, number): b"left"
        for name in ("a", "v1", "v10")
        for number in (0, 2, first - 1, first + 1)
    }
    left |= {b"s~0badcafe": b"left", catalog.snapshot_part_key("~0badcafe", 0): b"left"}
    store = LmdbStore(str(Path(settings.cache.dir) / "index.lmdb"))
    store.commit(left)
    store.close()
    with namespace(settings, embedded=True) as ns:
        assert ns.snapshot("v1").read("/m/x") == b"x"
        ns.pin("/m/x")  # a commit
        assert keys(settings) == {b"sv1", catalog.snapshot_part_key("v1", first)}


@pytest.mark.parametrize("damage", [None, b"\x01\x91\xc1", b"\x02\x91\x90"])
def test_a_part_that_is_lost_or_damaged_is_said_to_be(
    settings: Settings, origin: FileOrigin, damage: bytes | None
) -> None:
    origin.put("x", b"x")
    with namespace(settings, embedded=True) as ns:
        first = make(ns, "v1").record.first_part
    store = LmdbStore(str(Path(settings.cache.dir) / "index.lmdb"))
    store.commit({catalog.snapshot_part_key("v1", first): damage})
    store.close()
    with namespace(settings, embedded=True) as ns:
        with pytest.raises(FormatError, match="v1"):
            ns.snapshot("v1").read("/m/x")
        assert ns.read("/m/x") == b"x"
        ns.snapshots.remove("v1")
        assert make(ns, "v1").read("/m/x") == b"x"


def test_a_cancelled_one_leaves_nothing(
    ns: Namespace, origin: FileOrigin, settings: Settings
) -> None:
    origin.fill(10, [100_000] * 100)
    job = ns.snapshots.create("v1", "/m", checksums=True)
    with pytest.raises(AlreadyExists, match="being made"):
        ns.snapshots.create("v1", "/m", replace=True)
    assert job.cancel().state is JobState.CANCELLED
    assert ns.snapshots.list() == [] and keys(settings) == set()
    assert make(ns, "v1").record.objects == 100


def _read_forked(snap: Snapshot, path: str, pipe: object) -> None:
    pipe.send(snap.read(path))  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_snapshot(
    settings: Settings, origin: FileOrigin, method: str
) -> None:
    objects = origin.fill(11, [70_000, 200_000])
    with namespace(settings) as ns:
        snap = make(ns, "v1")
        assert snap.read("/m/00000") == objects["00000"]
        context = multiprocessing.get_context(method)
        for key, data in objects.items():
            here, there = context.Pipe()
            worker = context.Process(  # type: ignore[attr-defined]
                target=_read_forked, args=(snap, f"/m/{key}", there)
            )
            worker.start()
            try:
                assert here.poll(60)
                assert here.recv() == data
            finally:
                worker.join(30)
                worker.kill()


def test_two_processes_read_while_one_is_replaced(settings: Settings, origin: FileOrigin) -> None:
    """Whoever is bound to the old one reads its versions or fails; nobody reads a mixture."""
    origin.fill(12, [5000] * 50)
    with namespace(settings) as ns:
        make(ns, "v1")
        script = (
            "from tiercache.errors import StaleHandle\n"
            "snap = ns.snapshot('v1')\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "told = []\n"
            "for number in range(50):\n"
            "    try:\n"
            "        told.append(len(snap.read(f'/m/{number:05}')))\n"
            "    except StaleHandle:\n"
            "        told.append('stale')\n"
            "print(json.dumps(told))\n"
        )
        child = start_script(script, settings, stdin=-1)
        try:
            assert child.stdout and child.stdout.readline() == b"ready\n"
            for number in range(0, 50, 2):
                origin.put(f"{number:05}", b"new")
            ns.invalidate("/m")
            make(ns, "v1", replace=True)
            out, _ = child.communicate(b"\n", timeout=60)
        finally:
            end(child)
        told = msgspec.json.decode(out)
        assert set(told[0::2]) == {"stale"} and set(told[1::2]) <= {5000, "stale"}
        assert ns.snapshot("v1").read("/m/00000") == b"new"


def test_many_names_quickly_and_in_parts(tmp_path: Path, origin: FileOrigin) -> None:
    origin.root.joinpath("d").mkdir()
    for number in range(20_000):
        (origin.root / f"d/{number:05}").write_bytes(b"%d" % number)
    with namespace(cache_settings(tmp_path / "cache", origin.url), embedded=True) as ns:
        snap = make(ns, "v1")
        assert snap.record.objects == 20_000 and snap.record.parts > 2
        assert [one.path for one in snap.objects()] == [f"/m/d/{n:05}" for n in range(20_000)]
        assert len(snap.list("/m/d")) == 20_000
        some = range(0, 20_000, 97)
        items = [(f"/m/d/{number:05}", 0, None) for number in some]
        assert snap.read_many(items) == [b"%d" % number for number in some]
        with ThreadPoolExecutor(4) as pool:
            paths = [f"/m/d/{number:05}" for number in range(5, 20_000, 501)]
            read = list(pool.map(snap.read, paths))
        assert read == [b"%d" % number for number in range(5, 20_000, 501)]
        assert list(ns.snapshots.diff("v1", "live")) == []


def test_odd_names_are_frozen(
    moto_s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path
) -> None:
    with rig_of(moto_s3, new_bucket(moto_s3), tmp_path) as rig:
        rig.limits = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}
        for name in NAMES:
            rig.put(f"p/{name}", data_of(name))
        ns = rig.namespace(prefix="p")
        snap = make(ns, "v1", checksums=True)
        assert {one.path for one in snap.objects()} == {f"/m/{name}" for name in NAMES}
        found = {entry.name for entry in snap.list("/m", recursive=True)}
        assert found == set(NAMES)
        for directory in ("/m", "/m/a", "/m/x", "/m/trail"):
            assert _shown(snap.list(directory)) == _shown(ns.list(directory)), directory
        rig.proxy.refuse()
        for name in NAMES:
            assert snap.read(f"/m/{name}") == data_of(name)
        assert snap.verify().failures == ()


def _shown(listing: object) -> set[tuple[str, Kind]]:
    return {(entry.name, entry.kind) for entry in listing}  # type: ignore[attr-defined]


def test_a_snapshot_outlives_the_cache_directory(
    settings: Settings, origin: FileOrigin, tmp_path: Path
) -> None:
    objects = origin.fill(13, [70_000, 200_000, 0])
    store = MetadataSettings(url=f"lmdb:{tmp_path / 'volume'}")
    settings = msgspec.structs.replace(settings, metadata=store)
    with namespace(settings, embedded=True) as ns:
        wait_for(lambda: ns.status()["metadata"]["state"] == "attached")
        make(ns, "v1", checksums=True)
        make(ns, "v1", checksums=True, replace=True)
        make(ns, "gone")
        ns.snapshots.remove("gone")
    shutil.rmtree(settings.cache.dir)
    with namespace(settings, embedded=True) as ns:
        wait_for(lambda: ns.status()["metadata"]["state"] == "attached")
        snap = ns.snapshot("v1")
        assert {one.path[3:] for one in snap.objects()} == set(objects)
        assert all(snap.read(f"/m/{key}") == data for key, data in objects.items())
        assert snap.verify().failures == ()
        with pytest.raises(AlreadyExists):
            ns.snapshots.create("v1", "/m")
        assert [record.name for record in ns.snapshots.list()] == ["v1"]
        first = snap.record.first_part
        assert keys(settings) == {b"sv1", catalog.snapshot_part_key("v1", first)}
