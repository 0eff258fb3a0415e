"""The records of the metadata store, byte for byte as docs/format.md says (record format 1)."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format.catalog_examples import EXAMPLES
from tests.format.golden import golden
from tiercache import catalog, records
from tiercache.agent import projection
from tiercache.catalog import (
    CatalogListing,
    CatalogRecord,
    SnapshotObject,
    SnapshotPart,
    SnapshotRecord,
)
from tiercache.errors import FormatError
from tiercache.metadata import bookkeeping
from tiercache.model import Entry, Kind
from tiercache.records import JobRecord, PinRecord, QuotaRecord

DOCUMENT = Path(__file__).parents[2] / "docs/format.md"
TEXT = st.text(max_size=20)


def test_the_golden_bytes_are_of_this_version_and_complete() -> None:
    assert catalog.FORMAT_VERSION == 1
    assert golden("catalog").keys() == {f"{n}.{p}" for n in EXAMPLES for p in ("key", "value")}
    assert {type(record) for _, record in EXAMPLES.values()} == set(catalog.TYPES.values())
    assert catalog.PREFIXES == (b"o", b"l", b"p", b"j", b"s", b"t", b"u")


@pytest.mark.parametrize("name", EXAMPLES)
def test_records(name: str) -> None:
    key, record = EXAMPLES[name]
    raw = golden("catalog")[f"{name}.value"]
    assert key == golden("catalog")[f"{name}.key"]
    assert catalog.encode(record) == raw
    assert catalog.decode(key, raw) == record
    assert catalog.key_fits(key, record)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_is_the_array_that_the_document_draws(name: str) -> None:
    """Read without our types, as another program would."""
    _, record = EXAMPLES[name]
    raw = golden("catalog")[f"{name}.value"]
    row = re.search(rf"^\| {type(record).__name__} \| (.*) \|$", DOCUMENT.read_text(), re.M)
    assert row is not None
    fields, _, inner = row[1].partition(", each ")
    names = re.findall(r"`(\w+)`", fields)
    assert names == list(type(record).__struct_fields__)
    assert raw[0] == 1
    values = msgspec.msgpack.decode(raw[1:])
    assert len(values) == len(names)
    if inner:
        assert re.findall(r"`(\w+)`", inner) == list(SnapshotObject.__struct_fields__)
        assert [len(each) for each in values[0]] == [len(SnapshotObject.__struct_fields__)] * 2


def test_what_belongs_to_one_store() -> None:
    identity = "00112233445566778899aabbccddeeff"
    assert (bookkeeping.FORMAT_KEY, bookkeeping.SEQUENCE_KEY) == (b"\0format", b"\0seq")
    assert bookkeeping.encode_format(identity).hex() == "01" + identity
    assert bookkeeping.decode_format(bytes.fromhex("01" + identity), path="") == identity
    for refused in (None, b"", b"\x01", bytes.fromhex("02" + identity)):
        with pytest.raises(FormatError):
            bookkeeping.decode_format(refused, path="")
    assert bookkeeping.encode_sequence(258).hex() == "0000000000000102"
    writer = projection.WriterRecord("0badcafe0badcafe", 258)
    raw = bytes.fromhex("01" + "92" + "b0" + b"0badcafe0badcafe".hex() + "cd0102")
    assert projection.WRITER_KEY == catalog.WRITER_KEY == b"w"
    assert projection.encode_writer(writer) == raw
    assert projection.decode_writer(raw) == writer
    assert projection.decode_writer(b"\x02" + raw[1:]) is None


def test_keys_of_parts() -> None:
    assert catalog.snapshot_part_prefix("v1").hex() == "74" + "7631" + "00"
    assert catalog.snapshot_part_key("v1", 258).hex() == "74" + "7631" + "00" + "00000102"
    assert catalog.split_part_key(catalog.snapshot_part_key("v1", 258)) == (b"tv1\0", 258)
    key = records.listing_key("s3://bucket", "data/", True, 7)
    assert catalog.split_part_key(key) == (key[:17], 7)
    listing = EXAMPLES["listing"][1]
    assert catalog.key_fits(records.listing_key("s3://bucket", "data/", False, 7), listing)
    assert not catalog.key_fits(key, listing)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_under_the_key_of_another_is_noticed(name: str) -> None:
    key, record = EXAMPLES[name]
    assert not catalog.key_fits(key[:1] + bytes([key[1] ^ 1]) + key[2:], record) or name in {
        "snapshot-part"  # its name stands in its key alone
    }
    assert not catalog.key_fits(key[:5] + b"x", record)
    assert not catalog.key_fits(key[:1], record)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused(name: str, version: int) -> None:
    key, record = EXAMPLES[name]
    with pytest.raises(FormatError, match=f"format {version} .*reads 1") as caught:
        catalog.decode(key, bytes([version]) + catalog.encode(record)[1:])
    assert caught.value.remedy


@pytest.mark.parametrize("name", EXAMPLES)
def test_fields_of_a_later_version_are_passed_over(name: str) -> None:
    key, record = EXAMPLES[name]
    values = msgspec.msgpack.decode(catalog.encode(record)[1:])
    later = b"\x01" + msgspec.msgpack.encode([*values, "new", {"a": 1}])
    assert catalog.decode(key, later) == record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b"\x01\x90"),
        (b"z1", b"\x01\x90"),
        (b"\0seq", b"\x01\x90"),
        (b"o1", b""),
        (b"o1", b"\x01"),
        (b"o1", b"\x01\x90"),
        (b"o1", b"\x01\x93\xa1a\xa1b\x07"),  # a kind that is none
        (b"o1", b"\x01\x93\xa2\xff\xfe\xa1b\x01"),  # no UTF-8
        (b"t1", b"\x01\x92\x90" + b"\x91" * 200_000),  # deeper than any stack
    ],
)
def test_garbage_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        catalog.decode(key, value)
    assert caught.value.remedy


@given(name=st.sampled_from(list(EXAMPLES)), data=st.data())
def test_damaged_bytes_are_read_as_a_record_or_refused(name: str, data: st.DataObject) -> None:
    key, record = EXAMPLES[name]
    raw = bytearray(catalog.encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for value in (bytes(raw), bytes(raw[:cut])):
        try:
            found = catalog.decode(key, value)
        except FormatError:
            continue
        assert type(found) is type(record)


@given(key=st.binary(max_size=30), value=st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(key: bytes, value: bytes) -> None:
    for stored in (value, b"\x01" + value):
        try:
            catalog.decode(key, stored)
        except FormatError:
            pass


COUNT = st.integers(0, 2**63 - 1)
TIME_S = st.floats(allow_nan=False)
ENTRY = st.builds(Entry, TEXT, st.sampled_from(Kind), COUNT, TEXT, TIME_S)
OBJECT = st.builds(SnapshotObject, TEXT, TEXT, TEXT, TEXT, COUNT, TIME_S, st.none() | COUNT)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
RECORDS: dict[type[catalog.Record], st.SearchStrategy[catalog.Record]] = {
    CatalogRecord: st.builds(
        CatalogRecord, TEXT, TEXT, st.sampled_from(Kind), TEXT, COUNT, TIME_S, TIME_S
    ),
    CatalogListing: st.builds(
        CatalogListing, TEXT, TEXT, st.booleans(), COUNT, TIME_S, st.lists(ENTRY).map(tuple)
    ),
    PinRecord: st.builds(PinRecord, TEXT, TEXT, TEXT, st.booleans(), TEXT),
    QuotaRecord: st.builds(QuotaRecord, TEXT, COUNT, COUNT, COUNT),
    JobRecord: st.builds(
        JobRecord, TEXT, TEXTS, TEXTS, TEXTS, st.booleans(), st.none() | COUNT, COUNT, TEXT
    ),
    SnapshotRecord: st.builds(
        SnapshotRecord, TEXT, TIME_S, TEXTS, COUNT, COUNT, COUNT, COUNT, *([TEXTS] * 3)
    ),
    SnapshotPart: st.builds(SnapshotPart, st.lists(OBJECT, max_size=3).map(tuple)),
}


@pytest.mark.parametrize("letter", catalog.PREFIXES)
@given(data=st.data())
def test_records_come_back_as_they_were(letter: bytes, data: st.DataObject) -> None:
    record = data.draw(RECORDS[catalog.TYPES[letter]])
    assert catalog.decode(letter, catalog.encode(record)) == record
