"""Dataset snapshots: names, versions, sizes and checksums frozen under a name.

What a snapshot shows are exactly the versions that it froze; where the origin has another one and
the frozen one is not in the cache, StaleHandle says so. docs/snapshots.md tells the rest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any, Literal, Protocol, TypeVar

import crc32c

from tiercache import wire
from tiercache.catalog import PART_OBJECTS, SnapshotObject, SnapshotRecord
from tiercache.client.file import ReadFile
from tiercache.client.frozen import Frozen
from tiercache.client.job import Job
from tiercache.compose_client import Client
from tiercache.errors import (
    CorruptPage,
    NotFound,
    StaleHandle,
    TiercacheError,
    Unsupported,
    from_wire,
)
from tiercache.model import JobState, Listing, Stat
from tiercache.policy import snapshots

# What verify reads at a time, and how many objects at once: disk and checksum overlap.
READ_BYTES = 8 << 20
VERIFY_THREADS = 4
VERIFY_BATCH = 256

T = TypeVar("T")


class Reads(Protocol):
    """What a snapshot needs of its namespace."""

    @property
    def client(self) -> Client: ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes: ...
    def view(self, path: str, offset: int = 0, length: int | None = None) -> memoryview: ...
    def read_into(self, path: str, offset: int, buffer: bytearray | memoryview) -> int: ...
    def read_many(self, items: Iterable[tuple[str, int, int | None]]) -> list[bytes]: ...
    def open(self, path: str, mode: Literal["rb"] = "rb") -> ReadFile: ...
    def stat(self, path: str) -> Stat: ...
    def list(self, path: str, recursive: bool = False, *, refresh: bool = False) -> Listing: ...
    def local_path(self, path: str, pin: bool = True) -> str: ...
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
    ) -> Job: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one path from ``before`` to ``after``; one of them may be None."""

    path: str
    before: SnapshotObject | None
    after: SnapshotObject | None

    @property
    def kind(self) -> str:
        """Return "added", "removed" or "changed"."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What ``verify`` found. ``unchecked`` counts objects without a checksum, which it does not
    read; ``failures`` are those whose bytes are wrong, or not to be had."""

    checked: int
    checked_bytes: int
    unchecked: int
    failures: tuple[TiercacheError, ...]


