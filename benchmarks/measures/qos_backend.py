"""A server that answers 503 above a rate it does not tell: how soon requests come at less, how soon
at nearly that again, and what of it a reader notices."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.harness import Figure, Missing, Outcome, Sample, Series
from benchmarks.lab import Lab, path_of
from benchmarks.registry import measure
from benchmarks.sampler import histogram, latency
from benchmarks.workload import Workload
from tiercache.errors import TiercacheError
from tiercache.namespace import Namespace
from tiercache.testing.network import PROFILES
from tiercache.testing.proxy_process import ProxyProcess
from tiercache.testing.relay import Exchange

BELOW = "from a limit's begin until requests come at less"
RECOVERED = "from a limit's begin until 90 % of it is taken"
ERRORS = "errors that readers saw"
REFUSED = "requests put off, of all after the first 5 s of a limit"
# A rate is that of half a second: at 100 requests/s 50 of them.
WINDOW_S = 0.5
STEP_S = 0.05
# Recovered is what lasts for two seconds, not one good moment.
LASTING_S = 2.0
ENOUGH = 0.9
SETTLED_S = 5.0
BIN_S = 0.25


class Phase(NamedTuple):
    """The server's limit from ``begin_s`` to ``end_s``, seconds of ``time.monotonic``."""

    begin_s: float
    end_s: float
    requests_per_s: float


@dataclass(slots=True)
class Readers:
    """What all reading threads have met. Guarded by the interpreter: appends alone."""

    took_ns: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ran_out: bool = False


@measure("qos-backend")
def qos_backend(lab: Lab, workload: Workload) -> Outcome:
    """Threads that miss without a pause, each time another page, through three limits: one from
    the first request on, a quarter of it, and the first again. No QoS policy is in force."""
    (one,) = lab.objects(workload.dataset)
    block = workload.access.block_bytes
    offsets = list(range(0, one.length - block + 1, block))
    random.Random(lab.seed).shuffle(offsets)
    with lab.network(workload.network) as proxy:
        if proxy is None:
            raise ValueError(f"{workload.name} names no network: nothing puts requests off")
        with lab.namespace(lab.settings(endpoint=proxy.url)) as namespace:
            namespace.stat(path_of(one.key))
            proxy.clear()
            readers, phases = _through(
                workload, namespace, proxy, path_of(one.key), iter(offsets), block
            )
            exchanges = proxy.exchanges()
    if readers.ran_out:
        raise RuntimeError(f"{len(offsets)} pages were too few: enlarge the data set")
    return _outcome(workload, readers, phases, exchanges)


def _through(
    workload: Workload,
    namespace: Namespace,
    proxy: ProxyProcess,
    path: str,
    offsets: Iterator[int],
    block: int,
) -> tuple[Readers, list[Phase]]:
    readers = Readers()
    stop = threading.Event()
    lock = threading.Lock()

    def read() -> None:
        with namespace.open(path) as file:
            while not stop.is_set():
                with lock:
                    offset = next(offsets, None)
                if offset is None:
                    readers.ran_out = True
                    return
                begun = time.perf_counter_ns()
                try:
                    file.read_at(offset, block)
                except TiercacheError as error:
                    readers.errors.append(str(error))
                readers.took_ns.append(time.perf_counter_ns() - begun)

    (threads,) = workload.load.threads
    network = PROFILES[workload.network]
    phases: list[Phase] = []
    with ThreadPoolExecutor(threads) as pool:
        reading: list[Future[None]] = []
        try:
            for rate, seconds in _limits(workload):
                proxy.set_network(dataclasses.replace(network, requests_per_s=rate))
                begun_s = time.monotonic()
                reading = reading or [pool.submit(read) for _ in range(threads)]
                time.sleep(seconds)
                phases.append(Phase(begun_s, time.monotonic(), rate))
        finally:
            stop.set()
            proxy.set_network(network)  # those that still wait are through soon
        for thread in reading:
            thread.result()
    return readers, phases


def _limits(workload: Workload) -> Iterator[tuple[float, float]]:
    """Yield each limit in requests/s, and its seconds."""
    rate = float(workload.options["requests_per_s"])
    yield rate, float(workload.options["first_s"])
    yield rate / 4, float(workload.options["quarter_s"])
    yield rate, workload.load.seconds


