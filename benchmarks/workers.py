"""What runs in processes of its own: many readers at once, first touches.

Workers import what they measure and little else: what this module imports is paid by all of them.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from benchmarks import patterns, sampler
from benchmarks import processes as kernel
from benchmarks.contenders.contender import AsyncReader, Object, Reader, Recipe
from benchmarks.harness import Measured
from benchmarks.workload import Access

if TYPE_CHECKING:
    from tiercache.settings import Settings

WORKER_TIMEOUT_S = 120.0
READ_BLOCK = 64 * 1024
# Reads between two looks at the clock, and how many such batches differ: 256 MiB of places do not
# fit into a processor's cache.
BATCH_READS = 256
BATCHES = 16
# Places that a process works out ahead, in 0.1 s. A run that goes on for seconds reads them again
# where it may: 65,536 places of 64 KiB are sixteen times what the largest data set here has.
PLACES = 1 << 16
# What readers do before the clock starts: read all that will come, or the first bytes of some
# objects; anything else is the key of an object to read instead.
WARM_ALL = "<all>"
WARM_FIRSTS = "<firsts>"
FIRSTS_OBJECTS = 64
FIRSTS_BYTES = 4096


class WorkerFailed(RuntimeError):
    """A worker raised, died or did not answer in time; the message says what it said last."""


class _Failure(NamedTuple):
    said: str


def together(
    work: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    method: Literal["spawn", "fork"] = "spawn",
    timeout_s: float = WORKER_TIMEOUT_S,
) -> list[Any]:
    """Run ``work(barrier, *arguments)`` in one new process for each, and return what they
    returned. All pass the barrier at once. Raises WorkerFailed; none is left running. A process
    that forks must have no threads."""
    context: ForkContext | SpawnContext = (
        multiprocessing.get_context("fork")
        if method == "fork"
        else multiprocessing.get_context("spawn")
    )
    barrier = context.Barrier(len(arguments))
    pipes, processes = [], []
    try:
        for one in arguments:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_worker, args=(theirs, work, barrier, one), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        answers = _received(pipes, timeout_s)
        for process in processes:
            process.join(timeout=5)
        return answers
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()


def _received(pipes: list[Connection], timeout_s: float) -> list[Any]:
    """Return one answer of each. The first that dies ends the wait: the others would stand at the
    barrier for ever."""
    deadline = time.monotonic() + timeout_s
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        waiting = [pipe for number, pipe in enumerate(pipes) if number not in answers]
        ready = multiprocessing.connection.wait(waiting, deadline - time.monotonic())
        if not ready:
            left = len(pipes) - len(answers)
            raise WorkerFailed(f"{left} of {len(pipes)} workers had no answer in {timeout_s:g} s")
        for number, pipe in enumerate(pipes):
            if pipe in ready:
                answers[number] = _answer(pipe)
    return [answers[number] for number in range(len(pipes))]


def _answer(pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise WorkerFailed("a benchmark worker died without a word") from None
    if isinstance(answer, _Failure):
        raise WorkerFailed(answer.said)
    return answer


def _worker(
    pipe: Connection, work: Callable[..., Any], barrier: Any, arguments: tuple[Any, ...]
) -> None:
    with pipe:
        try:
            answer = work(barrier, *arguments)
        except BaseException as error:
            cause = error.__cause__ or error
            pipe.send(_Failure(f"{type(cause).__name__}: {cause}"))
            raise
        pipe.send(answer)


# -- the reading worker -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a point of a reading workload asks of all its workers together.

    ``operations`` are shared out among all threads; 0 means as many as ``seconds`` allow, or as
    ``again`` (patterns.places) leaves. ``warm`` is WARM_ALL, WARM_FIRSTS, or the key of an object
    outside the data set.
    """

    recipe: Recipe
    objects: tuple[Object, ...]
    access: Access
    threads: int
    processes: int
    operations: int
    seconds: float
    again: bool
    seed: int
    warm: str


