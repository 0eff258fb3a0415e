"""The values that every layer speaks of. All are immutable; none knows any technology."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from math import inf

import msgspec

# The unit of presence and checksum. 64 KiB is the read size that training samples and column
# chunks cluster at, and one CRC32C of it costs ~3 µs.
PAGE_BYTES = 64 * 1024
PAGE_SHIFT = 16
# 64 MiB: the unit of index records. Its bitmap is 128 B and its checksums 4 KiB: one LMDB page
# run, rewritten a few times while a chunk fills.
CHUNK_PAGES = 1024
# Objects up to 1 MiB are packed: a million of 64 KiB then cost 1,000 inodes.
SMALL_OBJECT_BYTES = 1 << 20


class Kind(IntEnum):
    """What a name is."""

    ABSENT = 0
    FILE = 1
    DIRECTORY = 2


class Consistency(StrEnum):
    """How fresh name → version must be; see docs/semantics.md."""

    IMMUTABLE = "immutable"
    EVENTUAL = "eventual"
    CLOSE_TO_OPEN = "close-to-open"
    STRONG = "strong"


class EndpointState(StrEnum):
    """Whether the server behind origins answers. ``degraded``: requests failed or were put off
    lately; ``offline``: nothing is sent to it but the agent's own probes."""

    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A server behind origins at one moment.

    ``since_s`` is for how long it has been in this ``state``; ``next_probe_s`` in how long the
    next probe is due while it is offline. ``last_error`` is of the last request that failed or was
    put off, and holds no secret. ``bytes_per_s`` is what it was lately seen to deliver, 0 where
    too little was read to tell.
    """

    name: str
    state: EndpointState
    since_s: float
    last_error: str = ""
    next_probe_s: float = 0.0
    bytes_per_s: int = 0


class BackendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of requests to origins at one moment, all values a second.

    ``scope`` is an origin's URL or the beginning of one, or "endpoint:" and an endpoint's name;
    ``kind`` is get, put, list or bytes. ``limit`` is what the policy allows, None for all; ``rate``
    is what the server was lately found to bear, None where it has not put off. ``throttled`` counts
    the requests that it did put off, ``waiting`` those that wait for this limit and others now;
    ``paused_s`` is for how long the server asked to be left alone.
    """

    scope: str
    kind: str
    limit: float | None
    rate: float | None
    sent_per_s: float
    throttled: int
    waiting: int
    paused_s: float


class BackendWait(msgspec.Struct, frozen=True, kw_only=True):
    """Requests on behalf of one identity ("" for nobody's) that wait at one limit of an origin, or
    for a place in flight at an endpoint: ``bucket`` is "s3://bucket get" or "endpoint:NAME in
    flight". The first of them has waited for ``longest_s``."""

    identity: str
    bucket: str
    waiting: int
    longest_s: float


class ObjectInfo(msgspec.Struct, frozen=True, array_like=True):
    """One object version as its origin describes it.

    ``key`` is the full key inside the bucket. ``token`` is the version token: an ETag with its
    quotes, or ``generation``; it is compared, never parsed. ``mtime_s`` is seconds since 1970.
    """

    key: str
    size_bytes: int
    token: str
    mtime_s: float = 0.0
    write_id: str = ""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of a listing; ``name`` is relative to the listed directory, without a slash at
    its end when ``kind`` is DIRECTORY."""

    name: str
    kind: Kind
    size_bytes: int = 0
    token: str = ""
    mtime_s: float = 0.0


class Listing(list[Entry]):
    """What a directory holds, by name; a list, with what is known of its truth.

    ``age_s`` is how long ago the origin said so (of several mounts the longest; inf where nobody
    knows any more), ``stale`` is true where it is served past its time because the origin cannot
    be reached. ``partial`` is true where the directory was never listed whole and the origin is
    offline: these are the names that happen to be known, and there may be others."""

    __slots__ = ("age_s", "partial", "stale")

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        age_s: float = 0.0,
        stale: bool = False,
        partial: bool = False,
    ) -> None:
        super().__init__(entries)
        self.age_s = age_s
        self.stale = stale
        self.partial = partial


class Stat(msgspec.Struct, frozen=True):
    """What is known of one namespace path.

    ``version`` is the version token. ``age_s`` is how long ago the origin confirmed it (the
    request was sent), ``validated_unix_s`` when that was, in seconds since 1970 (inf and -inf where
    nobody knows). ``stale`` is true where it is served past its time because the origin cannot be
    reached. ``consistency`` is the mount's; None of a directory above the mounts.
    """

    path: str
    kind: Kind
    size_bytes: int
    version: str
    mtime_s: float
    age_s: float
    stale: bool = False
    validated_unix_s: float = -inf
    consistency: Consistency | None = None

    @property
    def validated_at(self) -> datetime | None:
        """When the origin last confirmed it, in UTC; None where nobody knows."""
        if self.validated_unix_s == -inf:
            return None
        return datetime.fromtimestamp(self.validated_unix_s, tz=UTC)

    @property
    def is_file(self) -> bool:
        return self.kind is Kind.FILE

    @property
    def is_dir(self) -> bool:
        return self.kind is Kind.DIRECTORY


class FileExtent(msgspec.Struct, frozen=True):
    """Where cached bytes lie: ``length`` bytes at ``file_offset`` of ``file``."""

    file: str
    file_offset: int
    length: int


class MissingObject(msgspec.Struct, frozen=True):
    """An object of which an outage would leave ``cached_bytes``."""

    path: str
    size_bytes: int
    cached_bytes: int


class Autarky(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a job over ``path`` would survive an outage that begins now.

    ``missing`` objects are not wholly cached, by ``missing_bytes``, and would take about
    ``fetch_s`` at ``bytes_per_s``, which ``is_measured`` or an assumption. ``unlisted``
    directories were never listed, so nobody knows what is missing there. ``refused`` says which
    mounts serve nothing that they cannot ask for. ``evictable`` objects are cached and not
    pinned: they survive unless something else is fetched meanwhile. ``missing_objects`` and
    ``unlisted_paths`` are the first of them.
    """

    path: str
    survives: bool
    objects: int
    size_bytes: int
    missing: int
    missing_bytes: int
    missing_objects: tuple[MissingObject, ...]
    unlisted: int
    unlisted_paths: tuple[str, ...]
    refused: tuple[str, ...]
    evictable: int
    evictable_bytes: int
    fetch_s: float
    bytes_per_s: int
    is_measured: bool


class JobState(StrEnum):
    """``paused``: an endpoint is offline; the job goes on by itself when it is back."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LIMIT = "limit-reached"


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A prefetch job at one moment. Counts are objects unless named bytes.

    ``listed`` grows while the listing runs and is the total once ``listing_done``. ``errors``
    holds at most 100 (path, message) pairs; ``failed`` counts all. Of an ``ordered`` job, which
    counts an object at each of its reads, ``read`` says how far its reader has come, and
    ``paths`` are the first of its paths. ``message`` says why it is paused or has not ended
    well.
    """

    id: str
    state: JobState
    paths: tuple[str, ...]
    listing_done: bool = False
    listed: int = 0
    listed_bytes: int = 0
    hit: int = 0
    hit_bytes: int = 0
    filled: int = 0
    filled_bytes: int = 0
    failed: int = 0
    skipped: int = 0
    requests: int = 0
    elapsed_s: float = 0.0
    errors: tuple[tuple[str, str], ...] = ()
    message: str = ""
    error_class: str = ""
    pin: bool = False
    dry_run: bool = False
    ended: bool = False
    ordered: bool = False
    read: int = 0
