"""The catalog: what the index knows of names, kept in a metadata store that outlives the node.

The index is what everybody reads, and it is written first; the store follows, in batches, from the
outbox that lies in the index. So an outage of the store delays nobody, and costs nothing but that
the store is behind until it has passed. At its start an agent attaches: it sends what its
predecessor could not, and imports what others wrote, or all where the cache directory is new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any

from tiercache import records
from tiercache.agent.importing import Importer
from tiercache.agent.index import Index
from tiercache.agent.outbox import Outbox, Waiting
from tiercache.agent.projection import (
    WRITER_KEY,
    WriterRecord,
    decode_writer,
    encode_writer,
    to_index,
    to_store,
)
from tiercache.catalog import CatalogListing
from tiercache.clock import Clock
from tiercache.errors import FormatError, MetadataFenced, TiercacheError
from tiercache.policy.retry import RetryPolicy, delay_s
from tiercache.ports import MetadataStore
from tiercache.records import Attachment
from tiercache.settings import MetadataSettings

log = logging.getLogger("tiercache.agent")

OpenStore = Callable[[], Awaitable[MetadataStore]]

# One commit: ~10 ms of the event loop to encode 1,000 names, and a few MiB of memory in the store's
# client. A part of a listing is 0.5 MiB.
BATCH_KEYS = 1000
BATCH_BYTES = 4 << 20
# Keys encoded between two turns of the event loop: ~1 ms.
TURN_KEYS = 100
# Keys noted between two commits of the index, where all that is known goes into the outbox.
SEND_ALL_KEYS = 4096
# The port's bound of a value.
VALUE_BYTES = 16 << 20
# Between attempts at a store that fails; the ceiling is how long one that is back may wait.
RETRIES = RetryPolicy(deadline_s=60.0, base_s=0.1, cap_s=5.0)
# How long a look-up waits for the store where the index may lack what the store knows, before it
# asks the origin instead; then the name counts as unknown, and for PAUSE_S no other one waits.
RECALL_S = 1.0
PAUSE_S = 5.0
# How long one waits whose origin does not answer: nobody else could tell.
LAST_RESORT_S = 5.0
# An agent that leaves tries so long to commit the rest, which is kept in the outbox otherwise.
LEAVE_S = 2.0
# Strong reads must stop within about a second of a takeover, and cost no request each.
HEARTBEAT_S = 1.0
STRONG_USE_S = 10.0


class State(StrEnum):
    OFF = "off"
    OPENING = "opening"
    IMPORTING = "importing"
    ATTACHED = "attached"
    UNAVAILABLE = "unavailable"
    FENCED = "fenced"


class Catalog:
    """Owned by the event loop. Without a configured store it does nothing and costs nothing."""

    def __init__(
        self, settings: MetadataSettings, open_store: OpenStore, index: Index, clock: Clock
    ) -> None:
        # Constant after construction
        self._settings = settings
        self._open_store = open_store
        self._index = index
        self._clock = clock
        # Called when the import has brought pins and jobs, for those who hold them in memory, and
        # when the index is known to hold all that the store does
        self.imported_pins: Callable[[], None] = lambda: None
        self.imported_jobs: Callable[[], None] = lambda: None
        self.attached: Callable[[], None] = lambda: None
        # Owned by the event loop
        self.state = State.OFF
        self._store: MetadataStore | None = None
        self._outbox: Outbox | None = None
        self._importer: Importer | None = None
        self._holder = ""
        self._attached = False
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._leaving = asyncio.Event()
        self._opened = asyncio.Event()
        self._listed = asyncio.Event()
        self._complete = True
        self._started_s = 0.0
        self._paused_until_s = 0.0
        self._strong_used_s = float("-inf")
        self._fenced: MetadataFenced | None = None
        self._committed_s = float("-inf")
        self.imported = 0
        self.commits = 0
        self.committed_keys = 0
        self.failures = 0
        self.damaged = 0
        self.problem = ""

    # -- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to attach, in the background."""
        if not self._settings.url:
            # What is learnt now goes into no outbox: the next attachment is a new one.
            if self._index.get(records.META_ATTACHED) is not None:
                self._index.put(records.META_ATTACHED, None)
            return
        self.state = State.OPENING
        self._started_s = self._clock.now()
        known = self._attachment()
        self._complete = known is not None and known.complete
        self._outbox = self._index.keep_outbox()
        self._outbox.on_entries = self._wake.set
        if self._outbox.count:
            log.info("%d changes wait for the metadata store", self._outbox.count)
        self._tasks = [
            asyncio.create_task(self._run()),
            asyncio.create_task(self._heartbeat()),
        ]

    async def stop(self) -> None:
        """Commit the rest where the store takes it at once; close the store."""
        self._leaving.set()
        self._wake.set()
        if self.state is State.ATTACHED:
            await asyncio.wait(self._tasks[:1], timeout=LEAVE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            with contextlib.suppress(TiercacheError, OSError):
                await self._store.close()

    async def _run(self) -> None:
        try:
            await self._serve()
        except Exception as error:  # the task's top: nobody else would ever see it
            self.failures += 1
            self.state, self.problem = State.UNAVAILABLE, f"internal error: {error!r}"
            log.exception("internal error in the catalog; nothing is committed any more")

    async def _serve(self) -> None:
        attempt = 0
        while self._fenced is None:
            try:
                if self._store is None:
                    self._store = await self._open_store()
                    self._opened.set()
                if not self._attached:
                    await self._attach(self._store)
                await self._commit_all(self._store)
                if attempt:
                    log.info("the metadata store %s is back", self._settings.url)
                self.state, self.problem, attempt = State.ATTACHED, "", 0
                if self._leaving.is_set():
                    return
                await self._gather()
            except MetadataFenced as error:
                self._fence(error)
            except (TiercacheError, OSError) as error:
                attempt += 1
                self._failed(error, attempt)
                await asyncio.sleep(delay_s(attempt, random.random(), policy=RETRIES))

    async def _gather(self) -> None:
        """Return when something waits to be committed, and has had its time to be joined."""
        await self._wake.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.commit_interval_s):
                await self._leaving.wait()
        self._wake.clear()

    def _failed(self, error: Exception, attempt: int) -> None:
        self.failures += 1
        self.problem = f"{type(error).__name__}: {error}"
        self.state = State.UNAVAILABLE
        if attempt == 1:
            log.warning(
                "the metadata store %s is unavailable, what is learnt is kept for it: %s",
                self._settings.url,
                self.problem,
            )

    def _fence(self, error: MetadataFenced) -> None:
        if self._fenced is None:
            self._fenced = error
            self.state = State.FENCED
            self.problem = f"{type(error).__name__}: {error}"
            log.error(
                "another agent has taken over the metadata store %s: this one commits no more and "
                "refuses strong reads until it is restarted, which takes the store back",
                self._settings.url,
            )
            self._wake.set()

    # -- fencing ----------------------------------------------------------------------------

    def assert_not_fenced(self) -> None:
        """Raise MetadataFenced where another agent has the store. Costs no request: for ten
        seconds from each call on a heartbeat asks the store once a second."""
        self._strong_used_s = self._clock.now()
        if self._fenced is not None:
            error = self._fenced
            raise MetadataFenced(error.message, path=error.path, remedy=error.remedy)

    async def _heartbeat(self) -> None:
        while self._fenced is None:
            await asyncio.sleep(HEARTBEAT_S)
            if self._store is None or self._clock.now() - self._strong_used_s > STRONG_USE_S:
                continue
            try:
                await self._store.check_owner()
            except MetadataFenced as error:
                self._fence(error)
            except (TiercacheError, OSError) as error:
                # Nobody else can write to a store that cannot be asked; the committer shows it.
                log.debug("no heartbeat of the metadata store: %s", error)

    # -- attaching --------------------------------------------------------------------------

    def _attachment(self) -> Attachment | None:
        raw = self._index.get(records.META_ATTACHED)
        return None if raw is None else records.decode_attachment(raw)

    def _note_attachment(self, holder: str, identity: str, *, complete: bool) -> None:
        attachment = Attachment(holder, identity, complete)
        self._index.put(records.META_ATTACHED, records.encode(attachment))

    async def _attach(self, store: MetadataStore) -> None:
        """Find out who wrote last; import what others did, and keep for sending what the store
        never had."""
        assert self._outbox is not None
        known = self._attachment()
        is_ours = known is not None and known.identity == store.identity
        if known is None or not is_ours:
            self._complete = False
            known = Attachment(secrets.token_hex(8), store.identity, False)
            await self._send_all(store)
            self._note_attachment(known.holder, store.identity, complete=False)
        self._holder = known.holder
        writer = decode_writer(await store.get(WRITER_KEY))
        if not known.complete or writer != WriterRecord(known.holder, store.sequence):
            self._complete = False
            self.state = State.IMPORTING
            await self._import(store, self._outbox, authoritative=known.complete)
            self._note_attachment(known.holder, store.identity, complete=True)
        self._complete = True
        self.attached()
        await self._index.flush()
        self._attached = True
        self._wake.set()
        log.info("attached to the metadata store %s, %s", store.url, store.identity)

    async def _send_all(self, store: MetadataStore) -> None:
        """Put everything known here into the outbox: this store never had it. Listings of which
        it knows newer ones are left to the import."""
        spared = b""
        for letter in sorted(records.KNOWLEDGE, reverse=True):  # "t" before "s": parts first
            async for key, raw in self._index.walk(bytes([letter])):
                if letter == ord("l") and records.listing_part(key) == 0:
                    is_newer = await _knows_newer(store, key, raw)
                    spared = records.listing_hash_key(key) if is_newer else b""
                if (spared and key.startswith(spared)) or self._value(key) is None:
                    continue
                self._outbox_of().note(key)
                if self._outbox_of().noted >= SEND_ALL_KEYS:
                    await self._index.flush()

    def _outbox_of(self) -> Outbox:
        assert self._outbox is not None
        return self._outbox

    async def _import(self, store: MetadataStore, outbox: Outbox, *, authoritative: bool) -> None:
        importer = self._importer = Importer(self._index, outbox, store)
        try:
            await importer.small(b"p", authoritative=authoritative)
            self.imported_pins()
            await importer.small(b"j", authoritative=False)
            self.imported_jobs()
            await importer.quotas()
            await importer.listings()
            self._listed.set()
            # Parts first: nobody looks for them before the snapshot's record is there.
            await importer.small(b"t", authoritative=authoritative)
            await importer.small(b"s", authoritative=authoritative)
            await importer.objects()
        finally:
            self.damaged += importer.damaged
            self.imported += importer.imported
            self._importer = None
        log.info("imported %d records from the metadata store %s", importer.imported, store.url)

    # -- what is not imported yet -----------------------------------------------------------

    @property
    def is_partial(self) -> bool:
        """Whether the store may know what the index does not."""
        return not self._complete and self._fenced is None

    async def recall_object(self, digest: bytes) -> None:
        """Bring one name into the index where the store knows it; give up after a second."""
        if self._clock.now() >= self._paused_until_s:
            if not await self._recall(lambda importer: importer.object(digest), RECALL_S):
                self._paused_until_s = self._clock.now() + PAUSE_S

    async def recall(self, key: bytes) -> None:
        """Bring a name, or the listing with this first part, into the index where the store knows
        it, or else all listings, which it may follow from; for those who can ask nobody else."""

        async def ask(importer: Importer) -> None:
            await importer.one(key)
            if self._index.get(key) is None:
                await self._listed.wait()

        await self._recall(ask, LAST_RESORT_S)

    async def _recall(self, ask: Callable[[Importer], Awaitable[None]], within_s: float) -> bool:
        """Ask the store; return False where it had to be given up. One that has failed, and one
        that did not open in time, is not waited for."""
        late = self._store is None and self._clock.now() > self._started_s + within_s
        if late or not self.is_partial or self.state is State.UNAVAILABLE:
            return True
        try:
            async with asyncio.timeout(within_s):
                await self._opened.wait()
                assert self._store is not None
                importer = Importer(self._index, self._outbox_of(), self._store)
                await ask(importer)
                self.damaged += importer.damaged
        except (TimeoutError, TiercacheError, OSError) as error:
            log.info("the metadata store did not answer in time: %s", error)
            return False
        return True

    # -- committing -------------------------------------------------------------------------

    async def _commit_all(self, store: MetadataStore) -> None:
        """Commit what waits, in the order in which it was learnt, until nothing does."""
        outbox = self._outbox_of()
        while waiting := outbox.oldest(BATCH_KEYS):
            # From now on: what is learnt while its value of now is on its way waits again.
            outbox.sending(waiting)
            batch, taken = await self._batch(waiting)
            writer = WriterRecord(self._holder, store.sequence + 1)
            await store.commit({**batch, WRITER_KEY: encode_writer(writer)})
            self.commits += 1
            self.committed_keys += len(taken)
            self._committed_s = self._clock.now()
            for key, value in outbox.sent(taken).items():
                self._index.put(key, value)
            await self._index.flush()

    async def _batch(
        self, waiting: list[Waiting]
    ) -> tuple[dict[bytes, bytes | None], list[Waiting]]:
        batch: dict[bytes, bytes | None] = {}
        size_bytes = 0
        for number, entry in enumerate(waiting):
            value = self._value(entry.key)
            size_bytes += len(value or b"")
            if size_bytes > BATCH_BYTES and batch:
                return batch, waiting[:number]
            batch[entry.key] = value
            if number % TURN_KEYS == TURN_KEYS - 1:
                await asyncio.sleep(0)
        return batch, waiting

    def _value(self, key: bytes) -> bytes | None:
        raw = self._index.get(key)
        if raw is None:
            return None
        try:
            value = to_store(key, raw)
            if value is not None and len(value) > VALUE_BYTES:
                raise FormatError(f"{len(value)} bytes under {key!r}; {VALUE_BYTES} are allowed")
        except FormatError as error:
            self.damaged += 1
            log.warning("a record of the index is not committed: %s", error)
            return None
        return value

    # -- status -----------------------------------------------------------------------------

    def status(self) -> Mapping[str, Any]:
        """Return the status document's part, with the keys of docs/operations.md."""
        store = self._store
        running = self._importer.imported if self._importer is not None else 0
        age_s = self._clock.now() - self._committed_s
        return {
            "url": self._settings.url,
            "state": str(self.state),
            "identity": store.identity if store is not None else "",
            "sequence": store.sequence if store is not None else 0,
            "pending_keys": self._outbox.count if self._outbox is not None else 0,
            "commits": self.commits,
            "committed_keys": self.committed_keys,
            "last_commit_age_s": age_s if self.commits else None,
            "imported_records": self.imported + running,
            "damaged_records": self.damaged,
            "failures": self.failures,
            "problem": self.problem,
        }


async def _knows_newer(store: MetadataStore, key: bytes, raw: bytes) -> bool:
    """Return whether the store's listing under ``key`` is newer than ``raw``."""
    value = await store.get(key)
    if value is None:
        return False
    try:
        record, _ = to_index(key, value)
    except FormatError:
        return False
    known = records.decode_listing(raw)
    return isinstance(record, CatalogListing) and record.validated_unix_s > known.validated_unix_s
