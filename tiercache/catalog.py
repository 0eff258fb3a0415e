"""The records of the metadata store: what is known of names, wherever their bytes lie.

    o <hash16>              CatalogRecord     what a name is
    l <hash16> <part4>      CatalogListing    a directory's entries, as last listed whole
    p <hash16>              PinRecord
    j <job id>              JobRecord
    s <name>                SnapshotRecord    a dataset frozen under a name
    t <name> \\0 <part4>     SnapshotPart      its objects, in path order

Keys are those of the index (``records``), so that either is rebuilt from the other. A value is one
byte, the number of its record's format, then a msgpack array. Times are seconds since 1970: they
must mean something to another machine, and no freshness is ever claimed on them. docs/format.md
is the contract, ``tests/format`` holds golden bytes.
"""

from __future__ import annotations

import msgspec

from tiercache.errors import FormatError
from tiercache.model import Entry, Kind
from tiercache.records import JobRecord, PinRecord

FORMAT_VERSION = 1
PREFIXES = (b"o", b"l", b"p", b"j", b"s", b"t")
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
    """A dataset snapshot: what was frozen, and how much. ``parts`` counts its SnapshotParts."""

    name: str
    created_unix_s: float
    paths: tuple[str, ...]
    objects: int
    size_bytes: int
    parts: int


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


Record = CatalogRecord | CatalogListing | PinRecord | JobRecord | SnapshotRecord | SnapshotPart

_TYPES: dict[bytes, type[Record]] = {
    b"o": CatalogRecord,
    b"l": CatalogListing,
    b"p": PinRecord,
    b"j": JobRecord,
    b"s": SnapshotRecord,
    b"t": SnapshotPart,
}
_VERSION = bytes([FORMAT_VERSION])
_encode = msgspec.msgpack.Encoder().encode
_DECODERS = {letter: msgspec.msgpack.Decoder(kind) for letter, kind in _TYPES.items()}


def encode(record: Record) -> bytes:
    return _VERSION + _encode(record)


def decode(key: bytes, value: bytes) -> Record:
    """Return the record under ``key``. Raises FormatError for one that this version cannot read."""
    decoder = _DECODERS.get(key[:1])
    if decoder is None:
        raise FormatError(f"no record of the catalog has the key {key!r}")
    if value[:1] != _VERSION:
        raise FormatError(
            f"a catalog record of format {value[0] if value else 'none'}; this version reads "
            f"{FORMAT_VERSION}",
            remedy="use a newer tiercache",
        )
    try:
        record: Record = decoder.decode(memoryview(value)[1:])
    except msgspec.DecodeError as error:
        raise FormatError(f"a damaged catalog record under {key!r}: {error}") from error
    return record


def snapshot_key(name: str) -> bytes:
    return b"s" + name.encode()


def snapshot_part_key(name: str, part: int) -> bytes:
    return snapshot_part_prefix(name) + part.to_bytes(4, "big")


def snapshot_part_prefix(name: str) -> bytes:
    return b"t" + name.encode() + b"\0"
