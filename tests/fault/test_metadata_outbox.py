"""What was learnt reaches the metadata store: whatever fails on the way, in order, each name once;
and what a store knows reaches an index without harm to what is known there."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from tests.fault.metadata_node import ORIGIN, Node, object_key
from tiercache import records
from tiercache.agent import catalog as catalog_module
from tiercache.agent.projection import WRITER_KEY
from tiercache.errors import MetadataFenced
from tiercache.model import Kind
from tiercache.policy.retry import RetryPolicy
from tiercache.records import ListingPart
from tiercache.settings import MetadataSettings
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    retries = RetryPolicy(deadline_s=60.0, base_s=0.01, cap_s=0.02)
    monkeypatch.setattr(catalog_module, "RETRIES", retries)
    monkeypatch.setattr(catalog_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(catalog_module, "LEAVE_S", 0.2)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50.0):
            await work()

    asyncio.run(bounded())


def parts_of(node: Node, prefix: str) -> list[ListingPart]:
    key = records.listing_key(ORIGIN, prefix, True, 0)
    raws = [raw for _, raw in node.index.scan(records.listing_hash_key(key))]
    return [records.decode_listing(raw) for raw in raws]


# -- learning -------------------------------------------------------------------------------


def test_what_is_learnt_is_committed_and_placement_is_not(tmp_path: Path) -> None:
    async def work() -> None:
        node = Node(tmp_path, SharedMemory())
        node.catalog.start()
        await node.attached()
        key = node.learn("a")
        node.pin("/m/a")
        node.list("d/", 3)
        await node.committed()
        assert node.stored() == node.mirrored() and len(node.stored()) == 5
        assert node.store is not None
        commits = len(node.store.batches)
        record = node.index.get_object(key[1:])
        assert record is not None
        node.index.put_object(key[1:], msgspec.structs.replace(record, data_id=7))
        await node.index.flush()
        await asyncio.sleep(0.05)
        assert len(node.store.batches) == commits
        assert node.catalog.status()["pending_keys"] == 0
        await node.stop()

    run(work)


def test_absence_and_doubt_are_no_knowledge(tmp_path: Path) -> None:
    async def work() -> None:
        node = Node(tmp_path, SharedMemory())
        node.catalog.start()
        for name in ("gone", "doubtful", "stays"):
            node.learn(name)
        node.learn("never", kind=Kind.ABSENT)
        await node.committed()
        assert len(node.stored()) == 3
        node.learn("gone", kind=Kind.ABSENT)
        digest = object_key("doubtful")[1:]
        record = node.index.get_object(digest)
        assert record is not None
        doubtful = msgspec.structs.replace(record, validated_s=float("-inf"))
        node.index.learn_object(digest, doubtful)
        await node.committed()
        assert set(node.stored()) == {object_key("stays")}
        await node.stop()

    run(work)


def test_what_waits_goes_in_order_and_each_name_once(tmp_path: Path) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path, shared)
        node.catalog.start()
        await node.attached()
        shared.available = False
        names = [f"n{number}" for number in range(50)]
        for token in ("v1", "v2", "v3"):
            for name in names:
                node.learn(name, token)
                await node.index.flush()
        await node.until(lambda: node.catalog.status()["state"] == "unavailable")
        assert node.catalog.status()["pending_keys"] == len(names)
        assert "MetadataUnavailable" in node.catalog.status()["problem"]
        await node.crash()

        node = Node(tmp_path, shared)
        node.catalog.start()
        assert node.catalog.status()["pending_keys"] == len(names)
        shared.available = True
        await node.committed()
        assert node.store is not None
        sent = [key for batch in node.store.batches for key in batch]
        assert sent == [object_key(name) for name in names]
        assert node.stored() == node.mirrored()
        assert node.catalog.status()["imported_records"] == 0
        assert node.catalog.status()["problem"] == ""
        assert not list(node.index.scan(b"q")) and not list(node.index.scan(b"Q"))
        await node.stop()

    run(work)


@pytest.mark.parametrize("moment", ["while it is built", "while it is sent"])
def test_what_is_learnt_again_on_its_way_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(catalog_module, "TURN_KEYS", 1)

    async def work() -> None:
        node = Node(tmp_path, SharedMemory())
        node.catalog.start()
        await node.attached()
        assert node.store is not None
        learnt: list[asyncio.Task[None]] = []

        def learn_again() -> None:
            if not learnt:
                node.learn("n0", "v2")
                learnt.append(asyncio.create_task(node.index.flush()))

        if moment == "while it is sent":

            def fail() -> str:
                learn_again()
                return "no"

            node.store.fail = fail
        else:
            value = node.catalog._value

            def value_then_learn(key: bytes) -> bytes | None:
                if key == object_key("n9"):
                    learn_again()
                return value(key)

            monkeypatch.setattr(node.catalog, "_value", value_then_learn)
        for number in range(100):
            node.learn(f"n{number}")
        await node.committed()
        assert len(learnt) == 1 and learnt[0].done()
        assert node.stored() == node.mirrored()
        sent = [key for batch in node.store.batches for key in batch]
        assert sent.count(object_key("n0")) == 2
        await node.stop()

    run(work)


def test_large_batches_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "BATCH_KEYS", 7)
    monkeypatch.setattr(catalog_module, "BATCH_BYTES", 20_000)

    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path, shared)
        shared.available = False
        node.catalog.start()
        for number in range(30):
            node.learn(f"n{number}")
        node.list("d/", 5, 300)
        await node.index.flush()
        shared.available = True
        await node.committed()
        assert node.store is not None
        sizes = [sum(len(raw or b"") for raw in batch.values()) for batch in node.store.batches]
        assert max(len(batch) for batch in node.store.batches) <= 7
        assert max(sizes) <= 20_000 and len(sizes) >= 6
        assert node.stored() == node.mirrored()
        await node.stop()

    run(work)


@pytest.mark.parametrize("round_number", range(6))
def test_nothing_is_lost_whatever_fails(tmp_path: Path, seed: int, round_number: int) -> None:
    """Random changes, failures before and after a commit, and crashes: in the end the store holds
    what the index knows."""
    rng = random.Random(f"{seed}/{round_number}")

    async def change(node: Node) -> None:
        name = f"n{rng.randrange(12)}"
        match rng.randrange(8):
            case 0:
                node.index.put(object_key(name), None)
            case 1:
                node.learn(name, kind=Kind.ABSENT)
            case 2:
                node.pin(f"/m/{name}")
            case 3:
                node.index.put(records.pin_key(f"/m/{name}"), None)
            case 4:
                node.list(f"{name}/", rng.randrange(1, 4))
            case _:
                node.learn(name, str(rng.random()))
        node.clock.advance(1.0)
        if rng.random() < 0.5:
            await node.index.flush()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005]))

    async def work() -> None:
        shared = SharedMemory()
        for _ in range(6):
            node = Node(tmp_path, shared)
            node.catalog.start()
            for _ in range(40):
                await change(node)
                if node.store is not None:
                    node.store.fail = lambda: rng.choice(["no", "no", "before", "after"])
                shared.available = rng.random() < 0.8
            shared.available = True
            await (node.crash() if rng.random() < 0.7 else node.stop())
        node = Node(tmp_path, shared)
        node.catalog.start()
        await node.committed()
        assert node.stored() == node.mirrored()
        await node.stop()

    run(work)


def test_an_unreadable_record_is_left_out(tmp_path: Path) -> None:
    async def work() -> None:
        node = Node(tmp_path, SharedMemory())
        node.catalog.start()
        await node.attached()
        node.index.put(object_key("bad"), b"\xc1garbage")
        node.learn("good")
        await node.committed()
        assert set(node.stored()) == {object_key("good")}
        assert node.catalog.status()["damaged_records"] == 1
        await node.stop()

    run(work)


# -- attaching ------------------------------------------------------------------------------


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
        await second.catalog.recall_listing(records.listing_key(ORIGIN, "d/", True, 0))
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


# -- fencing --------------------------------------------------------------------------------


def test_a_fenced_agent_commits_no_more_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        node.learn("a")
        await node.committed()
        node.catalog.assert_not_fenced()
        other = Node(tmp_path / "2", shared)
        other.catalog.start()
        await other.attached()
        before = dict(shared.records)
        node.learn("b")
        await node.index.flush()
        await node.until(lambda: node.catalog.status()["state"] == "fenced")
        with pytest.raises(MetadataFenced):
            node.catalog.assert_not_fenced()
        node.learn("c")
        await node.index.flush()
        await asyncio.sleep(0.05)
        assert shared.records == before
        assert node.catalog.status()["pending_keys"] == 2
        assert node.index.get(object_key("c")) is not None  # it goes on by itself
        await node.stop()
        await other.stop()

    with caplog.at_level(logging.ERROR):
        run(work)
    assert sum("taken over" in line for line in caplog.messages) == 1


def test_the_heartbeat_finds_a_takeover_while_strong_mounts_are_used(tmp_path: Path) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path / "1", shared)
        node.catalog.start()
        await node.attached()
        MemoryMetadata(shared)  # somebody takes over, and nothing is to be committed here
        await asyncio.sleep(0.1)
        assert node.catalog.status()["state"] == "attached"  # nobody asks while nobody cares
        node.catalog.assert_not_fenced()
        await node.until(lambda: node.catalog.status()["state"] == "fenced")
        with pytest.raises(MetadataFenced, match="taken the store over"):
            node.catalog.assert_not_fenced()
        await node.stop()

    run(work)


def test_without_a_store_nothing_is_kept_for_one(tmp_path: Path) -> None:
    async def work() -> None:
        node = Node(tmp_path, SharedMemory(), settings=MetadataSettings())
        node.catalog.start()
        node.learn("a")
        node.pin("/m/a")
        await node.index.flush()
        assert node.index.outbox is None and not node.catalog.is_partial
        assert {key[:1] for key, _ in node.index_store.scan(b"")} == {b"o", b"p"}
        node.catalog.assert_not_fenced()
        await node.stop()

    run(work)


def test_the_writer_is_named_with_each_commit(tmp_path: Path) -> None:
    async def work() -> None:
        shared = SharedMemory()
        node = Node(tmp_path, shared)
        node.catalog.start()
        for number in range(3):
            node.learn(f"n{number}")
            await node.committed()
            assert WRITER_KEY in shared.records
            assert node.catalog.status()["sequence"] == shared.sequence
        await node.stop()

    run(work)
