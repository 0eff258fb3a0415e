"""Prefetch jobs: list, compare with what is here, fetch what is missing.

A job keeps no list of what it has done: presence in the cache is the record of it, so a job that
was interrupted and begins again fetches only what is missing. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tiercache import records, work
from tiercache.agent.accounts import Account, asking, bulk_account
from tiercache.agent.device import NotCached
from tiercache.agent.fill import Filler, Target
from tiercache.agent.flights import endpoint_of, gathered
from tiercache.agent.job_table import Job, JobTable
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.names import Names
from tiercache.agent.ordered import OrderedRun, Steps
from tiercache.agent.plane import Plane
from tiercache.agent.qos_plane import QosPlane
from tiercache.agent.snapshots import Snapshots
from tiercache.errors import (
    IsADirectory,
    NotFound,
    OriginThrottled,
    OriginUnavailable,
    StaleHandle,
    TiercacheError,
    Unsupported,
)
from tiercache.model import Entry, JobProgress, JobState, Kind, ObjectInfo
from tiercache.policy import snapshots
from tiercache.policy.globs import GlobFilter
from tiercache.policy.order import IDLE_S
from tiercache.policy.pages import RUN_PAGES
from tiercache.ports import Origin
from tiercache.records import JobRecord, PinRecord
from tiercache.wire import Prefetch

log = logging.getLogger("tiercache.agent")

RUN_BYTES = RUN_PAGES * 64 * 1024
# A window of eight runs keeps the measured best concurrency of one object; two objects overlap
# the end of one with the start of the next.
WINDOW_BYTES = 8 * RUN_BYTES
LARGE_IN_FLIGHT = 2
# Entries waiting between listing and workers: enough to never starve them.
QUEUE_ENTRIES = 4096
KEPT_ERRORS = 100
# Of an order this many paths name the job; all of them may be megabytes, at each look at it.
SHOWN_PATHS = 10
# Paths of an order resolved between two turns of the event loop: ~5 µs each.
LOCATE_BATCH = 500

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Job(Job):
    spec: Prefetch
    globs: GlobFilter
    account: Account
    listing_done: bool = False
    listed: int = 0
    listed_bytes: int = 0
    hit: int = 0
    hit_bytes: int = 0
    filled: int = 0
    filled_bytes: int = 0
    failed: int = 0
    skipped: int = 0
    requests: int = 0
    admitted_bytes: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    run: OrderedRun | None = None
    # How much of its work waits for an endpoint that is offline, and for which.
    waiting: int = 0
    waits_for: str = ""

    @property
    def is_paused(self) -> bool:
        return bool(self.waiting) and not self.ended

    def progress(self) -> JobProgress:
        paused = self.is_paused and self.state is JobState.RUNNING
        return JobProgress(
            id=self.id,
            state=JobState.PAUSED if paused else self.state,
            paths=self.spec.paths[:SHOWN_PATHS] if self.spec.ordered else self.spec.paths,
            listing_done=self.listing_done,
            listed=self.listed,
            listed_bytes=self.listed_bytes,
            hit=self.hit,
            hit_bytes=self.hit_bytes,
            filled=self.filled,
            filled_bytes=self.filled_bytes,
            failed=self.failed,
            skipped=self.skipped,
            requests=self.requests,
            elapsed_s=self.elapsed_s,
            errors=tuple(self.errors),
            message=f"{self.waits_for} is offline" if paused else self.message,
            error_class=self.error_class,
            pin=self.spec.pin,
            dry_run=self.spec.dry_run,
            ended=bool(self.ended),
            ordered=self.spec.ordered,
            read=self.run.order.low if self.run else 0,
        )

    def note_error(self, path: str, error: Exception) -> None:
        self.failed += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append((path, str(error)))
        self.error_class = self.error_class or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Item:
    """One object to fetch: the version that was listed, of ``snapshot`` that and no other."""

    located: Located
    entry: Entry
    snapshot: str = ""


class Jobs:
    """All jobs of this agent."""

    def __init__(
        self,
        plane: Plane,
        mounts: Mounts,
        names: Names,
        filler: Filler,
        frozen: Snapshots,
        qos: QosPlane,
    ) -> None:
        self._governing = qos.governing
        self._frozen = frozen
        self._index = plane.index
        self._mounts = mounts
        self._names = names
        self._filler = filler
        self._plane = plane
        self._contents = plane.contents
        self._space = plane.space
        self._pinning = qos.pinning
        self._clock = plane.clock
        self.table = JobTable[_Job](
            self._run, self._ended, remedy="tiercache status lists the jobs"
        )
        self._large = asyncio.Semaphore(LARGE_IN_FLIGHT)
        # The same in runs, where a policy grants single ones.
        self._large_runs = asyncio.Semaphore(LARGE_IN_FLIGHT * WINDOW_BYTES // RUN_BYTES)
        filler.missed = self._missed

    def resume(self) -> None:
        """Start again the background jobs that a former agent did not end, and that do not run."""
        for _, raw in list(self._index.scan(b"j")):
            record = records.decode_job(raw)
            if record.id in self.table.jobs:
                continue
            spec = Prefetch(
                paths=record.paths,
                include=record.include,
                exclude=record.exclude,
                pin=record.pin,
                max_bytes=record.max_bytes,
                concurrency=record.concurrency,
            )
            self._start(record.id, spec, name=record.name)

    async def start(self, spec: Prefetch) -> JobProgress:
        """Begin a job and return its first state. Raises Unsupported for what an order cannot be
        combined with.

        An ordered job is not recorded: where its reader stood nobody would know after a restart.
        """
        if spec.ordered and (spec.pin or spec.dry_run or spec.include or spec.exclude):
            raise Unsupported(
                "an ordered prefetch takes neither pin nor dry_run, include or exclude",
                remedy="list the objects in the order of their reads, and nothing else",
            )
        if spec.ordered and spec.max_bytes is not None:
            raise Unsupported(
                "an ordered prefetch takes no max_bytes",
                remedy="the window ahead of the reader bounds it",
            )
        job_id, asker = secrets.token_hex(4), asking.get()
        if spec.background and not spec.dry_run and not spec.ordered:
            record = JobRecord(
                id=job_id,
                paths=spec.paths,
                include=spec.include,
                exclude=spec.exclude,
                pin=spec.pin,
                max_bytes=spec.max_bytes,
                concurrency=spec.concurrency,
                name=asker.name if asker is not None else "",
            )
            self._index.put(records.job_key(job_id), records.encode(record))
            with contextlib.suppress(OSError):  # then it does not survive, and is run all the same
                await self._index.flush()
        return self._start(job_id, spec)

    def _start(self, job_id: str, spec: Prefetch, *, name: str = "") -> JobProgress:
        globs = GlobFilter(spec.include, spec.exclude)
        account = bulk_account(job_id, name=name)
        return self.table.begin(_Job(id=job_id, spec=spec, globs=globs, account=account))

    # -- running ----------------------------------------------------------------------------

    async def _run(self, job: _Job) -> None:
        asking.set(job.account)
        if job.spec.paths:
            # How much of the cache may be the job's; what it fetches is charged path by path.
            work.current.set(await self._governing.find_work_at(job.spec.paths[0]))
        await (self._work_ordered(job) if job.spec.ordered else self._work(job))
        if job.state is JobState.RUNNING and job.failed:
            job.state = JobState.FAILED

    async def _ended(self, job: _Job) -> None:
        """Background jobs stay recorded where the agent stops, and go on with the next one."""
        self._governing.gone(job.id)
        if job.state is not JobState.CANCELLED or not self.table.stopping:
            self._index.put(records.job_key(job.id), None)
        if job.spec.pin:
            self._contents.refresh_pins(removed=False)
        with contextlib.suppress(OSError):  # the device's trouble is shown by its next user
            await self._index.flush()

    async def _work(self, job: _Job) -> None:
        queue: asyncio.Queue[_Item | None] = asyncio.Queue(QUEUE_ENTRIES)
        workers = [
            asyncio.create_task(self._worker(job, queue)) for _ in range(job.spec.concurrency)
        ]
        try:
            for path in job.spec.paths:
                try:
                    async for item in self._expand(job, path):
                        await queue.put(item)
                except (TiercacheError, OSError) as error:
                    if len(job.spec.paths) == 1:
                        raise
                    job.note_error(path, error)  # the other paths are fetched all the same
            job.listing_done = True
            for _ in workers:
                await queue.put(None)
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _outlast(self, job: _Job, origin: Origin, work: Callable[[], Awaitable[T]]) -> T:
        """Do what asks an origin, and do it anew after an outage, so it must not count before it
        has ended. Raises the errors of ``work`` that no outage explains."""
        while True:
            try:
                return await work()
            except OriginUnavailable as error:
                if not await self._paused(job, origin, error):
                    raise

    async def _paused(self, job: _Job, origin: Origin, error: OriginUnavailable) -> bool:
        """Pause the job while the endpoint is offline, and return True; False where ``error`` is
        not an outage's, and in a dry run, which somebody waits for."""
        endpoint = endpoint_of(origin)
        if endpoint is None or job.spec.dry_run or isinstance(error, OriginThrottled):
            return False
        if not await endpoint.verdict():
            return False
        if not job.waiting:
            log.info("job %s pauses: %s is offline", job.id, endpoint.name)
        job.waiting += 1
        job.waits_for = endpoint.name
        try:
            await endpoint.back()
        finally:
            job.waiting -= 1
        return True

    async def _expand(self, job: _Job, path: str) -> AsyncIterator[_Item]:
        if inside := snapshots.split(path):
            async for item in self._expand_snapshot(job, *inside):
                yield item
            return
        for mounted in self._mounts.below(path):
            async for item in self._expand_one(job, mounted):
                yield item
        if not self._mounts.is_virtual(path):
            async for item in self._expand_one(job, path):
                yield item

    async def _expand_snapshot(self, job: _Job, name: str, path: str) -> AsyncIterator[_Item]:
        if job.spec.pin and not job.spec.dry_run:
            for pin in self._frozen.pins(name, path):
                await self._pinning.add(pin)
        prefix = snapshots.below(path)
        async for one in self._frozen.below(name, path):
            relative = snapshots.relative(one.path, prefix) if one.path != path else ""
            if not relative or job.globs.matches(relative):
                job.listed += 1
                job.listed_bytes += one.size_bytes
                entry = Entry(relative, Kind.FILE, one.size_bytes, one.token, one.mtime_s)
                try:
                    located = self._frozen.locate(one)
                except TiercacheError as error:
                    job.note_error(one.path, error)
                    continue
                yield _Item(located, entry, name)

    async def _expand_one(self, job: _Job, path: str) -> AsyncIterator[_Item]:
        located = self._mounts.locate(path)
        found = await self._outlast(job, located.origin, lambda: self._names.lookup(located))
        if found.kind is Kind.FILE:
            await self._pin(job, located, tree=False)
            job.listed += 1
            job.listed_bytes += found.size_bytes
            entry = Entry("", Kind.FILE, found.size_bytes, found.token, found.mtime_s)
            yield _Item(located, entry)
            return
        if found.kind is Kind.ABSENT:
            raise NotFound("no such object or directory", path=path)
        await self._pin(job, located, tree=True)
        async for validated_s, entry in self._walk(job, located):
            if entry.kind is Kind.FILE and job.globs.matches(entry.name):
                job.listed += 1
                job.listed_bytes += entry.size_bytes
                sibling = self._mounts.sibling(located, located.directory_prefix + entry.name)
                yield _Item(sibling, self._as_known(sibling, entry, validated_s))

    async def _walk(self, job: _Job, located: Located) -> AsyncIterator[tuple[float, Entry]]:
        """Yield everything below a directory, each name once: a listing that an outage broke off
        begins anew after it, and what it had yielded is passed over."""
        last = ""
        while True:
            try:
                async for validated_s, entries in self._names.walk(located):
                    for entry in entries:
                        if entry.name > last:
                            yield validated_s, entry
                    last = max(last, entries[-1].name) if entries else last
                return
            except OriginUnavailable as error:
                if not await self._paused(job, located.origin, error):
                    raise

    def _as_known(self, located: Located, entry: Entry, validated_s: float) -> Entry:
        """Learn a name from a listing of ``validated_s``; return what is known of it now, which
        may be newer than the listing."""
        record = self._index.get_object(located.digest)
        if record is None or record.boot != self._clock.boot_id or record.validated_s < validated_s:
            info = ObjectInfo(located.key, entry.size_bytes, entry.token, entry.mtime_s)
            record = self._names.learn(located, Kind.FILE, info, validated_s)
        return Entry(entry.name, record.kind, record.size_bytes, record.token, record.mtime_s)

    async def _pin(self, job: _Job, located: Located, *, tree: bool) -> None:
        if job.spec.pin and not job.spec.dry_run:
            pin = PinRecord(located.path, located.origin.url, located.key, tree)
            await self._pinning.add(pin)

    async def _worker(self, job: _Job, queue: asyncio.Queue[_Item | None]) -> None:
        while (item := await queue.get()) is not None:
            located, entry = item.located, item.entry
            try:
                if item.snapshot:
                    await self._frozen_one(job, item)
                else:
                    await self._newest(job, located, entry)
            except NotCached as error:
                job.skipped += 1
                self._limit(job, str(error))
            except (TiercacheError, OSError) as error:
                job.note_error(located.path, error)

    async def _frozen_one(self, job: _Job, item: _Item) -> None:
        """Fetch the very version that a snapshot froze; where it is gone, say so."""
        await self._frozen.expect(item.located, item.entry, item.snapshot)
        try:
            await self._one(job, item.located, item.entry)
        except StaleHandle:
            await self._frozen.expect(item.located, item.entry, item.snapshot)
            raise

    async def _newest(self, job: _Job, located: Located, entry: Entry) -> None:
        """Fetch the version that was listed, or the one that has taken its place since."""
        try:
            await self._one(job, located, entry)
        except StaleHandle:
            found = await self._outlast(job, located.origin, lambda: self._names.lookup(located))
            if found.kind is not Kind.FILE:
                raise NotFound("removed since it was listed", path=located.path) from None
            newer = Entry(entry.name, Kind.FILE, found.size_bytes, found.token, found.mtime_s)
            await self._one(job, located, newer)

    async def _one(self, job: _Job, located: Located, entry: Entry) -> None:
        record = self._index.get_object(located.digest)
        if record is not None and record.token == entry.token and self._contents.is_whole(record):
            job.hit += 1
            job.hit_bytes += entry.size_bytes
            return
        present = 0
        if record is not None and record.token == entry.token:
            present = self._contents.cached_bytes(record)
        missing = entry.size_bytes - present
        if not job.spec.ordered and not self._admit(job, missing):
            job.skipped += 1
            return
        job.hit_bytes += present
        requests = 1 if self._small(entry) else -(-missing // RUN_BYTES)
        if job.spec.dry_run:
            job.filled_bytes += missing
        else:
            await self._fill(job, located, entry, missing)
        job.requests += requests
        job.filled += 1

    def _small(self, entry: Entry) -> bool:
        return self._space.placement.is_small(entry.size_bytes)

    def _admit(self, job: _Job, missing: int) -> bool:
        """A job never evicts what it has just fetched: it ends where the cache is full of it."""
        job.admitted_bytes += missing
        if job.spec.max_bytes is not None and job.admitted_bytes > job.spec.max_bytes:
            job.admitted_bytes -= missing
            self._limit(job, f"--max-bytes of {job.spec.max_bytes} reached")
            return False
        space = self._space
        room = space.capacity_bytes - space.headroom_bytes - space.ledger.overhead_bytes
        remedy = "raise cache.capacity"
        if space.most_bytes() < room:
            room, remedy = space.most_bytes(), f"raise the max of {space.payer()!r}"
        if job.admitted_bytes + job.hit_bytes > room:
            job.admitted_bytes -= missing
            self._limit(job, f"the cache holds {room} bytes at most; {remedy}")
            return False
        return True

    def _limit(self, job: _Job, message: str) -> None:
        job.state = JobState.LIMIT
        job.message = message
        job.error_class = "CacheFull"

    async def _fill(self, job: _Job, located: Located, entry: Entry, missing: int) -> None:
        """Fill an object of which ``missing`` bytes are not here, counting them as they come."""
        target = Target.of(located, entry.token)

        async def ensure(start: int, length: int) -> None:
            await self._outlast(
                job,
                target.origin,
                lambda: self._filler.ensure(target, [(start, length)], is_read=False),
            )

        async def pay_and_ensure(start: int, length: int) -> None:
            # Paid before a place is taken that all jobs share: others need not wait for tokens.
            read = length * missing // entry.size_bytes
            async with self._governing.admitted(target.path, read=read), self._large_runs:
                await ensure(start, length)

        if self._small(entry):
            async with self._governing.admitted(target.path, read=missing):
                await ensure(0, entry.size_bytes)
            job.filled_bytes += missing
            return
        counted = 0
        for start in range(0, entry.size_bytes, WINDOW_BYTES):
            if self._governing.is_on:
                end = min(start + WINDOW_BYTES, entry.size_bytes)
                await gathered(
                    pay_and_ensure(at, min(RUN_BYTES, end - at))
                    for at in range(start, end, RUN_BYTES)
                )
            else:
                async with self._large:
                    await ensure(start, WINDOW_BYTES)
            # Which window held the missing bytes nobody remembers: each counts its share.
            share = missing * min(start + WINDOW_BYTES, entry.size_bytes) // entry.size_bytes
            job.filled_bytes += share - counted
            counted = share

    # -- in an announced order --------------------------------------------------------------

    async def _work_ordered(self, job: _Job) -> None:
        names: list[Located] = []
        for number, path in enumerate(job.spec.paths):
            try:
                names.append(self._mounts.locate(path))
            except (TiercacheError, OSError) as error:
                job.note_error(path, error)
            if not number % LOCATE_BATCH:
                await asyncio.sleep(0)
        steps = Steps(
            look_up=lambda located: self._look_up(job, located),
            fetch=lambda located, entry: self._fetch_next(job, located, entry),
            present=lambda entry: _count_hit(job, entry),
            left=lambda: _count_skipped(job),
            is_paused=lambda: job.is_paused,
        )
        job.run = OrderedRun(self._plane, names, steps, concurrency=job.spec.concurrency)
        if not await job.run.run():
            job.state = JobState.FAILED
            job.message = f"nobody has read on for {IDLE_S:.0f} s: the order is forgotten"
            job.error_class = TiercacheError.__name__

    def _missed(self, digest: bytes) -> None:
        if self._space.victims.orders:
            for job in self.table.jobs.values():
                if job.run is not None and not job.ended:
                    job.run.missed(digest)

    async def _look_up(self, job: _Job, located: Located) -> Entry | None:
        try:
            found = await self._outlast(job, located.origin, lambda: self._names.lookup(located))
            if found.kind is Kind.DIRECTORY:
                raise IsADirectory("an ordered prefetch names objects", path=located.path)
            if found.kind is Kind.ABSENT:
                raise NotFound("no such object", path=located.path)
        except (TiercacheError, OSError) as error:
            job.note_error(located.path, error)
            return None
        finally:
            job.listed += 1
            job.listing_done = job.run is not None and job.listed >= len(job.run.order)
        job.listed_bytes += found.size_bytes
        return Entry("", Kind.FILE, found.size_bytes, found.token, found.mtime_s)

    async def _fetch_next(self, job: _Job, located: Located, entry: Entry) -> None:
        try:
            await self._newest(job, located, entry)
        except NotCached:
            job.skipped += 1  # its reader gets it from the origin
        except (TiercacheError, OSError) as error:
            job.note_error(located.path, error)


def _count_hit(job: _Job, entry: Entry) -> None:
    job.hit += 1
    job.hit_bytes += entry.size_bytes


def _count_skipped(job: _Job) -> None:
    job.skipped += 1
