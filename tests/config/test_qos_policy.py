"""QoS policy files: what is taken, what is refused and in which words."""

from __future__ import annotations

import tomllib
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.qos_text import EVERYTHING
from tiercache.config.qos_policy import (
    MOST_COMBINATIONS,
    check_policy,
    parse_override,
    parse_policy,
    settable_keys,
)
from tiercache.config.qos_profiles import TEXTS
from tiercache.config.qos_schema import PROFILES, TABLES
from tiercache.errors import ConfigError
from tiercache.policy.qos import BackendPlan, Claimant, Resource
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
)
from tiercache.policy.qos_schedule import Moment, Window

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "docs" / "examples" / "qos.toml"

# ---- what is taken


def test_every_key_reaches_its_value() -> None:
    first = ClassRule(
        name="first",
        terms=Terms(
            read=ShareTerms(
                reserve=Fraction(of_all=0.5),
                limit=float(4 << 30),
                weight=3.0,
                burst=float(64 << 20),
            ),
            write=ShareTerms(limit=inf),
            operations=ShareTerms(reserve=100.0, burst=2000.0),
            in_flight=64,
            priority=20,
        ),
        schedules=(
            Schedule(
                when=(
                    Window(days=(0, 1, 2, 3, 4), start_minute=480, end_minute=1200),
                    Window(days=(6,), start_minute=0, end_minute=1440),
                ),
                terms=Terms(priority=-5, in_flight=128),
            ),
        ),
    )
    full = MatchRule(user="ada", group="ml", name="train", access_key="K", path="/x/y")
    identity = IdentityRule(
        name="a",
        class_name="first",
        matches=(
            full,
            MatchRule(user="1000", group="ml", name="train", access_key="K", path="/x/y"),
            MatchRule(path="s3://bucket/p"),
            MatchRule(path="/z"),
        ),
        claim=("ada", "@ml"),
        terms=Terms(
            read=ShareTerms(reserve=0.0, limit=Fraction(of_all=1.0)), in_flight=4, max_wait_s=90.0
        ),
        capacity=CapacityTerms(
            min=10 << 30,
            soft=Fraction(of_all=0.2),
            max=50_000_000_000,
            pin_max=Fraction(of_all=0.0),
        ),
        schedules=(
            Schedule(
                when=(Window(days=(0, 4, 5, 6), start_minute=1320, end_minute=360),),
                terms=Terms(write=ShareTerms(weight=0.5), max_wait_s=2.0),
            ),
        ),
    )
    assert parse_policy(EVERYTHING, where="qos.toml") == Policy(
        node=NodeRule(read=5e9, write=2e9, operations=1e5, safe_share=0.2),
        classes=(first,),
        identities=(identity,),
        backends=(
            BackendPlan(origin="s3://", get=3000.0, put=100.0, list=0.5, bytes=1e9, adaptive=False),
            BackendPlan(origin="s3://bucket/prefix"),
        ),
    )


def test_every_key_of_the_tables_stands_in_the_text_above() -> None:
    def keys(tree: object) -> set[str]:
        if isinstance(tree, dict):
            return set(tree).union(*map(keys, tree.values()))
        return set().union(*map(keys, tree)) if isinstance(tree, list) else set()

    known = {key.name for table in TABLES for key in table.keys}
    assert known - keys(tomllib.loads(EVERYTHING)) == {"profile"}


