"""Memory over a long stream: neither the agent nor a client may grow with what went through."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from benchmarks import processes as kernel
from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Figure, Measured, Missing, Outcome, Role, Series
from benchmarks.lab import Lab, path_of, settle
from benchmarks.measures.reads import WARM_UP
from benchmarks.registry import measure
from benchmarks.sources import NamespaceFiles, Way, s3fs_files
from benchmarks.trainer import Stopwatch, Trainer
from benchmarks.workload import Workload
from tiercache.settings import Settings
from tiercache.units import MIB

LOOK_EVERY_S = 0.1
# What the agent may have besides its buffers, and what a client may take: issue 2's bars.
AGENT_EXTRA_BYTES = 150 * MIB
S3FS = "s3fs open, read"
OURS = "ns.open, read"


class Plan(NamedTuple):
    """Each handle reads its own part of the object, front to end, ``passes`` times."""

    found: Object
    warm: Object
    handles: int
    block_bytes: int
    passes: int


@dataclass(slots=True)
class Watch:
    """RSS of processes by name, looked at while something runs."""

    started_s: float = field(default_factory=time.monotonic)
    x: list[float] = field(default_factory=list)
    rss_bytes: dict[str, list[int]] = field(default_factory=dict)

    def until(self, done: Future[Any], pids: dict[str, int]) -> None:
        while True:
            self.x.append(time.monotonic() - self.started_s)
            for name, pid in pids.items():
                self.rss_bytes.setdefault(name, []).append(kernel.rss_bytes(pid) or 0)
            if done.done():
                return
            futures.wait([done], LOOK_EVERY_S)

    def series(self) -> list[Series]:
        return [
            Series(name=name, unit="MiB", x=tuple(self.x), y=tuple(one / MIB for one in values))
            for name, values in self.rss_bytes.items()
        ]


class Streamed(NamedTuple):
    measured: Measured
    watch: Watch
    agent_peak_bytes: int
    client_before_bytes: int
    client_peak_bytes: int

    @property
    def client_growth_bytes(self) -> int:
        return self.client_peak_bytes - self.client_before_bytes


@measure("long-stream-memory")
def long_stream_memory(lab: Lab, workload: Workload) -> Outcome:
    """One process reads through several handles at once; the object is evicted between passes, so
    that all of it comes from the origin each time. Peaks are the kernel's own."""
    (found,) = lab.objects(workload.dataset)
    (warm,) = lab.objects(WARM_UP)
    (handles,) = workload.load.threads
    budget = workload.option("memory", 256 * MIB)
    plan = Plan(found, warm, handles, workload.access.block_bytes, workload.option("passes", 4))
    settings = lab.settings()
    settings = msgspec.structs.replace(
        settings, cache=msgspec.structs.replace(settings.cache, memory_bytes=budget)
    )
    ours = _ours(lab, settings, plan)
    figures = _figures(OURS, "ours", plan, ours)
    series = ours.watch.series()
    missing = []
    if S3FS in workload.contenders:
        if why := missing_package("s3fs"):
            missing.append(Missing(name=S3FS, why=why))
        else:
            rival = _rival(lab, plan._replace(passes=1))
            figures += _figures(S3FS, "rival", plan, rival)
            series += rival.watch.series()
    return Outcome(
        figures=tuple(figures),
        missing=tuple(missing),
        numbers={
            "agent RSS peak ÷ (budget + 150 MiB)": ours.agent_peak_bytes
            / (budget + AGENT_EXTRA_BYTES),
            "client RSS growth MiB": ours.client_growth_bytes / MIB,
        },
        sizes={
            "object_bytes": found.length,
            "streamed_bytes": ours.measured.bytes,
            "handles": handles,
            "read_bytes": plan.block_bytes,
            "budget_bytes": budget,
        },
        notes=(
            f"the agent's peak was {ours.agent_peak_bytes / MIB:.0f} MiB with a budget of "
            f"{budget / MIB:.0f}; the client had {ours.client_before_bytes / MIB:.0f} MiB before "
            f"the stream and {ours.client_peak_bytes / MIB:.0f} at most in it",
            f"{S3FS} streams the object once; its memory is its handles' read-ahead, 50 MiB each",
        ),
        series=tuple(series),
    )


