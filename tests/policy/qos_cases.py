"""Policies for tests: hours, and what Hypothesis makes of them."""

from __future__ import annotations

from math import inf

from hypothesis import strategies as st

from tiercache.policy.qos import Claimant
from tiercache.policy.qos_match import MatchRule
from tiercache.policy.qos_rules import (
    ClassRule,
    Fraction,
    IdentityRule,
    NodeRule,
    Policy,
    Schedule,
    ShareTerms,
    Terms,
)
from tiercache.policy.qos_schedule import DAY_MINUTES, WEEK_MINUTES, Moment, Window

NIGHT = Window(days=(4,), start_minute=22 * 60, end_minute=6 * 60)
WORKDAYS = Window(days=(0, 1, 2, 3, 4), start_minute=8 * 60, end_minute=20 * 60)
WEEKEND = Window(days=(5, 6), start_minute=0, end_minute=DAY_MINUTES)
MONDAY = Moment(weekday=0, minute=0)


def at(day: int, hour: int, minute: int = 0, second: float = 0.0) -> Moment:
    return Moment(weekday=day, minute=hour * 60 + minute, second=second)


def rule(name: str, *matches: MatchRule, claim: tuple[str, ...] = ("*",)) -> IdentityRule:
    return IdentityRule(name=name, matches=matches, claim=claim)


WINDOWS = st.builds(
    Window,
    days=st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    start_minute=st.integers(0, DAY_MINUTES - 1),
    end_minute=st.integers(1, DAY_MINUTES),
).filter(lambda window: window.start_minute != window.end_minute)


def moment_of(week_minute: int, second: float = 0.0) -> Moment:
    day, minute = divmod(week_minute % WEEK_MINUTES, DAY_MINUTES)
    return Moment(weekday=day, minute=minute, second=second)


_WORDS = st.sampled_from(["", "a", "b"])
PATHS = ("/x", "/x/y", "/x/y/z", "/xy", "/w")
_MATCHES = st.builds(
    MatchRule,
    user=_WORDS,
    group=_WORDS,
    name=_WORDS,
    access_key=_WORDS,
    path=st.sampled_from(["", *PATHS]),
).filter(lambda match: match != MatchRule())
_CLAIMS = st.sampled_from([("*",), ("a",), ("b",), ("@a",), ("a", "@b"), ()])
WHO = st.builds(
    Claimant,
    users=st.frozensets(st.sampled_from(["a", "b"])),
    groups=st.frozensets(st.sampled_from(["a", "b"])),
    name=_WORDS,
    access_key=_WORDS,
)
IDENTITIES = st.lists(st.tuples(st.lists(_MATCHES, max_size=4), _CLAIMS), max_size=6).map(
    lambda rules: tuple(
        rule(f"i{number}", *matches, claim=claim) for number, (matches, claim) in enumerate(rules)
    )
)


_RATES = st.one_of(
    st.none(),
    st.floats(0.01, 1e12),
    st.integers(0, 100).map(lambda percent: Fraction(of_all=percent / 100)),
)
_SHARES = st.builds(
    ShareTerms,
    reserve=_RATES,
    limit=_RATES.filter(lambda rate: rate != Fraction(of_all=0)),
    weight=st.one_of(st.none(), st.floats(0.01, 100)),
)
_TERMS = st.builds(Terms, read=_SHARES, write=_SHARES, operations=_SHARES)
_SCHEDULES = st.lists(
    st.builds(Schedule, when=WINDOWS.map(lambda window: (window,)), terms=_TERMS), max_size=2
).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    node = NodeRule(
        read=draw(st.one_of(st.none(), st.floats(1, 1e12))),
        operations=draw(st.one_of(st.none(), st.floats(1, 1e9))),
    )
    class_names = ["default", "c1", "c2"]
    classes = tuple(
        ClassRule(name=name, terms=draw(_TERMS), schedules=draw(_SCHEDULES))
        for name in draw(st.sets(st.sampled_from(class_names)))
    )
    known = ["default", *(one.name for one in classes)]
    identities = tuple(
        IdentityRule(
            name=f"i{number}",
            class_name=draw(st.sampled_from(known)),
            matches=(MatchRule(user=f"u{number}"),),
            terms=draw(_TERMS),
            schedules=draw(_SCHEDULES),
        )
        for number in range(draw(st.integers(0, 4)))
    )
    return Policy(node=node, classes=classes, identities=identities)


MEASURED = st.tuples(*[st.one_of(st.just(inf), st.floats(1, 1e12))] * 3)
