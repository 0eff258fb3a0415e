"""Who may use how much of the node until the next turn: limits, reservations, weights, priorities.

The shell turns the governor every ~10 ms while anybody is active. Between two turns it says what
each payer has ``used`` and ``wants``; ``turn`` then divides what the node and the classes have now,
and ``grant`` says what each payer may use until the next one. A payer operates while it has used
less than its grant, and charges operations in full.

Of each resource, in this order: a floor for those who wait, so that nobody starves; reservations;
then by priority, and within one by weight, first among classes, then among identities; at last
what nobody wants, among those who are active. Limits of identities and classes hold throughout.
What an identity gets is divided among its payers by start-time fair queueing. ``accounts``
says how tokens are lent and paid back.

Grants before and after: whoever is idle has a standing grant of one operation, if its identity is
not in debt. So in any time t, node, class and identity use at most ``rate * t + burst`` and one
operation for each of their payers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, inf

from tiercache.policy.accounts import (
    ABSENT_TURNS,
    HOLD_SHARE,
    LATELY_S,
    NODE_BURST_S,
    RESOURCES,
    Account,
    Group,
    Identity,
    Payer,
    Pool,
    changed_pool,
)
from tiercache.policy.qos import (
    DEFAULT_CLASS,
    DEFAULT_IDENTITY,
    IdentityPlan,
    Plan,
    Rates,
    Resource,
)
from tiercache.policy.sharing import water_fill, whole_operations

# Who waits gets one operation in this time, or the most of its debt back, whatever the others are
# granted: twice within the 1 s in which everybody must progress.
FLOOR_S = 0.4
# All floors together take at most this share of the node, and of what is reserved the second.
FLOOR_SHARE = 0.1
FLOOR_SHARE_RESERVED = 0.02
# A payer that neither used nor wanted anything for so long is idle.
IDLE_S = 0.5
# One token admits one operation.
ONE = 1.0
# A burst of 0.1 s holds what was granted before a turn and what came in since, up to half of it.
LONG_TURN_S = 0.02
# A turn is never taken as shorter than this: rates are divided by it.
SHORTEST_TURN_S = 1e-4
# Buckets whose levels are a turn or two apart bind alike.
NEAR_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityReport:
    """One identity at the last turn. ``levels`` are what its buckets held (negative: debt), inf
    where it is not rationed, ``class_levels`` and ``node_levels`` what those buckets did, with what
    they have lent; ``used`` tokens a second lately; ``binding`` what those who wait wait
    for, as "limit read", "class operations", "node read", "" where nobody waits."""

    name: str
    class_name: str
    priority: int
    payers: int
    waiting: int
    longest_wait_s: float
    levels: Rates
    class_levels: Rates
    node_levels: Rates
    used: Rates
    share: Rates
    binding: str


class Governor:
    """All accounts and turns. Not thread safe: one thread owns it. Times are ``now_s`` of one
    monotonic clock; one that goes back counts as standing still."""

    def __init__(self, plan: Plan, now_s: float) -> None:
        self._now_s = now_s
        # When anybody last used something, and how many wait.
        self._used_s = -inf
        self._waiting_count = 0
        self._node: list[Pool | None] = [None, None, None]
        self._groups: dict[str, Group] = {}
        # Groups by priority, highest first.
        self._tiers: list[list[Group]] = []
        self._identities: dict[str, Identity] = {}
        # Those with busy payers or open balances.
        self._active: dict[str, Identity] = {}
        self._payers: dict[int, Payer] = {}
        self._next_number = 0
        # What was said to be used since the last turn.
        self._used: list[tuple[Payer, Rates]] = []
        self._changed: set[int] = set()
        self.replace(plan, now_s)

    # Plans and payers.

    def replace(self, plan: Plan, now_s: float) -> None:
        """Keep to ``plan`` from now on. Levels, debts and payers of identities that stay are kept;
        payers of those that vanished go on as the default identity, until theirs is there again."""
        self._charge_all(now_s)
        self._plan = plan
        self._node = [
            changed_pool(self._node[r], plan.node[r], plan.node[r] * NODE_BURST_S, now_s)
            for r in RESOURCES
        ]
        groups, self._groups = self._groups, {}
        for class_plan in plan.classes:
            group = groups.get(class_plan.name) or Group(class_plan)
            group.change(class_plan, now_s)
            self._groups[class_plan.name] = group
        self._replace_identities(plan, now_s)
        priorities = sorted({group.plan.priority for group in self._groups.values()}, reverse=True)
        self._tiers = [
            [group for group in self._groups.values() if group.plan.priority == priority]
            for priority in priorities
        ]
        for payer in self._payers.values():
            self._credit(payer)
            self._wake(payer)

    def _replace_identities(self, plan: Plan, now_s: float) -> None:
        old, self._identities = self._identities, {}
        for identity_plan in plan.identities:
            group = self._group_of(identity_plan)
            identity = old.pop(identity_plan.name, None) or Identity(identity_plan, group)
            self._identities[identity_plan.name] = identity
        for gone in old.values():
            self._identities[DEFAULT_IDENTITY].adopt(gone)
        for payer in self._payers.values():
            own = self._identities.get(payer.name)
            if own is not None and own is not payer.identity:
                own.take_back(payer)
        for identity_plan in plan.identities:
            group = self._group_of(identity_plan)
            self._identities[identity_plan.name].change(identity_plan, group, self._node, now_s)
        self._active = {
            identity.plan.name: identity
            for identity in self._identities.values()
            if any(account.balance for account in identity.accounts)
        }

    def _group_of(self, plan: IdentityPlan) -> Group:
        return self._groups.get(plan.class_name) or self._groups[DEFAULT_CLASS]

    def join(self, identity: str) -> int:
        """Return the number of a new payer of ``identity``, or of the default if there is none. It
        has a grant of one operation at once, unless the identity is in debt."""
        self._next_number += 1
        who = self._identities.get(identity) or self._identities[DEFAULT_IDENTITY]
        payer = Payer(self._next_number, identity, who)
        payer.tag = who.clock
        who.payers[payer.number] = self._payers[payer.number] = payer
        self._credit(payer)
        self._wake(payer)
        return payer.number

    def leave(self, payer: int) -> None:
        """Forget the payer. What it was lent and has not used is with its identity again."""
        gone = self._payers.pop(payer)
        gone.identity.payers.pop(payer)
        gone.identity.busy.pop(payer, None)
        self._waiting_count -= gone.want is not None
        self._changed.discard(payer)

    # What payers do between turns.

    def used(self, payer: int, amounts: Rates) -> None:
        """Charge what the payer has used since this was last said."""
        if any(amounts):
            who = self._payers[payer]
            self._used.append((who, amounts))
            self._wake(who)

    def _charge(self, who: Payer, amounts: Rates) -> None:
        """Charge what was used, to accounts that are refilled to the end of that time: a bucket
        that was full meanwhile took nothing in, whenever in that time it was used."""
        accounts, seconds = who.identity.accounts, 0.0
        for resource in RESOURCES:
            n = amounts[resource]
            if n:
                account = accounts[resource]
                account.charge(n)
                who.used[resource] += n
                who.grant[resource] -= n
                seconds = max(seconds, n * account.pace)
        who.tag += seconds
        self._used_s = self._now_s

    def _charge_all(self, now_s: float) -> None:
        """Charge what was used since the last turn: as if just now, which is safe, for a bucket
        that was full meanwhile took nothing in. After a long turn that would take a bucket's whole
        burst from those who used theirs at once and have waited since; they are charged as of
        then."""
        used, self._used = self._used, []
        if now_s - self._now_s > LONG_TURN_S:
            waited = [one for one in used if one[0].want is not None]
            used = [one for one in used if one[0].want is None]
            for who, amounts in sorted(waited, key=lambda one: one[0].since_s):
                who.identity.refill(min(now_s, max(who.since_s, self._now_s)))
                self._charge(who, amounts)
        for identity in self._active.values():
            identity.refill(now_s)
        for who, amounts in used:
            self._charge(who, amounts)

    def wants(self, payer: int, amounts: Rates, since_s: float) -> None:
        """The payer waits for an operation of ``amounts``; all zeros: it waits no more."""
        who = self._payers[payer]
        was_waiting = who.want is not None
        who.want = amounts if any(amounts) else None
        self._waiting_count += (who.want is not None) - was_waiting
        if who.want is not None:
            who.since_s = since_s
            if not was_waiting:
                who.tag = max(who.tag, who.identity.clock)
            self._wake(who)

    def admit(self, payer: int, amounts: Rates, now_s: float) -> bool:
        """Charge an operation of ``amounts`` and return True, if the payer's grant admits it, or
        what is free does and nobody of its identity queues before it. Otherwise charge nothing and
        return False: say ``wants``, and try again after a turn."""
        who = self._payers[payer]
        identity = who.identity
        self._wake(who)
        if self._used:
            self._charge_all(now_s)
        short = [r for r in identity.rationed if amounts[r] > 0 and who.grant[r] <= 0]
        if short:
            if any(other.want and other is not who for other in identity.busy.values()):
                return False
            accounts = [identity.accounts[r] for r in short]
            for account in accounts:
                account.refill(now_s)
            if any(account.level <= max(account.balance, 0.0) for account in accounts):
                return False
            for resource, account in zip(short, accounts, strict=True):
                account.lend(amounts[resource] - min(account.balance, 0.0))
                who.grant[resource] += amounts[resource]
        self._charge(who, amounts)
        return True

    def _wake(self, payer: Payer) -> None:
        payer.active_s = self._now_s
        identity = payer.identity
        identity.busy[payer.number] = payer
        self._active[identity.plan.name] = identity

    def _credit(self, payer: Payer) -> None:
        """Grant one operation, of what its identity owes nothing of."""
        identity = payer.identity
        payer.grant = [inf, inf, inf]
        for resource in identity.rationed:
            payer.grant[resource] = ONE if identity.accounts[resource].balance >= 0 else 0.0
        self._changed.add(payer.number)

    # Turns.

    def turn(self, now_s: float) -> None:
        """Divide what there is now. Takes time by those who are active, not by who is idle."""
        passed_s = max(now_s - self._now_s, SHORTEST_TURN_S)
        now_s = max(now_s, self._now_s)
        self._charge_all(now_s)
        self._now_s = now_s
        active = list(self._active.values())
        for identity in active:
            identity.measure(passed_s)
        for resource in RESOURCES:
            pooled = []
            for identity in active:
                account = identity.accounts[resource]
                if account.pools:
                    pooled.append(account)
                    identity.group.members.append(account)
                elif account.limit is not None:
                    account.balance = account.limit.level
            if pooled:
                self._share(resource, pooled, passed_s)
                for group in self._groups.values():
                    group.members = []
        for identity in active:
            self._deal(identity)
            self._rest(identity)

    def _share(self, resource: Resource, accounts: list[Account], passed_s: float) -> None:
        """Lend what the pools have of one resource to the accounts of those who are active."""
        node = self._node[resource]
        groups = [group for group in self._groups.values() if group.members]
        for group in groups:
            _bound_needs(group.members, group.pools[resource])
        _bound_needs(accounts, node)
        for account in accounts:
            account.settle()
        if node is not None:
            self._give_floors(resource, node, accounts, passed_s)
        for group in groups:
            pool = group.pools[resource]
            if pool is not None:
                self._give_floors(resource, pool, group.members, passed_s)
        self._give_reserved(resource, groups, node)
        for tier in self._tiers:
            members = [group for group in tier if group.members]
            if members:
                _give(resource, members, node)
        scarce = any(account.room > 0 for account in accounts)
        fade = passed_s / (LATELY_S + passed_s)
        for account in accounts:
            target = max(account.got / passed_s, account.lately) if scarce else account.bound
            account.share += (target - account.share) * fade
        if not scarce and (node is None or node.free > 0):
            for account in accounts:
                limit = account.limit
                account.room = inf if limit is None else limit.level - account.balance
            _give(resource, groups, node)

    def _give_floors(
        self, resource: Resource, pool: Pool, accounts: list[Account], passed_s: float
    ) -> None:
        """Lend those who wait a little before anybody else, where there is not enough for all."""
        free = pool.free
        if free <= 0 or free >= sum(account.room for account in accounts):
            return
        waiting = [account for account in accounts if account.want > 0 and account.room > 0]
        if not waiting:
            return
        reserved = sum(i.plan.shares[resource].reserve for i in self._identities.values())
        share = max(FLOOR_SHARE_RESERVED, min(FLOOR_SHARE, 1 - reserved / pool.rate))
        part = min(1.0, passed_s / FLOOR_S)
        floors = water_fill(
            min(share * pool.rate * passed_s, free),
            weights=[1.0] * len(waiting),
            wants=[
                max(0.0, min(max(a.want, -a.balance) * part - a.got, a.room, a.lendable))
                for a in waiting
            ],
            had=[0.0] * len(waiting),
        )
        for account, floor in zip(waiting, floors, strict=True):
            account.lend(max(0.0, min(floor, account.lendable)))

    def _give_reserved(self, resource: Resource, groups: list[Group], node: Pool | None) -> None:
        """Lend what is reserved for identities; then what is reserved for whole classes, less what
        their identities have got. Where it is too much, all get the same part of it."""
        holders = [a for g in groups for a in g.members if a.reserve is not None and a.room > 0]
        wishes: dict[Account, float] = {}
        for account in holders:
            assert account.reserve is not None
            wishes[account] = max(0.0, min(account.reserve.level, account.room))
        for group in groups:
            _scale(wishes, [a for a in group.members if a in wishes], group.pools[resource])
        _scale(wishes, holders, node)
        for account, n in wishes.items():
            assert account.reserve is not None
            account.lend(n)
            account.reserve.level -= n
        for group in groups:
            whole = group.reserves[resource]
            if whole is not None:
                whole.refill(self._now_s)
                whole.level -= sum(wishes.get(account, 0.0) for account in group.members)
                if whole.level > 0:
                    whole.level -= _give(resource, [group], node, whole.level)

    def _deal(self, identity: Identity) -> None:
        """Divide what the identity has among its busy payers."""
        self._changed.update(identity.busy)
        waiting = identity.waiting
        others = []
        for payer in identity.busy.values():
            if payer.want is None:
                others.append(payer)
            elif payer.missed_turns >= ABSENT_TURNS:
                for resource in identity.rationed:
                    payer.grant[resource] = ONE
        for resource in identity.rationed:
            left = identity.accounts[resource].balance
            if waiting:
                wants = [payer.want[resource] for payer in waiting if payer.want]
                left -= _deal_others(resource, others, left, wants)
                for payer, grant in zip(waiting, whole_operations(left, wants), strict=True):
                    payer.grant[resource] = grant
            elif others:
                _deal_freely(resource, others, left)

    def _rest(self, identity: Identity) -> None:
        """Let payers go that have been idle for long, with a standing grant of one operation."""
        before_s = self._now_s - IDLE_S
        accounts = identity.accounts
        if all(accounts[r].balance >= 0 for r in identity.rationed):
            resting = [
                p for p in identity.busy.values() if p.want is None and p.active_s < before_s
            ]
            for payer in resting:
                del identity.busy[payer.number]
                self._credit(payer)
        if not identity.busy:
            for account in accounts:
                account.peak = 0.0
                if account.balance > 0:
                    account.lend(-account.balance)
            if not any(accounts[r].balance for r in identity.rationed):
                del self._active[identity.plan.name]

    # What the shell reads.

    def changed(self) -> list[int]:
        """Return the payers whose grants may be others than when this was last asked."""
        changed, self._changed = list(self._changed), set()
        return changed

    def grant(self, payer: int) -> Rates:
        """Return what the payer may use until the next turn, beyond what it has used: in whole
        tokens, inf where it is not rationed. Above 0 admits an operation of any size."""
        read, write, operations = self._payers[payer].grant
        return _whole(read), _whole(write), _whole(operations)

    def share(self, payer: int) -> Rates:
        """Return its rate lately, in tokens a second; inf where it is not rationed."""
        identity = self._payers[payer].identity
        count = max(1, len(identity.busy))
        read, write, operations = (account.share / count for account in identity.accounts)
        return read, write, operations

    def safe(self, payer: int) -> Rates:
        """Return the rate with which it goes on when the agent has been gone for long: the plan's
        ``safe_share``, and no more than an equal part, so that all of an identity stay within its
        bounds."""
        identity = self._payers[payer].identity
        part = min(self._plan.safe_share, 1 / len(identity.payers))
        read, write, operations = (account.bound * part for account in identity.accounts)
        return read, write, operations

    def is_idle(self) -> bool:
        """Say whether nobody waits, nor has used anything for long: turns may pause."""
        return not self._waiting_count and self._now_s - self._used_s > 2 * IDLE_S

    def assert_invariants(self) -> None:
        """Check that the pools' books agree with those of the accounts."""
        for resource in RESOURCES:
            node = self._node[resource]
            balances = [i.accounts[resource].balance for i in self._identities.values()]
            if node is not None:
                assert abs(node.lent - sum(balances)) <= 1e-6 * node.rate + 1e-6, (node, balances)
            for group in self._groups.values():
                pool = group.pools[resource]
                members = [i for i in self._identities.values() if i.group is group]
                lent = sum(i.accounts[resource].balance for i in members)
                if pool is not None:
                    assert abs(pool.lent - lent) <= 1e-6 * pool.rate + 1e-6, (group.plan, lent)

    def report(self) -> list[IdentityReport]:
        """Return how every identity does."""
        return [self._report(identity) for identity in self._identities.values()]

    def _report(self, identity: Identity) -> IdentityReport:
        waiting = [payer for payer in identity.busy.values() if payer.want is not None]
        longest_s = max((self._now_s - payer.since_s for payer in waiting), default=0.0)
        accounts = identity.accounts
        return IdentityReport(
            name=identity.plan.name,
            class_name=identity.group.plan.name,
            priority=identity.group.plan.priority,
            payers=len(identity.payers),
            waiting=len(waiting),
            longest_wait_s=max(0.0, longest_s),
            levels=_rates(a.level for a in accounts),
            class_levels=_rates(map(_level, identity.group.pools)),
            node_levels=_rates(map(_level, self._node)),
            used=_rates(a.lately for a in accounts),
            share=_rates(a.share for a in accounts),
            binding=self._binding(identity) if waiting else "",
        )

    def _binding(self, identity: Identity) -> str:
        """Name the bucket that has least left for those who wait; of such as have about the same
        the identity's own, since a busy node has lent everything at all times."""
        least, name = inf, ""
        for resource in identity.rationed:
            account = identity.accounts[resource]
            levels = {
                "limit": account.limit.level if account.limit is not None else inf,
                "class": _free(identity.group.pools[resource]) + account.balance,
                "node": _free(self._node[resource]) + account.balance,
            }
            seconds = {bucket: level * account.pace for bucket, level in levels.items()}
            lowest = min(seconds.values())
            if lowest < least:
                bucket = next(one for one in seconds if seconds[one] <= lowest + NEAR_S)
                least, name = lowest, f"{bucket} {Resource(resource).name.lower()}"
        return name


