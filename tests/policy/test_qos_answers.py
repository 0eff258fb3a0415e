"""What the agent tells of a policy, by tables: shares, overrides, schedules, who is charged."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tiercache.agent.qos_answers import (
    Counts,
    InForce,
    buckets,
    check_known,
    claims,
    identity_now,
    is_below,
    next_change_s,
    overrides_now,
    schedules_now,
    text_of,
    uses,
)
from tiercache.config.qos_policy import parse_override, parse_policy
from tiercache.errors import NotFound
from tiercache.model import BackendWait
from tiercache.policy.governor import IdentityReport
from tiercache.policy.qos import Claimant
from tiercache.policy.qos_match import Explanation
from tiercache.policy.qos_rules import Policy
from tiercache.policy.qos_schedule import Moment

pytestmark = pytest.mark.timeout(60)

TEXT = """\
version = 1
[node]
read = "2GB/s"
[[class]]
name = "batch"
priority = 10
[[class.schedule]]
when = ["Mon-Fri 08:00-20:00", "Sat 10:00-12:00"]
priority = 20
[[identity]]
name = "training"
class = "batch"
claim = ["@ml"]
match = [{ name = "training" }, { user = "ann", path = "/data" }]
read = { reserve = "50%", limit = "1500MB/s" }
capacity = { max = "8GiB" }
[[identity.schedule]]
when = "22:00-06:00"
read = { limit = "1GB/s" }
[[identity]]
name = "people"
match = { user = "ann" }
"""
MONDAY_NOON = Moment(weekday=0, minute=12 * 60)
NOW_S = 1_000_000.0


def in_force(moment: Moment = MONDAY_NOON, *set_by_hand: tuple[str, float | None]) -> InForce:
    policy = parse_policy(TEXT, where="test")
    overrides = tuple(parse_override("training", text, until) for text, until in set_by_hand)
    return InForce(
        policy=policy,
        plan=policy.plan(moment, overrides=overrides, cache_bytes=1 << 40),
        moment=moment,
        now_unix_s=NOW_S,
        overrides=overrides,
    )


def test_an_identity_with_what_was_set_by_hand() -> None:
    force = in_force(MONDAY_NOON, ("read.limit=1.2GB/s", NOW_S + 90), ("in_flight = 7", None))
    training = force.plan.identities[0]
    told = identity_now(force, training, lambda name: (len(name), 3))
    assert (told.shares.read.reserve, told.shares.read.limit) == (1e9, 1.2e9)
    assert told.shares.write.limit is None and told.in_flight == 7
    assert (told.capacity.used_bytes, told.capacity.pinned_bytes) == (8, 3)
    assert told.capacity.max_bytes == 8 << 30
    assert told.rules == ("name 'training', for @ml", "user 'ann', path '/data'")
    first, second = overrides_now(force)
    assert (first.key, first.value, first.left_s) == ("read.limit", "1.2GB/s", 90.0)
    assert (second.key, second.value, second.left_s) == ("in_flight", "7", None)
    assert overrides_now(force, "training") == (first, second)
    assert overrides_now(force, "people") == ()
    assert next_change_s(force) == 90.0


@pytest.mark.parametrize(
    ("moment", "found", "change_s"),
    [
        (MONDAY_NOON, [("class", "batch", "Mon-Fri 08:00-20:00")], 8 * 3600.0),
        (Moment(weekday=5, minute=600), [("class", "batch", "Sat 10:00-12:00")], 7200.0),
        (Moment(weekday=6, minute=1350), [("identity", "training", "22:00-06:00")], 27000.0),
        (Moment(weekday=6, minute=600), [], 43200.0),
    ],
)
def test_schedules(moment: Moment, found: list[tuple[str, str, str]], change_s: float) -> None:
    force = in_force(moment)
    assert [(one.kind, one.name, one.when) for one in schedules_now(force)] == found
    assert schedules_now(force, ("other", "people")) == ()
    assert schedules_now(force, ("batch", "training")) == schedules_now(force)
    assert next_change_s(force) == change_s


ANN = Claimant(users=frozenset({"ann", "1000"}), groups=frozenset({"ml", "1000"}))
BOB = Claimant(users=frozenset({"bob"}), name="training")


def test_who_is_charged_and_why() -> None:
    policy = parse_policy(TEXT, where="test")
    told = claims(policy, "training", "/data/x", [(7, ANN), (3, ANN), (7, ANN), (9, BOB)])
    assert [claim.claimant for claim in told] == [
        "user 'ann', group 'ml'",
        "user 'bob', name 'training'",
        "group 'ml', name 'training'",
    ]
    ann, bob, by_name = told
    assert (ann.identity, ann.pids) == ("training", (3, 7))
    assert [(rule.identity, bool(rule.reason)) for rule in ann.rules] == [
        ("training", False),
        ("people", True),
    ]
    assert (bob.identity, bob.pids) == ("default", (9,))
    assert bob.rules[0].refused and "@ml" in bob.rules[0].reason
    assert (by_name.identity, by_name.pids) == ("training", ())
    assert [one.claimant for one in claims(policy, "training", "/data/x", [])] == [
        "group 'ml', name 'training'",
        "user 'ann'",
    ]
    assert claims(policy, "training", "/other", [(7, ANN)])[-1].identity == "people"


@pytest.mark.parametrize("key", ["user", "path"])
def test_an_identity_of_many_rules_is_explained_by_few_looks(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look goes through all rules, on the agent's loop, which serves nobody meanwhile."""
    names = ", ".join(f'"/{number}"' for number in range(200))
    text = f'version = 1\n[[identity]]\nname = "a"\nmatch = {{ {key} = [{names}] }}'
    policy, looks = parse_policy(text, where="test"), 0
    explain = Policy.explain

    def counting(self: Policy, claimant: Claimant, path: str) -> Explanation:
        nonlocal looks
        looks += 1
        return explain(self, claimant, path)

    monkeypatch.setattr(Policy, "explain", counting)
    told = claims(policy, "a", "/7/x", [(pid, ANN) for pid in range(100)])
    assert len(told) <= 20 and looks <= 80
    assert told[0].identity == "a"


