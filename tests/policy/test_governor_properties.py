"""Whatever the plan and the loads: limits hold, reservations are met, nobody starves, and nothing
is left undone. Hypothesis draws plans, loads and turns, and the simulation runs them."""

from __future__ import annotations

from math import inf

from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from tiercache.policy.qos import ClassPlan, IdentityPlan, Plan, Share
from tiercache.testing.qos_claims import false_claims
from tiercache.testing.qos_simulation import Load, Simulation, Turns

MB = 1e6
RUN_S = 9.6
SIZES = (0, 4096, 65536, 1 << 20, 8 << 20)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    node_read = draw(st.sampled_from((inf, 50 * MB, 500 * MB)))
    node_operations = draw(st.sampled_from((inf, inf, 2000.0)))
    classes = [
        ClassPlan(
            name="default" if number == 0 else f"class {number}",
            priority=draw(st.integers(0, 2)),
            shares=(
                Share(limit=draw(st.sampled_from((inf, inf, 40 * MB))), weight=draw(weights)),
                Share(),
                Share(),
            ),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    count = draw(st.integers(1, 5))
    identities = [
        IdentityPlan(
            name="default" if number == 0 else f"identity {number}",
            class_name=draw(st.sampled_from(classes)).name,
            shares=(
                Share(
                    # All reservations together are at most what the node has.
                    reserve=draw(st.sampled_from((0.0, 0.5, 1.0))) * node_read / count
                    if node_read < inf
                    else 0.0,
                    limit=draw(st.sampled_from((inf, inf, 5 * MB, 100 * MB))),
                    weight=draw(weights),
                ),
                Share(),
                Share(limit=draw(st.sampled_from((inf, inf, 100.0)))),
            ),
        )
        for number in range(count)
    ]
    return Plan(
        node=(node_read, inf, node_operations),
        classes=tuple(classes),
        identities=tuple(identities),
    )


weights = st.sampled_from((0.5, 1.0, 3.0, 10.0))


@st.composite
def loads(draw: st.DrawFn, names: list[str]) -> Load:
    begins_s = draw(st.sampled_from((0.0, 0.0, 0.0, 1.5)))
    kind = draw(st.sampled_from(("greedy", "greedy", "poisson", "bursts")))
    return Load(
        identity=draw(st.sampled_from(names)),
        operation_bytes=draw(st.sampled_from(SIZES)),
        service_s=draw(st.sampled_from((10e-6, 100e-6))),
        gap_s=draw(st.sampled_from((0.002, 0.05))) if kind == "poisson" else 0.0,
        on_s=0.05 if kind == "bursts" else inf,
        off_s=0.2 if kind == "bursts" else 0.0,
        begins_s=begins_s,
        dies_s=draw(st.sampled_from((inf, inf, inf, 4.0))),
    )


late_turns = st.sampled_from((Turns(), Turns(jitter_s=0.01), Turns(late_share=0.05, late_s=0.05)))


@given(st.data(), plans(), late_turns, st.integers(0, 2**32))
# No shrinking: a simulation takes a tenth of a second, and its seed reproduces it.
@settings(max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_all_claims_hold(data: st.DataObject, plan: Plan, turns: Turns, seed: int) -> None:
    names = [identity.name for identity in plan.identities]
    drawn = data.draw(st.lists(loads(names), min_size=1, max_size=8))
    simulation = Simulation(plan, drawn, seed=seed, turns=turns)
    simulation.run_to(RUN_S)
    note(f"seed {seed}, used {simulation.seen.excess}")
    assert not false_claims(simulation)
