"""Shares under a QoS policy: limits, reservations, weights, conservation, starvation, turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.harness import Figure, Outcome
from benchmarks.lab import Lab
from benchmarks.qos_rig import (
    Round,
    each,
    factor,
    figure,
    governed,
    outcome,
    promised,
    tracks_of,
)
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.policy.qos import Resource
from tiercache.testing import qos_tracks
from tiercache.testing.qos_load import Tenant
from tiercache.testing.qos_tracks import Track, Window

# What bars call the distance of a rate from what it should be, as a factor of at least 1.
OFF = "rate ÷ promise, or promise ÷ rate"
MET = "rate ÷ reservation"
WEIGHTS = "rates ÷ weights, the larger by the smaller"
USED = "rate ÷ the node's"
PAUSE = "longest time without progress"
ABOVE = "rate ÷ limit"
WAIT = "longest wait ÷ fair share"
FULL = "the binding limit's use"
RATES: tuple[Callable[[Sequence[Track], Window], float], ...] = (
    qos_tracks.byte_rate,
    qos_tracks.operation_rate,
)


@measure("qos-limit")
def limit(lab: Lab, workload: Workload) -> Outcome:
    """One identity with a limit, by as many processes as ``load.processes`` says."""
    figures: list[Figure] = []
    off: list[float] = []
    with governed(lab, workload) as rig:
        allowed = rig.share("limited").limit
        for count in workload.load.processes:
            tenant = rig.tenant("limited", processes=count)
            rounds = rig.rounds([tenant])
            work = f"{count} processes" if count > 1 else "1 process"
            figures.append(promised("the limit", work, allowed, len(rounds)))
            figures.append(figure("reads", work, rounds, [tenant], cpu=True))
            off += [factor(rate, allowed) for rate in each(rounds, tenant)]
        return outcome(rig, figures, {OFF: max(off)})


@measure("qos-reserve")
def reserve(lab: Lab, workload: Workload) -> Outcome:
    """One identity with a reservation beside three greedy ones."""
    with governed(lab, workload) as rig:
        owed = rig.share("reserved").reserve
        reserved = rig.tenant("reserved", processes=2)
        greedy = [rig.tenant(f"greedy-{n}", processes=2) for n in (1, 2, 3)]
        rounds = rig.rounds([reserved, *greedy])
        figures = [
            promised("the reservation", "the reserved one", owed, len(rounds)),
            figure("reads", "the reserved one", rounds, [reserved]),
            figure("reads", "the others together", rounds, greedy),
            figure("reads", "all together", rounds, [reserved, *greedy], cpu=True),
        ]
        met = min(rate / owed for rate in each(rounds, reserved))
        return outcome(rig, figures, {MET: met}, _shared_out(rounds, [reserved, *greedy]))


@measure("qos-weights")
def weights(lab: Lab, workload: Workload) -> Outcome:
    """Two identities of one class, weights 3 and 1, with few processes against many, both ways."""
    figures: list[Figure] = []
    notes: list[str] = []
    off: list[float] = []
    few, many = workload.load.processes
    with governed(lab, workload) as rig:
        right = rig.share("heavy").weight / rig.share("light").weight
        for counts in ((few, many), (many, few)):
            heavy, light = (
                rig.tenant(name, processes=count)
                for name, count in zip(("heavy", "light"), counts, strict=True)
            )
            rounds = rig.rounds([heavy, light])
            for tenant in (heavy, light):
                against = f"{tenant.processes} against {sum(counts) - tenant.processes} processes"
                figures.append(figure(tenant.name, against, rounds, [tenant]))
            pairs = zip(each(rounds, heavy), each(rounds, light), strict=True)
            ratios = [one / other if other else math.inf for one, other in pairs]
            off += [factor(ratio, right) for ratio in ratios]
            told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            notes.append(f"{counts[0]} processes against {counts[1]}: {told} : 1")
        return outcome(rig, figures, {WEIGHTS: max(off)}, *notes)


@measure("qos-conservation")
def conservation(lab: Lab, workload: Workload) -> Outcome:
    """One identity of the least weight asks; the others, who have reservations, priority and
    weight, were busy and ask for nothing any more."""
    with governed(lab, workload) as rig:
        node = rig.plan.node[Resource.READ]
        busy = rig.tenant("alone", processes=2)
        # The last second of the settling is theirs to go quiet in.
        idle = [
            rig.tenant(one.name, processes=1, end_s=max(0.2, rig.settle_s - 1.0))
            for one in rig.plan.identities
            if one.name.startswith("idle")
        ]
        rounds = rig.rounds([busy, *idle])
        figures = [
            promised("the node's rate", "", node, len(rounds)),
            figure("reads", "", rounds, [busy], cpu=True),
        ]
        used = min(rate / node for rate in each(rounds, busy))
        return outcome(rig, figures, {USED: used}, f"{len(idle)} others are idle")


@measure("qos-starvation")
def starvation(lab: Lab, workload: Workload) -> Outcome:
    """Identities of lower and lower priority beneath a greedy one that could take all."""
    with governed(lab, workload) as rig:
        first = rig.tenant("urgent", processes=3)
        lower = [
            rig.tenant(one.name, processes=1)
            for one in rig.plan.identities
            if one.name.startswith("low")
        ]
        rounds = rig.rounds([first, *lower])
        pauses = {
            tenant.name: max(
                qos_tracks.longest_pause_s(one.tracks[tenant], one.window) for one in rounds
            )
            for tenant in (first, *lower)
        }
        figures = [
            figure("reads", f"by {tenant.name}", rounds, [tenant]) for tenant in (first, *lower)
        ]
        told = ", ".join(f"{name} {pause:.2f} s" for name, pause in pauses.items())
        return outcome(
            rig, figures, {PAUSE: max(pauses.values())}, f"longest time without progress: {told}"
        )


@measure("qos-many")
def many(lab: Lab, workload: Workload) -> Outcome:
    """Many processes of one identity under one small limit take turns."""
    (count,) = workload.load.processes
    with governed(lab, workload) as rig:
        allowed = rig.share("limited").limit
        tenant = rig.tenant("limited", processes=count)
        rounds = rig.rounds([tenant])
        fair_s = count * tenant.operation_bytes / allowed
        waits = [qos_tracks.longest_wait_s(one.tracks[tenant], one.window) for one in rounds]
        counts = [len(track.ended_in(one.window)) for one in rounds for track in one.tracks[tenant]]
        work = f"{count} processes"
        figures = [
            promised("the limit", work, allowed, len(rounds)),
            figure("reads", work, rounds, [tenant], cpu=True),
        ]
        off = max(factor(rate, allowed) for rate in each(rounds, tenant))
        return outcome(
            rig,
            figures,
            {OFF: off, WAIT: max(waits) / fair_s},
            f"a fair share is one read every {fair_s:.2f} s; a process had {min(counts)} to "
            f"{max(counts)} of them in a window",
        )


@measure("qos-both")
def both(lab: Lab, workload: Workload) -> Outcome:
    """One identity with a limit of bytes and one of operations: large reads, small ones, both."""
    large_bytes, small_bytes = workload.option("large_bytes", 0), workload.option("small_bytes", 0)
    figures: list[Figure] = []
    notes: list[str] = []
    above: list[float] = []
    binding: list[float] = []
    with governed(lab, workload) as rig:
        allowed = [rig.share("limited", one).limit for one in (Resource.READ, Resource.OPERATIONS)]
        large = rig.tenant("limited", processes=2, block_bytes=large_bytes)
        small = rig.tenant("limited", processes=2, block_bytes=small_bytes)
        mixes: dict[str, Sequence[Tenant]] = {
            "large reads": [large],
            "small reads": [small],
            "large and small reads": [large, small],
        }
        for work, tenants in mixes.items():
            rounds = rig.rounds(tenants)
            for one in rounds:
                tracks = tracks_of(one, tenants)
                shares = [
                    rate(tracks, one.window) / most
                    for rate, most in zip(RATES, allowed, strict=True)
                ]
                above.append(max(shares))
                binding.append(max(shares))
                notes.append(
                    f"{work}: {shares[0]:.3f} of the bytes, {shares[1]:.3f} of the operations"
                )
            figures.append(promised("the limit of bytes", work, allowed[0], len(rounds)))
            figures.append(figure("reads", work, rounds, tenants))
        return outcome(rig, figures, {ABOVE: max(above), FULL: min(binding)}, *notes)


def _shared_out(rounds: Sequence[Round], tenants: Sequence[Tenant]) -> str:
    told = ", ".join(f"{one.name} {max(each(rounds, one)) / 1e6:.1f}" for one in tenants)
    return f"MB/s: {told}"
