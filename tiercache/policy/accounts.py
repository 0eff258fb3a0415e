"""What the governor keeps of payers, identities, classes and the node.

Tokens flow down: a *pool* (the node, or a class with a limit) holds what it may deliver now, and
lends of it to the *accounts* of identities, one for each resource. Only use is charged: to the
account, and to every pool and limit above it. So what was lent and not used is still in the pool,
and a dead process owes nothing. One operation larger than a burst is the debt of the identity that
did it: the level of the pool falls, but what is *free* of it (its level less the balances lent,
debts among them) does not, and the others get their shares as before.
"""

from __future__ import annotations

from math import inf

from tiercache.policy.qos import ClassPlan, IdentityPlan, Rates, Resource, Share
from tiercache.policy.token_bucket import TokenBucket

# What a limit lets through at once after silence. A turn late by as much loses nothing; and a
# window of 5 s sees at most 0.1 / 5 = 2 % over the limit, where 3 % are the bar.
LIMIT_BURST_S = 0.1
# The same of the node, whose rate is a measurement and no promise: half of it may stand lent to
# those who read now and then (HOLD_SHARE), the other half bridges late turns.
NODE_BURST_S = 0.15
# A reservation that was not asked for is remembered this long: a reader that computes between
# its batches finds what it missed meanwhile.
RESERVE_BURST_S = 0.25
# Whoever does not wait keeps what it uses in this time, so that a late turn does not stop it.
HOLD_S = 0.05
HOLD_SHARE = 0.5
# Bursts are forgotten with this time constant: longer than most steps of a training.
PEAK_S = 1.0
# Time constant of the rates told to clients and operators.
LATELY_S = 0.5
# Who waits and leaves its grant alone for so many turns is stopped, dead or has no processor: the
# others do not wait for it. A live one looks every 5 ms at least.
ABSENT_TURNS = 5
RESOURCES = tuple(Resource)


class Pool(TokenBucket):
    """A bucket that several accounts draw on. ``lent`` is the sum of their balances."""

    __slots__ = ("lent",)

    def __init__(self, *, rate: float, burst: float, now_s: float) -> None:
        super().__init__(rate=rate, burst=burst, now_s=now_s)
        self.lent = 0.0

    @property
    def free(self) -> float:
        """What can be lent still."""
        return self.level - self.lent


class Payer:
    """One queue of operations: a process at the lease file, or one in the agent."""

    __slots__ = (
        "active_s", "grant", "identity", "missed_turns", "name", "number", "peak", "since_s", "tag",
        "used", "want",
    )  # fmt: skip

    def __init__(self, number: int, name: str, identity: Identity) -> None:
        self.number = number
        # The identity that it was told to be of, where the plan has that one.
        self.name = name
        self.identity = identity
        # What is left of its grant; inf of what is not rationed.
        self.grant = [inf, inf, inf]
        # Since the last turn; and what it uses in HOLD_S when it is at it.
        self.used = [0.0, 0.0, 0.0]
        self.peak = [0.0, 0.0, 0.0]
        self.want: Rates | None = None
        self.since_s = 0.0
        self.active_s = 0.0
        # The turns in which it waited and could have gone on.
        self.missed_turns = 0
        # Start-time fair queueing (Goyal et al., SIGCOMM '96): the seconds of its identity's rate
        # that this payer has used. The lowest is served first.
        self.tag = 0.0

    def measure(self, passed_s: float) -> None:
        """Take in what was used in the time since the last turn."""
        used, peak = self.used, self.peak
        if self.want is None or any(used) or min(self.grant) <= 0:
            self.missed_turns = 0
        else:
            self.missed_turns += 1
        fade = 1 - min(1.0, passed_s / PEAK_S)
        hold = HOLD_S / passed_s if passed_s < HOLD_S else 1.0
        for resource in RESOURCES:
            burst = used[resource] * hold
            faded = peak[resource] * fade
            peak[resource] = burst if burst > faded else faded
            used[resource] = 0.0


