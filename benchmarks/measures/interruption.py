"""An outage in mid-epoch: who reads on, who is told what, and how soon all is well again."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import msgspec

from benchmarks.harness import Figure, Outcome, Series
from benchmarks.lab import Lab, path_of
from benchmarks.registry import measure
from benchmarks.sources import Source, Way, chosen
from benchmarks.trainer import Trainer
from benchmarks.workload import Workload
from tiercache.errors import OriginUnavailable, TiercacheError
from tiercache.settings import Settings
from tiercache.testing.proxy_process import ProxyProcess
from tiercache.testing.timeline import Timeline

# A cached read that comes later than this has waited for the outage. At its first sign one read
# may wait for an answer as long as the profile's deadline, here 1 s, and those behind it too.
SERVED_WITHIN_S = 2.0
BIN_S = 0.25
# Between the set-up and the first read: every process is at its clock by then.
LEAD_S = 0.5
UNCACHED_EVERY_S = 0.25


class Read(NamedTuple):
    """In seconds after the start. ``done_s`` None: it had not come back by the end. ``error`` is
    the name of what it raised, empty for bytes."""

    due_s: float
    begun_s: float
    done_s: float | None = None
    error: str = ""


class Plan(NamedTuple):
    """``cached`` are read in turns, ``per_s`` a second; of ``uncached`` each once."""

    cached: Sequence[str]
    uncached: Sequence[str]
    per_s: float
    seconds: float

    def cached_reads(self) -> list[tuple[float, str]]:
        """Return (seconds after the start, key) of each."""
        count, keys = int(self.per_s * self.seconds), self.cached
        return [(number / self.per_s, keys[number % len(keys)]) for number in range(count)]

    def uncached_reads(self) -> list[tuple[float, str]]:
        count = int(self.seconds / UNCACHED_EVERY_S)
        return [(n * UNCACHED_EVERY_S, key) for n, key in enumerate(self.uncached[:count])]


class Reads(NamedTuple):
    cached: list[Read]
    uncached: list[Read]


class Outage(NamedTuple):
    from_s: float
    to_s: float

    def holds(self, at_s: float) -> bool:
        return self.from_s <= at_s < self.to_s


@measure("epoch-outage")
def epoch_outage(lab: Lab, workload: Workload) -> Outcome:
    """All contenders read through the same outage at once, each in a process of its own, at a
    pace that leaves the machine idle. Half of the data set is cached beforehand."""
    objects = lab.objects(workload.dataset)
    half = len(objects) // 2
    outage = Outage(
        float(workload.options["outage_from_s"]), float(workload.options["outage_to_s"])
    )
    plan = Plan(
        cached=[found.key for found in objects[:half]],
        uncached=[found.key for found in objects[half:]],
        per_s=float(workload.option("reads_per_s", 200)),
        seconds=workload.load.seconds,
    )
    with ExitStack() as stack:
        proxy = stack.enter_context(lab.network(workload.network))
        if proxy is None:
            raise ValueError(f"{workload.name} names no network: it has nothing to interrupt")
        namespace = stack.enter_context(lab.namespace(_settings(lab, workload, proxy)))
        sources, missing = chosen(lab, workload.contenders, namespace, endpoint=proxy.url)
        found = _read_through(stack, proxy, sources, plan, outage)
    return Outcome(
        figures=tuple(
            Figure(
                name=source.name,
                role=source.role,
                unit="% of cached reads served in the outage",
                values=(100.0 * served_share(found[source.name], plan, outage),),
                higher_is_better=True,
            )
            for source in sources
        ),
        missing=tuple(missing),
        numbers=_numbers([found[one.name] for one in sources if one.role == "ours"], plan, outage),
        series=tuple(
            _series(f"cached reads, {name}", reads.cached, plan, outage)
            for name, reads in found.items()
        ),
        sizes={"objects": len(objects), "object_bytes": objects[0].length, "cached_objects": half},
        notes=(
            f"a cached read is served where it came within {SERVED_WITHIN_S:g} s of when it was "
            f"due; one was due every {1e3 / plan.per_s:g} ms",
            *(_told(name, reads, outage) for name, reads in found.items()),
        ),
    )


def _settings(lab: Lab, workload: Workload, proxy: ProxyProcess) -> Settings:
    """A time to live that ends within the outage is the hard case: each name is asked for anew
    where nobody answers."""
    profile = msgspec.structs.replace(
        lab.server.profile("bench", endpoint=proxy.url),
        deadline_s=float(workload.options["deadline_s"]),
    )
    settings = lab.settings(profile=profile)
    ttl_s = float(workload.options["ttl_s"])
    mounts = tuple(msgspec.structs.replace(one, ttl_s=ttl_s) for one in settings.mounts)
    return msgspec.structs.replace(settings, mounts=mounts)


def _numbers(ours: Sequence[Reads], plan: Plan, outage: Outage) -> dict[str, float]:
    waits = [wait_s for reads in ours for wait_s in waits_for_error(reads, plan, outage)]
    return {
        "share of cached reads served": min(served_share(reads, plan, outage) for reads in ours),
        "longest wait for OriginUnavailable": max(waits, default=plan.seconds),
        "longest wait for a cached read": max(
            (read.done_s - read.begun_s for reads in ours for read in reads.cached if read.done_s),
            default=plan.seconds,
        ),
        "first fill after the outage": max(first_fill_s(reads, plan, outage) for reads in ours),
    }


def _read_through(
    stack: ExitStack,
    proxy: ProxyProcess,
    sources: Sequence[Source],
    plan: Plan,
    outage: Outage,
) -> dict[str, Reads]:
    timeline = Timeline.parse([f"outage from {outage.from_s:g} s to {outage.to_s:g} s"])
    trainers = [stack.enter_context(Trainer()) for _ in sources]
    with ThreadPoolExecutor(len(sources)) as pool:
        warming = [
            pool.submit(trainer.run, warm, source.way, plan.cached)
            for trainer, source in zip(trainers, sources, strict=True)
        ]
        for one in warming:
            one.result()
        folder = path_of(plan.cached[0].partition("/")[0])
        for namespace in [one.namespace for one in sources if one.namespace is not None]:
            namespace.list(folder, recursive=True, refresh=True)  # all names as fresh as can be
        begin_s = time.monotonic() + LEAD_S
        reading = [pool.submit(trainer.run, read_on, begin_s, plan) for trainer in trainers]
        time.sleep(max(0.0, begin_s - time.monotonic()))
        proxy.play(timeline)
        found = [one.result() for one in reading]
    return {source.name: reads for source, reads in zip(sources, found, strict=True)}


# -- in the trainer -------------------------------------------------------------------------

_opened: list[Any] = []  # of this process: between warm and read_on


def warm(way: Way, keys: Sequence[str]) -> None:
    """Open, and read all that shall be cached; it stays open for ``read_on``."""
    files = way.opened()
    files.read_many(keys)
    _opened.append(files)


def read_on(begin_s: float, plan: Plan) -> Reads:
    """Read from ``begin_s`` of ``time.monotonic`` on; cached and uncached each on a thread of
    its own, for one that hangs must not hide what becomes of the other."""
    (files,) = _opened
    found = Reads([], [])
    threads = [
        threading.Thread(target=_paced, args=(begin_s, plan.seconds, files, work, into))
        for work, into in zip((plan.cached_reads(), plan.uncached_reads()), found, strict=True)
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin_s + plan.seconds - time.monotonic()))
    return Reads(list(found.cached), list(found.uncached))


def _paced(
    begin_s: float,
    seconds: float,
    files: Any,
    work: Sequence[tuple[float, str]],
    into: list[Read],
) -> None:
    failures = _failures()
    for due_s, key in work:
        wait_s = begin_s + due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        read = Read(due_s=due_s, begun_s=time.monotonic() - begin_s)
        if read.begun_s >= seconds:
            return
        into.append(read)
        error = ""
        try:
            files.read_many([key])
        except failures as failure:
            error = type(failure).__name__
        into[-1] = read._replace(done_s=time.monotonic() - begin_s, error=error)


def _failures() -> tuple[type[Exception], ...]:
    """What the contenders raise where an origin does not answer."""
    failures: tuple[type[Exception], ...] = (OSError, TimeoutError, TiercacheError)
    if importlib.util.find_spec("botocore") is not None:
        from botocore.exceptions import BotoCoreError

        failures = (*failures, BotoCoreError)
    return failures


# -- what became of them --------------------------------------------------------------------


def served_share(reads: Reads, plan: Plan, outage: Outage) -> float:
    """Return which share of the cached reads due in the outage came, without waiting for it."""
    due = sum(outage.holds(due_s) for due_s, _ in plan.cached_reads())
    served = sum(
        outage.holds(read.due_s)
        and read.done_s is not None
        and not read.error
        and read.done_s - read.due_s <= SERVED_WITHIN_S
        for read in reads.cached
    )
    return served / due


def waits_for_error(reads: Reads, plan: Plan, outage: Outage) -> list[float]:
    """Return the seconds that each uncached read which the outage touched took to be told that
    the origin is unavailable. One that got something else, or nothing, counts with all the time
    there was."""
    return [
        read.done_s - read.begun_s
        if read.done_s is not None and read.error == OriginUnavailable.__name__
        else plan.seconds
        for read in reads.uncached
        if _touched(read, outage) and not _came_after(read, outage)
    ]


def _touched(read: Read, outage: Outage) -> bool:
    ended = read.done_s is None or read.done_s >= outage.from_s
    return ended and read.begun_s < outage.to_s


def _came_after(read: Read, outage: Outage) -> bool:
    """Whether it was begun in the outage, and its bytes came once that was over."""
    return read.done_s is not None and not read.error and read.done_s >= outage.to_s


def first_fill_s(reads: Reads, plan: Plan, outage: Outage) -> float:
    """Return the seconds from the outage's end to the first uncached read that came."""
    done = [
        read.done_s - outage.to_s
        for read in reads.uncached
        if read.done_s is not None and not read.error and read.done_s >= outage.to_s
    ]
    return min(done, default=plan.seconds)