def _outcome(
    workload: Workload,
    readers: Readers,
    phases: Sequence[Phase],
    exchanges: Sequence[Exchange],
) -> Outcome:
    asked = sorted(one.started_s for one in exchanges)
    taken = sorted(one.started_s for one in exchanges if one.status in (200, 206))
    # The last limit is above the rate that the one before it left: nothing has to fall.
    below = [until_below(asked, phase) for phase in phases[:-1]]
    settled = [one for one in exchanges if _is_settled(one.started_s, phases)]
    refused = sum(one.status == 503 for one in settled) / len(settled)
    recovered = [until_recovered(taken, phase) for phase in (phases[0], phases[-1])]
    last = phases[-1]
    mean = _rate(taken, last.begin_s + SETTLED_S, last.end_s) / last.requests_per_s
    (threads,) = workload.load.threads
    seconds = phases[-1].end_s - phases[0].begin_s
    return Outcome(
        figures=(
            Figure(
                name="ns.read",
                role="ours",
                unit="reads/s",
                values=(len(readers.took_ns) / seconds,),
                higher_is_better=True,
                threads=threads,
                work="misses",
                sample=Sample(
                    operations=len(readers.took_ns),
                    seconds=seconds,
                    latency=latency(histogram(readers.took_ns)),
                ),
            ),
        ),
        missing=(Missing(name="rivals", why="none tells how it holds back after a 503"),),
        numbers={
            BELOW: max(below),
            RECOVERED: max(recovered),
            ERRORS: float(len(readers.errors)),
            REFUSED: refused,
        },
        sizes={"read_bytes": workload.access.block_bytes},
        notes=(
            f"until less: {_told(below)}; until {ENOUGH:.0%}, the first limit and the last: "
            f"{_told(recovered)}; {mean:.0%} of the last limit were taken in all its time but the "
            f"first {SETTLED_S:g} s, and {refused:.1%} of the requests put off",
            f"a rate is that of {WINDOW_S:g} s, and recovered what lasts {LASTING_S:g} s; the "
            "proxy counts what reaches it, taken or not",
            *(f"a reader's error: {one}" for one in readers.errors[:1]),
        ),
        series=(_series("asked", asked, phases), _series("taken", taken, phases)),
    )


def until_below(asked_s: Sequence[float], phase: Phase) -> float:
    """Return how long after the limit's begin the first window ended in which fewer requests came
    than it allows; the phase's length where none did."""
    return _until(asked_s, phase, WINDOW_S, lambda rate: rate < phase.requests_per_s)


def until_recovered(taken_s: Sequence[float], phase: Phase) -> float:
    """Return how long after the limit's begin it was used up to ENOUGH for LASTING_S, once fewer
    requests were taken, or none, after it began; the phase's length where it never was. The burst
    that a server takes at first is no recovery."""
    later = Phase(phase.begin_s + WINDOW_S, phase.end_s, phase.requests_per_s)
    enough = ENOUGH * phase.requests_per_s
    return WINDOW_S + _until(taken_s, later, LASTING_S, lambda rate: rate >= enough)


def _until(
    times_s: Sequence[float], phase: Phase, window_s: float, is_so: Callable[[float], bool]
) -> float:
    for step in itertools.count():
        end_s = phase.begin_s + window_s + step * STEP_S
        if end_s > phase.end_s:
            return phase.end_s - phase.begin_s
        if is_so(_rate(times_s, end_s - window_s, end_s)):
            return end_s - phase.begin_s
    raise AssertionError("unreachable")


def _rate(times_s: Sequence[float], begin_s: float, end_s: float) -> float:
    return sum(begin_s <= at_s < end_s for at_s in times_s) / (end_s - begin_s)


def _is_settled(at_s: float, phases: Sequence[Phase]) -> bool:
    return any(phase.begin_s + SETTLED_S <= at_s < phase.end_s for phase in phases)


def _told(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.1f} s" for one in seconds)


def _series(name: str, times_s: Sequence[float], phases: Sequence[Phase]) -> Series:
    first_s = phases[0].begin_s
    counts = [0] * (int((phases[-1].end_s - first_s) / BIN_S) + 1)
    for at_s in times_s:
        if first_s <= at_s < phases[-1].end_s:
            counts[int((at_s - first_s) / BIN_S)] += 1
    return Series(
        name=f"requests {name}",
        unit="requests/s",
        x=tuple((number + 0.5) * BIN_S for number in range(len(counts))),
        y=tuple(count / BIN_S for count in counts),
        marks=tuple(
            (phase.begin_s - first_s, f"limit {phase.requests_per_s:g}/s") for phase in phases
        ),
    )
