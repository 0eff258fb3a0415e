"""Listings in the index: kept whole or not at all, and what one says about the directories below.

Owned by the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from tiercache import records
from tiercache.agent.index import Index
from tiercache.agent.mounts import Located
from tiercache.model import Entry, Kind
from tiercache.records import ListingPart

# Parts held back until a listing has ended, so that the one before it stands till then: 64 parts
# are half a million names, some 32 MiB. A longer listing takes the place of the old one earlier.
HELD_PARTS = 64


@dataclass(frozen=True, slots=True)
class ListingName:
    """What is listed: ``prefix`` of the bucket ``origin``, one level of it or all below."""

    origin: str
    prefix: str
    recursive: bool

    def key(self, number: int) -> bytes:
        return records.listing_key(self.origin, self.prefix, self.recursive, number)


@dataclass(frozen=True, slots=True)
class Listing:
    """How a listing request ended. ``parts`` only where the index could not take them, or is not
    to, for a ``partial`` one is never kept."""

    validated_s: float
    stale: bool
    partial: bool = False
    parts: tuple[ListingPart, ...] = ()


def listing_name(located: Located, recursive: bool) -> ListingName:
    return ListingName(located.origin.url, located.directory_prefix, recursive)


def listings_with(origin: str, key: str) -> Iterator[ListingName]:
    """Yield the listings in which ``key`` shows, or may have made a directory show: those of all
    directories above it."""
    above = ["", *(key[: place + 1] for place, char in enumerate(key) if char == "/")]
    for prefix in above:
        yield ListingName(origin, prefix, True)
        yield ListingName(origin, prefix, False)


def part_of(index: Index, name: ListingName, number: int) -> ListingPart | None:
    raw = index.get(name.key(number))
    return None if raw is None else records.decode_listing(raw)


def stored(index: Index, name: ListingName) -> tuple[ListingPart, ...]:
    """Return all parts of a listing, none where it is not known whole."""
    parts: list[ListingPart] = []
    while not parts or len(parts) < parts[0].parts:
        part = part_of(index, name, len(parts))
        if part is None:
            return ()
        parts.append(part)
    return tuple(parts)


class Draft:
    """A listing under way. Nobody finds a part of it before ``publish``."""

    def __init__(
        self,
        index: Index,
        name: ListingName,
        *,
        validated_s: float,
        boot: str,
        validated_unix_s: float,
        is_inferred: bool = False,
    ) -> None:
        self.name = name
        # A change of ours that the listing may have missed: it serves those who asked before
        # that change, and nobody later.
        self.overtaken = False
        self._index = index
        # A metadata store need not be told: whoever has the other listing can infer this one.
        self._put_record = index.adopt if is_inferred else index.put
        self._validated_s = validated_s
        self._boot = boot
        self._validated_unix_s = validated_unix_s
        self._waiting: list[Entry] = []
        self._full: list[tuple[Entry, ...]] = []
        self._spilt = 0  # parts after the first that are in the index already

    def add(self, entries: list[Entry]) -> None:
        self._waiting += entries
        while len(self._waiting) >= records.PART_ENTRIES:
            self._full.append(tuple(self._waiting[: records.PART_ENTRIES]))
            del self._waiting[: records.PART_ENTRIES]
        if len(self._full) > HELD_PARTS:
            self._spill()

    def _spill(self) -> None:
        """Put what is held but the first part, without which the others are not found."""
        self._put_record(self.name.key(0), None)
        for entries in self._full[1:]:
            self._spilt += 1
            self._put(self._spilt, 0, entries)
        del self._full[1:]

    def publish(self) -> None:
        """Put the listing, whole, into the index; the caller flushes. One that was asked for later
        and has ended before stays."""
        known = part_of(self._index, self.name, 0)
        if known and known.boot == self._boot and known.validated_s > self._validated_s:
            return
        if self._waiting or not self._full:
            self._full.append(tuple(self._waiting))
            self._waiting = []
        count = self._spilt + len(self._full)
        for number, entries in enumerate(self._full[1:], self._spilt + 1):
            self._put(number, 0, entries)
        self._put(0, count, self._full[0])

    def _put(self, number: int, count: int, entries: tuple[Entry, ...]) -> None:
        part = ListingPart(
            origin=self.name.origin,
            prefix=self.name.prefix,
            recursive=self.name.recursive,
            parts=count,
            validated_s=-inf if self.overtaken else self._validated_s,
            boot=self._boot,
            entries=entries,
            validated_unix_s=self._validated_unix_s,
        )
        self._put_record(self.name.key(number), records.encode(part))


def entry_of(index: Index, origin: str, key: str) -> tuple[Entry, ListingPart] | None:
    """Return what the listing of the directory above says of a name, and the part that says so;
    one that is not known is inferred, once for all names there."""
    above, slash, base = key.rpartition("/")
    name = ListingName(origin, above + slash, False)
    if part_of(index, name, 0) is None:
        infer(index, name)
    for part in stored(index, name):
        if part.validated_s > -inf:
            for entry in part.entries:
                if entry.name == base:
                    return entry, part
    return None


def infer(index: Index, name: ListingName) -> ListingPart | None:
    """Make a listing from a recursive one of a directory above, whatever its age, and put it;
    return its first part. None where no such listing is known, or it knows nothing there."""
    prefix = name.prefix
    while True:
        parts = stored(index, ListingName(name.origin, prefix, True))
        if parts and parts[0].validated_s > -inf:
            break
        if not prefix:
            return None
        prefix = prefix[: prefix.rfind("/", 0, len(prefix) - 1) + 1]
    below = name.prefix[len(prefix) :]
    entries = sorted(
        _below((entry for part in parts for entry in part.entries), below, name.recursive),
        key=lambda entry: (entry.name, entry.kind),
    )
    if not entries:
        return None
    first = parts[0]
    draft = Draft(
        index,
        name,
        validated_s=first.validated_s,
        boot=first.boot,
        validated_unix_s=first.validated_unix_s,
        is_inferred=True,
    )
    draft.add(entries)
    draft.publish()
    return part_of(index, name, 0)


def _below(entries: Iterator[Entry], below: str, recursive: bool) -> set[Entry]:
    found = set()
    for entry in entries:
        name = entry.name[len(below) :]
        if not name or not entry.name.startswith(below):
            continue
        child, slash, _ = name.partition("/")
        if recursive or not slash:
            found.add(Entry(name, entry.kind, entry.size_bytes, entry.token, entry.mtime_s))
        elif child:
            found.add(Entry(child, Kind.DIRECTORY))
    return found
