"""What can be said while an origin is offline: the names known below directories that were never
listed whole, and errors that name what is missing.

Names lie in the index by their hashes, so whatever lies below a directory is found by looking at
all of them: ~1 s for half a million, in turns with everybody else, and shared by those who ask at
the same time. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import inf

from tiercache import records
from tiercache.agent.flights import SingleFlight, endpoint_of
from tiercache.agent.index import Index
from tiercache.agent.listings import ListingName
from tiercache.agent.mounts import Located
from tiercache.errors import OriginUnavailable
from tiercache.model import Consistency, Entry, Kind
from tiercache.ports import Endpoint, Origin
from tiercache.records import ListingPart, ObjectRecord

# A partial listing travels in one frame of 12 MiB; more of it is left out, as other names are.
MAX_PARTIAL_BYTES = 8 << 20
ENTRY_BYTES = 40
BEFOREHAND = (
    "prefetch it when the origin is back; tiercache autarky check says beforehand what an outage "
    "would take away"
)


@dataclass(frozen=True, slots=True)
class Known:
    """Names below a directory, and the record of the oldest confirmation among them."""

    entries: tuple[Entry, ...]
    oldest: ObjectRecord | ListingPart


class OfflineNames:
    """Answers about directories of offline origins; those who ask the same share the work."""

    def __init__(self, index: Index, flights: SingleFlight) -> None:
        self._index = index
        self._flights = flights
        # The directories that known names lie in, by origin, for as long as it is offline
        self._directories: dict[str, set[str]] = {}
        self._forgetting: set[asyncio.Task[None]] = set()

    async def below(self, name: ListingName) -> Known | None:
        """Return the names known below a directory, None where there are none."""

        async def look() -> Known | None:
            return await known_below(
                self._index, name.origin, name.prefix, recursive=name.recursive
            )

        return await asyncio.shield(self._flights.join(("partial", name), look, since_s=-inf))

    async def is_directory(self, located: Located) -> bool:
        """Return whether known names lie below this one."""
        origin = located.origin
        known = self._directories.get(origin.url)
        if known is None:
            look = self._flights.join(
                ("directories", origin.url), lambda: self._look(origin), since_s=-inf
            )
            known = await asyncio.shield(look)
        return located.directory_prefix in known

    async def _look(self, origin: Origin) -> set[str]:
        found = await known_directories(self._index, origin.url)
        endpoint = endpoint_of(origin)
        if endpoint is not None and endpoint.is_offline:
            self._directories[origin.url] = found
            task = asyncio.create_task(self._forget(origin.url, endpoint))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)
        return found

    async def _forget(self, url: str, endpoint: Endpoint) -> None:
        await endpoint.back()
        self._directories.pop(url, None)

    def stop(self) -> None:
        for task in self._forgetting:
            task.cancel()


def unknown_name(located: Located, error: OriginUnavailable) -> OriginUnavailable:
    return OriginUnavailable(
        f"nothing is known of this name, and {error.message}", path=located.path, remedy=BEFOREHAND
    )


def refused_by_mount(located: Located, error: OriginUnavailable) -> OriginUnavailable:
    consistency = located.mount.consistency
    strong = consistency is Consistency.STRONG
    mode = 'consistency = "close-to-open" with ' if strong else ""
    return OriginUnavailable(
        f"the mount is {consistency} and serves nothing past its time: {error.message}",
        path=located.path,
        remedy=f'{mode}offline = "stale" of the mount serves what is known, marked stale',
    )


def missing_bytes(
    path: str, error: OriginUnavailable, *, cached_bytes: int, size_bytes: int
) -> OriginUnavailable:
    return OriginUnavailable(
        f"{cached_bytes} of its {size_bytes} bytes are cached, and {error.message}",
        path=path,
        remedy=BEFOREHAND,
    )


async def known_below(index: Index, origin: str, prefix: str, *, recursive: bool) -> Known | None:
    """Return what is known below ``prefix``; None where that is nothing."""
    found: dict[tuple[str, Kind], Entry] = {}
    oldest: ObjectRecord | ListingPart | None = None
    room = MAX_PARTIAL_BYTES
    async for entry, source in _names(index, origin, prefix):
        if not recursive:
            child, slash, _ = entry.name.partition("/")
            entry = Entry(child, Kind.DIRECTORY) if slash else entry
        if not entry.name or (recursive and entry.kind is Kind.DIRECTORY):
            continue
        if (entry.name, entry.kind) in found:
            continue
        room -= ENTRY_BYTES + len(entry.name.encode()) + len(entry.token)
        if room < 0:
            break
        found[entry.name, entry.kind] = entry
        if oldest is None or _unix_s(source) < _unix_s(oldest):
            oldest = source
    if oldest is None:
        return None
    ordered = sorted(found.values(), key=lambda entry: (entry.name, entry.kind))
    return Known(tuple(ordered), oldest)


async def _names(
    index: Index, origin: str, prefix: str
) -> AsyncIterator[tuple[Entry, ObjectRecord | ListingPart]]:
    """Yield each name below ``prefix``, relative to it, with what says so; records first, which
    are newer than listings."""
    size = len(prefix)
    async for _, raw in index.walk(b"o"):
        record = records.decode_object(raw)
        if record.origin != origin or not record.key.startswith(prefix):
            continue
        if record.kind is not Kind.ABSENT and record.validated_s > -inf:
            name = (
                record.key[size:].rstrip("/")
                if record.kind is Kind.DIRECTORY
                else (record.key[size:])
            )
            yield (
                Entry(name, record.kind, record.size_bytes, record.token, record.mtime_s),
                record,
            )
    async for _, raw in index.walk(b"l"):
        part = records.decode_listing(raw)
        if part.origin != origin or part.validated_s == -inf:
            continue
        if not part.prefix.startswith(prefix):
            continue  # a listing of a directory above would have been used whole
        for entry in part.entries:
            yield (
                Entry(
                    part.prefix[size:] + entry.name,
                    entry.kind,
                    entry.size_bytes,
                    entry.token,
                    entry.mtime_s,
                ),
                part,
            )


async def known_directories(index: Index, origin: str) -> set[str]:
    """Return all directories (each ending in a slash) that known names lie in."""
    found: set[str] = set()
    async for entry, _ in _names(index, origin, ""):
        name = entry.name + "/" if entry.kind is Kind.DIRECTORY else entry.name
        place = name.rfind("/")
        while place > 0 and name[: place + 1] not in found:
            found.add(name[: place + 1])
            place = name.rfind("/", 0, place)
    return found


def _unix_s(source: ObjectRecord | ListingPart) -> float:
    return source.validated_unix_s
