"""What the governor grants, as tables. Long runs are in tests/simulation."""

from __future__ import annotations

from math import inf

import pytest

from tiercache.policy.governor import Governor
from tiercache.policy.qos import IdentityPlan, Plan, Rates, Share

MB = 1e6
UNBOUNDED = (inf, inf, inf)
READ_64K: Rates = (65536.0, 0.0, 1.0)


def identity(name: str, *, read: Share = Share(), operations: Share = Share()) -> IdentityPlan:
    return IdentityPlan(name=name, shares=(read, Share(), operations))


def plan(*identities: IdentityPlan, node: Rates = UNBOUNDED) -> Plan:
    return Plan(node=node, identities=(IdentityPlan(), *identities))


def test_nothing_is_rationed_where_nothing_is_bounded() -> None:
    governor = Governor(plan(identity("a", read=Share(weight=3))), 0.0)
    payer = governor.join("a")
    governor.used(payer, READ_64K)
    governor.wants(payer, READ_64K, 0.0)
    governor.turn(0.01)
    assert governor.grant(payer) == UNBOUNDED
    assert governor.share(payer) == UNBOUNDED
    assert governor.safe(payer) == UNBOUNDED
    assert governor.admit(payer, READ_64K, 0.01)


def test_who_comes_has_one_operation_at_once_and_an_idle_one_keeps_it() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    payer = governor.join("a")
    assert governor.grant(payer) == (1.0, inf, inf)
    for turn in range(200):
        governor.turn(turn / 100)
    assert governor.is_idle()
    assert governor.grant(payer) == (1.0, inf, inf)


@pytest.mark.parametrize(("count", "part"), [(1, 0.1), (10, 0.1), (40, 1 / 40)])
def test_without_an_agent_all_of_an_identity_stay_within_its_limit(count: int, part: float) -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB)), node=(9 * MB, inf, inf)), 0.0)
    payers = [governor.join("a") for _ in range(count)]
    assert governor.safe(payers[0]) == pytest.approx((part * MB, inf, inf))


def test_an_unknown_identity_is_the_default() -> None:
    governor = Governor(plan(identity("a")), 0.0)
    governor.join("nobody")
    assert [report.payers for report in governor.report()] == [1, 0]


def test_payers_of_an_identity_that_comes_again_are_its_own_again() -> None:
    with_a = plan(identity("a", read=Share(limit=MB)))
    governor = Governor(with_a, 0.0)
    waiting, idle = governor.join("a"), governor.join("a")
    governor.wants(waiting, READ_64K, 0.0)
    governor.turn(0.01)
    governor.replace(plan(), 0.02)
    assert [report.payers for report in governor.report()] == [2]
    assert governor.grant(idle) == UNBOUNDED
    governor.replace(with_a, 0.03)
    governor.turn(0.04)
    assert [(one.payers, one.waiting) for one in governor.report()] == [(0, 0), (2, 1)]
    governor.used(idle, (2 * MB, 0.0, 1.0))
    governor.turn(0.05)
    assert governor.grant(idle)[0] == governor.grant(waiting)[0] == 0
    governor.leave(waiting)
    governor.leave(idle)
    governor.assert_invariants()


def test_a_limit_in_debt_admits_nobody_until_it_is_paid() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    one, other = governor.join("a"), governor.join("a")
    governor.used(one, (2 * MB, 0.0, 1.0))
    governor.wants(other, READ_64K, 0.0)
    for turn in range(1, 190):
        governor.turn(turn / 100)
        assert governor.grant(other)[0] == 0
    governor.turn(1.93)
    assert governor.grant(other)[0] > 0


def test_admit_pays_at_once_or_not_at_all() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    payer = governor.join("a")
    assert governor.admit(payer, READ_64K, 0.0)
    assert governor.admit(payer, READ_64K, 0.0)
    assert not governor.admit(payer, READ_64K, 0.0)
    assert not governor.admit(payer, READ_64K, 0.0)
    assert governor.admit(payer, READ_64K, 0.1)


def test_admit_goes_behind_who_waits() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    agent, process = governor.join("a"), governor.join("a")
    governor.used(agent, (1.0, 0.0, 1.0))
    governor.wants(process, READ_64K, 0.0)
    assert not governor.admit(agent, READ_64K, 0.0)
    governor.wants(process, (0.0, 0.0, 0.0), 0.0)
    assert governor.admit(agent, READ_64K, 0.0)


@pytest.mark.parametrize("operation_bytes", [65536, 1 << 20, 8 << 20])
@pytest.mark.parametrize("bound", ["limit", "node"])
def test_a_line_in_the_agent_gets_its_rate(operation_bytes: int, bound: str) -> None:
    """As the agent's admission does it: the head of a line says what it wants, and all are admitted
    that a turn admits. Beside it a process that reads on."""
    rate = 50 * MB
    limited = Share(limit=rate if bound == "limit" else inf)
    node = (inf, 2 * rate if bound == "node" else inf, inf)
    governor = Governor(
        Plan(
            node=node,
            identities=(
                IdentityPlan(),
                IdentityPlan(name="a", shares=(Share(), limited, Share())),
                IdentityPlan(name="b"),
            ),
        ),
        0.0,
    )
    lines = [governor.join("a"), governor.join("b")]
    amounts: Rates = (0.0, float(operation_bytes), 1.0)
    admitted = [0.0, 0.0]
    for turn in range(1, 301):
        now_s = turn / 100
        governor.turn(now_s)
        for number, line in enumerate(lines):
            for _ in range(1000):
                if not governor.admit(line, amounts, now_s):
                    break
                admitted[number] += operation_bytes
            governor.wants(line, amounts, now_s)
    # A burst of the node and an operation that is in debt at either end.
    assert admitted[0] == pytest.approx(3 * rate, abs=0.15 * rate + operation_bytes)