def test_the_default_identity_is_anybody_elses() -> None:
    (told,) = claims(Policy(), "default", "/", [])
    assert (told.claimant, told.identity, told.rules) == ("anybody else", "default", ())
    assert claims(Policy(), "default", "/", [(1, ANN)])[0].pids == (1,)


def report(name: str, read: float, **more: Any) -> IdentityReport:
    values: dict[str, Any] = {
        "class_name": "batch",
        "priority": 1,
        "payers": 1,
        "waiting": 0,
        "longest_wait_s": 0.0,
        "levels": (inf, inf, inf),
        "class_levels": (inf, inf, inf),
        "node_levels": (inf, inf, inf),
        "share": (inf, inf, inf),
        "binding": "",
    }
    return IdentityReport(name=name, used=(read, 0.0, read / 100), **(values | more))


def held(name: str) -> tuple[int, int]:
    return (10, 2) if name == "b" else (0, 0)


def test_use_with_the_busiest_first() -> None:
    reports = [report("a", 1e8), report("b", 4e8, waiting=2, binding="limit read"), report("c", 0)]
    counts = {"b": Counts(processes=3, waits=7, is_full=True), "c": Counts(throttled=1)}
    told = uses((1e9, inf, inf), reports, lambda name: counts.get(name, Counts()), held)
    assert [(one.identity, one.share) for one in told] == [("b", 0.8), ("a", 0.2), ("c", 0.0)]
    busy = told[0]
    assert (busy.waiting, busy.bound_by, busy.processes, busy.waits) == (3, "in flight", 3, 7)
    assert (busy.used_bytes, busy.pinned_bytes, told[2].throttled) == (10, 2, 1)
    counts["b"].is_full = False
    told = uses((1e9, inf, 1e9), reports, lambda name: counts.get(name, Counts()), held)
    assert [one.share for one in told] == [0.4, 0.1, 0.0]
    assert (told[0].waiting, told[0].bound_by) == (2, "limit read")
    waits = (BackendWait(identity="c", bucket="s3://b get", waiting=4, longest_s=2.0),)
    counts["c"] = Counts(backend=waits)
    told = uses((1e9, inf, inf), reports, lambda name: counts.get(name, Counts()), held)
    late = next(one for one in told if one.identity == "c")
    assert (late.waiting, late.waiting_s, late.bound_by) == (4, 2.0, "s3://b get")
    assert uses((inf, inf, inf), [], lambda name: Counts(), held) == ()
    idle = uses((0.0, inf, inf), [report("a", 0.0)], lambda name: Counts(), held)
    assert idle[0].share == 0.0


def test_buckets_of_identity_class_and_node() -> None:
    force = in_force()
    training, people = force.plan.identities[:2]
    levels = {"levels": (-5e6, inf, inf), "node_levels": (7e6, inf, inf)}
    told = buckets(force, training, report("training", 0.0, **levels))
    assert [(one.of, one.resource, one.rate, one.level) for one in told] == [
        ("identity", "read", 1.5e9, -5e6),
        ("node", "read", 2e9, 7e6),
    ]
    assert told[1].burst == pytest.approx(0.15 * 2e9)
    told = buckets(force, people, report("people", 0.0))
    assert [(one.of, one.resource) for one in told] == [("node", "read")]


@pytest.mark.parametrize(
    ("place", "scope", "below"),
    [
        ("s3://b/p/x", "s3://", True),
        ("s3://b/p/x", "s3://b", True),
        ("s3://b/p/x", "s3://b/p", True),
        ("s3://b/p", "s3://b/p", True),
        ("s3://bc/p/x", "s3://b", False),
        ("s3://b/pq", "s3://b/p", False),
        ("gs://b/p", "s3://", False),
        ("file:///d/x", "file://", True),
        ("s3://b/p", "endpoint:b", False),
    ],
)
def test_which_backends_cover_a_place(place: str, scope: str, below: bool) -> None:
    assert is_below(place, scope) is below


def test_an_unknown_identity_names_the_nearest() -> None:
    plan = in_force().plan
    assert check_known(plan, "people").name == "people"
    with pytest.raises(NotFound, match="did you mean training"):
        check_known(plan, "trainig")
    with pytest.raises(NotFound, match="there are training, people, default"):
        check_known(plan, "zzz")
    with pytest.raises(NotFound, match="no QoS policy is in force"):
        check_known(None, "people")


@pytest.mark.parametrize(
    ("claimant", "text"),
    [
        (Claimant(), "anybody else"),
        (Claimant(users=frozenset({"1000"})), "user '1000'"),
        (Claimant(name="x", access_key="AK"), "name 'x', access key 'AK'"),
    ],
)
def test_claimants_as_text(claimant: Claimant, text: str) -> None:
    assert text_of(claimant) == text
