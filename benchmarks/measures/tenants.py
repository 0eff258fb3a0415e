"""Tenants of one node: a training job, a prefetch, a notebook and a writer, alone and at once."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import patterns, sampler
from benchmarks import processes as kernel
from benchmarks.contenders.contender import Object
from benchmarks.harness import Figure, Measured, Missing, Outcome, Role, Sample, ratio
from benchmarks.lab import Lab, path_of, settle
from benchmarks.registry import measure
from benchmarks.trainer import Trainer
from benchmarks.workload import Access, Dataset, Workload
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.units import MIB

UNIT = "MB/s"
# Between the word and the first operation: every process is at its clock by then.
LEAD_S = 0.3
HOT, PREFETCH, COLD, WRITE = "hot reads", "prefetch", "cold reads", "writes"
PLACES = 1 << 15
WARM_BYTES = 8 * MIB  # of one read while the clock does not run: little memory


class Task(NamedTuple):
    """What one tenant does from ``begin_s`` of ``time.monotonic`` on, for ``seconds``. ``seed``
    differs from turn to turn: cold places are not read twice."""

    settings: Settings
    objects: Sequence[Object]
    block_bytes: int
    seed: int
    begin_s: float = 0.0
    seconds: float = 0.0


class Tenant(NamedTuple):
    """``work`` runs in the tenant's own process; ``prepare`` before each turn, here."""

    name: str
    work: Callable[[Task], Measured]
    objects: Sequence[Object]
    prepare: Callable[[], None]


@measure("tenants")
def tenants(lab: Lab, workload: Workload) -> Outcome:
    """Each tenant alone, then all at once, for ``seconds`` each. A tenant's throughput alone is
    its bound. The number is the worst a neighbour can fear: the p99 of hot reads."""
    with ExitStack() as stack:
        namespace = stack.enter_context(lab.namespace())
        there = _tenants(lab, workload, namespace)
        trainers = {one.name: stack.enter_context(Trainer()) for one in there}
        town = _Town(lab=lab, workload=workload, namespace=namespace, trainers=trainers)
        alone: dict[str, list[Measured]] = {one.name: [] for one in there}
        together: dict[str, list[Measured]] = {one.name: [] for one in there}
        for _ in range(workload.load.rounds):
            for one in there:
                alone[one.name].extend(town.turn([one]))
            for one, measured in zip(there, town.turn(there), strict=True):
                together[one.name].append(measured)
    figures = [
        figure
        for one in there
        for figure in (
            _figure(one.name, "alone", "bound", alone[one.name]),
            _figure(one.name, "together", "ours", together[one.name]),
        )
    ]
    return Outcome(
        figures=tuple(figures),
        missing=(
            Missing(
                name="rivals",
                why="none has an agent that all tenants share: s3fs and plain files at once would "
                "measure the server and the kernel, and say nothing of a cache",
            ),
        ),
        numbers=_numbers(figures),
        sizes={"seconds_a_turn": int(workload.load.seconds), "rounds": workload.load.rounds},
        notes=(
            "÷ bound is each tenant's throughput together ÷ alone; µs are of single operations: a "
            "read, a prefetched object, a written object",
            "the tenants' own processes are counted as readers; the agent's CPU is all tenants' "
            "and stands with none of them",
        ),
    )


def _tenants(lab: Lab, workload: Workload, namespace: Namespace) -> list[Tenant]:
    (hot,) = lab.objects(workload.dataset)
    large = lab.objects(_dataset(workload, "prefetch", "64MiB"))
    cold = lab.objects(_dataset(workload, "cold", "32MiB"))

    def fill() -> None:
        namespace.prefetch(path_of(hot.key), background=False).wait()

    def evict(objects: Sequence[Object]) -> None:
        for one in objects:
            namespace.evict(path_of(one.key))

    written = Object("tenants-written", workload.option("written_bytes", 4 * MIB))
    return [
        Tenant(HOT, read_hot, [hot], fill),
        Tenant(PREFETCH, prefetch, large, lambda: evict(large)),
        Tenant(COLD, read_cold, cold, lambda: evict(cold)),
        Tenant(WRITE, write, [written], lambda: evict([written])),
    ]


def _dataset(workload: Workload, name: str, default: str) -> Dataset:
    return Dataset(
        count=workload.option(f"{name}_objects", 8),
        bytes=str(workload.options.get(f"{name}_bytes", default)),
    )


@dataclass(slots=True, kw_only=True)
class _Town:
    lab: Lab
    workload: Workload
    namespace: Namespace
    trainers: dict[str, Trainer]
    turns: int = 0

    def turn(self, there: Sequence[Tenant]) -> list[Measured]:
        """Let these tenants work at once; return what each did."""
        self.turns += 1
        for one in there:
            one.prepare()
        settle()
        tasks = [
            Task(
                settings=self.namespace.settings,
                objects=one.objects,
                block_bytes=self.workload.access.block_bytes,
                seed=self.lab.seed + self.turns,
                seconds=self.workload.load.seconds,
            )
            for one in there
        ]
        with ThreadPoolExecutor(len(there)) as pool:
            list(pool.map(self._warm, there, tasks))
            begin_s = time.monotonic() + LEAD_S
            turns = [task._replace(begin_s=begin_s) for task in tasks]
            return list(pool.map(self._work, there, turns))

    def _warm(self, one: Tenant, task: Task) -> None:
        self.trainers[one.name].run(one.work, task)

    def _work(self, one: Tenant, task: Task) -> Measured:
        measured: Measured = self.trainers[one.name].run(one.work, task)
        return measured


