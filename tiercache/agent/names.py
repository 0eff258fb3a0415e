"""Names: name → version as fresh as the mount asks, and listings. One request for all who ask.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tiercache import records
from tiercache.agent.contents import without_data
from tiercache.agent.device import NotCached
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.plane import Plane
from tiercache.errors import NotFound, OriginUnavailable
from tiercache.model import Consistency, Entry, Kind, ObjectInfo
from tiercache.policy.freshness import (
    fresh_until_s,
    listing_fresh_until_s,
    may_serve_stale,
)
from tiercache.ports import ListPage
from tiercache.records import ListingPart, ObjectRecord
from tiercache.wire import Found

# While an origin cannot be reached, a client that was served stale asks again after this long.
STALE_RETRY_S = 1.0
# Entries of listings up to this long become records of their own, so that a stat after a list
# costs no request. Longer ones would cost the index more than the requests they save.
SEED_ENTRIES = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing:
    """How a listing request ended. ``parts`` only where the index could not take them."""

    validated_s: float
    stale: bool
    parts: tuple[ListingPart, ...] = ()


class SingleFlight:
    """One running call a key; everybody who asks meanwhile gets its outcome.

    Whoever needs an answer that was sent for no earlier than now waits for the running call to
    end and shares the next one with all who came since.
    """

    def __init__(self) -> None:
        self._running: dict[object, asyncio.Task[Any]] = {}
        self._next: dict[object, asyncio.Task[Any]] = {}

    async def do(
        self, key: object, work: Callable[[], Coroutine[Any, Any, T]], *, sent_after_now: bool
    ) -> T:
        """The call goes on when a waiter is cancelled."""
        task = self._running.get(key)
        if task is not None and sent_after_now:
            task = self._next.get(key)
            if task is None:
                task = asyncio.get_running_loop().create_task(self._after(key, work))
                self._next[key] = task
        elif task is None:
            task = self._begin(key, work)
        result: T = await asyncio.shield(task)
        return result

    def _begin(self, key: object, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work())
        self._running[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))
        return task

    def _ended(self, key: object, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved, also when every waiter was cancelled

    async def _after(self, key: object, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while key in self._running:
            await asyncio.wait({self._running[key]})
        self._next.pop(key, None)
        return await self._begin(key, work)


class Names:
    """Look-ups and listings over all mounts."""

    def __init__(self, plane: Plane, mounts: Mounts) -> None:
        self._index = plane.index
        self._mounts = mounts
        self._contents = plane.contents
        self._state = plane.state
        self._clock = plane.clock
        self._device = plane.device
        self._flights = SingleFlight()

    # -- look-up ----------------------------------------------------------------------------

    async def lookup(self, located: Located, *, revalidate: bool = False) -> Found:
        """Return name → version within the mount's promise. Absence is an answer, not an error.

        Raises OriginUnavailable where nobody could be asked and nothing may be served stale.
        """
        record = self._index.get_object(located.digest)
        if record is not None and not revalidate:
            until = self._fresh_until(located, record)
            if until > self._clock.now():
                return found(record, until)
        # An open under close-to-open must not share a HEAD that was sent before it.
        sent_after_now = revalidate or located.mount.consistency is Consistency.CLOSE_TO_OPEN
        try:
            record = await self._flights.do(
                ("head", located.digest),
                lambda: self._ask(located),
                sent_after_now=sent_after_now,
            )
        except OriginUnavailable:
            if record is None or not may_serve_stale(located.mount, record.kind):
                raise
            return found(record, self._clock.now() + STALE_RETRY_S, stale=True)
        return found(record, self._fresh_until(located, record))

    def _fresh_until(self, located: Located, record: ObjectRecord) -> float:
        return fresh_until_s(
            located.mount,
            kind=record.kind,
            validated_s=record.validated_s,
            same_boot=record.boot == self._clock.boot_id,
        )

    async def _ask(self, located: Located) -> ObjectRecord:
        sent_s = self._clock.now()
        kind, info = await self._identify(located)
        record = self.learn(located, kind, info, sent_s)
        await self._keep()
        return record

    async def _keep(self) -> bool:
        """Make what was learnt durable; False where the device refuses, which costs only speed."""
        try:
            await self._device.durable(self._index.flush())
        except NotCached:
            return False
        return True

    async def _identify(self, located: Located) -> tuple[Kind, ObjectInfo | None]:
        """Ask the origin what the name is: a HEAD, and for what is no object one short LIST."""
        key = located.key
        if not key or located.is_root:
            return Kind.DIRECTORY, None
        if not key.endswith("/"):
            try:
                return Kind.FILE, await located.origin.head(key)
            except NotFound:
                key += "/"
        async for page in located.origin.list(key, recursive=True, limit=1):
            for info in page.objects:
                # A key that ends in a slash and has bytes is an object; without, a marker.
                if info.key == located.key and info.size_bytes:
                    return Kind.FILE, info
                return Kind.DIRECTORY, None
        return Kind.ABSENT, None

    def learn(
        self, located: Located, kind: Kind, info: ObjectInfo | None, sent_s: float
    ) -> ObjectRecord:
        """Put what the origin said at ``sent_s``. A version that differs drops the old bytes."""
        known = self._index.get_object(located.digest)
        if known is not None and known.validated_s > sent_s and known.boot == self._clock.boot_id:
            return known  # a later answer, or our own write, was faster
        same = known is not None and info is not None and known.kind is kind
        if known is not None and same and info is not None and known.token == info.token:
            record = msgspec.structs.replace(
                known,
                validated_s=sent_s,
                boot=self._clock.boot_id,
                mtime_s=info.mtime_s or known.mtime_s,
            )
        else:
            if known is not None and known.kind is Kind.FILE:
                self._contents.drop_object(known)
                self._state.bump_epoch()
            record = self._new_record(located, kind, info, sent_s)
        self._index.put_object(located.digest, record)
        return record

    def _new_record(
        self, located: Located, kind: Kind, info: ObjectInfo | None, sent_s: float
    ) -> ObjectRecord:
        return ObjectRecord(
            origin=located.origin.url,
            key=located.key,
            kind=kind,
            token=info.token if info else "",
            size_bytes=info.size_bytes if info else 0,
            mtime_s=info.mtime_s if info else 0.0,
            validated_s=sent_s,
            boot=self._clock.boot_id,
        )

    # -- listings ---------------------------------------------------------------------------

    async def listing(self, located: Located, *, recursive: bool, refresh: bool) -> Listing:
        """Return a whole listing, from the index where it is fresh. Never a part of one.

        Raises OriginUnavailable where nobody could be asked and none is known.
        """
        prefix = located.directory_prefix
        known = self._part(located, prefix, recursive, 0)
        if known and not refresh and self._listing_until(located, known) > self._clock.now():
            return Listing(known.validated_s, stale=False)
        sent_after_now = refresh or located.mount.consistency is Consistency.CLOSE_TO_OPEN
        try:
            return await self._flights.do(
                ("list", located.origin.url, prefix, recursive),
                lambda: self._ask_listing(located, prefix, recursive),
                sent_after_now=sent_after_now,
            )
        except OriginUnavailable:
            if not known or not may_serve_stale(located.mount, Kind.DIRECTORY):
                raise
            return Listing(known.validated_s, stale=True)

    def _listing_until(self, located: Located, part: ListingPart) -> float:
        return listing_fresh_until_s(
            located.mount,
            validated_s=part.validated_s,
            same_boot=part.boot == self._clock.boot_id,
        )

    def _part(
        self, located: Located, prefix: str, recursive: bool, number: int
    ) -> ListingPart | None:
        raw = self._index.get(records.listing_key(located.origin.url, prefix, recursive, number))
        return None if raw is None else records.decode_listing(raw)

    def _stored(self, located: Located, prefix: str, recursive: bool) -> tuple[ListingPart, ...]:
        parts: list[ListingPart] = []
        while not parts or len(parts) < parts[0].parts:
            part = self._part(located, prefix, recursive, len(parts))
            if part is None:
                return ()
            parts.append(part)
        return tuple(parts)

    async def _ask_listing(self, located: Located, prefix: str, recursive: bool) -> Listing:
        sent_s = self._clock.now()
        async for _ in self._live(located, prefix, recursive, sent_s):
            pass
        if await self._keep():
            return Listing(sent_s, stale=False)
        return Listing(sent_s, stale=False, parts=self._stored(located, prefix, recursive))

    async def walk(self, located: Located) -> AsyncIterator[tuple[Entry, ...]]:
        """Yield everything below a directory in batches, from the index where that is fresh, else
        while the origin lists it; a listing that ends well is kept."""
        prefix = located.directory_prefix
        known = self._part(located, prefix, True, 0)
        if known and self._listing_until(located, known) > self._clock.now():
            stored = self._stored(located, prefix, True)
            for part in stored:
                yield part.entries
            if stored:
                return
        async for entries in self._live(located, prefix, True, self._clock.now()):
            yield entries
        await self._keep()

    async def _live(
        self, located: Located, prefix: str, recursive: bool, sent_s: float
    ) -> AsyncIterator[tuple[Entry, ...]]:
        """List at the origin. Parts go to the index as they fill up; the first, without which the
        others are not found, goes last: so no listing is ever kept that did not end."""
        first: tuple[Entry, ...] | None = None
        parts, listed = 0, 0
        waiting: list[Entry] = []

        def part(number: int, count: int, entries: tuple[Entry, ...]) -> None:
            key = records.listing_key(located.origin.url, prefix, recursive, number)
            self._index.put(
                key,
                records.encode(
                    ListingPart(
                        origin=located.origin.url,
                        prefix=prefix,
                        recursive=recursive,
                        parts=count,
                        validated_s=sent_s,
                        boot=self._clock.boot_id,
                        entries=entries,
                    )
                ),
            )

        part_zero = records.listing_key(located.origin.url, prefix, recursive, 0)
        self._index.put(part_zero, None)
        async for page in located.origin.list(prefix, recursive=recursive):
            entries = self._entries(page, prefix)
            listed += len(entries)
            if listed <= SEED_ENTRIES:
                for info in page.objects:
                    if info.size_bytes or not info.key.endswith("/"):
                        sibling = self._mounts.sibling(located, info.key)
                        self.learn(sibling, Kind.FILE, info, sent_s)
            waiting += entries
            while len(waiting) >= records.PART_ENTRIES:
                full = tuple(waiting[: records.PART_ENTRIES])
                del waiting[: records.PART_ENTRIES]
                if first is None:
                    first = full
                else:
                    part(parts, 0, full)
                parts += 1
            yield tuple(entries)
        if waiting or first is None:
            if first is None:
                first = tuple(waiting)
            else:
                part(parts, 0, tuple(waiting))
            parts += 1
        part(0, parts, first)

    def _entries(self, page: ListPage, prefix: str) -> list[Entry]:
        entries = [
            Entry(name[len(prefix) : -1], Kind.DIRECTORY)
            for name in page.prefixes
            if len(name) > len(prefix) + 1
        ]
        for info in page.objects:
            name = info.key[len(prefix) :]
            if name.endswith("/") and not info.size_bytes:
                entries.append(Entry(name[:-1], Kind.DIRECTORY))  # a directory marker
            elif name:
                entries.append(Entry(name, Kind.FILE, info.size_bytes, info.token, info.mtime_s))
        entries.sort(key=lambda entry: (entry.name, entry.kind))
        return entries

    def forget_listings(self, origin: str, key: str) -> None:
        """Drop the listings that a change of ``key`` makes wrong: its directory's, and the
        recursive ones of all directories above."""
        prefix = key
        while True:
            cut = prefix.rstrip("/").rfind("/")
            prefix = prefix[: cut + 1] if cut >= 0 else ""
            self._index.put(records.listing_key(origin, prefix, True, 0), None)
            # A new deep key may make new directories all the way up.
            self._index.put(records.listing_key(origin, prefix, False, 0), None)
            if not prefix:
                return

    def forget_parents(self, located: Located) -> None:
        """Forget what is known of the directories above: with this key they came to be, or
        vanished."""
        key = located.key.rstrip("/")
        while "/" in key:
            key = key[: key.rfind("/")]
            digest = records.name_hash(located.origin.url, key)
            record = self._index.get_object(digest)
            if record is not None and record.kind is not Kind.FILE:
                self._index.put(records.object_key(digest), None)

    def forget(self, located: Located) -> None:
        """Make the next use of this name ask its origin; the bytes stay."""
        record = self._index.get_object(located.digest)
        if record is None:
            return
        if record.kind is not Kind.FILE:
            self._index.put(records.object_key(located.digest), None)
            return
        self._index.put_object(located.digest, msgspec.structs.replace(record, boot=""))

    def evict(self, located: Located) -> int:
        """Drop the bytes of this name; the name stays known."""
        record = self._index.get_object(located.digest)
        if record is None or not record.data_id:
            return 0
        dropped = self._contents.drop_object(record)
        self._index.put_object(located.digest, without_data(record))
        return dropped


def found(record: ObjectRecord, fresh_until: float, *, stale: bool = False) -> Found:
    """Return the wire form of a record."""
    return Found(
        kind=record.kind,
        token=record.token,
        size_bytes=record.size_bytes,
        mtime_s=record.mtime_s,
        validated_s=record.validated_s,
        fresh_until_s=fresh_until,
        stale=stale,
    )