class Part(NamedTuple):
    """What one process did. Times are of the clock that all processes share."""

    started: float
    ended: float
    measured: Measured


# One read, as a thread walks through it: key, offset, length.
_Read = tuple[str, int, int]


def read(task: Task) -> Measured:
    """Run the workers of a task and return what they did together."""
    arguments = [(task, number) for number in range(task.processes)]
    parts: list[Part] = together(carry_out, arguments)
    counts = [part.measured for part in parts]
    histogram = sampler.histogram()
    for one in counts:
        histogram.decode_and_add(one.histogram)
    return Measured(
        seconds=max(part.ended for part in parts) - min(part.started for part in parts),
        operations=sum(one.operations for one in counts),
        bytes=sum(one.bytes for one in counts),
        histogram=histogram.encode(),
        cpu_s={"reader": sum(one.cpu_s["reader"] for one in counts)},
        rss_bytes={"reader": sum(one.rss_bytes["reader"] for one in counts)},
        device_read_bytes=sum(one.device_read_bytes for one in counts),
    )


def carry_out(barrier: Any, task: Task, process: int) -> Part:
    """Work as one of the task's processes."""
    reader = task.recipe.make(*task.recipe.arguments)
    plans = [_plan(task, process * task.threads + thread) for thread in range(task.threads)]
    if hasattr(reader, "read_async"):
        import uvloop

        return uvloop.run(_reading_async(barrier, task, cast(AsyncReader, reader), plans))
    try:
        return _reading(barrier, task, reader, plans)
    finally:
        reader.close()


def _plan(task: Task, worker: int) -> list[_Read]:
    """Return what one thread reads: worked out before, since a pattern costs more than a hit."""
    workers = task.processes * task.threads
    found = patterns.places(
        task.access,
        [one.length for one in task.objects],
        patterns.Share(worker, workers),
        seed=task.seed,
        again=task.again,
    )
    share = task.operations * (worker + 1) // workers - task.operations * worker // workers
    count = share if task.operations else PLACES // task.threads
    keys = [one.key for one in task.objects]
    return [
        (keys[index], offset, length) for index, offset, length in itertools.islice(found, count)
    ]


def _warming(task: Task, plan: Sequence[_Read]) -> Iterator[_Read]:
    """Yield what to read before the clock starts. It goes on for twice the run's time at most: a
    slow contender then finds warm what it gets to."""
    if task.warm not in (WARM_ALL, WARM_FIRSTS):
        yield task.warm, 0, READ_BLOCK
        return
    if task.warm == WARM_FIRSTS:
        firsts = {key: length for key, _, length in plan}
        for key in itertools.islice(firsts, FIRSTS_OBJECTS):
            yield key, 0, min(FIRSTS_BYTES, firsts[key])
        return
    deadline = time.monotonic() + 2 * task.seconds
    for one in dict.fromkeys(plan):
        yield one
        if time.monotonic() > deadline:
            return


class _Usage:
    """What this process takes from now on."""

    def __init__(self) -> None:
        self._cpu_s = kernel.own_cpu_s()
        self._device = kernel.device_read_bytes(os.getpid()) or 0
        self.started = time.perf_counter()

    def part(self, plans: Sequence[Sequence[_Read]], stamps: Sequence[list[int]]) -> Part:
        """Return what was done since, from each thread's times: its start, then each end."""
        ended = time.perf_counter()
        cpu_s = kernel.own_cpu_s() - self._cpu_s
        device = (kernel.device_read_bytes(os.getpid()) or 0) - self._device
        counts = [len(one) - 1 for one in stamps]
        lengths = (
            length
            for plan, count in zip(plans, counts, strict=True)
            for _, _, length in itertools.islice(itertools.cycle(plan), count)
        )
        measured = Measured(
            seconds=ended - self.started,
            operations=sum(counts),
            bytes=sum(lengths),
            histogram=_histogram(stamps),
            cpu_s={"reader": cpu_s},
            rss_bytes={"reader": kernel.own_peak_rss_bytes()},
            device_read_bytes=device,
        )
        return Part(self.started, ended, measured)


