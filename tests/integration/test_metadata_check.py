"""metadata check finds every kind of damage, says what it is, and repairs it and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.metadata_rig import (
    FIRST_PART,
    Pairs,
    held,
    job_pair,
    listing_pairs,
    name_pair,
    pin_pair,
    snapshot_pairs,
    some_pairs,
)
from tiercache import catalog, records
from tiercache.metadata.checking import KEPT_PROBLEMS, MetadataReport, check
from tiercache.testing.memory_metadata import MemoryMetadata


async def checked(pairs: Pairs, *, repair: bool = False) -> tuple[MetadataReport, Pairs]:
    store = MemoryMetadata()
    await store.commit(pairs)
    report = await check(store, repair=repair)
    return report, await held(store)


def without(pairs: Pairs, *keys: bytes) -> Pairs:
    return {key: value for key, value in pairs.items() if key not in keys}


def renamed(pairs: Pairs, key: bytes, to: bytes) -> Pairs:
    return {to if each == key else each: value for each, value in pairs.items()}


def listing_key(prefix: str, part: int) -> bytes:
    return records.listing_key("s3://bucket", prefix, False, part)


def part_key(part: int) -> bytes:
    return catalog.snapshot_part_key("v1", FIRST_PART + part)


KEY = next(iter(name_pair("a")))
PIN = next(iter(pin_pair("/m/d")))
JOB = next(iter(job_pair("0badcafe")))
SNAPSHOT = catalog.snapshot_key("v1")


async def test_a_whole_store_is_clean() -> None:
    seen: list[int] = []
    store = MemoryMetadata()
    await store.commit(some_pairs())
    report = await check(store, repair=True, on_progress=seen.append)
    assert report.clean and report.dropped == 0
    assert report.by_type == {
        "name": 2,
        "listing": 3,
        "pin": 1,
        "job": 1,
        "snapshot": 1,
        "snapshot-part": 2,
        "quota": 0,
    }
    assert (report.records, report.later) == (11, 1)
    assert [(problem.kind, problem.message) for problem in report.problems] == [
        ("later", "of a later version; left alone")
    ]
    assert seen[-1] == report.record_bytes == sum(len(k) + len(v) for k, v in some_pairs().items())
    assert await held(store) == some_pairs()


async def test_an_empty_store_is_clean() -> None:
    report, _ = await checked({})
    assert report.clean and report.records == 0


# What is done to the store, what is found, and which of the keys are left after the repair.
DAMAGES: dict[str, tuple[Callable[[Pairs], Pairs], str, Callable[[Pairs], Pairs]]] = {
    "garbage": (
        lambda pairs: pairs | {KEY: b"\x01\xc1"},
        "record",
        lambda pairs: without(pairs, KEY),
    ),
    "nothing": (lambda pairs: pairs | {PIN: b""}, "record", lambda pairs: without(pairs, PIN)),
    "an older version": (
        lambda pairs: pairs | {JOB: b"\x00\x90"},
        "record",
        lambda pairs: without(pairs, JOB),
    ),
    "another's key": (
        lambda pairs: pairs | {KEY: next(iter(name_pair("q").values()))},
        "key",
        lambda pairs: without(pairs, KEY),
    ),
    "another's pin": (
        lambda pairs: renamed(pairs, PIN, PIN[:-1] + b"\x00"),
        "key",
        lambda pairs: without(pairs, PIN),
    ),
    "a listing's end missing": (
        lambda pairs: without(pairs, listing_key("d/", 1)),
        "listing",
        lambda pairs: without(pairs, listing_key("d/", 0), listing_key("d/", 1)),
    ),
    "a listing's part unreadable": (
        lambda pairs: pairs | {listing_key("d/", 1): b"\x01"},
        "listing",
        lambda pairs: without(pairs, listing_key("d/", 0), listing_key("d/", 1)),
    ),
    "a listing's beginning missing": (
        lambda pairs: without(pairs, listing_key("d/", 0)),
        "leftover",
        lambda pairs: without(pairs, listing_key("d/", 0), listing_key("d/", 1)),
    ),
    "a listing's part too many": (
        lambda pairs: pairs | {listing_key("e/", 1): pairs[listing_key("d/", 1)]},
        "key",
        lambda pairs: pairs,
    ),
    "a part of a longer listing": (
        lambda pairs: (
            pairs
            | {listing_key("e/", 1): listing_pairs("e/", ("x",), ("y",))[listing_key("e/", 1)]}
        ),
        "leftover",
        lambda pairs: pairs,
    ),
    "a snapshot's part missing": (
        lambda pairs: without(pairs, part_key(0)),
        "snapshot",
        lambda pairs: without(pairs, SNAPSHOT, part_key(0), part_key(1)),
    ),
    "a snapshot's parts missing": (
        lambda pairs: without(pairs, part_key(0), part_key(1)),
        "snapshot",
        lambda pairs: without(pairs, SNAPSHOT, part_key(0), part_key(1)),
    ),
    "a snapshot's part of another": (
        lambda pairs: pairs | {part_key(1): pairs[part_key(0)]},
        "snapshot",
        lambda pairs: without(pairs, SNAPSHOT, part_key(0), part_key(1)),
    ),
    "a snapshot's part too many": (
        lambda pairs: pairs | {part_key(2): pairs[part_key(0)]},
        "leftover",
        lambda pairs: pairs,
    ),
    "a snapshot's parts of the one before": (
        lambda pairs: pairs | {part_key(-1): pairs[part_key(0)], part_key(-2): pairs[part_key(1)]},
        "leftover",
        lambda pairs: pairs,
    ),
    "a snapshot's parts exchanged": (
        lambda pairs: pairs | {part_key(0): pairs[part_key(1)], part_key(1): pairs[part_key(0)]},
        "snapshot",
        lambda pairs: without(pairs, SNAPSHOT, part_key(0), part_key(1)),
    ),
    "a snapshot's head missing": (
        lambda pairs: without(pairs, SNAPSHOT),
        "leftover",
        lambda pairs: without(pairs, SNAPSHOT, part_key(0), part_key(1)),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_found_and_repaired(name: str) -> None:
    damage, kind, left = DAMAGES[name]
    whole = some_pairs()
    pairs = damage(whole)
    report, after = await checked(pairs)
    kinds = {problem.kind for problem in report.problems} - {"later"}
    assert kind in kinds and kinds <= {kind, "record"}
    assert (report.corruptions > 0) == (kind != "leftover")
    assert not report.clean and after == pairs, "looking changes nothing"
    repaired, after = await checked(pairs, repair=True)
    assert after == left(whole)
    assert repaired.problems == report.problems
    assert repaired.dropped == len(pairs.keys() - after.keys())
    again, _ = await checked(after)
    assert again.clean


async def test_subjects_name_what_people_know() -> None:
    pairs = (
        listing_pairs("d/", (), ())
        | snapshot_pairs("v1", ("a",), ("b",))
        | renamed(pin_pair("/m/d"), PIN, b"p" * 17)
    )
    report, _ = await checked(without(pairs, listing_key("d/", 1), part_key(1)))
    assert {problem.subject for problem in report.problems} == {
        "listing s3://bucket/d/",
        "snapshot v1",
        "pin /m/d",
    }


async def test_many_problems_are_counted_and_some_are_kept() -> None:
    pairs = {b"o" + number.to_bytes(16, "big"): b"\x01" for number in range(KEPT_PROBLEMS + 5)}
    report, after = await checked(pairs, repair=True)
    assert (report.corruptions, len(report.problems)) == (KEPT_PROBLEMS + 5, KEPT_PROBLEMS)
    assert after == {}


async def test_the_same_records_have_the_same_checksum() -> None:
    whole, _ = await checked(some_pairs())
    again, _ = await checked(some_pairs())
    other, _ = await checked(without(some_pairs(), JOB))
    assert whole.crc32c == again.crc32c != other.crc32c


KEYS = sorted(some_pairs())
HARMS = st.lists(
    st.tuples(
        st.sampled_from(["remove", "garbage", "move", "exchange"]),
        st.sampled_from(KEYS),
        st.sampled_from(KEYS),
    ),
    max_size=4,
)


@given(harms=HARMS)
async def test_after_any_harm_the_repair_leaves_a_clean_store(
    harms: list[tuple[str, bytes, bytes]],
) -> None:
    pairs = some_pairs()
    for kind, key, other in harms:
        if kind == "remove":
            pairs.pop(key, None)
        elif kind == "garbage":
            pairs[key] = b"\x01\x00"
        elif kind == "move" and key in pairs:
            pairs[other] = pairs.pop(key)
        elif key in pairs and other in pairs:
            pairs[key], pairs[other] = pairs[other], pairs[key]
    found, after = await checked(pairs, repair=True)
    again, left = await checked(after, repair=True)
    assert again.clean and left == after
    assert after.items() <= pairs.items()
    assert found.dropped == len(pairs) - len(after)
    assert found.clean == (after == pairs)
