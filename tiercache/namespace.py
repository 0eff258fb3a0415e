"""The API: one namespace over all mounts. See docs/quickstart.md for examples.

A Namespace is thread safe, survives fork, and pickles by its settings.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from os import PathLike, register_at_fork
from types import TracebackType
from typing import Any, Literal, Self, overload

import msgspec

from tiercache import records, wire
from tiercache.client.autarky import survey
from tiercache.client.file import ReadFile, WriteFile
from tiercache.client.job import Job
from tiercache.client.paying import Settled
from tiercache.client.reader import Reader
from tiercache.client.resolver import Name
from tiercache.client.spans import clamp
from tiercache.client.stats import frozen_stat, known_stat
from tiercache.compose_client import Client, open_client
from tiercache.errors import IsADirectory, NotFound, StaleHandle, TiercacheError, Unsupported
from tiercache.model import Autarky, Entry, FileExtent, Kind, Listing, Stat
from tiercache.policy import snapshots
from tiercache.policy.freshness import age_s, fresh_until_s, listing_fresh_until_s
from tiercache.ports import Buffer
from tiercache.qos import Qos
from tiercache.settings import MountSettings, Settings
from tiercache.snapshots import Snapshot, Snapshots

COPY_BYTES = 8 << 20
# A listing is in the index when the agent answers; one that is gone again is asked for anew.
SETTLE_ROUNDS = 8

# The class has a method of the name ``list``.
_Parts = list[records.ListingPart]

_living: weakref.WeakSet[Namespace] = weakref.WeakSet()


class Namespace:
    """Paths are absolute ("/imagenet/train") or origin URLs ("s3://bucket/key").

    Errors of all calls: NotFound, AccessDenied, OriginUnavailable, ConfigError (the path),
    AgentUnavailable; others are named where they occur. See tiercache.errors.
    """

    def __init__(self, settings: Settings, *, embedded: bool = False) -> None:
        """Nothing is opened before the first use (``connect`` opens at once)."""
        # Constant after construction
        self.settings = settings
        self._embedded = embedded
        # Guarded by _lock; replaced in forked children
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._reader: Reader | None = None
        _living.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickled, (msgspec.json.encode(self.settings), self._embedded))

    def __repr__(self) -> str:
        return f"Namespace({self.settings.cache.dir!r}, {len(self.settings.mounts)} mounts)"

    # -- life -------------------------------------------------------------------------------

    def _open(self) -> Reader:
        """Open this process's client. Raises AgentUnavailable, FormatError, ConfigError."""
        with self._lock:
            if self._reader is None:
                self._client = open_client(self.settings, embedded=self._embedded)
                self._reader = self._client.reader
            return self._reader

    @property
    def client(self) -> Client:
        """The parts of this process's client, opened."""
        self._open()
        assert self._client is not None
        return self._client

    def reader(self) -> Reader:
        """Return this process's reader, opened."""
        return self._reader or self._open()

    def _after_fork(self) -> None:
        """Leave everything to the parent; the next call opens anew."""
        self._lock = threading.Lock()
        if self._client is not None:
            self._client.abandon()
        self._client = None
        self._reader = None
        self._embedded = False  # the engine's thread is the parent's; its socket serves us

    def close(self) -> None:
        """Close connections, files and, if embedded, the engine. Later calls open anew."""
        with self._lock:
            client, self._client, self._reader = self._client, None, None
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- reading ----------------------------------------------------------------------------

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes [offset, offset + length), or to the end; fewer past the end.

        Raises IsADirectory.
        """
        reader = self._reader or self._open()
        return reader.read(path, offset, length)

    def view(self, path: str, offset: int = 0, length: int | None = None) -> memoryview:
        """Return a read-only view without a copy, where the bytes lie in one extent (objects up
        to 1/128 of the capacity do). It stays valid whatever is evicted meanwhile."""
        reader = self._reader or self._open()
        return reader.view(path, offset, length)

    def read_into(self, path: str, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset`` on and return how many bytes there were."""
        return self.reader().read_into(path, offset, buffer)

    def read_many(self, items: Iterable[tuple[str, int, int | None]]) -> list[bytes]:
        """Return the bytes of many (path, offset, length), length None meaning to the end; all
        misses travel together. Raises the first failure."""
        return self.reader().read_many(list(items))  # type: ignore[return-value]  # raises

    def read_many_or_errors(
        self, items: Sequence[tuple[str, int, int | None]]
    ) -> list[bytes | TiercacheError]:
        """The same, with the error in the place of the bytes it cost."""
        return self.reader().read_many(items, on_error="return")

    def is_hit(self, path: str, offset: int = 0, length: int | None = None) -> bool:
        """Return whether the same ``read`` needs nobody's help. A QoS policy may have it wait all
        the same."""
        return self.reader().is_hit(path, offset, length)

    @overload
    def open(self, path: str, mode: Literal["rb"] = "rb") -> ReadFile: ...
    @overload
    def open(self, path: str, mode: Literal["wb", "xb"]) -> WriteFile: ...
    @overload
    def open(self, path: str, mode: str) -> ReadFile | WriteFile: ...
    def open(self, path: str, mode: str = "rb") -> ReadFile | WriteFile:
        """Open for reading one version ("rb"), or for writing a new one ("wb"; "xb" only where no
        object is, else AlreadyExists at close)."""
        match mode:
            case "rb":
                return ReadFile(path, self.reader().names.entry(path), self.reader)
            case "wb":
                return self.open_for_writing(path)
            case "xb":
                return self.open_for_writing(path, mode="create")
            case _:
                raise ValueError(f"invalid mode: {mode!r} (use 'rb', 'wb' or 'xb')")

    def open_for_writing(
        self,
        path: str,
        *,
        mode: Literal["overwrite", "create"] = "overwrite",
        if_version: str | None = None,
    ) -> WriteFile:
        """Open a write with a condition; it is checked by the origin when the file closes."""
        consistency = self.client.resolver.table.resolve(path).mount.consistency
        return WriteFile(path, self.client.link, _begin(path, mode, if_version), consistency)

    def local_path(self, path: str, pin: bool = True) -> str:
        """Return a real file with exactly the object's bytes, fetched whole, read-only by
        contract. With ``pin`` it stays until ``unpin``; without, until it is evicted. Every page
        of it is verified, once by each process.

        Raises CacheFull where the object has no room, or one of several extents not twice its own.
        """
        request = wire.LocalPath(path, pin)
        if snapshots.split(path):
            entry = self.reader().names.entry(path)
            request = wire.LocalPath(entry.path, pin, entry.record.token)
        file = self.client.link.request(request, wire.Local).file
        for _ in range(SETTLE_ROUNDS):
            with Settled(self.reader().names.entry(path).pays):  # by the agent, all of it
                places = {extent.file for extent in self.locate(path)}
            if places <= {file}:
                break
            file = self.client.link.request(request, wire.Local).file  # evicted meanwhile
        return file

    def locate(self, path: str, offset: int = 0, length: int | None = None) -> list[FileExtent]:
        """Make the bytes present and return where they lie, in order, for readers that go to the
        device themselves (sendfile, GPUDirect). Pin the path, or they may be evicted."""
        reader = self.reader()
        entry = reader.names.entry(path)
        start, end = clamp(offset, length, entry.record.size_bytes)
        if start == end:
            return []
        entry = reader.make_present(entry, start, end)
        extents = self.client.extents
        return [
            FileExtent(
                extents.path(segment.extent_id),
                segment.base + max(start, segment.start) - segment.start,
                min(end, segment.end) - max(start, segment.start),
            )
            for segment in entry.segments_of(start, end)
        ]

    # -- names ------------------------------------------------------------------------------

    def stat(self, path: str) -> Stat:
        """Return what the path is. Raises NotFound."""
        reader = self._reader or self._open()
        known = reader.names.known_stat(path)
        return known if known is not None else self._stat_slow(path)

    def stat_unasked(self, path: str) -> Stat | None:
        """Return what ``stat`` would where the agent need not be asked, else None. Raises
        NotFound where absence is known and fresh."""
        reader = self._reader or self._open()
        known = reader.names.known_stat(path)
        return known if known is not None else self._stat_indexed(path)

    def _stat_indexed(self, path: str) -> Stat | None:
        client = self.client
        try:
            name = client.resolver.locate(path)
        except IsADirectory:
            return Stat(path, Kind.DIRECTORY, 0, "", 0.0, 0.0)
        if name.binding is not None:
            return frozen_stat(path, name.binding)
        raw = client.index.get(records.object_key(name.digest))
        if raw is None:
            return None
        record = records.decode_object(raw)
        until = fresh_until_s(
            name.mount,
            kind=record.kind,
            validated_s=record.validated_s,
            same_boot=record.boot == client.clock.boot_id,
        )
        now = client.clock.now()
        if now >= until:
            return None
        if record.kind is Kind.FILE:
            client.reader.names.unasked(path)
        age = age_s(
            record.validated_s,
            now,
            same_boot=record.boot == client.clock.boot_id,
            validated_unix_s=record.validated_unix_s,
            unix_s=client.clock.unix(),
        )
        return known_stat(path, record, age, name.mount.consistency)

    def _stat_slow(self, path: str) -> Stat:
        indexed = self._stat_indexed(path)
        if indexed is not None:
            return indexed
        client = self.client
        found = client.link.request(wire.Lookup(path), wire.Found)
        age = max(0.0, client.clock.now() - found.validated_s)
        consistency = client.resolver.locate(path).mount.consistency
        return known_stat(path, found, age, consistency, stale=found.stale)

    def exists(self, path: str) -> bool:
        """Return whether the path is an object or a directory. An origin that cannot be reached
        raises; it never means False."""
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def list(self, path: str, recursive: bool = False, *, refresh: bool = False) -> Listing:
        """Return the entries of a directory by name; recursive, everything below it, names
        relative to it. A file lists as itself. ``refresh`` asks the origin in any case; a listing
        that is ``stale`` is served where that cannot be asked and the mount allows it, and of a
        directory that was never listed whole what is known, ``partial``.

        Raises NotFound.
        """
        if inside := self.client.resolver.in_snapshot(path):
            return inside[0].listing(inside[1], recursive=recursive)
        children = self.client.resolver.table.children_of_root(path)
        try:
            name = self.client.resolver.locate(path)
        except IsADirectory:
            name = None
        found = Listing() if name is None else self._listing(path, name, recursive, refresh)
        if not children:
            if not found and name is not None:
                return self._list_file_or_empty(path, found)
            return found
        merged = {entry.name: entry for entry in found}
        for child in children:
            merged[child] = Entry(child, Kind.DIRECTORY)
            if recursive:
                below = self.list(f"{path.rstrip('/')}/{child}", True, refresh=refresh)
                found.age_s = max(found.age_s, below.age_s)
                found.stale |= below.stale
                found.partial |= below.partial
                merged.update(
                    (f"{child}/{e.name}", msgspec.structs.replace(e, name=f"{child}/{e.name}"))
                    for e in below
                )
        found[:] = [merged[key] for key in sorted(merged)]
        return found

    def _listing(self, path: str, name: Name, recursive: bool, refresh: bool) -> Listing:
        client, found = self.client, Listing()
        parts = None if refresh else self._stored_listing(name, recursive, check=True)
        validated_s = parts[0].validated_s if parts else -inf
        for _ in range(SETTLE_ROUNDS):
            if parts is not None:
                break
            request = wire.ListNames(path, recursive, refresh)
            answer = client.link.request(request, wire.Listed)
            validated_s, found.stale = answer.validated_s, answer.stale
            found.partial = answer.partial
            if answer.inline is not None:
                parts = msgspec.msgpack.decode(answer.inline, type=_Parts)
            else:
                parts = self._stored_listing(name, recursive, check=False)
        if parts is None:
            raise StaleHandle("the directory changes faster than it can be listed", path=path)
        for part in parts:
            found.extend(part.entries)
        if not recursive:
            # Objects stand before prefixes there; two sorted runs cost little to merge.
            found.sort(key=_by_name)
        found.age_s = max(0.0, client.clock.now() - validated_s)
        return found

    def _stored_listing(self, name: Name, recursive: bool, *, check: bool) -> _Parts | None:
        """Return a listing as the index has it, all of it as of one commit."""
        client = self.client
        prefix = name.directory_prefix
        first = client.index.get(records.listing_key(name.origin, prefix, recursive, 0))
        if first is None:
            return None
        part = records.decode_listing(first)
        if check:
            until = listing_fresh_until_s(
                name.mount,
                validated_s=part.validated_s,
                same_boot=part.boot == client.clock.boot_id,
            )
            if until <= client.clock.now():
                return None
        if part.parts == 1:
            return [part]
        keys = [
            records.listing_key(name.origin, prefix, recursive, number)
            for number in range(part.parts)
        ]
        raws = client.index.get_many(keys)
        if raws[0] != first or None in raws:
            return None
        return [records.decode_listing(raw) for raw in raws if raw is not None]

    def _list_file_or_empty(self, path: str, empty: Listing) -> Listing:
        found = self.stat(path)
        age_s = max(empty.age_s, found.age_s)
        listing = Listing(age_s=age_s, stale=empty.stale or found.stale)
        if found.kind is Kind.FILE:
            base = path.rstrip("/").rsplit("/", 1)[-1]
            entry = Entry(base, Kind.FILE, found.size_bytes, found.version, found.mtime_s)
            listing.append(entry)
        return listing

    # -- writing ----------------------------------------------------------------------------

    def write(
        self,
        path: str,
        data: Buffer,
        mode: Literal["overwrite", "create"] = "overwrite",
        *,
        if_version: str | None = None,
    ) -> Stat:
        """Write one object, through to its origin and into the cache; return the new version.

        Atomic: nobody sees a part. "create" raises AlreadyExists where there is an object,
        ``if_version`` raises PreconditionFailed where the version is another.
        """
        with self.open_for_writing(path, mode=mode, if_version=if_version) as file:
            file.write(data)
        assert file.stat is not None
        return file.stat

    def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove an object at its origin, or with ``recursive`` all below a directory; return how
        many. Raises NotFound."""
        request = wire.Remove(path, recursive)
        return self.client.link.request(request, wire.Done).count

    def copy(self, source: str, target: str) -> None:
        """Copy an object: on the server's side within one origin, else through this process."""
        self._copy(source, target, remove_source=False)

    def rename(self, source: str, target: str) -> None:
        """Copy, then remove the source. Object stores have no atomic rename: a crash in between
        leaves both."""
        self._copy(source, target, remove_source=True)

    def _copy(self, source: str, target: str, *, remove_source: bool) -> None:
        request = wire.CopyObject(source, target, remove_source)
        try:
            self.client.link.request(request, wire.Done)
            return
        except Unsupported:
            pass  # two origins, or one that cannot copy: the bytes go through here
        with self.open(source) as reader, self.open_for_writing(target) as writer:
            while block := reader.read(COPY_BYTES):
                writer.write(block)
        if remove_source:
            self.remove(source)

    # -- the cache --------------------------------------------------------------------------

    def prefetch(
        self,
        paths: str | PathLike[str] | Iterable[str],
        *,
        pin: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_bytes: int | None = None,
        concurrency: int = 64,
        dry_run: bool = False,
        background: bool = True,
        ordered: bool = False,
    ) -> Job:
        """Start fetching everything the paths name, directories meaning all below them. The job
        runs in the agent; a background job survives the agent and this process.

        ``ordered`` announces reads: the paths are objects in the order in which they will be read,
        each as often as it will be. What comes next is fetched ahead of the reader and what is
        read last is evicted first, until all was read; such a job ends with its agent. Raises
        Unsupported where it is combined with ``pin``, ``include``, ``exclude``, ``max_bytes`` or
        ``dry_run``, and FormatError for more paths than 12 MiB hold (~200,000).
        """
        named = [str(paths)] if isinstance(paths, str | PathLike) else list(paths)
        request = wire.Prefetch(
            paths=tuple(named),
            include=tuple(include),
            exclude=tuple(exclude),
            pin=pin,
            dry_run=dry_run,
            max_bytes=max_bytes,
            concurrency=concurrency,
            background=background,
            ordered=ordered,
        )
        link = self.client.link
        return Job(link, link.request(request, wire.Job).progress)

    def snapshot(self, name: str) -> Snapshot:
        """Return a dataset snapshot, to read what it froze. Raises NotFound."""
        return Snapshot(self, name)

    @property
    def snapshots(self) -> Snapshots:
        """All dataset snapshots: to make, list, compare and remove them."""
        return Snapshots(self)

    @property
    def qos(self) -> Qos:
        """The QoS policy: what holds, who gets how much, why somebody waits, and changes."""
        return Qos(lambda: self.client.link)

    def job(self, job_id: str) -> Job:
        """Return a job of this agent by its id. Raises NotFound."""
        link = self.client.link
        return Job(link, link.request(wire.JobQuery(job_id), wire.Job).progress)

    def pin(self, path: str) -> None:
        """Never evict what the path names, now or later, until ``unpin``. Fetches nothing."""
        self.client.link.request(wire.Pin(path), wire.Done)

    def unpin(self, path: str) -> None:
        """Undo ``pin`` of this very path. Raises NotFound where there is no such pin."""
        self.client.link.request(wire.Unpin(path), wire.Done)

    def evict(self, path: str) -> int:
        """Drop the cached bytes of the path and all below it; return how many bytes. The origin
        is not touched."""
        return self.client.link.request(wire.Evict(path), wire.Done).count

    def invalidate(self, path: str) -> int:
        """Forget how fresh the names at and below the path are, so that their next use asks the
        origin; return how many. Bytes of unchanged versions stay."""
        return self.client.link.request(wire.Invalidate(path), wire.Done).count

    def cached_bytes(self, path: str) -> int:
        """Return how many bytes of an object's last known version are on the device."""
        return self.reader().cached_bytes(path)

    def autarky(self, path: str, *, shown: int | None = 20) -> Autarky:
        """Return whether a job over the path would survive an outage that begins now, with the
        names of the first ``shown`` that would be missing, or of all (None). Asks no origin."""
        endpoints = self.status()["endpoints"]
        return survey(path, self.client.index, self.client.resolver, endpoints, shown=shown)

    def status(self) -> Mapping[str, Any]:
        """Return the agent's status document (docs/operations.md)."""
        self.reader().report_use()
        body = self.client.link.request(wire.StatusQuery(), wire.Status).body
        document: Mapping[str, Any] = msgspec.json.decode(body)
        return document

    def mounts(self) -> tuple[MountSettings, ...]:
        """Return all mounts of the running agent, this configuration's and others'."""
        return self.client.link.request(wire.MountList(), wire.Mounts).mounts

    def shut_down_agent(self) -> None:
        """Ask the agent of this cache directory to leave."""
        self.client.link.request(wire.Shutdown(), wire.Done)


