"""Frames between client and agent on the Unix socket. docs/format.md draws them.

A frame is a 4-byte little-endian body length, one version byte, and a msgpack body: one tagged
array of a request or a response. A connection carries one request at a time; ``Advise`` alone
has no answer. Bodies over ``MAX_FRAME_BYTES`` are refused before they are read.
"""

from __future__ import annotations

import struct

import msgspec

from tiercache.errors import FormatError, TiercacheError, from_wire
from tiercache.model import JobProgress, Kind
from tiercache.settings import MountSettings, ProfileSettings

WIRE_VERSION = 1
# The largest honest frame carries one read-through run (8 MiB) or one write part with its header.
MAX_FRAME_BYTES = 12 << 20
MAX_SPAN_BYTES = 8 << 20
HEADER = struct.Struct("<IB")


class Request(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    pass


class Hello(Request, tag=1):
    """``mounts`` and ``profiles`` are what the client is configured with: the agent adds those it
    lacks, and refuses those that contradict its own."""

    client_version: str
    pid: int
    mounts: tuple[MountSettings, ...]
    profiles: tuple[ProfileSettings, ...]


class Lookup(Request, tag=2):
    """Bring name → version up to what the mount asks; ``revalidate`` asks the origin in any case."""

    path: str
    revalidate: bool = False


class Fill(Request, tag=3):
    """Make ``spans`` ((offset, length) in bytes) of this version present, then begin ``ahead``."""

    path: str
    token: str
    spans: tuple[tuple[int, int], ...]
    ahead: tuple[int, int] = (0, 0)


class FillMany(Request, tag=4):
    """Fill parts of many names in one trip; length None means to the end."""

    items: tuple[tuple[str, int, int | None], ...]


class Advise(Request, tag=5):
    """Begin reading ahead; no answer."""

    path: str
    token: str
    offset: int
    length: int


class ListNames(Request, tag=6):
    path: str
    recursive: bool
    refresh: bool = False


class WriteBegin(Request, tag=7):
    """``mode`` is "overwrite", "create" or "if-version" (then ``token``)."""

    path: str
    mode: str
    token: str = ""


class WriteData(Request, tag=8):
    """``data`` is msgpack binary, read without a copy."""

    write: int
    data: bytes


class WriteFinish(Request, tag=9):
    write: int


class WriteAbort(Request, tag=10):
    write: int


class Remove(Request, tag=11):
    path: str
    recursive: bool = False


class Pin(Request, tag=12):
    path: str


class Unpin(Request, tag=13):
    path: str


class Evict(Request, tag=14):
    path: str


class Invalidate(Request, tag=15):
    path: str


class Prefetch(Request, tag=16):
    paths: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pin: bool = False
    dry_run: bool = False
    max_bytes: int | None = None
    concurrency: int = 64
    background: bool = True


class JobQuery(Request, tag=17):
    """Wait up to ``wait_s`` for the job to change or end."""

    job: str
    wait_s: float = 0.0


class JobCancel(Request, tag=18):
    job: str


class StatusQuery(Request, tag=19):
    pass


class ReportCorrupt(Request, tag=20):
    """The client saw these pages of this object fail their checksum; the agent looks itself."""

    path: str
    data_id: int
    pages: tuple[int, ...]


class CopyObject(Request, tag=21):
    source: str
    target: str
    remove_source: bool = False


class Shutdown(Request, tag=22):
    pass


class MountList(Request, tag=23):
    pass


class LocalPath(Request, tag=24):
    path: str
    pin: bool


class ReportUse(Request, tag=25):
    """``hits``: (mount path, reads, bytes) that this client answered by itself since it last
    said; no answer."""

    hits: tuple[tuple[str, int, int], ...]


class ReadThrough(Request, tag=26):
    """Return one span, 8 MiB at most, of this version straight from the origin (``Filled``)."""

    path: str
    token: str
    offset: int
    length: int


AnyRequest = (
    Hello | Lookup | Fill | FillMany | Advise | ListNames | WriteBegin | WriteData | WriteFinish
    | WriteAbort | Remove | Pin | Unpin | Evict | Invalidate | Prefetch | JobQuery | JobCancel
    | StatusQuery | ReportCorrupt | CopyObject | Shutdown | MountList
    | LocalPath | ReportUse | ReadThrough
)  # fmt: skip


class Response(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    pass


class Failure(Response, tag=100):
    error: str
    message: str
    path: str
    remedy: str


class Done(Response, tag=101):
    """``count`` is what the request counts: pages dropped, objects removed …"""

    count: int = 0


class Welcome(Response, tag=102):
    agent_version: str
    agent_pid: int
    mounts: tuple[MountSettings, ...]


class Found(Response, tag=103):
    """Name → version. ``fresh_until_s`` is CLOCK_BOOTTIME until which the client need not ask
    again; ``stale`` says that the origin could not be asked and this is older than allowed."""

    kind: Kind
    token: str
    size_bytes: int
    mtime_s: float
    validated_s: float
    fresh_until_s: float
    stale: bool = False
    cached: bool = True


class Filled(Response, tag=104):
    """One element: None when all spans are in the cache now, else the bytes of the first span
    (read-through)."""

    data: tuple[bytes | None, ...]


class FilledMany(Response, tag=105):
    """One element an item: None where it is to be read now, or the failure of that item alone."""

    data: tuple[Failure | None, ...]


class Listed(Response, tag=106):
    """The listing is in the index; or, where the index cannot be written, ``inline`` holds it."""

    stale: bool = False
    validated_s: float = 0.0
    inline: bytes | None = None


class WriteStarted(Response, tag=107):
    write: int


class Job(Response, tag=108):
    progress: JobProgress


class Status(Response, tag=109):
    """JSON text; its schema is documented in docs/operations.md."""

    body: bytes


class Mounts(Response, tag=110):
    mounts: tuple[MountSettings, ...]


class Local(Response, tag=111):
    file: str


AnyResponse = (
    Failure | Done | Welcome | Found | Filled | FilledMany | Listed | WriteStarted | Job | Status
    | Mounts | Local
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
decode_request = msgspec.msgpack.Decoder(AnyRequest).decode
decode_response = msgspec.msgpack.Decoder(AnyResponse).decode


def frame(message: Request | Response) -> bytes:
    """Return one whole frame. Raises FormatError when it would exceed the cap."""
    body = bytearray(HEADER.size)
    _encoder.encode_into(message, body, HEADER.size)
    length = len(body) - HEADER.size
    if length > MAX_FRAME_BYTES:
        raise FormatError(f"a frame of {length} bytes exceeds the cap of {MAX_FRAME_BYTES}")
    HEADER.pack_into(body, 0, length, WIRE_VERSION)
    return bytes(body)


def error_of(failure: Failure) -> TiercacheError:
    """Return the exception that a failure stands for."""
    return from_wire(failure.error, failure.message, failure.path, failure.remedy)


def parse_header(header: bytes) -> int:
    """Return the body length. Raises FormatError for another version or an oversized body."""
    length, version = HEADER.unpack(header)
    if version != WIRE_VERSION:
        raise FormatError(
            f"the peer speaks wire version {version}, this is {WIRE_VERSION}",
            remedy="run client and agent from one tiercache version; stop the old agent",
        )
    if length > MAX_FRAME_BYTES:
        raise FormatError(f"a frame of {length} bytes exceeds the cap of {MAX_FRAME_BYTES}")
    return int(length)