def _reading(barrier: Any, task: Task, reader: Reader, plans: Sequence[Sequence[_Read]]) -> Part:
    stamps: list[list[int]] = [[] for _ in plans]
    failed: list[BaseException] = []
    ready = threading.Barrier(task.threads + 1)
    go = threading.Event()
    threading.excepthook = lambda _: None  # the first is told below, sixty-four would be noise

    def walk(thread: int) -> None:
        for key, offset, length in _warming(task, plans[thread]):
            reader.read(key, offset, length)
        ready.wait()
        go.wait()
        _walk(reader, _endless(task, plans[thread]), stamps[thread], _limit_ns(task))

    def top(thread: int) -> None:
        try:
            walk(thread)
        except BaseException as error:
            failed.append(error)
            ready.abort()
            raise

    threads = [
        threading.Thread(target=top, args=(number,), daemon=True) for number in range(task.threads)
    ]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        barrier.wait()
        usage = _Usage()
        go.set()
        for thread in threads:
            thread.join()
    except threading.BrokenBarrierError:
        pass  # a thread failed while it warmed up: told below
    if failed:
        raise RuntimeError("a reading thread failed") from failed[0]
    return usage.part(plans, stamps)


def _endless(task: Task, plan: Sequence[_Read]) -> Iterator[_Read]:
    """Return the plan, again and again where the run is limited by time alone."""
    return itertools.cycle(plan) if task.again and not task.operations else iter(plan)


def _limit_ns(task: Task) -> int:
    """Return how long the timed part may take; with operations it takes what they take."""
    return int((WORKER_TIMEOUT_S if task.operations else task.seconds) * 1e9)


def _walk(reader: Reader, plan: Iterator[_Read], stamps: list[int], limit_ns: int) -> None:
    # One look at the clock and one append a read: 0.1 µs. What lies between two stamps is one
    # read and this loop.
    read, now, stamp = reader.read, time.perf_counter_ns, stamps.append
    at = now()
    end = at + limit_ns
    stamp(at)
    for key, offset, length in plan:
        read(key, offset, length)
        at = now()
        stamp(at)
        if at >= end:
            return


async def _reading_async(
    barrier: Any, task: Task, reader: AsyncReader, plans: Sequence[Sequence[_Read]]
) -> Part:
    stamps: list[list[int]] = [[] for _ in plans]
    limit_ns = _limit_ns(task)

    async def warm(plan: Sequence[_Read]) -> None:
        for key, offset, length in _warming(task, plan):
            await reader.read_async(key, offset, length)

    async def walk(plan: Iterator[_Read], stamp: Callable[[int], None]) -> None:
        read, now = reader.read_async, time.perf_counter_ns
        at = now()
        end = at + limit_ns
        stamp(at)
        for key, offset, length in plan:
            await read(key, offset, length)
            at = now()
            stamp(at)
            if at >= end:
                return

    try:
        await asyncio.gather(*(warm(plan) for plan in plans))
        barrier.wait()
        usage = _Usage()
        await asyncio.gather(
            *(
                walk(_endless(task, plan), mine.append)
                for plan, mine in zip(plans, stamps, strict=True)
            )
        )
        return usage.part(plans, stamps)
    finally:
        await reader.close_async()


def _histogram(stamps: Sequence[list[int]]) -> bytes:
    histogram = sampler.histogram()
    counted = collections.Counter(
        late - early for one in stamps for early, late in itertools.pairwise(one)
    )
    for value, count in counted.items():
        histogram.record_value(min(max(value, sampler.LOWEST_NS), sampler.HIGHEST_NS), count)
    encoded: bytes = histogram.encode()
    return encoded


# -- first touches, and readers that count only their rate --------------------------------------


def first_touch(barrier: Any, settings: Settings, warm: list[str], paths: list[str]) -> float:
    """Read each small object for the first time in this process; return seconds."""
    from tiercache.namespace import Namespace

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
    from tiercache.namespace import Namespace

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
