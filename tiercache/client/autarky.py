"""Whether a job over a path would survive an outage that begins now, from the index alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from typing import Any

import msgspec

from tiercache import records
from tiercache.client.presence import present_bytes
from tiercache.client.resolver import Name, Resolver
from tiercache.errors import IsADirectory, NotFound
from tiercache.model import Autarky, Consistency, Entry, Kind, MissingObject
from tiercache.policy import snapshots
from tiercache.policy.autarky import ASSUMED_BYTES_PER_S, fetch_s
from tiercache.policy.freshness import may_serve_stale
from tiercache.ports import IndexReader
from tiercache.settings import MountSettings

# Names looked up in one snapshot of the index: ~1 ms.
BATCH = 1000


class _Object(msgspec.Struct, frozen=True, gc=False):
    """One object that a job would read. ``token`` is empty where any version will do."""

    path: str
    origin: str
    key: str
    size_bytes: int
    token: str = ""


def survey(
    path: str,
    index: IndexReader,
    resolver: Resolver,
    endpoints: Iterable[Mapping[str, Any]],
    *,
    shown: int | None,
) -> Autarky:
    """Look at the index alone. ``endpoints`` are those of the status document; ``shown`` is how
    many names are kept of what is missing, None for all.

    Raises NotFound where nothing is mounted there, and for what a snapshot lacks.
    """
    speeds = {one["name"]: one["bytes_per_s"] for one in endpoints}
    return _Survey(index, resolver, sys.maxsize if shown is None else shown).of(path, speeds)


class _Survey:
    """One look at one path."""

    def __init__(self, index: IndexReader, resolver: Resolver, shown: int) -> None:
        self._index = index
        self._resolver = resolver
        self._shown = shown
        pins = [records.decode_pin(raw) for _, raw in index.scan(b"p")]
        self._pinned = {(pin.origin, pin.prefix) for pin in pins}
        self._pinned_trees = [
            (pin.origin, pin.prefix.rstrip("/") + "/" if pin.prefix else "")
            for pin in pins
            if pin.tree
        ]
        self._counts = dict.fromkeys(
            ("objects", "size_bytes", "missing", "missing_bytes", "evictable", "evictable_bytes"), 0
        )
        self._missing: list[MissingObject] = []
        self._unlisted: list[str] = []
        self._refused: dict[str, str] = {}

    def of(self, path: str, speeds: Mapping[str, int]) -> Autarky:
        for batch in _batches(self._objects(path), BATCH):
            self._count(batch)
        counts = self._counts
        bytes_per_s = speeds.get(self._resolver.endpoint(path), 0)
        shown = self._shown
        return Autarky(
            path=path,
            survives=not (counts["missing"] or self._unlisted or self._refused),
            **counts,
            missing_objects=tuple(self._missing),
            unlisted=len(self._unlisted),
            unlisted_paths=tuple(self._unlisted[:shown]),
            refused=tuple(self._refused.values()),
            fetch_s=fetch_s(counts["missing_bytes"], counts["missing"], bytes_per_s=bytes_per_s),
            bytes_per_s=bytes_per_s or ASSUMED_BYTES_PER_S,
            is_measured=bytes_per_s > 0,
        )

    # -- which objects ----------------------------------------------------------------------

    def _objects(self, path: str) -> Iterator[_Object]:
        inside = self._resolver.in_snapshot(path)
        if inside is not None:
            frozen, below = inside
            one = frozen.find(below)
            found = [one] if one is not None else frozen.walk(snapshots.below(below))
            for each in found:
                shown = snapshots.join(frozen.record.name, each.path)
                yield _Object(shown, each.origin, each.key, each.size_bytes, each.token)
            return
        above = path.rstrip("/") + "/"
        mounts = [m.path for m in self._resolver.table.mounts if m.path.startswith(above)]
        for mounted in mounts:
            yield from self._below(self._resolver.locate(mounted))
        try:
            name = self._resolver.locate(path)
        except IsADirectory:
            if not mounts:
                raise
            return
        yield from self._below(name)

    def _below(self, name: Name) -> Iterator[_Object]:
        self._check_mount(name.mount)
        raw = self._index.get(records.object_key(name.digest))
        record = None if raw is None else records.decode_object(raw)
        if record is not None and record.kind is Kind.FILE:
            yield _Object(name.path, name.origin, name.key, record.size_bytes)
            return
        if record is not None and record.kind is Kind.ABSENT:
            raise NotFound("no such object or directory, as far as is known", path=name.path)
        base = name.path.rstrip("/") + "/"
        for key, entry in self._listed(name.origin, name.directory_prefix, base):
            path = base + key[len(name.directory_prefix) :]
            yield _Object(path, name.origin, key, entry.size_bytes)

    def _check_mount(self, mount: MountSettings) -> None:
        if mount.consistency is Consistency.IMMUTABLE or may_serve_stale(mount, Kind.FILE):
            return
        self._refused[mount.path] = (
            f"{mount.path} is {mount.consistency} and serves nothing that it cannot ask for"
        )

    def _listed(self, origin: str, prefix: str, base: str) -> Iterator[tuple[str, Entry]]:
        """Yield (key, entry) of all objects below a directory, noting what was never listed."""
        whole = self._inferred(origin, prefix)
        if whole is not None:
            yield from ((key, entry) for key, entry in whole if entry.kind is Kind.FILE)
            return
        entries = self._listing(origin, prefix, recursive=False)
        if entries is None:
            self._unlisted.append(base)
            return
        for entry in entries:
            if entry.kind is Kind.FILE:
                yield prefix + entry.name, entry
            else:
                yield from self._listed(origin, f"{prefix}{entry.name}/", f"{base}{entry.name}/")

    def _inferred(self, origin: str, prefix: str) -> Iterator[tuple[str, Entry]] | None:
        """Return all below a directory where it, or one above it, was listed recursively."""
        above = prefix
        while True:
            entries = self._listing(origin, above, recursive=True)
            if entries is not None:
                break
            if not above:
                return None
            above = above[: above.rfind("/", 0, len(above) - 1) + 1]
        named = ((above + entry.name, entry) for entry in entries)
        found = [(key, entry) for key, entry in named if key.startswith(prefix) and key != prefix]
        # A listing of a directory above that knows nothing here says that there is nothing, or
        # was then.
        return iter(found) if found or above == prefix else None

    def _listing(self, origin: str, prefix: str, *, recursive: bool) -> list[Entry] | None:
        """Return a listing that is known whole, whatever its age."""
        found: list[Entry] = []
        count = 1
        number = 0
        while number < count:
            raw = self._index.get(records.listing_key(origin, prefix, recursive, number))
            if raw is None:
                return None
            part = records.decode_listing(raw)
            if number == 0:
                count = part.parts
                if part.validated_s == -inf:
                    return None  # a change of this node's own has overtaken it
            found += part.entries
            number += 1
        return found

    # -- what of them is here ---------------------------------------------------------------

    def _count(self, objects: list[_Object]) -> None:
        digests = [records.name_hash(one.origin, one.key) for one in objects]
        raws = self._index.get_many([records.object_key(digest) for digest in digests])
        for one, raw in zip(objects, raws, strict=True):
            record = None if raw is None else records.decode_object(raw)
            if record is not None and record.kind is Kind.ABSENT and not one.token:
                continue  # removed since it was listed
            self._count_one(one, record)

    def _count_one(self, one: _Object, record: records.ObjectRecord | None) -> None:
        size_bytes, present = one.size_bytes, 0
        if record is not None and record.kind is Kind.FILE:
            if not one.token:
                size_bytes = record.size_bytes
            if one.token in ("", record.token):
                present = present_bytes(self._index, record)
        counts = self._counts
        counts["objects"] += 1
        counts["size_bytes"] += size_bytes
        if present < size_bytes or record is None:
            counts["missing"] += 1
            counts["missing_bytes"] += size_bytes - present
            if len(self._missing) < self._shown:
                self._missing.append(MissingObject(one.path, size_bytes, present))
        if present and not self._is_pinned(one):
            counts["evictable"] += 1
            counts["evictable_bytes"] += present

    def _is_pinned(self, one: _Object) -> bool:
        if (one.origin, one.key) in self._pinned:
            return True
        return any(
            origin == one.origin and one.key.startswith(prefix)
            for origin, prefix in self._pinned_trees
        )


def _batches(items: Iterable[_Object], count: int) -> Iterator[list[_Object]]:
    iterator = iter(items)
    while batch := list(islice(iterator, count)):
        yield batch
