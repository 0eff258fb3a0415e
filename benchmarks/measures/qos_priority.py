"""A training job's hits beside a greedy prefetch: what the tail of its latency becomes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.contenders.contender import Object
from benchmarks.harness import Figure, Outcome
from benchmarks.lab import Lab, path_of
from benchmarks.qos_rig import Rig, Round, figure, governed, outcome
from benchmarks.registry import measure
from benchmarks.workload import Dataset, Workload
from tiercache.testing import qos_tracks
from tiercache.testing.qos_load import Tenant

TAIL = "p99 beside a prefetch ÷ p99 alone"
TAIL_FREE = "p99 beside a prefetch ÷ p99 alone, without a policy"
ALONE, BESIDE = "alone", "beside a greedy prefetch"
LOWEST_PRIORITY = 19  # of nice(2)


@measure("qos-priority")
def priority(lab: Lab, workload: Workload) -> Outcome:
    """Paced reads of 64 KiB hits by the identity "training", alone and while "prefetch" fetches
    whole objects from the server as fast as it may; once under the policy, once without one."""
    fetched = lab.objects(
        Dataset(
            count=workload.option("prefetch_objects", 1),
            bytes=str(workload.options["prefetch_bytes"]),
        )
    )
    figures: list[Figure] = []
    notes: list[str] = []
    numbers: dict[str, float] = {}
    with on_another_machine(lab):
        for name, number, rounds in (
            ("with the policy", TAIL, workload.load.rounds),
            ("without", TAIL_FREE, 1),
        ):
            with governed(lab, workload, free=number == TAIL_FREE) as rig:
                training = rig.tenant("training", rate=float(workload.options["reads_a_second"]))
                prefetch = _prefetching(fetched)
                alone, beside = _both(rig, training, prefetch, rounds)
            pairs = [
                (_p99_us(one, training), _p99_us(other, training))
                for one, other in zip(alone, beside, strict=True)
            ]
            numbers[number] = statistics.median(after / before for before, after in pairs)
            told = ", ".join(f"{before:.0f} → {after:.0f} µs" for before, after in pairs)
            notes.append(f"p99 alone → beside, {name}, round by round: {told}")
            figures += [
                figure(f"training, {ALONE}", name, alone, [training], cpu=True),
                figure(f"training, {BESIDE}", name, beside, [training], cpu=True),
                figure("prefetch", name, beside, [prefetch]),
            ]
    return outcome(
        rig,
        figures,
        numbers,
        *notes,
        "the object server runs at the lowest priority of the machine's scheduler: a real one "
        "takes no processor of the node",
    )


def _prefetching(fetched: Sequence[Object]) -> Tenant:
    return Tenant(
        name="prefetch",
        paths=tuple(path_of(one.key) for one in fetched),
        length_bytes=fetched[0].length,
        does="prefetch",
    )


def _both(
    rig: Rig, training: Tenant, prefetch: Tenant, rounds: int
) -> tuple[list[Round], list[Round]]:
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(rig.round([training]))
        beside.append(rig.round([training, prefetch]))
    return alone, beside


def _p99_us(one: Round, tenant: Tenant) -> float:
    took: Sequence[float] = qos_tracks.took_ns(one.tracks[tenant], one.window)
    return qos_tracks.quantile(took, 0.99) / 1e3


@contextmanager
def on_another_machine(lab: Lab) -> Iterator[None]:
    """Let the run's object server have only what nobody else wants of the processors: it stands
    for one on another machine. Afterwards it is as before, where we may."""
    group = lab.server.pid
    before = os.getpriority(os.PRIO_PGRP, group)
    os.setpriority(os.PRIO_PGRP, group, LOWEST_PRIORITY)
    try:
        yield
    finally:
        try:
            os.setpriority(os.PRIO_PGRP, group, before)
        except PermissionError:
            pass  # only root may take it back; the server ends with the run
