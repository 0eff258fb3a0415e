"""The index's records: keys and values as they lie in ``index.lmdb``. docs/format.md is the
contract, ``FORMAT_VERSION`` its number, ``tests/format`` holds golden bytes.

    o <hash16>              ObjectRecord    what a name is, and where its bytes lie
    c <data_id8> <chunk4>   chunk           128-byte presence bitmap, then 4-byte CRC32Cs
    x <extent_id8>          ExtentRecord    what an extent file holds
    m <extent_id8> <off8>   hash16          which object lies at this offset of a pack
    l <hash16> <part4>      ListingPart     a directory's entries, as last listed whole
    p <path>                PinRecord
    j <job id>              JobRecord
    u <hash16>              QuotaRecord     what an identity holds of the cache
    s, t                    dataset snapshots, as in the metadata store (``catalog``)
    q <number8>             a key whose value the metadata store has not got yet, in order
    Q <key>                 number8         where it stands in that order
    e <hash16>              EndpointRecord  an endpoint that is offline
    \\0 <name>               bookkeeping

Integers in keys are big-endian, so that order is numeric. Values are msgpack arrays, except
chunks and pack members, which are raw.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import blake2b

import msgspec

from tiercache.model import CHUNK_PAGES, Entry, Kind

FORMAT_VERSION = 1
BITMAP_BYTES = CHUNK_PAGES // 8
ENDPOINTS = b"e"
META_NEXT_ID = b"\x00next-id"
META_OUTBOX = b"\x00outbox"
META_ATTACHED = b"\x00attached"
# First letters of what is known of names, wherever their bytes lie: what a metadata store keeps.
# An object's record also says where its bytes lie, so a change of it is not always one of these.
KNOWLEDGE = frozenset(b"oljpstu")

_U64 = struct.Struct(">Q")
_U64_U32 = struct.Struct(">QI")
_U64_U64 = struct.Struct(">QQ")


class ObjectRecord(msgspec.Struct, frozen=True, array_like=True):
    """One name of one origin.

    ``origin`` and ``key`` are the full name (the key of the record is only their hash).
    ``validated_s`` is CLOCK_BOOTTIME of boot ``boot`` when the request that confirmed this state
    was sent. ``extents`` are (extent id, visited slot) in object order, (0, 0) where evicted;
    each covers ``extent_bytes`` of the object. A packed object has one, ``packed`` is true, its
    bytes begin at ``pack_offset`` and ``crcs`` holds their CRC32Cs, 4 bytes little-endian a page.
    ``validated_unix_s`` is the time of ``validated_s`` in seconds since 1970, 0 where unknown: it
    says the age to another boot, and nothing of freshness.
    """

    origin: str
    key: str
    kind: Kind
    token: str = ""
    size_bytes: int = 0
    mtime_s: float = 0.0
    validated_s: float = 0.0
    boot: str = ""
    data_id: int = 0
    extent_bytes: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    packed: bool = False
    pack_offset: int = 0
    crcs: bytes = b""
    validated_unix_s: float = 0.0


class ExtentRecord(msgspec.Struct, frozen=True, array_like=True):
    """One extent file. ``owner`` is the hash of the one object it belongs to, empty for a pack;
    ``first_page`` is the object's page at its start. ``identity`` is whom it is charged to, empty
    for the default one."""

    slot: int
    length_bytes: int
    owner: bytes = b""
    data_id: int = 0
    first_page: int = 0
    identity: str = ""

    @property
    def is_pack(self) -> bool:
        return not self.owner


class ListingPart(msgspec.Struct, frozen=True, array_like=True):
    """Up to PART_ENTRIES entries in name order. Part 0 says how many parts there are, when the
    listing was sent for, and of what; all parts of a listing are committed together."""

    origin: str
    prefix: str
    recursive: bool
    parts: int
    validated_s: float
    boot: str
    entries: tuple[Entry, ...]
    validated_unix_s: float = 0.0


# ~60 B an entry makes parts of ~512 KiB: few LMDB overflow runs, no huge allocation.
PART_ENTRIES = 8192


class PinRecord(msgspec.Struct, frozen=True, array_like=True):
    """``prefix`` is a key; with ``tree`` it stands for every key below ``prefix`` + "/" too.
    ``identity`` is who pinned it, empty for the default one."""

    path: str
    origin: str
    prefix: str
    tree: bool
    identity: str = ""

    @property
    def below(self) -> str:
        """What the keys of its tree begin with."""
        return self.prefix.rstrip("/") + "/" if self.prefix else ""


class QuotaRecord(msgspec.Struct, frozen=True, array_like=True):
    """What an identity holds of the cache: the sums over its extents, which are committed with it.
    ``used_bytes`` as the device allocated them, with each extent's overhead; ``pinned_bytes`` of
    these. There is none where nobody's capacity is bounded."""

    identity: str
    used_bytes: int
    pinned_bytes: int
    extents: int


