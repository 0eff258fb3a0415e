"""Before an outage: what would be missing, said from the index alone; and it is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.origin_rig import MOUNT, Rig, config_file, eventually, rig_of
from tiercache import records
from tiercache.client.autarky import survey
from tiercache.client.frozen import FrozenNames
from tiercache.client.resolver import Resolver
from tiercache.errors import NotFound, OriginUnavailable
from tiercache.metadata.lmdb_store import LmdbReader, LmdbStore
from tiercache.model import Consistency, Entry, JobState, Kind
from tiercache.namespace import Namespace
from tiercache.policy.autarky import ASSUMED_BYTES_PER_S, fetch_s
from tiercache.settings import MountSettings, ProfileSettings
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.units import MIB

BIG = object_bytes("big", 3 * MIB + 12345)
SMALL = object_bytes("small", 50_000)


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.put("data/big.bin", BIG)
        rig.put("data/sub/small.bin", SMALL)
        rig.put("data/sub/empty.bin", b"")
        rig.put("other/cold.bin", SMALL)
        yield rig


def survives(ns: Namespace, path: str) -> bool:
    """Whether a job over the path runs to its end now that nobody can be asked."""
    try:
        for entry in ns.list(path, recursive=True):
            if entry.kind is Kind.FILE:
                ns.read(f"{path}/{entry.name}")
        return not ns.list(path, recursive=True).partial
    except OriginUnavailable:
        return False


def test_what_is_prefetched_survives_and_the_check_says_so(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=0.2)
    assert ns.autarky("/m/data").unlisted_paths == ("/m/data/",)
    assert ns.prefetch("/m/data").wait(30).state is JobState.DONE
    asked = len(rig.proxy.exchanges())
    report = ns.autarky("/m/data")
    assert report.survives and (report.objects, report.missing, report.unlisted) == (3, 0, 0)
    assert report.size_bytes == len(BIG) + len(SMALL)
    assert (report.evictable, report.evictable_bytes) == (2, len(BIG) + len(SMALL))
    one = ns.autarky("/m/data/big.bin")
    assert one.survives and one.objects == 1
    assert ns.autarky("/m/data/sub").objects == 2
    whole = ns.autarky("/m")
    assert not whole.survives and whole.unlisted_paths == ("/m/",)
    assert ns.autarky("/").unlisted == 1
    assert len(rig.proxy.exchanges()) == asked, "nobody was asked"
    rig.proxy.refuse()
    assert survives(ns, "/m/data") and not survives(ns, "/m")
    assert ns.autarky("/m/data").survives


def test_what_is_missing_is_named(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=0.2)
    ns.list("/m", recursive=True)
    ns.read("/m/data/big.bin", 0, 10)
    ns.read("/m/data/sub/small.bin")
    ns.pin("/m/data/sub")
    eventually(lambda: ns.autarky("/m").missing == 2)
    report = ns.autarky("/m")
    assert not report.survives and report.unlisted == 0
    assert (report.objects, report.missing) == (4, 2)
    missing = {one.path: one for one in report.missing_objects}
    assert missing.keys() == {"/m/data/big.bin", "/m/other/cold.bin"}
    big = missing["/m/data/big.bin"]
    assert big.size_bytes == len(BIG) and 0 < big.cached_bytes < len(BIG)
    assert report.missing_bytes == len(BIG) - big.cached_bytes + len(SMALL)
    assert (report.evictable, report.evictable_bytes) == (1, big.cached_bytes)
    assert report.bytes_per_s == ASSUMED_BYTES_PER_S and not report.is_measured
    assert len(ns.autarky("/m", shown=1).missing_objects) == 1
    assert len(ns.autarky("/m", shown=None).missing_objects) == 2
    with pytest.raises(NotFound):
        ns.autarky("/nowhere")
    assert not ns.exists("/m/never")
    with pytest.raises(NotFound, match="as far as is known"):
        ns.autarky("/m/never")
    rig.proxy.refuse()
    assert not survives(ns, "/m")


def test_directories_that_were_listed_one_by_one(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=0.2)
    for path in ("/m/data", "/m/data/sub"):
        ns.list(path)
    for key in ("data/big.bin", "data/sub/small.bin", "data/sub/empty.bin"):
        ns.read(f"/m/{key}")
    # What readers brought along is committed within a tenth of a second.
    eventually(lambda: ns.autarky("/m/data").survives)
    assert ns.autarky("/m/data").objects == 3
    ns.list("/m")
    above = ns.autarky("/m")
    assert not above.survives and above.unlisted_paths == ("/m/other/",)


def test_a_mount_that_refuses_to_serve_stale_does_not_survive(rig: Rig) -> None:
    strict = rig.namespace(Consistency.CLOSE_TO_OPEN, name="strict")
    loose = rig.namespace(Consistency.CLOSE_TO_OPEN, name="loose", offline="stale")
    for ns in (strict, loose):
        assert ns.prefetch("/m/data").wait(30).state is JobState.DONE
    (why,) = strict.autarky("/m/data").refused
    assert why == "/m is close-to-open and serves nothing that it cannot ask for"
    assert not strict.autarky("/m/data").survives and loose.autarky("/m/data").survives
    rig.proxy.refuse()
    assert survives(loose, "/m/data") and not survives(strict, "/m/data")


def test_a_snapshot_is_checked_by_its_versions(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=0.2)
    assert ns.prefetch("/m/data").wait(30).state is JobState.DONE
    assert ns.snapshots.create("frozen", "/m/data").wait(30).state is JobState.DONE
    report = ns.autarky("/frozen@snapshot/m/data")
    assert report.survives and report.objects == 3
    ns.evict("/m/data/big.bin")
    (missing,) = ns.autarky("/frozen@snapshot").missing_objects
    assert missing.path == "/frozen@snapshot/m/data/big.bin"


def test_the_speed_that_was_seen_is_used(rig: Rig) -> None:
    rig.server.put_many(rig.bucket, ((f"bulk/{n}", bytes(4 * MIB)) for n in range(8)))
    rig.put("bulk/last", SMALL)
    ns = rig.namespace()
    assert ns.prefetch("/m/bulk").wait(30).state is JobState.DONE
    ns.evict("/m/bulk/last")
    report = ns.autarky("/m/bulk")
    assert report.is_measured and 0 < report.fetch_s < 10
    assert report.bytes_per_s == ns.status()["endpoints"][0]["bytes_per_s"]


@pytest.mark.parametrize(
    ("missing_bytes", "missing", "bytes_per_s", "expected_s"),
    [
        (0, 0, 0, 0.0),
        (200_000_000, 1, 0, 2.0),
        (200_000_000, 1, 50_000_000, 4.0),
        (5000, 5000, 50_000_000, 10.0),
    ],
)
def test_how_long_a_fetch_takes(
    missing_bytes: int, missing: int, bytes_per_s: int, expected_s: float
) -> None:
    assert fetch_s(missing_bytes, missing, bytes_per_s=bytes_per_s) == expected_s


def test_a_hundred_thousand_names_are_checked_from_the_index_alone(tmp_path: Path) -> None:
    """No agent, no origin: a store with a listing, and records of all but the last ten names."""
    count, origin = 100_000, "s3://bucket@127.0.0.1:1"
    profile = ProfileSettings(name="rig", endpoint="http://127.0.0.1:1")
    mount = MountSettings(path=MOUNT, origin="s3://bucket", profile="rig")
    names = [f"d{number // 1000:03}/{number:06}" for number in range(count)]
    batch: dict[bytes, bytes | None] = {}
    for number in range(0, count, records.PART_ENTRIES):
        entries = tuple(Entry(name, Kind.FILE, 1000, "v") for name in names[number : number + 8192])
        parts = -(-count // records.PART_ENTRIES)
        part = records.ListingPart(origin, "", True, parts, 1.0, "boot", entries)
        key = records.listing_key(origin, "", True, number // records.PART_ENTRIES)
        batch[key] = records.encode(part)
    for name in names[:-10]:
        record = records.ObjectRecord(
            origin, name, Kind.FILE, "v", 1000, data_id=1, packed=True, extents=((1, 1),)
        )
        batch[records.object_key(records.name_hash(origin, name))] = records.encode(record)
    path = str(tmp_path / "index.lmdb")
    store = LmdbStore(path)
    store.commit(batch)
    store.close()
    index = LmdbReader(path)
    resolver = Resolver(
        (mount,), {"default": ProfileSettings(), "rig": profile}, FrozenNames(index)
    )
    report = survey(MOUNT, index, resolver, (), shown=20)
    index.close()
    assert (report.objects, report.missing, report.missing_bytes) == (count, 10, 10_000)
    assert [one.path for one in report.missing_objects] == [f"/m/{name}" for name in names[-10:]]


def test_the_command(rig: Rig) -> None:
    settings = rig.settings(ttl_s=0.2)
    ns = rig.open(settings, embedded=False)
    config = config_file(rig, settings)

    def tiercache(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tiercache", "--config", str(config), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ),
        )
        return done.returncode, done.stdout, done.stderr

    code, text, error = tiercache("autarky", "check", "/m/data")
    assert code == 1, error
    assert "would not survive" in text and "tiercache prefetch --pin /m/data" in text
    assert tiercache("prefetch", "--pin", "/m/data")[0] == 0
    code, text, _ = tiercache("autarky", "check", "/m/data")
    assert code == 0 and "would survive" in text and "evictable" not in text
    code, text, _ = tiercache("autarky", "check", "--json", "/m/data", "/m")
    found: list[dict[str, Any]] = json.loads(text)
    assert code == 1 and [one["survives"] for one in found] == [True, False]
    assert found[1]["remedy"] == "tiercache prefetch --pin /m" and not found[0]["remedy"]
    assert tiercache("autarky", "check", "/nowhere")[0] == 3
    ns.close()
