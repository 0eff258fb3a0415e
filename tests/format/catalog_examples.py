"""One record of each kind of the metadata store, with the key it lies under."""

from __future__ import annotations

from tiercache import catalog, records
from tiercache.catalog import (
    CatalogListing,
    CatalogRecord,
    Record,
    SnapshotObject,
    SnapshotPart,
    SnapshotRecord,
)
from tiercache.model import Entry, Kind
from tiercache.records import JobRecord, PinRecord, QuotaRecord

FILE = CatalogRecord(
    origin="s3://bucket",
    key="data/big.bin",
    kind=Kind.FILE,
    token='"etag-1"',
    size_bytes=150_000_000,
    mtime_s=1_700_000_000.25,
    validated_unix_s=1_700_000_060.5,
)
ABSENT = CatalogRecord(
    origin="gs://b@127.0.0.1:9000", key="ключ", kind=Kind.ABSENT, validated_unix_s=1.7e9
)
LISTING = CatalogListing(
    origin="s3://bucket",
    prefix="data/",
    recursive=False,
    parts=1,
    validated_unix_s=1_700_000_060.5,
    entries=(
        Entry("big.bin", Kind.FILE, 150_000_000, '"etag-1"', 1_700_000_000.25),
        Entry("sub", Kind.DIRECTORY),
    ),
)
PIN = PinRecord(path="/m/data", origin="s3://bucket", prefix="data", tree=True, identity="ann")
QUOTA = QuotaRecord(identity="ann", used_bytes=150_036_480, pinned_bytes=0, extents=3)
JOB = JobRecord(
    id="0badcafe",
    paths=("/m/data",),
    include=("*.bin",),
    exclude=("x",),
    pin=True,
    max_bytes=None,
    concurrency=64,
    name="train",
)
SNAPSHOT = SnapshotRecord(
    name="v1",
    created_unix_s=1_700_000_100.0,
    paths=("/m/data",),
    objects=2,
    size_bytes=150_000_003,
    parts=1,
    first_part=4,
    firsts=("/m/data/big.bin",),
    include=("*.bin", "new"),
    exclude=("x",),
)
PART = SnapshotPart(
    objects=(
        SnapshotObject(
            path="/m/data/big.bin",
            origin="s3://bucket",
            key="data/big.bin",
            token='"etag-1"',
            size_bytes=150_000_000,
            mtime_s=1_700_000_000.25,
            crc32c=0xE3069283,
        ),
        SnapshotObject(
            path="/m/data/new",
            origin="s3://bucket",
            key="data/new",
            token="gen:7",
            size_bytes=3,
        ),
    )
)


def name_key(record: CatalogRecord) -> bytes:
    return records.object_key(records.name_hash(record.origin, record.key))


EXAMPLES: dict[str, tuple[bytes, Record]] = {
    "file": (name_key(FILE), FILE),
    "absent": (name_key(ABSENT), ABSENT),
    "listing": (records.listing_key("s3://bucket", "data/", False, 0), LISTING),
    "pin": (records.pin_key("/m/data"), PIN),
    "job": (records.job_key("0badcafe"), JOB),
    "quota": (records.quota_key("ann"), QUOTA),
    "snapshot": (catalog.snapshot_key("v1"), SNAPSHOT),
    "snapshot-part": (catalog.snapshot_part_key("v1", 4), PART),
}
