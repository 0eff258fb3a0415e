"""The bars of QoS, in simulated seconds, with turns that come in time and ones that come late."""

from __future__ import annotations

from math import inf

import pytest

from tiercache.policy.qos import ClassPlan, IdentityPlan, Plan, Share
from tiercache.testing.qos_claims import WINDOW_S, false_claims, jain, rate
from tiercache.testing.qos_simulation import BIN_S, Load, Simulation, Turns

MB = 1e6
K64 = 65536
NODE = (500 * MB, inf, inf)
SETTLED_S = 2.0
END_S = 9.5
TURNS = [
    pytest.param(Turns(), id="in time"),
    pytest.param(Turns(late_share=0.2, late_s=0.06), id="late"),
]
pytestmark = pytest.mark.parametrize("turns", TURNS)


def identity(
    name: str, *, class_name: str = "default", operations: Share = Share(), **read: float
) -> IdentityPlan:
    return IdentityPlan(
        name=name, class_name=class_name, shares=(Share(**read), Share(), operations)
    )


def plan(
    *identities: IdentityPlan, classes: tuple[ClassPlan, ...] = (), node: tuple[float, ...] = NODE
) -> Plan:
    read, write, operations = node
    return Plan(
        node=(read, write, operations),
        classes=(ClassPlan(), *classes),
        identities=(IdentityPlan(), *identities),
    )


def greedy(name: str, count: int = 1, *, operation_bytes: int = K64) -> list[Load]:
    return [Load(identity=name, operation_bytes=operation_bytes) for _ in range(count)]


def run(plan: Plan, loads: list[Load], turns: Turns, seed: int) -> Simulation:
    simulation = Simulation(plan, loads, seed=seed, turns=turns)
    simulation.run_to(END_S)
    assert not false_claims(simulation)
    return simulation


def read_rates(simulation: Simulation, name: str) -> list[float]:
    """Return the bytes a second of each window of 5 s, one every half of a second."""
    bins = simulation.seen.identities[name]
    starts = [SETTLED_S + step * BIN_S for step in range(6)]
    assert starts[-1] + WINDOW_S <= END_S
    return [rate(bins, from_s=start_s, to_s=start_s + WINDOW_S)[0] for start_s in starts]


def settled(simulation: Simulation, name: str) -> tuple[float, float]:
    return rate(simulation.seen.identities[name], from_s=SETTLED_S, to_s=END_S)


@pytest.mark.parametrize("count", [1, 8])
def test_a_limit_is_kept_within_3_percent(turns: Turns, seed: int, count: int) -> None:
    only = plan(identity("a", limit=50 * MB), node=(inf, inf, inf))
    simulation = run(only, greedy("a", count), turns, seed)
    for found in read_rates(simulation, "a"):
        assert found == pytest.approx(50 * MB, rel=0.03)


def test_a_reservation_is_met_beside_three_greedy_others(turns: Turns, seed: int) -> None:
    shares = plan(identity("a", reserve=300 * MB), identity("b"), identity("c"), identity("d"))
    others = greedy("b", 4) + greedy("c", 2, operation_bytes=4 << 20) + greedy("d")
    simulation = run(shares, greedy("a") + others, turns, seed)
    for found in read_rates(simulation, "a"):
        assert found >= 0.97 * 300 * MB
    # What is reserved counts towards what its weight gives it, which is less here.
    assert settled(simulation, "a")[0] <= 1.05 * 300 * MB


@pytest.mark.parametrize("counts", [(1, 7), (7, 1), (4, 4)])
def test_weights_hold_whatever_the_process_counts(
    turns: Turns, seed: int, counts: tuple[int, int]
) -> None:
    loads = greedy("a", counts[0]) + greedy("b", counts[1])
    simulation = run(plan(identity("a", weight=3.0), identity("b")), loads, turns, seed)
    ratio = settled(simulation, "a")[0] / settled(simulation, "b")[0]
    assert ratio == pytest.approx(3, rel=0.1)


def test_who_is_alone_has_the_node(turns: Turns, seed: int) -> None:
    shares = plan(identity("a", reserve=400 * MB), identity("b", weight=9.0), identity("c"))
    simulation = run(shares, greedy("c", 2), turns, seed)
    assert settled(simulation, "c")[0] >= 0.95 * 500 * MB


def test_all_progress_within_a_second(turns: Turns, seed: int) -> None:
    shares = plan(
        identity("training", class_name="high", reserve=300 * MB),
        *(identity(f"notebook {number}") for number in range(20)),
        classes=(ClassPlan(name="high", priority=10),),
    )
    loads = greedy("training", 4)
    for number in range(20):
        loads += greedy(f"notebook {number}", operation_bytes=K64 << number % 3)
    simulation = run(shares, loads, turns, seed)
    assert max(simulation.seen.longest_gap_s.values()) <= 1.0


def test_64_processes_take_turns_on_a_small_limit(turns: Turns, seed: int) -> None:
    only = plan(identity("a", limit=5 * MB), node=(inf, inf, inf))
    simulation = run(only, greedy("a", 64), turns, seed)
    for found in read_rates(simulation, "a"):
        assert found == pytest.approx(5 * MB, rel=0.1)
    processes = simulation.seen.processes.values()
    assert jain([rate(bins, from_s=SETTLED_S, to_s=END_S)[0] for bins in processes]) >= 0.95
    assert max(simulation.seen.longest_wait_s.values()) <= 2 * 64 * K64 / (5 * MB)


