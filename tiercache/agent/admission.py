"""Admission at the agent: requests and jobs wait here for their in-flight cap and their tokens.

Who waits goes in the order of coming among those of one process and identity; between them the
governor decides at its turns. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiercache.agent.accounts import Account
from tiercache.agent.seats import NOTHING, Process
from tiercache.clock import Clock
from tiercache.errors import Throttled
from tiercache.policy.qos import IdentityPlan, Plan, Rates

if TYPE_CHECKING:
    from tiercache.policy.governor import Governor

# Advice to come again is never longer: by then other things have changed.
MAX_RETRY_S = 60.0


@dataclass(slots=True, eq=False)
class _Waiter:
    account: Account
    ready: asyncio.Future[None]
    since_s: float
    amounts: Rates = NOTHING
    identity: str = ""

    @property
    def is_let_in(self) -> bool:
        ready = self.ready
        return ready.done() and not ready.cancelled() and ready.exception() is None

    def drop_if_gone(self) -> None:
        if not self.ready.done() and self.account.is_gone():
            self.ready.set_exception(ConnectionResetError("the client has gone"))


@dataclass(slots=True, eq=False)
class _Line:
    """Those of one process and identity who wait for tokens, in order."""

    process: Process
    identity: str
    payer: int
    waiters: deque[_Waiter] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Gate:
    """At most ``limit`` inside at once (None: any number), in the order of coming."""

    limit: int | None = None
    inside: int = 0
    waiters: deque[_Waiter] = field(default_factory=deque)

    @property
    def is_open(self) -> bool:
        return self.limit is None or self.inside < self.limit

    async def enter(self, account: Account, now_s: float, identity: str = "") -> None:
        if self.is_open and not self.waiters:
            self.inside += 1
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(account, ready, now_s, identity=identity)
        self.waiters.append(waiter)
        try:
            await waiter.ready
        except BaseException:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
            if waiter.is_let_in:  # and gone in the same moment
                self.leave()
            raise

    def leave(self) -> None:
        self.inside -= 1
        self.admit()

    def admit(self) -> None:
        """Let in whom the limit has room for; to be called too when it has changed."""
        while self.waiters and self.is_open:
            ready = self.waiters.popleft().ready
            if ready.done():
                continue  # gone: it sees to itself
            self.inside += 1
            ready.set_result(None)


@dataclass(slots=True)
class Tally:
    """What was charged to one identity since the agent started, and how it waited."""

    read_bytes: int = 0
    written_bytes: int = 0
    operations: int = 0
    waits: int = 0
    waited_s: float = 0.0
    throttled: int = 0


class Admission:
    """``demand`` is called when somebody begins to wait, and ``refused`` with the identity and the
    sentence of each Throttled."""

    def __init__(
        self, clock: Clock, demand: Callable[[], None], refused: Callable[[str, str], None]
    ) -> None:
        self._clock = clock
        self._demand = demand
        self._refused = refused
        self._governor: Governor | None = None
        self._lines: dict[tuple[Process, str], _Line] = {}
        self._identities: dict[str, IdentityPlan] = {}
        self._classes: dict[str, Gate] = {}
        self._gates: dict[str, Gate] = {}
        self.tallies: dict[str, Tally] = {}

    # -- the policy -------------------------------------------------------------------------

    def keep_to(self, plan: Plan, governor: Governor) -> None:
        """Take over a plan; a governor is kept from its first plan to ``let_go``."""
        self._governor = governor
        self._identities = {identity.name: identity for identity in plan.identities}
        for identity in plan.identities:
            self._gate(self._gates, identity.name).limit = identity.in_flight
        for rule in plan.classes:
            self._gate(self._classes, rule.name).limit = rule.in_flight
        for gone in self._gates.keys() - self._identities.keys():
            self._gates[gone].limit = None
        for gone in self._classes.keys() - {rule.name for rule in plan.classes}:
            self._classes[gone].limit = None
        for gate in (*self._gates.values(), *self._classes.values()):
            gate.admit()

    def _gate(self, gates: dict[str, Gate], name: str) -> Gate:
        return gates.setdefault(name, Gate())

    def let_go(self) -> None:
        """End all limits: who waits goes on."""
        self._governor = None
        for gate in (*self._gates.values(), *self._classes.values()):
            gate.limit = None
            gate.admit()
        for line in self._lines.values():
            for waiter in line.waiters:
                if not waiter.ready.done():
                    waiter.ready.set_result(None)
        self._lines.clear()

    # -- payers -----------------------------------------------------------------------------

    def leave(self, process: Process) -> None:
        """Forget a process that has gone; who waits for it is cancelled by then."""
        for key in [key for key in self._lines if key[0] == process]:
            line = self._lines.pop(key)
            if self._governor is not None:
                self._governor.leave(line.payer)

    def _line(self, governor: Governor, process: Process, identity: str) -> _Line:
        line = self._lines.get((process, identity))
        if line is None:
            line = self._lines[process, identity] = _Line(
                process, identity, governor.join(identity)
            )
        return line

    # -- waiting ----------------------------------------------------------------------------

    async def enter(
        self, account: Account, identity: str, amounts: Rates, *, max_wait_s: float | None
    ) -> list[Gate]:
        """Wait for room and tokens; return the gates to leave in the end. Raises Throttled after
        ``max_wait_s``."""
        began_s = self._clock.now()
        own, *of_class = self._gates_of(identity)
        entered: list[Gate] = []
        full, paid = True, None
        try:
            async with asyncio.timeout(max_wait_s):
                await self._enter_gate(own, account, identity)
                entered.append(own)
                full = False
                paid = await self._pay(account, identity, amounts)
                full = True
                # Last: who waits for tokens keeps nobody else of its class out.
                for gate in of_class:
                    await self._enter_gate(gate, account, identity)
                    entered.append(gate)
        except BaseException as error:
            for gate in entered:
                gate.leave()
            if paid is not None:
                self._give_back(paid, amounts)
            if isinstance(error, TimeoutError):
                raise self._throttled(identity, amounts, began_s, full=full) from None
            raise
        self._count_wait(identity, began_s)
        return entered

    async def _enter_gate(self, gate: Gate, account: Account, identity: str) -> None:
        if not gate.is_open:
            self._demand()  # turns look after those who wait
        await gate.enter(account, self._clock.now(), identity)

    def _gates_of(self, identity: str) -> list[Gate]:
        """Gates are entered in one order by all: none waits in a circle."""
        gates = [self._gate(self._gates, identity)]
        plan = self._identities.get(identity)
        if plan is not None:
            gates.append(self._gate(self._classes, plan.class_name))
        return gates

    async def _pay(self, account: Account, identity: str, amounts: Rates) -> _Line | None:
        """Wait for tokens; return who has paid, None where there is no policy."""
        governor = self._governor
        if governor is None:
            return None
        line, now_s = self._line(governor, account.process, identity), self._clock.now()
        if not line.waiters and governor.admit(line.payer, amounts, now_s):
            self._demand()  # so that the next turn counts it
            return line
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(account, ready, now_s, amounts)
        line.waiters.append(waiter)
        if line.waiters[0] is waiter:
            governor.wants(line.payer, amounts, now_s)
        self._demand()
        try:
            await ready
        except asyncio.CancelledError:
            if waiter.is_let_in:
                self._give_back(line, amounts)
            raise
        finally:
            with suppress(ValueError):  # admitted: it is out already
                line.waiters.remove(waiter)
                self._say_next(line)
        return line

    def _give_back(self, line: _Line, amounts: Rates) -> None:
        """Take back what was charged for a request that is not carried out."""
        governor = self._governor_of(line)
        if governor is not None:
            governor.used(line.payer, (-amounts[0], -amounts[1], -amounts[2]))

    def _governor_of(self, line: _Line) -> Governor | None:
        """Return who knows the line's payer; None where the policy or the process has gone."""
        is_known = self._lines.get((line.process, line.identity)) is line
        return self._governor if is_known else None

    def _say_next(self, line: _Line) -> None:
        """Tell the governor who is first in the line now."""
        governor = self._governor_of(line)
        if governor is None:
            return
        if line.waiters:
            head = line.waiters[0]
            governor.wants(line.payer, head.amounts, head.since_s)
        else:
            governor.wants(line.payer, NOTHING, self._clock.now())

    def turned(self, now_s: float) -> None:
        """Let in whom the governor's last turn has tokens for."""
        governor = self._governor
        assert governor is not None
        for line in list(self._lines.values()):
            began = len(line.waiters)
            while line.waiters:
                head = line.waiters[0]
                if not head.ready.done():  # else it has gone
                    if not governor.admit(line.payer, head.amounts, now_s):
                        break
                    head.ready.set_result(None)
                line.waiters.popleft()
            if len(line.waiters) < began:
                self._say_next(line)

    def drop_gone(self) -> None:
        """End the waits of those whose client has gone meanwhile: nobody takes their answer."""
        for queue in self._queues():
            for waiter in queue.waiters:
                waiter.drop_if_gone()

    def _queues(self) -> Iterator[_Line | Gate]:
        yield from self._lines.values()
        yield from self._gates.values()
        yield from self._classes.values()

    @property
    def is_idle(self) -> bool:
        return not any(queue.waiters for queue in self._queues())

    def waiting(self, identity: str) -> tuple[int, float]:
        """Return how many wait, for tokens or room, and since when the longest does (0.0: none)."""
        queues: list[_Line | Gate] = [
            line for line in self._lines.values() if line.identity == identity
        ]
        if identity in self._gates:
            queues.append(self._gates[identity])
        since_s = [waiter.since_s for queue in queues for waiter in queue.waiters]
        return len(since_s), min(since_s, default=0.0)

    def processes(self, identity: str) -> set[Process]:
        """Return those who have asked for something."""
        return {process for process, name in self._lines if name == identity}

    def is_full(self, identity: str) -> bool:
        """Return whether somebody of an identity waits for its in-flight cap or its class's."""
        return any(
            not gate.is_open and any(waiter.identity == identity for waiter in gate.waiters)
            for gate in self._gates_of(identity)
        )

    # -- outcomes ---------------------------------------------------------------------------

    def used(self) -> Rates:
        """Return the tokens that all identities have used since the agent started."""
        tallies = self.tallies.values()
        return (
            sum(tally.read_bytes for tally in tallies),
            sum(tally.written_bytes for tally in tallies),
            sum(tally.operations for tally in tallies),
        )

    def tally(self, identity: str) -> Tally:
        return self.tallies.setdefault(identity, Tally())

    def _count_wait(self, identity: str, began_s: float) -> None:
        waited_s = self._clock.now() - began_s
        if waited_s > 0.001:  # the rest is the loop's own time
            tally = self.tally(identity)
            tally.waits += 1
            tally.waited_s += waited_s

    def _throttled(self, identity: str, amounts: Rates, began_s: float, *, full: bool) -> Throttled:
        self._count_wait(identity, began_s)
        self.tally(identity).throttled += 1
        waited_s = self._clock.now() - began_s
        of = "the cap of its requests in flight" if full else "its share of the rate"
        message = f"{identity!r} has waited {waited_s:.2f} s for {of}, the most it may"
        self._refused(identity, message)
        error = Throttled(
            message,
            remedy=f"try again later, raise max_wait, or see: tiercache qos explain {identity} /",
        )
        error.retry_after_s = self._retry_after_s(identity, amounts, waited_s)
        return error

    def _retry_after_s(self, identity: str, amounts: Rates, waited_s: float) -> float:
        """Return how long so much takes at the identity's own limits; as long as it has waited
        where those are not what it waits for."""
        plan = self._identities.get(identity)
        limits = [share.limit for share in plan.shares] if plan is not None else []
        needed = [amount / limit for amount, limit in zip(amounts, limits, strict=False)]
        return min(max(waited_s, *needed, 0.01), MAX_RETRY_S)
