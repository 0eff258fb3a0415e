"""Ports: what the engine needs of the world, as Protocols. Adapters implement them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from tiercache.errors import OriginUnavailable
from tiercache.model import BackendStatus, BackendWait, EndpointStatus, ObjectInfo
from tiercache.policy.qos import BackendPlan

Buffer = bytes | bytearray | memoryview
NOTHING_REQUIRED: Mapping[bytes, bytes | None] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginCapabilities:
    """What an origin was seen to honour (probed, not assumed).

    ``conditional_get``: a ranged GET under a token fails when the version differs. Where false,
    the caller relies on the token in the answer alone. ``conditional_put``: IfAbsent is kept,
    ``conditional_replace``: IfVersion is. ``copy``: server-side copy.
    """

    conditional_get: bool
    conditional_put: bool
    conditional_replace: bool
    write_id: bool
    copy: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one GET, as a buffer, and the version they belong to."""

    info: ObjectInfo
    data: Buffer


@dataclass(frozen=True, slots=True)
class ListPage:
    """Objects and, when listed with a delimiter, common prefixes (each ending in "/").

    ``position`` is from where a listing that breaks after this page goes on, by the server's own
    word; "" where nothing is known to follow, or the adapter cannot tell.
    """

    objects: Sequence[ObjectInfo]
    prefixes: Sequence[str] = ()
    position: str = ""


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Write only where no object is. With ``may_repeat`` a lost answer may be followed by a second
    request where nothing is found: if the first was carried out, and what it made was removed
    since, the object comes back. Without, the outcome is unknown then."""

    may_repeat: bool = False


@dataclass(frozen=True, slots=True)
class IfVersion:
    """Write only over this version."""

    token: str


@dataclass(frozen=True, slots=True)
class Always:
    """Write over whatever is there."""


Condition = Always | IfAbsent | IfVersion


class Origin(Protocol):
    """One bucket or container. Keys are full keys inside it, verbatim, never normalised.

    Methods run on the agent's event loop and do not retry unless the implementation is the
    retrying wrapper. Errors: NotFound, AccessDenied, OriginUnavailable, OriginThrottled,
    PreconditionFailed, AlreadyExists, Unsupported. A cancelled call leaves no request behind.
    """

    @property
    def url(self) -> str:
        """Scheme and bucket, with the endpoint or account where it is not the cloud's own: the
        identity under which cached data is kept."""
        ...

    @property
    def capabilities(self) -> OriginCapabilities: ...

    async def head(self, key: str) -> ObjectInfo:
        """Return the current version, with ``write_id`` where the origin keeps metadata."""
        ...

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, token: str | None = None
    ) -> Fetched:
        """Return bytes [start, end), or all from start. With ``token``, only of that version:
        raises PreconditionFailed where the answer bears another, whatever the server ignored.
        Without a range one answer names its own version. Fewer bytes than asked for raises
        OriginUnavailable (a truncated answer)."""
        ...

    def list(
        self, prefix: str, *, recursive: bool, limit: int | None = None, position: str = ""
    ) -> AsyncIterator[ListPage]:
        """Yield pages in key order. ``prefix`` is matched as a string; non-recursive listing
        groups by "/". Begins at a ``position`` that a page of the same listing told. Ends early
        only by raising."""
        ...

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        """Write one object in one request. Atomic. Not retried blindly: a lost answer raises
        OriginUnavailable, and the caller settles it by HEAD and ``write_id``."""
        ...

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[Buffer],
        *,
        condition: Condition = Always(),
        write_id: str = "",
    ) -> ObjectInfo:
        """Write one object of unknown length, multipart, holding a few parts in memory at most.
        Nothing is visible before it returns. Raises Unsupported where a condition cannot be
        kept for a multipart upload."""
        ...

    async def delete(self, key: str, *, may_repeat: bool = True) -> None:
        """Remove the object. Absence is not an error (the clouds do not report it alike). Without
        ``may_repeat`` one request is sent at most, and a lost answer raises OriginUnavailable: a
        second one might remove what was written since."""
        ...

    async def copy(self, source_key: str, target_key: str) -> None:
        """Copy on the server's side, over whatever is there."""
        ...

    async def close(self) -> None: ...


