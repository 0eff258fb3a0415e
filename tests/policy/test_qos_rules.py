"""What holds of a policy at a moment: hours, plans."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isinf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.qos_cases import (
    MEASURED,
    MONDAY,
    NIGHT,
    WEEKEND,
    WINDOWS,
    WORKDAYS,
    at,
    moment_of,
    policies,
    rule,
)
from tiercache.policy.qos import DEFAULT_CLASS, DEFAULT_IDENTITY, Plan, Rates, Resource
from tiercache.policy.qos_checks import find_problems
from tiercache.policy.qos_match import MatchRule
from tiercache.policy.qos_rules import (
    CapacityTerms,
    ClassRule,
    Fraction,
    IdentityRule,
    NodeRule,
    Override,
    Policy,
    Schedule,
    ShareTerms,
    Terms,
    overrides_in_force,
)
from tiercache.policy.qos_schedule import DAY_MINUTES, WEEK_MINUTES, Moment, Window

pytestmark = pytest.mark.timeout(60)

# ---- hours


@pytest.mark.parametrize(
    ("window", "text", "inside", "outside"),
    [
        (
            WORKDAYS,
            "Mon-Fri 08:00-20:00",
            [at(0, 8), at(4, 19, 59), at(2, 12)],
            [at(0, 7, 59), at(0, 20), at(5, 12), at(6, 8)],
        ),
        (
            NIGHT,
            "Fri 22:00-06:00",
            [at(4, 22), at(4, 23, 59), at(5, 0), at(5, 5, 59)],
            [at(4, 21, 59), at(5, 6), at(4, 0), at(5, 22), at(6, 0)],
        ),
        (WEEKEND, "Sat-Sun 00:00-24:00", [at(5, 0), at(6, 23, 59)], [at(4, 23, 59), at(0, 0)]),
        (
            Window(days=(6,), start_minute=23 * 60, end_minute=60),
            "Sun 23:00-01:00",
            [at(6, 23), at(0, 0, 59)],
            [at(0, 1), at(6, 22, 59)],
        ),
        (
            Window(days=(0, 2, 3), start_minute=0, end_minute=1),
            "Mon,Wed-Thu 00:00-00:01",
            [at(0, 0), at(2, 0), at(3, 0)],
            [at(1, 0), at(0, 0, 1)],
        ),
        (
            Window(days=tuple(range(7)), start_minute=60, end_minute=120),
            "01:00-02:00",
            [at(day, 1) for day in range(7)],
            [at(day, 2) for day in range(7)],
        ),
    ],
)
def test_hours(window: Window, text: str, inside: list[Moment], outside: list[Moment]) -> None:
    assert str(window) == text
    assert all(map(window.holds, inside))
    assert not any(map(window.holds, outside))


@given(
    st.lists(WINDOWS, min_size=1, max_size=3), st.integers(0, WEEK_MINUTES - 1), st.integers(0, 59)
)
@settings(max_examples=60)
def test_the_next_change_is_the_first_minute_at_which_anything_differs(
    windows: list[Window], week_minute: int, second: int
) -> None:
    terms = Terms(in_flight=1)
    schedules = tuple(Schedule(when=(window,), terms=terms) for window in windows)
    policy = Policy(identities=(IdentityRule(name="default", schedules=schedules),))
    now = moment_of(week_minute, second)
    wait_s = policy.next_change_s(now)
    assert wait_s is not None
    assert 0 < wait_s <= WEEK_MINUTES * 60

    def state(minute: int) -> list[bool]:
        return [window.holds(moment_of(minute)) for window in windows]

    minute = week_minute + 1
    while state(minute) == state(week_minute) and minute < week_minute + WEEK_MINUTES:
        minute += 1
    # Windows that meet end and begin in one minute, in which nothing is seen to differ.
    assert wait_s <= (minute - week_minute) * 60 - second
    assert (week_minute * 60 + second + wait_s) % 60 == 0


def test_without_schedules_nothing_changes() -> None:
    assert Policy().next_change_s(MONDAY) is None


def test_a_schedule_replaces_what_it_says_and_the_later_listed_wins() -> None:
    policy = Policy(
        identities=(
            IdentityRule(
                name="a",
                terms=Terms(read=ShareTerms(limit=10.0, weight=2.0), in_flight=4, max_wait_s=1.0),
                schedules=(
                    Schedule(when=(WORKDAYS,), terms=Terms(read=ShareTerms(limit=20.0))),
                    Schedule(
                        when=(NIGHT, replace(WORKDAYS, days=(4,))),
                        terms=Terms(read=ShareTerms(limit=30.0), in_flight=8),
                    ),
                ),
            ),
        ),
        classes=(
            ClassRule(
                name="c",
                terms=Terms(priority=1),
                schedules=(Schedule(when=(WEEKEND,), terms=Terms(priority=9)),),
            ),
        ),
    )

    def seen(moment: Moment) -> tuple[float, float, int | None, float | None, int]:
        plan = policy.plan(moment)
        mine = plan.identities[0]
        read = mine.shares[Resource.READ]
        return read.limit, read.weight, mine.in_flight, mine.max_wait_s, plan.classes[0].priority

    assert seen(at(0, 7)) == (10.0, 2.0, 4, 1.0, 1)
    assert seen(at(0, 8)) == (20.0, 2.0, 4, 1.0, 1)
    assert seen(at(4, 8)) == (30.0, 2.0, 8, 1.0, 1)
    assert seen(at(5, 5)) == (30.0, 2.0, 8, 1.0, 9)


# ---- plans


def test_the_default_class_and_identity_are_always_there() -> None:
    plan = Policy(identities=(rule("a", MatchRule(user="x")),)).plan(MONDAY)
    assert [one.name for one in plan.identities] == ["a", DEFAULT_IDENTITY]
    assert [one.name for one in plan.classes] == [DEFAULT_CLASS]
    assert Policy().plan(MONDAY) == Plan()
    own = Policy(
        classes=(ClassRule(name=DEFAULT_CLASS, terms=Terms(priority=3)),),
        identities=(IdentityRule(name=DEFAULT_IDENTITY, terms=Terms(in_flight=1)),),
    ).plan(MONDAY)
    assert [one.priority for one in own.classes] == [3]
    assert [one.in_flight for one in own.identities] == [1]


def test_shares_are_of_the_node_and_of_the_cache() -> None:
    half = Fraction(of_all=0.5)
    policy = Policy(
        node=NodeRule(read=100.0),
        identities=(
            IdentityRule(
                name=DEFAULT_IDENTITY,
                terms=Terms(
                    read=ShareTerms(reserve=half, limit=Fraction(of_all=1.0)),
                    write=ShareTerms(reserve=half, limit=half),
                ),
                capacity=CapacityTerms(min=half, max=half, soft=10, pin_max=half),
            ),
        ),
    )
    unknown = policy.plan(MONDAY)
    read, write, _ = unknown.identities[0].shares
    assert unknown.node == (100.0, inf, inf)
    assert (read.reserve, read.limit) == (50.0, 100.0)
    assert (write.reserve, write.limit) == (0.0, inf)
    assert unknown.identities[0].capacity.min_bytes == 0
    assert unknown.identities[0].capacity.max_bytes is None
    known = policy.plan(MONDAY, (7.0, 60.0, 8.0), cache_bytes=1001)
    assert known.node == (100.0, 60.0, 8.0)
    assert known.identities[0].shares[Resource.WRITE].reserve == 30.0
    capacity = known.identities[0].capacity
    assert (capacity.min_bytes, capacity.soft_bytes, capacity.max_bytes) == (500, 10, 500)


def test_overrides_go_before_schedules_and_keep_the_plan_whole() -> None:
    terms = Terms(read=ShareTerms(reserve=50.0, limit=80.0))
    always = Window(days=tuple(range(7)), start_minute=0, end_minute=DAY_MINUTES)
    policy = Policy(
        identities=(
            IdentityRule(
                name="a",
                matches=(MatchRule(user="x"),),
                terms=terms,
                schedules=(Schedule(when=(always,), terms=Terms(read=ShareTerms(limit=70.0))),),
                capacity=CapacityTerms(min=100, max=200),
            ),
        )
    )
    overrides = [
        Override(identity="a", key="read.limit", value=40.0),
        Override(identity="a", key="capacity.max", value=60),
        Override(identity="a", key="in_flight", value=3),
        Override(identity="a", key="max_wait_s", value=2.5),
        Override(identity="nobody", key="read.limit", value=1.0),
        Override(identity="default", key="operations.limit", value=5.0),
    ]
    plan = policy.plan(MONDAY, overrides=overrides)
    mine, default = plan.identities
    # Below its reserve and below its minimum: both come down.
    assert (mine.shares[0].limit, mine.shares[0].reserve) == (40.0, 40.0)
    assert (mine.capacity.max_bytes, mine.capacity.min_bytes) == (60, 60)
    assert (mine.in_flight, mine.max_wait_s) == (3, 2.5)
    assert default.shares[Resource.OPERATIONS].limit == 5.0


def test_overrides_end() -> None:
    kept = Override(identity="a", key="in_flight", value=1)
    ends = replace(kept, until_unix_s=100.0)
    assert overrides_in_force([kept, ends], 99.0) == (kept, ends)
    assert overrides_in_force([kept, ends], 100.0) == (kept,)


def reserved(plan: Plan, resource: Resource) -> float:
    """What all reservations come to: a class's and those of its identities overlap."""
    total = 0.0
    for of_class in plan.classes:
        inside = [
            one.shares[resource].reserve
            for one in plan.identities
            if one.class_name == of_class.name
        ]
        total += max(of_class.shares[resource].reserve, sum(inside))
    return total


