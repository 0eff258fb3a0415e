"""Dataset snapshots, the agent's side: making and removing them, and binding names to what they
froze.

A snapshot is in the index whole or not at all: its parts are written first, and nobody finds them
before its record is put. What a killed agent left of one is removed by the next.
Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from math import inf

import msgspec

from tiercache import catalog, wire
from tiercache.agent.accounts import asking, bulk_account
from tiercache.agent.answers import found
from tiercache.agent.catalog import Catalog
from tiercache.agent.device import NotCached
from tiercache.agent.fill import Filler, Target
from tiercache.agent.freezing import Freezing
from tiercache.agent.frozen_parts import FrozenParts
from tiercache.agent.governing import Governing
from tiercache.agent.job_table import Job, JobTable
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.names import Names
from tiercache.agent.plane import Plane
from tiercache.catalog import SnapshotObject, SnapshotPart, SnapshotRecord
from tiercache.errors import (
    AlreadyExists,
    ConfigError,
    FormatError,
    MetadataUnavailable,
    NotFound,
    StaleHandle,
    TiercacheError,
)
from tiercache.model import Entry, JobProgress, Kind
from tiercache.policy import snapshots
from tiercache.records import ObjectRecord, PinRecord

# Tells the ids of these jobs from those of prefetches, which are hex.
JOB_PREFIX = "s"
# Parts have four bytes for their number.
PART_NUMBERS = 1 << 31
# Of one snapshot: billions of objects.
PARTS_AT_MOST = 1 << 20


@dataclass(slots=True, kw_only=True)
class _Job(Job):
    """One snapshot in the making."""

    spec: wire.SnapshotCreate
    freezing: Freezing | None = None

    def progress(self) -> JobProgress:
        freezing = self.freezing
        return JobProgress(
            id=self.id,
            state=self.state,
            paths=self.spec.paths,
            listing_done=bool(self.ended),
            listed=freezing.objects if freezing else 0,
            listed_bytes=freezing.size_bytes if freezing else 0,
            filled=freezing.checked if freezing else 0,
            filled_bytes=freezing.checked_bytes if freezing else 0,
            elapsed_s=self.elapsed_s,
            message=self.message,
            error_class=self.error_class,
            dry_run=self.spec.dry_run,
            ended=bool(self.ended),
        )


class Snapshots:
    """All snapshots of this agent's index."""

    def __init__(
        self,
        plane: Plane,
        mounts: Mounts,
        names: Names,
        filler: Filler,
        knowledge: Catalog,
        governing: Governing,
    ) -> None:
        self._governing = governing
        self._knowledge = knowledge
        self._plane = plane
        self._index = plane.index
        self._mounts = mounts
        self._names = names
        self._filler = filler
        self.table = JobTable[_Job](
            self._make,
            self._ended,
            unknown=": if its agent has ended, nothing is left of its snapshot",
            remedy="make it again",
        )
        # Names that a job is about to take.
        self._making: set[str] = set()

    def recover(self) -> None:
        """Remove what former agents left of snapshots that they did not end, and of comparisons.
        The index holds all that the metadata store does, if there is one."""
        for scratch, _ in list(self._index.scan(catalog.snapshot_key(snapshots.SCRATCH))):
            self._index.put(scratch, None)
        key = self._index.first(b"t", b"t")
        while key is not None:
            prefix, number = catalog.split_part_key(key)
            name = prefix[1:-1].decode()
            try:
                record = self._record(name)
            except FormatError:  # a later version's: it knows what to do with it
                key = self._index.first(b"t", prefix + b"\xff" * 5)
                continue
            end = record.first_part + record.parts if record else 0
            if name in self._making:
                key = self._index.first(b"t", prefix + b"\xff" * 5)
            elif record is not None and record.first_part <= number < end:
                key = self._index.first(b"t", catalog.snapshot_part_key(name, end))
            else:
                self._index.put(key, None)
                key = self._index.first(b"t", key + b"\0")

    def _record(self, name: str) -> SnapshotRecord | None:
        key = catalog.snapshot_key(name)
        raw = self._index.get(key)
        if raw is None:
            return None
        record = catalog.decode(key, raw)
        assert isinstance(record, SnapshotRecord)
        return record

    # -- jobs -------------------------------------------------------------------------------

    def has(self, job_id: str) -> bool:
        return job_id.startswith(JOB_PREFIX)

    async def create(self, spec: wire.SnapshotCreate) -> JobProgress:
        """Begin to make one. Raises AlreadyExists, ConfigError, NotFound (nothing is mounted)."""
        _check_name(spec)
        # As the namespace spells them: a URL may be one of a mount.
        paths = tuple(map(self._spelt, spec.paths))
        _check_paths(paths)
        spec = msgspec.structs.replace(spec, paths=paths)
        if not spec.dry_run:
            self._check_free(spec)
            self._making.add(spec.name)
        return self.table.begin(_Job(id=JOB_PREFIX + secrets.token_hex(4), spec=spec))

    def _spelt(self, path: str) -> str:
        if snapshots.split(path):
            raise ConfigError("a snapshot is not made of another", path=path)
        return path if self._mounts.is_virtual(path) else self._mounts.locate(path).path

    def _check_free(self, spec: wire.SnapshotCreate) -> None:
        if self._knowledge.is_partial and not snapshots.is_scratch(spec.name):
            raise MetadataUnavailable(
                "which snapshots the metadata store holds is not known yet",
                path=spec.name,
                remedy="tiercache metadata status says how far it is",
            )
        if spec.name in self._making:
            raise AlreadyExists("a snapshot of this name is being made", path=spec.name)
        if not spec.replace and self._record(spec.name) is not None:
            raise AlreadyExists(
                "there is a snapshot of this name",
                path=spec.name,
                remedy="choose another name, or --replace it",
            )

    async def _ended(self, job: _Job) -> None:
        self._governing.gone(job.id)
        if not job.spec.dry_run:
            self._making.discard(job.spec.name)

    async def _make(self, job: _Job) -> None:
        asking.set(bulk_account(job.id))
        spec = job.spec
        job.freezing = Freezing(
            self._plane,
            self._mounts,
            self._names,
            self._filler,
            self._governing,
            self._know,
            spec,
        )
        if spec.dry_run:
            async for _ in job.freezing.all():
                pass
            return
        before = self._record(spec.name)
        # By chance: two agents that share a metadata store never write one part.
        first = secrets.randbelow(PART_NUMBERS)
        while before is not None and abs(first - before.first_part) < PARTS_AT_MOST:
            first = secrets.randbelow(PART_NUMBERS)
        parts = FrozenParts(self._index, spec.name, first)
        try:
            async for objects in job.freezing.all():
                await parts.add(objects)
            await parts.finish()
            if not parts.objects and not snapshots.is_scratch(spec.name):
                raise NotFound("there is no object to freeze", path=" ".join(spec.paths))
            await self._publish(spec, parts, before)
        except BaseException:
            with contextlib.suppress(OSError):  # they go with the next commit, or the next agent
                await parts.discard()
            raise

    async def _publish(
        self, spec: wire.SnapshotCreate, parts: FrozenParts, before: SnapshotRecord | None
    ) -> None:
        record = SnapshotRecord(
            name=spec.name,
            created_unix_s=self._plane.clock.unix(),
            paths=spec.paths,
            objects=parts.objects,
            size_bytes=parts.size_bytes,
            parts=len(parts.firsts),
            first_part=parts.first_part,
            firsts=tuple(parts.firsts),
            include=spec.include,
            exclude=spec.exclude,
            checksums=spec.checksums,
        )
        key = catalog.snapshot_key(spec.name)
        standing = self._index.get(key)
        self._index.put(key, catalog.encode(record))
        try:
            await asyncio.shield(self._index.flush())
        except BaseException:
            # In doubt the old one stands; what was written of the new one is discarded.
            self._index.put(key, standing)
            raise
        self._drop_parts(before)
        with contextlib.suppress(OSError):  # they go with the next commit
            await self._index.flush()

    def _drop_parts(self, record: SnapshotRecord | None) -> None:
        if record is not None:
            for number in range(record.first_part, record.first_part + record.parts):
                self._index.put(catalog.snapshot_part_key(record.name, number), None)

    async def remove(self, name: str) -> None:
        """Raises NotFound, ConfigError."""
        snapshots.check_name(name.removeprefix(snapshots.SCRATCH))
        record = self.record(name)
        self._index.put(catalog.snapshot_key(name), None)
        self._drop_parts(record)
        await self._index.flush()

    # -- what they froze --------------------------------------------------------------------

    def record(self, name: str) -> SnapshotRecord:
        """Raises NotFound."""
        record = self._record(name)
        if record is None:
            raise NotFound(
                "no such snapshot",
                path=snapshots.join(name),
                remedy="tiercache snapshot ls shows those there are",
            )
        return record

    async def below(self, name: str, inside: str) -> AsyncIterator[SnapshotObject]:
        """Yield what was frozen at and below a path, in path order. Raises NotFound, also where
        the snapshot is replaced meanwhile."""
        record = self.record(name)
        prefix, seen = snapshots.below(inside), False
        for number, first in enumerate(record.firsts):
            later = record.firsts[number + 1 : number + 2]
            if first > prefix and not first.startswith(prefix) and first != inside:
                break
            if later and later[0] <= inside:
                continue
            for one in self._part(record, number):
                if one.path == inside or one.path.startswith(prefix):
                    seen = True
                    yield one
            await asyncio.sleep(0)
        if not seen:
            raise NotFound(f"not in the snapshot {name}", path=snapshots.join(name, inside))

    def _part(self, record: SnapshotRecord, number: int) -> Iterator[SnapshotObject]:
        key = catalog.snapshot_part_key(record.name, record.first_part + number)
        raw = self._index.get(key)
        if raw is None:
            raise NotFound("the snapshot was replaced or removed", path=snapshots.join(record.name))
        part = catalog.decode(key, raw)
        assert isinstance(part, SnapshotPart)
        yield from part.objects

    def locate(self, one: SnapshotObject) -> Located:
        """Return the name of a frozen object. Raises ConfigError where its path is of another
        origin now, or of none."""
        try:
            located = self._mounts.locate(one.path)
        except NotFound as error:
            raise ConfigError(
                f"frozen of {one.origin}, which is not mounted there any more", path=one.path
            ) from error
        if (located.origin.url, located.key) != (one.origin, one.key):
            raise ConfigError(
                f"frozen of {one.origin}, and its path is now one of {located.origin.url}",
                path=one.path,
            )
        return located

    async def expect(self, located: Located, frozen: Entry, snapshot: str) -> None:
        """See that the name has the frozen version. Raises StaleHandle where it has another."""
        now = await self._bind(located, _span(located, frozen))
        if now.kind is not Kind.FILE or now.token != frozen.token:
            raise StaleHandle(
                snapshots.changed(snapshot, frozen.token, now.token, stale=now.stale),
                path=located.path,
                remedy=snapshots.CHANGED_REMEDY,
            )

    def pins(self, name: str, inside: str) -> list[PinRecord]:
        """Return the pins that cover what was frozen at and below a path: of that, or of the paths
        that the snapshot was made of. Raises NotFound."""
        paths = self.record(name).paths if inside == snapshots.ROOT else (inside,)
        records = []
        for path in paths:
            mounted = self._mounts.below(path)
            if not self._mounts.is_virtual(path):
                mounted.append(path)
            for one in mounted:
                located = self._mounts.locate(one)
                records.append(PinRecord(located.path, located.origin.url, located.key, True))
        return records

    async def bind(self, request: wire.Bind) -> wire.Bound:
        return wire.Bound(tuple(await asyncio.gather(*map(self._bind_item, request.items))))

    async def _bind_item(self, item: wire.FrozenSpan) -> wire.Found | wire.Failure:
        try:
            located = self._mounts.locate(item.path)
            now = await self._bind(located, item)
            if item.length and now.kind is Kind.FILE and now.token == item.token:
                with contextlib.suppress(NotCached, StaleHandle):  # its reader sees to it himself
                    span = (item.offset, item.length)
                    async with self._governing.admitted(located.path, read=item.length):
                        await self._filler.ensure(Target.of(located, item.token), [span])
            return now
        except (TiercacheError, OSError) as error:
            return wire.failure_of(error, item.path)

    async def _bind(self, located: Located, item: wire.FrozenSpan) -> wire.Found:
        """Return what the name is, as far as the item needs to know. Nobody is asked where nothing
        is known of the name: every GET of its bytes names the version."""
        record = self._index.get_object(located.digest)
        if record is None:
            record = self._take_at_its_word(located, item)
        if record.kind is Kind.FILE and record.token == item.token:
            return found(record, inf)
        return await self._names.lookup(located, revalidate=True)

    def _know(self, located: Located, one: SnapshotObject) -> None:
        if self._index.get_object(located.digest) is None:
            self._take_at_its_word(located, _span(located, one))

    def _take_at_its_word(self, located: Located, item: wire.FrozenSpan) -> ObjectRecord:
        """Put a record that no mount takes for fresh."""
        record = ObjectRecord(
            origin=located.origin.url,
            key=located.key,
            kind=Kind.FILE,
            token=item.token,
            size_bytes=item.size_bytes,
            mtime_s=item.mtime_s,
            validated_s=-inf,
            validated_unix_s=item.frozen_unix_s,
        )
        self._index.put_object(located.digest, record)
        return record


def _span(located: Located, known: Entry | SnapshotObject) -> wire.FrozenSpan:
    return wire.FrozenSpan(located.path, known.token, known.size_bytes, known.mtime_s, 0.0)


def _check_name(spec: wire.SnapshotCreate) -> None:
    """Raises ConfigError for a name that none can have."""
    if snapshots.check_name(spec.name.removeprefix(snapshots.SCRATCH)) == snapshots.LIVE:
        raise ConfigError("this name stands for what there is now", path=spec.name)


def _check_paths(paths: tuple[str, ...]) -> None:
    """Raises ConfigError for no path, one twice, or one inside another."""
    if not paths:
        raise ConfigError("a snapshot is made of one path at least")
    named = {path.rstrip("/") for path in paths}
    if len(named) < len(paths):
        raise ConfigError("a path of the snapshot is named twice", path=" ".join(paths))
    for path in named:
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in named:
                raise ConfigError(
                    f"it lies in {above or '/'} too", path=path, remedy="leave it out"
                )
