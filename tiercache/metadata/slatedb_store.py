"""The metadata store on SlateDB: a log-structured tree on an object store, with one writer.

A commit is in the bucket before it is acknowledged. An agent that opens the store takes it over
and fences the one before, whose next commit fails; see ``object_tier`` for who owns it. SlateDB
dies of an outage that outlasts its retries: this module then opens it again at the next call, if
it is still the owner. Do not fork after use: SlateDB's threads stay behind.

``file://`` is for tests and for file systems that are servers themselves: SlateDB does not sync
files, so that a power cut may take acknowledged commits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from slatedb import uniffi as slate

from tiercache.cloud.obstore_errors import scrubbed
from tiercache.errors import (
    FormatError,
    MetadataFenced,
    MetadataUnavailable,
    TiercacheError,
    Unsupported,
)
from tiercache.metadata.bookkeeping import (
    FIRST_KEY,
    FORMAT_KEY,
    SEQUENCE_KEY,
    check_commit,
    decode_format,
    decode_sequence,
    encode_format,
    encode_sequence,
    is_key,
    new_identity,
    unmet,
)
from tiercache.metadata.object_tier import LOOK, ObjectTier, Owner, no_store_here
from tiercache.metadata.slatedb_bytes import install as install_fast_bytes
from tiercache.ports import NOTHING_REQUIRED

install_fast_bytes()

# After a failure the next calls fail at once for so long, instead of each waiting its deadline.
HOLD_OFF_S = 1.0
# An opening reads the whole log, whatever has become of it, so it may take so many deadlines. Cut
# off at one it would begin again at the next call, and never end.
OPENING_DEADLINES = 6
# Two agents that take over at once may each fence the other while it opens.
OPEN_ATTEMPTS = 5
# One call of the library brings about so much of a scan.
SCAN_BYTES = 4 * 1024 * 1024
SCAN_PAIRS_FIRST = 64
SCAN_PAIRS_MOST = 1024
# After so many commits the log is written into a table. An opening reads the log since the last
# one: 256 objects took 0.4 s with 30 ms added to every request, 1,024 took 2.4 s.
LOG_COMMITS = 256
# Blocks of tables kept in memory. Clients' reads go to the index and pass this by.
CACHE_BYTES = 64 * 1024 * 1024
# Building a batch costs ~20 µs a record: above this many it does not run on the event loop.
BATCH_RECORDS_INLINE = 200

_DURABLE = slate.ReadOptions(
    durability_filter=slate.DurabilityLevel.REMOTE, dirty=False, cache_blocks=True
)
_IN_TURN = slate.ReadOptions(
    durability_filter=slate.DurabilityLevel.MEMORY, dirty=False, cache_blocks=True
)
_SCAN = slate.ScanOptions(
    durability_filter=slate.DurabilityLevel.REMOTE,
    dirty=False,
    read_ahead_bytes=1024 * 1024,
    cache_blocks=True,
    max_fetch_tasks=4,
)
_FOLLOWING = slate.ReaderOptions(
    manifest_poll_interval_ms=1000,
    checkpoint_lifetime_ms=600_000,  # it makes none
    max_memtable_bytes=64 * 1024 * 1024,
    skip_wal_replay=False,
    object_store_max_retries=3,
)
_TO_WAL = slate.FlushOptions(flush_type=slate.FlushType.WAL)
_TO_TABLE = slate.FlushOptions(flush_type=slate.FlushType.MEM_TABLE)

_T = TypeVar("_T")


def _settings() -> Any:
    """SlateDB's settings where its defaults do not fit."""
    settings = slate.Settings.default()
    for name, value in {
        # By default retries have no end, and an outage would block callers for as long.
        "object_store_max_retries": "3",
        "compactor_options.object_store_max_retries": "3",
        "garbage_collector_options.object_store_max_retries": "3",
        # Each commit asks for its flush; this is only for what nobody waits for.
        "flush_interval": '"100ms"',
        "l0_sst_size_bytes": str(16 * 1024 * 1024),
        "max_unflushed_bytes": str(128 * 1024 * 1024),
        # At rest they make 1.2 requests a second: 3 million a month, a dollar's worth.
        "manifest_poll_interval": '"5s"',
        "compactor_options.poll_interval": '"5s"',
    }.items():
        settings.set(name, value)
    return settings


