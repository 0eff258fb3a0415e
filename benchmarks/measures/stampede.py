"""The stampede: many processes read one cold object at once. It should leave its origin once."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import crc32c

from benchmarks import datasets, workers
from benchmarks import processes as kernel
from benchmarks.contenders.contender import Contender, Object, Reader, Recipe
from benchmarks.harness import Figure, Measured, Missing, Outcome, Sample
from benchmarks.lab import Lab, path_of, settle
from benchmarks.measures.reads import WARM_UP, made
from benchmarks.registry import CONTENDERS, measure
from benchmarks.trainer import Trainer
from benchmarks.workload import Workload

UNIT = "s until the last has all"
NUMBER = "origin bytes ÷ the object's"
# What is left when the object is on the node before anyone asks for it.
BOUND = "os.pread"
EACH_FETCHES = ("s3fs", "fsspec filecache")
# Imported once, before the forks: sixty-four interpreters that import the same would be measured
# instead. None of them starts a thread by that.
MODULES = {
    "ns.read": ("tiercache.namespace",),
    "s3fs": ("s3fs",),
    "fsspec filecache": ("s3fs", "fsspec.implementations.cached"),
    "multi-storage-client": ("multistorageclient", "boto3"),
}


class Plan(NamedTuple):
    """What each process reads: all of it, from its start, in blocks."""

    found: Object
    warm: Object
    block_bytes: int
    processes: int
    stagger_s: float  # between the first one's start and the last one's


class Reading(NamedTuple):
    """What one process did, by the clock that all share. ``rss_bytes`` is the peak above what it
    shared with its parent. ``failed``: what it raised; empty where it came to its end."""

    begun_s: float
    ended_s: float
    length: int
    checksum: int
    cpu_s: float
    rss_bytes: int
    failed: str = ""


@dataclass(slots=True)
class Stampede:
    """What one contender made of it, a value a round."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # the origin's bytes ÷ the object's
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    sample: Sample | None = None


@measure("stampede")
def stampede(lab: Lab, workload: Workload) -> Outcome:
    """Forked processes read one object whole, staggered, and check every byte of it. Rivals that
    fetch it in each process run in fewer of them, as ``processes_each_fetching`` says."""
    (found,) = lab.objects(workload.dataset)
    (warm,) = lab.objects(WARM_UP)
    ((_, data),) = datasets.made(workload.dataset, seed=lab.seed)
    right = crc32c.crc32c(data)
    del data
    (many,) = workload.load.processes
    fewer = min(many, workload.option("processes_each_fetching", many))
    missing: list[Missing] = []
    figures: list[Figure] = []
    notes: list[str] = ["every process compares the CRC32C of all that it has read"]
    ratios: list[float] = []
    with contextlib.ExitStack() as stack, Trainer() as trainer:
        contenders = [CONTENDERS[BOUND](lab, ""), *made(lab, workload, None, stack, missing)]
        for one in contenders:
            plan = Plan(
                found=found,
                warm=warm,
                block_bytes=workload.access.block_bytes,
                processes=fewer if one.name in EACH_FETCHES else many,
                stagger_s=float(workload.options.get("stagger_s", 1.0)),
            )
            done = _measured(lab, workload, trainer, one, plan, right)
            name = f"{one.name}, {plan.processes} processes"
            if told := _wrong(done, plan):
                if one.role != "rival":
                    raise RuntimeError(f"{name}: {told}")
                missing.append(Missing(name=name, why=told))
                continue
            figures.append(_figure(one, plan, done))
            if one.role == "ours":
                ratios.extend(done.ratios)
            if one.role != "bound":
                notes.append(f"asked of the origin, {name}: {max(done.ratios):.3f} × the object")
    return Outcome(
        figures=tuple(figures),
        missing=tuple(missing),
        numbers={NUMBER: max(ratios)},
        sizes={
            "object_bytes": found.length,
            "read_bytes": workload.access.block_bytes,
            "processes": many,
            "processes_where_each_fetches": fewer,
        },
        notes=tuple(notes),
    )


