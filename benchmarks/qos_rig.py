"""A node under a QoS policy, tenants in processes of their own, and the windows they are judged in.

The policy stands in the workload's file, and what it promises is read from it: figures are what
processes got, by their own clocks, beside the plan's. Node rates lie far below what the machine
can deliver, so that the policy and not the processors limit.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import processes as kernel
from benchmarks import sampler
from benchmarks.harness import Figure, Missing, Outcome, Role, Sample
from benchmarks.lab import Lab, path_of, settle
from benchmarks.workload import Workload
from tiercache.config.qos_policy import parse_policy
from tiercache.namespace import Namespace
from tiercache.policy.qos import IdentityPlan, Plan, Resource, Share
from tiercache.policy.qos_schedule import Moment
from tiercache.settings import QosSettings, Settings
from tiercache.testing import qos_tracks
from tiercache.testing.qos_load import Play, Tenant, Tracks
from tiercache.testing.qos_tracks import Track, Window

UNIT = "MB/s"
NO_RIVALS = (
    Missing(
        name="rivals",
        why="none rations a node's cache among identities: s3fs, rclone and multi-storage-client "
        "let whoever asks most get most",
    ),
)


class Round(NamedTuple):
    """What was done in one window, and what it took of processor time."""

    tracks: Tracks
    window: Window
    cpu_s: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A node with one cached object, under the workload's policy."""

    workload: Workload
    namespace: Namespace
    settings: Settings
    plan: Plan
    path: str
    length_bytes: int

    def tenant(
        self,
        name: str,
        *,
        processes: int = 1,
        block_bytes: int = 0,
        rate: float = math.inf,
        end_s: float = math.inf,
    ) -> Tenant:
        """Return greedy readers of the object, or paced ones."""
        return Tenant(
            name=name,
            paths=(self.path,),
            length_bytes=self.length_bytes,
            block_bytes=block_bytes or self.workload.access.block_bytes,
            processes=processes,
            rate=rate,
            end_s=end_s,
        )

    @property
    def settle_s(self) -> float:
        return float(self.workload.options["settle_s"])

    def identity(self, name: str) -> IdentityPlan:
        return next(one for one in self.plan.identities if one.name == name)

    def share(self, name: str, resource: Resource = Resource.READ) -> Share:
        return self.identity(name).shares[resource]

    def rounds(self, tenants: Sequence[Tenant]) -> list[Round]:
        return [self.round(tenants) for _ in range(self.workload.load.rounds)]

    def round(self, tenants: Sequence[Tenant]) -> Round:
        """Let them work, cut the window after the settling, and count its processor time."""
        settle()
        begin_s = self.settle_s
        end_s = begin_s + self.workload.load.seconds
        with Play(self.settings, tenants, seconds=end_s) as play:
            play.start()
            window = play.window(begin_s, end_s)
            before = self._at(window.begin_ns, play)
            after = self._at(window.end_ns, play)
            tracks = play.tracks()
        return Round(tracks, window, {kind: after[kind] - before[kind] for kind in after})

    def _at(self, at_ns: int, play: Play) -> dict[str, float]:
        time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))
        pids = {"reader": _group(play.group_id), "agent": [kernel.agent_pid(self.namespace)]}
        return {kind: sum(kernel.cpu_s(pid) or 0.0 for pid in of) for kind, of in pids.items()}


def _group(group_id: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == group_id:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@contextmanager
def governed(lab: Lab, workload: Workload, *, free: bool = False) -> Iterator[Rig]:
    """Yield a node of its own under the policy that stands in the workload's file; ``free``: under
    none, for comparison."""
    (found,) = lab.objects(workload.dataset)
    text = str(workload.options["policy"])
    settings = lab.settings() if free else with_policy(lab, text)
    with lab.namespace(settings) as namespace:
        namespace.prefetch(path_of(found.key), background=False).wait()
        yield Rig(
            workload=workload,
            namespace=namespace,
            settings=settings,
            plan=plan_of(text),
            path=path_of(found.key),
            length_bytes=found.length,
        )


def plan_of(text: str) -> Plan:
    """Return what a policy without schedules says."""
    return parse_policy(text, where="the workload's policy").plan(Moment(weekday=0, minute=0))


def with_policy(lab: Lab, text: str, *, endpoint: str = "") -> Settings:
    """Return settings over a cache of their own that this policy governs."""
    file = lab.folder("policy") / "qos.toml"
    file.write_text(text)
    settings = lab.settings(endpoint=endpoint)
    return msgspec.structs.replace(settings, qos=QosSettings(policy=str(file)))


# -- what a measure returns ---------------------------------------------------------------------


def outcome(rig: Rig, figures: Sequence[Figure], numbers: dict[str, float], *notes: str) -> Outcome:
    load = rig.workload.load
    return Outcome(
        figures=tuple(figures),
        missing=NO_RIVALS,
        numbers=numbers,
        sizes={"read_bytes": rig.workload.access.block_bytes, "rounds": load.rounds},
        notes=(
            f"windows of {load.seconds:g} s after {rig.settle_s:g} s of settling; µs are of single "
            "reads, with their waits",
            *notes,
        ),
    )


def figure(
    name: str, work: str, rounds: Sequence[Round], tenants: Sequence[Tenant], *, cpu: bool = False
) -> Figure:
    """Return what these tenants got together, a value a round. ``cpu``: with the processor time of
    the whole round, all tenants'."""
    parts = [tracks_of(one, tenants) for one in rounds]
    values = [
        qos_tracks.byte_rate(tracks, one.window) / 1e6
        for tracks, one in zip(parts, rounds, strict=True)
    ]
    seconds = sum(one.window.seconds for one in rounds)
    took = [ns for one, own in zip(rounds, parts, strict=True)
            for ns in qos_tracks.took_ns(own, one.window)]  # fmt: skip
    return Figure(
        name=name,
        role="ours",
        unit=UNIT,
        values=tuple(values),
        higher_is_better=True,
        processes=sum(one.processes for one in tenants),
        work=work,
        sample=Sample(
            operations=len(took),
            bytes=round(sum(values) * 1e6 * seconds / len(values)),
            seconds=seconds,
            latency=sampler.latency(sampler.histogram(took)),
            cpu_s={kind: sum(one.cpu_s[kind] for one in rounds) for kind in rounds[0].cpu_s}
            if cpu
            else {},
        ),
    )


def promised(name: str, work: str, rate: float, rounds: int, role: Role = "bound") -> Figure:
    """Return a rate of the plan, in bytes a second, as a figure beside the measured ones."""
    return Figure(
        name=name,
        role=role,
        unit=UNIT,
        values=(rate / 1e6,) * rounds,
        higher_is_better=True,
        work=work,
    )


def tracks_of(one: Round, tenants: Sequence[Tenant]) -> list[Track]:
    return [track for tenant in tenants for track in one.tracks[tenant]]


def each(rounds: Sequence[Round], tenant: Tenant) -> list[float]:
    """Return the bytes a second that a tenant got, a value a round."""
    return [qos_tracks.byte_rate(one.tracks[tenant], one.window) for one in rounds]


def factor(one: float, other: float) -> float:
    """Return by what factor they differ: 1 is not at all."""
    if not one or not other:
        return math.inf
    return max(one / other, other / one)