def _bound_needs(accounts: list[Account], pool: Pool | None) -> None:
    """Keep what stands lent to those who do not wait below a share of what the pool can hold."""
    if pool is None:
        return
    held = sum(account.need for account in accounts if account.need < inf)
    most = HOLD_SHARE * pool.burst
    if held > most:
        for account in accounts:
            if account.need < inf:
                account.need *= most / held


def _scale(wishes: dict[Account, float], holders: list[Account], pool: Pool | None) -> None:
    """Cut wishes down alike to what the pool has."""
    wished = sum(wishes[account] for account in holders)
    free = max(0.0, _free(pool))
    if wished > free:
        for account in holders:
            wishes[account] *= free / wished


def _give(resource: Resource, groups: list[Group], node: Pool | None, most: float = inf) -> float:
    """Lend up to ``most`` of what is free by weight, to the classes and in them to the accounts;
    return how much."""
    amount = min(most, _free(node))
    if amount <= 0:
        return 0.0
    portions = water_fill(
        amount,
        weights=[group.plan.shares[resource].weight for group in groups],
        wants=[
            max(0.0, min(sum(a.room for a in g.members), _free(g.pools[resource]))) for g in groups
        ],
        had=[max(0.0, sum(a.got for a in g.members)) for g in groups],
    )
    for group, portion in zip(groups, portions, strict=True):
        if portion <= 0:
            continue
        members = group.members
        parts = water_fill(
            portion,
            weights=[account.weight for account in members],
            wants=[account.room if account.room > 0 else 0.0 for account in members],
            had=[account.got for account in members],
        )
        for account, part in zip(members, parts, strict=True):
            if part > 0:
                account.lend(part)
    return sum(portions)


