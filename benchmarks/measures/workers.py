"""What runs in processes of its own: first touches, many readers at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.lab import READ_BLOCK
from tiercache.namespace import Namespace
from tiercache.settings import Settings

WORKER_TIMEOUT_S = 120.0
# Reads between two looks at the clock, and how many such batches differ: 256 MiB of places do not
# fit into a processor's cache.
BATCH_READS = 256
BATCHES = 16


def together(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run ``work(barrier, *arguments)`` in one spawned process for each, and return what they
    returned. All pass the barrier at once. Raises RuntimeError where one fails."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments))
    pipes, processes = [], []
    for one in arguments:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(theirs, work, barrier, one), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        return [_receive(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(WORKER_TIMEOUT_S):
        raise RuntimeError("a benchmark worker did not answer")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a benchmark worker died; its traceback is above") from None


def _worker(
    pipe: Connection, work: Callable[..., Any], barrier: Any, arguments: tuple[Any, ...]
) -> None:
    with pipe:
        pipe.send(work(barrier, *arguments))


def first_touch(barrier: Any, settings: Settings, warm: list[str], paths: list[str]) -> float:
    """Read each small object for the first time in this process; return seconds."""
    with Namespace(settings) as namespace:
        for path in warm:  # imports, the connection, Python's own first calls
            namespace.read(path, 0, READ_BLOCK)
        barrier.wait()
        read = namespace.read
        started = time.perf_counter()
        for path in paths:
            read(path, 0, READ_BLOCK)
        return time.perf_counter() - started


def first_touch_plain(barrier: Any, warm: list[str], files: list[str]) -> float:
    """The same over plain files: open, pread, close."""

    def read(file: str) -> None:
        fd = os.open(file, os.O_RDONLY)
        os.pread(fd, READ_BLOCK, 0)
        os.close(fd)

    for file in warm:
        read(file)
    barrier.wait()
    started = time.perf_counter()
    for file in files:
        read(file)
    return time.perf_counter() - started


def reading(barrier: Any, settings: Settings, path: str, length: int, seconds: float) -> float:
    """Read 64 KiB blocks at random for some seconds; return reads a second."""
    with Namespace(settings) as namespace:
        namespace.read(path)
        read = namespace.read

        def batch(places: list[int]) -> None:
            for place in places:
                read(path, place, READ_BLOCK)

        return _rate(barrier, batch, length, seconds)


def reading_plain(barrier: Any, file: str, length: int, seconds: float) -> float:
    """The same by os.pread."""
    fd = os.open(file, os.O_RDONLY)
    try:

        def batch(places: list[int]) -> None:
            pread = os.pread
            for place in places:
                pread(fd, READ_BLOCK, place)

        return _rate(barrier, batch, length, seconds)
    finally:
        os.close(fd)


def _rate(barrier: Any, batch: Callable[[list[int]], None], length: int, seconds: float) -> float:
    rng = random.Random(os.getpid())
    batches = [
        [rng.randrange(length // READ_BLOCK) * READ_BLOCK for _ in range(BATCH_READS)]
        for _ in range(BATCHES)
    ]
    batch(batches[0])
    barrier.wait()
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        batch(batches[count % BATCHES])
        count += 1
    return count * BATCH_READS / spent