class Snapshot:
    """One snapshot, read only. Paths are namespace paths, as those that were frozen.

    A process stays bound to this very snapshot, also over fork and pickle: where it is replaced
    meanwhile, StaleHandle is raised. Names outside it are NotFound. Thread safe.
    """

    def __init__(
        self, namespace: Reads, name: str, *, identity: tuple[float, int] | None = None
    ) -> None:
        """``identity`` is that of the snapshot meant, where another may have the name by now."""
        self._namespace = namespace
        self.name = name
        self._identity = identity or namespace.client.bind_snapshot(name).identity
        self.record: SnapshotRecord = self._frozen().record

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self._namespace, self.name, self._identity))

    def __repr__(self) -> str:
        return f"Snapshot({self.name!r}, {self.record.objects} objects)"

    def _frozen(self) -> Frozen:
        frozen = self._namespace.client.resolver.frozen.of(self.name)
        if frozen.identity != self._identity:
            raise StaleHandle(
                f"the snapshot {self.name} was replaced",
                path=snapshots.join(self.name),
                remedy="open it anew",
            )
        return frozen

    def path(self, path: str = snapshots.ROOT) -> str:
        """Return where the namespace, and fsspec behind "tiercache:/", show what was frozen of
        ``path``."""
        self._frozen()
        return snapshots.join(self.name, path.removeprefix("tiercache:/"))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._namespace.read(self.path(path), offset, length)

    def view(self, path: str, offset: int = 0, length: int | None = None) -> memoryview:
        return self._namespace.view(self.path(path), offset, length)

    def read_into(self, path: str, offset: int, buffer: bytearray | memoryview) -> int:
        return self._namespace.read_into(self.path(path), offset, buffer)

    def read_many(self, items: Iterable[tuple[str, int, int | None]]) -> list[bytes]:
        return self._namespace.read_many(
            [(self.path(path), offset, length) for path, offset, length in items]
        )

    def open(self, path: str, mode: str = "rb") -> ReadFile:
        """Raises Unsupported for every mode but "rb"."""
        if mode != "rb":
            raise Unsupported(
                f"mode {mode!r}: a snapshot is read only", path=snapshots.join(self.name, path)
            )
        return self._namespace.open(self.path(path))

    def stat(self, path: str) -> Stat:
        return self._namespace.stat(self.path(path))

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def list(self, path: str = snapshots.ROOT, recursive: bool = False) -> Listing:
        """Return the entries of a directory, from the snapshot alone."""
        return self._namespace.list(self.path(path), recursive)

    def objects(self, path: str = snapshots.ROOT) -> Iterator[SnapshotObject]:
        """Yield what was frozen at and below a path, in path order."""
        frozen = self._frozen()
        one = frozen.find(path)
        if one is not None:
            yield one
        yield from frozen.walk(snapshots.below(path))

    def local_path(self, path: str, pin: bool = True) -> str:
        """As the namespace's, with exactly the frozen bytes."""
        return self._namespace.local_path(self.path(path), pin)

    def prefetch(
        self,
        path: str = snapshots.ROOT,
        *,
        pin: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_bytes: int | None = None,
        concurrency: int = 64,
        dry_run: bool = False,
        background: bool = True,
    ) -> Job:
        """Start fetching the frozen versions at and below a path; what has another version at its
        origin is counted as failed. ``pin`` pins the paths that the snapshot was made of."""
        return self._namespace.prefetch(
            [self.path(path)],
            pin=pin,
            include=include,
            exclude=exclude,
            max_bytes=max_bytes,
            concurrency=concurrency,
            dry_run=dry_run,
            background=background,
        )

    def verify(
        self,
        path: str = snapshots.ROOT,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Verified:
        """Read all that was frozen with a checksum at and below a path, and compare.

        ``on_progress`` gets the bytes read so far. Failures do not raise: see ``Verified``.
        Raises NotFound for a path outside.
        """
        checked = checked_bytes = unchecked = 0
        failures: list[TiercacheError] = []
        seen = False
        with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="tiercache-verify") as pool:
            for batch in _batches(self.objects(path), VERIFY_BATCH):
                seen = True
                with_checksum = [one for one in batch if one.crc32c is not None]
                unchecked += len(batch) - len(with_checksum)
                for one, error in zip(
                    with_checksum, pool.map(self._verify_one, with_checksum), strict=True
                ):
                    checked += 1
                    checked_bytes += one.size_bytes
                    if error is not None:
                        failures.append(error)
                    if on_progress is not None:
                        on_progress(checked_bytes)
        if not seen:
            raise NotFound(f"not in the snapshot {self.name}", path=self.path(path))
        return Verified(
            checked=checked,
            checked_bytes=checked_bytes,
            unchecked=unchecked,
            failures=tuple(failures),
        )

    def _verify_one(self, one: SnapshotObject) -> TiercacheError | None:
        total = length = 0
        buffer = memoryview(bytearray(min(READ_BYTES, one.size_bytes)))
        try:
            with self.open(one.path) as file:
                while count := file.readinto(buffer) if one.size_bytes else 0:
                    total = crc32c.crc32c(buffer[:count], total)
                    length += count
        except TiercacheError as error:
            return error
        if (total, length) == (one.crc32c, one.size_bytes):
            return None
        return CorruptPage(
            f"{length} bytes with the checksum {total:08x}, where the snapshot {self.name} froze "
            f"{one.size_bytes} with {one.crc32c:08x}",
            path=one.path,
            remedy=f"tiercache evict {one.path}, and verify again",
        )

    def export(self, file: str | PathLike[str]) -> int:
        """Write all objects as a Parquet file with the columns path, origin, key, version, size,
        mtime and crc32c; return how many. The file appears whole or not at all.

        Raises Unsupported where pyarrow is not installed, OSError.
        """
        try:
            from pyarrow import Table
            from pyarrow.parquet import ParquetWriter
        except ImportError as error:
            raise Unsupported(
                "Parquet needs pyarrow", remedy="pip install 'tiercache[parquet]'"
            ) from error
        schema = _schema()
        part = f"{os.fspath(file)}.tiercache-part"
        count = 0
        try:
            with ParquetWriter(part, schema, compression="zstd") as writer:
                for batch in _batches(self.objects(), 8 * PART_OBJECTS):
                    count += len(batch)
                    columns = zip(*(_row(one) for one in batch), strict=True)
                    writer.write_table(Table.from_arrays(_arrays(columns, schema), schema=schema))
            os.replace(part, file)
        except BaseException:
            if os.path.exists(part):
                os.unlink(part)
            raise
        return count


