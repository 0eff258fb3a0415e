"""What was learnt reaches the metadata store, whatever fails: in order, and each name once."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.metadata_node import Node, object_key, object_record, quicken, run
from tiercache import records
from tiercache.agent import catalog as catalog_module
from tiercache.agent.projection import WRITER_KEY, is_news
from tiercache.clock import FakeClock
from tiercache.errors import MetadataFenced
from tiercache.model import Kind
from tiercache.settings import MetadataSettings
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


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


@pytest.mark.parametrize(
    ("changes", "news"),
    [
        ({}, False),
        ({"validated_s": 9.0, "validated_unix_s": 659.0}, False),  # the same minute
        ({"validated_s": 9.0, "validated_unix_s": 660.0}, True),
        ({"data_id": 7, "packed": True}, False),
        ({"token": "v2"}, True),
        ({"size_bytes": 6}, True),
        ({"mtime_s": 1.0}, True),
        ({"kind": Kind.DIRECTORY}, True),
        ({"kind": Kind.ABSENT}, True),
    ],
)
def test_a_confirmation_is_news_once_a_minute(changes: dict[str, Any], news: bool) -> None:
    known = msgspec.structs.replace(
        object_record("a", "v1", Kind.FILE, FakeClock()), validated_unix_s=605.0
    )
    assert is_news(known, msgspec.structs.replace(known, **changes)) is news
    absent = msgspec.structs.replace(known, kind=Kind.ABSENT)
    assert is_news(absent, known) and is_news(None, known)
    assert not is_news(None, absent) and not is_news(absent, absent)


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