class JobRecord(msgspec.Struct, frozen=True, array_like=True):
    """A background prefetch that survives its agent. ``name`` is what its client calls itself for
    the QoS policy."""

    id: str
    paths: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    pin: bool
    max_bytes: int | None
    concurrency: int
    name: str = ""


class Attachment(msgspec.Struct, frozen=True, array_like=True):
    """Which metadata store this index belongs to. ``holder`` is this index's own random name;
    ``complete``: all that the store knew is here."""

    holder: str
    identity: str
    complete: bool


class EndpointRecord(msgspec.Struct, frozen=True, array_like=True):
    """A server that does not answer: since when, and when that was last seen, in seconds since
    1970. There is none for one that answers."""

    name: str
    down_unix_s: float
    seen_unix_s: float


_encode = msgspec.msgpack.Encoder().encode
decode_object = msgspec.msgpack.Decoder(ObjectRecord).decode
decode_extent = msgspec.msgpack.Decoder(ExtentRecord).decode
decode_listing = msgspec.msgpack.Decoder(ListingPart).decode
decode_pin = msgspec.msgpack.Decoder(PinRecord).decode
decode_job = msgspec.msgpack.Decoder(JobRecord).decode
decode_attachment = msgspec.msgpack.Decoder(Attachment).decode
decode_quota = msgspec.msgpack.Decoder(QuotaRecord).decode
decode_endpoint = msgspec.msgpack.Decoder(EndpointRecord).decode

Record = (
    ObjectRecord | ExtentRecord | ListingPart | PinRecord | JobRecord | QuotaRecord | Attachment
    | EndpointRecord
)  # fmt: skip


def encode(record: Record) -> bytes:
    return _encode(record)


@lru_cache(maxsize=1024)
def _framed(origin: str) -> bytes:
    left = origin.encode()
    return len(left).to_bytes(4, "big") + left


def name_hash(origin: str, key: str) -> bytes:
    """Return 128 bits over the length-framed name, so that no two names share their framing."""
    return blake2b(_framed(origin) + key.encode(), digest_size=16).digest()


def object_key(digest: bytes) -> bytes:
    return b"o" + digest


def chunk_key(data_id: int, chunk: int) -> bytes:
    return b"c" + _U64_U32.pack(data_id, chunk)


def chunk_prefix(data_id: int) -> bytes:
    return b"c" + _U64.pack(data_id)


def extent_key(extent_id: int) -> bytes:
    return b"x" + _U64.pack(extent_id)


def extent_id_of(key: bytes) -> int:
    return int(_U64.unpack(key[1:9])[0])


def member_key(extent_id: int, offset: int) -> bytes:
    return b"m" + _U64_U64.pack(extent_id, offset)


def member_prefix(extent_id: int) -> bytes:
    return b"m" + _U64.pack(extent_id)


def member_offset(key: bytes) -> int:
    return int(_U64.unpack(key[9:17])[0])


def listing_key(origin: str, prefix: str, recursive: bool, part: int) -> bytes:
    kind = "tree:" if recursive else "dir:"
    return b"l" + name_hash(origin, kind + prefix) + part.to_bytes(4, "big")


def pin_key(path: str) -> bytes:
    # An LMDB key holds 511 bytes, a path more: long ones are kept by their hash.
    return b"p" + blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def job_key(job_id: str) -> bytes:
    return b"j" + job_id.encode()


def quota_key(identity: str) -> bytes:
    # As long as it likes: an LMDB key holds 511 bytes.
    return b"u" + blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def outbox_key(number: int) -> bytes:
    return b"q" + _U64.pack(number)


def outbox_number(key: bytes) -> int:
    return int(_U64.unpack(key[1:9])[0])


def waiting_key(key: bytes) -> bytes:
    return b"Q" + key


def listing_hash_key(key: bytes) -> bytes:
    """Return what the keys of all parts of a listing begin with."""
    return key[:17]


def listing_part(key: bytes) -> int:
    return int.from_bytes(key[17:21], "big")


def endpoint_key(name: str) -> bytes:
    return ENDPOINTS + blake2b(name.encode(), digest_size=16).digest()
