"""QoS over hours: hundreds of identities, thousands of processes that come, die and are stopped,
plans that change while they work."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import pytest

from tiercache.policy.qos import ClassPlan, IdentityPlan, Plan, Share
from tiercache.testing.qos_claims import (
    false_claims,
    jain,
    limits_hold,
    nobody_starves,
    rate,
)
from tiercache.testing.qos_simulation import Load, Simulation, Turns

MB = 1e6
HOUR_S = 3600.0
DAY = (ClassPlan(), ClassPlan(name="high", priority=10), ClassPlan(name="low", priority=-10))


def shares(**read: float) -> tuple[Share, Share, Share]:
    return Share(**read), Share(), Share()


def many(count: int, rng: random.Random) -> tuple[IdentityPlan, ...]:
    """Return identities of all kinds, ``count`` of them."""
    return tuple(
        IdentityPlan(
            name=f"user {number}",
            class_name=rng.choice(DAY).name,
            shares=shares(
                limit=rng.choice((inf, inf, 2 * MB, 20 * MB)),
                reserve=rng.choice((0.0, 0.0, 1 * MB)),
                weight=rng.choice((1.0, 1.0, 4.0)),
            ),
        )
        for number in range(count)
    )


def test_three_hours_of_three_hundred_users(seed: int) -> None:
    """A quarter of an hour apart, a hundred of processes start within seconds, and most die."""
    rng = random.Random(seed)
    plan = Plan(
        node=(800 * MB, inf, 40_000.0), classes=DAY, identities=(IdentityPlan(), *many(300, rng))
    )
    loads = []
    for quarter in range(12):
        start_s = quarter * HOUR_S / 4
        for _ in range(100):
            begins_s = start_s + rng.random()
            loads.append(
                Load(
                    identity=f"user {rng.randrange(300)}",
                    operation_bytes=rng.choice((4096, 65536, 65536, 1 << 20)),
                    gap_s=rng.choice((0.0, 0.02)),
                    begins_s=begins_s,
                    dies_s=begins_s + rng.random() * 2,
                )
            )
    simulation = Simulation(plan, loads, seed=seed, turns=Turns(late_share=0.02, late_s=0.05))
    simulation.run_to(3 * HOUR_S)
    assert not false_claims(simulation)
    assert sum(simulation.seen.turns.values()) < 20_000  # silence costs nothing
    assert simulation.governor.is_idle()
    assert not simulation.processes


def test_two_thousand_idle_processes_stay_idle(seed: int) -> None:
    loads = [Load(identity=f"user {n % 50}", on_s=0.01, off_s=1e6) for n in range(2000)]
    loads.append(Load(identity="busy", begins_s=60.0))
    identities = [IdentityPlan(name=f"user {n}") for n in range(50)]
    plan = Plan(
        node=(500 * MB, inf, inf),
        identities=(IdentityPlan(), *identities, IdentityPlan(name="busy")),
    )
    simulation = Simulation(plan, loads, seed=seed)
    simulation.run_to(70.0)
    assert rate(simulation.seen.identities["busy"], from_s=62, to_s=70)[0] >= 0.95 * 500 * MB
    assert not limits_hold(simulation)


def test_plans_that_change_each_second_keep_limits_and_starve_nobody(seed: int) -> None:
    """Limits fall and rise, classes and weights change, identities vanish and come back."""
    rng = random.Random(seed)
    users = [f"user {n}" for n in range(10)]

    def drawn() -> Plan:
        return Plan(
            node=(rng.choice((100 * MB, 500 * MB)), inf, inf),
            classes=DAY,
            identities=(
                IdentityPlan(),
                *(
                    replace(one, name=name)
                    for name, one in zip(users, many(10, rng), strict=True)
                    if rng.random() < 0.8
                ),
            ),
        )

    loads = [Load(identity=name) for name in users for _ in range(3)]
    simulation = Simulation(drawn(), loads, seed=seed)
    for second in range(1, 40):
        simulation.run_to(float(second))
        simulation.replace(drawn())
        simulation.governor.assert_invariants()
    last = Plan(
        node=(100 * MB, inf, inf),
        identities=(IdentityPlan(), *(IdentityPlan(name=name) for name in users)),
    )
    simulation.replace(last)
    simulation.run_to(50.0)
    simulation.governor.assert_invariants()
    read = [rate(simulation.seen.identities[name], from_s=42, to_s=50)[0] for name in users]
    assert jain(read) >= 0.95
    assert sum(read) == pytest.approx(100 * MB, rel=0.05)


def test_a_limit_that_falls_holds_from_then_on(seed: int) -> None:
    def plan(limit: float) -> Plan:
        return Plan(identities=(IdentityPlan(), IdentityPlan(name="a", shares=shares(limit=limit))))

    simulation = Simulation(plan(100 * MB), [Load(identity="a") for _ in range(4)], seed=seed)
    simulation.run_to(5.0)
    simulation.replace(plan(10 * MB))
    simulation.run_to(15.0)
    assert not limits_hold(simulation)
    assert rate(simulation.seen.identities["a"], from_s=5.5, to_s=15)[0] <= 1.03 * 10 * MB


def test_the_dead_who_waited_hold_up_nobody(seed: int) -> None:
    """Each second one of ten processes is killed while it waits, and its slot lapses late."""
    loads = [Load(identity="a", lapses_s=30.0) for _ in range(20)]
    plan = Plan(identities=(IdentityPlan(), IdentityPlan(name="a", shares=shares(limit=5 * MB))))
    simulation = Simulation(plan, loads, seed=seed)
    for second in range(1, 11):
        simulation.run_to(float(second))
        simulation.kill(second)
    simulation.run_to(20.0)
    assert rate(simulation.seen.identities["a"], from_s=2, to_s=20)[0] >= 0.95 * 5 * MB
    assert not nobody_starves(simulation)


@pytest.mark.parametrize("poll_s", [0.03, 0.2])
def test_those_who_look_rarely_get_their_share(seed: int, poll_s: float) -> None:
    loads = [Load(identity="a", poll_s=poll_s) for _ in range(64)]
    plan = Plan(
        identities=(
            IdentityPlan(),
            IdentityPlan(name="a", shares=(Share(limit=10 * MB), Share(), Share())),
        )
    )
    simulation = Simulation(plan, loads, seed=seed)
    simulation.run_to(9.5)
    assert rate(simulation.seen.identities["a"], from_s=2, to_s=9.5)[0] >= 0.97 * 10 * MB


def test_what_is_told_a_turn_late_is_overspent_by_little(seed: int) -> None:
    """Grants count from what was told: so each payer is at most one more operation too far."""
    plan = Plan(
        node=(100 * MB, inf, inf),
        identities=(
            IdentityPlan(),
            IdentityPlan(name="a", shares=shares(limit=20 * MB)),
            IdentityPlan(name="b"),
        ),
    )
    loads = [Load(identity=name) for name in "ab" for _ in range(8)]
    simulation = Simulation(plan, loads, seed=seed, turns=Turns(lag=True))
    simulation.run_to(9.5)
    for key, over in simulation.seen.over.items():
        simulation.seen.over[key] = 2 * over
    assert not limits_hold(simulation)
    assert rate(simulation.seen.identities["a"], from_s=2, to_s=9.5)[0] == pytest.approx(
        20 * MB, rel=0.03
    )


def test_a_storm_of_processes_gets_no_more_than_one_at_once(seed: int) -> None:
    """A thousand processes of one limited identity come within a second, ask once, and die."""
    rng = random.Random(seed)
    loads = []
    for _ in range(1000):
        begins_s = 3 + rng.random()
        loads.append(Load(identity="a", begins_s=begins_s, dies_s=begins_s + 0.2, lapses_s=0.1))
    plan = Plan(identities=(IdentityPlan(), IdentityPlan(name="a", shares=shares(limit=5 * MB))))
    simulation = Simulation(plan, loads, seed=seed)
    simulation.run_to(20.0)
    read = sum(of.read_bytes for of in simulation.seen.identities["a"].values())
    # A second of its rate and the burst, and what came in the turns before the debt was known.
    assert read <= 5 * MB * 1.5 + 40 * 65536


@pytest.mark.parametrize("every_s", [0.001, 0.02, 0.05, 0.1])
def test_a_limit_holds_whatever_the_length_of_turns(seed: int, every_s: float) -> None:
    plan = Plan(identities=(IdentityPlan(), IdentityPlan(name="a", shares=shares(limit=50 * MB))))
    loads = [Load(identity="a") for _ in range(8)]
    turns = Turns(every_s=every_s, jitter_s=every_s / 10)
    simulation = Simulation(plan, loads, seed=seed, turns=turns)
    simulation.run_to(9.5)
    assert not limits_hold(simulation)
    assert rate(simulation.seen.identities["a"], from_s=2, to_s=9.5)[0] >= 0.95 * 50 * MB


def test_the_first_turn_after_silence_lends_no_more_than_there_is(seed: int) -> None:
    """Floors of identities that one class bounds together, after a turn of seconds."""
    batch = ClassPlan(name="batch", shares=shares(limit=40 * MB))
    users = [IdentityPlan(name=name, class_name="batch") for name in "ab"]
    plan = Plan(
        node=(500 * MB, inf, inf),
        classes=(ClassPlan(), batch),
        identities=(IdentityPlan(), *users),
    )
    loads = [Load(identity=name, operation_bytes=1 << 20, begins_s=1.5) for name in "ab"]
    simulation = Simulation(plan, loads, seed=seed)
    simulation.run_to(4.0)
    assert not limits_hold(simulation)