class Account:
    """One identity's tokens of one resource."""

    __slots__ = (
        "balance", "got", "is_short", "lately", "limit", "need", "pace", "peak", "pools", "reserve",
        "room", "share", "used", "want", "weight",
    )  # fmt: skip

    def __init__(self) -> None:
        self.limit: TokenBucket | None = None
        self.reserve: TokenBucket | None = None
        self.pools: tuple[Pool, ...] = ()
        self.weight = 1.0
        # What its payers may use, less what they have used.
        self.balance = 0.0
        # Since the last turn; in HOLD_S when it is at it; tokens a second.
        self.used = 0.0
        self.peak = 0.0
        self.lately = 0.0
        self.share = inf
        # Seconds of its rate that a token is.
        self.pace = 0.0
        # Of one turn: the largest operation that waits, whether it waits for this, how much its
        # balance may be, what it lacks to that, what it got.
        self.want = 0.0
        self.is_short = False
        self.need = 0.0
        self.room = 0.0
        self.got = 0.0

    @property
    def bound(self) -> float:
        """The most that it can get, in tokens a second."""
        rates = [pool.rate for pool in self.pools]
        if self.limit is not None:
            rates.append(self.limit.rate)
        return min(rates, default=inf)

    @property
    def lendable(self) -> float:
        """What its pools can lend still."""
        return min((pool.level - pool.lent for pool in self.pools), default=inf)

    @property
    def level(self) -> float:
        """What it could use now if nobody else got any; negative: how much must come in first."""
        level = self.balance + self.lendable
        return level if self.limit is None else min(level, self.limit.level)

    def refill(self, now_s: float) -> None:
        if self.limit is not None:
            self.limit.refill(now_s)
        if self.reserve is not None:
            self.reserve.refill(now_s)
        for pool in self.pools:
            pool.refill(now_s)

    def charge(self, n: float) -> None:
        self.used += n
        if self.limit is None and not self.pools:
            return
        self.balance -= n
        if self.limit is not None:
            self.limit.level -= n
        for pool in self.pools:
            pool.level -= n
            pool.lent -= n

    def lend(self, n: float) -> None:
        """Move ``n`` tokens from the pools to the account; below 0, back."""
        self.balance += n
        self.got += n
        self.room -= n
        for pool in self.pools:
            pool.lent += n

    def measure(self, passed_s: float) -> None:
        """Take in what was used in the time since the last turn, and see what it needs now."""
        used = self.used
        self.used = 0.0
        self.lately += (used / passed_s - self.lately) * passed_s / (LATELY_S + passed_s)
        burst = used * HOLD_S / passed_s if passed_s < HOLD_S else used
        faded = self.peak * (1 - passed_s / PEAK_S) if passed_s < PEAK_S else 0.0
        self.peak = burst if burst > faded else faded
        # Who waits for this can use any amount. Who has some of it left waits for another resource,
        # or has not looked yet, and needs of this one what it is wont to use.
        self.need = inf if self.is_short else self.peak

    def settle(self) -> None:
        """Give back what is more than it needs or its limit allows; see what it lacks."""
        most = self.need
        if self.limit is not None and self.limit.level < most:
            most = self.limit.level
        if self.balance > most and self.balance > 0:
            self.lend(max(most, 0.0) - self.balance)
        self.room = most - self.balance if most > self.balance else 0.0
        self.got = 0.0


class Group:
    """A priority class. Its identities share ``pools``; None where the class has no limit."""

    __slots__ = ("members", "plan", "pools", "reserves")

    def __init__(self, plan: ClassPlan) -> None:
        self.plan = plan
        self.pools: list[Pool | None] = [None, None, None]
        self.reserves: list[TokenBucket | None] = [None, None, None]
        # Of one turn and resource.
        self.members: list[Account] = []

    def change(self, plan: ClassPlan, now_s: float) -> None:
        """Take on other terms."""
        self.plan = plan
        for resource in RESOURCES:
            share = plan.shares[resource]
            burst = burst_of(share)
            self.pools[resource] = changed_pool(self.pools[resource], share.limit, burst, now_s)
            self.reserves[resource] = changed_reserve(self.reserves[resource], share, now_s)