def test_a_profile_is_changed_key_by_key() -> None:
    text = """\
    version = 1
    profile = "training-first"
    [node]
    read = "5GB/s"
    [[identity]]
    name = "mine"
    match = { user = "me" }
    [[identity]]
    name = "training"
    claim = "@ml"
    read = { reserve = "40%", limit = "4GB/s" }
    [[class]]
    name = "training"
    read = { weight = 2 }
    """
    policy = parse_policy(text, where="qos.toml")
    # Those of the file go first: they win ties.
    names = ["mine", "training", "interactive", "prefetch"]
    assert [rule.name for rule in policy.identities] == names
    plan = policy.plan(Moment(weekday=6, minute=0))
    training = plan.identities[1]
    assert training.class_name == "training"
    assert training.shares[Resource.READ].reserve == 2e9
    of_class = plan.classes[0]
    assert (of_class.name, of_class.priority) == ("training", 20)
    assert of_class.shares[Resource.READ].reserve == 2.5e9
    assert of_class.shares[Resource.READ].weight == 2
    member = Claimant(name="training", groups=frozenset({"ml"}))
    assert policy.identify(member, "/x") == "training"
    assert policy.identify(Claimant(name="training"), "/x") == "default"


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_are_policies_with_the_same_names(name: str) -> None:
    own = parse_policy(TEXTS[name], where=name)
    started = parse_policy(f'version = 1\nprofile = "{name}"', where="qos.toml")
    assert (started.classes, started.identities) == (own.classes, own.identities)
    names = {"training", "interactive", "prefetch"}
    assert {rule.name for rule in own.classes} == names
    assert {rule.name for rule in own.identities} == names
    assert {own.identify(Claimant(name=one), "/x") for one in names} == names
    # A plan of a node that was measured holds them all.
    plan = own.plan(Moment(weekday=0, minute=0), (1e9, 1e9, 1e5))
    priorities = {rule.name: rule.priority for rule in plan.classes}
    first = {"training-first": "training", "prefetch-first": "prefetch"}.get(name)
    if first:
        assert max(priorities, key=lambda key: priorities[key]) == first
        assert plan.classes[0].shares[Resource.READ].reserve == 0.5e9


def test_the_example_is_a_policy_without_warnings() -> None:
    checked = check_policy(EXAMPLE.read_text(encoding="utf-8"), where="qos.toml")
    assert (checked.problems, checked.warnings) == ((), ())


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "line", "key", "cause", "remedy"),
    [
        ("", 1, "version", "missing", "write version = 1"),
        ("version = 2", 1, "version", "2", "reads 1"),
        ("version = true", 1, "version", "True", "reads 1"),
        ("version = 1\n[nod]", 2, "nod", "unknown key", "'node'"),
        ("version = 1\n[[identities]]", 2, "identities", "unknown key", "'identity'"),
        ('version = 1\nprofile = "balance"', 2, "profile", "no profile", "'balanced'"),
        ("version = 1\nclass = 3", 2, "class", "not an array", "[[class]]"),
        ("version = 1\n[class]", 2, "class", "not an array", "[[class]]"),
        ("version = 1\nnode = 3", 2, "node", "not a table", "node = { read"),
        ("version = 1\n[[class]]", 2, "class[0].name", "missing", 'name = "training"'),
        ("version = 1\n[[class]]\nname = 3", 3, "class[0].name", "3", "letters"),
        ('version = 1\n[[class]]\nname = "a b"', 3, "class[a b].name", "'a b'", "letters"),
        ("version = 1\n[node]\nsafe_share = 0", 3, "node.safe_share", "0", "above 0"),
        ('version = 1\n[node]\nread = "5GB"', 3, "node.read", "not a rate", "500MB/s"),
        ('version = 1\n[node]\nread = "5Gbit/s"', 3, "node.read", "not a rate", "500MB/s"),
        ('version = 1\n[node]\nread = "5k/m"', 3, "node.read", "not a rate", "500MB/s"),
        ("version = 1\n[node]\nread = 0", 3, "node.read", "0", "above 0"),
        ("version = 1\n[node]\nread = nan", 3, "node.read", "nan", "500MB/s"),
        ("version = 1\n[node]\nread = inf", 3, "node.read", "inf", "500MB/s"),
        ("version = 1\n[node]\nread = true", 3, "node.read", "True", "500MB/s"),
        ("version = 1\n[node]\nread = 1979-05-27", 3, "node.read", "date", "500MB/s"),
        ("version = 1\n[node]\nread = [1]", 3, "node.read", "array", "500MB/s"),
        (f"version = 1\n[node]\nread = {10**19}", 3, "node.read", "many digits", "500MB/s"),
        ('version = 1\n[node]\noperations = "5MB/s"', 3, "node.operations", "not a rate", "20k/s"),
    ],
)
def test_what_is_refused_at_the_top(
    text: str, line: int, key: str, cause: str, remedy: str
) -> None:
    problem = only_problem(text)
    assert problem.place == f"qos.toml:{line}"
    assert problem.key == key
    assert cause in problem.cause
    assert remedy in problem.remedy
    with pytest.raises(ConfigError) as refused:
        parse_policy(text, where="qos.toml")
    assert refused.value.path == f"qos.toml:{line}"
    assert key in str(refused.value) and remedy in str(refused.value)


