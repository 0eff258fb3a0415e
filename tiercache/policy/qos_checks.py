"""What is wrong with a QoS policy as a whole. Pure; single values are the parser's business."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isinf

from tiercache.policy import qos_schedule
from tiercache.policy.qos import DEFAULT_CLASS, DEFAULT_IDENTITY, Rates, Resource
from tiercache.policy.qos_match import ANYBODY, GROUP_SIGN, ListedRule, MatchRule
from tiercache.policy.qos_rules import (
    UNKNOWN_RATES,
    CapacityTerms,
    ClassRule,
    Fraction,
    IdentityRule,
    Override,
    Policy,
    Rate,
    Size,
    Terms,
    merge,
    overridden,
    rate_of,
    size_of,
    terms_at,
)
from tiercache.policy.qos_schedule import DAY_MINUTES, DAYS, Moment
from tiercache.units import format_bytes

# Each identity has a mark of one byte (``Seat.mark``), of which 0 says "not used lately".
MOST_IDENTITIES = 255
# Reservations are added up at every moment at which something changes: 14 for each window.
MOST_WINDOWS = 64
# Every first use of a path by a process looks at all of them.
MOST_RULES = 4096

# Sums of shares, such as 60 % and 40 %, are not exact.
ROUNDING = 1 + 1e-9

# Of the characters of a key that is shown; the longest names have 64.
MOST_SHOWN = 100

At = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``at`` names what is wrong: ("identity", "training", "read", "reserve"). ``place`` is where
    it stands ("qos.toml:12"), where the parser knows."""

    at: At
    cause: str
    remedy: str = ""
    place: str = ""

    @property
    def key(self) -> str:
        """``at`` as text: identity[training].read.reserve."""
        text = ""
        for index, part in enumerate(self.at):
            named = index == 1 and self.at[0] in ("identity", "class", "backend")
            shown = str(part)[:MOST_SHOWN]
            if not shown.isprintable():
                shown = repr(shown)
            if named or isinstance(part, int):
                text += f"[{shown}]"
            else:
                text += f".{shown}" if text else shown
        return text

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.place, self.key, self.cause) if part)
        return f"{text} ({self.remedy})" if self.remedy else text


def find_problems(
    policy: Policy,
    node_rates: Rates = UNKNOWN_RATES,
    *,
    cache_bytes: int | None = None,
    overrides: Iterable[Override] = (),
) -> tuple[Problem, ...]:
    """Return why a policy cannot be kept; nothing where it can.

    ``node_rates`` are what was measured of the node, for what the policy leaves to that; of what
    is not known only shares are added up. The parser has refused wrong values and duplicate names.
    """
    policy = _with_overrides(policy, overrides)
    classes = {DEFAULT_CLASS} | {rule.name for rule in policy.classes}
    found = [*_too_many(policy)]
    for rule in policy.identities:
        if rule.class_name not in classes:
            found.append(
                Problem(
                    at=("identity", rule.name, "class"),
                    cause=f"no class {rule.class_name!r}",
                    remedy=f"the classes are {', '.join(sorted(classes))}",
                )
            )
        found += _matches(rule)
        found += _capacity(rule, cache_bytes)
    found += _unreachable(policy.rules)
    rates = policy.node.rates(node_rates)
    for class_rule in policy.classes:
        found += _terms("class", class_rule, rates)
    for rule in policy.identities:
        found += _terms("identity", rule, rates)
    found += _minimums(policy, cache_bytes)
    found += _reservations(policy, rates)
    return tuple(found)


def _with_overrides(policy: Policy, overrides: Iterable[Override]) -> Policy:
    """Return a policy in which what is set by hand holds at all hours."""
    given = tuple(overrides)
    if not given:
        return policy
    changed = []
    for rule in policy.all_identities:
        mine = [override for override in given if override.identity == rule.name]
        plain = overridden(rule, mine)
        schedules = tuple(
            replace(one, terms=overridden(replace(rule, terms=one.terms), mine).terms)
            for one in rule.schedules
        )
        changed.append(replace(plain, schedules=schedules))
    return replace(policy, identities=tuple(changed))


def _too_many(policy: Policy) -> Iterator[Problem]:
    counts = (
        (
            "identity",
            len(policy.all_identities),
            MOST_IDENTITIES,
            "identities, the default one too",
        ),
        ("identity", len(policy.rules), MOST_RULES, "match rules"),
        ("class", len(policy.classes), MOST_IDENTITIES, "classes"),
        ("identity", len(policy.windows), MOST_WINDOWS, "hours in schedules"),
        ("backend", len(policy.backends), MOST_RULES, "backends"),
    )
    for kind, count, most, name in counts:
        if count > most:
            yield Problem(at=(kind,), cause=f"{count} {name}", remedy=f"at most {most}")


