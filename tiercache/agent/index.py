"""The index as the agent sees it: one writer, group commits, and its own writes visible at once.

``put`` is immediate in memory; ``flush`` returns when everything put before it is durable. All
flushes that arrive while a commit runs share the next one, so that a thousand small fills cost
tens of commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor

from tiercache import records
from tiercache.agent.outbox import Outbox
from tiercache.ports import IndexStore
from tiercache.records import ExtentRecord, ObjectRecord

# ~1 ms of decoding between two turns of the event loop.
WALK_BATCH = 1000
# Object records kept decoded, ~600 B each: a fill asks for its record four times, and each look-up
# in the store lets another thread take the interpreter.
KEPT_OBJECTS = 8192
_OBJECT = records.object_key(b"")


class Index:
    """Owned by the event loop; only ``IndexStore.commit`` runs on the executor."""

    def __init__(self, store: IndexStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._pending: dict[bytes, bytes | None] = {}
        self._committing: dict[bytes, bytes | None] = {}
        self._waiting: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._objects: dict[bytes, ObjectRecord] = {}
        self._size_bytes = store.size_bytes()
        self.commits = 0
        # Called before each commit, for what must be in it: sums of what it changes.
        self.before_commit: Callable[[], None] = lambda: None
        # Where there is a metadata store: what it is to be told
        self.outbox: Outbox | None = None

    def keep_outbox(self) -> Outbox:
        """From now on note for a metadata store what is learnt."""
        self.outbox = Outbox(self.get, self._store)
        return self.outbox

    def get(self, key: bytes) -> bytes | None:
        if key in self._pending:
            return self._pending[key]
        if key in self._committing:
            return self._committing[key]
        return self._store.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """None deletes. A change of what is known of names is knowledge, but for ``put_object``."""
        self.adopt(key, value)
        if self.outbox is not None and key[0] in records.KNOWLEDGE:
            self.outbox.note(key)

    def adopt(self, key: bytes, value: bytes | None) -> None:
        """Put what nobody else need be told: the metadata store itself said it."""
        if key.startswith(_OBJECT):
            self._objects.pop(key, None)
        self._pending[key] = value

    def get_object(self, digest: bytes) -> ObjectRecord | None:
        key = records.object_key(digest)
        record = self._objects.get(key)
        if record is None:
            raw = self.get(key)
            if raw is not None:
                record = self._keep(key, records.decode_object(raw))
        return record

    def learn_object(self, digest: bytes, record: ObjectRecord) -> None:
        """Put what was learnt of a name."""
        self.put_object(digest, record)
        if self.outbox is not None:
            self.outbox.note(records.object_key(digest))

    def put_object(self, digest: bytes, record: ObjectRecord) -> None:
        """Put a record of which nothing has changed but where its bytes lie."""
        key = records.object_key(digest)
        self._pending[key] = records.encode(record)
        self._keep(key, record)

    def _keep(self, key: bytes, record: ObjectRecord) -> ObjectRecord:
        if len(self._objects) >= KEPT_OBJECTS:
            self._objects.clear()
        self._objects[key] = record
        return record

    def put_extent(self, extent_id: int, record: ExtentRecord) -> None:
        self._pending[records.extent_key(extent_id)] = records.encode(record)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield all pairs under ``prefix``, own uncommitted writes included, in key order."""
        overlay = {
            key: value
            for layer in (self._committing, self._pending)
            for key, value in layer.items()
            if key.startswith(prefix)
        }
        stored = dict(self._store.scan(prefix)) if overlay else None
        if stored is None:
            yield from self._store.scan(prefix)
            return
        for key in sorted(stored.keys() | overlay.keys()):
            value = overlay[key] if key in overlay else stored[key]
            if value is not None:
                yield key, value

    def first(self, prefix: bytes, start: bytes) -> bytes | None:
        """Return the first key under ``prefix`` from ``start`` on."""
        candidates = [key for key in self._uncommitted() if key >= start and key.startswith(prefix)]
        for key, _ in self._store.scan(prefix, start=start):
            if self.get(key) is not None:
                candidates.append(key)
                break
        return min((key for key in candidates if self.get(key) is not None), default=None)

    async def walk(self, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the same in batches, letting others run between them. What changes meanwhile may
        be seen as it was or as it is."""
        start = prefix
        while True:
            batch = list(self._store.scan(prefix, start=start, limit=WALK_BATCH))
            for key, _ in batch:
                value = self.get(key)
                if value is not None:
                    yield key, value
            if len(batch) < WALK_BATCH:
                break
            start = batch[-1][0] + b"\0"
            await asyncio.sleep(0)
        stored = self._store.get
        for key in [k for k in self._uncommitted() if k.startswith(prefix)]:
            value = self.get(key)
            if value is not None and stored(key) is None:
                yield key, value

    def _uncommitted(self) -> set[bytes]:
        return self._committing.keys() | self._pending.keys()

    def delete_prefix(self, prefix: bytes) -> None:
        self.delete_all([key for key, _ in self.scan(prefix)])

    def delete_all(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.put(key, None)

    def size_bytes(self) -> int:
        """Return what the store occupied after the last commit: nothing else makes it grow."""
        return self._size_bytes

    @property
    def is_durable(self) -> bool:
        """Whether nothing was put since the last commit, and none is running."""
        noted = self.outbox is not None and self.outbox.noted > 0
        return not self._pending and not noted and self._task is None

    async def flush(self) -> None:
        """Return when all puts so far are durable. Raises what the commit raised; the writes stay
        pending then, visible to the agent, and go with the next commit."""
        if self.is_durable:
            return
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        waiting = self._waiting
        if self._task is None:
            self._task = asyncio.create_task(self._commit_loop())
        await asyncio.shield(waiting)

    async def _commit_loop(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self.before_commit()
                entries = self.outbox.entries() if self.outbox is not None else {}
                self._pending.update(entries)
                self._committing, self._pending = self._pending, {}
                if not self._committing:
                    waiting.set_result(None)
                    continue
                try:
                    await loop.run_in_executor(self._executor, self._store.commit, self._committing)
                    self._size_bytes = self._store.size_bytes()
                except Exception as error:  # any failure belongs to the waiters, who count it
                    self._pending = self._committing | self._pending
                    self._committing = {}
                    waiting.set_exception(error)
                    waiting.exception()  # retrieved, also when every waiter was cancelled
                    continue
                self._committing = {}
                self.commits += 1
                waiting.set_result(None)
                if entries and self.outbox is not None:
                    self.outbox.on_entries()
        finally:
            self._task = None
