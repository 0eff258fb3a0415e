"""Records are brought from store to store and from dumps into stores, whole, and checked there."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from tiercache.metadata.transfer import (
    Mode,
    Plan,
    Transferred,
    digest_of,
    plan,
    transfer,
    validated_unix_s,
)
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


async def moved(source: Pairs, target: MemoryMetadata, mode: Mode) -> tuple[Plan, Transferred]:
    made = await planned(source, target, mode)
    return made, await transfer(partial(scan_of, source), target, mode=mode)


async def test_into_an_empty_store() -> None:
    source, target = some_pairs(), MemoryMetadata()
    seen: list[int] = []
    made = await planned(source, target, Mode.INTO_EMPTY)
    assert (made.written, made.removed, made.unchanged, made.kept) == (len(source), 0, 0, 0)
    assert await held(target) == {}, "a plan writes nothing"
    scan = partial(scan_of, source)
    done = await transfer(scan, target, mode=Mode.INTO_EMPTY, on_progress=seen.append)
    assert await held(target) == source
    assert done.records == len(source) == made.source_records
    assert seen == sorted(seen) and seen[-1] == made.total_bytes
    assert done.crc32c == (await digest_of(await store_of(source))).text
    assert (await check(target, repair=False)).clean


async def test_an_empty_source_is_fine() -> None:
    target = MemoryMetadata()
    _, done = await moved({}, target, Mode.INTO_EMPTY)
    assert done.records == 0
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
    made, _ = await moved(source, target, Mode.REPLACE)
    assert await held(target) == source
    assert made.removed == len(own.keys() - source.keys()) == 2
    again, _ = await moved(source, target, Mode.REPLACE)
    assert (again.changes, again.unchanged) == (0, len(source))


async def test_merge_keeps_what_only_the_target_has() -> None:
    source = some_pairs()
    own = pin_pair("/other") | snapshot_pairs("v2", ("q",)) | job_pair("11111111")
    target = await store_of(own)
    made, _ = await moved(source, target, Mode.MERGE)
    assert await held(target) == source | own
    assert (made.kept, made.removed) == (len(own), 0)


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
    made, _ = await moved(source, same, Mode.MERGE)
    assert (made.unchanged, made.changes) == (2, 0)


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
    made, done = await moved(source, target, Mode.INTO_EMPTY)
    assert (made.unchanged, made.written, done.records) == (14, 16, 30)
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
    await plan(dump.scan, lambda: target.scan(b""), mode=Mode.INTO_EMPTY, target_name=target.url)
    await transfer(dump.scan, target, mode=Mode.INTO_EMPTY)
    assert await held(target) == await held(source) == some_pairs()
    assert await digest_of(target) == await digest_of(source)


TIMES = st.sampled_from([1000.0, 2000.0, 3000.0])
STORES = st.lists(
    st.one_of(
        st.builds(
            lambda key, size, time_s: name_pair(key, size_bytes=size, validated_unix_s=time_s),
            st.sampled_from("abc"),
            st.integers(1, 2),
            TIMES,
        ),
        st.builds(
            lambda prefix, parts, time_s: listing_pairs(prefix, *parts, validated_unix_s=time_s),
            st.just("d/"),
            st.lists(st.tuples(st.sampled_from("xyz")), min_size=1, max_size=3),
            TIMES,
        ),
        st.builds(lambda path: pin_pair(path), st.sampled_from(["/p", "/q"])),
        st.builds(lambda name: snapshot_pairs(name, ("a",), ("b",)), st.sampled_from("st")),
    ),
    min_size=2,
    max_size=6,
)


def last_of_each(made: list[Pairs]) -> Pairs:
    """Return one store of several writes: a listing takes the place of the one before, whole."""
    store: Pairs = {}
    for pairs in made:
        listings = {key[:17] for key in pairs if key[:1] == b"l"}
        store = {key: value for key, value in store.items() if key[:17] not in listings} | pairs
    return store


@settings(max_examples=300)
@given(source=STORES.map(last_of_each), there=STORES.map(last_of_each), mode=st.sampled_from(Mode))
async def test_any_two_stores(source: Pairs, there: Pairs, mode: Mode) -> None:
    """Against what the modes promise, by an oracle of its own: whole things by their names."""
    target = await store_of(there)
    try:
        made, done = await moved(source, target, mode)
    except AlreadyExists:
        assert mode is Mode.INTO_EMPTY and there.items() - source.items()
        assert await held(target) == there
        return
    found = await held(target)
    assert (await check(target, repair=False)).clean, "nothing is torn"
    assert done.records == len(found)
    assert made.written == len(found.items() - there.items())
    assert made.removed == len(there.keys() - found.keys())
    if mode is Mode.MERGE:
        assert groups(source) | groups(there) == groups(found)
        for group in groups(found):
            theirs, ours = times(source, group), times(there, group)
            assert times(found, group) == max(theirs, ours)
    else:
        assert found == source
    again, _ = await moved(source, target, mode)
    assert again.changes == 0


def groups(pairs: Pairs) -> set[bytes]:
    return {key[:17] for key in pairs}


def times(pairs: Pairs, group: bytes) -> float:
    first = next((key for key in sorted(pairs) if key[:17] == group), b"")
    return validated_unix_s(first, pairs.get(first))
