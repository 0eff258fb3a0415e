"""A QoS policy as a value: what its file says, and the plan that holds of it at a moment. Pure.

Unsaid (None) is not the same as a default: a schedule or an override replaces only what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Any

from tiercache.policy import qos_match, qos_schedule
from tiercache.policy.qos import (
    DEFAULT_CLASS,
    DEFAULT_IDENTITY,
    BackendPlan,
    Capacity,
    Claimant,
    ClassPlan,
    IdentityPlan,
    Plan,
    Rates,
    Resource,
    SeatRule,
    Share,
    Shares,
)
from tiercache.policy.qos_match import ANYBODY, Explanation, ListedRule, MatchRule
from tiercache.policy.qos_schedule import Moment, Window

UNKNOWN_RATES: Rates = (inf, inf, inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fraction:
    """A share (0–1) of what the node delivers, or of what the cache holds."""

    of_all: float


Rate = float | Fraction
Size = int | Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareTerms:
    """What is said of one resource, in tokens a second; ``burst`` in tokens."""

    reserve: Rate | None = None
    limit: Rate | None = None
    weight: float | None = None
    burst: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is said of an identity or a class; ``priority`` of classes only, ``max_wait_s`` of
    identities only."""

    read: ShareTerms = ShareTerms()
    write: ShareTerms = ShareTerms()
    operations: ShareTerms = ShareTerms()
    in_flight: int | None = None
    max_wait_s: float | None = None
    priority: int | None = None

    def share(self, resource: Resource) -> ShareTerms:
        return (self.read, self.write, self.operations)[resource]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityTerms:
    """Bytes of the cache, or shares of its capacity."""

    min: Size | None = None
    soft: Size | None = None
    max: Size | None = None
    pin_max: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """``terms`` that hold within ``when`` instead of what is said outside."""

    when: tuple[Window, ...]
    terms: Terms

    def holds(self, moment: Moment) -> bool:
        return any(window.holds(moment) for window in self.when)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    name: str
    terms: Terms = Terms()
    schedules: tuple[Schedule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRule:
    """``claim`` says who may use the names in ``matches``: users, "@group", "*" for anybody."""

    name: str
    class_name: str = DEFAULT_CLASS
    matches: tuple[MatchRule, ...] = ()
    claim: tuple[str, ...] = (ANYBODY,)
    terms: Terms = Terms()
    capacity: CapacityTerms = CapacityTerms()
    schedules: tuple[Schedule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRule:
    """What the node delivers; None is what was measured of it ("auto")."""

    read: float | None = None
    write: float | None = None
    operations: float | None = None
    safe_share: float = 0.1

    def rates(self, measured: Rates) -> Rates:
        """Return what is said, and what was measured of what is not."""
        read, write, operations = measured
        return (
            read if self.read is None else self.read,
            write if self.write is None else self.write,
            operations if self.operations is None else self.operations,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A value set by hand over the policy: ``key`` is "read.limit", "in_flight", "max_wait_s",
    "capacity.max" … of an identity, ``text`` is how it was given. It holds until ``until_unix_s``;
    None: until it is unset."""

    identity: str
    key: str
    value: int | float | Fraction
    text: str = ""
    until_unix_s: float | None = None


def overrides_in_force(overrides: Iterable[Override], now_unix_s: float) -> tuple[Override, ...]:
    """Return those that have not expired."""
    return tuple(
        override
        for override in overrides
        if override.until_unix_s is None or override.until_unix_s > now_unix_s
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A whole policy. ``classes`` and ``identities`` hold what is configured, in its order, the
    profile's after the file's; the default ones may be missing."""

    profile: str = ""
    node: NodeRule = NodeRule()
    classes: tuple[ClassRule, ...] = ()
    identities: tuple[IdentityRule, ...] = ()
    backends: tuple[BackendPlan, ...] = ()

    @property
    def rules(self) -> tuple[ListedRule, ...]:
        """All match rules in the order in which they are listed."""
        listed = [(identity, rule) for identity in self.identities for rule in identity.matches]
        return tuple(
            ListedRule(identity=identity.name, rule=rule, claim=identity.claim, place=place)
            for place, (identity, rule) in enumerate(listed)
        )

    @property
    def windows(self) -> tuple[Window, ...]:
        """The hours of all schedules."""
        schedules = [one for rule in self.classes for one in rule.schedules]
        schedules += [one for rule in self.identities for one in rule.schedules]
        return tuple(window for one in schedules for window in one.when)

    def seats(self, claimant: Claimant) -> tuple[SeatRule, ...]:
        """Return what a claimant's paths are charged to: the first that covers a name holds, and
        the last covers all."""
        return qos_match.seats(self.rules, claimant)

    def identify(self, claimant: Claimant, path: str) -> str:
        """Return the identity that pays for a claimant's use of a name."""
        return qos_match.identify(self.rules, claimant, path)

    def explain(self, claimant: Claimant, path: str) -> Explanation:
        """Return why it is that identity, and which rules matched and lost."""
        return qos_match.explain(self.rules, claimant, path)

    def next_change_s(self, moment: Moment) -> float | None:
        """Return in how many seconds a schedule begins or ends; None: never. Ask again at least
        every hour: the clocks may be changed in between."""
        return qos_schedule.next_change_s(self.windows, moment)

    def plan(
        self,
        moment: Moment,
        node_rates: Rates = UNKNOWN_RATES,
        overrides: Sequence[Override] = (),
        *,
        cache_bytes: int | None = None,
    ) -> Plan:
        """Return what holds at a moment.

        ``node_rates`` are what was measured of the node, inf what is not known: a share of that
        reserves and limits nothing. ``cache_bytes`` is the cache's capacity; shares of an unknown
        one bound nothing. ``overrides`` are those in force; of unknown identities they are
        ignored. Reservations that are together more than the node delivers are cut down in
        proportion, so that a node slower than the policy hopes still has a plan.
        """
        rates = self.node.rates(node_rates)
        by_identity: dict[str, list[Override]] = {}
        for override in overrides:
            by_identity.setdefault(override.identity, []).append(override)
        classes = tuple(_class_plan(rule, moment, rates) for rule in self._all_classes())
        identities = tuple(
            _identity_plan(rule, by_identity.get(rule.name, ()), moment, rates, cache_bytes)
            for rule in self.all_identities
        )
        return _cut_reservations(
            Plan(
                node=rates,
                safe_share=self.node.safe_share,
                classes=classes,
                identities=identities,
                backends=self.backends,
            )
        )

    def _all_classes(self) -> tuple[ClassRule, ...]:
        if any(rule.name == DEFAULT_CLASS for rule in self.classes):
            return self.classes
        return (*self.classes, ClassRule(name=DEFAULT_CLASS))

    @property
    def all_identities(self) -> tuple[IdentityRule, ...]:
        """The identities, the default one among them."""
        if any(rule.name == DEFAULT_IDENTITY for rule in self.identities):
            return self.identities
        return (*self.identities, IdentityRule(name=DEFAULT_IDENTITY))


def merge(first: Terms, then: Terms) -> Terms:
    """Return terms of which what ``then`` says replaces what ``first`` says, key by key."""
    return Terms(
        read=_merge_share(first.read, then.read),
        write=_merge_share(first.write, then.write),
        operations=_merge_share(first.operations, then.operations),
        in_flight=first.in_flight if then.in_flight is None else then.in_flight,
        max_wait_s=first.max_wait_s if then.max_wait_s is None else then.max_wait_s,
        priority=first.priority if then.priority is None else then.priority,
    )


def _merge_share(first: ShareTerms, then: ShareTerms) -> ShareTerms:
    return ShareTerms(
        reserve=first.reserve if then.reserve is None else then.reserve,
        limit=first.limit if then.limit is None else then.limit,
        weight=first.weight if then.weight is None else then.weight,
        burst=first.burst if then.burst is None else then.burst,
    )


def terms_at(rule: ClassRule | IdentityRule, moment: Moment) -> Terms:
    """Return the terms of a class or an identity at a moment; of schedules that say the same thing
    at once the later listed wins."""
    terms = rule.terms
    for schedule in rule.schedules:
        if schedule.holds(moment):
            terms = merge(terms, schedule.terms)
    return terms


def overridden(rule: IdentityRule, overrides: Iterable[Override]) -> IdentityRule:
    """Return a rule whose terms and capacity are what was set by hand; schedules stay."""
    terms, capacity = rule.terms, rule.capacity
    for override in overrides:
        table, _, key = override.key.rpartition(".")
        # The parser of assignments gives each key a value of its type.
        change: dict[str, Any] = {key: override.value}
        match table:
            case "capacity":
                capacity = replace(capacity, **change)
            case "":
                terms = replace(terms, **change)
            case _:
                changed: dict[str, Any] = {table: replace(getattr(terms, table), **change)}
                terms = replace(terms, **changed)
    return replace(rule, terms=terms, capacity=capacity)


def rate_of(rate: Rate | None, of_all: float, otherwise: float) -> float:
    """Return tokens a second; ``otherwise`` for what is unsaid or a share of the unknown."""
    if rate is None:
        return otherwise
    if isinstance(rate, Fraction):
        return otherwise if isinf(of_all) else rate.of_all * of_all
    return rate


def size_of(size: Size | None, cache_bytes: int | None) -> int | None:
    """Return bytes; None for what is unsaid or a share of the unknown."""
    if isinstance(size, Fraction):
        return None if cache_bytes is None else int(size.of_all * cache_bytes)
    return size


def _share(terms: ShareTerms, of_all: float) -> Share:
    limit = rate_of(terms.limit, of_all, inf)
    return Share(
        # What was set by hand, or differs by schedule, may put the limit below the reserve.
        reserve=min(rate_of(terms.reserve, of_all, 0.0), limit),
        limit=limit,
        weight=1.0 if terms.weight is None else terms.weight,
        burst=terms.burst,
    )


def _shares(terms: Terms, node: Rates) -> Shares:
    return (
        _share(terms.read, node[Resource.READ]),
        _share(terms.write, node[Resource.WRITE]),
        _share(terms.operations, node[Resource.OPERATIONS]),
    )


def _class_plan(rule: ClassRule, moment: Moment, node: Rates) -> ClassPlan:
    terms = terms_at(rule, moment)
    return ClassPlan(
        name=rule.name,
        priority=terms.priority or 0,
        shares=_shares(terms, node),
        in_flight=terms.in_flight,
    )


def _identity_plan(
    rule: IdentityRule,
    overrides: Iterable[Override],
    moment: Moment,
    node: Rates,
    cache_bytes: int | None,
) -> IdentityPlan:
    now = overridden(replace(rule, terms=terms_at(rule, moment)), overrides)
    max_bytes = size_of(now.capacity.max, cache_bytes)
    min_bytes = size_of(now.capacity.min, cache_bytes) or 0
    return IdentityPlan(
        name=now.name,
        class_name=now.class_name,
        shares=_shares(now.terms, node),
        in_flight=now.terms.in_flight,
        max_wait_s=now.terms.max_wait_s,
        capacity=Capacity(
            # What was set by hand may put the maximum below it.
            min_bytes=min_bytes if max_bytes is None else min(min_bytes, max_bytes),
            soft_bytes=size_of(now.capacity.soft, cache_bytes),
            max_bytes=max_bytes,
            pin_max_bytes=size_of(now.capacity.pin_max, cache_bytes),
        ),
    )


def reserved(plan: Plan, resource: Resource) -> dict[str, float]:
    """Return what each class and its identities have reserved together, tokens a second: the
    class's own reservation or the sum of its identities', whichever is more."""
    of_class = {rule.name: 0.0 for rule in plan.classes}
    for identity in plan.identities:
        of_class[identity.class_name] += identity.shares[resource].reserve
    for rule in plan.classes:
        of_class[rule.name] = max(of_class[rule.name], rule.shares[resource].reserve)
    return of_class


def _cut_reservations(plan: Plan) -> Plan:
    """Cut what identities reserve down to their class's limit, and all of it down to the node."""
    for resource in Resource:
        wanted = reserved(plan, resource)
        limits = {rule.name: rule.shares[resource].limit for rule in plan.classes}
        factors = {name: min(1.0, limits[name] / of) for name, of in wanted.items() if of}
        total = sum(factors[name] * of for name, of in wanted.items() if of)
        if total > plan.node[resource]:
            all_of_it = plan.node[resource] / total
            factors = {name: factor * all_of_it for name, factor in factors.items()}
        if any(factor < 1.0 for factor in factors.values()):
            plan = _cut(plan, resource, factors)
    return plan


def _cut(plan: Plan, resource: Resource, factors: Mapping[str, float]) -> Plan:
    """Scale reservations, by class."""
    return replace(
        plan,
        classes=tuple(
            replace(rule, shares=_scaled(rule.shares, resource, factors.get(rule.name, 1.0)))
            for rule in plan.classes
        ),
        identities=tuple(
            replace(rule, shares=_scaled(rule.shares, resource, factors.get(rule.class_name, 1.0)))
            for rule in plan.identities
        ),
    )


def _scaled(shares: Shares, resource: Resource, factor: float) -> Shares:
    scaled = [
        replace(share, reserve=share.reserve * factor) if index == resource else share
        for index, share in enumerate(shares)
    ]
    return (scaled[0], scaled[1], scaled[2])