class Identity:
    """All payers of one name. ``busy`` are those that used or wanted something lately."""

    __slots__ = ("accounts", "busy", "clock", "group", "payers", "plan", "rationed", "waiting")

    def __init__(self, plan: IdentityPlan, group: Group) -> None:
        self.plan = plan
        self.group = group
        self.accounts = (Account(), Account(), Account())
        # The resources that it has a bounded amount of.
        self.rationed: tuple[int, ...] = ()
        self.payers: dict[int, Payer] = {}
        self.busy: dict[int, Payer] = {}
        # Those of ``busy`` that wait (and are there), in the order of service, at the last turn.
        self.waiting: list[Payer] = []
        # The tag of whom was served last: where a newcomer starts.
        self.clock = 0.0

    def change(
        self, plan: IdentityPlan, group: Group, node: list[Pool | None], now_s: float
    ) -> None:
        """Take on other terms. Balances stay: pools whose ``lent`` begins at 0 take them in."""
        self.plan, self.group = plan, group
        for resource in RESOURCES:
            account, share = self.accounts[resource], plan.shares[resource]
            account.limit = changed_limit(account.limit, share, now_s)
            account.reserve = changed_reserve(account.reserve, share, now_s)
            account.weight = share.weight
            pools = (node[resource], group.pools[resource])
            account.pools = tuple(pool for pool in pools if pool is not None)
            for pool in account.pools:
                pool.lent += account.balance
            bound = account.bound
            account.share = bound
            account.pace = 1 / bound if bound > 0 else 0.0
        self.rationed = tuple(r for r in RESOURCES if self.accounts[r].bound < inf)
        for resource in set(RESOURCES).difference(self.rationed):
            self.accounts[resource].balance = 0.0

    def refill(self, now_s: float) -> None:
        for resource in self.rationed:
            self.accounts[resource].refill(now_s)

    def adopt(self, gone: Identity) -> None:
        """Take over the payers and the debts of an identity that is no more."""
        for payer in gone.payers.values():
            payer.identity = self
            payer.tag = self.clock
        self.payers.update(gone.payers)
        self.busy.update(gone.busy)
        for account, other in zip(self.accounts, gone.accounts, strict=True):
            account.balance += min(other.balance, 0.0)

    def take_back(self, payer: Payer) -> None:
        """Have a payer again that went on as another identity's while this one was no more."""
        payer.identity.payers.pop(payer.number)
        payer.identity.busy.pop(payer.number, None)
        payer.identity, payer.tag = self, self.clock
        self.payers[payer.number] = payer

    def measure(self, passed_s: float) -> None:
        """Take in what its payers used and want since the last turn."""
        wants, short = [0.0, 0.0, 0.0], [False, False, False]
        waiting = []
        for payer in self.busy.values():
            payer.measure(passed_s)
            if payer.missed_turns >= ABSENT_TURNS:  # what it left alone, it has no claim to later
                payer.tag = max(payer.tag, self.clock)
            if payer.want is not None and payer.missed_turns < ABSENT_TURNS:
                waiting.append(payer)
                for resource in self.rationed:
                    if payer.want[resource] > 0:
                        wants[resource] = max(wants[resource], payer.want[resource])
                        short[resource] = short[resource] or payer.grant[resource] <= 0
        if len(waiting) > 1:
            waiting.sort(key=_order_of_service)
        if waiting:
            self.clock = max(self.clock, waiting[0].tag)
        self.waiting = waiting
        for resource, account in enumerate(self.accounts):
            account.want, account.is_short = wants[resource], short[resource]
            account.measure(passed_s)


def _order_of_service(payer: Payer) -> tuple[float, float]:
    return payer.tag, payer.since_s


def burst_of(share: Share) -> float:
    """Return by how many tokens a limit may be exceeded."""
    return share.limit * LIMIT_BURST_S if share.burst is None else share.burst


def changed_limit(old: TokenBucket | None, share: Share, now_s: float) -> TokenBucket | None:
    """Return the bucket of a limit, which was ``old`` before the plan changed."""
    if share.limit == inf:
        return None
    burst = burst_of(share)
    if old is None:
        return TokenBucket(rate=share.limit, burst=burst, now_s=now_s)
    old.change(rate=share.limit, burst=burst, now_s=now_s)
    return old


def changed_reserve(old: TokenBucket | None, share: Share, now_s: float) -> TokenBucket | None:
    """Return the bucket of a reservation, which was ``old`` before the plan changed."""
    if share.reserve <= 0:
        return None
    burst = share.reserve * RESERVE_BURST_S
    if old is None:
        return TokenBucket(rate=share.reserve, burst=burst, now_s=now_s)
    old.change(rate=share.reserve, burst=burst, now_s=now_s)
    return old


def changed_pool(old: Pool | None, rate: float, burst: float, now_s: float) -> Pool | None:
    """Return the pool of ``rate``, which was ``old`` before the plan changed. Nothing is lent."""
    if rate == inf:
        return None
    if old is None:
        return Pool(rate=rate, burst=burst, now_s=now_s)
    old.change(rate=rate, burst=burst, now_s=now_s)
    old.lent = 0.0
    return old
