"""Who is charged, against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.qos_cases import IDENTITIES, PATHS, WHO, rule
from tiercache.policy import qos_match
from tiercache.policy.qos import DEFAULT_IDENTITY, Claimant, covers
from tiercache.policy.qos_match import MatchRule
from tiercache.policy.qos_rules import IdentityRule, Policy

pytestmark = pytest.mark.timeout(60)

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


def test_seats_of_many_paths_are_found_without_holding_each_against_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is done on the agent's loop for every connection, and 4096 rules are allowed."""
    looks = 0

    def counting(path: str, name: str) -> bool:
        nonlocal looks
        looks += 1
        return covers(path, name)

    monkeypatch.setattr(qos_match, "covers", counting)
    paths = [f"/a{number}/b/c" for number in range(300)]
    policy = Policy(identities=(rule("a", *(MatchRule(path=path) for path in paths)),))
    assert {seat.path for seat in policy.seats(ADA)} == {*paths, ""}
    assert looks <= len(paths)


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


@given(IDENTITIES, WHO, st.sampled_from([*PATHS, "/x/q", "/", "s3://x"]))
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
    # None stands where an earlier one has taken all.
    for number, seat in enumerate(seats):
        assert not any(f"{seat.path}/".startswith(f"{one.path}/") for one in seats[:number])
    first = next(s for s in seats if s.path in ("", path) or path.startswith(f"{s.path}/"))
    assert first.identity == expected
