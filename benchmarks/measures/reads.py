"""Reading by blocks: any pattern, state and network, by contenders in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks import workers
from benchmarks.contenders.contender import Contender, Object
from benchmarks.harness import CannotRun, Figure, Measured, Missing, Outcome, Race
from benchmarks.lab import Lab, settle
from benchmarks.registry import CONTENDERS, measure
from benchmarks.workload import Dataset, Workload
from tiercache.testing.proxy_process import ProxyProcess
from tiercache.units import KIB, MIB

# What a reader asks for before the clock starts where it must not touch the data itself.
WARM_UP = Dataset(count=1, bytes=64 * KIB)
# From this block on, and for sequential reads, a figure is in MB/s, else in reads/s.
LARGE_BLOCK_BYTES = MIB
MOST_TIERS = ("nvme_bytes", "origin_bytes")


@measure("reads")
def reads(lab: Lab, workload: Workload) -> Outcome:
    """Race the contenders at each point of threads × processes, one after another."""
    objects = lab.objects(workload.dataset)
    (warm_up,) = lab.objects(WARM_UP)
    figures: list[Figure] = []
    missing: list[Missing] = []
    tiers: dict[str, int] = {}
    with lab.network(workload.network) as proxy, contextlib.ExitStack() as stack:
        contenders = list(made(lab, workload, proxy, stack, missing))
        for threads, processes in points(workload):
            point = _Point(
                lab=lab,
                workload=workload,
                objects=objects,
                warm_up=warm_up.key,
                threads=threads,
                processes=processes,
                proxy=proxy,
            )
            race = point.race(contenders)
            race.run(workload.load.rounds, warm_up=workload.load.warm_up)
            figures.extend(race.figures)
            missing.extend(race.missing)
            for name, count in _tiers_of_ours(race.figures).items():
                tiers[name] = tiers.get(name, 0) + count
    return Outcome(
        figures=tuple(figures),
        missing=tuple(missing),
        tiers=tiers,
        sizes={
            "objects": len(objects),
            "object_bytes": workload.dataset.object_bytes,
            "read_bytes": workload.access.block_bytes,
            "rounds": workload.load.rounds,
        },
        notes=notes(workload, figures),
    )


def points(workload: Workload) -> list[tuple[int, int]]:
    """Return the (threads, processes) to measure at, in the file's order."""
    return list(itertools.product(workload.load.threads, workload.load.processes))


def figure_name(workload: Workload, name: str, threads: int, processes: int) -> str:
    """Return the contender's name, with how many read at once where that varies."""
    return f"{name} × {threads * processes}" if len(points(workload)) > 1 else name


def made(
    lab: Lab,
    workload: Workload,
    proxy: ProxyProcess | None,
    stack: contextlib.ExitStack,
    missing: list[Missing],
) -> Iterator[Contender]:
    """Make the contenders that can run; the stack closes them, even where a later one fails.
    Raises ValueError for a name that is none."""
    for name in workload.contenders:
        if name not in CONTENDERS:
            raise ValueError(f"no contender {name!r}; there are {', '.join(sorted(CONTENDERS))}")
        one = CONTENDERS[name](lab, "" if proxy is None else proxy.url)
        stack.callback(one.close)
        why = one.why_missing() or one.why_not(workload)
        if why:
            missing.append(Missing(name=name, why=why))
        else:
            yield one


@dataclass(slots=True, kw_only=True)
class _Point:
    """One point of a workload: so many threads in so many processes."""

    lab: Lab
    workload: Workload
    objects: Sequence[Object]
    warm_up: str
    threads: int
    processes: int
    proxy: ProxyProcess | None
    rounds: dict[str, int] = field(default_factory=dict)

    def race(self, contenders: Sequence[Contender]) -> Race:
        workload = self.workload
        large = workload.access.pattern == "sequential"
        large = large or workload.access.block_bytes >= LARGE_BLOCK_BYTES
        race = Race(
            unit="MB/s" if large else "reads/s",
            per="s",
            counts="MB" if large else "operations",
        )
        for one in contenders:
            race.add(
                figure_name(workload, one.name, self.threads, self.processes),
                one.role,
                partial(self._run, one),
                prepare=partial(self._prepare, one),
                threads=self.threads,
                processes=self.processes,
                sampler=self.lab.sampler(
                    namespace=one.namespace, processes=one.processes, proxy=self.proxy
                ),
            )
        return race

    def _prepare(self, one: Contender) -> None:
        with _rivals_may_fail(one):
            one.prepare(self.objects, self.workload.state)
        settle()

    def _run(self, one: Contender) -> Measured:
        with _rivals_may_fail(one):
            return workers.read(self.task(one))

    def task(self, one: Contender) -> workers.Task:
        """Return what this round's processes do. Each round reads other places, the same ones
        for every contender."""
        load = self.workload.load
        number = self.rounds[one.name] = self.rounds.get(one.name, 0) + 1
        task = workers.Task(
            recipe=one.recipe(),
            objects=tuple(self.objects),
            access=self.workload.access,
            threads=self.threads,
            processes=self.processes,
            operations=load.operations,
            seconds=load.seconds,
            # What was read once is no longer cold, nor on the device alone.
            again=self.workload.state == "hot",
            seed=self.lab.seed + number,
            warm=self._warm(),
        )
        if one.one_process:
            threads = self.threads * self.processes
            task = replace(task, threads=threads, processes=1)
        return task

    def _warm(self) -> str:
        match self.workload.state:
            case "hot":
                return workers.WARM_ALL
            case "nvme":
                return workers.WARM_FIRSTS
            case "cold" | "half-warm":
                return self.warm_up


@contextlib.contextmanager
def _rivals_may_fail(one: Contender) -> Iterator[None]:
    """Let a rival's failure be a line in the table, and ours the end of the run."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if one.role != "rival":
            raise
        raise CannotRun(f"failed: {error}") from error


def _tiers_of_ours(figures: Sequence[Figure]) -> dict[str, int]:
    tiers: dict[str, int] = {}
    for figure in figures:
        if figure.role == "ours" and figure.sample is not None:
            for name, count in figure.sample.tiers.items():
                tiers[name] = tiers.get(name, 0) + count
    return tiers


def notes(workload: Workload, figures: Sequence[Figure]) -> tuple[str, ...]:
    """Say which state was asked for, how it was reached, and what shows that it was."""
    how = {
        "hot": "hot: every reader has read its places once before the clock starts",
        "nvme": "nvme: before each round, the pages that the kernel kept of the contender's "
        "files were written back and dropped (POSIX_FADV_DONTNEED); no place is read twice",
        "cold": "cold: before each round the contender's cache was emptied; no place is read "
        "twice. Connections are open: each reader has read another object before",
        "half-warm": "half-warm: before each round every other object (of a single one the first "
        "half) was read into the emptied cache; no place is read twice",
    }[workload.state]
    shown = [line for figure in figures if (line := _where_from(figure))]
    return (how,) if not shown else (how, "bytes for each byte read: " + "; ".join(shown))


def _where_from(figure: Figure) -> str:
    sample = figure.sample
    if sample is None or not sample.bytes:
        return ""
    device, origin = (sample.tiers.get(name, 0) / sample.bytes for name in MOST_TIERS)
    return f"{figure.name}: {device:.2f} from the device, {origin:.2f} from the origin"
