"""Snapshots as a client reads them: from the index, part by part, asking nobody.

A process is bound to the snapshot that it found under a name first: where that is replaced or
removed meanwhile, what is not in memory yet can no longer be told, and StaleHandle says so.
Thread safe; nothing survives a fork.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from time import time

import msgspec

from tiercache import catalog
from tiercache.catalog import SnapshotObject, SnapshotRecord
from tiercache.errors import FormatError, NotFound, StaleHandle
from tiercache.model import Entry, Kind, Listing
from tiercache.policy import snapshots
from tiercache.ports import IndexReader

# Parts of one snapshot in memory: a million objects are ~200 MB so, undecoded.
KEPT_BYTES = 256 << 20
# What an undecoded object costs beside its bytes.
RAW_BYTES = 80


class _Part(msgspec.Struct, array_like=True):
    objects: tuple[msgspec.Raw, ...]


class _Path(msgspec.Struct, array_like=True, gc=False):
    path: str


_part = msgspec.msgpack.Decoder(_Part).decode
_path = msgspec.msgpack.Decoder(_Path).decode
_object = msgspec.msgpack.Decoder(SnapshotObject).decode


def _path_of(raw: msgspec.Raw) -> str:
    return _path(raw).path


class Frozen:
    """One snapshot."""

    def __init__(self, index: IndexReader, raw: bytes, record: SnapshotRecord) -> None:
        # Constant after construction
        self.record = record
        self.raw = raw
        self._index = index
        self._key = catalog.snapshot_key(record.name)
        # Guarded by _lock (a look-up of the dict is atomic by itself)
        self._lock = threading.Lock()
        self._parts: dict[int, tuple[msgspec.Raw, ...]] = {}
        self._kept_bytes = 0

    @property
    def identity(self) -> tuple[float, int]:
        """What tells this snapshot from others that had, or will have, its name."""
        return self.record.created_unix_s, self.record.first_part

    def _part(self, number: int) -> tuple[msgspec.Raw, ...]:
        known = self._parts.get(number)
        return known if known is not None else self._load(number)

    def _load(self, number: int) -> tuple[msgspec.Raw, ...]:
        name = self.record.name
        key = catalog.snapshot_part_key(name, self.record.first_part + number)
        now, raw = self._index.get_many([self._key, key])
        if now != self.raw:
            raise StaleHandle(
                f"the snapshot {name} was {'replaced' if now else 'removed'} since this process "
                "began to read it",
                path=snapshots.join(name),
            )
        try:
            if raw is None:
                raise msgspec.DecodeError("it is not there")
            objects = _part(catalog.body(key, raw)).objects
        except msgspec.DecodeError as error:
            raise FormatError(
                f"the snapshot {name} lacks its part {number}: {error}",
                path=snapshots.join(name),
                remedy=f"tiercache snapshot rm {name}, and create it anew",
            ) from error
        with self._lock:
            if number not in self._parts:
                self._parts[number] = objects
                self._kept_bytes += _cost(objects)
                while self._kept_bytes > KEPT_BYTES and len(self._parts) > 1:
                    self._kept_bytes -= _cost(self._parts.pop(next(iter(self._parts))))
        return objects

    def find(self, path: str) -> SnapshotObject | None:
        number = bisect_right(self.record.firsts, path) - 1
        if number < 0:
            return None
        part = self._part(number)
        place = bisect_left(part, path, key=_path_of)
        if place < len(part) and _path_of(part[place]) == path:
            return _object(part[place])
        return None

    def walk(self, prefix: str = "", *, start: str = "") -> Iterator[SnapshotObject]:
        """Yield the objects whose paths begin with ``prefix``, from ``start`` on, in path order."""
        begin = max(prefix, start)
        number = max(0, bisect_right(self.record.firsts, begin) - 1)
        for later in range(number, self.record.parts):
            part = self._part(later)
            for raw in part[bisect_left(part, begin, key=_path_of) :]:
                found = _object(raw)
                if not found.path.startswith(prefix):
                    return
                yield found

    def has_below(self, prefix: str) -> bool:
        return next(self.walk(prefix), None) is not None

    def listing(self, path: str, *, recursive: bool) -> Listing:
        """Return what the snapshot holds of a directory, or the one object that the path is;
        ``age_s`` is how long ago that was frozen. Raises NotFound."""
        found = Listing(self._entries(snapshots.below(path), recursive=recursive))
        found.age_s = max(0.0, time() - self.record.created_unix_s)
        if not found and path != snapshots.ROOT:
            one = self.find(path)
            if one is None and not self.has_below(snapshots.below(path)):
                name = self.record.name
                raise NotFound(f"not in the snapshot {name}", path=snapshots.join(name, path))
            if one is not None:
                found.append(_entry(path.rstrip("/").rsplit("/", 1)[-1], one))
        return found

    def _entries(self, prefix: str, *, recursive: bool) -> list[Entry]:
        if recursive:
            named = ((snapshots.relative(each.path, prefix), each) for each in self.walk(prefix))
            return [_entry(name, each) for name, each in named if name]
        found: list[Entry] = []
        one = next(self.walk(prefix), None)
        while one is not None:
            name, is_directory = snapshots.child(one.path, prefix)
            start = one.path + "\0"
            if is_directory:
                start = snapshots.after(prefix, name, one.path)
                if name:
                    found.append(Entry(name, Kind.DIRECTORY))
            elif name:
                found.append(_entry(name, one))
            one = next(self.walk(prefix, start=start), None)
        found.sort(key=lambda entry: (entry.name, entry.kind))
        return found


def _cost(objects: tuple[msgspec.Raw, ...]) -> int:
    return sum(len(memoryview(raw)) for raw in objects) + RAW_BYTES * len(objects)


def _entry(name: str, found: SnapshotObject) -> Entry:
    return Entry(name, Kind.FILE, found.size_bytes, found.token, found.mtime_s)


class FrozenNames:
    """All snapshots of the index, and which of them this process is bound to."""

    def __init__(self, index: IndexReader) -> None:
        self._index = index
        # Single dict operations, atomic by themselves
        self._bound: dict[str, Frozen] = {}

    def bound(self, name: str) -> Frozen | None:
        """Return the snapshot of this name that this process is bound to already."""
        return self._bound.get(name)

    def of(self, name: str) -> Frozen:
        """Return the snapshot that this process is bound to. Raises NotFound."""
        known = self._bound.get(name)
        return known if known is not None else self.renew(name)

    def renew(self, name: str) -> Frozen:
        """The same, of the snapshot that has the name now."""
        snapshots.check_name(name.removeprefix(snapshots.SCRATCH))
        key = catalog.snapshot_key(name)
        raw = self._index.get(key)
        if raw is None:
            self._bound.pop(name, None)
            raise NotFound(
                "no such snapshot",
                path=snapshots.join(name),
                remedy="tiercache snapshot ls shows those there are",
            )
        known = self._bound.get(name)
        if known is None or known.raw != raw:
            record = catalog.decode(key, raw)
            assert isinstance(record, SnapshotRecord)
            known = self._bound[name] = Frozen(self._index, raw, record)
        return known

    def records(self) -> list[SnapshotRecord]:
        """Return the records of all snapshots, by name."""
        pairs = list(self._index.scan(b"s"))
        found = [catalog.decode(key, raw) for key, raw in pairs]
        return [
            record
            for record in found
            if isinstance(record, SnapshotRecord) and not snapshots.is_scratch(record.name)
        ]
