"""Capacity by identity on a real agent: two identities, told apart by path and by name."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tiercache
from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    end,
    end_agents,
    kill_agent,
    namespace,
    occupied_bytes,
    shut_down,
    start_script,
    wait_for,
)
from tiercache import catalog, compose
from tiercache.agent.contents import Contents
from tiercache.errors import CacheFull
from tiercache.metadata.open import open_metadata
from tiercache.namespace import Namespace
from tiercache.qos_reports import QuotaNow
from tiercache.records import QuotaRecord
from tiercache.settings import MetadataSettings, QosSettings, Settings
from tiercache.testing.datasets import object_bytes
from tiercache.units import KIB, MIB

pytestmark = pytest.mark.timeout(120)

MAX_BYTES = 6 * MIB
MIN_BYTES = 8 * MIB
POLICY = f"""
version = 1
[[identity]]
name = "ann"
match = {{ path = "/m/ann" }}
capacity = {{ max = {MAX_BYTES}, pin_max = "2MiB" }}
[[identity]]
name = "bob"
match = {{ path = "/m/bob" }}
capacity = {{ min = {MIN_BYTES} }}
[[identity]]
name = "eve"
match = {{ name = "eve" }}
"""


class Rig:
    """Objects below /m/ann, /m/bob and /m/rest, and a policy file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = FileOrigin(root / "origin")
        self.objects: dict[str, bytes] = {}
        for who, sizes in (
            ("ann", [700 * KIB] * 14 + [30 * KIB] * 40),
            ("bob", [900 * KIB] * 10 + [20 * KIB] * 20),
            ("rest", [800 * KIB] * 60),
        ):
            found = self.origin.fill(who, sizes, prefix=f"{who}/")
            self.objects |= {f"/m/{key}": data for key, data in found.items()}
        self.policy = root / "policy.toml"
        self.write_policy(POLICY)

    def write_policy(self, text: str) -> None:
        other = self.root / "policy.new"
        other.write_text(text)
        other.rename(self.policy)

    def settings(self, name: str = "") -> Settings:
        settings = cache_settings(
            self.root / "cache", self.origin.url, capacity_bytes=32 * MIB, idle_timeout_s=60
        )
        qos = QosSettings(policy=str(self.policy), name=name)
        return msgspec.structs.replace(settings, qos=qos)

    def paths(self, who: str) -> list[str]:
        return [path for path in self.objects if path.startswith(f"/m/{who}/")]

    def read_all(self, ns: Namespace, who: str) -> None:
        for path in self.paths(who):
            assert ns.read(path) == self.objects[path], path

    @property
    def extents(self) -> Path:
        return self.root / "cache" / "extents"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    try:
        yield found
    finally:
        end_agents(tmp_path / "cache")


def quota(ns: Namespace, identity: str) -> QuotaNow:
    return next(one for one in ns.qos.quotas().quotas if one.identity == identity)