def _told(name: str, reads: Reads, outage: Outage) -> str:
    """One line on what became of a contender's reads, for the report."""
    inside = [read for read in reads.cached if outage.holds(read.begun_s)]
    waits = [read.done_s - read.begun_s for read in reads.cached if read.done_s is not None]
    asked = [read for read in reads.uncached if _touched(read, outage)]
    became = Counter(
        "hung to the end" if read.done_s is None else read.error or "came" for read in asked
    )
    longest = max(
        (read.done_s - read.begun_s for read in asked if read.done_s is not None), default=0.0
    )
    return (
        f"{name}: {len(inside)} reads of the cached half begun in the outage, the longest of the "
        f"epoch took {max(waits, default=0.0):.2f} s; of {len(asked)} reads of the other half "
        f"that the outage touched, "
        + (", ".join(f"{count} × {what}" for what, count in became.items()) or "none")
        + f", the longest took {longest:.1f} s"
    )


def _series(name: str, reads: Sequence[Read], plan: Plan, outage: Outage) -> Series:
    counts = [0] * int(plan.seconds / BIN_S)
    for read in reads:
        if read.done_s is not None and not read.error and read.done_s < len(counts) * BIN_S:
            counts[int(read.done_s / BIN_S)] += 1
    return Series(
        name=name,
        unit="reads/s",
        x=tuple((number + 0.5) * BIN_S for number in range(len(counts))),
        y=tuple(count / BIN_S for count in counts),
        marks=((outage.from_s, "outage begins"), (outage.to_s, "outage ends")),
    )
