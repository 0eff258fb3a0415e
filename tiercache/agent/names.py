"""Names: name → version as fresh as the mount asks, and listings. One request for all who ask.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf

import msgspec

from tiercache import records
from tiercache.agent.answers import found
from tiercache.agent.catalog import Catalog
from tiercache.agent.contents import without_data
from tiercache.agent.device import NotCached
from tiercache.agent.flights import Patience, SingleFlight, is_offline
from tiercache.agent.listings import (
    Draft,
    Listing,
    ListingName,
    entry_of,
    infer,
    listing_name,
    listings_with,
    part_of,
    stored,
)
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.offline import OfflineNames, refused_by_mount, unknown_name
from tiercache.agent.pending import Pending
from tiercache.agent.plane import Plane
from tiercache.agent.projection import is_news
from tiercache.errors import NotFound, OriginUnavailable
from tiercache.model import Consistency, Entry, Kind, ObjectInfo
from tiercache.policy.freshness import (
    age_s,
    always_asks,
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

# Own changes remembered by name, against answers that were sent for before them: at 10,000 writes
# a second some seconds' worth, ~120 B each.
OWN_CHANGES = 1 << 16


class Names:
    """Look-ups and listings over all mounts."""

    def __init__(self, plane: Plane, mounts: Mounts, catalog: Catalog) -> None:
        self._index = plane.index
        self._catalog = catalog
        self._mounts = mounts
        self._contents = plane.contents
        self._state = plane.state
        self._clock = plane.clock
        self._device = plane.device
        self._flights = SingleFlight(plane.clock)
        self._patience = Patience(plane.clock)
        # What was served stale, to be asked for when its origin answers again
        self.pending = Pending(self._revalidate)
        self._offline = OfflineNames(plane.index, self._flights)
        # When this node itself last changed a name, and anything at an origin
        self._changed_s: dict[bytes, float] = {}
        self._origin_changed_s: dict[str, float] = {}
        self._drafts: set[Draft] = set()
        # Whether clients must be told, at the next commit, that a known version has been replaced
        self._moved = False

    # -- look-up ----------------------------------------------------------------------------

    async def lookup(
        self, located: Located, *, revalidate: bool = False, came_s: float | None = None
    ) -> Found:
        """Return name → version within the mount's promise. Absence is an answer, not an error.
        ``came_s`` is when the caller came, now if not given: of several names in one call, all
        share the requests that were sent since.

        Raises OriginUnavailable where nobody could be asked and nothing may be served stale,
        Unsupported where the mount's origin cannot keep its promise.
        """
        await self.admit(located)
        record = self._index.get_object(located.digest)
        # What is recalled is never fresh, but it binds where the mount is immutable.
        binds = located.mount.consistency is Consistency.IMMUTABLE
        if record is None and binds and self._catalog.is_partial:
            await self._catalog.recall_object(located.digest)
            record = self._index.get_object(located.digest)
        if record is not None and not revalidate:
            until = self._fresh_until(located, record)
            if until > self._clock.now():
                return self._found(record, until)
        asks = revalidate or always_asks(located.mount)
        since_s = (came_s or self._clock.now()) if asks else self._since_s(located, record)

        def begin() -> asyncio.Task[ObjectRecord]:
            return self._head(located, since_s)

        asked: ObjectRecord | None = None
        if may_serve_stale(located.mount, Kind.FILE):
            asked = await self._patience.answer(located.origin, begin)
            if asked is None:
                fallback = self._fallback(located)
                if fallback is None and self._catalog.is_partial:
                    await self._catalog.recall(records.object_key(located.digest))
                    fallback = self._fallback(located)
                if fallback is not None:
                    self.pending.add(located)
                    return self._found(fallback, self._clock.now() + STALE_RETRY_S, stale=True)
        if asked is None:
            try:
                asked = await asyncio.shield(begin())
            except OriginUnavailable as error:
                if not is_offline(located.origin):
                    raise
                return await self._known_offline(located, error)
        if asked.validated_s <= self._changed_s.get(located.digest, -inf):
            return self._found(asked, -inf)  # true for who asked; the index knows better by now
        return self._found(asked, self._fresh_until(located, asked))

    async def admit(self, located: Located) -> None:
        """See that the mount can keep its promise before it makes any. Raises Unsupported,
        MetadataFenced, and what the origin raises."""
        if located.mount.consistency is Consistency.STRONG:
            self._catalog.assert_not_fenced()
            await self._mounts.admit(located)

    async def current(self, located: Located) -> Found:
        """Return what the origin says now. Raises OriginUnavailable where it says nothing."""
        await self.admit(located)
        record = await asyncio.shield(self._head(located, self._clock.now()))
        return self._found(record, self._fresh_until(located, record))

    def _head(self, located: Located, since_s: float) -> asyncio.Task[ObjectRecord]:
        # By mount too: what one learns is subject to its own bindings.
        key = ("head", located.digest, located.mount.path)
        return self._flights.join(key, lambda: self._ask(located), since_s=since_s)

    async def _known_offline(self, located: Located, error: OriginUnavailable) -> Found:
        """Answer for a name of which nothing may be served by itself: as a directory where known
        names lie below it. Raises OriginUnavailable that says what is missing."""
        if not may_serve_stale(located.mount, Kind.FILE):
            raise refused_by_mount(located, error) from error
        known = await self._offline.find(located)
        if known is None:
            raise unknown_name(located, error) from error
        if isinstance(known, Kind):
            record = self._new_record(located, known, None, -inf)
        else:
            entry, source = known
            info = ObjectInfo(located.key, entry.size_bytes, entry.token, entry.mtime_s)
            record = self._of_part(located, Kind.FILE, info, source)
            self._index.put_object(located.digest, record)
        self.pending.add(located)
        return self._found(record, self._clock.now() + STALE_RETRY_S, stale=True)

    async def _revalidate(self, located: Located, recursive: bool | None) -> None:
        """Bring a name, or a listing, up to date that was served stale."""
        if recursive is None:
            record = self._index.get_object(located.digest)
            if record is None or self._fresh_until(located, record) <= self._clock.now():
                await asyncio.shield(self._head(located, self._since_s(located, record)))
            return
        name = listing_name(located, recursive)
        known = part_of(self._index, name, 0)
        if known is None or self._listing_until(located, known) <= self._clock.now():
            await asyncio.shield(
                self._flights.join(
                    name,
                    lambda: self._ask_listing(located, name),
                    since_s=self._clock.now() - located.mount.ttl_s,
                )
            )

    def _since_s(self, located: Located, record: ObjectRecord | None) -> float:
        """Return when a request must have been sent for its answer to serve a call of now."""
        mount = located.mount
        # Of an immutable mount too: where it has bound nothing yet, the answer may be an absence.
        exists = record is not None and record.kind is not Kind.ABSENT
        within_s = mount.ttl_s if exists else min(mount.ttl_s, mount.negative_ttl_s)
        return max(self._changed_s.get(located.digest, -inf), self._clock.now() - within_s)

    def _fallback(self, located: Located) -> ObjectRecord | None:
        """Return what may be served, marked stale, while the origin does not answer."""
        record = self._index.get_object(located.digest)
        if record is None:
            # Listings are long to search: an outage that lasts has them ready (``OfflineNames``).
            return None if is_offline(located.origin) else self._known_by_listing(located)
        return record if may_serve_stale(located.mount, record.kind) else None

    def _known_by_listing(self, located: Located) -> ObjectRecord | None:
        """Return the record of a name that is known by listings alone: that of the directory
        above, or its own."""
        listed = entry_of(self._index, located.origin.url, located.key)
        if listed is not None:
            entry, part = listed
            info = ObjectInfo(located.key, entry.size_bytes, entry.token, entry.mtime_s)
            record = self._of_part(located, entry.kind, info, part)
            self._index.put_object(located.digest, record)
            return record
        for recursive in (False, True):
            known = self._known_part(located, recursive)
            if known is not None and known.entries:
                return self._of_part(located, Kind.DIRECTORY, None, known)
        return None

    def _of_part(
        self, located: Located, kind: Kind, info: ObjectInfo | None, part: ListingPart
    ) -> ObjectRecord:
        record = self._new_record(located, kind, info, part.validated_s)
        return msgspec.structs.replace(
            record, boot=part.boot, validated_unix_s=part.validated_unix_s
        )

    def _found(self, record: ObjectRecord, fresh_until_s: float, *, stale: bool = False) -> Found:
        if record.boot != self._clock.boot_id:
            record = msgspec.structs.replace(record, validated_s=self._validated_s(record))
        return found(record, fresh_until_s, stale=stale)

    def _validated_s(self, known: ObjectRecord | ListingPart) -> float:
        """Return when knowledge was confirmed, on this boot's clock, by which its age is told."""
        now_s = self._clock.now()
        return now_s - age_s(
            known.validated_s,
            now_s,
            same_boot=known.boot == self._clock.boot_id,
            validated_unix_s=known.validated_unix_s,
            unix_s=self._clock.unix(),
        )

    def _fresh_until(self, located: Located, record: ObjectRecord) -> float:
        return fresh_until_s(
            located.mount,
            kind=record.kind,
            validated_s=record.validated_s,
            same_boot=record.boot == self._clock.boot_id,
        )

    async def stop(self) -> None:
        """End the requests that nobody waits for any more."""
        await self.pending.stop()
        self._offline.stop()
        await self._flights.stop()

    async def _ask(self, located: Located) -> ObjectRecord:
        sent_s = self._clock.now()
        kind, info = await self._identify(located)
        record = self.learn(located, kind, info, sent_s)
        await self._keep()
        return record

    async def _keep(self) -> bool:
        """Make what was learnt durable, then tell the clients of versions that were replaced;
        False where the device refuses, which costs only speed."""
        moved, self._moved = self._moved, False
        try:
            await self._device.durable(self._index.flush())
        except NotCached:
            return False
        finally:
            # Earlier, a client could read the old record after the move and keep it.
            if moved:
                self._state.bump_epoch()
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
        """Put what the origin said at ``sent_s``. A version that differs drops the old bytes, but
        where the mount is immutable and the name is bound already."""
        known = self._index.get_object(located.digest)
        if sent_s <= self._changed_s.get(located.digest, -inf):
            # Asked before a change of our own: true for whoever asked, not to be kept. What is
            # kept may be older: another site may have replaced what we wrote, before our own
            # answer came.
            if known is not None and self._is_bound(located, known):
                return known
            return self._new_record(located, kind, info, sent_s)
        if known is not None and known.validated_s > sent_s and known.boot == self._clock.boot_id:
            return known  # a later answer was faster
        same = known is not None and info is not None and known.kind is kind
        if known is not None and same and info is not None and known.token == info.token:
            record = msgspec.structs.replace(
                known,
                validated_s=sent_s,
                boot=self._clock.boot_id,
                mtime_s=info.mtime_s or known.mtime_s,
                validated_unix_s=self._unix_s(sent_s),
            )
            return self._put(located, known, record)
        if known is not None and self._is_bound(located, known):
            return known
        return self._replace(located, kind, info, sent_s)

    def _is_bound(self, located: Located, known: ObjectRecord) -> bool:
        immutable = located.mount.consistency is Consistency.IMMUTABLE
        return immutable and known.kind is Kind.FILE and known.validated_s > -inf

    def _replace(
        self, located: Located, kind: Kind, info: ObjectInfo | None, sent_s: float
    ) -> ObjectRecord:
        known = self._index.get_object(located.digest)
        if known is not None and known.kind is Kind.FILE:
            self._contents.drop_object(known)
            self._moved = True
        record = self._new_record(located, kind, info, sent_s)
        return self._put(located, known, record)

    def _put(
        self, located: Located, known: ObjectRecord | None, record: ObjectRecord
    ) -> ObjectRecord:
        put = self._index.learn_object if is_news(known, record) else self._index.put_object
        put(located.digest, record)
        return record

    def changed_here(
        self, located: Located, kind: Kind, info: ObjectInfo | None, sent_s: float
    ) -> ObjectRecord:
        """Put the outcome of this node's own write or removal, which was sent at ``sent_s`` and
        has just ended; the caller settles it."""
        self.doubt(located)
        # In doubt it may be a fallback; now it is known to be wrong.
        self.forget_listings(located.origin.url, located.key)
        return self._replace(located, kind, info, sent_s)

    def doubt(self, located: Located) -> None:
        """Note that this node changed a name, or may have: what was known or asked of it, of the
        directories above and of their listings before now serves nobody who asks later."""
        now_s = self._clock.now()
        self._changed_s.pop(located.digest, None)
        self._changed_s[located.digest] = now_s
        if len(self._changed_s) > OWN_CHANGES:
            del self._changed_s[next(iter(self._changed_s))]
        self._origin_changed_s[located.origin.url] = now_s
        for draft in self._drafts:
            name = draft.name
            if name.origin == located.origin.url and located.key.startswith(name.prefix):
                draft.overtaken = True
        self.forget(located)
        self._expire_listings(located.origin.url, located.key)
        self._forget_parents(located)

    async def settle(self) -> None:
        """Make changes durable, then visible to all clients."""
        self._moved = True
        await self._keep()

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
            validated_unix_s=self._unix_s(sent_s),
        )

    def _unix_s(self, sent_s: float) -> float:
        """Return a time of this boot in seconds since 1970."""
        return self._clock.unix() - (self._clock.now() - sent_s)

    # -- listings ---------------------------------------------------------------------------

    async def listing(self, located: Located, *, recursive: bool, refresh: bool) -> Listing:
        """Return a whole listing, from the index where it is fresh. A part of one, marked so, only
        where the endpoint is offline and some names below are known.

        Raises OriginUnavailable where nobody could be asked and nothing is known.
        """
        await self.admit(located)
        name = listing_name(located, recursive)
        known = part_of(self._index, name, 0)
        if known and not refresh and self._listing_until(located, known) > self._clock.now():
            # Somebody may have listed it a moment ago: the client looks where it is durable.
            kept = self._index.is_durable or await self._keep()
            parts = () if kept else stored(self._index, name)
            return Listing(known.validated_s, stale=False, parts=parts)
        since_s = self._origin_changed_s.get(located.origin.url, -inf)
        if refresh or always_asks(located.mount):
            since_s = self._clock.now()
        since_s = max(since_s, self._clock.now() - located.mount.ttl_s)

        def begin() -> asyncio.Task[Listing]:
            return self._flights.join(
                name, lambda: self._ask_listing(located, name), since_s=since_s
            )

        if not may_serve_stale(located.mount, Kind.DIRECTORY):
            return await asyncio.shield(begin())
        answered = await self._patience.answer(located.origin, begin)
        if answered is not None:
            return answered
        self.pending.add(located, recursive)
        fallback = self._known_part(located, recursive)
        if fallback is None and self._catalog.is_partial:
            await self._catalog.recall(name.key(0))
            fallback = self._known_part(located, recursive)
        if fallback is None:
            try:
                return await asyncio.shield(begin())
            except OriginUnavailable as error:
                if not is_offline(located.origin):
                    raise
                return await self._partial(located, name, error)
        # One that was inferred must be where the client reads it.
        kept = await self._keep()
        parts = () if kept else stored(self._index, name)
        return Listing(self._validated_s(fallback), stale=True, parts=parts)

    async def _partial(
        self, located: Located, name: ListingName, error: OriginUnavailable
    ) -> Listing:
        """Return the names known below a directory that was never listed whole. Raises
        OriginUnavailable where there are none."""

        part = await self._offline.below(located.origin, name)
        if part is None:
            raise unknown_name(located, error) from error
        return Listing(self._validated_s(part), stale=True, partial=True, parts=(part,))

    def _known_part(self, located: Located, recursive: bool) -> ListingPart | None:
        """Return the first part of the last listing known, or of one that follows from what is
        known of a directory above; never of one that lacks a change of our own."""
        name = listing_name(located, recursive)
        part = part_of(self._index, name, 0)
        if part is not None and part.validated_s > -inf:
            return part
        return infer(self._index, name)

    def _listing_until(self, located: Located, part: ListingPart) -> float:
        return listing_fresh_until_s(
            located.mount,
            validated_s=part.validated_s,
            same_boot=part.boot == self._clock.boot_id,
        )

    async def _ask_listing(self, located: Located, name: ListingName) -> Listing:
        sent_s = self._clock.now()
        async for _ in self._live(located, name, sent_s):
            pass
        if await self._keep():
            return Listing(sent_s, stale=False)
        return Listing(sent_s, stale=False, parts=stored(self._index, name))

    async def walk(
        self, located: Located, *, refresh: bool = False
    ) -> AsyncIterator[tuple[float, tuple[Entry, ...]]]:
        """Yield everything below a directory in batches, each with the time it was true at: from
        the index where that is fresh, else (and with ``refresh`` always) while the origin lists
        it; a listing that ends well is kept."""
        await self.admit(located)
        name = listing_name(located, recursive=True)
        known = part_of(self._index, name, 0)
        if not refresh and known and self._listing_until(located, known) > self._clock.now():
            parts = stored(self._index, name)
            for part in parts:
                yield known.validated_s, part.entries
            if parts:
                return
        sent_s = self._clock.now()
        async for entries in self._live(located, name, sent_s):
            yield sent_s, entries
        await self._keep()

    async def _live(
        self, located: Located, name: ListingName, sent_s: float
    ) -> AsyncIterator[tuple[Entry, ...]]:
        """List at the origin, page by page. The listing is kept once it has ended well."""
        draft = Draft(
            self._index,
            name,
            validated_s=sent_s,
            boot=self._clock.boot_id,
            validated_unix_s=self._unix_s(sent_s),
        )
        listed = 0
        self._drafts.add(draft)
        try:
            async for page in located.origin.list(name.prefix, recursive=name.recursive):
                entries = self._entries(page, name.prefix)
                listed += len(entries)
                if listed <= SEED_ENTRIES:
                    for info in page.objects:
                        if info.size_bytes or not info.key.endswith("/"):
                            sibling = self._mounts.sibling(located, info.key)
                            self.learn(sibling, Kind.FILE, info, sent_s)
                draft.add(entries)
                yield tuple(entries)
            draft.publish()
        finally:
            self._drafts.discard(draft)

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
        """Drop the listings that a change of ``key`` makes wrong."""
        for name in listings_with(origin, key):
            self._index.put(name.key(0), None)

    def _expire_listings(self, origin: str, key: str) -> None:
        """Make the next use of those listings ask; the origin silent, they are better than none."""
        for name in listings_with(origin, key):
            part = part_of(self._index, name, 0)
            if part is not None:
                expired = msgspec.structs.replace(part, boot="")
                self._index.put(name.key(0), records.encode(expired))

    def _forget_parents(self, located: Located) -> None:
        """Forget what is known of the directories above: with this key they came to be, or
        vanished."""
        key = located.key
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
        self._index.learn_object(located.digest, _forgotten(record))

    def evict(self, located: Located) -> int:
        """Drop the bytes of this name; the name stays known."""
        record = self._index.get_object(located.digest)
        if record is None or not record.data_id:
            return 0
        dropped = self._contents.drop_object(record)
        self._index.put_object(located.digest, without_data(record))
        return dropped


def _forgotten(record: ObjectRecord) -> ObjectRecord:
    """Return the record as one confirmed by nobody, ever: an immutable binding too is asked for."""
    return msgspec.structs.replace(record, boot="", validated_s=-inf, validated_unix_s=0.0)