def test_those_of_an_identity_that_vanishes_go_on_as_the_default() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    payer = governor.join("a")
    governor.used(payer, (5 * MB, 0.0, 1.0))
    governor.replace(plan(), 0.5)
    governor.turn(0.51)
    assert governor.grant(payer) == UNBOUNDED
    assert [report.payers for report in governor.report()] == [1]


def test_a_debt_outlives_a_change_of_the_plan() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    payer = governor.join("a")
    governor.used(payer, (5 * MB, 0.0, 1.0))
    governor.replace(plan(identity("a", read=Share(limit=2 * MB))), 0.5)
    governor.wants(payer, READ_64K, 0.5)
    governor.turn(0.51)
    assert governor.grant(payer)[0] == 0
    governor.turn(3.0)
    assert governor.grant(payer)[0] > 0


def test_who_is_alone_is_granted_all_that_the_node_has() -> None:
    governor = Governor(plan(identity("a"), identity("b"), node=(100 * MB, inf, inf)), 0.0)
    payer = governor.join("a")
    governor.used(payer, READ_64K)
    governor.turn(0.01)
    assert governor.grant(payer)[0] > 0.1 * 100 * MB


def test_what_was_granted_and_is_not_needed_is_another_s_at_the_next_turn() -> None:
    governor = Governor(plan(identity("a"), identity("b"), node=(100 * MB, inf, inf)), 0.0)
    one, other = governor.join("a"), governor.join("b")
    governor.used(one, READ_64K)
    governor.turn(0.01)
    governor.used(other, (governor.grant(other)[0], 0.0, 1.0))
    governor.wants(other, READ_64K, 0.011)
    governor.turn(0.02)
    assert governor.grant(other)[0] > 0.07 * 100 * MB
    assert 0 < governor.grant(one)[0] < 0.02 * 100 * MB


def test_who_stops_taking_its_grants_does_not_keep_them_from_others() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=MB))), 0.0)
    stopped, other = governor.join("a"), governor.join("a")
    governor.wants(stopped, READ_64K, 0.0)
    for turn in range(1, 20):
        governor.turn(turn / 100)
    governor.wants(other, READ_64K, 0.2)
    governor.turn(0.2)
    assert governor.grant(other)[0] > 0
    assert governor.grant(stopped)[0] == 1


def test_who_was_silent_has_no_claim_to_what_others_used_meanwhile() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=6_553_600.0))), 0.0)
    payers = [governor.join("a"), governor.join("a")]
    counts = [0, 0]
    for turn in range(1, 401):
        for number, payer in enumerate(payers[: 1 if turn <= 300 else 2]):
            if governor.grant(payer)[0] > 0:
                governor.used(payer, READ_64K)
                counts[number] += turn > 300
            governor.wants(payer, READ_64K, turn / 100)
        governor.turn(turn / 100)
    assert sum(counts) >= 95
    assert counts[1] <= 0.55 * sum(counts)


def test_who_was_stopped_while_it_waited_has_no_claim_to_what_others_used_meanwhile() -> None:
    governor = Governor(plan(identity("a", read=Share(limit=6_553_600.0))), 0.0)
    stopped, other = payers = [governor.join("a"), governor.join("a")]
    counts = [0, 0]
    for turn in range(1, 401):
        governor.wants(stopped, READ_64K, 0.01)
        for number, payer in enumerate(payers):
            if governor.grant(payer)[0] > 0 and (payer == other or turn > 300):
                governor.used(payer, READ_64K)
                counts[number] += turn > 300
            governor.wants(payer, READ_64K, 0.01 if payer == stopped else turn / 100)
        governor.turn(turn / 100)
    assert sum(counts) >= 95
    assert counts[0] <= 0.55 * sum(counts)


def test_the_report_names_the_bucket_that_binds() -> None:
    governor = Governor(
        plan(
            identity("a", read=Share(limit=MB)),
            identity("b", operations=Share(limit=10)),
            identity("c"),
            node=(100 * MB, inf, inf),
        ),
        0.0,
    )
    payers = [governor.join(name) for name in ("a", "b", "c")]
    for turn in range(1, 101):
        for payer in payers:
            governor.used(payer, tuple(min(n, 1e9) for n in governor.grant(payer)))  # type: ignore[arg-type]
            governor.wants(payer, READ_64K, turn / 100)
        governor.turn(turn / 100)
    reports = governor.report()
    binding = {report.name: report.binding for report in reports}
    assert binding == pytest.approx(
        {"default": "", "a": "limit read", "b": "limit operations", "c": "node read"}
    )
    # c uses all that the node has; nobody's class has a limit.
    (levels,) = {report.node_levels for report in reports}
    assert levels[0] < 2 * MB and levels[1:] == (inf, inf)
    assert {report.class_levels for report in reports} == {(inf, inf, inf)}
