"""Who is charged for a name: from rules, a claimant and a path to an identity. Pure.

A rule that gives more keys is more specific. Among those that give equally many, name goes before
access key, user, group and path; then the longer path; then who is listed first. A rule's name
counts only for claimants that its identity's ``claim`` lets use it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from tiercache.policy.qos import DEFAULT_IDENTITY, Claimant, SeatRule, covers

ANYBODY = "*"
# A claim of "@ml" lets the members of the group ml.
GROUP_SIGN = "@"
# Of a rule's keys, the more telling first.
PRECEDENCE = ("name", "access_key", "user", "group", "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRule:
    """All keys that are given (not "") must hold. ``path`` covers itself and what is below it."""

    name: str = ""
    access_key: str = ""
    user: str = ""
    group: str = ""
    path: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are given, the more telling first."""
        return tuple(key for key in PRECEDENCE if getattr(self, key))

    def __str__(self) -> str:
        return ", ".join(f"{key} {getattr(self, key)!r}" for key in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRule:
    """A rule as a policy lists it: ``place`` counts over all of its identities' rules."""

    identity: str
    rule: MatchRule
    claim: tuple[str, ...] = (ANYBODY,)
    place: int = 0

    @property
    def rank(self) -> tuple[object, ...]:
        """Sorts the more specific first."""
        rule = self.rule
        given = tuple(not getattr(rule, key) for key in PRECEDENCE)
        return (-len(rule.keys), given, -len(rule.path), self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rule that matches, and why another won (``reason`` is empty for the winner); or, with
    ``refused``, one that would match if its identity let the claimant use the name."""

    identity: str
    rule: MatchRule
    reason: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """``candidates`` are the winner, if any rule matches, then those that lost, the more specific
    first, then the refused. ``reason`` says in a sentence why it is ``identity``."""

    identity: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


def may_claim(claim: Iterable[str], claimant: Claimant) -> bool:
    return any(
        word == ANYBODY
        or (word[1:] in claimant.groups if word[:1] == GROUP_SIGN else word in claimant.users)
        for word in claim
    )


def _holds(rule: MatchRule, claimant: Claimant) -> bool:
    """Say whether a rule matches a claimant somewhere: whatever the path, and the claim."""
    return (
        (not rule.name or rule.name == claimant.name)
        and (not rule.access_key or rule.access_key == claimant.access_key)
        and (not rule.user or rule.user in claimant.users)
        and (not rule.group or rule.group in claimant.groups)
    )


def _matching(rules: Iterable[ListedRule], claimant: Claimant) -> Iterator[ListedRule]:
    for listed in rules:
        if _holds(listed.rule, claimant) and (
            not listed.rule.name or may_claim(listed.claim, claimant)
        ):
            yield listed


def seats(rules: Iterable[ListedRule], claimant: Claimant) -> tuple[SeatRule, ...]:
    """Return what a claimant's paths are charged to: the first seat that covers a name holds."""
    found: list[SeatRule] = []
    taken: set[str] = set()
    for listed in sorted(_matching(rules, claimant), key=lambda listed: listed.rank):
        path = listed.rule.path
        if _is_covered(path, taken):
            continue
        taken.add(path)
        found.append(SeatRule(path=path, identity=listed.identity))
        if not path:
            return tuple(found)
    return (*found, SeatRule(path="", identity=DEFAULT_IDENTITY))


def _is_covered(path: str, taken: Container[str]) -> bool:
    """Say whether one of the paths covers this one, whatever their number; "" is none of them."""
    while path and path not in taken:
        path = path.rpartition("/")[0]
    return bool(path)


def identify(rules: Iterable[ListedRule], claimant: Claimant, path: str) -> str:
    """Return the identity that pays for a name."""
    matching = [listed for listed in _matching(rules, claimant) if covers(listed.rule.path, path)]
    best = min(matching, key=lambda listed: listed.rank, default=None)
    return best.identity if best else DEFAULT_IDENTITY


def explain(rules: Iterable[ListedRule], claimant: Claimant, path: str) -> Explanation:
    """Return ``identify`` with its reasons."""
    all_rules = [listed for listed in rules if covers(listed.rule.path, path)]
    matching = sorted(_matching(all_rules, claimant), key=lambda listed: listed.rank)
    refused = tuple(
        Candidate(
            identity=listed.identity,
            rule=listed.rule,
            reason=f"{listed.identity} lets only {', '.join(listed.claim) or 'nobody'} "
            f"use the name {listed.rule.name!r}",
            refused=True,
        )
        for listed in all_rules
        if _holds(listed.rule, claimant) and listed not in matching
    )
    if not matching:
        return Explanation(identity=DEFAULT_IDENTITY, reason="no rule matches", candidates=refused)
    winner = matching[0]
    losers = tuple(
        Candidate(identity=lost.identity, rule=lost.rule, reason=_why(winner.rule, lost.rule))
        for lost in matching[1:]
    )
    reason = f"{winner.rule} matches"
    if losers:
        reason += f", the most specific of {len(matching)} rules that do"
    return Explanation(
        identity=winner.identity,
        reason=reason,
        candidates=(Candidate(identity=winner.identity, rule=winner.rule), *losers, *refused),
    )


def _why(winner: MatchRule, lost: MatchRule) -> str:
    """Say what decided between two rules that match."""
    if len(winner.keys) != len(lost.keys):
        return f"gives fewer keys: {len(lost.keys)}, not {len(winner.keys)}"
    for mine, other in zip(winner.keys, lost.keys, strict=True):
        if mine != other:
            return f"{mine.replace('_', ' ')} goes before {other.replace('_', ' ')}"
    if len(winner.path) != len(lost.path):
        return f"its path is shorter than {winner.path}"
    return "is listed later"