def _deal_others(resource: int, others: list[Payer], left: float, wants: list[float]) -> float:
    """Grant those who do not wait what they are wont to use, of ``left``, if shares are large
    enough that they need not queue; return how much."""
    fair = left / (len(others) + len(wants))
    if fair <= 0 or fair < max(wants):
        fair = 0.0
    dealt = 0.0
    for payer in others:
        n = min(fair, max(payer.peak[resource], ONE))
        payer.grant[resource] = n
        dealt += n
    return dealt


def _deal_freely(resource: int, payers: list[Payer], left: float) -> None:
    """Nobody waits: grant all of ``left``, what they are wont to use first."""
    if left <= 0:
        for payer in payers:
            payer.grant[resource] = 0.0
        return
    wont = sum(payer.peak[resource] for payer in payers)
    scale = 1.0 if wont <= left else left / wont
    more = max(0.0, left - wont) / len(payers)
    for payer in payers:
        payer.grant[resource] = payer.peak[resource] * scale + more


def _level(pool: Pool | None) -> float:
    return inf if pool is None else pool.level


def _free(pool: Pool | None) -> float:
    return inf if pool is None else pool.level - pool.lent


def _whole(tokens: float) -> float:
    return tokens if tokens == inf else float(max(0, ceil(tokens)))


def _rates(values: Iterable[float]) -> Rates:
    read, write, operations = values
    return read, write, operations