def _reopened(namespace: Reads, name: str, identity: tuple[float, int]) -> Snapshot:
    return Snapshot(namespace, name, identity=identity)


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch


def _schema() -> Any:
    import pyarrow

    return pyarrow.schema(
        [
            pyarrow.field("path", pyarrow.string(), nullable=False),
            pyarrow.field("origin", pyarrow.string(), nullable=False),
            pyarrow.field("key", pyarrow.string(), nullable=False),
            pyarrow.field("version", pyarrow.string(), nullable=False),
            pyarrow.field("size", pyarrow.int64(), nullable=False),
            pyarrow.field("mtime", pyarrow.timestamp("us", tz="UTC")),
            pyarrow.field("crc32c", pyarrow.uint32()),
        ]
    )


def _row(one: SnapshotObject) -> tuple[object, ...]:
    mtime_us = round(one.mtime_s * 1e6) if one.mtime_s else None
    return (
        one.path, one.origin, one.key, one.token, one.size_bytes, mtime_us, one.crc32c
    )  # fmt: skip


def _arrays(columns: Iterable[Sequence[object]], schema: Any) -> list[Any]:
    import pyarrow

    return [
        pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)
    ]


class Snapshots:
    """All snapshots of a cache. Thread safe."""

    def __init__(self, namespace: Reads) -> None:
        self._namespace = namespace

    def list(self) -> list[SnapshotRecord]:
        """Return what there is, by name."""
        return self._namespace.client.resolver.frozen.records()

    def get(self, name: str) -> Snapshot:
        """Raises NotFound."""
        return Snapshot(self._namespace, name)

    def create(
        self,
        name: str,
        paths: str | PathLike[str] | Iterable[str],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        checksums: bool = False,
        replace: bool = False,
        dry_run: bool = False,
    ) -> Job:
        """Start freezing what the paths name, as their origins list it now. The job runs in the
        agent; the snapshot is there, whole, when it has ended well, and nothing of it otherwise.

        ``checksums`` reads every object, into the cache as far as that holds them. Raises
        AlreadyExists without ``replace``, ConfigError for a name that none can have or for paths
        inside each other. The job fails where a listing or a request does.
        """
        named = [str(paths)] if isinstance(paths, str | PathLike) else list(paths)
        return self._create(
            wire.SnapshotCreate(
                name=snapshots.check_name(name),
                paths=tuple(named),
                include=tuple(include),
                exclude=tuple(exclude),
                checksums=checksums,
                replace=replace,
                dry_run=dry_run,
            )
        )

    def remove(self, name: str) -> None:
        """Forget a snapshot; objects and cached bytes stay. Raises NotFound."""
        self._namespace.client.link.request(wire.SnapshotRemove(name), wire.Done)

    def diff(self, before: str, after: str) -> Iterator[Change]:
        """Yield what changed between two snapshots, in path order; ``after`` may be "live", which
        lists the paths of ``before`` at their origins now. An object has changed where its version
        has. Raises NotFound, and OriginUnavailable where an origin cannot be asked."""
        old = self.get(before)
        if after != snapshots.LIVE:
            yield from _changes(old.objects(), self.get(after).objects())
            return
        name = snapshots.SCRATCH + secrets.token_hex(8)
        record = old.record
        job = self._create(wire.SnapshotCreate(name, record.paths, record.include, record.exclude))
        try:
            ended = job.wait()
            if ended.state is not JobState.DONE:
                raise from_wire(ended.error_class, ended.message, "", "")
            yield from _changes(old.objects(), self.get(name).objects())
        finally:
            job.cancel()
            with contextlib.suppress(NotFound):
                self.remove(name)

    def _create(self, request: wire.SnapshotCreate) -> Job:
        link = self._namespace.client.link
        return Job(link, link.request(request, wire.Job).progress)


def _changes(old: Iterator[SnapshotObject], new: Iterator[SnapshotObject]) -> Iterator[Change]:
    before, after = next(old, None), next(new, None)
    while before is not None or after is not None:
        if after is None or (before is not None and before.path < after.path):
            assert before is not None
            yield Change(path=before.path, before=before, after=None)
            before = next(old, None)
        elif before is None or after.path < before.path:
            yield Change(path=after.path, before=None, after=after)
            after = next(new, None)
        else:
            if (before.token, before.size_bytes) != (after.token, after.size_bytes):
                yield Change(path=before.path, before=before, after=after)
            before, after = next(old, None), next(new, None)
