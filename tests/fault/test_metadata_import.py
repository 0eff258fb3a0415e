"""What a metadata store knows reaches an index, whole and without harm to what is known there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fault.metadata_node import ORIGIN, Node, object_key, parts_of, quicken, run
from tiercache import records
from tiercache.agent import catalog as catalog_module
from tiercache.model import Kind
from tiercache.settings import MetadataSettings
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


def test_a_new_index_takes_over_what_the_store_knows(tmp_path: Path) -> None:
    async def work() -> None:
        shared = SharedMemory()
        first = Node(tmp_path / "1", shared)
        first.catalog.start()
        for number in range(1200):
            first.learn(f"n{number}")
        first.pin("/m/x")
        first.list("d/", 4)
        await first.committed()
        await first.stop()

        second = Node(tmp_path / "2", shared)
        told: list[str] = []
        second.catalog.imported_pins = lambda: told.append(
            "pins" if second.index.get(records.pin_key("/m/x")) else "none"
        )
        second.catalog.start()
        assert second.catalog.is_partial
        await second.attached()
        assert told == ["pins"]
        assert [second.catalog.is_partial] == [False]
        assert second.mirrored() == first.stored() == second.stored()
        found = second.index.get_object(object_key("n7")[1:])
        assert found is not None
        assert (found.boot, found.token) == ("", "v1")
        assert found.validated_unix_s == pytest.approx(first.clock.unix())
        assert second.store is not None and not second.store.batches  # nothing was sent back
        await second.stop()

    run(work)


def test_an_agent_that_comes_back_replays_and_one_that_was_overtaken_imports(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        node.learn("a")
        node.pin("/m/kept")
        node.pin("/m/unpinned")
        await node.committed()
        await node.stop()

        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        await node.attached()
        assert node.catalog.status()["imported_records"] == 0
        await node.stop()

        other = Node(tmp_path / "2", shared)
        other.catalog.start()
        other.learn("b")
        await other.attached()
        other.index.put(records.pin_key("/m/unpinned"), None)
        await other.committed()
        await other.stop()

        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        unsent = node.pin("/m/unsent")
        await node.committed()
        assert node.index.get(object_key("b")) is not None
        assert node.index.get(records.pin_key("/m/unpinned")) is None
        assert node.index.get(records.pin_key("/m/kept")) is not None
        assert node.index.get(unsent) is not None and unsent in node.stored()
        await node.stop()

    run(work)


def test_another_store_gets_all_that_is_known_and_gives_what_it_knows(tmp_path: Path) -> None:
    async def work() -> None:
        shared, wiped = SharedMemory(), SharedMemory()
        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        for number in range(20):
            node.learn(f"n{number}")
        node.pin("/m/x")
        node.list("d/", 3)
        node.list("old/", 2, 2)
        await node.committed()
        await node.stop()

        other = Node(tmp_path / "2", wiped)
        other.clock.advance(1000.0)
        other.catalog.start()
        other.pin("/m/y")
        other.learn("elsewhere")
        other.list("old/", 2, 5)
        await other.committed()
        await other.stop()

        node = Node(tmp_path / "1", wiped)
        node.catalog.start()
        await node.committed()
        known = node.mirrored()
        assert node.stored() == known
        assert records.pin_key("/m/x") in known and records.pin_key("/m/y") in known
        assert object_key("elsewhere") in known and object_key("n3") in known
        assert [len(part.entries) for part in parts_of(node, "old/")] == [5, 5]
        assert [len(part.entries) for part in parts_of(node, "d/")] == [2, 2, 2]
        await node.stop()

    run(work)


def test_without_a_store_for_a_while_everything_is_sent_again(tmp_path: Path) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path, shared)
        node.catalog.start()
        node.learn("a")
        await node.committed()
        await node.stop()
        node = Node(tmp_path, shared, settings=MetadataSettings())
        node.catalog.start()
        assert node.catalog.status()["state"] == "off"
        node.learn("b")
        await node.stop()
        assert object_key("b") not in shared.records
        node = Node(tmp_path, shared)
        node.catalog.start()
        await node.committed()
        assert node.stored() == node.mirrored() and len(node.stored()) == 2
        await node.stop()

    run(work)


def test_damage_in_the_store_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        shared = SharedMemory()
        first = Node(tmp_path / "1", shared)
        first.catalog.start()
        for number in range(20):
            first.learn(f"n{number}")
        first.pin("/m/x")
        first.list("whole/", 3)
        first.list("cut/", 3)
        first.list("mixed/", 2)
        await first.committed()
        first.clock.advance(5.0)
        await first.stop()
        damaged = dict(shared.records)
        for number in range(12):
            damaged[object_key(f"n{number}")] = bytes([1, 0xC1, number])
        damaged[object_key("n12")] = damaged[object_key("n13")]
        damaged[records.pin_key("/m/x")] = b"\x02later"
        damaged[b"x of a later version"] = b"\x02"
        del damaged[records.listing_key(ORIGIN, "cut/", True, 1)]
        # One part of another time: the newer listing was cut off on its way.
        donor = SharedMemory()
        late = Node(tmp_path / "3", donor)
        late.clock.advance(50.0)
        late.catalog.start()
        late.list("mixed/", 2)
        await late.committed()
        await late.stop()
        key = records.listing_key(ORIGIN, "mixed/", True, 1)
        damaged[key] = donor.records[key]
        shared.records = damaged
        shared.sequence += 1

        second = Node(tmp_path / "2", shared)
        second.catalog.start()
        await second.attached()
        status = second.catalog.status()
        assert status["damaged_records"] == 14 and status["state"] == "attached"
        assert len(list(second.index.scan(b"o"))) == 7
        assert len(parts_of(second, "whole/")) == 3
        for prefix in ("cut/", "mixed/"):
            assert second.index.get(records.listing_key(ORIGIN, prefix, True, 0)) is None
        await second.stop()

    with caplog.at_level(logging.WARNING):
        run(work)
    said = [line for line in caplog.messages if "left out" in line]
    assert 0 < len(said) <= 10


def test_what_changes_during_the_import_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        shared = SharedMemory()
        first = Node(tmp_path / "1", shared)
        first.catalog.start()
        for name in ("changed", "removed", "same"):
            first.learn(name)
        first.pin("/m/unpinned")
        first.list("fresh/", 3)
        first.list("dropped/", 3)
        await first.committed()
        await first.stop()

        second = Node(tmp_path / "2", shared)
        gate = asyncio.Event()
        scan = MemoryMetadata.scan

        async def slow_scan(
            self: MemoryMetadata, prefix: bytes, *, start: bytes = b"", limit: int | None = None
        ) -> AsyncIterator[tuple[bytes, bytes]]:
            found = [pair async for pair in scan(self, prefix, start=start, limit=limit)]
            await gate.wait()
            for pair in found:
                yield pair

        monkeypatch.setattr(MemoryMetadata, "scan", slow_scan)
        second.catalog.start()
        await second.until(lambda: second.catalog.status()["state"] == "importing")
        second.clock.advance(10.0)
        second.learn("changed", "v2")
        second.learn("removed", kind=Kind.ABSENT)
        second.index.put(object_key("removed"), None)
        second.index.put(records.pin_key("/m/unpinned"), None)
        second.list("fresh/", 2, 7)
        second.index.put(records.listing_key(ORIGIN, "dropped/", True, 0), None)
        await second.index.flush()
        gate.set()
        await second.committed()
        changed = second.index.get_object(object_key("changed")[1:])
        assert changed is not None and changed.token == "v2"
        assert second.index.get(object_key("removed")) is None
        assert second.index.get(object_key("same")) is not None
        assert second.index.get(records.pin_key("/m/unpinned")) is None
        assert [len(part.entries) for part in parts_of(second, "fresh/")[:2]] == [7, 7]
        assert second.index.get(records.listing_key(ORIGIN, "dropped/", True, 0)) is None
        assert object_key("removed") not in second.stored()
        assert records.pin_key("/m/unpinned") not in second.stored()
        await second.stop()

    run(work)


def test_a_name_is_recalled_while_the_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "RECALL_S", 0.05)

    async def work() -> None:
        shared = SharedMemory()
        first = Node(tmp_path / "1", shared)
        first.catalog.start()
        first.learn("a")
        first.list("d/", 3)
        await first.committed()
        await first.stop()

        second = Node(tmp_path / "2", shared)
        endless = asyncio.Event()
        monkeypatch.setattr(second.catalog, "_import", lambda *_, **__: endless.wait())
        second.catalog.start()
        await second.catalog.recall_object(object_key("a")[1:])
        assert second.index.get(object_key("a")) is not None
        await second.catalog.recall(records.listing_key(ORIGIN, "d/", True, 0))
        assert len(parts_of(second, "d/")) == 3
        await second.catalog.recall_object(object_key("unknown")[1:])
        assert second.index.get(object_key("unknown")) is None
        await second.crash()

        # Nobody waits twice for a store that does not answer, and for one that failed not once.
        third = Node(tmp_path / "3", shared)
        shared.available = False
        third.catalog.start()
        await third.until(lambda: third.catalog.status()["state"] == "unavailable")
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(100):
            await third.catalog.recall_object(object_key("a")[1:])
        assert loop.time() - started < 0.05
        await third.crash()

    run(work)