def _matches(rule: IdentityRule) -> Iterator[Problem]:
    at: At = ("identity", rule.name, "match")
    if rule.name == DEFAULT_IDENTITY and rule.matches:
        yield Problem(
            at=at,
            cause="is for whoever no rule matches",
            remedy="remove match, or give the identity another name",
        )
    if rule.name != DEFAULT_IDENTITY and not rule.matches:
        yield Problem(
            at=at,
            cause="no rule: nobody is ever this identity",
            remedy=f'give it one, such as match = {{ name = "{rule.name}" }}',
        )
    for number, match in enumerate(rule.matches):
        if not _claimants(match, rule.claim):
            yield Problem(
                at=(*at, number),
                cause=f"{match} can match nobody: claim lets only "
                f"{', '.join(rule.claim) or 'nobody'} use the name",
                remedy="widen claim, or remove the rule",
            )


def _claimants(match: MatchRule, claim: Iterable[str]) -> set[str]:
    """Return the words of a claim that may let somebody whom the rule matches; anybody for a rule
    without a name."""
    if not match.name:
        return {ANYBODY}
    # A user goes by name and by number: "ada" may be "1000", but not "bob".
    return {
        word
        for word in claim
        if word[:1] in (ANYBODY, GROUP_SIGN)
        or match.user in ("", word)
        or match.user.isdecimal() != word.isdecimal()
    }


def _unreachable(rules: Sequence[ListedRule]) -> Iterator[Problem]:
    """Find rules that can never win. Rules of other keys leave each other room, so that only those
    of the same keys and values, listed before, can take everything from a rule: unless they
    let fewer people use the name."""
    taken: dict[MatchRule, tuple[str, set[str]]] = {}  # who lists it, and for whom
    numbers: dict[str, int] = {}
    for listed in rules:
        number = numbers[listed.identity] = numbers.get(listed.identity, -1) + 1
        claim = _claimants(listed.rule, listed.claim)
        first, claimed = taken.setdefault(listed.rule, (listed.identity, set()))
        if claim and (ANYBODY in claimed or claim <= claimed):
            yield Problem(
                at=("identity", listed.identity, "match", number),
                cause=f"{listed.rule} can never win: {first} lists the same before it",
                remedy="remove one of the two, or add a key",
            )
        claimed |= claim


def _exceeds(less: Rate | None, more: Rate | None, of_all: float) -> bool:
    """Say whether a rate is more than another; not where they cannot be compared."""
    if less is None or more is None:
        return False
    if isinstance(less, Fraction) and isinstance(more, Fraction):
        return less.of_all > more.of_all
    if isinf(of_all) and (isinstance(less, Fraction) or isinstance(more, Fraction)):
        return False
    return rate_of(less, of_all, 0.0) > rate_of(more, of_all, 0.0)


def _terms(kind: str, rule: ClassRule | IdentityRule, rates: Rates) -> Iterator[Problem]:
    places: list[tuple[At, Terms, Terms]] = [((), rule.terms, rule.terms)]
    places += [
        (("schedule", number), merge(rule.terms, one.terms), one.terms)
        for number, one in enumerate(rule.schedules)
    ]
    for place, terms, said in places:
        for resource in Resource:
            share, here = terms.share(resource), said.share(resource)
            if _exceeds(share.reserve, share.limit, rates[resource]):
                key = "limit" if here.reserve is None else "reserve"
                yield Problem(
                    at=(kind, rule.name, *place, resource.name.lower(), key),
                    cause="the reserve is more than the limit",
                    remedy="lower the reserve or raise the limit",
                )


def _capacity(rule: IdentityRule, cache_bytes: int | None) -> Iterator[Problem]:
    capacity = rule.capacity
    orders = (("min", "soft"), ("min", "max"), ("soft", "max"), ("pin_max", "max"))
    for less, more in orders:
        lesser: Size | None = getattr(capacity, less)
        greater: Size | None = getattr(capacity, more)
        if _exceeds(lesser, greater, float("inf") if cache_bytes is None else cache_bytes):
            yield Problem(
                at=("identity", rule.name, "capacity", less),
                cause=f"{less} is more than {more}",
                remedy=f"lower {less} or raise {more}",
            )


def _minimums(policy: Policy, cache_bytes: int | None) -> Iterator[Problem]:
    rules = [rule for rule in policy.identities if rule.capacity.min is not None]
    if not rules:
        return
    biggest = max(rules, key=lambda rule: _minimum(rule.capacity, cache_bytes))
    at = ("identity", biggest.name, "capacity", "min")
    shares = sum(
        rule.capacity.min.of_all for rule in rules if isinstance(rule.capacity.min, Fraction)
    )
    total = sum(_minimum(rule.capacity, cache_bytes) for rule in rules)
    if cache_bytes is not None and total > cache_bytes:
        yield Problem(
            at=at,
            cause=f"the minimum capacities are {format_bytes(total)} together, the cache has "
            f"{format_bytes(cache_bytes)}",
            remedy="lower them, or give the cache more room",
        )
    elif shares > ROUNDING:
        yield Problem(
            at=at,
            cause=f"the minimum capacities are {shares:.4g} of the cache together",
            remedy="lower them to at most 100%",
        )


def _minimum(capacity: CapacityTerms, cache_bytes: int | None) -> int:
    return size_of(capacity.min, cache_bytes) or 0