def only_problem(text: str) -> Any:
    checked = check_policy(text, where="qos.toml")
    assert checked.policy is None
    assert len(checked.problems) == 1, list(map(str, checked.problems))
    return checked.problems[0]


@pytest.mark.parametrize(
    ("line", "key", "cause"),
    [
        ("clas = 1", "clas", "unknown key"),
        ('read = "1GB/s"', "read", "not a table"),
        ("read = { limit = 0 }", "read.limit", "cannot be 0"),
        ('read = { limit = "0%" }', "read.limit", "0%"),
        ('read = { limit = "101%" }', "read.limit", "101%"),
        ('read = { reserve = "-5%" }', "read.reserve", "-5%"),
        ("read = { reserve = -5 }", "read.reserve", "-5"),
        ('read = { reserve = "unlimited" }', "read.reserve", "unlimited"),
        ("read = { weight = 0 }", "read.weight", "0"),
        ("read = { weight = 1e-308 }", "read.weight", "1e-308"),
        ("read = { weight = 1001 }", "read.weight", "1001"),
        ('read = { weight = "3" }', "read.weight", "'3'"),
        ("read = { burst = 0 }", "read.burst", "0"),
        ('read = { burst = "5 parsecs" }', "read.burst", "size unit"),
        ('operations = { burst = "5MiB" }', "operations.burst", "number of operations"),
        ("in_flight = 0", "in_flight", "0"),
        ("in_flight = 1.5", "in_flight", "1.5"),
        ("max_wait = 0", "max_wait", "0"),
        ('max_wait = "25h"', "max_wait", "25h"),
        ("max_wait = inf", "max_wait", "inf"),
        ("priority = 1", "priority", "unknown key"),
        ('capacity = { min = "-1" }', "capacity.min", "not a size"),
        ("capacity = { min = 1.5 }", "capacity.min", "1.5"),
        ('capacity = { min = "2GiB", max = "1GiB" }', "capacity.min", "more than max"),
        ('capacity = { pin_max = "20%", max = "10%" }', "capacity.pin_max", "more than max"),
        ('read = { reserve = "50%", limit = "40%" }', "read.reserve", "more than the limit"),
        ("claim = { a = 1 }", "claim", "table"),
        ("claim = [[]]", "claim", "array"),
        ('claim = [""]', "claim", "''"),
        ('class = "nobody"', "class", "no class"),
        ("[[identity.schedule]]", "schedule[0].when", "missing"),
        ('schedule = [{ when = "Mon" , priority = 2 }]', "schedule[0].priority", "unknown key"),
        *[
            (f'schedule = [{{ when = "{when}" }}]', "schedule[0].when", when)
            for when in (
                "",
                "Mon-",
                "08:00",
                "24:00-01:00",
                "08:00-24:01",
                "08:60-09:00",
                "08:00-08:00",
                "08:00-09:00 Mon",
                "Mon 8-9",
            )
        ],
        ("schedule = [{ when = [] }]", "schedule[0].when", "array"),
    ],
)
def test_what_is_refused_of_an_identity(line: str, key: str, cause: str) -> None:
    text = f'version = 1\n[[identity]]\nname = "a"\nmatch = {{ user = "u" }}\n{line}\n'
    problem = only_problem(text)
    assert problem.key == f"identity[a].{key}"
    assert problem.place == "qos.toml:5"
    assert cause in problem.cause
    assert problem.remedy


