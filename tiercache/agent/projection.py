"""Records of the index as the metadata store keeps them, and back. Pure.

What is left out is where the bytes lie and whose boot's clock said when: neither means anything to
another node. What comes back has no bytes and was confirmed in no boot, so it is never fresh.
"""

from __future__ import annotations

from math import inf

import msgspec

from tiercache import catalog, records
from tiercache.catalog import CatalogListing, CatalogRecord, Record
from tiercache.errors import FormatError
from tiercache.model import Kind
from tiercache.records import JobRecord, ListingPart, ObjectRecord, PinRecord, QuotaRecord

# Who committed last. Not knowledge, and so never copied from store to store.
WRITER_KEY = catalog.WRITER_KEY


class WriterRecord(msgspec.Struct, frozen=True, array_like=True):
    """The cache directory (``records.Attachment.holder``) whose commit this is part of, and that
    commit's sequence number: whoever finds the store at another one knows that others wrote."""

    holder: str
    sequence: int


def is_news(known: ObjectRecord | None, record: ObjectRecord) -> bool:
    """Return whether ``record`` says more of its name than ``known`` did. That nothing has changed
    is news once a minute: strong reads confirm a name thousands of times a second."""
    if record.kind is Kind.ABSENT:
        return known is not None and known.kind is not Kind.ABSENT
    if known is None or _minute(known) != _minute(record):
        return True
    return (known.kind, known.token, known.size_bytes, known.mtime_s) != (
        record.kind,
        record.token,
        record.size_bytes,
        record.mtime_s,
    )


def _minute(record: ObjectRecord) -> float:
    return record.validated_unix_s // 60.0


def encode_writer(record: WriterRecord) -> bytes:
    return bytes([catalog.FORMAT_VERSION]) + msgspec.msgpack.encode(record)


def decode_writer(value: bytes | None) -> WriterRecord | None:
    """Return the record, None where there is none that this version can read."""
    if not value or value[0] != catalog.FORMAT_VERSION:
        return None
    try:
        return msgspec.msgpack.decode(memoryview(value)[1:], type=WriterRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def to_store(key: bytes, raw: bytes) -> bytes | None:
    """Return what the store keeps of a record of the index; None for nothing: absence is true for
    seconds, and what is in doubt is no knowledge. Raises FormatError for a damaged one."""
    try:
        match key[:1]:
            case b"o":
                return _object_to_store(records.decode_object(raw))
            case b"l":
                return _listing_to_store(records.decode_listing(raw))
            case b"p":
                return catalog.encode(records.decode_pin(raw))
            case b"j":
                return catalog.encode(records.decode_job(raw))
            case b"u":
                return catalog.encode(records.decode_quota(raw))
            case _:
                return raw  # a snapshot's are the same in both
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"a damaged index record under {key!r}: {error}") from error


def _object_to_store(record: ObjectRecord) -> bytes | None:
    if record.kind is Kind.ABSENT or record.validated_s == -inf:
        return None
    return catalog.encode(
        CatalogRecord(
            origin=record.origin,
            key=record.key,
            kind=record.kind,
            token=record.token,
            size_bytes=record.size_bytes,
            mtime_s=record.mtime_s,
            validated_unix_s=record.validated_unix_s,
        )
    )


def _listing_to_store(part: ListingPart) -> bytes | None:
    if part.validated_s == -inf:
        return None
    return catalog.encode(
        CatalogListing(
            origin=part.origin,
            prefix=part.prefix,
            recursive=part.recursive,
            parts=part.parts,
            validated_unix_s=part.validated_unix_s,
            entries=part.entries,
        )
    )


def to_index(key: bytes, value: bytes) -> tuple[Record, bytes]:
    """Return a record of the store, and what the index keeps of it. Raises FormatError for one
    that is damaged, or not where it belongs."""
    record = catalog.decode(key, value)
    if not catalog.key_fits(key, record):
        raise FormatError(f"a catalog record of another name lies under {key!r}")
    match record:
        case CatalogRecord():
            return record, records.encode(_object_to_index(record))
        case CatalogListing():
            return record, records.encode(_listing_to_index(record))
        case PinRecord() | JobRecord() | QuotaRecord():
            return record, records.encode(record)
        case _:
            return record, value


def _object_to_index(record: CatalogRecord) -> ObjectRecord:
    return ObjectRecord(
        origin=record.origin,
        key=record.key,
        kind=record.kind,
        token=record.token,
        size_bytes=record.size_bytes,
        mtime_s=record.mtime_s,
        validated_unix_s=record.validated_unix_s,
    )


def _listing_to_index(part: CatalogListing) -> ListingPart:
    return ListingPart(
        origin=part.origin,
        prefix=part.prefix,
        recursive=part.recursive,
        parts=part.parts,
        validated_s=0.0,
        boot="",
        entries=part.entries,
        validated_unix_s=part.validated_unix_s,
    )