@given(policies(), MEASURED, st.integers(0, WEEK_MINUTES - 1))
@settings(max_examples=60)
def test_no_plan_reserves_more_than_the_node_delivers(
    policy: Policy, measured: Rates, week_minute: int
) -> None:
    moment = moment_of(week_minute)
    plan = policy.plan(moment, measured)
    for resource in Resource:
        assert reserved(plan, resource) <= plan.node[resource] * (1 + 1e-9)
        for of_class in plan.classes:
            inside = sum(
                one.shares[resource].reserve
                for one in plan.identities
                if one.class_name == of_class.name
            )
            assert inside <= of_class.shares[resource].limit * (1 + 1e-9)
        everything = [one.shares for one in plan.identities] + [one.shares for one in plan.classes]
        for shares in everything:
            share = shares[resource]
            assert 0 <= share.reserve <= share.limit
            assert not isinf(share.reserve)


@given(policies(), MEASURED, st.lists(st.integers(0, WEEK_MINUTES - 1), max_size=20))
@settings(max_examples=100)
def test_what_is_not_refused_is_granted_in_full_at_any_hour(
    policy: Policy, measured: Rates, minutes: list[int]
) -> None:
    """A policy without problems gets a plan from which no reservation was cut."""
    problems = find_problems(policy, measured)
    for minute in minutes:
        plan = policy.plan(moment_of(minute), measured)
        if problems:
            continue
        for mine in plan.identities[: len(policy.identities)]:
            rule = next(one for one in policy.identities if one.name == mine.name)
            alone = Policy(node=policy.node, identities=(replace(rule, class_name="default"),))
            hoped = alone.plan(moment_of(minute), measured).identities[0]
            assert mine.shares == hoped.shares
