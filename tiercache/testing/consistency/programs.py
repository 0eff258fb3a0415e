"""What the clients of one history do, drawn from its seed: the same seed, the same programs. Pure.

Times between operations repeat too; how operations interleave does not, for that is up to the
machine. So a seed that failed may pass: run it some times over (``--copies``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tiercache.model import PAGE_BYTES
from tiercache.testing.consistency.operations import LINE_BYTES, ORIGIN, Kind
from tiercache.testing.network import Fault
from tiercache.testing.timeline import Condition, Period, Timeline

PROCESSES: Mapping[str, str] = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "out": ORIGIN}
"""Each process, and the site at which it works."""
KEYS = ("k0", "k1")

SITE_MIX = {
    Kind.READ: 25,
    Kind.HANDLE: 20,
    Kind.STAT: 15,
    Kind.LIST: 6,
    Kind.WRITE: 11,
    Kind.CREATE: 9,
    Kind.REPLACE: 8,
    Kind.DELETE: 6,
}
READER_MIX = {**SITE_MIX, Kind.WRITE: 2, Kind.CREATE: 2, Kind.REPLACE: 2, Kind.DELETE: 1}
ORIGIN_MIX = {Kind.READ: 20, Kind.WRITE: 45, Kind.CREATE: 10, Kind.DELETE: 20}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. ``value`` and ``size_bytes`` are of a write; ``variant`` chooses among calls
    that do the same. ``pause_s`` passes before it, ``rest_s`` within it, where it has an inside
    (between two reads of a handle)."""

    kind: Kind
    key: str
    pause_s: float
    rest_s: float = 0.0
    value: str = ""
    size_bytes: int = 0
    variant: int = 0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """How histories are drawn. Pauses are evenly distributed up to ``pause_s``; shares of sizes are
    those of ``SIZES``, of which ``largest`` leaves the largest out."""

    steps: int = 8
    keys: tuple[str, ...] = KEYS
    pause_s: float = 0.3
    site_mix: dict[Kind, int] = msgspec.field(default_factory=lambda: dict(SITE_MIX))
    origin_mix: dict[Kind, int] = msgspec.field(default_factory=lambda: dict(ORIGIN_MIX))
    faults: int = 2
    smallest_bytes: int = 0


# Less than a page, about a page, some pages, more than the cache packs.
SIZES = ((64, 4_000), (PAGE_BYTES - 200, PAGE_BYTES + 200), (100_000, 250_000), (270_000, 420_000))
SIZE_SHARES = (70, 18, 7, 5)


def programs(seed: int, workload: Workload) -> dict[str, list[Step]]:
    """Return each process's steps. Sizes are unique in a history, so that one names its value."""
    rng = random.Random(f"tiercache history {seed}")
    sizes: set[int] = set()
    return {
        process: _steps(rng, process, sizes, workload, at_origin=site == ORIGIN)
        for process, site in PROCESSES.items()
    }


def sizes_of(steps: Mapping[str, list[Step]]) -> dict[int, str]:
    """Return the value of each size."""
    return {
        step.size_bytes: step.value for steps_ in steps.values() for step in steps_ if step.value
    }


def _steps(
    rng: random.Random, process: str, sizes: set[int], workload: Workload, *, at_origin: bool
) -> list[Step]:
    mix = workload.origin_mix if at_origin else workload.site_mix
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=workload.steps)
    steps = []
    for number, kind in enumerate(kinds):
        kind = Kind(kind)
        steps.append(
            Step(
                kind=kind,
                key=rng.choice(workload.keys),
                pause_s=rng.uniform(0.0, workload.pause_s),
                rest_s=rng.uniform(0.0, workload.pause_s),
                value=f"{process}.{number}" if kind.is_write else "",
                size_bytes=_size(rng, sizes, workload.smallest_bytes) if kind.is_write else 0,
                variant=rng.randrange(100),
            )
        )
    return steps


def _size(rng: random.Random, taken: set[int], smallest_bytes: int) -> int:
    while True:
        (bounds,) = rng.choices(SIZES, weights=SIZE_SHARES)
        size = rng.randint(*bounds)
        # A piece of less than a line would not name its value.
        if size not in taken and size >= smallest_bytes and size % PAGE_BYTES >= LINE_BYTES:
            taken.add(size)
            return size


# -- faults ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """A fault of one history's requests at one site, so many seconds after its begin."""

    site: str
    after_s: float
    fault: Fault = field(default_factory=Fault)


def faults_of(seed: int, directory: str, workload: Workload) -> list[PlannedFault]:
    """Return what goes wrong for this history alone: lost answers, slow ones, resets, refusals."""
    rng = random.Random(f"tiercache faults {seed}")
    path = f"/{directory}/"
    kinds = (
        Fault(methods=("PUT",), path_contains=path, lose_answer=True, times=1),
        Fault(methods=("PUT",), path_contains=path, lose_answer=True, times=2),
        Fault(methods=("HEAD",), path_contains=path, lose_answer=True, times=2),
        Fault(methods=("GET",), path_contains=path, lose_answer=True, times=2),
        Fault(methods=("DELETE",), path_contains=path, lose_answer=True, times=1),
        Fault(methods=("HEAD",), path_contains=path, first_byte_delay_s=0.25, times=2),
        Fault(methods=("GET",), path_contains=path, first_byte_delay_s=0.25, times=2),
        Fault(methods=("PUT",), path_contains=path, first_byte_delay_s=0.25, times=2),
        Fault(methods=("GET",), path_contains=path, reset_after_bytes=1000, times=2),
        Fault(methods=("GET",), path_contains=path, truncate_after_bytes=70_000, times=1),
        Fault(path_contains=path, respond_status=503, times=1),
    )
    span_s = workload.steps * workload.pause_s / 2
    return [
        PlannedFault(
            site=rng.choice(("a", "b")), after_s=rng.uniform(0.0, span_s), fault=rng.choice(kinds)
        )
        for _ in range(workload.faults)
    ]


def weather(seed: int, site: str, *, seconds: float) -> Timeline:
    """Return what one site's network goes through: calm, then a partition, refused connections, or
    lost answers for all, again and again."""
    rng = random.Random(f"tiercache weather {seed} {site}")
    storms: tuple[tuple[Condition | Fault, float, str], ...] = (
        (Condition.OUTAGE, 0.4, "partition"),
        (Condition.OUTAGE, 1.2, "partition"),
        (Condition.REFUSE, 0.5, "refused"),
        (Fault(lose_answer=True), 0.15, "lost answers"),
        (Fault(methods=("HEAD",), first_byte_delay_s=0.2), 0.5, "slow"),
    )
    periods: list[Period] = []
    at_s = rng.uniform(0.5, 2.0)
    while at_s < seconds:
        what, length_s, text = rng.choice(storms)
        periods.append(Period(from_s=at_s, to_s=at_s + length_s, what=what, text=text))
        at_s += length_s + rng.uniform(1.5, 3.5)
    return Timeline(tuple(periods))
