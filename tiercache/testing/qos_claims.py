"""What must be true of a simulation of QoS. Each claim returns the sentences that are false."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

from tiercache.policy.accounts import NODE_BURST_S, burst_of
from tiercache.policy.governor import FLOOR_SHARE_RESERVED
from tiercache.policy.qos import IdentityPlan, Plan
from tiercache.testing.qos_simulation import BIN_S, Bin, Simulation, limits_of

# The window in which shares must hold, after so long for settling.
WINDOW_S = 5.0
SETTLING_S = 2.0
_WINDOW_BINS = int(WINDOW_S / BIN_S)
_SETTLING_BINS = int(SETTLING_S / BIN_S)
Pair = tuple[float, float]  # bytes and operations


def false_claims(simulation: Simulation) -> list[str]:
    """Return what is false of those claims that hold of every simulation."""
    simulation.governor.assert_invariants()
    return [
        *limits_hold(simulation),
        *reservations_are_met(simulation),
        *nobody_starves(simulation),
        *nothing_is_left_undone(simulation),
    ]


def limits_hold(simulation: Simulation) -> list[str]:
    """No bucket admits more than ``rate * t + burst``, and one operation for each payer."""
    false = []
    for key, excess in simulation.seen.excess.items():
        allowed = bursts(simulation.plan).get(key, inf) + simulation.seen.over[key]
        if excess > allowed * (1 + 1e-9):
            false.append(f"{key}: {excess:.0f} tokens over its rate, allowed are {allowed:.0f}")
    return false


def bursts(plan: Plan) -> dict[str, float]:
    """Return the burst of every bucket, by the simulation's name of it."""
    found = {}
    for unit, resource in (("read", 0), ("operations", 2)):
        found[f"node {unit}"] = plan.node[resource] * NODE_BURST_S
        for kind, group in (("class", plan.classes), ("identity", plan.identities)):
            for one in group:
                share = one.shares[resource]
                found[f"{kind} {one.name} {unit}"] = burst_of(share)
    return found


def reservations_are_met(simulation: Simulation, *, share: float = 0.97) -> list[str]:
    """An identity that waits all the time gets what is reserved for it, less an operation at
    either end, unless something that is its own holds it back."""
    false = []
    for identity in simulation.plan.identities:
        reserved = (identity.shares[0].reserve, identity.shares[2].reserve)
        only_bytes = reserved[0] and not reserved[1]
        if not any(reserved) or (only_bytes and simulation.plan.node[2] < inf):
            continue  # operations may bind before bytes do
        largest = largest_operation(simulation, identity.name)
        bins = simulation.seen.identities.get(identity.name, {})
        for window in windows(simulation, bins):
            got = rates(window)
            lacking = [
                f"{identity.name} got {had:.0f} of {want:.0f} reserved"
                for had, want, n in zip(got, reserved, (largest, 1.0), strict=True)
                if had < share * want - n / WINDOW_S
            ]
            # What one resource is short of cannot be used of the other.
            if len(lacking) == sum(map(bool, reserved)) and not is_limited(simulation, identity):
                false += lacking
    return false[:3]


def nobody_starves(simulation: Simulation) -> list[str]:
    """Whoever waits progresses within a second, once its own debt is paid; later only where one
    operation of everybody takes longer than that, at the least rate that floors can have."""
    plan, seen = simulation.plan, simulation.seen
    largest = {name: largest_operation(simulation, name) for name in seen.longest_gap_s}
    all_s = sum(largest.values()) / (FLOOR_SHARE_RESERVED * plan.node[0])
    all_s = max(all_s, len(largest) / (FLOOR_SHARE_RESERVED * plan.node[2]))
    classes = {one.name: one for one in plan.classes}
    false = []
    for identity in plan.identities:
        if identity.name not in largest:
            continue
        class_limits = limits_of(classes[identity.class_name].shares)
        limits = [min(pair) for pair in zip(limits_of(identity.shares), class_limits, strict=True)]
        # At first each of its payers has an operation at once.
        own = f"identity {identity.name}"
        debt_s = seen.over[f"{own} read"] / limits[0] + seen.over[f"{own} operations"] / limits[2]
        mates = f"class {identity.class_name}"
        class_s = (
            seen.over[f"{mates} read"] / class_limits[0]
            + seen.over[f"{mates} operations"] / class_limits[2]
        ) / FLOOR_SHARE_RESERVED
        allowed = max(1.0, all_s, class_s) + debt_s
        if seen.longest_gap_s[identity.name] > allowed:
            false.append(
                f"{identity.name} waited {seen.longest_gap_s[identity.name]:.2f} s, "
                f"allowed are {allowed:.2f} s"
            )
    return false


def nothing_is_left_undone(simulation: Simulation, *, share: float = 0.95) -> list[str]:
    """While somebody waits whom no limit holds back, the node does what it can of something."""
    plan, seen = simulation.plan, simulation.seen
    if plan.node[0] == inf and plan.node[2] == inf:
        return []
    free = [i.name for i in plan.identities if not is_limited(simulation, i)]
    waited: dict[int, Bin] = {}
    for name in free:
        for number, of in seen.identities.get(name, {}).items():
            whole = seen.node.get(number, Bin())
            if of.waiting_turns == seen.turns.get(number):
                waited[number] = replace(whole, waiting_turns=of.waiting_turns)
    largest = max((largest_operation(simulation, name) for name in seen.identities), default=0.0)
    false = []
    for window in windows(simulation, waited):
        read, operations = rates(window)
        parts = (
            (read + largest / WINDOW_S) / plan.node[0],
            (operations + 1 / WINDOW_S) / plan.node[2],
        )
        if max(parts) < share:
            false.append(f"the node did {max(parts):.1%} of what it can while somebody waited")
    return false[:3]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def rate(bins: dict[int, Bin], *, from_s: float, to_s: float) -> Pair:
    """Return bytes and operations a second between two times, which end bins."""
    numbers = range(round(from_s / BIN_S), round(to_s / BIN_S))
    return rates([bins.get(number, Bin()) for number in numbers])


def rates(stretch: Sequence[Bin]) -> Pair:
    """Return bytes and operations a second over a stretch of bins."""
    seconds = len(stretch) * BIN_S
    return (
        sum(of.read_bytes for of in stretch) / seconds,
        sum(of.operations for of in stretch) / seconds,
    )


def windows(simulation: Simulation, bins: dict[int, Bin]) -> Iterator[list[Bin]]:
    """Yield each stretch of ``WINDOW_S`` at every turn of which, and of the settling before,
    somebody waited."""
    stretch: list[Bin] = []
    previous = -1
    turns = simulation.seen.turns
    for number in sorted(bins):
        if (number + 1) * BIN_S > simulation.now_s:
            return  # it is not over
        was_waiting = bins[number].waiting_turns == turns.get(number)
        if number != previous + 1 or not was_waiting:
            stretch = []
        previous = number
        if was_waiting:
            stretch.append(bins[number])
        if len(stretch) >= _SETTLING_BINS + _WINDOW_BINS:
            yield stretch[-_WINDOW_BINS:]


def is_limited(simulation: Simulation, identity: IdentityPlan) -> bool:
    """Say whether a limit of the identity's or of its class can hold it back."""
    group = next(one for one in simulation.plan.classes if one.name == identity.class_name)
    limits: Iterable[float] = (*limits_of(identity.shares), *limits_of(group.shares))
    return any(limit < inf for limit in limits)


def largest_operation(simulation: Simulation, name: str) -> float:
    """Return the bytes of the largest operation that an identity's processes did."""
    return simulation.largest.get(name, 0.0)
