"""Records are brought from store to store and from dumps into stores, whole, and checked there."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial

import pytest

from tests.integration.metadata_rig import (
    Pairs,
    held,
    job_pair,
    listing_pairs,
    name_pair,
    pin_pair,
    scan_of,
    snapshot_pairs,
    some_pairs,
)
from tiercache.errors import AlreadyExists, CorruptPage, FormatError, MetadataUnavailable
from tiercache.metadata import transfer as moving
from tiercache.metadata.checking import check
from tiercache.metadata.dump import Dump, write_dump
from tiercache.metadata.transfer import Mode, Plan, Transferred, digest_of, plan, transfer
from tiercache.ports import NOTHING_REQUIRED
from tiercache.testing.memory_metadata import MemoryMetadata


async def store_of(pairs: Pairs) -> MemoryMetadata:
    store = MemoryMetadata()
    await store.commit(pairs)
    return store


async def planned(source: Pairs, target: MemoryMetadata, mode: Mode) -> Plan:
    return await plan(
        partial(scan_of, source), lambda: target.scan(b""), mode=mode, target_name=target.url
    )


async def moved(source: Pairs, target: MemoryMetadata, mode: Mode) -> Transferred:
    made = await planned(source, target, mode)
    return await transfer(partial(scan_of, source), target, mode=mode, planned=made)


async def test_into_an_empty_store() -> None:
    source, target = some_pairs(), MemoryMetadata()
    seen: list[int] = []
    made = await planned(source, target, Mode.INTO_EMPTY)
    assert (made.written, made.removed, made.unchanged, made.kept) == (len(source), 0, 0, 0)
    assert await held(target) == {}, "a plan writes nothing"
    scan = partial(scan_of, source)
    done = await transfer(scan, target, mode=Mode.INTO_EMPTY, planned=made, on_progress=seen.append)
    assert await held(target) == source
    assert done.records == len(source) == made.source_records
    assert seen == sorted(seen) and seen[-1] == made.total_bytes
    assert done.crc32c == (await digest_of(await store_of(source))).text
    assert (await check(target, repair=False)).clean


async def test_an_empty_source_is_fine() -> None:
    target = MemoryMetadata()
    assert (await moved({}, target, Mode.INTO_EMPTY)).records == 0
    assert target.sequence == MemoryMetadata().sequence, "nothing was committed"


async def test_a_store_with_records_of_its_own_is_refused() -> None:
    target = await store_of(pin_pair("/other"))
    with pytest.raises(AlreadyExists, match="not empty") as caught:
        await moved(some_pairs(), target, Mode.INTO_EMPTY)
    assert "--merge" in caught.value.remedy and "--replace" in caught.value.remedy
    assert await held(target) == pin_pair("/other")


async def test_replace_leaves_nothing_but_the_source() -> None:
    source = some_pairs()
    own = pin_pair("/other") | snapshot_pairs("v1", ("q",)) | listing_pairs("d/", ("1",), (), ())
    target = await store_of(own)
    done = await moved(source, target, Mode.REPLACE)
    assert await held(target) == source
    assert done.plan.removed == len(own.keys() - source.keys()) == 2
    again = await moved(source, target, Mode.REPLACE)
    assert (again.plan.written, again.plan.unchanged) == (0, len(source))


async def test_merge_keeps_what_only_the_target_has() -> None:
    source = some_pairs()
    own = pin_pair("/other") | snapshot_pairs("v2", ("q",)) | job_pair("11111111")
    target = await store_of(own)
    done = await moved(source, target, Mode.MERGE)
    assert await held(target) == source | own
    assert (done.plan.kept, done.plan.removed) == (len(own), 0)


async def test_merge_keeps_the_later_of_two_names() -> None:
    old, new = name_pair("k", size_bytes=1), name_pair("k", size_bytes=2, validated_unix_s=2000.0)
    for source, there in ((old, new), (new, old)):
        target = await store_of(there)
        await moved(source, target, Mode.MERGE)
        assert await held(target) == new


async def test_merge_takes_listings_whole() -> None:
    long = listing_pairs("d/", ("a",), ("b",), ("c",))
    short = listing_pairs("d/", ("z",), validated_unix_s=2000.0)
    between = listing_pairs("d/", ("p",), ("q",), validated_unix_s=1500.0)
    for source, there, left in (
        (long, short, short),
        (short, long, short),
        (between, short, short),
        (between, long, between),
        (long, {}, long),
        ({}, long, long),
    ):
        target = await store_of(there)
        await moved(source, target, Mode.MERGE)
        assert await held(target) == left
        assert (await check(target, repair=False)).clean


async def test_merge_refuses_another_snapshot_of_the_same_name() -> None:
    source = snapshot_pairs("v1", ("a",))
    target = await store_of(snapshot_pairs("v1", ("b", "c")))
    with pytest.raises(AlreadyExists, match="snapshot 'v1'"):
        await moved(source, target, Mode.MERGE)
    same = await store_of(source)
    assert (await moved(source, same, Mode.MERGE)).plan.unchanged == 2


async def test_merge_prefers_what_can_be_read() -> None:
    good = name_pair("k")
    bad = dict.fromkeys(good, b"\x01garbage")
    for source, there in ((good, bad), (bad, good)):
        target = await store_of(there)
        await moved(source, target, Mode.MERGE)
        assert await held(target) == good


class Flaky(MemoryMetadata):
    """Breaks off after so many commits, or forgets one record in silence."""

    commits_left = 2
    forgets: bytes | None = None

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        if self.commits_left == 0:
            raise MetadataUnavailable("gone", path=self.url)
        self.commits_left -= 1
        taken = {key: value for key, value in batch.items() if key != self.forgets}
        return await super().commit(taken, preconditions=preconditions)


async def test_a_transfer_that_was_cut_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "BATCH_RECORDS", 7)
    source: Pairs = {}
    for number in range(30):
        source |= name_pair(f"{number}")
    target = Flaky()
    with pytest.raises(MetadataUnavailable):
        await moved(source, target, Mode.INTO_EMPTY)
    assert len(await held(target)) == 14
    target.commits_left = 100
    done = await moved(source, target, Mode.INTO_EMPTY)
    assert (done.plan.unchanged, done.plan.written, done.records) == (14, 16, 30)
    assert await held(target) == source
    assert target.commits_left == 100 - 3, "what was there is not written again"


async def test_a_store_that_loses_a_record_is_told_of() -> None:
    source, target = some_pairs(), Flaky()
    target.forgets = next(iter(pin_pair("/m/d")))
    with pytest.raises(CorruptPage, match=rf"{len(source) - 1} records .* not {len(source)}"):
        await moved(source, target, Mode.INTO_EMPTY)


async def test_a_damaged_dump_changes_nothing() -> None:
    file = io.BytesIO()
    await write_dump(await store_of(some_pairs()), file, created="")
    dump = Dump(io.BytesIO(file.getvalue()[:-30]), "cut.jsonl")
    target = MemoryMetadata()
    with pytest.raises(FormatError, match=r"cut\.jsonl.*cut off"):
        await plan(dump.scan, lambda: target.scan(b""), mode=Mode.MERGE, target_name="")
    assert await held(target) == {}


async def test_a_dump_brings_a_store_back() -> None:
    source = await store_of(some_pairs())
    file = io.BytesIO()
    totals = await write_dump(source, file, created="")
    assert totals.verbatim == 1
    target, dump = MemoryMetadata(), Dump(file, "dump")
    made = await plan(
        dump.scan, lambda: target.scan(b""), mode=Mode.INTO_EMPTY, target_name=target.url
    )
    await transfer(dump.scan, target, mode=Mode.INTO_EMPTY, planned=made)
    assert await held(target) == await held(source) == some_pairs()
    assert await digest_of(target) == await digest_of(source)
