"""What the agent tells of the QoS policy: values of ``qos_reports``, made of what is in force and
of what the governor, the backends and the ledgers say. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf, isinf

from tiercache.errors import NotFound
from tiercache.model import BackendWait
from tiercache.policy.accounts import NODE_BURST_S, burst_of
from tiercache.policy.governor import IdentityReport
from tiercache.policy.qos import (
    Capacity,
    Claimant,
    ClassPlan,
    IdentityPlan,
    Plan,
    Rates,
    Resource,
    Share,
    Shares,
    covers,
)
from tiercache.policy.qos_match import ANYBODY, GROUP_SIGN, MatchRule
from tiercache.policy.qos_rules import IdentityRule, Override, Policy
from tiercache.policy.qos_schedule import Moment
from tiercache.qos_reports import (
    BucketNow,
    CapacityNow,
    Claim,
    ClassNow,
    IdentityNow,
    IdentityUse,
    OverrideNow,
    RatesNow,
    RuleSeen,
    ScheduleNow,
    ShareNow,
    SharesNow,
)

# Bytes that an identity holds of the cache, and those of them that are pinned.
Holding = Callable[[str], tuple[int, int]]
# Claimants that "explain" tells of: a node's processes mostly are of a few kinds.
MOST_CLAIMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """A policy, what is made of it at ``moment``, and what was set by hand over it."""

    policy: Policy
    plan: Plan
    moment: Moment
    now_unix_s: float
    overrides: tuple[Override, ...] = ()

    def rule(self, identity: str) -> IdentityRule:
        """Return an identity as the policy has it; the default one may not be written there."""
        found = (rule for rule in self.policy.identities if rule.name == identity)
        return next(found, IdentityRule(name=identity))

    def class_of(self, identity: IdentityPlan) -> ClassPlan:
        return next(one for one in self.plan.classes if one.name == identity.class_name)


# -- plans ----------------------------------------------------------------------------------


def bound(rate: float) -> float | None:
    return None if isinf(rate) else rate


def rates_now(rates: Rates) -> RatesNow:
    return RatesNow(
        read=bound(rates[Resource.READ]),
        write=bound(rates[Resource.WRITE]),
        operations=bound(rates[Resource.OPERATIONS]),
    )


def _share_now(share: Share) -> ShareNow:
    return ShareNow(
        reserve=share.reserve, limit=bound(share.limit), weight=share.weight, burst=share.burst
    )


def shares_now(shares: Shares) -> SharesNow:
    return SharesNow(
        read=_share_now(shares[Resource.READ]),
        write=_share_now(shares[Resource.WRITE]),
        operations=_share_now(shares[Resource.OPERATIONS]),
    )


def capacity_now(capacity: Capacity, used_bytes: int, pinned_bytes: int) -> CapacityNow:
    return CapacityNow(
        used_bytes=used_bytes,
        pinned_bytes=pinned_bytes,
        min_bytes=capacity.min_bytes,
        soft_bytes=capacity.soft_bytes,
        max_bytes=capacity.max_bytes,
        pin_max_bytes=capacity.pin_max_bytes,
    )


def class_now(plan: ClassPlan) -> ClassNow:
    return ClassNow(
        name=plan.name,
        priority=plan.priority,
        shares=shares_now(plan.shares),
        in_flight=plan.in_flight,
    )


def identity_now(force: InForce, plan: IdentityPlan, holding: Holding) -> IdentityNow:
    rule = force.rule(plan.name)
    return IdentityNow(
        name=plan.name,
        class_name=plan.class_name,
        shares=shares_now(plan.shares),
        in_flight=plan.in_flight,
        max_wait_s=plan.max_wait_s,
        capacity=capacity_now(plan.capacity, *holding(plan.name)),
        rules=tuple(rule_text(match, rule.claim) for match in rule.matches),
    )


def rule_text(rule: MatchRule, claim: Sequence[str]) -> str:
    """Return a rule as text, with who may use its name where not everybody may."""
    if not rule.name or ANYBODY in claim:
        return str(rule)
    return f"{rule}, for {', '.join(claim) or 'nobody'}"


def overrides_now(force: InForce, identity: str | None = None) -> tuple[OverrideNow, ...]:
    """Return what is set by hand, of one identity or of all, with how long it still holds."""
    found = []
    for override in force.overrides:
        if identity in (None, override.identity):
            key, _, value = override.text.partition("=")
            until_s = override.until_unix_s
            left_s = None if until_s is None else max(0.0, until_s - force.now_unix_s)
            found.append(
                OverrideNow(
                    identity=override.identity, key=key.strip(), value=value.strip(), left_s=left_s
                )
            )
    return tuple(found)


def schedules_now(force: InForce, names: tuple[str, str] | None = None) -> tuple[ScheduleNow, ...]:
    """Return the schedules that hold, of one (class, identity) or of all."""
    rules = [("class", rule.name, rule.schedules) for rule in force.policy.classes]
    rules += [("identity", rule.name, rule.schedules) for rule in force.policy.identities]
    if names is not None:
        wanted = {("class", names[0]), ("identity", names[1])}
        rules = [rule for rule in rules if rule[:2] in wanted]
    return tuple(
        ScheduleNow(kind=kind, name=name, when=str(window))
        for kind, name, schedules in rules
        for schedule in schedules
        for window in schedule.when
        if window.holds(force.moment)
    )


def next_change_s(force: InForce) -> float | None:
    """Return in how long a schedule or an override begins or ends; None: never."""
    ends = [one.until_unix_s - force.now_unix_s for one in force.overrides if one.until_unix_s]
    soonest = min([force.policy.next_change_s(force.moment) or inf, *ends])
    return bound(max(0.0, soonest))


# -- use ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Counts:
    """What was charged to one identity since the agent started, and how it waited; how many of
    its processes and jobs there are, and whether they wait for their cap in flight; ``backend`` is
    what its requests wait for behind the agent."""

    processes: int = 0
    waits: int = 0
    waited_s: float = 0.0
    throttled: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    operations: int = 0
    is_full: bool = False
    backend: tuple[BackendWait, ...] = ()


def uses(
    node: Rates,
    reports: Sequence[IdentityReport],
    counts: Callable[[str], Counts],
    holding: Holding,
) -> tuple[IdentityUse, ...]:
    """Return what all identities do, the busiest first."""
    used = sums_of(reports)
    found = [
        _use(report, _share_of(report.used, node, used), counts(report.name), holding(report.name))
        for report in reports
    ]
    return tuple(sorted(found, key=lambda one: (-one.share, -one.waiting, one.identity)))


def sums_of(reports: Iterable[IdentityReport]) -> Rates:
    columns = list(zip(*(report.used for report in reports), strict=True)) or [(), (), ()]
    return (sum(columns[0]), sum(columns[1]), sum(columns[2]))


def _share_of(used: Rates, node: Rates, all_used: Rates) -> float:
    """Return the greatest part of any resource: of what the node has, or, where nobody knows
    that, of what all use."""
    parts = []
    for resource in Resource:
        whole = all_used[resource] if isinf(node[resource]) else node[resource]
        parts.append(used[resource] / whole if whole else 0.0)
    return max(parts)


def _use(
    report: IdentityReport, share: float, counts: Counts, held: tuple[int, int]
) -> IdentityUse:
    return IdentityUse(
        identity=report.name,
        class_name=report.class_name,
        priority=report.priority,
        processes=counts.processes,
        rates=rates_now(report.used),
        share=share,
        waiting=report.waiting + counts.is_full + sum(one.waiting for one in counts.backend),
        waiting_s=max([report.longest_wait_s, *(one.longest_s for one in counts.backend)]),
        bound_by=_bound_by(report, counts),
        waits=counts.waits,
        waited_s=counts.waited_s,
        throttled=counts.throttled,
        read_bytes=counts.read_bytes,
        written_bytes=counts.written_bytes,
        operations=counts.operations,
        used_bytes=held[0],
        pinned_bytes=held[1],
    )


def _bound_by(report: IdentityReport, counts: Counts) -> str:
    """Return the bucket that those wait for who have waited the longest."""
    if counts.backend and counts.backend[0].longest_s > report.longest_wait_s:
        return counts.backend[0].bucket
    return "in flight" if counts.is_full else report.binding


def buckets(
    force: InForce, identity: IdentityPlan, report: IdentityReport
) -> tuple[BucketNow, ...]:
    """Return the frontend's buckets that an identity pays into, those without a bound left out.
    The level of its own says what it may use at once, class and node counted in; those of class
    and node, what is there for all of them."""
    found = []
    for resource in Resource:
        word = resource.name.lower()
        share = identity.shares[resource]
        if not isinf(share.limit):
            burst = burst_of(share)
            level = bound(report.levels[resource])
            found.append(
                BucketNow(of="identity", resource=word, rate=share.limit, level=level, burst=burst)
            )
        shared, node = force.class_of(identity).shares[resource], force.plan.node[resource]
        above = (
            ("class", shared.limit, burst_of(shared), report.class_levels[resource]),
            ("node", node, node * NODE_BURST_S, report.node_levels[resource]),
        )
        found += [
            BucketNow(of=of, resource=word, rate=rate, level=bound(level), burst=burst)
            for of, rate, burst, level in above
            if not isinf(rate)
        ]
    return tuple(found)


def is_below(place: str, scope: str) -> bool:
    """Return whether a URL is at or below the beginning of one, which ends where a name does."""
    return covers(scope.rstrip("/"), place)


def check_known(plan: Plan | None, identity: str) -> IdentityPlan:
    """Return an identity's plan. Raises NotFound, naming the nearest."""
    if plan is None:
        raise NotFound("no QoS policy is in force", remedy="tiercache qos apply FILE")
    names = [one.name for one in plan.identities]
    if identity in names:
        return plan.identities[names.index(identity)]
    near = get_close_matches(identity, names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise NotFound(f"the policy has no identity {identity!r}", remedy=remedy)


# -- who is charged -------------------------------------------------------------------------


@dataclass(slots=True)
class _Asked:
    claimant: Claimant
    pids: list[int] = field(default_factory=list)


def claims(
    policy: Policy, identity: str, path: str, peers: Iterable[tuple[int, Claimant]]
) -> tuple[Claim, ...]:
    """Return how those are charged at a path who match one of an identity's rules: the connected
    ``peers`` (process id, claimant) that do, and for rules that none of them matches whoever gives
    no more than the rule asks for."""
    pids: dict[Claimant, list[int]] = {}
    for pid, claimant in peers:
        pids.setdefault(claimant, []).append(pid)
    asked: dict[str, _Asked] = {}
    for claimant, its_pids in pids.items():
        if identity in _identities_at(policy, claimant, path):
            asked.setdefault(text_of(claimant), _Asked(claimant)).pids.extend(its_pids)
    # Each look goes through all rules, on the event loop: no more of them than are told.
    told = list(asked.values())[:MOST_CLAIMS]
    seen = {rule for one in told for rule in _rules_of(policy, one.claimant, path)}
    for claimant, rule in _examples(policy, identity):
        if len(asked) >= MOST_CLAIMS:
            break
        text = text_of(claimant)
        if rule not in seen and text not in asked:
            asked[text] = _Asked(claimant)
            seen.update(_rules_of(policy, claimant, path))
    return tuple(_claim(policy, text, one, path) for text, one in list(asked.items())[:MOST_CLAIMS])


def _identities_at(policy: Policy, claimant: Claimant, path: str) -> set[str]:
    explanation = policy.explain(claimant, path)
    return {explanation.identity, *(one.identity for one in explanation.candidates)}


def _rules_of(policy: Policy, claimant: Claimant, path: str) -> list[MatchRule]:
    """Return the rules that match."""
    return [one.rule for one in policy.explain(claimant, path).candidates if not one.refused]


def _claim(policy: Policy, text: str, asked: _Asked, path: str) -> Claim:
    explanation = policy.explain(asked.claimant, path)
    return Claim(
        claimant=text,
        identity=explanation.identity,
        reason=explanation.reason,
        rules=tuple(
            RuleSeen(
                identity=one.identity, rule=str(one.rule), reason=one.reason, refused=one.refused
            )
            for one in explanation.candidates
        ),
        pids=tuple(sorted(set(asked.pids))),
    )


def text_of(claimant: Claimant) -> str:
    """Return who it is: names, or numbers where there are none."""
    parts = []
    for key, texts in (("user", claimant.users), ("group", claimant.groups)):
        named = sorted(text for text in texts if not text.isdecimal()) or sorted(texts)
        parts += [f"{key} {', '.join(map(repr, named))}"] if named else []
    for key, text in (("name", claimant.name), ("access key", claimant.access_key)):
        parts += [f"{key} {text!r}"] if text else []
    return ", ".join(parts) or "anybody else"


def _examples(policy: Policy, identity: str) -> Iterator[tuple[Claimant, MatchRule | None]]:
    """Yield who gives no more than each of an identity's rules asks for; of the default one,
    which has none, nobody in particular."""
    rules = [listed for listed in policy.rules if listed.identity == identity]
    for listed in rules:
        rule = listed.rule
        users, groups = {rule.user} - {""}, {rule.group} - {""}
        if rule.name and ANYBODY not in listed.claim and listed.claim and not users:
            # A rule for a name asks, without saying so, for one of those who may use it.
            word = listed.claim[0]
            (groups if word[:1] == GROUP_SIGN else users).add(word.removeprefix(GROUP_SIGN))
        claimant = Claimant(
            users=frozenset(users),
            groups=frozenset(groups),
            name=rule.name,
            access_key=rule.access_key,
        )
        yield claimant, rule
    if not rules:
        yield Claimant(), None
