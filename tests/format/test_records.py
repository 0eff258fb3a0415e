"""What lies in the cache directory, byte for byte as docs/format.md says (format version 1)."""

from __future__ import annotations

import json
import re
import struct
from math import inf
from pathlib import Path

import msgspec
import pytest

from tests.format.golden import golden
from tiercache import records
from tiercache.agent.chunks import checksums
from tiercache.agent.directory import CacheDirectory
from tiercache.extents.shared_state import SharedStateReader, SharedStateWriter
from tiercache.model import Entry, Kind
from tiercache.records import (
    EndpointRecord,
    ExtentRecord,
    JobRecord,
    ListingPart,
    ObjectRecord,
    PinRecord,
    QuotaRecord,
)

Record = ObjectRecord | ExtentRecord | ListingPart | PinRecord | JobRecord

RECORDS: dict[str, records.Record] = {
    "large": ObjectRecord(
        origin="s3://bucket",
        key="data/big.bin",
        kind=Kind.FILE,
        token='"etag-1"',
        size_bytes=150_000_000,
        mtime_s=1_700_000_000.25,
        validated_s=1234.5,
        boot="boot-id-12345",
        data_id=258,
        extent_bytes=64 << 20,
        extents=((3, 1), (0, 0), (5, 2)),
        validated_unix_s=1_700_000_060.5,
    ),
    "packed": ObjectRecord(
        origin="s3://bucket",
        key="data/small.bin",
        kind=Kind.FILE,
        token="gen:7",
        size_bytes=65537,
        validated_s=1.0,
        boot="b",
        data_id=9,
        extents=((4, 524287),),
        packed=True,
        pack_offset=128,
        crcs=bytes.fromhex("0011223344556677"),
    ),
    "absent": ObjectRecord(
        origin="gs://b@127.0.0.1:9000", key="ключ", kind=Kind.ABSENT, validated_s=-inf
    ),
    "extent": ExtentRecord(
        slot=1,
        length_bytes=64 << 20,
        owner=bytes(range(16)),
        data_id=258,
        first_page=1024,
        identity="ann",
    ),
    "pack": ExtentRecord(slot=524288, length_bytes=64 << 20),
    "listing": ListingPart(
        origin="s3://bucket",
        prefix="data/",
        recursive=False,
        parts=1,
        validated_s=1234.5,
        boot="boot-id-12345",
        entries=(
            Entry("big.bin", Kind.FILE, 150_000_000, '"etag-1"', 1_700_000_000.25),
            Entry("sub", Kind.DIRECTORY),
        ),
        validated_unix_s=1_700_000_060.5,
    ),
    "pin": PinRecord(
        path="/m/data", origin="s3://bucket", prefix="data", tree=True, identity="ann"
    ),
    "job": JobRecord(
        id="0badcafe",
        paths=("/m/data",),
        include=("*.bin",),
        exclude=("x",),
        pin=True,
        max_bytes=None,
        concurrency=64,
        name="train",
    ),
    "quota": QuotaRecord(identity="ann", used_bytes=150_036_480, pinned_bytes=4096, extents=3),
    "endpoint": EndpointRecord(
        name="s3:eu-central-1", down_unix_s=1_700_000_000.5, seen_unix_s=1_700_000_035.0
    ),
}


# What the same format version held before a field was added: read, no longer written.
OLDER = (
    {
        f"{name}-without-unix-time": msgspec.structs.replace(RECORDS[name], validated_unix_s=0.0)
        for name in ("large", "packed", "absent", "listing")
    }
    | {
        f"{name}-without-identity": msgspec.structs.replace(RECORDS[name], identity="")
        for name in ("extent", "pack", "pin")
    }
    | {"job-without-name": msgspec.structs.replace(RECORDS["job"], name="")}
)
DECODERS = {
    ObjectRecord: records.decode_object,
    ExtentRecord: records.decode_extent,
    ListingPart: records.decode_listing,
    PinRecord: records.decode_pin,
    JobRecord: records.decode_job,
    QuotaRecord: records.decode_quota,
    EndpointRecord: records.decode_endpoint,
}


def test_the_golden_bytes_are_of_this_version_and_complete() -> None:
    assert records.FORMAT_VERSION == 1
    assert golden("records").keys() == RECORDS.keys() | OLDER.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str) -> None:
    record, raw = RECORDS[name], golden("records")[name]
    assert records.encode(record) == raw
    assert DECODERS[type(record)](raw) == record


@pytest.mark.parametrize("name", OLDER)
def test_older_records_are_read(name: str) -> None:
    record = OLDER[name]
    assert DECODERS[type(record)](golden("records")[name]) == record


