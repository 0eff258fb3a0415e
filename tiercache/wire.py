"""Frames between client and agent on the Unix socket. docs/format.md draws them.

A frame is a 4-byte little-endian body length, one version byte, and a msgpack body: one tagged
array of a request or a response. A connection carries one request at a time; ``Advise``,
``ReportUse`` and ``Wake`` have no answer. Bodies over ``MAX_FRAME_BYTES`` are refused before they
are read.
"""

from __future__ import annotations

import struct

import msgspec

from tiercache.errors import FormatError, Throttled, TiercacheError, from_wire
from tiercache.model import JobProgress, Kind
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MetadataSettings,
    MountSettings,
    ProfileSettings,
    QosSettings,
)

WIRE_VERSION = 1
# The largest honest frame carries one read-through run (8 MiB) or one write part with its header.
MAX_FRAME_BYTES = 12 << 20
MAX_SPAN_BYTES = 8 << 20
# A random read of so much at most gets its bytes with the answer to its miss: carrying 64 KiB costs
# ~20 µs, waiting for the index to be durable and reading there some 1,000.
MAX_INLINE_BYTES = 256 * 1024
HEADER = struct.Struct("<IB")


class Request(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    """What a client asks."""


class Hello(Request, frozen=True, array_like=True, tag=1):
    """``mounts`` and ``profiles`` are what the client is configured with: the agent adds those it
    lacks, and refuses those that contradict its own. ``name`` is what the client calls itself for
    the QoS policy: requests of this connection are charged as that name's, and wait no longer than
    ``max_wait_s`` for it."""

    client_version: str
    pid: int
    mounts: tuple[MountSettings, ...]
    profiles: tuple[ProfileSettings, ...]
    name: str = ""
    max_wait_s: float | None = None


class Lookup(Request, frozen=True, array_like=True, tag=2):
    """Bring name → version up to what the mount asks; ``revalidate`` asks the origin anyway."""

    path: str
    revalidate: bool = False


class Fill(Request, frozen=True, array_like=True, tag=3):
    """Make ``spans`` ((offset, length) in bytes) of this version present, then begin ``ahead``.

    With ``inline`` the answer may bring the bytes of the only span; they are present too, but the
    index may tell so only a moment later.
    """

    path: str
    token: str
    spans: tuple[tuple[int, int], ...]
    ahead: tuple[int, int] = (0, 0)
    inline: bool = False


class FillMany(Request, frozen=True, array_like=True, tag=4):
    """Fill parts of many names in one trip; length None means to the end."""

    items: tuple[tuple[str, int, int | None], ...]


class Advise(Request, frozen=True, array_like=True, tag=5):
    """Begin reading ahead; no answer."""

    path: str
    token: str
    offset: int
    length: int


class ListNames(Request, frozen=True, array_like=True, tag=6):
    path: str
    recursive: bool
    refresh: bool = False


class WriteBegin(Request, frozen=True, array_like=True, tag=7):
    """``mode`` is "overwrite", "create" or "if-version" (then ``token``)."""

    path: str
    mode: str
    token: str = ""


class WriteData(Request, frozen=True, array_like=True, tag=8):
    """``data`` is msgpack binary, read without a copy."""

    write: int
    data: bytes


class WriteFinish(Request, frozen=True, array_like=True, tag=9):
    write: int


class WriteAbort(Request, frozen=True, array_like=True, tag=10):
    write: int


class Remove(Request, frozen=True, array_like=True, tag=11):
    path: str
    recursive: bool = False


class Pin(Request, frozen=True, array_like=True, tag=12):
    path: str


class Unpin(Request, frozen=True, array_like=True, tag=13):
    path: str


class Evict(Request, frozen=True, array_like=True, tag=14):
    path: str


class Invalidate(Request, frozen=True, array_like=True, tag=15):
    path: str


class Prefetch(Request, frozen=True, array_like=True, tag=16):
    """``ordered``: the paths are objects in the order in which they will be read, with repeats."""

    paths: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pin: bool = False
    dry_run: bool = False
    max_bytes: int | None = None
    concurrency: int = 64
    background: bool = True
    ordered: bool = False


class JobQuery(Request, frozen=True, array_like=True, tag=17):
    """Wait up to ``wait_s`` for the job to change or end."""

    job: str
    wait_s: float = 0.0


class JobCancel(Request, frozen=True, array_like=True, tag=18):
    job: str


class StatusQuery(Request, frozen=True, array_like=True, tag=19):
    pass


class ReportCorrupt(Request, frozen=True, array_like=True, tag=20):
    """The client saw these pages of this object fail their checksum; the agent looks itself."""

    path: str
    data_id: int
    pages: tuple[int, ...]


class CopyObject(Request, frozen=True, array_like=True, tag=21):
    source: str
    target: str
    remove_source: bool = False


class Shutdown(Request, frozen=True, array_like=True, tag=22):
    pass


class MountList(Request, frozen=True, array_like=True, tag=23):
    pass


class LocalPath(Request, frozen=True, array_like=True, tag=24):
    """With ``token`` of this very version, else of the one that the mount's promise gives."""

    path: str
    pin: bool
    token: str = ""


class ReportUse(Request, frozen=True, array_like=True, tag=25):
    """``hits``: (mount path, reads, bytes) that this client answered by itself since it last
    said; no answer."""

    hits: tuple[tuple[str, int, int], ...]


class ReadThrough(Request, frozen=True, array_like=True, tag=26):
    """Return one span, 8 MiB at most, of this version straight from the origin (``Filled``)."""

    path: str
    token: str
    offset: int
    length: int


class FrozenSpan(msgspec.Struct, frozen=True, array_like=True):
    """One object as a snapshot froze it at ``frozen_unix_s``, and bytes of it to be made present,
    if any."""

    path: str
    token: str
    size_bytes: int
    mtime_s: float
    frozen_unix_s: float
    offset: int = 0
    length: int = 0


class Bind(Request, frozen=True, array_like=True, tag=40):
    """See that these names have these versions (``Bound``): where the index knows no other, they
    are taken at their word, since every fetch of their bytes proves them; else the origin is
    asked. Then fill the spans."""

    items: tuple[FrozenSpan, ...]


class SnapshotCreate(Request, frozen=True, array_like=True, tag=41):
    """Begin to freeze what the paths name; the answer is a ``Job``, queried and cancelled as one.
    ``checksums`` reads all bytes, ``replace`` takes the place of a snapshot of this name."""

    name: str
    paths: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    checksums: bool = False
    replace: bool = False
    dry_run: bool = False


class SnapshotRemove(Request, frozen=True, array_like=True, tag=42):
    name: str


class Enlist(Request, frozen=True, array_like=True, tag=43):
    """Take part in the QoS policy: which identity is each path charged to, and from which slots of
    ``leases.state`` does this process pay (``Enlisted``)? ``name`` is what the client is configured
    to be called. Slots are the process's until its last connection goes."""

    name: str = ""


class QosQuery(Request, frozen=True, array_like=True, tag=44):
    """``what``: "show", "top", "explain", "quotas" …; ``arguments`` are its parameters as JSON.
    The answer is a ``Status`` with a JSON document (docs/qos.md)."""

    what: str
    arguments: bytes = b"{}"


class QosChange(Request, frozen=True, array_like=True, tag=45):
    """Change the policy in force: ``what`` is "apply", "set", "unset", "quota-set" or
    "quota-repair"; ``arguments`` are its parameters as JSON. Answered like ``QosQuery``."""

    what: str
    arguments: bytes = b"{}"


class Wake(Request, frozen=True, array_like=True, tag=46):
    """Somebody waits for tokens and the governor has not turned for long; no answer."""


AnyRequest = (
    Hello | Lookup | Fill | FillMany | Advise | ListNames | WriteBegin | WriteData | WriteFinish
    | WriteAbort | Remove | Pin | Unpin | Evict | Invalidate | Prefetch | JobQuery | JobCancel
    | StatusQuery | ReportCorrupt | CopyObject | Shutdown | MountList
    | LocalPath | ReportUse | ReadThrough | Bind | SnapshotCreate | SnapshotRemove
    | Enlist | QosQuery | QosChange | Wake
)  # fmt: skip


class Response(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    """What the agent answers."""


class Failure(Response, frozen=True, array_like=True, tag=100):
    """``retry_after_s`` is that of Throttled, 0.0 for all others."""

    error: str
    message: str
    path: str
    remedy: str
    retry_after_s: float = 0.0


class Done(Response, frozen=True, array_like=True, tag=101):
    """``count`` is what the request counts: pages dropped, objects removed …"""

    count: int = 0


class Welcome(Response, frozen=True, array_like=True, tag=102):
    """``cache``, ``agent`` and ``metadata`` are what the agent was started with, None from one
    that is older than these fields: the client finds out what it was promised and does not get."""

    agent_version: str
    agent_pid: int
    mounts: tuple[MountSettings, ...]
    cache: CacheSettings | None = None
    agent: AgentSettings | None = None
    metadata: MetadataSettings | None = None
    qos: QosSettings | None = None


class Found(Response, frozen=True, array_like=True, tag=103):
    """Name → version. ``fresh_until_s`` is CLOCK_BOOTTIME until which the client need not ask
    again; ``stale`` says that the origin could not be asked and this is older than allowed.
    ``validated_unix_s`` is the time of ``validated_s`` in seconds since 1970, 0 where unknown."""

    kind: Kind
    token: str
    size_bytes: int
    mtime_s: float
    validated_s: float
    fresh_until_s: float
    stale: bool = False
    cached: bool = True
    validated_unix_s: float = 0.0


class Filled(Response, frozen=True, array_like=True, tag=104):
    """One element: None when all spans are in the cache now, else the bytes of the first span
    (read-through, or asked for ``inline``)."""

    data: tuple[bytes | None, ...]


class FilledMany(Response, frozen=True, array_like=True, tag=105):
    """One element an item: None where it is to be read now, or the failure of that item alone.
    ``found`` is what each name was found to be, None where that is not known."""

    data: tuple[Failure | None, ...]
    found: tuple[Found | None, ...] = ()


class Listed(Response, frozen=True, array_like=True, tag=106):
    """The listing is in the index; or, where the index cannot be written, and always where it is
    ``partial``, ``inline`` holds it."""

    stale: bool = False
    validated_s: float = 0.0
    inline: bytes | None = None
    partial: bool = False


class WriteStarted(Response, frozen=True, array_like=True, tag=107):
    write: int


class Job(Response, frozen=True, array_like=True, tag=108):
    progress: JobProgress


class Status(Response, frozen=True, array_like=True, tag=109):
    """JSON text; its schema is documented in docs/operations.md."""

    body: bytes


class Mounts(Response, frozen=True, array_like=True, tag=110):
    mounts: tuple[MountSettings, ...]


class Local(Response, frozen=True, array_like=True, tag=111):
    file: str


class Bound(Response, frozen=True, array_like=True, tag=112):
    """One element an item: what the name is now as far as the item needs to know, or why that
    cannot be told."""

    data: tuple[Found | Failure, ...]


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """What names at and below ``path`` ("" for all) are charged to: the first seat that covers a
    name holds. ``slot`` is -1 where none was free: its reads go at the agent's safe share.
    ``owner`` is the stamp that the slot bears while it is this process's; ``mark`` (1–255) what its
    hits store as visited byte. ``safe_read`` and ``safe_operations``: tokens a second."""

    path: str
    identity: str
    slot: int
    owner: int
    mark: int = 1
    max_wait_s: float | None = None
    safe_read: float = 0.0
    safe_operations: float = 0.0


class Enlisted(Response, frozen=True, array_like=True, tag=113):
    """``generation`` of the policy that the seats are of; 0 and no seats where there is none."""

    generation: int
    seats: tuple[Seat, ...] = ()


AnyResponse = (
    Failure | Done | Welcome | Found | Filled | FilledMany | Listed | WriteStarted | Job | Status
    | Mounts | Local | Bound | Enlisted
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
    error = from_wire(failure.error, failure.message, failure.path, failure.remedy)
    if isinstance(error, Throttled):
        error.retry_after_s = failure.retry_after_s
    return error


def failure_of(error: BaseException, path: str = "") -> Failure:
    """Return the wire form of an error, under the path that was asked for; where the origin named
    its own, that stands behind. Builtin OSErrors of the device keep their text."""
    if not isinstance(error, TiercacheError):
        return Failure("TiercacheError", f"{type(error).__name__}: {error}", path, "")
    message = error.message
    if path and error.path and error.path != path:
        message = f"{message} [{error.path}]"
    retry_after_s = error.retry_after_s if isinstance(error, Throttled) else 0.0
    return Failure(type(error).__name__, message, path or error.path, error.remedy, retry_after_s)


def parse_header(header: bytes | memoryview) -> int:
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