def _figure(name: str, when: str, role: Role, rounds: Sequence[Measured]) -> Figure:
    histogram = sampler.histogram()
    for one in rounds:
        histogram.decode_and_add(one.histogram)
    return Figure(
        name=f"{name}, {when}",
        role=role,
        unit=UNIT,
        values=tuple(one.bytes / 1e6 / one.seconds for one in rounds),
        higher_is_better=True,
        work=name,
        sample=Sample(
            operations=sum(one.operations for one in rounds),
            bytes=sum(one.bytes for one in rounds),
            seconds=sum(one.seconds for one in rounds),
            latency=sampler.latency(histogram),
            cpu_s={"reader": sum(one.cpu_s["reader"] for one in rounds)},
            rss_bytes={"reader": max(one.rss_bytes["reader"] for one in rounds)},
        ),
    )


def _numbers(figures: Sequence[Figure]) -> dict[str, float]:
    named = {figure.name: figure for figure in figures}
    hot = [named[f"{HOT}, {when}"] for when in ("together", "alone")]
    p99_us = [_p99_us(figure) for figure in hot]
    return {
        "p99 of hot reads together ÷ alone": p99_us[0] / p99_us[1],
        "hot reads together ÷ alone": ratio(*hot),
    }


def _p99_us(figure: Figure) -> float:
    assert figure.sample is not None and figure.sample.latency is not None
    return figure.sample.latency.p99_us


# -- in the tenants' processes ------------------------------------------------------------------

_open: list[Namespace] = []  # of this process, from its first turn on


def _namespace(settings: Settings) -> Namespace:
    if not _open:
        _open.append(Namespace(settings))
    return _open[0]


def read_hot(task: Task) -> Measured:
    """Aligned blocks at random of what is cached, for ever: a training job's reads."""
    namespace = _namespace(task.settings)
    (found,) = task.objects
    path, block = path_of(found.key), task.block_bytes
    rng = random.Random(task.seed)
    places = [rng.randrange(found.length // block) * block for _ in range(PLACES)]
    if not task.begin_s:
        for place in range(0, found.length, WARM_BYTES):
            namespace.read(path, place, WARM_BYTES)

    def steps() -> Iterator[int]:
        while True:
            for place in places:
                yield len(namespace.read(path, place, block))

    return _timed(task, steps())


def read_cold(task: Task) -> Measured:
    """Blocks at random of what is at the origin alone, none twice: a notebook's reads."""
    namespace = _namespace(task.settings)
    access = Access(pattern="random", block=task.block_bytes)
    lengths = [found.length for found in task.objects]
    found = patterns.places(access, lengths, patterns.Share(0, 1), seed=task.seed, again=False)
    keys = [path_of(one.key) for one in task.objects]
    places = [(keys[number], offset, length) for number, offset, length in found]
    return _timed(task, (len(namespace.read(*place)) for place in places))


def prefetch(task: Task) -> Measured:
    """Whole objects, one after another; each is evicted before it comes again."""
    namespace = _namespace(task.settings)

    def steps() -> Iterator[int]:
        while True:
            for found in task.objects:
                path = path_of(found.key)
                namespace.evict(path)
                namespace.prefetch(path, background=False).wait()
                yield found.length

    return _timed(task, steps())


def write(task: Task) -> Measured:
    """New objects through to the origin, one after another."""
    namespace = _namespace(task.settings)
    (found,) = task.objects
    data = random.Random(task.seed).randbytes(found.length)

    def steps() -> Iterator[int]:
        number = 0
        while True:
            namespace.write(path_of(f"{found.key}/{task.seed}-{number:04}"), data)
            number += 1
            yield len(data)

    return _timed(task, steps())


def _timed(task: Task, steps: Iterator[int]) -> Measured:
    """Take steps, each of which returns its bytes, from ``begin_s`` on while there is time. With
    no time take none: what came before has opened and warmed what there is."""
    lengths: list[int] = []
    wait_s = task.begin_s - time.monotonic()
    if wait_s > 0:
        time.sleep(wait_s)
    cpu_s = kernel.own_cpu_s()
    stamps_ns = [time.perf_counter_ns()]
    end_ns = stamps_ns[0] + int(task.seconds * 1e9)
    if task.begin_s:
        for length in steps:
            lengths.append(length)
            stamps_ns.append(time.perf_counter_ns())
            if stamps_ns[-1] >= end_ns:
                break
    spans = [late - early for early, late in itertools.pairwise(stamps_ns)]
    return Measured(
        seconds=(stamps_ns[-1] - stamps_ns[0]) / 1e9,
        operations=len(lengths),
        bytes=sum(lengths),
        histogram=sampler.encoded(spans),
        cpu_s={"reader": kernel.own_cpu_s() - cpu_s},
        rss_bytes={"reader": kernel.own_peak_rss_bytes()},
    )
