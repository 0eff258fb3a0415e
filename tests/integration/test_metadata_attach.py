"""A node that is lost takes no knowledge along: another one, or the same with an empty NVMe, knows
names, listings, pins and jobs from the metadata store, while the origin cannot be reached."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.metadata_rig import (
    ENGINES,
    MetadataRig,
    attached,
    in_state,
    metadata,
    metadata_rig_of,
)
from tests.fault.origin_rig import eventually, kill_agent
from tiercache import catalog, records
from tiercache.catalog import CatalogListing
from tiercache.errors import OriginUnavailable
from tiercache.model import Consistency, Entry, JobState, Kind
from tiercache.namespace import Namespace
from tiercache.records import PART_ENTRIES, PinRecord
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault

pytestmark = pytest.mark.timeout(90)

NAMES = 100_000
DATA = object_bytes("attach", 40_000)


@pytest.fixture(params=ENGINES)
def rig(
    request: pytest.FixtureRequest,
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
) -> Iterator[MetadataRig]:
    with metadata_rig_of(s3, new_bucket(s3), tmp_path, request.param) as rig:
        yield rig


def fill(rig: MetadataRig, count: int = 12) -> list[str]:
    names = [f"train/{number:03}.bin" for number in range(count)]
    rig.rig.server.put_many(rig.rig.bucket, [(f"data/{name}", DATA) for name in names])
    return names


def origin_of(rig: MetadataRig) -> str:
    """Return the identity of the origin, as the nodes of this rig have it."""
    endpoint = rig.rig.proxy.url.removeprefix("http://")
    return f"s3://{rig.rig.bucket}@{endpoint}"


# -- the lost node --------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", [Consistency.EVENTUAL, Consistency.IMMUTABLE])
def test_a_fresh_node_knows_what_a_lost_one_knew(
    rig: MetadataRig, consistency: Consistency
) -> None:
    names = fill(rig)
    first = rig.node("first", consistency)
    listed = list(first.list("/m", recursive=True))
    assert [entry.name for entry in listed] == names
    first.pin("/m/train")
    first.read(f"/m/{names[0]}")
    version = first.stat(f"/m/{names[0]}").version
    attached(first)
    rig.lose(first)

    rig.cut_off()
    fresh = rig.node("second", consistency)
    again = fresh.list("/m", recursive=True)
    assert list(again) == listed
    assert again.stale and 0.0 < again.age_s < 60.0
    # Of a directory that was never listed by itself too.
    inferred = fresh.list("/m/train")
    assert [f"train/{entry.name}" for entry in inferred] == names
    found = fresh.stat(f"/m/{names[0]}")
    assert (found.version, found.size_bytes) == (version, len(DATA))
    assert 0.0 < found.age_s < 60.0
    assert found.stale is (consistency is Consistency.EVENTUAL)
    eventually(lambda: fresh.status()["pins"] == ["/m/train"], what="the pins are back")
    # The bytes went with the node, and nobody says that they never were.
    with pytest.raises(OriginUnavailable):
        fresh.read(f"/m/{names[0]}")
    rig.rig.proxy.heal()
    eventually(lambda: readable(fresh, f"/m/{names[0]}"), what="the origin is back")
    status = attached(fresh)
    assert status["imported_records"] >= len(names) and status["damaged_records"] == 0


def readable(ns: Namespace, path: str) -> bool:
    try:
        return ns.read(path) == DATA
    except OriginUnavailable:
        return False


def test_a_hundred_thousand_names_are_listed_without_the_origin(rig: MetadataRig) -> None:
    """The bar of the attachment, less its time: the benchmark has that."""
    entries = tuple(
        Entry(f"s{number // 1000:03}/{number:06}", Kind.FILE, 1000, f'"{number}"', 1e9)
        for number in range(NAMES)
    )
    made_unix_s = time.time() - 1000.0
    batch = listing_batch(origin_of(rig), "data/", entries, made_unix_s)
    pin = PinRecord("/m/s001", origin_of(rig), "data/s001", True)
    batch[records.pin_key(pin.path)] = catalog.encode(pin)
    rig.overwrite(batch)

    rig.cut_off()
    ns = rig.node("fresh")
    found = ns.list("/m", recursive=True)
    assert tuple(found) == entries
    assert found.stale and 1000.0 < found.age_s < 1090.0
    eventually(lambda: ns.status()["pins"] == ["/m/s001"], what="the pins are back")
    assert not rig.rig.proxy.exchanges()  # nothing reached the origin
    assert ns.stat("/m/s001/001234").version == '"1234"'
    assert [entry.name for entry in ns.list("/m/s042")][:2] == ["042000", "042001"]


def listing_batch(
    origin: str, prefix: str, entries: tuple[Entry, ...], validated_unix_s: float
) -> dict[bytes, bytes | None]:
    parts = range(0, len(entries), PART_ENTRIES)
    return {
        records.listing_key(origin, prefix, True, number): catalog.encode(
            CatalogListing(
                origin=origin,
                prefix=prefix,
                recursive=True,
                parts=0 if number else len(parts),
                validated_unix_s=validated_unix_s,
                entries=entries[start : start + PART_ENTRIES],
            )
        )
        for number, start in enumerate(parts)
    }


def test_jobs_of_a_lost_node_go_on(rig: MetadataRig) -> None:
    names = fill(rig, 40)
    first = rig.node("first", embedded=False)
    attached(first)
    rig.rig.proxy.inject(Fault(first_byte_delay_s=0.4))
    job = first.prefetch("/m/train", concurrency=2)
    eventually(lambda: first.job(job.id).progress().listed, what="the job runs")
    attached(first)
    kill_agent(first)
    rig.rig.proxy.heal()
    shutil.rmtree(first.settings.cache.dir)
    second = rig.node("second")
    eventually(lambda: any(found["id"] == job.id for found in second.status()["jobs"]))
    done = second.job(job.id).wait(30)
    assert done.state is JobState.DONE and done.filled == len(names)
    attached(second)
    assert not [key for key in rig.records() if key.startswith(b"j")]


# -- coming back ----------------------------------------------------------------------------


def test_a_restart_imports_nothing_and_a_wiped_directory_everything(rig: MetadataRig) -> None:
    names = fill(rig)
    ns = rig.node("node")
    ns.list("/m", recursive=True)
    ns.pin("/m/train")
    sequence = attached(ns)["sequence"]
    rig.rig.close(ns)
    ns = rig.node("node")
    again = attached(ns)
    assert (again["imported_records"], again["sequence"]) == (0, sequence)
    assert ns.status()["pins"] == ["/m/train"]
    rig.lose(ns)
    ns = rig.node("node")
    assert attached(ns)["imported_records"] >= len(names) + 2
    assert ns.status()["pins"] == ["/m/train"]


def test_a_wiped_store_gets_everything_again(rig: MetadataRig) -> None:
    fill(rig)
    ns = rig.node("node")
    ns.list("/m", recursive=True)
    ns.pin("/m/train")
    attached(ns)
    rig.rig.close(ns)
    before = rig.records()
    rig.store_name = "other"
    ns = rig.node("node")
    attached(ns)
    rig.rig.close(ns)
    assert rig.records() == before


def test_a_damaged_record_is_left_out(rig: MetadataRig, caplog: pytest.LogCaptureFixture) -> None:
    names = fill(rig)
    ns = rig.node("node")
    ns.list("/m", recursive=True)
    attached(ns)
    rig.lose(ns)
    stored = rig.records()
    (listing,) = (key for key in stored if key.startswith(b"l"))
    objects = sorted(key for key in stored if key.startswith(b"o"))
    rig.overwrite({listing: b"\x01garbage", objects[0]: b"", objects[1]: stored[objects[2]]})
    with caplog.at_level(logging.WARNING):
        ns = rig.node("node")
        status = attached(ns)
    assert status["damaged_records"] == 3
    assert sum("left out" in line for line in caplog.messages) == 3
    assert [entry.name for entry in ns.list("/m", recursive=True)] == names  # the origin's
    rig.rig.close(ns)
    rig.lose_directory("node")
    ns = rig.node("node")
    assert attached(ns)["damaged_records"] == 0  # what was learnt again has taken their place


# -- two agents -----------------------------------------------------------------------------


def test_a_second_agent_takes_over_an_object_store_and_waits_for_a_volume(
    rig: MetadataRig, caplog: pytest.LogCaptureFixture
) -> None:
    names = fill(rig)
    first = rig.node("first")
    first.list("/m", recursive=True)
    assert first.read(f"/m/{names[0]}") == DATA
    attached(first)
    with caplog.at_level(logging.WARNING):
        second = rig.node("second")
        assert second.read(f"/m/{names[0]}") == DATA  # whatever its metadata does
        if rig.engine == "lmdb":
            in_state(second, "unavailable")
            assert "MetadataUnavailable" in metadata(second)["problem"]
            first.pin("/m/train")
            attached(first)
            rig.rig.close(first)
            assert attached(second)["imported_records"] >= len(names)
            assert second.status()["pins"] == ["/m/train"]
            return
        attached(second)
        first.pin("/m/train")
        in_state(first, "fenced")
    assert "fenced" not in metadata(second)["state"]
    assert any("taken over" in line for line in caplog.messages)
    assert first.read(f"/m/{names[0]}") == DATA
    assert [entry.name for entry in first.list("/m", recursive=True)] == names
    assert first.status()["pins"] == ["/m/train"]  # its own; nobody else hears of it
    assert second.status()["pins"] == []
    second.pin("/m")
    attached(second)
    rig.rig.close(second)
    rig.rig.close(first)
    # Restarted, it takes the store back, with what the other knew and what it could not commit.
    first = rig.node("first")
    attached(first)
    assert first.status()["pins"] == ["/m", "/m/train"]
