"""Making, comparing and verifying snapshots: whole or not at all, and of what there is now."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crc32c
import msgspec
import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    cache_settings,
    namespace,
)
from tests.fault.origin_rig import Rig
from tests.integration.snapshot_kit import (  # noqa: F401  # fixtures
    SIZES,
    keys,
    make,
    ns_fixture,
    origin_fixture,
    rig_fixture,
    settings_fixture,
)
from tiercache import catalog
from tiercache.agent import frozen_parts
from tiercache.agent.index import Index
from tiercache.catalog import SnapshotObject, SnapshotPart
from tiercache.errors import (
    AlreadyExists,
    ConfigError,
    CorruptPage,
    NotFound,
    OriginUnavailable,
    StaleHandle,
)
from tiercache.model import JobState
from tiercache.namespace import Namespace
from tiercache.settings import MountSettings, Settings
from tiercache.testing.datasets import object_bytes
from tiercache.testing.memory_store import MemoryStore
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)


# -- making ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "-x", ".x", "ü", "a b", "x" * 101, "a@snapshot"])
def test_names_that_none_can_have_are_refused(ns: Namespace, name: str) -> None:
    with pytest.raises(ConfigError):
        ns.snapshots.create(name, "/m")
    with pytest.raises(ConfigError):
        ns.snapshots.remove(name)


def test_what_cannot_be_frozen_is_refused(ns: Namespace, origin: FileOrigin) -> None:
    origin.put("d/x", b"x")
    make(ns, "v1")
    for paths in ((), ("/m", "/m/d"), ("/m/d", "/m/d/"), ("/v1@snapshot/m",)):
        with pytest.raises(ConfigError):
            ns.snapshots.create("v2", paths)
    with pytest.raises(ConfigError):
        ns.snapshots.create("live", "/m")
    with pytest.raises(NotFound):
        ns.snapshots.create("v2", "/nowhere")
    assert ns.snapshots.create("v2", "/m/none").wait(30).error_class == "NotFound"
    nothing = ns.snapshots.create("v2", "/m", include=["*.none"]).wait(30)
    assert (nothing.state, nothing.error_class) == (JobState.FAILED, "NotFound")
    assert [record.name for record in ns.snapshots.list()] == ["v1"]


def test_one_is_not_overwritten_unless_asked(
    ns: Namespace, origin: FileOrigin, settings: Settings
) -> None:
    origin.put("x", b"first")
    old = make(ns, "v1")
    with pytest.raises(AlreadyExists):
        ns.snapshots.create("v1", "/m")
    origin.put("x", b"second!")
    origin.put("y", b"too")
    new = make(ns, "v1", replace=True)
    assert new.read("/m/x") == b"second!" and new.record.objects == 2
    with pytest.raises(StaleHandle, match="v1 was replaced"):
        old.read("/m/x")
    with pytest.raises(StaleHandle):
        pickle.loads(pickle.dumps(old))
    assert pickle.loads(pickle.dumps(new)).read("/m/y") == b"too"
    first = new.record.first_part
    assert first != old.record.first_part
    assert keys(settings) == {b"sv1", catalog.snapshot_part_key("v1", first)}
    ns.snapshots.remove("v1")
    assert keys(settings) == set()
    with pytest.raises(NotFound):
        ns.snapshots.remove("v1")
    with pytest.raises(NotFound):
        ns.snapshot("v1")


def test_a_dry_run_counts_and_keeps_nothing(ns: Namespace, origin: FileOrigin) -> None:
    origin.fill(3, [10, 20, 30])
    ended = ns.snapshots.create("v1", "/m", dry_run=True).wait(30)
    assert (ended.state, ended.listed, ended.listed_bytes) == (JobState.DONE, 3, 60)
    assert ns.snapshots.list() == []


def test_globs_choose_and_live_differences_keep_to_them(
    ns: Namespace, origin: FileOrigin, settings: Settings
) -> None:
    for key in ("d/a.bin", "d/b.txt", "d/e/c.bin", "d/e/skip.bin"):
        origin.put(key, key.encode())
    job = ns.snapshots.create("v1", "/m/d", include=["*.bin"], exclude=["e/skip*"])
    assert job.wait(30).state is JobState.DONE
    snap = ns.snapshot("v1")
    assert [one.path for one in snap.objects()] == ["/m/d/a.bin", "/m/d/e/c.bin"]
    assert list(ns.snapshots.diff("v1", "live")) == []
    origin.put("d/later.txt", b"")
    origin.put("d/later.bin", b"")
    origin.put("d/a.bin", b"changed")
    os.unlink(origin.root / "d/e/c.bin")
    changes = [(change.kind, change.path) for change in ns.snapshots.diff("v1", "live")]
    assert changes == [
        ("changed", "/m/d/a.bin"),
        ("removed", "/m/d/e/c.bin"),
        ("added", "/m/d/later.bin"),
    ]
    shutil.rmtree(origin.root / "d")
    assert {change.kind for change in ns.snapshots.diff("v1", "live")} == {"removed"}
    assert {key[1:3] for key in keys(settings)} == {b"v1"}  # nothing is left of comparisons


def test_two_snapshots_are_compared(ns: Namespace, origin: FileOrigin) -> None:
    origin.fill(4, [10, 20, 30])
    make(ns, "a")
    make(ns, "same")
    origin.put("00001", b"longer than twenty bytes")
    origin.put("00000a", b"")
    os.unlink(origin.root / "00002")
    make(ns, "b")
    assert list(ns.snapshots.diff("a", "same")) == []
    changes = list(ns.snapshots.diff("a", "b"))
    assert [(change.kind, change.path[3:]) for change in changes] == [
        ("added", "00000a"),
        ("changed", "00001"),
        ("removed", "00002"),
    ]
    assert changes[1].before and changes[1].after
    assert (changes[1].before.size_bytes, changes[1].after.size_bytes) == (20, 24)
    back = [change.kind for change in ns.snapshots.diff("b", "a")]
    assert back == ["removed", "changed", "added"]


def test_an_origin_that_cannot_be_asked_gives_no_snapshot(rig: Rig) -> None:
    rig.put("d/x", b"x")
    ns = rig.namespace(ttl_s=0.001)
    make(ns, "v1")
    assert [entry.name for entry in ns.list("/m/d")] == ["x"]
    rig.proxy.refuse()
    for path in ("/m", "/m/d", "/m/d/x"):
        ended = ns.snapshots.create("v2", path).wait(30)
        assert (ended.state, ended.error_class) == (JobState.FAILED, "OriginUnavailable"), path
    with pytest.raises(OriginUnavailable):
        list(ns.snapshots.diff("v1", "live"))
    assert [record.name for record in ns.snapshots.list()] == ["v1"]


def test_nested_mounts_show_as_the_namespace_shows_them(tmp_path: Path) -> None:
    outer, inner = FileOrigin(tmp_path / "outer"), FileOrigin(tmp_path / "inner")
    for key in ("a", "x/hidden", "z"):
        outer.put(key, b"outer")
    inner.put("y", b"inner")
    settings = cache_settings(tmp_path / "cache", outer.url)
    nested = MountSettings(path="/m/x", origin=inner.url)
    settings = msgspec.structs.replace(settings, mounts=(*settings.mounts, nested))
    with namespace(settings, embedded=True) as ns:
        for above in ("/m", "/"):
            snap = make(ns, "v1", above, replace=True)
            assert [one.path for one in snap.objects()] == ["/m/a", "/m/x/y", "/m/z"]
        assert snap.read("/m/x/y") == b"inner" and snap.read("/m/z") == b"outer"


def test_a_mount_that_leads_elsewhere_by_now_is_no_stand_in(tmp_path: Path) -> None:
    first, second = FileOrigin(tmp_path / "first"), FileOrigin(tmp_path / "second")
    first.put("x", b"first")
    second.put("x", b"second")
    settings = cache_settings(tmp_path / "cache", first.url)
    with namespace(settings, embedded=True) as ns:
        make(ns, "v1")
    moved = MountSettings(path="/m", origin=second.url)
    with namespace(msgspec.structs.replace(settings, mounts=(moved,)), embedded=True) as ns:
        with pytest.raises(ConfigError, match="frozen of"):
            ns.snapshot("v1").read("/m/x")
        ended = ns.prefetch(["v1@snapshot"]).wait(30)
        assert (ended.failed, ended.error_class) == (1, "ConfigError")
    with namespace(msgspec.structs.replace(settings, mounts=()), embedded=True) as ns:
        snap = ns.snapshot("v1")
        with pytest.raises(ConfigError, match="not mounted"):
            snap.read("/m/x")


def test_a_mount_cannot_have_a_name_of_snapshots(tmp_path: Path, origin: FileOrigin) -> None:
    settings = cache_settings(tmp_path / "cache", origin.url)
    mount = MountSettings(path="/x@snapshot", origin=origin.url)
    with pytest.raises(ConfigError, match="snapshots"):
        Namespace(msgspec.structs.replace(settings, mounts=(mount,)), embedded=True).client  # noqa: B018


def test_urls_are_frozen_and_read_by_url(ns: Namespace, origin: FileOrigin, tmp_path: Path) -> None:
    other = FileOrigin(tmp_path / "other")
    other.put("d/x", b"by url")
    origin.put("y", b"mounted")
    snap = make(ns, "v1", other.url, f"{origin.url}/y")
    assert snap.read(f"{other.url}/d/x") == b"by url"
    assert snap.read("/m/y") == snap.read(f"{origin.url}/y") == b"mounted"
    assert ns.read(f"/v1@snapshot/{other.url}/d/x") == b"by url"
    assert [entry.name for entry in snap.list(f"{other.url}/d")] == ["x"]
    assert "m" in [entry.name for entry in snap.list()]
    assert list(ns.snapshots.diff("v1", "live")) == []


# -- checksums ------------------------------------------------------------------------------


def test_checksums_are_those_of_the_bytes_and_are_verified(
    ns: Namespace, origin: FileOrigin
) -> None:
    objects = origin.fill(5, SIZES)
    snap = make(ns, "v1", checksums=True)
    for one in snap.objects():
        assert one.crc32c == crc32c.crc32c(objects[one.path[3:]])
    found = snap.verify()
    assert (found.checked, found.checked_bytes) == (len(SIZES), sum(SIZES))
    assert (found.unchecked, found.failures) == (0, ())
    assert snap.verify("/m/00002").checked == 1
    with pytest.raises(NotFound):
        snap.verify("/m/none")
    origin.put("00001", b"replaced")
    ns.evict("/m")
    failures = snap.verify().failures
    assert [(type(error), error.path) for error in failures] == [(StaleHandle, "/m/00001")]
    plain = make(ns, "plain", "/m/00000")
    assert (plain.verify().checked, plain.verify().unchecked) == (0, 1)


def test_checksums_of_more_than_the_cache_holds(tmp_path: Path, origin: FileOrigin) -> None:
    objects = origin.fill(6, [30 * MIB, 9 * MIB, 9 * MIB, 100_000])
    settings = cache_settings(
        tmp_path / "cache", origin.url, capacity_bytes=24 * MIB, memory_bytes=24 * MIB
    )
    with namespace(settings, embedded=True) as ns:
        snap = make(ns, "v1", checksums=True)
        found = {one.path[3:]: one.crc32c for one in snap.objects()}
        assert found == {key: crc32c.crc32c(data) for key, data in objects.items()}
        assert snap.verify().failures == ()


def test_bytes_that_are_not_those_frozen_are_found(ns: Namespace, origin: FileOrigin) -> None:
    """An origin that gives other bytes under the same token: only the checksum can tell."""
    data = object_bytes("same", 100_000)
    origin.put("x", data)
    snap = make(ns, "v1", checksums=True)
    before = (origin.root / "x").stat()
    with open(origin.root / "x", "r+b") as file:
        file.write(b"changed in place")
    os.utime(origin.root / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
    ns.evict("/m")
    (error,) = snap.verify().failures
    assert isinstance(error, CorruptPage) and error.path == "/m/x"
    assert f"{crc32c.crc32c(data):08x}" in str(error)


# -- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled", "two mounts"])
def test_parts_are_in_path_order_however_objects_come(
    order: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(frozen_parts, "PART_OBJECTS", 100)
    monkeypatch.setattr(frozen_parts, "SORT_BYTES", 40_000)
    paths = [f"/m/{number:05}" for number in range(3333)]
    given = {
        "sorted": paths,
        "reversed": paths[::-1],
        "shuffled": random.Random(seed).sample(paths, len(paths)),
        "two mounts": paths[1000:2000] + paths[:1000] + paths[1500:],
    }[order]
    store = MemoryStore()

    async def write() -> frozen_parts.FrozenParts:
        with ThreadPoolExecutor(1) as executor:
            parts = frozen_parts.FrozenParts(Index(store, executor), "v1", 7)
            for start in range(0, len(given), 10):
                await parts.add(
                    SnapshotObject(path, "o", path, "t", 2) for path in given[start : start + 10]
                )
            await parts.finish()
            return parts

    parts = asyncio.run(write())
    numbers = range(parts.first_part, parts.first_part + len(parts.firsts))
    read = [catalog.decode(key, raw) for key, raw in store.scan(b"t")]
    assert [key for key, _ in store.scan(b"t")] == [
        catalog.snapshot_part_key("v1", number) for number in numbers
    ]
    found = [one.path for part in read if isinstance(part, SnapshotPart) for one in part.objects]
    assert found == paths
    assert (parts.objects, parts.size_bytes) == (len(paths), 2 * len(paths))
    firsts = [part.objects[0].path for part in read if isinstance(part, SnapshotPart)]
    assert parts.firsts == firsts and len(firsts) > 30