def test_bytes_and_operations_are_both_limited(turns: Turns, seed: int) -> None:
    only = plan(identity("a", limit=50 * MB, operations=Share(limit=400.0)), node=(inf, inf, inf))
    # Small ones only run into the limit of operations, and with large ones into that of bytes.
    for loads, bound in (
        (greedy("a", 8, operation_bytes=4096), 1),
        (greedy("a", 8, operation_bytes=1 << 20), 0),
    ):
        simulation = run(only, loads, turns, seed)
        found, most = settled(simulation, "a")[bound], (50 * MB, 400.0)[bound]
        assert found == pytest.approx(most, rel=0.03)


def test_equals_get_the_same_whatever_the_sizes_of_their_operations(
    turns: Turns, seed: int
) -> None:
    names = [f"job {number}" for number in range(8)]
    loads = [
        load
        for number, name in enumerate(names)
        for load in greedy(name, 1 + number, operation_bytes=4096 << number % 4 * 3)
    ]
    simulation = run(plan(*map(identity, names)), loads, turns, seed)
    assert jain([settled(simulation, name)[0] for name in names]) >= 0.99


def test_a_huge_operation_keeps_nobody_waiting_and_is_admitted(turns: Turns, seed: int) -> None:
    huge = greedy("a", operation_bytes=256 << 20)
    simulation = run(
        plan(identity("a"), identity("b"), node=(100 * MB, inf, inf)),
        huge + greedy("b", 3),
        turns,
        seed,
    )
    assert simulation.seen.longest_gap_s["b"] <= 0.2
    # Its first one at once, and each other once a half of the node has paid for the one before.
    assert sum(of.operations for of in simulation.seen.identities["a"].values()) == 2


def test_who_reads_now_and_then_does_not_wait_beside_a_greedy_one_below_it(
    turns: Turns, seed: int
) -> None:
    shares = plan(
        identity("training", class_name="high"),
        identity("prefetch"),
        classes=(ClassPlan(name="high", priority=10),),
    )
    training = [Load(identity="training", gap_s=0.001) for _ in range(4)]
    prefetch = greedy("prefetch", 4, operation_bytes=1 << 20)
    simulation = run(shares, training + prefetch, turns, seed)
    bins = simulation.seen.identities["training"]
    operations = sum(of.operations for number, of in bins.items() if number >= 4)
    assert sum(of.waits for number, of in bins.items() if number >= 4) <= 0.01 * operations


def test_many_who_read_in_bursts_do_not_keep_the_node_from_who_reads_on(
    turns: Turns, seed: int
) -> None:
    names = [f"user {number}" for number in range(30)]
    bursts = [Load(identity=name, on_s=0.02, off_s=0.8, service_s=10e-6) for name in names]
    shares = plan(*map(identity, names), identity("steady"))
    simulation = run(shares, bursts + greedy("steady"), turns, seed)
    whole = rate(simulation.seen.node, from_s=SETTLED_S, to_s=END_S)[0]
    assert whole >= 0.97 * 500 * MB


def test_a_class_is_bounded_and_shared_by_weight(turns: Turns, seed: int) -> None:
    shares = plan(
        identity("a", class_name="batch", weight=2.0),
        identity("b", class_name="batch"),
        identity("c"),
        classes=(
            ClassPlan(name="batch", priority=5, shares=(Share(limit=90 * MB), Share(), Share())),
        ),
    )
    simulation = run(shares, greedy("a", 2) + greedy("b", 5) + greedy("c"), turns, seed)
    read = {name: settled(simulation, name)[0] for name in "abc"}
    assert read["a"] + read["b"] == pytest.approx(90 * MB, rel=0.03)
    assert read["a"] / read["b"] == pytest.approx(2, rel=0.1)
    assert read["c"] == pytest.approx(410 * MB, rel=0.05)


def test_classes_of_one_priority_are_shared_by_their_weights(turns: Turns, seed: int) -> None:
    heavy = ClassPlan(name="heavy", shares=(Share(weight=3.0), Share(), Share()))
    shares = plan(identity("a", class_name="heavy"), identity("b"), identity("c"), classes=(heavy,))
    simulation = run(shares, greedy("a") + greedy("b", 3) + greedy("c"), turns, seed)
    read = {name: settled(simulation, name)[0] for name in "abc"}
    assert read["a"] / (read["b"] + read["c"]) == pytest.approx(3, rel=0.1)
    assert read["b"] == pytest.approx(read["c"], rel=0.1)


def test_what_is_reserved_for_a_class_goes_to_it_before_those_above(
    turns: Turns, seed: int
) -> None:
    low = ClassPlan(name="low", priority=-5, shares=(Share(reserve=100 * MB), Share(), Share()))
    shares = plan(
        identity("a", class_name="low"),
        identity("b", class_name="low"),
        identity("c"),
        classes=(low,),
    )
    simulation = run(shares, greedy("a") + greedy("b", 3) + greedy("c", 2), turns, seed)
    for found in (settled(simulation, "a")[0], settled(simulation, "b")[0]):
        assert found == pytest.approx(50 * MB, rel=0.05)


def test_what_is_reserved_for_a_class_counts_towards_its_weight(turns: Turns, seed: int) -> None:
    kept = ClassPlan(name="kept", shares=(Share(reserve=300 * MB), Share(), Share()))
    shares = plan(identity("a", class_name="kept"), identity("b"), classes=(kept,))
    simulation = run(shares, greedy("a") + greedy("b"), turns, seed)
    assert settled(simulation, "a")[0] == pytest.approx(300 * MB, rel=0.05)