def _by_name(entry: Entry) -> tuple[str, Kind]:
    return entry.name, entry.kind


def _begin(path: str, mode: str, if_version: str | None) -> wire.WriteBegin:
    if if_version is not None:
        if mode == "create":
            raise ValueError("mode='create' and if_version exclude each other")
        return wire.WriteBegin(path, "if-version", if_version)
    return wire.WriteBegin(path, mode)


def _unpickled(settings: bytes, embedded: bool) -> Namespace:
    """A pickled copy finds the agent, or the embedded engine, at its socket."""
    del embedded
    return Namespace(msgspec.json.decode(settings, type=Settings))


def _after_fork_in_child() -> None:
    for namespace in list(_living):
        namespace._after_fork()


register_at_fork(after_in_child=_after_fork_in_child)


def connect(
    config: str | PathLike[str] | Settings | None = None,
    *,
    cache_dir: str | PathLike[str] | None = None,
    name: str | None = None,
    embedded: bool = False,
) -> Namespace:
    """Open the namespace, starting an agent where the cache directory has none.

    ``config`` is a TOML file or ready Settings; without it the usual places are read
    (docs/configuration.md). ``name`` is what this client calls itself to the QoS policy.
    ``embedded`` runs the engine on a thread of this process instead of in an agent. Raises
    ConfigError, AgentUnavailable, FormatError.
    """
    if isinstance(config, Settings):
        settings = config
        if cache_dir is not None:
            cache = msgspec.structs.replace(settings.cache, dir=str(cache_dir))
            settings = msgspec.structs.replace(settings, cache=cache)
        if name is not None:
            qos = msgspec.structs.replace(settings.qos, name=name)
            settings = msgspec.structs.replace(settings, qos=qos)
    else:
        from tiercache.config.loading import load

        overrides = {
            "cache.dir": None if cache_dir is None else str(cache_dir),
            "qos.name": name,
        }
        settings = load(None if config is None else str(config), overrides=overrides).settings
    namespace = Namespace(settings, embedded=embedded)
    namespace._open()
    return namespace
