"""What is asked of a metadata store, in a process of its own.

An engine belongs to one event loop, and SlateDB's library starts threads that no fork survives;
so a ``Trainer`` runs these functions, one after the other, and what they open stays open between
them. Floors take part by the same door: something with a ``commit`` that is the least an engine
can do.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import obstore
import uvloop

from benchmarks import page_cache
from benchmarks.harness import Measured
from benchmarks.sampler import encoded
from tiercache import catalog, records
from tiercache.cloud.obstore_stores import build_store
from tiercache.errors import MetadataFenced, MetadataUnavailable
from tiercache.metadata.open import open_metadata
from tiercache.model import Kind
from tiercache.policy.urls import OriginUrl, parse_metadata_url
from tiercache.settings import MetadataSettings, ProfileSettings
from tiercache.testing.memory_metadata import MemoryMetadata
from tiercache.testing.object_servers import S3Server

ORIGIN = "s3://bench"
FILL_RECORDS = 2_000
FILLS_IN_FLIGHT = 4
SHUFFLED = 10_000  # names to draw from: more than are read in a round over any network
READ_BYTES = 4096  # of a floor: a block of a table, or a page of a tree
OLD_LIMIT_S = 30.0  # an agent that has been replaced is told by then
T = TypeVar("T")


class Store(NamedTuple):
    """How to open one, by ``url`` and the endpoint of its object store; ``kind`` is an engine of
    the product, the fake in memory, or a floor: an append with fdatasync, or objects by obstore."""

    kind: Literal["engine", "memory", "append", "objects"]
    url: str = ""
    endpoint: str = ""

    @property
    def profile(self) -> ProfileSettings:
        return S3Server(self.endpoint).profile("metadata")


class Task(NamedTuple):
    """Commits of ``records`` new names each, ``at_once`` in flight, or reads: until ``seconds``
    have passed and ``operations`` are done."""

    seconds: float
    operations: int
    records: int = 1
    at_once: int = 1


# -- of this process ------------------------------------------------------------------------

_stores: dict[Store, Any] = {}
_numbers = itertools.count()
_fresh: list[bytes] = []
_loop: list[asyncio.AbstractEventLoop] = []


def _run(work: Coroutine[Any, Any, T]) -> T:
    if not _loop:
        _loop.append(uvloop.new_event_loop())
    return _loop[0].run_until_complete(work)


def open_store(store: Store) -> Measured:
    """Open and keep it; return how long that took."""
    started = time.perf_counter_ns()
    _stores[store] = _run(_opened(store))
    return _measured([time.perf_counter_ns() - started])


async def _opened(store: Store) -> Any:
    match store.kind:
        case "engine":
            settings = MetadataSettings(url=store.url, profile=store.profile.name)
            return await open_metadata(settings, {store.profile.name: store.profile})
        case "memory":
            return MemoryMetadata()
        case "append":
            return Append(store.url)
        case "objects":
            return Objects(store)


def close_store(store: Store) -> None:
    _run(_stores.pop(store).close())


def abandon(store: Store) -> None:
    """Close what another has taken over: it may have found that out itself."""
    try:
        close_store(store)
    except (MetadataFenced, MetadataUnavailable):
        return


# -- records --------------------------------------------------------------------------------


def name_of(number: int) -> str:
    return f"data/{number // 1000:04}/{number:07}.bin"


def pair(number: int) -> tuple[bytes, bytes]:
    """Return a catalog record's key and value: ~30 and ~120 bytes, in no order of names."""
    name = name_of(number)
    found = catalog.CatalogRecord(
        origin=ORIGIN,
        key=name,
        kind=Kind.FILE,
        token=f"{number:032x}",
        size_bytes=65_536,
        mtime_s=1.7e9 + number,
        validated_unix_s=1.8e9,
    )
    return records.object_key(records.name_hash(ORIGIN, name)), catalog.encode(found)


def fill(store: Store, count: int) -> int:
    """Commit so many names, in groups as the agent's outbox does; return the records' bytes."""

    async def filling() -> int:
        gate = asyncio.Semaphore(FILLS_IN_FLIGHT)
        total = 0

        async def one(first: int) -> None:
            nonlocal total
            async with gate:
                batch = dict(map(pair, range(first, min(count, first + FILL_RECORDS))))
                total += sum(len(key) + len(value) for key, value in batch.items())
                await _stores[store].commit(batch)

        await asyncio.gather(*(one(first) for first in range(0, count, FILL_RECORDS)))
        await _stores[store].flush()
        return total

    return _run(filling())


# -- what is measured -----------------------------------------------------------------------


def commits(store: Store, task: Task) -> Measured:
    """Commit names that no one has seen. Making the records is not part of the time, except
    where several commits are under way."""
    opened = _stores[store]
    seen = 1 << 40  # beyond what ``fill`` has made

    def batches() -> Iterator[dict[bytes, bytes]]:
        while True:
            yield dict(pair(seen + next(_numbers)) for _ in range(task.records))

    return _run(_paced(task, batches(), opened.commit))