@pytest.mark.parametrize(
    ("match", "key", "cause"),
    [
        ("{}", "match[0]", "empty rule"),
        ("3", "match", "not an array"),
        ("[]", "match", "no rule"),
        ('{ usr = "u" }', "match.usr", "unknown key"),
        ('{ path = "x" }', "match.path", "'x'"),
        ('{ path = "/" }', "match.path", "'/'"),
        ('{ path = "/x/" }', "match.path", "'/x/'"),
        ('{ path = "/x/../y" }', "match.path", "'/x/../y'"),
        ('{ path = "/x//y" }', "match.path", "'/x//y'"),
        ('{ path = "s3://" }', "match.path", "'s3://'"),
        ('{ path = "://x" }', "match.path", "'://x'"),
        ("{ user = -1 }", "match.user", "-1"),
        ('{ user = ["u", "u2"], group = [""] }', "match.group", "''"),
        ('[{ user = "u" }, { path = "/p" }, { user = "u" }]', "match[2]", "a lists the same"),
        (
            '{ user = ["u", "v"], group = ["g", "h"], name = "x" }\nclaim = "w"',
            "match[0]",
            "claim lets only w",
        ),
        (
            f"{{ user = {list(range(20))}, group = {list(range(20))} }}",
            "match[0]",
            "400 combinations",
        ),
    ],
)
def test_what_is_refused_of_rules(match: str, key: str, cause: str) -> None:
    text = f'version = 1\n[[identity]]\nname = "a"\nmatch = {match}\n'
    checked = check_policy(text, where="qos.toml")
    assert checked.policy is None
    assert {problem.key for problem in checked.problems} == {f"identity[a].{key}"}
    assert {problem.place for problem in checked.problems} == {"qos.toml:4"}
    assert cause in checked.problems[0].cause
    assert MOST_COMBINATIONS < 400


def test_all_mistakes_are_told_at_once_and_no_mere_consequences() -> None:
    text = """\
version = 1
[node]
read = "1GB/s"
reed = 1
[[class]]
name = "a"
read = { reserve = "700MB/s" }
[[class]]
name = "a"
[[identity]]
name = "x"
class = "zz"
match = { usr = "u" }
[[identity]]
name = "y"
match = { user = "u" }
read = { reserve = "40%" }
max_wait = "3 parsecs"
[[backend]]
get = "3MB/s"
"""
    checked = check_policy(text, where="qos.toml")
    assert [(problem.place, problem.key) for problem in checked.problems] == [
        ("qos.toml:4", "node.reed"),
        ("qos.toml:13", "identity[x].match.usr"),
        ("qos.toml:18", "identity[y].max_wait"),
        ("qos.toml:20", "backend[0].get"),
        ("qos.toml:19", "backend[0].origin"),
        ("qos.toml:9", "class[a].name"),
        ("qos.toml:7", "class[a].read.reserve"),
    ]
    with pytest.raises(ConfigError, match="7 mistakes") as refused:
        parse_policy(text, where="qos.toml")
    assert str(refused.value).count("\n") == 7
    fixed = text.replace('"a"\n[[identity]]', '"b"\n[[identity]]')
    keys = [problem.key for problem in check_policy(fixed, where="qos.toml").problems]
    assert "identity[x].class" in keys and "class[a].name" not in keys


def test_problems_of_the_profile_stand_at_its_line() -> None:
    text = """\
version = 1
profile = "training-first"
[[identity]]
name = "mine"
match = { name = "training" }
"""
    problem = only_problem(text)
    assert (problem.place, problem.key) == ("qos.toml:2", "identity[training].match[0]")