class Endpoint(Protocol):
    """The server behind one or more origins, and whether it answers. Owned by the event loop."""

    @property
    def name(self) -> str:
        """What it is called for users: no secret in it."""
        ...

    @property
    def is_offline(self) -> bool:
        """Whether requests are refused unsent."""
        ...

    @property
    def down_s(self) -> float:
        """For how long it has been offline, 0.0 while it is not."""
        ...

    def status(self) -> EndpointStatus: ...

    def refusal(self, path: str) -> OriginUnavailable | None:
        """Return the error that a request meets now, None where it would be sent."""
        ...

    async def back(self) -> None:
        """Return when it is not offline."""
        ...

    async def heard(self) -> None:
        """Return when it is not offline and has no failure or silence that is still looked into."""
        ...

    async def verdict(self) -> bool:
        """Return, after a request has failed, whether it is offline; takes seconds at most."""
        ...


class Endpoints(Protocol):
    """All endpoints of one agent."""

    def all(self) -> Sequence[Endpoint]: ...

    def remember(self, name: str, down_s: float) -> None:
        """Begin with this endpoint offline, as it was ``down_s`` ago when another agent left."""
        ...

    def limit(self, plans: Sequence[BackendPlan]) -> None:
        """Keep to these limits of accounts, buckets and prefixes from now on; what waits for a
        request goes on waiting, for what holds now."""
        ...

    def limits(self) -> Sequence[BackendStatus]:
        """Return every limit that is configured or has met a request."""
        ...

    def waits(self) -> Sequence[BackendWait]:
        """Return who waits to send requests, and at which limit."""
        ...


class IndexReader(Protocol):
    """Ordered byte keys to byte values, as of the last commit. Thread safe. A reader sees each
    commit whole or not at all."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look all up in one snapshot."""
        ...

    def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs whose key begins with ``prefix``, from ``start`` on, in key order. The
        iterator holds a snapshot open: exhaust it promptly or close it."""
        ...

    def close(self) -> None: ...


class IndexStore(IndexReader, Protocol):
    """The NVMe index, its writing side; one process at a time."""

    def commit(self, batch: Mapping[bytes, bytes | None]) -> int:
        """Apply all (None deletes) atomically and durably; return the commit's sequence number."""
        ...

    def reader_check(self) -> int:
        """Free what dead readers hold; return how many."""
        ...

    def size_bytes(self) -> int:
        """Return the bytes it occupies on its device now."""
        ...


class MetadataStore(Protocol):
    """What must outlive the NVMe: ordered byte keys to byte values, in one of several engines.

    Used from one event loop, by one agent at a time. Commits may run at once, and take effect in
    the order in which they were called. Making a store is its first commit. Keys are 1 to 511
    bytes and do not begin with a zero byte (the engine's own); values are 16 MiB at most. Every
    call ends within the engine's limits of time. Errors: MetadataUnavailable where the store
    cannot be asked (a commit's outcome is unknown then; putting the same again is safe),
    MetadataFenced where another agent has taken over, which is for good, and FormatError.
    """

    @property
    def url(self) -> str:
        """Where it is, as configured: no secret in it."""
        ...

    @property
    def identity(self) -> str:
        """A random name that the store got when it was made, and keeps."""
        ...

    @property
    def sequence(self) -> int:
        """The number of the last commit that is known here."""
        ...

    async def get(self, key: bytes) -> bytes | None: ...

    def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield pairs whose key begins with ``prefix``, from the full key ``start`` on, in key
        order, all as of one moment: that of its first pair. Exhaust it promptly or close it."""
        ...

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        """Apply all (None deletes) atomically; return the commit's sequence number, durable by
        then. An empty batch writes nothing and returns the last one.

        ``preconditions``: what keys must hold (None: nothing) for the commit to happen; else
        raises PreconditionFailed. Raises ValueError for a bad key or value. Nothing was applied
        then."""
        ...

    async def flush(self) -> None:
        """Write what the engine holds back to where the next opening reads it fastest. What was
        committed is durable without."""
        ...

    async def check_owner(self) -> None:
        """Ask the store itself whether this agent is still its writer. Raises MetadataFenced,
        MetadataUnavailable."""
        ...

    async def close(self) -> None:
        """Give it up. Idempotent. No other call may be in flight."""
        ...


class ExtentReader(Protocol):
    """One extent opened for reading under a shared flock. The descriptor closes, and the lock
    goes, when the last reference does; so a thread that still reads keeps it alive."""

    fd: int

    def view(self) -> memoryview:
        """Return a read-only view on a mapping of the whole file; it keeps bytes and lock alive."""
        ...


class SharedState(Protocol):
    """The small mapping that all processes of a node share; the agent's side of it."""

    @property
    def slots_count(self) -> int: ...

    def bump_epoch(self) -> None:
        """Tell every client that some name or extent it knows has moved."""
        ...

    def bump_generation(self) -> None:
        """Tell every client that another agent has begun: pages are to be verified again."""
        ...

    def take_visited(self, slot: int) -> int:
        """Read and clear one visited byte: the mark of who read last, 0 where nobody has."""
        ...

    def visited_by(self, slot: int) -> int:
        """Read one visited byte."""
        ...


