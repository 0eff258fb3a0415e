"""What stores of the metadata hold in tests, and a pretended network of engines in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tiercache import catalog, records
from tiercache.catalog import (
    CatalogListing,
    CatalogRecord,
    SnapshotObject,
    SnapshotPart,
    SnapshotRecord,
)
from tiercache.model import Entry, Kind
from tiercache.ports import MetadataStore
from tiercache.records import JobRecord, PinRecord

ORIGIN = "s3://bucket"
FIRST_PART = 3  # of snapshots; one of that name stood there before
Pairs = dict[bytes, bytes]


def name_pair(key: str, *, size_bytes: int = 1, validated_unix_s: float = 1000.0) -> Pairs:
    record = CatalogRecord(
        origin=ORIGIN,
        key=key,
        kind=Kind.FILE,
        token=f'"{size_bytes}"',
        size_bytes=size_bytes,
        mtime_s=5.0,
        validated_unix_s=validated_unix_s,
    )
    return {records.object_key(records.name_hash(ORIGIN, key)): catalog.encode(record)}


def listing_pairs(prefix: str, *parts: tuple[str, ...], validated_unix_s: float = 1000.0) -> Pairs:
    """A listing of one part for each tuple of names."""
    made = {}
    for number, names in enumerate(parts):
        record = CatalogListing(
            origin=ORIGIN,
            prefix=prefix,
            recursive=False,
            parts=0 if number else len(parts),
            validated_unix_s=validated_unix_s,
            entries=tuple(Entry(name, Kind.FILE, 1, '"1"', 5.0) for name in names),
        )
        made[records.listing_key(ORIGIN, prefix, False, number)] = catalog.encode(record)
    return made


def pin_pair(path: str) -> Pairs:
    record = PinRecord(path=path, origin=ORIGIN, prefix=path[1:], tree=True)
    return {records.pin_key(path): catalog.encode(record)}


def job_pair(job_id: str) -> Pairs:
    record = JobRecord(
        id=job_id, paths=("/m",), include=(), exclude=(), pin=False, max_bytes=None, concurrency=4
    )
    return {records.job_key(job_id): catalog.encode(record)}


def snapshot_pairs(name: str, *parts: tuple[str, ...]) -> Pairs:
    made = {}
    for number, keys in enumerate(parts):
        objects = tuple(SnapshotObject(f"/m/{key}", ORIGIN, key, '"1"', 3) for key in keys)
        made[catalog.snapshot_part_key(name, FIRST_PART + number)] = catalog.encode(
            SnapshotPart(objects)
        )
    count = sum(map(len, parts))
    head = SnapshotRecord(
        name=name,
        created_unix_s=7.0,
        paths=("/m",),
        objects=count,
        size_bytes=3 * count,
        parts=len(parts),
        first_part=FIRST_PART,
        firsts=tuple(f"/m/{keys[0]}" for keys in parts),
    )
    return made | {catalog.snapshot_key(name): catalog.encode(head)}


def some_pairs() -> Pairs:
    """A bit of everything."""
    return {
        **name_pair("a"),
        **name_pair("b", size_bytes=2),
        **listing_pairs("d/", ("x", "y"), ("z",)),
        **listing_pairs("e/", ("x",)),
        **pin_pair("/m/d"),
        **job_pair("0badcafe"),
        **snapshot_pairs("v1", ("a", "b"), ("c",)),
        b"z of a later version": b"\x09\xff\x00",
    }


async def held(store: MetadataStore) -> Pairs:
    return {key: value async for key, value in store.scan(b"")}


async def scan_of(pairs: Pairs) -> AsyncIterator[tuple[bytes, bytes]]:
    for key in sorted(pairs):
        yield key, pairs[key]
