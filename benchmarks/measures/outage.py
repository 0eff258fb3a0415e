"""An outage by the second: how soon the endpoint is offline, what a miss and a hit then take,
how long a loop over cached data ever waits, and how soon all is well again.

``epoch-outage`` compares contenders through a short outage; this takes ours apart in a long one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.harness import Figure, Measured, Outcome, Sample, Series
from benchmarks.lab import Lab, path_of
from benchmarks.measures.metadata import plain
from benchmarks.registry import measure
from benchmarks.sampler import histogram, latency
from benchmarks.workload import Workload
from tiercache.errors import OriginUnavailable
from tiercache.model import EndpointState
from tiercache.namespace import Namespace
from tiercache.testing.proxy_process import ProxyProcess

KINDS: dict[str, Callable[[ProxyProcess], None]] = {
    "black hole": ProxyProcess.black_hole,
    "refused": ProxyProcess.refuse,
}
OFFLINE, ONLINE = "outage until offline", "network back until online"
FILLED = "network back until a miss is filled"
STALL = "longest wait of a loop over cached data"
HIT, MISS, MISSES = "hit while offline", "miss while offline", "64 misses at once while offline"
BAR_STALL, BAR_MISS = "longest stall of a loop over cached data", "miss while offline, p99"
BAR_ONLINE = "network back until online"
POLL_S = 0.02
AT_ONCE = 64
HITS = 2_000
# A loop that trains reads, and works on what it read.
LOOP_PAUSE_S = 0.001
# Misses that come in while nobody knows of the outage yet, so that it is noticed.
MISS_EVERY_S = 0.1
LIMIT_S = 90.0
# The loop is at work for so long before the outage, and after it.
LEAD_S = 1.0
BIN_S = 0.25


@dataclass(slots=True)
class Found:
    """Of one kind of outage: seconds, and latencies in ns."""

    seconds: dict[str, float] = field(default_factory=dict)
    took_ns: dict[str, list[int]] = field(default_factory=dict)
    series: Series | None = None


@measure("outage")
def outage(lab: Lab, workload: Workload) -> Outcome:
    """Half of the objects are cached, and their names expire in the outage. Each kind of outage
    has a network, an agent and a cache of its own."""
    objects = [path_of(one.key) for one in lab.objects(workload.dataset)]
    found = {}
    for kind in KINDS:
        with lab.network(workload.network) as proxy:
            if proxy is None:
                raise ValueError(f"{workload.name} names no network: it has nothing to interrupt")
            settings = lab.settings(endpoint=proxy.url)
            ttl_s = float(workload.options["ttl_s"])
            mounts = tuple(msgspec.structs.replace(one, ttl_s=ttl_s) for one in settings.mounts)
            with lab.namespace(msgspec.structs.replace(settings, mounts=mounts)) as namespace:
                found[kind] = _through(workload, namespace, proxy, objects, kind)
    numbers = {
        BAR_STALL: max(one.seconds[STALL] for one in found.values()),
        BAR_MISS: max(_p99_ms(one.took_ns[MISS]) for one in found.values()),
        BAR_ONLINE: max(one.seconds[ONLINE] for one in found.values()),
    }
    return Outcome(
        figures=tuple(
            figure for kind, one in found.items() for figure in plain(_figures(kind, one))
        ),
        numbers=numbers,
        series=tuple(one.series for one in found.values() if one.series is not None),
        sizes={"objects": len(objects), "cached_objects": len(objects) // 2},
        notes=(
            "black hole: connections are accepted and no byte moves; refused: connections are "
            "reset and new ones refused. The profile's own deadlines hold, which are the defaults",
            f"a miss every {1e3 * MISS_EVERY_S:g} ms is under way when the outage begins; the loop "
            f"reads cached objects with {1e3 * LOOP_PAUSE_S:g} ms between them, before, during and "
            "after it",
            "online: the endpoint is not offline any more; each value is of one outage",
        ),
    )


def _through(
    workload: Workload,
    namespace: Namespace,
    proxy: ProxyProcess,
    objects: Sequence[str],
    kind: str,
) -> Found:
    found = Found()
    cached, missing = objects[: len(objects) // 2], objects[len(objects) // 2 :]
    namespace.list(path_of(workload.dataset.folder), recursive=True)
    namespace.prefetch(list(cached), background=False).wait()
    state = State(namespace)
    with looping(namespace, cached) as reads:
        time.sleep(LEAD_S)
        begun_s = time.monotonic()
        KINDS[kind](proxy)
        with asking(namespace, missing[:1]):
            state.wait(lambda now: now is EndpointState.OFFLINE)
        found.seconds[OFFLINE] = time.monotonic() - begun_s
        operations = workload.load.operations
        found.took_ns[MISS] = [
            _miss(namespace, missing[n % len(missing)]) for n in range(operations)
        ]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found.took_ns[MISSES] = list(
                pool.map(lambda path: _miss(namespace, path), missing[:AT_ONCE])
            )
        found.took_ns[HIT] = [
            _hit(namespace, cached[number % len(cached)]) for number in range(HITS)
        ]
        time.sleep(max(0.0, begun_s + workload.load.seconds - time.monotonic()))
        healed_s = time.monotonic()
        proxy.heal()
        state.wait(lambda now: now is not EndpointState.OFFLINE)
        found.seconds[ONLINE] = time.monotonic() - healed_s
        _until_filled(namespace, missing[0])
        found.seconds[FILLED] = time.monotonic() - healed_s
        time.sleep(LEAD_S)
    found.seconds[STALL] = max(done_s - begun_s for begun_s, done_s in reads)
    found.series = _series(kind, reads, begun_s, healed_s)
    return found


def _series(
    kind: str, reads: Sequence[tuple[float, float]], begun_s: float, healed_s: float
) -> Series:
    first_s = reads[0][0]
    counts = [0] * (int((reads[-1][1] - first_s) / BIN_S) + 1)
    for _, done_s in reads:
        counts[int((done_s - first_s) / BIN_S)] += 1
    return Series(
        name=f"cached reads, {kind}",
        unit="reads/s",
        x=tuple((number + 0.5) * BIN_S for number in range(len(counts))),
        y=tuple(count / BIN_S for count in counts),
        marks=((begun_s - first_s, "outage begins"), (healed_s - first_s, "outage ends")),
    )


class State:
    """What status says of the one endpoint."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def wait(self, wanted: Callable[[EndpointState], bool]) -> None:
        """Return once it is so. Raises TimeoutError."""
        deadline_s = time.monotonic() + LIMIT_S
        while not wanted(self._now()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the endpoint is {self._now()} after {LIMIT_S:g} s")
            time.sleep(POLL_S)

    def _now(self) -> EndpointState:
        status: Any = self._namespace.status()
        (endpoint,) = status["endpoints"]
        return EndpointState(endpoint["state"])


@contextmanager
def looping(namespace: Namespace, paths: Sequence[str]) -> Iterator[list[tuple[float, float]]]:
    """Read cached objects on a thread of its own; yields when each read began and was done, whole
    when the context has ended. Raises there what a read raised."""
    reads: list[tuple[float, float]] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            for path in paths:
                begun_s = time.monotonic()
                namespace.read(path)
                reads.append((begun_s, time.monotonic()))
                time.sleep(LOOP_PAUSE_S)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(loop)
        try:
            yield reads
        finally:
            stop.set()
        done.result()


@contextmanager
def asking(namespace: Namespace, paths: Sequence[str]) -> Iterator[None]:
    """Let misses come in while the context lasts, each on a thread, for one may wait long."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(MISS_EVERY_S):
            for path in paths:
                thread = threading.Thread(target=_miss, args=(namespace, path), daemon=True)
                thread.start()
                asked.append(thread)

    asked: list[threading.Thread] = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
        done.result()
        for thread in asked:
            thread.join(LIMIT_S)


def _miss(namespace: Namespace, path: str) -> int:
    """Read what cannot come; return how many ns it took to be told so."""
    begun = time.perf_counter_ns()
    try:
        namespace.read(path)
    except OriginUnavailable:
        return time.perf_counter_ns() - begun
    raise RuntimeError(f"{path} came from an origin that is unreachable")


def _hit(namespace: Namespace, path: str) -> int:
    begun = time.perf_counter_ns()
    namespace.read(path)
    return time.perf_counter_ns() - begun


def _until_filled(namespace: Namespace, path: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        try:
            namespace.read(path)
            return
        except OriginUnavailable:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)


def _p99_ms(took_ns: Sequence[int]) -> float:
    found = latency(histogram(took_ns))
    assert found is not None
    return found.p99_us / 1e3


def _figures(kind: str, found: Found) -> Iterator[Figure]:
    for what, seconds in found.seconds.items():
        yield Figure(
            name="ns.read", role="ours", unit="ms", values=(1e3 * seconds,), work=f"{what}, {kind}"
        )
    for what, took_ns in found.took_ns.items():
        measured = Measured(seconds=sum(took_ns) / 1e9, operations=len(took_ns))
        yield Figure(
            name="ns.read",
            role="ours",
            unit="µs",
            values=(measured.seconds / measured.operations * 1e6,),
            threads=AT_ONCE if what == MISSES else 1,
            work=f"{what}, {kind}",
            sample=Sample(
                operations=measured.operations,
                seconds=measured.seconds,
                latency=latency(histogram(took_ns)),
            ),
        )
