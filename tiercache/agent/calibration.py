"""What this node delivers, measured once a cache directory: the rates that "auto" stands for.

READ is what processes of this node read of cached bytes through the page cache, 64 KiB at a time,
on all processors; WRITE what the device takes, synced. They are measured in a file of the cache
directory that is gone afterwards, within the cache's limit, a few times over, of which the best
counts: load only ever lowers them. What is too low all the same grows with what the node is seen
to deliver (``policy.node_rate``); ``tiercache qos calibrate`` measures anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from tiercache.agent import kept
from tiercache.clock import Clock
from tiercache.errors import TiercacheError
from tiercache.policy.node_rate import grown
from tiercache.policy.qos import Rates, Resource
from tiercache.units import MIB, format_bytes

log = logging.getLogger("tiercache.agent")

# More than the processors' caches of two cores, little beside any cache; a small one lends less.
FILE_BYTES = 32 * MIB
CAPACITY_SHARE = 32
# A reading of 0.1 s differs by ~5 % from the next one, on two cores; the best of three by less.
MEASURE_S = 0.1
ROUNDS = 3
BLOCK_BYTES = 64 * 1024
WRITE_BYTES = 4 * MIB
DIRECT_BYTES = 1 * MIB
# Threads share one interpreter: with more of them than this, it is what is measured.
MAX_THREADS = 8
MAX_FILE_BYTES = 16 * 1024
# Where nothing can be measured: a slow disk's rates, and of reading a tenth of what one core copies
# (8 µs for 64 KiB are 8 GB/s). Too low a rate makes reads wait; none at all would reserve nothing.
FALLBACK_READ = 800e6
FALLBACK_WRITE = 100e6

Reserve = Callable[[int], Coroutine[Any, Any, None]]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """``qos-calibration.json``: bytes a second. ``read`` and ``write`` have grown since where the
    node was seen to deliver more. ``direct_read`` is the device's own, past the page
    cache; 0.0 where that cannot be told. ``is_fallback``: nothing could be measured."""

    version: int = 1
    read: float
    write: float
    direct_read: float = 0.0
    measured_unix_s: float = 0.0
    is_fallback: bool = False


class Calibration:
    """Measures, remembers. ``reserve`` and ``release`` set room in the cache aside. Owned by the
    event loop; measuring is done on a thread."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        executor: Executor,
        reserve: Reserve,
        release: Callable[[int], None],
    ) -> None:
        self._path = path
        self._probe = path.with_name(f"{path.name}.probe")
        self._clock = clock
        self._executor = executor
        self._reserve = reserve
        self._release = release
        self._lock = asyncio.Lock()
        self.capacity_bytes = 0
        self.measured: Measured | None = None

    @property
    def rates(self) -> Rates:
        """What was measured; operations have no bound of their own, and what was not measured has
        none."""
        if self.measured is None:
            return inf, inf, inf
        return self.measured.read, self.measured.write, inf

    @property
    def measured_unix_s(self) -> float | None:
        return None if self.measured is None else self.measured.measured_unix_s

    def load(self) -> None:
        """Take over what was measured before; what cannot be read is measured anew. Blocks."""
        with contextlib.suppress(OSError):  # of an agent that was killed while it measured
            os.unlink(self._probe)
        with contextlib.suppress(TiercacheError, OSError, msgspec.DecodeError):
            data = kept.read(self._path, MAX_FILE_BYTES)
            if data is not None:
                found = msgspec.json.decode(data, type=Measured)
                self.measured = found if found.version == 1 else None

    async def measure(self) -> Measured:
        """Measure now, and remember it. Takes about a second. Raises nothing: where it cannot be
        measured a fallback is taken, and said to be one."""
        async with self._lock:
            room = min(FILE_BYTES, self.capacity_bytes // CAPACITY_SHARE) // WRITE_BYTES
            self.measured = await self._within(max(1, room) * WRITE_BYTES)
            await self._keep(self.measured)
            log.info("the node delivers %s", "; ".join(self.sentences()))
            return self.measured

    async def learn(self, delivered: Rates) -> bool:
        """Note what the node has delivered lately, in tokens a second; return whether its rates
        are others now."""
        async with self._lock:
            before = self.measured
            if before is None:
                return False
            read = grown(before.read, delivered=delivered[Resource.READ])
            write = grown(before.write, delivered=delivered[Resource.WRITE])
            if (read, write) == (before.read, before.write):
                return False
            self.measured = msgspec.structs.replace(before, read=read, write=write)
            await self._keep(self.measured)
            return True

    async def _keep(self, measured: Measured) -> None:
        data = msgspec.json.encode(measured)
        try:
            await self._on_thread(lambda: kept.publish(self._path, data))
        except OSError as error:
            log.warning("%s: measured again at the next start: %s", self._path, error)

    async def _within(self, size_bytes: int) -> Measured:
        try:
            await self._reserve(size_bytes)
            try:
                place = str(self._probe)
                read, write, direct = await self._on_thread(lambda: _measure(place, size_bytes))
            finally:
                self._release(size_bytes)
        except (TiercacheError, OSError) as error:
            log.warning("what the node delivers cannot be measured: %s", error)
            read, write, direct = 0.0, 0.0, 0.0
        return Measured(
            read=read or FALLBACK_READ,
            write=write or FALLBACK_WRITE,
            direct_read=direct,
            measured_unix_s=self._clock.unix(),
            is_fallback=not (read and write),
        )

    async def _on_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def sentences(self) -> list[str]:
        """Return what was measured in words."""
        measured = self.measured
        if measured is None:
            return ["nothing was measured yet"]
        sure = "assumed: nothing could be measured" if measured.is_fallback else "measured"
        found = [
            f"read {format_bytes(int(measured.read))}/s through the page cache, {sure}",
            f"write {format_bytes(int(measured.write))}/s, {sure}",
        ]
        if measured.direct_read:
            found.append(f"the device itself reads {format_bytes(int(measured.direct_read))}/s")
        return found


# -- on a thread ----------------------------------------------------------------------------


def _measure(path: str, size_bytes: int) -> tuple[float, float, float]:
    """Return the rates of reading, writing and direct reading, in bytes a second."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write = max(_write_rate(fd, size_bytes) for _ in range(ROUNDS))
        read = max(_read_rate(fd, size_bytes) for _ in range(ROUNDS))
        return read, write, max(_direct_rate(path, size_bytes) for _ in range(ROUNDS))
    finally:
        os.close(fd)
        os.unlink(path)


def _write_rate(fd: int, size_bytes: int) -> float:
    # Random: devices and file systems that compress would write zeros in no time.
    block = os.urandom(WRITE_BYTES)
    began, written = time.perf_counter(), 0
    while written < size_bytes or time.perf_counter() - began < MEASURE_S:
        written += os.pwrite(fd, block, written % size_bytes)
        if not written % size_bytes:
            os.fdatasync(fd)
    os.fdatasync(fd)
    return written / (time.perf_counter() - began)


def _read_rate(fd: int, size_bytes: int) -> float:
    """Return what all processors together read of the page cache."""
    threads_count = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    counts = [0] * threads_count
    stop = threading.Event()

    def read(number: int) -> None:
        buffer, blocks = bytearray(BLOCK_BYTES), size_bytes // BLOCK_BYTES
        block = blocks * number // threads_count
        while not stop.is_set():
            counts[number] += os.preadv(fd, [buffer], block % blocks * BLOCK_BYTES)
            block += 1

    threads = [
        threading.Thread(target=read, args=(number,), daemon=True)
        for number in range(threads_count)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(MEASURE_S)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _direct_rate(path: str, size_bytes: int) -> float:
    """Return what the device reads by itself, one request at a time; 0.0 where it does not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        with _aligned(DIRECT_BYTES) as buffer:
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < MEASURE_S:
                done += os.preadv(fd, [buffer], done % size_bytes)
            return done / (time.perf_counter() - began)
    except OSError:
        return 0.0
    finally:
        os.close(fd)


@contextlib.contextmanager
def _aligned(size_bytes: int) -> Iterator[memoryview]:
    with mmap.mmap(-1, size_bytes) as mapping, memoryview(mapping) as view:
        yield view