def _moments(policy: Policy) -> list[Moment]:
    """Return a moment of each set of hours that are ever in force together."""
    windows = policy.windows
    found: dict[tuple[bool, ...], Moment] = {}
    for minute in qos_schedule.changes(windows) or [0]:
        moment = Moment(weekday=minute // DAY_MINUTES, minute=minute % DAY_MINUTES)
        found.setdefault(tuple(window.holds(moment) for window in windows), moment)
    return list(found.values())


def _reservations(policy: Policy, rates: Rates) -> Iterator[Problem]:
    """Add up reservations at every moment; of each kind of mistake the first moment's is told."""
    seen: set[At] = set()
    for moment in _moments(policy):
        classes = {rule.name: terms_at(rule, moment) for rule in policy.classes}
        classes.setdefault(DEFAULT_CLASS, Terms())
        identities = {rule.name: terms_at(rule, moment) for rule in policy.identities}
        for resource in Resource:
            sums = _Reserved(policy, classes, identities, resource, rates[resource])
            for problem in sums.problems(_at(policy, moment)):
                if (problem.at[0], resource) not in seen:
                    seen.add((problem.at[0], resource))
                    yield problem


class _Reserved:
    """What is reserved of one resource at one moment. Of an unknown node only shares of it are
    added up, and it is 1."""

    def __init__(
        self,
        policy: Policy,
        classes: dict[str, Terms],
        identities: dict[str, Terms],
        resource: Resource,
        node: float,
    ) -> None:
        self._resource, self._node = resource, node
        self._word = resource.name.lower()
        self._limits = {name: terms.share(resource).limit for name, terms in classes.items()}
        self._classes = {
            name: self._tokens(terms.share(resource).reserve) for name, terms in classes.items()
        }
        self._identities = {
            name: self._tokens(terms.share(resource).reserve) for name, terms in identities.items()
        }
        self._inside = dict.fromkeys(classes, 0.0)
        for rule in policy.identities:
            if rule.class_name in classes:
                self._inside[rule.class_name] += self._identities[rule.name]

    def _tokens(self, rate: Rate | None) -> float:
        if isinf(self._node):
            return rate.of_all if isinstance(rate, Fraction) else 0.0
        return rate_of(rate, self._node, 0.0)

    def problems(self, when: str) -> Iterator[Problem]:
        for name, inside in self._inside.items():
            limit = self._limits[name]
            if limit is None or (isinf(self._node) and not isinstance(limit, Fraction)):
                continue
            if inside > self._tokens(limit) * ROUNDING:
                yield Problem(
                    at=("class", name, self._word, "limit"),
                    cause=f"its identities reserve {self._shown(inside)} together{when}, more "
                    f"than the limit of {self._shown(self._tokens(limit))}",
                    remedy="raise the limit or lower their reserves",
                )
        delivers = 1.0 if isinf(self._node) else self._node
        total = sum(max(own, self._inside[name]) for name, own in self._classes.items())
        if total > delivers * ROUNDING:
            yield Problem(
                at=(*self._biggest(), self._word, "reserve"),
                cause=f"all reservations of {self._word} are {self._shown(total)} together{when}, "
                f"the node delivers {self._shown(delivers)}",
                remedy=f"lower them by {self._shown(total - delivers)}",
            )

    def _biggest(self) -> tuple[str, str]:
        """Return the class or identity that reserves the most."""
        everything = {("class", name): tokens for name, tokens in self._classes.items()}
        everything |= {("identity", name): tokens for name, tokens in self._identities.items()}
        return max(everything, key=lambda key: everything[key])

    def _shown(self, tokens: float) -> str:
        if isinf(self._node):
            return f"{tokens * 100:.4g}%"
        if self._resource is Resource.OPERATIONS:
            return f"{tokens:.6g}/s"
        return f"{tokens / 1e6:.6g}MB/s"


def _at(policy: Policy, moment: Moment) -> str:
    if not policy.windows:
        return ""
    return f" on {DAYS[moment.weekday]} at {moment.minute // 60:02}:{moment.minute % 60:02}"


def find_warnings(policy: Policy) -> tuple[Problem, ...]:
    """Return what is allowed and yet seldom meant."""
    found = []
    # A rule that gives a user or a group as well does not depend on the claim alone.
    open_to_all = {
        match.name: rule.name
        for rule in policy.identities
        if ANYBODY in rule.claim and _reserves_any(rule)
        for match in rule.matches
        if match.keys == ("name",)
    }
    if open_to_all:
        names = ", ".join(map(repr, open_to_all))
        found.append(
            Problem(
                at=("identity", next(iter(open_to_all.values())), "claim"),
                cause=f"anybody may use the name {names}, and so what is reserved for it",
                remedy='name users and groups, such as claim = "@training"',
            )
        )
    for rule in policy.identities:
        if rule.claim != (ANYBODY,) and not any(match.name for match in rule.matches):
            found.append(
                Problem(
                    at=("identity", rule.name, "claim"),
                    cause="has no effect: no rule of this identity gives a name",
                    remedy="remove it, or add name to match",
                )
            )
    return tuple(found)


def _reserves_any(rule: IdentityRule) -> bool:
    terms = (rule.terms, *(one.terms for one in rule.schedules))
    return any(said.share(resource).reserve for said in terms for resource in Resource)