def test_over_max_bytes_are_read_through_and_right(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        rig.read_all(ns, "ann")
        rig.read_all(ns, "ann")
        ann = quota(ns, "ann")
        assert MAX_BYTES // 2 < ann.used_bytes <= MAX_BYTES
        assert occupied_bytes(rig.extents) <= MAX_BYTES + MIB
        # What cannot be cached at all is read all the same.
        rig.origin.put("ann/huge", b"h" * 9 * MIB)
        assert ns.read("/m/ann/huge") == b"h" * 9 * MIB
        assert quota(ns, "ann").used_bytes <= MAX_BYTES
        assert_ledger_agrees(ns, rig.root / "cache")
        assert not ns.qos.check_quotas().problems


def test_others_do_not_take_it_below_min(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        rig.read_all(ns, "bob")
        kept = quota(ns, "bob").used_bytes
        assert kept > MIN_BYTES
        for _ in range(2):
            rig.read_all(ns, "rest")
        left = quota(ns, "bob")
        assert MIN_BYTES <= left.used_bytes <= kept
        assert ns.status()["cache"]["evicted_extents"] > 0
        rig.read_all(ns, "ann")
        assert quota(ns, "bob").used_bytes >= MIN_BYTES


def test_pins_beyond_pin_max_are_refused_and_say_so(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        paths = rig.paths("ann")[:4]
        for path in paths:
            ns.read(path)
        ns.pin(paths[0])
        ns.pin(paths[1])
        with pytest.raises(CacheFull, match=r"'ann' has pinned .* of its pin_max of 2.0 MiB") as no:
            ns.pin(paths[2])
        assert no.value.path == paths[2] and "quota set ann pin_max" in no.value.remedy
        with pytest.raises(CacheFull):
            ns.local_path(paths[3], pin=True)
        ann = quota(ns, "ann")
        assert 2 * 700 * KIB <= ann.pinned_bytes <= 2 * MIB and ann.pins_refused == 2
        rig.read_all(ns, "ann")
        fetched = ns.status()["origins"][0]["bytes_read"]
        for path in paths[:2]:
            assert ns.read(path) == rig.objects[path]
        assert ns.status()["origins"][0]["bytes_read"] == fetched, "what is pinned stays"
        # What comes later under a pin, and is too much, is not held.
        ns.unpin(paths[0])
        ns.unpin(paths[1])
        ns.evict("/m/ann")
        ns.pin("/m/ann")
        rig.read_all(ns, "ann")
        ann = quota(ns, "ann")
        assert 0 < ann.pinned_bytes <= 2 * MIB
        assert ann.unpinned_bytes > 0 and ann.used_bytes <= MAX_BYTES


def test_a_killed_agent_leaves_sums_that_the_next_one_makes_right(rig: Rig) -> None:
    settings = rig.settings()
    with namespace(settings) as ns:
        rig.read_all(ns, "ann")
        rig.read_all(ns, "bob")
        held = {who: quota(ns, who) for who in ("ann", "bob")}
        assert kill_agent(rig.root / "cache")
        rig.read_all(ns, "bob")  # starts the next agent
        assert not ns.qos.check_quotas().problems
        for who, before in held.items():
            now = quota(ns, who)
            assert now.used_bytes == pytest.approx(before.used_bytes, rel=0.1)
            assert now.extents >= before.extents - 2
        shut_down(ns)
    report = compose.fsck(settings)
    assert report.clean, report.problems
    assert sums(settings).keys() >= {"ann", "bob"}


def sums(settings: Settings) -> dict[str, Any]:
    """Return what the index of a still directory records, read as bytes."""
    from tiercache.metadata.lmdb_store import LmdbStore

    store = LmdbStore(Path(settings.cache.dir) / "index.lmdb")
    try:
        found = [msgspec.msgpack.decode(raw) for _, raw in store.scan(b"u")]
    finally:
        store.close()
    return {record[0]: record[1:] for record in found}


def test_what_fsck_finds_it_repairs(rig: Rig) -> None:
    from tiercache.metadata.lmdb_store import LmdbStore

    settings = rig.settings()
    with namespace(settings) as ns:
        rig.read_all(ns, "ann")
        shut_down(ns)
    right = sums(settings)
    store = LmdbStore(Path(settings.cache.dir) / "index.lmdb")
    ((key, raw),) = [pair for pair in store.scan(b"u") if b"ann" in pair[1]]
    who, used, pinned, extents = msgspec.msgpack.decode(raw)
    store.commit({key: msgspec.msgpack.encode([who, used + 5, pinned, extents])})
    store.close()
    found = compose.fsck(settings)
    assert [(p.kind, p.subject, p.corruption) for p in found.problems] == [
        ("quota", "identity ann", False)
    ]
    assert compose.fsck(settings, repair=True).repaired
    assert compose.fsck(settings).clean
    assert sums(settings) == right


def test_a_lowered_max_is_met_within_seconds(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        rig.read_all(ns, "ann")
        assert quota(ns, "ann").used_bytes > 4 * MIB
        ns.qos.set("ann", {"capacity.max": "3MiB", "capacity.pin_max": "1MiB"})
        wait_for(lambda: quota(ns, "ann").used_bytes <= 3 * MIB, timeout_s=20)
        rig.read_all(ns, "ann")
        assert quota(ns, "ann").used_bytes <= 3 * MIB
        assert not ns.qos.check_quotas().problems


def test_shared_bytes_are_the_first_readers_and_pass_on(rig: Rig) -> None:
    """ann's files are read by eve, who is told apart by her name and has no bound."""
    with namespace(rig.settings()) as ns:
        paths = rig.paths("ann")[:6]
        for path in paths:
            ns.read(path)
        before = quota(ns, "ann").used_bytes
        rig.write_policy(POLICY.replace('path = "/m/ann"', 'name = "ann"'))
        wait_for(lambda: "name 'ann'" in str(ns.qos.show()), timeout_s=10)
        with tiercache.connect(rig.settings("eve")) as eve:
            for path in paths:
                assert eve.read(path) == rig.objects[path]
            assert quota(ns, "ann").used_bytes == before, "the first who admitted it pays"
        with tiercache.connect(rig.settings("ann")) as ann:
            for path in rig.paths("ann")[6:]:
                assert ann.read(path) == rig.objects[path]
        assert quota(ns, "eve").used_bytes > 0
        assert quota(ns, "ann").used_bytes <= MAX_BYTES
        fetched = ns.status()["origins"][0]["bytes_read"]
        with tiercache.connect(rig.settings("eve")) as eve:
            for path in paths:
                assert eve.read(path) == rig.objects[path]
        assert ns.status()["origins"][0]["bytes_read"] == fetched, "it was passed on, not evicted"


def test_the_metadata_store_tells_what_a_node_held(rig: Rig) -> None:
    store = MetadataSettings(url=f"lmdb:{rig.root}/store")
    settings = msgspec.structs.replace(rig.settings(), metadata=store)
    with namespace(settings) as ns:
        wait_for(lambda: ns.status()["metadata"]["state"] == "attached")
        rig.read_all(ns, "ann")
        held = quota(ns, "ann")
        shut_down(ns)
    assert told(store) == {"ann": QuotaRecord("ann", held.used_bytes, 0, held.extents)}
    # Another node, which holds nothing and bounds nobody, takes the store over.
    other = msgspec.structs.replace(
        settings,
        cache=msgspec.structs.replace(settings.cache, dir=str(rig.root / "other")),
        qos=QosSettings(),
    )
    with namespace(other) as ns:
        wait_for(lambda: ns.status()["metadata"]["state"] == "attached")
        shut_down(ns)
    assert told(store) == {}


def told(store: MetadataSettings) -> dict[str, QuotaRecord]:
    async def read() -> dict[str, QuotaRecord]:
        opened = await open_metadata(store, {})
        try:
            found = [catalog.decode(key, value) async for key, value in opened.scan(b"u")]
        finally:
            await opened.close()
        return {one.identity: one for one in found if isinstance(one, QuotaRecord)}

    return asyncio.run(read())


def test_without_a_policy_any_more_nothing_is_recorded(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        rig.read_all(ns, "ann")
        shut_down(ns)
    assert "ann" in sums(rig.settings())
    bare = msgspec.structs.replace(rig.settings(), qos=QosSettings())
    with namespace(bare) as ns:
        rig.read_all(ns, "ann")
        assert not ns.qos.quotas().in_force
        assert not ns.qos.check_quotas().problems
        shut_down(ns)
    assert sums(bare) == {}
    assert compose.fsck(bare).clean


def test_writes_are_charged_to_who_writes(rig: Rig) -> None:
    with namespace(rig.settings()) as ns:
        for number, size in enumerate((3 * MIB, 50 * KIB, 9 * MIB, 2 * MIB, 200 * KIB)):
            data = object_bytes(f"write/{number}", size)
            ns.write(f"/m/ann/w{number}", data)
            assert ns.read(f"/m/ann/w{number}") == data
            assert quota(ns, "ann").used_bytes <= MAX_BYTES
        assert quota(ns, "ann").used_bytes > MIB
        assert quota(ns, "default").used_bytes == 0
        assert not ns.qos.check_quotas().problems
        shut_down(ns)
    assert compose.fsck(rig.settings()).clean


def test_a_write_under_a_pin_is_pinned_by_a_look_at_its_own_extents(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at all that is cached would hold the agent up for a second where that is much."""
    with namespace(rig.settings(), embedded=True) as ns:
        ns.pin("/m/ann")
        monkeypatch.delattr(Contents, "refresh_pins")
        ns.write("/m/ann/written", b"w" * MIB)
        ann = quota(ns, "ann")
        assert MIB <= ann.pinned_bytes <= 2 * MIB
        assert ns.status()["agent"]["internal_errors"] == 0


def test_many_processes_of_two_identities_at_once(rig: Rig) -> None:
    script = """
for _ in range(2):
    for path in arguments:
        data = ns.read(path)
        assert data == object_bytes(path[3:].split("/")[0] + "/" + str(int(path[-5:])), len(data))
print("right", flush=True)
"""
    settings = rig.settings()
    with namespace(settings) as ns:
        ns.stat("/m/ann")
        readers = [
            start_script(script, settings, *rig.paths(who)) for who in ("ann", "bob", "ann", "rest")
        ]
        try:
            most = 0
            while any(reader.poll() is None for reader in readers):
                most = max(most, quota(ns, "ann").used_bytes)
                select.select([], [], [], 0.01)
            assert all(reader.communicate()[0] == b"right\n" for reader in readers)
        finally:
            for reader in readers:
                end(reader)
        assert MAX_BYTES // 2 < most <= MAX_BYTES
        assert quota(ns, "bob").used_bytes >= MIN_BYTES
        wait_for(lambda: not quota(ns, "ann").reserved_bytes)
        assert not ns.qos.check_quotas().problems
        assert_ledger_agrees(ns, rig.root / "cache")