def test_a_record_is_the_array_that_the_document_draws() -> None:
    """Read without our types, as another program would."""
    text = (Path(__file__).parents[2] / "docs/format.md").read_text()
    section = text.split("### o: object")[1].split("###")[0]
    fields = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", section, re.M)))
    values = msgspec.msgpack.decode(golden("records")["large"])
    assert fields == list(ObjectRecord.__struct_fields__)
    assert len(values) == len(fields)
    assert dict(zip(fields, values, strict=True))["extents"] == [[3, 1], [0, 0], [5, 2]]


def test_keys() -> None:
    assert records.object_key(bytes(range(16))).hex() == "6f000102030405060708090a0b0c0d0e0f"
    assert records.chunk_key(258, 1).hex() == "63" + "0000000000000102" + "00000001"
    assert records.chunk_prefix(258).hex() == "63" + "0000000000000102"
    assert records.extent_key(3).hex() == "78" + "0000000000000003"
    assert records.member_key(4, 128).hex() == "6d" + "0000000000000004" + "0000000000000080"
    assert records.member_prefix(4).hex() == "6d" + "0000000000000004"
    assert records.job_key("0badcafe").hex() == "6a3062616463616665"
    assert records.pin_key("/m/data").hex() == "703e1154e14c70e9c3c6b1f9380c4f0a30"
    assert records.quota_key("ann").hex() == "75d8963d899008cf8c05369be7b9042715"
    assert records.endpoint_key("s3:eu-central-1").hex() == "65ed7bb13b08c29ebcbf9d650cf2906856"
    assert records.META_NEXT_ID == b"\0next-id"
    assert (records.META_OUTBOX, records.META_ATTACHED) == (b"\0outbox", b"\0attached")
    assert records.outbox_key(258).hex() == "71" + "0000000000000102"
    assert records.outbox_number(records.outbox_key(258)) == 258
    assert records.waiting_key(b"o\x01\x02").hex() == "51" + "6f0102"
    attached = records.Attachment("0bad", "cafe", True)
    assert records.encode(attached).hex() == "93" + "a430626164" + "a463616665" + "c3"
    assert records.decode_attachment(records.encode(attached)) == attached
    dir_part_2 = records.listing_key("s3://bucket", "data/", False, 2)
    tree_part_0 = records.listing_key("s3://bucket", "data/", True, 0)
    assert dir_part_2.hex() == "6c30d227a5242f63c544fe9f4a96e4008700000002"
    assert tree_part_0.hex() == "6ca3c426dcf5cc209f176ee79d0d6e160f00000000"
    assert records.extent_id_of(records.extent_key(3)) == 3
    assert records.member_offset(records.member_key(4, 128)) == 128


def test_names_are_hashed_with_their_framing() -> None:
    digest = records.name_hash("s3://bucket", "data/big.bin")
    assert digest.hex() == "612760690a7f877e0bbdf55b3589290f"
    assert records.name_hash("ab", "c") != records.name_hash("a", "bc")


def test_the_longest_names_fit_into_lmdb_keys() -> None:
    longest = "ü" * 512
    keys = [
        records.object_key(records.name_hash("s3://b", longest)),
        records.listing_key("s3://b", longest, True, 2**32 - 1),
        records.pin_key("/m/" + longest),
    ]
    assert max(len(key) for key in keys) <= 511


def test_page_checksums_are_crc32c_little_endian() -> None:
    # The check value of CRC-32C (RFC 3720, appendix B.4, and everybody's tables): e3069283.
    assert checksums(memoryview(b"123456789")).hex() == "839206e3"
    zeros = checksums(memoryview(bytes(65536 + 32)))
    assert len(zeros) == 8
    assert zeros[4:].hex() == "aa36918a"  # 32 bytes of zero: 8a9136aa


def test_superblock(tmp_path: Path) -> None:
    CacheDirectory(tmp_path / "c").prepare()
    superblock = json.loads((tmp_path / "c/superblock.json").read_text())
    assert superblock.keys() == {"magic", "format_version", "created"}
    assert (superblock["magic"], superblock["format_version"]) == ("tiercache", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", superblock["created"])


def test_shared_state(tmp_path: Path) -> None:
    path = tmp_path / "shared.state"
    writer = SharedStateWriter(path)
    assert path.read_bytes() == b"TCSTATE1" + bytes(1_052_672 - 8)
    assert path.stat().st_blocks * 512 >= 1_052_672  # written in full, never sparse
    writer.bump_epoch()
    writer.bump_epoch()
    writer.bump_generation()
    reader = SharedStateReader(path)
    reader.visited[0] = 1
    reader.visited[1_048_575] = 7
    raw = path.read_bytes()
    assert struct.unpack("<8sQQ", raw[:24]) == (b"TCSTATE1", 2, 1)
    assert raw[24:4096] == bytes(4072)
    assert (raw[4096], raw[-1]) == (1, 7)
    assert not any(raw[4097:-1])
    reader.close()
    writer.close()
