"""Policies as values: who is charged, what holds when, and what is refused, against brute force."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isinf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercache.policy.qos import (
    DEFAULT_CLASS,
    DEFAULT_IDENTITY,
    Claimant,
    Plan,
    Rates,
    Resource,
)
from tiercache.policy.qos_checks import (
    MOST_IDENTITIES,
    MOST_WINDOWS,
    find_problems,
    find_warnings,
)
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
    overrides_in_force,
)
from tiercache.policy.qos_schedule import DAY_MINUTES, WEEK_MINUTES, Moment, Window

pytestmark = pytest.mark.timeout(60)

NIGHT = Window(days=(4,), start_minute=22 * 60, end_minute=6 * 60)
WORKDAYS = Window(days=(0, 1, 2, 3, 4), start_minute=8 * 60, end_minute=20 * 60)
WEEKEND = Window(days=(5, 6), start_minute=0, end_minute=DAY_MINUTES)
MONDAY = Moment(weekday=0, minute=0)


def at(day: int, hour: int, minute: int = 0, second: float = 0.0) -> Moment:
    return Moment(weekday=day, minute=hour * 60 + minute, second=second)


def rule(name: str, *matches: MatchRule, claim: tuple[str, ...] = ("*",)) -> IdentityRule:
    return IdentityRule(name=name, matches=matches, claim=claim)


# ---- who is charged

ADA = Claimant(users=frozenset({"ada", "1000"}), groups=frozenset({"ml", "users", "100"}))


@pytest.mark.parametrize(
    ("matches", "path", "identity"),
    [
        ({}, "/x", "default"),
        ({"a": MatchRule(user="bob")}, "/x", "default"),
        ({"a": MatchRule(user="ada")}, "/x", "a"),
        ({"a": MatchRule(user="1000")}, "/x", "a"),
        # more keys go before more telling ones
        ({"a": MatchRule(name="n"), "b": MatchRule(user="ada", path="/x")}, "/x/y", "b"),
        ({"a": MatchRule(name="n"), "b": MatchRule(user="ada", path="/x")}, "/xy", "a"),
        # of equally many: name, access key, user, group, path
        ({"a": MatchRule(access_key="k"), "b": MatchRule(name="n")}, "/x", "b"),
        ({"a": MatchRule(user="ada"), "b": MatchRule(access_key="k")}, "/x", "b"),
        ({"a": MatchRule(group="ml"), "b": MatchRule(user="ada")}, "/x", "b"),
        ({"a": MatchRule(path="/x/y/z"), "b": MatchRule(group="ml")}, "/x/y/z", "b"),
        # then the longer path, then who is listed first
        ({"a": MatchRule(path="/x"), "b": MatchRule(path="/x/y")}, "/x/y", "b"),
        ({"a": MatchRule(path="/x"), "b": MatchRule(path="/x/y")}, "/x/yy", "a"),
        ({"a": MatchRule(group="users"), "b": MatchRule(group="ml")}, "/x", "a"),
        ({"a": MatchRule(path="s3://b/p")}, "s3://b/p/q", "a"),
        ({"a": MatchRule(path="s3://b/p")}, "s3://b/pq", "default"),
    ],
)
def test_the_most_specific_rule_wins(
    matches: dict[str, MatchRule], path: str, identity: str
) -> None:
    policy = Policy(identities=tuple(rule(name, match) for name, match in matches.items()))
    claimant = replace(ADA, name="n", access_key="k")
    assert policy.identify(claimant, path) == identity


@pytest.mark.parametrize(
    ("claim", "identity"),
    [
        (("*",), "training"),
        (("ada",), "training"),
        (("@ml",), "training"),
        (("bob", "@users"), "training"),
        (("ml",), "default"),
        (("@ada",), "default"),
        (("bob",), "default"),
        ((), "default"),
    ],
)
def test_a_name_counts_only_for_whom_the_claim_lets(claim: tuple[str, ...], identity: str) -> None:
    policy = Policy(identities=(rule("training", MatchRule(name="train"), claim=claim),))
    claimant = replace(ADA, name="train")
    assert policy.identify(claimant, "/x") == identity
    explained = policy.explain(claimant, "/x")
    assert explained.identity == identity
    assert [one.refused for one in explained.candidates] == [identity == "default"]
    # What gives no name needs no claim.
    policy = Policy(identities=(rule("training", MatchRule(user="ada"), claim=claim),))
    assert policy.identify(claimant, "/x") == "training"


def test_explanations_say_what_decided() -> None:
    policy = Policy(
        identities=(
            rule("listed-first", MatchRule(group="ml", path="/x")),
            rule("winner", MatchRule(user="ada", path="/x/y")),
            rule("fewer", MatchRule(user="ada")),
            rule("refused", MatchRule(name="boss"), claim=("bob",)),
            rule("shorter", MatchRule(user="ada", path="/x")),
            rule("later", MatchRule(user="1000", path="/x/y")),
            rule("elsewhere", MatchRule(user="ada", path="/z")),
        )
    )
    explained = policy.explain(replace(ADA, name="boss"), "/x/y")
    assert explained.identity == "winner"
    assert [(one.identity, one.reason) for one in explained.candidates] == [
        ("winner", ""),
        ("later", "is listed later"),
        ("shorter", "its path is shorter than /x/y"),
        ("listed-first", "user goes before group"),
        ("fewer", "gives fewer keys: 1, not 2"),
        ("refused", "refused lets only bob use the name 'boss'"),
    ]
    assert "most specific of 5" in explained.reason
    assert policy.explain(Claimant(), "/q").reason == "no rule matches"


_WORDS = st.sampled_from(["", "a", "b"])
_PATHS = ("/x", "/x/y", "/x/y/z", "/xy", "/w")
_MATCHES = st.builds(
    MatchRule,
    user=_WORDS,
    group=_WORDS,
    name=_WORDS,
    access_key=_WORDS,
    path=st.sampled_from(["", *_PATHS]),
).filter(lambda match: match != MatchRule())
_CLAIMS = st.sampled_from([("*",), ("a",), ("b",), ("@a",), ("a", "@b"), ()])
_WHO = st.builds(
    Claimant,
    users=st.frozensets(st.sampled_from(["a", "b"])),
    groups=st.frozensets(st.sampled_from(["a", "b"])),
    name=_WORDS,
    access_key=_WORDS,
)
_IDENTITIES = st.lists(st.tuples(st.lists(_MATCHES, max_size=4), _CLAIMS), max_size=6).map(
    lambda rules: tuple(
        rule(f"i{number}", *matches, claim=claim) for number, (matches, claim) in enumerate(rules)
    )
)


def charged(identities: tuple[IdentityRule, ...], who: Claimant, path: str) -> str:
    """The rule of docs/qos-policy.md, word by word and with no other thought."""
    best: tuple[list[object], str] | None = None
    for identity in identities:
        for match in identity.matches:
            given = {
                "name": match.name,
                "access_key": match.access_key,
                "user": match.user,
                "group": match.group,
                "path": match.path,
            }
            lets = any(
                word == "*" or word in who.users or (word[0] == "@" and word[1:] in who.groups)
                for word in identity.claim
            )
            inside = path == match.path or path.startswith(f"{match.path}/")
            holds = (
                (not match.name or (who.name == match.name and lets))
                and (not match.access_key or who.access_key == match.access_key)
                and (not match.user or match.user in who.users)
                and (not match.group or match.group in who.groups)
                and (not match.path or inside)
            )
            if not holds:
                continue
            rank: list[object] = [sum(1 for value in given.values() if value)]
            rank += [bool(given[key]) for key in ("name", "access_key", "user", "group", "path")]
            rank.append(len(match.path))
            if best is None or rank > best[0]:
                best = (rank, identity.name)
    return best[1] if best else DEFAULT_IDENTITY


@given(_IDENTITIES, _WHO, st.sampled_from([*_PATHS, "/x/q", "/", "s3://x"]))
@settings(max_examples=400)
def test_seats_explanations_and_identities_agree_with_brute_force(
    identities: tuple[IdentityRule, ...], who: Claimant, path: str
) -> None:
    policy = Policy(identities=identities)
    expected = charged(identities, who, path)
    assert policy.identify(who, path) == expected
    assert policy.explain(who, path).identity == expected
    seats = policy.seats(who)
    assert seats[-1].path == ""
    assert [seat.path for seat in seats[:-1]].count("") == 0
    first = next(s for s in seats if s.path in ("", path) or path.startswith(f"{s.path}/"))
    assert first.identity == expected


# Those who claim are nobody that a rule names: else a claim is a key in disguise.
_FOREIGN_CLAIMS = st.sampled_from([("*",), ("p",), ("@q",), ("p", "@q"), ("r", "p"), ()])


@given(_IDENTITIES, st.lists(_FOREIGN_CLAIMS, min_size=6, max_size=6))
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


_WINDOWS = st.builds(
    Window,
    days=st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    start_minute=st.integers(0, DAY_MINUTES - 1),
    end_minute=st.integers(1, DAY_MINUTES),
).filter(lambda window: window.start_minute != window.end_minute)


def moment_of(week_minute: int, second: float = 0.0) -> Moment:
    day, minute = divmod(week_minute % WEEK_MINUTES, DAY_MINUTES)
    return Moment(weekday=day, minute=minute, second=second)


@given(
    st.lists(_WINDOWS, min_size=1, max_size=3), st.integers(0, WEEK_MINUTES - 1), st.integers(0, 59)
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
    st.builds(Schedule, when=_WINDOWS.map(lambda window: (window,)), terms=_TERMS), max_size=2
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


_MEASURED = st.tuples(*[st.one_of(st.just(inf), st.floats(1, 1e12))] * 3)


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


@given(policies(), _MEASURED, st.integers(0, WEEK_MINUTES - 1))
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


@given(policies(), _MEASURED, st.lists(st.integers(0, WEEK_MINUTES - 1), max_size=20))
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


# ---- what is refused


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
    policy = Policy(
        classes=(ClassRule(name="first", terms=Terms(priority=1)),),
        identities=(
            IdentityRule(name="open", class_name="first", matches=(MatchRule(name="x"),)),
            IdentityRule(
                name="closed", class_name="first", matches=(MatchRule(name="y"),), claim=("@g",)
            ),
            IdentityRule(name="plain", matches=(MatchRule(name="z"),)),
            rule("idle", MatchRule(user="u"), claim=("@g",)),
        ),
    )
    assert [problem.key for problem in find_warnings(policy)] == [
        "identity[open].claim",
        "identity[idle].claim",
    ]
