"""What can be said while an origin is offline: the names known below directories that were never
listed whole, and errors that name what is missing.

Names lie in the index by their hashes, so they are looked through once an outage, at the first
question that no single record answers: ~0.4 s for 100,000, in turns with everybody else. Owned by
the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass, field
from math import inf

import msgspec

from tiercache import records
from tiercache.agent.flights import SingleFlight, endpoint_of
from tiercache.agent.index import Index
from tiercache.agent.listings import ListingName
from tiercache.agent.mounts import Located
from tiercache.errors import OriginUnavailable
from tiercache.model import Consistency, Entry, Kind
from tiercache.ports import Endpoint, Origin
from tiercache.records import ListingPart, ObjectRecord

# ~120 B each, for as long as the outage lasts: 60 MB at most. Names beyond are left out.
KEPT_NAMES = 500_000
# A partial listing travels in one frame of 12 MiB; more of it is left out, as other names are.
MAX_PARTIAL_BYTES = 8 << 20
ENTRY_BYTES = 40
BEFOREHAND = (
    "prefetch it when the origin is back; tiercache autarky check says beforehand what an outage "
    "would take away"
)

# What says so of a name, and when that was confirmed.
Source = ObjectRecord | ListingPart


@dataclass(slots=True)
class _Known:
    """The names known of one origin: full keys in order, directories with a slash at their end.
    ``listed`` has those that listings alone tell of."""

    keys: list[str] = field(default_factory=list)
    listed: dict[str, tuple[Entry, ListingPart]] = field(default_factory=dict)


class OfflineNames:
    """Answers about directories of offline origins."""

    def __init__(self, index: Index, flights: SingleFlight) -> None:
        self._index = index
        self._flights = flights
        # By origin, for as long as it is offline
        self._known: dict[str, _Known] = {}
        self._forgetting: set[asyncio.Task[None]] = set()

    async def below(self, origin: Origin, name: ListingName) -> ListingPart | None:
        """Return the names known below a directory, confirmed when the oldest of them was; None
        where there are none."""
        known = await self._names(origin)
        found: dict[tuple[str, Kind], Entry] = {}
        oldest: Source | None = None
        room = MAX_PARTIAL_BYTES
        place = bisect_left(known.keys, name.prefix)
        while place < len(known.keys) and known.keys[place].startswith(name.prefix):
            key = known.keys[place]
            child, slash, _ = key[len(name.prefix) :].partition("/")
            told = None if slash and not name.recursive else self._told(name.origin, key, known)
            place += 1
            if told is not None:
                entry, source = told
                entry = msgspec.structs.replace(entry, name=key[len(name.prefix) :])
                oldest = source if oldest is None or _is_older(source, oldest) else oldest
            elif slash and not name.recursive:
                entry = Entry(child, Kind.DIRECTORY)
                # Whatever else lies in there says no more here.
                place = bisect_left(known.keys, name.prefix + child + "0", place)
            else:
                continue
            room -= ENTRY_BYTES + len(entry.name.encode()) + len(entry.token)
            if entry.name and room > 0:
                found[entry.name, entry.kind] = entry
        if not found:
            return None
        ordered = sorted(found.values(), key=lambda entry: (entry.name, entry.kind))
        return ListingPart(
            origin=name.origin,
            prefix=name.prefix,
            recursive=name.recursive,
            parts=1,
            validated_s=-inf if oldest is None else oldest.validated_s,
            boot="" if oldest is None else oldest.boot,
            entries=tuple(ordered),
            validated_unix_s=0.0 if oldest is None else oldest.validated_unix_s,
        )

    def _told(self, origin: str, key: str, known: _Known) -> tuple[Entry, Source] | None:
        """Return what is known of one object; None for a directory, and what has gone."""
        listed = known.listed.get(key)
        if listed is not None:
            return listed
        record = self._index.get_object(records.name_hash(origin, key))
        if record is None or record.kind is not Kind.FILE:
            return None
        return Entry("", Kind.FILE, record.size_bytes, record.token, record.mtime_s), record

    async def find(self, located: Located) -> tuple[Entry, ListingPart] | Kind | None:
        """Return what listings say of a name that has no record, DIRECTORY where known names lie
        below it, None where nothing is known."""
        known = await self._names(located.origin)
        found = known.listed.get(located.key)
        if found is not None:
            return found
        prefix = located.directory_prefix
        place = bisect_left(known.keys, prefix)
        is_directory = place < len(known.keys) and known.keys[place].startswith(prefix)
        return Kind.DIRECTORY if is_directory else None

    async def _names(self, origin: Origin) -> _Known:
        known = self._known.get(origin.url)
        if known is None:
            look = self._flights.join(
                ("offline names", origin.url), lambda: self._look(origin), since_s=-inf
            )
            known = await asyncio.shield(look)
        return known

    async def _look(self, origin: Origin) -> _Known:
        known = await _look_through(self._index, origin.url)
        endpoint = endpoint_of(origin)
        if endpoint is not None and endpoint.is_offline:
            self._known[origin.url] = known
            task = asyncio.create_task(self._forget(origin.url, endpoint))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)
        return known

    async def _forget(self, url: str, endpoint: Endpoint) -> None:
        await endpoint.back()
        self._known.pop(url, None)

    def stop(self) -> None:
        for task in self._forgetting:
            task.cancel()


async def _look_through(index: Index, origin: str) -> _Known:
    """Return all names that the index knows of an origin."""
    known = _Known()
    names: set[str] = set()
    async for _, raw in index.walk(b"o"):
        record = records.decode_object(raw)
        if record.origin == origin and len(names) < KEPT_NAMES and record.validated_s > -inf:
            if record.kind is Kind.FILE:
                names.add(record.key)
            elif record.kind is Kind.DIRECTORY and record.key:
                names.add(record.key.rstrip("/") + "/")
    async for _, raw in index.walk(b"l"):
        part = records.decode_listing(raw)
        if part.origin != origin or part.validated_s == -inf:
            continue
        source = msgspec.structs.replace(part, entries=())
        for entry in part.entries:
            key = part.prefix + entry.name + ("/" if entry.kind is Kind.DIRECTORY else "")
            if key not in names and len(names) < KEPT_NAMES:
                names.add(key)
                if entry.kind is Kind.FILE:
                    known.listed[key] = entry, source
    known.keys = sorted(names)
    return known


def _is_older(one: Source, other: Source) -> bool:
    return one.validated_unix_s < other.validated_unix_s


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