class SlateStore:
    """A MetadataStore. One event loop, one process; ``close`` it there.

    Concurrent commits are pipelined and keep the order in which they were called. A reader
    (``read_only``) fences nobody and follows the owner with a second's delay; for it ``commit``
    and ``check_owner`` raise Unsupported, and ``sequence`` is that of the last ``flush``.
    """

    def __init__(self, tier: ObjectTier, *, url: str, deadline_s: float, read_only: bool) -> None:
        # Constant after construction
        self._tier = tier
        self._url = url
        self._deadline_s = deadline_s
        self._read_only = read_only
        self._token = secrets.token_hex(16)
        # Owned by the event loop
        self._db: Any = None
        self._identity = ""
        self._sequence = 0  # acknowledged
        self._written = 0  # handed to SlateDB
        self._fenced: MetadataFenced | None = None
        self._closed = False
        self._calls = 0  # under way
        self._failure = ""
        self._try_again_s = 0.0
        self._logged = 0  # commits since the last table
        self._turn = asyncio.Lock()  # commits, in order
        self._opening: asyncio.Task[None] | None = None
        self._table: asyncio.Task[None] | None = None  # writes the log into one
        self._behind: set[asyncio.Task[None]] = set()  # what goes on behind the calls

    @classmethod
    async def open(
        cls, tier: ObjectTier, *, url: str, deadline_s: float, read_only: bool = False
    ) -> SlateStore:
        """Take the store over, making it where there is none; ``read_only`` does neither.

        Raises MetadataUnavailable, MetadataFenced where another agent took over meanwhile,
        NotFound (no bucket; for ``read_only`` also no store), Unsupported, AccessDenied,
        FormatError.
        """
        store = cls(tier, url=url, deadline_s=deadline_s, read_only=read_only)
        try:
            async with store._bounded():
                if not read_only:
                    await tier.claim(store._token)
                elif not await tier.holds_database():
                    raise no_store_here(url)
            async with store._bounded(OPENING_DEADLINES):
                await store._open()
        except BaseException:
            await store.close()
            raise
        return store

    @property
    def url(self) -> str:
        return self._url

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def sequence(self) -> int:
        return self._sequence

    async def get(self, key: bytes) -> bytes | None:
        if not is_key(key):
            return None
        found: bytes | None = await self._asked(lambda db: db.get_with_options(key, _DURABLE))
        return found

    async def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        first = max(prefix, start, FIRST_KEY)
        if not first.startswith(prefix) or limit == 0:
            return
        # SlateDB takes the range's bounds without the prefix.
        rest = slate.KeyRange(
            start=first[len(prefix) :] or None, start_inclusive=True, end=None, end_inclusive=False
        )

        async def begin(db: Any) -> tuple[Any, Any]:
            return db, await db.scan_prefix_with_options(prefix, rest, _SCAN)

        db, pairs = await self._asked(begin)
        remaining = limit
        wanted = SCAN_PAIRS_FIRST
        while remaining is None or remaining > 0:
            count = wanted if remaining is None else min(wanted, remaining)
            batch = await self._next(db, pairs, count)
            for pair in batch:
                yield pair.key, pair.value
            if len(batch) < count:
                return
            if remaining is not None:
                remaining -= count
            mean_bytes = sum(len(pair.value) for pair in batch) // count + 1
            wanted = max(1, min(SCAN_PAIRS_MOST, SCAN_BYTES // mean_bytes))

    async def _next(self, db: Any, pairs: Any, count: int) -> list[Any]:
        async with self._bounded():
            try:
                batch: list[Any] = await pairs.next_batch(count)
            except slate.Error as error:
                raise await self._failed(db, error) from error
        return batch

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        check_commit(batch, preconditions)
        self._require_writer()
        async with self._call() as bound:
            async with self._turn:
                db = await self._ready()
                # We are the only writer, and this is our turn: what is read here holds when the
                # batch is written. A fenced agent may read what was; its batch then fails.
                await self._require(db, preconditions)
                if not batch:
                    return self._sequence
                sequence, handle = await self._write(db, batch)
            try:
                await db.flush_with_options(_TO_WAL)
                await handle.await_durable()
            except slate.Error as error:
                raise await self._failed(db, error) from error
            except asyncio.CancelledError:
                if bound.expired():  # it may hang for good, and those behind it too: open anew
                    self._discard(db)
                raise
        self._sequence = max(self._sequence, sequence)
        self._count_logged(db)
        return sequence

    def _count_logged(self, db: Any) -> None:
        self._logged += 1
        if self._logged >= LOG_COMMITS and self._table is None:
            self._table = self._go_on_behind(self._write_table(db))

    async def _write_table(self, db: Any) -> None:
        """Waits for as long as compaction is behind. The log has it all where it fails."""
        logged = self._logged
        try:
            await db.flush_with_options(_TO_TABLE)
            self._logged -= logged
        except slate.Error:
            return  # the next call finds what is wrong, and the next commit tries again
        finally:
            self._table = None

    async def _require(self, db: Any, preconditions: Mapping[bytes, bytes | None]) -> None:
        for key, required in preconditions.items():
            try:
                found = await db.get_with_options(key, _IN_TURN)
            except slate.Error as error:
                raise await self._failed(db, error) from error
            if found != required:
                raise unmet(key, path=self._url)

    async def _write(self, db: Any, batch: Mapping[bytes, bytes | None]) -> tuple[int, Any]:
        """Hand the batch to SlateDB in this turn. Cut off midway, nobody knows whether it has
        it: then the next call opens anew, and reads."""
        sequence = self._written + 1
        if len(batch) > BATCH_RECORDS_INLINE:
            built = await asyncio.to_thread(_built, batch, sequence)
        else:
            built = _built(batch, sequence)
        try:
            handle = await db.write(built)
        except slate.Error as error:
            raise await self._failed(db, error) from error
        except asyncio.CancelledError:
            self._discard(db)
            raise
        self._written = sequence
        return sequence, handle

    async def flush(self) -> None:
        """Write the log into a table. A reader looks for the last commit's number instead."""
        if self._read_only:
            stored = await self._asked(lambda db: db.get_with_options(SEQUENCE_KEY, _DURABLE))
            self._sequence = decode_sequence(stored)
        else:
            await self._asked(lambda db: db.flush_with_options(_TO_TABLE))

    async def check_owner(self) -> None:
        """Costs one GET."""
        self._require_writer()
        if self._fenced is not None:
            raise self._fenced
        async with self._bounded():
            await self._require_owner()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._db is not None:
                self._discard(self._db)
        for task in (self._table, self._opening):
            if task is not None:
                task.cancel()
        if self._behind:
            await asyncio.wait(self._behind)

    # Owning and opening

    def _require_writer(self) -> None:
        if self._closed:
            raise ValueError("the metadata store is closed")
        if self._read_only:
            raise Unsupported("the store was opened for reading only", path=self._url)

    async def _require_owner(self) -> None:
        """Raises MetadataFenced, for good, where another agent's name stands in the bucket."""
        try:
            owner = await self._tier.owner()
        except TiercacheError as error:
            raise self._unavailable(error.message) from error
        if owner.token != self._token:
            self._fence(owner)

    def _fence(self, owner: Owner) -> NoReturn:
        self._fenced = MetadataFenced(
            f"another agent has taken the store over: {owner}",
            path=self._url,
            remedy="restart this agent to take it back, or give each its own store",
        )
        if self._db is not None:
            self._discard(self._db)
        raise self._fenced

    async def _ready(self) -> Any:
        """Return the open database, opened again where it died."""
        if self._closed:
            raise ValueError("the metadata store is closed")
        if not await self._alive():
            if self._opening is None:
                if asyncio.get_running_loop().time() < self._try_again_s:
                    raise self._unavailable(self._failure)
                self._opening = self._go_on_behind(self._open_again())
            # The caller gives up at its deadline; the opening goes on for the next one.
            await asyncio.shield(self._opening)
        return self._db

    async def _open_again(self) -> None:
        try:
            if not self._read_only:
                async with self._bounded():
                    await self._require_owner()
            async with self._bounded(OPENING_DEADLINES):
                await self._open()
        except TiercacheError as error:
            self._failure = error.message
            self._try_again_s = asyncio.get_running_loop().time() + HOLD_OFF_S
            raise
        finally:
            self._opening = None

    async def _alive(self) -> bool:
        db = self._db
        if self._fenced is not None:
            raise self._fenced
        if db is None:
            return False
        if db.status().close_reason is not None:
            self._discard(db)
            return False
        # To be opened with other credentials it must be at rest: what is under way would fail.
        if self._calls == 1 and await self._tier.renewed() and self._calls == 1:
            self._discard(db)
            return False
        return True

    async def _open(self) -> None:
        """Open the database and learn identity and sequence. Fences whoever had it."""
        try:
            access = await self._tier.access()
        except TiercacheError as error:
            raise error if not self._identity else self._unavailable(error.message) from error
        for attempt in range(1, OPEN_ATTEMPTS + 1):
            try:
                db = await self._build(access)
                await self._learn(db)
            except slate.Error as error:
                if self._read_only or attempt == OPEN_ATTEMPTS or not _is_of_a_race(error):
                    raise self._not_opened(error) from error
                # With one that found, or will find, that it is not the owner.
                await self._require_owner()
            else:
                self._db = db
                return

    async def _learn(self, db: Any) -> None:
        try:
            if not self._read_only:
                # Who took over while we were opening has been fenced by that, and opens again.
                await self._require_owner()
            identity = await self._identify(db)
            if self._identity not in ("", identity):
                raise FormatError(
                    "another metadata store lies here now",
                    path=self._url,
                    remedy="restart the agent to use it",
                )
            stored = await db.get_with_options(SEQUENCE_KEY, _DURABLE)
        except BaseException:
            self._discard(db)
            raise
        self._identity = identity
        self._sequence = self._written = decode_sequence(stored)
        self._logged = LOG_COMMITS  # nobody knows how long the log is: the first commit ends it

    async def _build(self, access: Any) -> Any:
        if self._read_only:
            reader = slate.DbReaderBuilder(self._tier.path, access)
            reader.with_reader_mode(slate.ReaderMode.FOLLOW_LATEST())
            reader.with_options(_FOLLOWING)
            return await reader.build()
        builder = slate.DbBuilder(self._tier.path, access)
        builder.with_settings(_settings())
        cache = slate.MokaCacheOptions(
            max_capacity=CACHE_BYTES, time_to_live=None, time_to_idle=None
        )
        builder.with_db_cache(slate.DbCache.new_moka_cache(cache), 0)
        return await builder.build()

    def _not_opened(self, error: Any) -> TiercacheError:
        if isinstance(error, slate.Error.Data):
            return FormatError(_said(error), path=self._url, remedy="name another prefix")
        return self._unavailable(_said(error))

    async def _identify(self, db: Any) -> str:
        stored = await db.get_with_options(FORMAT_KEY, _DURABLE)
        if stored is None and not self._read_only:
            everything = slate.KeyRange(
                start=None, start_inclusive=True, end=None, end_inclusive=False
            )
            if not await (await db.scan(everything)).next_batch(1):
                batch = slate.WriteBatch()
                stored = encode_format(new_identity())
                batch.put(FORMAT_KEY, stored)
                batch.put(SEQUENCE_KEY, encode_sequence(1))
                handle = await db.write(batch)
                await db.flush_with_options(_TO_WAL)
                await handle.await_durable()
        return decode_format(stored, path=self._url)

    # Failing

    async def _asked(self, ask: Callable[[Any], Awaitable[_T]]) -> _T:
        async with self._call():
            db = await self._ready()
            try:
                return await ask(db)
            except slate.Error as error:
                raise await self._failed(db, error) from error

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[asyncio.Timeout]:
        self._calls += 1
        try:
            async with self._bounded() as bound:
                yield bound
        finally:
            self._calls -= 1

    @asynccontextmanager
    async def _bounded(self, deadlines: int = 1) -> AsyncIterator[asyncio.Timeout]:
        """End what is inside at the deadline, or at a multiple of it."""
        bound_s = self._deadline_s * deadlines
        try:
            async with asyncio.timeout(bound_s) as bound:
                yield bound
        except TimeoutError as error:
            raise self._unavailable(f"no answer within {bound_s:g} s") from error

    async def _failed(self, db: Any, error: Any) -> TiercacheError:
        """Return what the failure of an open database means; the next call opens it anew."""
        self._discard(db)
        if not isinstance(error, slate.Error.Closed):
            return self._unavailable(_said(error))
        if error.reason == slate.CloseReason.CLEAN:  # by another call, which failed
            return self._unavailable(self._failure or _said(error))
        if _is_fenced(error):
            try:
                await self._require_owner()
            except TiercacheError as found:
                return found
            # An agent that has been replaced opened it again, and found that out by now.
            return self._unavailable("another agent has opened the store and left it")
        return self._unavailable(_said(error))

    def _unavailable(self, message: str) -> MetadataUnavailable:
        self._failure = message
        return MetadataUnavailable(message, path=self._url, remedy=LOOK)

    def _discard(self, db: Any) -> None:
        """Shut a database down that nobody is to use any more, on a task of its own."""
        if self._db is db:
            self._db = None
        self._go_on_behind(self._shut_down(db))

    def _go_on_behind(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._leave_behind)
        return task

    def _leave_behind(self, task: asyncio.Task[None]) -> None:
        self._behind.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waited for it, if anybody still did

    async def _shut_down(self, db: Any) -> None:
        """Write nothing more: what was acknowledged is in the bucket."""
        try:
            async with asyncio.timeout(self._deadline_s):
                if self._read_only:
                    await db.shutdown()
                else:
                    await db.shutdown_with_options(slate.CloseOptions(flush_type=None))
        except (slate.Error, TimeoutError):
            return


def _is_fenced(error: Any) -> bool:
    return isinstance(error, slate.Error.Closed) and error.reason == slate.CloseReason.FENCED


def _is_of_a_race(error: Any) -> bool:
    """Whether another agent that opens at the same moment can be the cause: it fences us, or
    makes what we were about to make, which is told like damage."""
    return _is_fenced(error) or isinstance(error, slate.Error.Data)


def _said(error: Any) -> str:
    return scrubbed(RuntimeError(error.message))


def _built(batch: Mapping[bytes, bytes | None], sequence: int) -> Any:
    built = slate.WriteBatch()
    for key, value in batch.items():
        if value is None:
            built.delete(key)
        else:
            built.put(key, value)
    built.put(SEQUENCE_KEY, encode_sequence(sequence))
    return built