def _figures(name: str, role: Role, plan: Plan, done: Streamed) -> list[Figure]:
    rate = done.measured.bytes / 1e6 / done.measured.seconds
    return [
        Figure(name=name, role=role, unit="MB/s", values=(rate,), higher_is_better=True,
               threads=plan.handles, work="throughput"),
        Figure(name=f"{name}: client", role=role, unit="MiB more",
               values=(done.client_growth_bytes / MIB,), threads=plan.handles,
               work="memory"),
    ]  # fmt: skip


def _ours(lab: Lab, settings: Settings, plan: Plan) -> Streamed:
    with ExitStack() as stack:
        namespace = stack.enter_context(lab.namespace(settings))
        trainer = stack.enter_context(Trainer())
        trainer.run(opened, Way(NamespaceFiles, (settings,)), plan)
        pool = stack.enter_context(ThreadPoolExecutor(1))

        def evict() -> None:
            namespace.evict(path_of(plan.found.key))

        agent = kernel.agent_pid(namespace)
        return _streamed(trainer, pool, plan, {"agent": agent, "client": trainer.pid}, evict)


def _rival(lab: Lab, plan: Plan) -> Streamed:
    with ExitStack() as stack:
        trainer = stack.enter_context(Trainer())
        trainer.run(opened, Way(s3fs_files, (lab.server.endpoint,)), plan)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        return _streamed(trainer, pool, plan, {"client of s3fs": trainer.pid}, lambda: None)


def _streamed(
    trainer: Trainer,
    pool: ThreadPoolExecutor,
    plan: Plan,
    pids: dict[str, int],
    evict: Callable[[], None],
) -> Streamed:
    """Stream all passes in the trainer while its memory, and the agent's, is watched."""
    settle()
    for pid in pids.values():
        kernel.forget_peak_rss(pid)
    before = kernel.rss_bytes(trainer.pid) or 0
    watch = Watch()
    parts: list[Measured] = []
    for _ in range(plan.passes):
        evict()
        running = pool.submit(trainer.run, streamed, plan)
        watch.until(running, pids)
        parts.append(running.result())
    return Streamed(
        measured=Measured(
            seconds=sum(one.seconds for one in parts),
            operations=sum(one.operations for one in parts),
            bytes=sum(one.bytes for one in parts),
        ),
        watch=watch,
        agent_peak_bytes=kernel.peak_rss_bytes(pids["agent"]) or 0 if "agent" in pids else 0,
        client_before_bytes=before,
        client_peak_bytes=kernel.peak_rss_bytes(trainer.pid) or 0,
    )


# -- in the trainer ---------------------------------------------------------------------------

_open: list[Any] = []
_handles: list[Any] = []


def opened(way: Way, plan: Plan) -> None:
    """Open the files, which stay open for ``streamed``, and read another: what comes once with
    the first read is no growth."""
    files: Any = way.opened()
    with files.open(plan.warm.key) as handle:
        handle.read()
    _open.append(files)
    _handles.extend(files.open(plan.found.key) for _ in range(plan.handles))


def streamed(plan: Plan) -> Measured:
    """Read every handle's part once, all at the same time."""
    watch = Stopwatch()
    share = plan.found.length // plan.handles
    with ThreadPoolExecutor(plan.handles) as pool:
        counts = list(
            pool.map(
                lambda number: _read_part(_handles[number], number * share, share, plan),
                range(plan.handles),
            )
        )
    total = sum(counts)
    return watch.measured(operations=total // plan.block_bytes, total_bytes=total)


def _read_part(handle: Any, start: int, length: int, plan: Plan) -> int:
    handle.seek(start)
    done = 0
    while done < length:
        data = handle.read(min(plan.block_bytes, length - done))
        if not data:
            raise RuntimeError(f"{plan.found.key} ended at {start + done}")
        done += len(data)
    return done