class SharedStateView(Protocol):
    """The clients' side: ``words[1]`` is the epoch, ``words[2]`` the generation; storing a
    mark, 1 to 255, to ``visited[slot]`` notes a hit."""

    words: memoryview
    visited: memoryview


class LeaseFile(Protocol):
    """The mapping from which clients pay, the agent's side; ``policy/lease_words.py`` lays it out.
    Owned by one thread."""

    slots: memoryview

    def begin(self) -> None:
        """End all leases of an agent before: all slots are free. Its generation stands until the
        policy is told anew or turned off."""
        ...

    @property
    def generation(self) -> int:
        """The policy's in force, 0 while it is off."""
        ...

    def new_generation(self) -> int:
        """Tell every client that the policy has changed or begun; return its number, which no
        policy here had before."""
        ...

    def turn_off(self) -> None:
        """Tell every client that there is no policy."""
        ...

    def turned(self, now_ns: int) -> None:
        """Tell every client that the governor has just turned (CLOCK_BOOTTIME)."""
        ...

    def clear(self, slot: int) -> None:
        """Set all words of a slot to 0, its owner first."""
        ...

    def close(self) -> None: ...


class LeaseFileView(Protocol):
    """The clients' side: u64 words. ``header`` is read-only; slot ``n`` is the words from
    ``n * SLOT_WORDS`` on in ``slots``."""

    header: memoryview
    slots: memoryview

    def close(self) -> None: ...


class ExtentDirectory(Protocol):
    """The reading side of the extent files."""

    def open(self, extent_id: int) -> ExtentReader | None:
        """Return None where the extent is gone (evicted)."""
        ...

    def path(self, extent_id: int) -> str: ...


class ExtentStore(ExtentDirectory, Protocol):
    """The writing side: the agent's alone. All calls may block on the device."""

    def create(self, extent_id: int, length: int) -> None:
        """Make a sparse file of ``length`` bytes. Costs no data blocks."""
        ...

    def write(self, extent_id: int, offset: int, data: Buffer) -> None:
        """Write all of ``data``; raises OSError (ENOSPC, EIO, EROFS) from the device."""
        ...

    def write_many(self, extent_id: int, parts: Sequence[tuple[int, Buffer]]) -> None:
        """Write several (offset, data) parts of one extent; adjacent ones in one call."""
        ...

    def read(self, extent_id: int, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes. Raises FileNotFoundError for an unknown extent."""
        ...

    def truncate(self, extent_id: int, length: int) -> None:
        """Set the file's length."""
        ...

    def allocated(self, extent_id: int) -> int:
        """Return the bytes it occupies on the device now, delayed allocation included."""
        ...

    def discard(self, extent_id: int) -> None:
        """Take the extent out of readers' reach at once; its space counts until ``reap``."""
        ...

    def reap(self) -> list[tuple[int, int]]:
        """Unlink discarded extents that no reader holds; return (extent_id, freed bytes)."""
        ...

    def discarded(self) -> dict[int, int]:
        """Return allocated bytes of extents discarded and still held, by id."""
        ...

    def scan(self) -> dict[int, int]:
        """Return allocated bytes of all live extent files on disk, by id."""
        ...

    def free(self) -> tuple[int, int, int]:
        """Return (available bytes, total bytes, available inodes) of the file system."""
        ...