def _measured(
    lab: Lab, workload: Workload, trainer: Trainer, one: Contender, plan: Plan, right: int
) -> Stampede:
    done = Stampede()
    sampler = lab.sampler(namespace=one.namespace, processes=one.processes)()
    limit_s = workers.WORKER_TIMEOUT_S
    if one.role == "rival":
        limit_s = float(workload.options.get("rival_limit_s", limit_s))
    for _ in range(workload.load.rounds):
        if one.role == "bound":
            one.prepare([plan.found, plan.warm], "hot")
        else:
            one.prepare([plan.found], workload.state)
        if one.namespace is not None:
            one.namespace.read(path_of(plan.warm.key))
        settle()
        before = lab.server.traffic().bytes_sent
        sampler.begin()
        answer = trainer.run(all_read, one.recipe(), MODULES.get(one.name, ()), plan, limit_s)
        readings = cast("Sequence[Reading] | str", answer)
        done.ratios.append((lab.server.traffic().bytes_sent - before) / plan.found.length)
        if isinstance(readings, str):
            done.failed.append(readings)
            break
        seconds = max(r.ended_s for r in readings) - min(r.begun_s for r in readings)
        sampler.end(
            Measured(
                seconds=seconds,
                operations=len(readings),
                bytes=sum(r.length for r in readings),
                cpu_s={"reader": sum(r.cpu_s for r in readings)},
                rss_bytes={"reader": sum(r.rss_bytes for r in readings)},
            )
        )
        done.seconds.append(seconds)
        done.failed.extend(r.failed for r in readings if r.failed)
        done.wrong += sum(
            not r.failed and (r.length, r.checksum) != (plan.found.length, right) for r in readings
        )
    done.sample = sampler.sample()
    return done


def _wrong(done: Stampede, plan: Plan) -> str:
    """Return what went wrong, in words; empty where all came right."""
    told = []
    if done.wrong:
        readings = plan.processes * len(done.seconds)
        told.append(f"{done.wrong} of {readings} readings were of other bytes")
    if done.failed:
        told.append(f"{done.failed[0]} ({len(done.failed)} such)")
    if told:
        told.append(f"the origin was asked for {max(done.ratios):.2f} × the object")
    return "; ".join(told)


def _figure(one: Contender, plan: Plan, done: Stampede) -> Figure:
    return Figure(
        name=one.name,
        role=one.role,
        unit=UNIT,
        values=tuple(done.seconds),
        processes=plan.processes,
        work=f"{plan.processes} processes",
        sample=done.sample,
    )


# -- in the trainer, and in what it forks -----------------------------------------------------


def all_read(
    recipe: Recipe, modules: Sequence[str], plan: Plan, limit_s: float
) -> list[Reading] | str:
    """Fork the readers; return what each did, or why there is no telling."""
    for module in modules:
        importlib.import_module(module)
    arguments = [(recipe, plan, number) for number in range(plan.processes)]
    try:
        return workers.together(read_whole, arguments, method="fork", timeout_s=limit_s)
    except workers.WorkerFailed as error:
        return str(error)


def read_whole(barrier: Any, recipe: Recipe, plan: Plan, number: int) -> Reading:
    """Read as one of the processes. What it raises while it reads is an answer: that some fail
    where many read at once is what is to be seen."""
    pid = os.getpid()
    kernel.forget_peak_rss(pid)
    base = kernel.rss_bytes(pid) or 0
    reader = cast(Reader, recipe.make(*recipe.arguments))
    reader.read(plan.warm.key, 0, plan.warm.length)  # imports, the connection
    barrier.wait()
    begun_s, cpu_s = time.perf_counter(), kernel.own_cpu_s()
    time.sleep(plan.stagger_s * number / plan.processes)
    length = checksum = 0
    failed = ""
    try:
        for offset in range(0, plan.found.length, plan.block_bytes):
            wanted = min(plan.block_bytes, plan.found.length - offset)
            data = cast(Any, reader.read(plan.found.key, offset, wanted))
            length += len(data)
            checksum = crc32c.crc32c(data, checksum)
    except (OSError, EOFError, LookupError, RuntimeError, ValueError) as error:
        failed = f"{type(error).__name__}: {error}"
    ended_s = time.perf_counter()
    reading = Reading(
        begun_s=begun_s,
        ended_s=ended_s,
        length=length,
        checksum=checksum,
        cpu_s=kernel.own_cpu_s() - cpu_s,
        rss_bytes=(kernel.peak_rss_bytes(pid) or 0) - base,
        failed=failed,
    )
    reader.close()
    return reading
