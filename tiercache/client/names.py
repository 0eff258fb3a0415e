"""The object versions that one process knows by name, so that a hit asks neither index nor agent.

Thread safe; nothing survives a fork.
"""

from __future__ import annotations

from math import inf
from time import CLOCK_BOOTTIME, clock_gettime

from tiercache import records, wire
from tiercache.client.batch import Answered
from tiercache.client.bound import bind, held
from tiercache.client.entry import NOBODYS_MARK, UNCHECKED, Entry
from tiercache.client.link import Link
from tiercache.client.resolver import Name, Resolver, told
from tiercache.client.seats import Seats
from tiercache.client.stats import stat_of
from tiercache.client.uses import Uses
from tiercache.errors import IsADirectory, NotFound, StaleHandle, TiercacheError
from tiercache.model import Kind, Stat
from tiercache.policy import snapshots
from tiercache.policy.freshness import fresh_until_s
from tiercache.ports import IndexReader, SharedStateView
from tiercache.records import ObjectRecord

_EPOCH, _GENERATION = 1, 2
# ~600 B each: 64 Ki names known by heart cost 40 MiB at most.
KEPT_ENTRIES = 1 << 16


class Names:
    """Names → entries, as fresh as their mounts ask."""

    def __init__(
        self,
        *,
        index: IndexReader,
        state: SharedStateView,
        link: Link,
        resolver: Resolver,
        seats: Seats,
        boot_id: str,
    ) -> None:
        # Constant after construction
        self._index = index
        self._words = state.words
        self._link = link
        self._resolver = resolver
        self._seats = seats
        self._boot_id = boot_id
        # Single dict operations, atomic by themselves. A reader looks into ``hot`` itself.
        self.hot: dict[str, Entry] = {}
        self.uses = Uses()

    def entry(self, path: str) -> Entry:
        """Return the version that ``path`` names now, as fresh as its mount asks.

        Raises NotFound, IsADirectory, OriginUnavailable.
        """
        known = self.unasked(path)
        return known if known is not None else self.asked(path)

    def asked(self, path: str) -> Entry:
        """The same as the agent has it, asked whatever is known here."""
        located = self._resolver.locate(path)
        # Before the question: whatever moves after its answer is then seen at the next use.
        epoch = self._words[_EPOCH]
        if located.binding is not None:
            record = bind(self._link, located, located.binding)
            known = held(self._index, located, located.binding) or (b"", record)
            entry = self._known(located, path, *known, inf)
            self._checked(entry, epoch)
            return entry
        found = self._link.request(wire.Lookup(path), wire.Found)
        return self.answered(path, Answered(found, epoch))

    def answered(self, path: str, answered: Answered) -> Entry:
        """Return the entry of what the agent has answered."""
        found = answered.found
        located = self._resolver.locate(path)
        raw = self._index.get(records.object_key(located.digest)) or b""
        record = records.decode_object(raw) if raw else told(located, found, self._boot_id)
        if record.token != found.token or record.kind is not found.kind:
            # The index cannot be written, or has moved on already: what we were told holds.
            raw, record = b"", told(located, found, self._boot_id)
        entry = self._known(located, path, raw, record, found.fresh_until_s)
        self._checked(entry, answered.epoch)
        entry.stale = found.stale
        return entry

    def validated(self, entry: Entry) -> Entry:
        """Return the version of an open handle, found to be the current one by a question sent
        after this call began. Raises StaleHandle where it is not, and as ``entry``."""
        try:
            newer = self.asked(entry.path)
        except (NotFound, IsADirectory) as error:
            raise StaleHandle("the object was removed", path=entry.path) from error
        if newer.record.token != entry.record.token:
            raise StaleHandle("the object was replaced", path=entry.path)
        return newer

    def unasked(self, path: str) -> Entry | None:
        """The same without asking the agent: None where only it could tell."""
        entry = self.hot.get(path)
        now = clock_gettime(CLOCK_BOOTTIME)
        if entry is not None and entry.epoch == self._words[_EPOCH] and now < entry.fresh_until_s:
            return entry
        located = self._resolver.locate(path)
        epoch = self._words[_EPOCH]
        if located.binding is not None:
            known = held(self._index, located, located.binding)
            if known is None:
                return None
            (raw, record), until = known, inf
        else:
            found = self._index.get(records.object_key(located.digest))
            if found is None:
                return None
            raw, record = found, records.decode_object(found)
            until = fresh_until_s(
                located.mount,
                kind=record.kind,
                validated_s=record.validated_s,
                same_boot=record.boot == self._boot_id,
            )
            if now >= until:
                return None
        entry = self._known(located, path, raw, record, until)
        self._checked(entry, epoch)
        return entry

    def _known(
        self, name: Name, path: str, raw: bytes, record: ObjectRecord, until: float
    ) -> Entry:
        """Return the entry of a record, for the caller to set its epoch."""
        if record.kind is not Kind.FILE:
            if record.kind is Kind.ABSENT:
                raise NotFound("no such object", path=path)
            raise IsADirectory("a directory, not an object", path=path)
        before = self.hot.get(path)
        generation = self._words[_GENERATION]
        if before is not None and (
            before.record.token != record.token or before.generation != generation
        ):
            before = None
        if before is not None and raw and before.raw == raw:
            entry = before
        else:
            mount = name.mount
            spoken = path if name.binding is None else name.path
            entry = Entry(spoken, name.digest, mount, self.uses.of(mount.path), record, before)
            entry.asked = path
            entry.raw = raw
            entry.generation = generation
            self._remember(path, entry)
        entry.fresh_until_s = until
        entry.stale = False
        return entry

    def _checked(self, entry: Entry, epoch: int) -> None:
        """Note that the entry is what the index said since ``epoch``, and who pays for its hits
        by the policy of now, which moves the epoch when it changes."""
        payer, holds = None, True
        if self._seats.are_given:
            payer, holds = self._seats.payer(self._resolver.locate(entry.path).path)
        entry.pays, entry.mark = payer, NOBODYS_MARK if payer is None else payer.mark
        entry.epoch = epoch if holds else UNCHECKED

    def identity(self, path: str) -> str:
        """Return whom the QoS policy charges for a path, "" where that is not known yet."""
        try:
            return self._seats.identity(self._resolver.locate(path).path)
        except TiercacheError:
            return ""  # no name of ours: whoever uses it is told so

    def _remember(self, path: str, entry: Entry) -> None:
        if len(self.hot) >= KEPT_ENTRIES and path not in self.hot:
            for old in list(self.hot)[: KEPT_ENTRIES // 8]:
                self.hot.pop(old, None)
        self.hot[path] = entry

    def current(self, entry: Entry) -> Entry:
        """Return the same version as it is laid out now. Raises StaleHandle where it is gone."""
        epoch = self._words[_EPOCH]
        if entry.epoch == epoch:
            return entry
        raw = self._index.get(records.object_key(entry.digest)) or b""
        generation = self._words[_GENERATION]
        # An index that cannot be written knows no more of the name than it did: b"" both times.
        if raw == entry.raw and entry.generation == generation:
            self._checked(entry, epoch)
            return entry
        record = records.decode_object(raw) if raw else None
        if record is None or record.token != entry.record.token or record.kind is not Kind.FILE:
            if self.hot.get(entry.asked) is entry:
                self.hot.pop(entry.asked, None)  # it serves its handles on, not the name
            if entry.record.data_id and entry.is_open:
                self._checked(entry, epoch)  # what is open and verified stays readable
                return entry
            raise StaleHandle("the object was replaced or removed", path=entry.path)
        same = entry if entry.generation == generation else None
        newer = Entry(entry.path, entry.digest, entry.mount, entry.use, record, same)
        newer.raw, newer.generation, newer.asked = raw, generation, entry.asked
        self._checked(newer, epoch)
        doubted = record.validated_s == -inf and entry.asked == entry.path
        newer.fresh_until_s, newer.stale = -inf if doubted else entry.fresh_until_s, entry.stale
        if self.hot.get(entry.asked) is entry:
            self.hot[entry.asked] = newer
        return newer

    def rebound(self, entry: Entry, error: StaleHandle) -> Entry:
        """Return the entry with which to read again a frozen version that was gone for a moment.
        Raises ``error`` where it is none of a snapshot, and what is wrong where it stays gone."""
        if entry.asked != entry.path:
            again = self.asked(entry.asked)
            if again.record.token == entry.record.token:
                return again
        raise error

    def abandon(self) -> None:
        """In a forked child: open files keep what they know, but for who pays."""
        if self._seats.are_given:
            self._seats.abandon()
            for entry in self.hot.values():
                entry.epoch = UNCHECKED

    def forget_snapshot(self, name: str) -> None:
        """Let go of its names: another snapshot has this one."""
        for path in list(self.hot):
            if (inside := snapshots.split(path)) and inside[0] == name:
                self.hot.pop(path, None)

    def known_stat(self, path: str) -> Stat | None:
        """Return the stat of an object known by heart and fresh, else None."""
        entry = self.hot.get(path)
        if entry is None or entry.epoch != self._words[1]:
            return None
        now = clock_gettime(CLOCK_BOOTTIME)
        if now >= entry.fresh_until_s:
            return None
        return stat_of(path, entry, now, self._boot_id)

    def stat_of(self, entry: Entry) -> Stat:
        """Return the stat of an open version, as last confirmed by anybody here."""
        latest = self.hot.get(entry.asked)
        if latest is None or latest.record.token != entry.record.token:
            latest = entry
        return stat_of(entry.asked, latest, clock_gettime(CLOCK_BOOTTIME), self._boot_id)