def test_measured_rates_and_the_cache_are_checked_where_they_are_known() -> None:
    text = """\
version = 1
[[identity]]
name = "a"
match = { user = "u" }
read = { reserve = "2GB/s" }
capacity = { min = "2GiB" }
"""
    assert check_policy(text, where="qos.toml").policy
    parse_policy(text, where="qos.toml", node_rates=(2e9, 1e9, 1e5))
    checked = check_policy(text, where="qos.toml", node_rates=(1e9, 1e9, 1e5), cache_bytes=1 << 30)
    assert [(problem.place, problem.key) for problem in checked.problems] == [
        ("qos.toml:6", "identity[a].capacity.min"),
        ("qos.toml:5", "identity[a].read.reserve"),
    ]


def test_credentials_are_refused_unprinted() -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    text = f'version = 1\n[[identity]]\nname = "a"\nmatch = {{ access_key = "{key}" }}\n'
    assert parse_policy(text, where="q").identities[0].matches[0].access_key == key
    problem = only_problem(text.replace("access_key", "user"))
    assert "credential" in problem.cause
    assert key not in str(problem)


# ---- what is set by hand


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("read.limit=100MB/s", "read.limit", 1e8),
        ("read.limit=50%", "read.limit", Fraction(of_all=0.5)),
        (" read.limit = unlimited ", "read.limit", inf),
        ("write.reserve=0", "write.reserve", 0.0),
        ("operations.weight=2.5", "operations.weight", 2.5),
        ("operations.burst=2k", "operations.burst", 2000.0),
        ("in_flight=8", "in_flight", 8),
        ("max_wait=30s", "max_wait_s", 30.0),
        ("max_wait=5", "max_wait_s", 5.0),
        ("capacity.max=50GiB", "capacity.max", 50 << 30),
        ("capacity.pin_max=1024", "capacity.pin_max", 1024),
    ],
)
def test_assignments(assignment: str, key: str, value: object) -> None:
    override = parse_override("a", assignment, 5.0)
    assert (override.key, override.value) == (key, value)
    assert (override.identity, override.until_unix_s) == ("a", 5.0)
    assert override.text.replace(" ", "") == assignment.replace(" ", "")
    # Every one of them has an effect on a plan.
    plain = Policy(node=NodeRule(read=10.0, write=10.0, operations=10.0))
    moment = Moment(weekday=0, minute=0)
    mine = Override(identity="default", key=override.key, value=override.value)
    changed = plain.plan(moment, overrides=[mine])
    assert (changed != plain.plan(moment)) is (value not in (0.0, inf))


@pytest.mark.parametrize(
    ("assignment", "cause", "remedy"),
    [
        ("read.limit", "sets nothing", "KEY=VALUE"),
        ("read.limt=1GB/s", "no key 'read.limt'", "'read.limit'"),
        ("limit=1GB/s", "no key 'limit'", ""),
        ("class=x", "no key 'class'", ""),
        ("match.user=x", "no key 'match.user'", ""),
        ("read.limit=0", "read.limit: cannot be 0", "unlimited"),
        ("read.limit=", "read.limit", ""),
        ("read.limit=1GB", "not a rate", "500MB/s"),
        ("read.limit=nan", "nan", ""),
        ("in_flight=1.5", "in_flight: cannot be 1.5", "whole number"),
        ("in_flight=" + "9" * 5000, "in_flight", ""),
        ("max_wait=1e999", "max_wait", ""),
    ],
)
def test_wrong_assignments(assignment: str, cause: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_override("a", assignment)
    assert cause in refused.value.message
    assert remedy in refused.value.remedy


VALUES = st.one_of(st.text(), st.sampled_from(["5GB/s", "20k/s", "50%", "1GiB", "30s", "0", "-1"]))


@given(st.text(), st.sampled_from(sorted(settable_keys())), VALUES)
def test_any_assignment_is_one_or_a_config_error(text: str, key: str, value: str) -> None:
    for assignment in (text, f"{key}={value}"):
        try:
            override = parse_override("default", assignment)
        except ConfigError:
            continue
        Policy().plan(Moment(weekday=0, minute=0), overrides=[override])