def remember(store: Store, count: int) -> None:
    """Commit so many names, which ``reads`` gets then where it is given none."""
    fresh = dict(pair((1 << 41) + next(_numbers)) for _ in range(count))
    _run(_stores[store].commit(fresh))
    _fresh[:] = fresh


def reads(store: Store, task: Task, names: int, seed: int) -> Measured:
    """Get random names of the first ``names``, no name twice before all were; of 0: those of
    ``remember``."""
    rng = random.Random(seed)
    order = [pair(number)[0] for number in rng.sample(range(names), min(names, SHUFFLED))]
    opened = _stores[store]

    async def get(key: bytes) -> None:
        if await opened.get(key) is None:
            raise LookupError(f"a record is not there: {key!r}")

    return _run(_paced(task, itertools.cycle(order or _fresh), get))


async def _paced(
    task: Task, items: Iterator[T], work: Callable[[T], Awaitable[object]]
) -> Measured:
    took = array("q")
    now = time.perf_counter_ns
    begun = now()
    end = begun + int(task.seconds * 1e9)

    async def worker() -> None:
        while now() < end or len(took) < task.operations:
            item = next(items)
            started = now()
            await work(item)
            took.append(now() - started)

    await asyncio.gather(*(worker() for _ in range(task.at_once)))
    alone = task.at_once == 1
    return _measured(took, seconds=sum(took) / 1e9 if alone else (now() - begun) / 1e9)


def scan(store: Store, prefix: bytes, expected: int) -> Measured:
    """Read all records below a prefix, from the first to the last."""

    async def scanning() -> int:
        return sum([1 async for _ in _stores[store].scan(prefix)])

    started = time.perf_counter_ns()
    found = _run(scanning())
    took = time.perf_counter_ns() - started
    if found < expected:
        raise LookupError(f"{found} of {expected} records")
    return Measured(seconds=took / 1e9, operations=found)


def drop_pages(folder: str) -> None:
    """Let the next reads of a volume come from the device."""
    page_cache.drop_below(Path(folder))


def _measured(took_ns: Any, *, seconds: float | None = None) -> Measured:
    return Measured(
        seconds=sum(took_ns) / 1e9 if seconds is None else seconds,
        operations=len(took_ns),
        histogram=encoded(took_ns),
    )


# -- a takeover -----------------------------------------------------------------------------


class Takeover(NamedTuple):
    """Times of ``time.monotonic``, one clock for all processes."""

    begun_s: float
    opened_s: float
    committed_s: float


def take_over(store: Store) -> Takeover:
    """Open a store that another has, or had, and commit to it. One that is being given up at
    this moment is asked for again."""
    begun_s = time.monotonic()
    while True:
        try:
            open_store(store)
            break
        except MetadataUnavailable:
            if time.monotonic() > begun_s + OLD_LIMIT_S:
                raise
    opened_s = time.monotonic()
    _run(_stores[store].commit(dict([pair((1 << 42) + next(_numbers))])))
    return Takeover(begun_s, opened_s, time.monotonic())


def commit_until_fenced(store: Store, pause_s: float) -> float:
    """Commit again and again; return when it was told that another has taken over. Raises
    TimeoutError."""

    async def until() -> float:
        async with asyncio.timeout(OLD_LIMIT_S):
            while True:
                try:
                    await _stores[store].commit(dict([pair((1 << 43) + next(_numbers))]))
                except MetadataFenced:
                    return time.monotonic()
                except MetadataUnavailable:
                    pass  # it does not know yet
                await asyncio.sleep(pause_s)

    return _run(until())


# -- floors ---------------------------------------------------------------------------------


class Append:
    """The least that makes a commit durable on a block device: the bytes, and fdatasync."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    async def commit(self, batch: Mapping[bytes, bytes]) -> None:
        os.write(self._fd, _joined(batch))
        os.fdatasync(self._fd)

    async def get(self, key: bytes) -> bytes | None:
        """Read a random page of what was written."""
        end = os.fstat(self._fd).st_size - READ_BYTES
        return os.pread(self._fd, READ_BYTES, random.randrange(end) if end > 0 else 0)

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        os.close(self._fd)


class Objects:
    """The least that makes a commit durable in an object store: one PUT; and one GET."""

    def __init__(self, store: Store) -> None:
        url = parse_metadata_url(store.url)
        assert isinstance(url, OriginUrl)
        self._store: Any = (
            obstore.store.LocalStore(url.bucket, mkdir=True)
            if url.scheme == "file"
            else build_store(url, store.profile)
        )
        self._prefix = url.key_prefix
        self._last = ""

    async def commit(self, batch: Mapping[bytes, bytes]) -> None:
        name = f"{self._prefix}{next(_numbers):09}"
        await obstore.put_async(self._store, name, _joined(batch), use_multipart=False)
        self._last = name

    async def get(self, key: bytes) -> bytes | None:
        found = await obstore.get_range_async(self._store, self._last, start=0, length=READ_BYTES)
        return bytes(found)

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return


def _joined(batch: Mapping[bytes, bytes]) -> bytes:
    return b"".join(itertools.chain.from_iterable(batch.items()))
