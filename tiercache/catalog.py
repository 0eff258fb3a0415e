"""The records of the metadata store: what is known of names, wherever their bytes lie.

    o <hash16>              CatalogRecord     what a name is
    l <hash16> <part4>      CatalogListing    a directory's entries, as last listed whole
    p <hash16>              PinRecord
    j <job id>              JobRecord
    u <hash16>              QuotaRecord       what an identity holds of this node's cache
    s <name>                SnapshotRecord    a dataset frozen under a name
    t <name> \\0 <part4>     SnapshotPart      its objects, in path order

Keys are those of the index (``records``), so that either is rebuilt from the other. A value is one
byte, the number of its record's format, then a msgpack array. Times are seconds since 1970: they
must mean something to another machine, and no freshness is ever claimed on them. docs/format.md
is the contract, ``tests/format`` holds golden bytes.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from tiercache import records
from tiercache.errors import FormatError
from tiercache.model import Entry, Kind
from tiercache.records import JobRecord, PinRecord, QuotaRecord

FORMAT_VERSION = 1
# Objects in one part of a snapshot: ~150 B each make values of ~1 MiB.
PART_OBJECTS = 8192


class CatalogRecord(msgspec.Struct, frozen=True, array_like=True):
    """One name of one origin, as last confirmed."""

    origin: str
    key: str
    kind: Kind
    token: str = ""
    size_bytes: int = 0
    mtime_s: float = 0.0
    validated_unix_s: float = 0.0


class CatalogListing(msgspec.Struct, frozen=True, array_like=True):
    """Some entries of a listing in name order; part 0 says how many parts there are."""

    origin: str
    prefix: str
    recursive: bool
    parts: int
    validated_unix_s: float
    entries: tuple[Entry, ...]


class SnapshotRecord(msgspec.Struct, frozen=True, array_like=True):
    """A dataset snapshot: what was frozen, and how much.

    Its objects are those of ``paths`` that ``include`` and ``exclude`` let through. They stand in
    ``parts`` SnapshotParts from the number ``first_part`` on; ``firsts`` are the paths that these
    begin with. ``checksums``: every object has its CRC32C.
    """

    name: str
    created_unix_s: float
    paths: tuple[str, ...]
    objects: int
    size_bytes: int
    parts: int
    first_part: int = 0
    firsts: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    checksums: bool = False


class SnapshotObject(msgspec.Struct, frozen=True, array_like=True):
    """One frozen object. ``path`` is its namespace path. ``crc32c`` is the CRC32C of all its
    bytes, None where they were never read."""

    path: str
    origin: str
    key: str
    token: str
    size_bytes: int
    mtime_s: float = 0.0
    crc32c: int | None = None


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True):
    objects: tuple[SnapshotObject, ...]


Record = (
    CatalogRecord | CatalogListing | PinRecord | JobRecord | SnapshotRecord | SnapshotPart
    | QuotaRecord
)  # fmt: skip

# By the first byte of their keys.
TYPES: dict[bytes, type[Record]] = {
    b"o": CatalogRecord,
    b"l": CatalogListing,
    b"p": PinRecord,
    b"j": JobRecord,
    b"s": SnapshotRecord,
    b"t": SnapshotPart,
    b"u": QuotaRecord,
}
PREFIXES = tuple(TYPES)
# Which agent committed last. It speaks of one store and one node: neither exported nor copied.
WRITER_KEY = b"w"
_VERSION = bytes([FORMAT_VERSION])
_encode = msgspec.msgpack.Encoder().encode
_DECODERS = {letter: msgspec.msgpack.Decoder(kind) for letter, kind in TYPES.items()}
# "l" and a hash; the number of the part follows.
_LISTING_PREFIX_BYTES = 17
_PART_BYTES = 4


def encode(record: Record) -> bytes:
    return _VERSION + _encode(record)


def body(key: bytes, value: bytes) -> memoryview:
    """Return the msgpack of a record. Raises FormatError for one of another format."""
    if value[:1] != _VERSION:
        raise FormatError(
            f"a catalog record of format {value[0] if value else 'none'} under {key!r}; this "
            f"version reads {FORMAT_VERSION}",
            remedy="use a newer tiercache",
        )
    return memoryview(value)[1:]


def decode(key: bytes, value: bytes) -> Record:
    """Return the record under ``key``. Raises FormatError, and nothing else, for one that this
    version cannot read."""
    decoder = _DECODERS.get(key[:1])
    if decoder is None:
        raise FormatError(
            f"no record of the catalog has the key {key!r}", remedy="use a newer tiercache"
        )
    encoded = body(key, value)
    try:
        record: Record = decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(
            f"a damaged catalog record under {key!r}: {error}",
            remedy="tiercache metadata check --repair drops it",
        ) from error
    return record


def is_later(key: bytes, value: bytes) -> bool:
    """Return whether a later version may have written this: nothing for us to judge or drop."""
    return key[:1] not in TYPES or value[:1] > _VERSION


def key_fits(key: bytes, record: Record) -> bool:
    """Return whether ``record`` may lie under ``key``. Of a snapshot's part only the shape of its
    key can be told: its name stands nowhere else."""
    match record:
        case CatalogRecord():
            return key == records.object_key(records.name_hash(record.origin, record.key))
        case CatalogListing():
            part = records.listing_key(record.origin, record.prefix, record.recursive, 0)
            return key[:_LISTING_PREFIX_BYTES] == part[:_LISTING_PREFIX_BYTES] and (
                len(key) == len(part)
            )
        case PinRecord():
            return key == records.pin_key(record.path)
        case JobRecord():
            return key == records.job_key(record.id)
        case QuotaRecord():
            return key == records.quota_key(record.identity)
        case SnapshotRecord():
            return key == snapshot_key(record.name)
        case SnapshotPart():
            return len(key) > _PART_BYTES + 1 and key[-_PART_BYTES - 1] == 0
        case _ as unreachable:
            assert_never(unreachable)


def split_part_key(key: bytes) -> tuple[bytes, int]:
    """Return what the parts of one listing or snapshot have in common, and the part's number."""
    return key[:-_PART_BYTES], int.from_bytes(key[-_PART_BYTES:], "big")


def snapshot_key(name: str) -> bytes:
    return b"s" + name.encode()


def snapshot_part_key(name: str, part: int) -> bytes:
    return snapshot_part_prefix(name) + part.to_bytes(_PART_BYTES, "big")


def snapshot_part_prefix(name: str) -> bytes:
    return b"t" + name.encode() + b"\0"
