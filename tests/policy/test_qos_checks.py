"""What is refused of policies as a whole, and what is warned of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.qos_cases import IDENTITIES, NIGHT, rule
from tiercache.policy.qos import Claimant
from tiercache.policy.qos_checks import MOST_IDENTITIES, MOST_WINDOWS, find_problems, find_warnings
from tiercache.policy.qos_match import MatchRule
from tiercache.policy.qos_rules import (
    CapacityTerms,
    ClassRule,
    Fraction,
    IdentityRule,
    NodeRule,
    Override,
    Policy,
    Rate,
    Schedule,
    ShareTerms,
    Terms,
)

pytestmark = pytest.mark.timeout(60)

# Those who claim are nobody that a rule names: else a claim is a key in disguise.
_FOREIGN_CLAIMS = st.sampled_from([("*",), ("p",), ("@q",), ("p", "@q"), ("r", "p"), ()])


@given(IDENTITIES, st.lists(_FOREIGN_CLAIMS, min_size=6, max_size=6))
@settings(max_examples=300)
def test_a_rule_is_refused_as_unreachable_exactly_where_nobody_is_charged_by_it(
    identities: tuple[IdentityRule, ...], claims: list[tuple[str, ...]]
) -> None:
    """Whoever has just what a rule asks for, and one of its claims, reaches it."""
    identities = tuple(
        replace(one, claim=claim) for one, claim in zip(identities, claims, strict=False)
    )
    policy = Policy(identities=identities)
    refused = {problem.at for problem in find_problems(policy) if "can " in problem.cause}
    place = 0
    for identity in identities:
        for number, match in enumerate(identity.matches):
            winners = [
                policy.explain(who, match.path or "/nowhere").candidates
                for who in fitting(match, identity.claim if match.name else ("*",))
            ]
            listed = policy.rules[place]
            place += 1
            assert (listed.identity, listed.rule) == (identity.name, match)
            # Of equal rules of one identity, which of them won cannot be told: the first did.
            first = identity.matches.index(match) == number
            reached = first and any(
                won
                and not won[0].refused
                and (won[0].identity, won[0].rule) == (identity.name, match)
                for won in winners
            )
            assert reached is (("identity", identity.name, "match", number) not in refused)


def fitting(match: MatchRule, claim: tuple[str, ...]) -> list[Claimant]:
    """Those who have what a rule asks for and nothing else, each with one word of the claim."""
    found = []
    for word in claim:
        users = {match.user} if match.user else {word} if word[0] not in "*@" else {"somebody"}
        groups = ({match.group} if match.group else set()) | (
            {word[1:]} if word[0] == "@" else set()
        )
        found.append(
            Claimant(
                users=frozenset(users),
                groups=frozenset(groups),
                name=match.name,
                access_key=match.access_key,
            )
        )
    return found


def shares(reserve: Rate | None = None, limit: Rate | None = None) -> Terms:
    return Terms(read=ShareTerms(reserve=reserve, limit=limit))


def matched(name: str, **more: object) -> IdentityRule:
    return IdentityRule(name=name, matches=(MatchRule(user=name),), **more)  # type: ignore[arg-type]  # tests give what it takes


@pytest.mark.parametrize(
    ("policy", "key", "cause"),
    [
        (
            Policy(identities=(matched("a", class_name="zz"),)),
            "identity[a].class",
            "no class 'zz'",
        ),
        (Policy(identities=(rule("a"),)), "identity[a].match", "no rule"),
        (
            Policy(identities=(rule("default", MatchRule(user="x")),)),
            "identity[default].match",
            "whoever no rule matches",
        ),
        (
            Policy(identities=(rule("a", MatchRule(name="x"), claim=()),)),
            "identity[a].match[0]",
            "claim lets only nobody",
        ),
        (
            Policy(identities=(rule("a", MatchRule(name="x", user="u"), claim=("v",)),)),
            "identity[a].match[0]",
            "claim lets only v",
        ),
        (
            Policy(
                identities=(
                    rule("a", MatchRule(name="x", user="u"), claim=("@g",)),
                    rule("b", MatchRule(name="x", user="u"), claim=("v", "@g")),
                )
            ),
            "identity[b].match[0]",
            "a lists the same before it",
        ),
        (
            Policy(identities=(rule("a", MatchRule(path="/x")), rule("b", MatchRule(path="/x")))),
            "identity[b].match[0]",
            "a lists the same before it",
        ),
        (
            Policy(
                identities=(
                    rule("a", MatchRule(name="x"), claim=("u",)),
                    rule("b", MatchRule(name="x"), claim=("v",)),
                    rule("c", MatchRule(name="x"), claim=("u", "v")),
                )
            ),
            "identity[c].match[0]",
            "a lists the same before it",
        ),
        (
            Policy(identities=(matched("a", terms=shares(reserve=2.0, limit=1.0)),)),
            "identity[a].read.reserve",
            "more than the limit",
        ),
        (
            Policy(
                identities=(
                    matched(
                        "a",
                        terms=shares(reserve=2.0),
                        schedules=(Schedule(when=(NIGHT,), terms=shares(limit=1.0)),),
                    ),
                )
            ),
            "identity[a].schedule[0].read.limit",
            "more than the limit",
        ),
        (
            Policy(identities=(matched("a", capacity=CapacityTerms(min=2, max=1)),)),
            "identity[a].capacity.min",
            "min is more than max",
        ),
        (
            Policy(
                identities=(
                    matched("a", capacity=CapacityTerms(min=Fraction(of_all=0.6))),
                    matched("b", capacity=CapacityTerms(min=Fraction(of_all=0.6))),
                )
            ),
            "identity[a].capacity.min",
            "1.2 of the cache",
        ),
        (
            Policy(
                identities=(
                    matched("a", terms=shares(reserve=Fraction(of_all=0.6))),
                    matched("b", terms=shares(reserve=Fraction(of_all=0.6))),
                )
            ),
            "identity[a].read.reserve",
            "120% together, the node delivers 100%",
        ),
        (
            Policy(
                node=NodeRule(read=1e9),
                classes=(ClassRule(name="c", terms=shares(reserve=7e8)),),
                identities=(
                    matched("a", class_name="c", terms=shares(reserve=6e8)),
                    matched(
                        "b",
                        terms=shares(reserve=1e8),
                        schedules=(Schedule(when=(NIGHT,), terms=shares(reserve=4e8)),),
                    ),
                ),
            ),
            "class[c].read.reserve",
            "1100MB/s together on Fri at 22:00, the node delivers 1000MB/s",
        ),
        (
            Policy(
                classes=(ClassRule(name="c", terms=shares(limit=1e9)),),
                node=NodeRule(read=5e9),
                identities=(matched("a", class_name="c", terms=shares(reserve=2e9)),),
            ),
            "class[c].read.limit",
            "its identities reserve 2000MB/s",
        ),
        (
            Policy(identities=tuple(matched(f"i{n}") for n in range(MOST_IDENTITIES))),
            "identity",
            "256 identities",
        ),
        (
            Policy(
                identities=(
                    matched(
                        "a",
                        schedules=(Schedule(when=(NIGHT,) * (MOST_WINDOWS + 1), terms=Terms()),),
                    ),
                )
            ),
            "identity",
            "65 hours in schedules",
        ),
    ],
)
def test_what_is_refused(policy: Policy, key: str, cause: str) -> None:
    problems = find_problems(policy)
    assert [problem.key for problem in problems] == [key]
    assert cause in problems[0].cause
    assert problems[0].remedy


def test_what_the_node_and_the_cache_cannot_keep_is_refused_once_they_are_known() -> None:
    policy = Policy(
        identities=(
            matched("a", terms=shares(reserve=100.0), capacity=CapacityTerms(min=50)),
            matched("b", capacity=CapacityTerms(min=Fraction(of_all=0.6))),
        )
    )
    assert find_problems(policy) == ()
    assert find_problems(policy, (100.0, 1.0, 1.0), cache_bytes=125) == ()
    refused = find_problems(policy, (99.0, 1.0, 1.0), cache_bytes=120)
    assert [problem.key for problem in refused] == [
        "identity[b].capacity.min",
        "identity[a].read.reserve",
    ]


def test_overrides_are_checked_with_the_policy() -> None:
    policy = Policy(
        node=NodeRule(read=100.0), identities=(matched("a", terms=shares(reserve=60.0)),)
    )
    more = Override(identity="default", key="read.reserve", value=50.0)
    assert find_problems(policy) == ()
    assert "all reservations of read" in find_problems(policy, overrides=[more])[0].cause
    low = Override(identity="a", key="read.limit", value=10.0)
    assert "more than the limit" in find_problems(policy, overrides=[low])[0].cause


def test_rules_that_only_overlap_are_taken() -> None:
    policy = Policy(
        identities=(
            rule("a", MatchRule(user="u"), MatchRule(path="/x")),
            rule("b", MatchRule(user="u", path="/x"), MatchRule(path="/x/y")),
            rule("c", MatchRule(name="n"), claim=("u",)),
            rule("d", MatchRule(name="n"), claim=("u", "@g")),
            rule("e", MatchRule(name="n", user="ada"), claim=("1000",)),
        )
    )
    assert find_problems(policy) == ()


def test_what_is_seldom_meant_is_warned_of() -> None:
    reserving = shares(reserve=1.0)
    by_night = (Schedule(when=(NIGHT,), terms=reserving),)
    policy = Policy(
        classes=(ClassRule(name="first", terms=replace(reserving, priority=1)),),
        identities=(
            IdentityRule(name="plain", class_name="first", matches=(MatchRule(name="z"),)),
            IdentityRule(
                name="open",
                terms=reserving,
                matches=(MatchRule(name="x"), MatchRule(name="v", path="/p")),
            ),
            IdentityRule(name="night", schedules=by_night, matches=(MatchRule(name="w"),)),
            IdentityRule(
                name="closed", terms=reserving, matches=(MatchRule(name="y"),), claim=("@g",)
            ),
            rule("idle", MatchRule(user="u"), claim=("@g",)),
        ),
    )
    warnings = find_warnings(policy)
    assert [warning.key for warning in warnings] == ["identity[open].claim", "identity[idle].claim"]
    assert "the name 'x', 'w', and so" in warnings[0].cause
