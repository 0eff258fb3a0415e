"""The agent's side of QoS: seats, turns of the governor, admission. docs/qos.md is the contract.

``is_on`` is all that a request looks at while there is no policy. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tiercache import wire, work
from tiercache.agent.accounts import Account, asking, check_name, find_claimant
from tiercache.agent.admission import Admission, Gate
from tiercache.agent.seats import Process, Seats, Seen
from tiercache.clock import Clock
from tiercache.policy.qos import (
    DEFAULT_IDENTITY,
    ClassPlan,
    IdentityPlan,
    Plan,
    Rates,
    Resource,
    SeatRule,
    covers,
)
from tiercache.ports import LeaseFile, SharedState

if TYPE_CHECKING:
    from tiercache.policy.governor import Governor
    from tiercache.policy.qos_rules import Policy

log = logging.getLogger("tiercache.agent")

# Between two turns: as long as a client's spare grant lasts, and long beside what a turn costs.
TURN_S = 0.01
# Many payers make turns slow; they take this share of the loop's time at most.
TURN_SHARE = 5
# Clients hardly look at their rates while the agent lives.
SHARES_S = 0.1
# While nobody waits the words are still looked at: somebody may live on standing grants alone.
LOOK_S = 1.0
# Names that one process may have seats under at once: clients are configured with one each.
NAMES_COUNT = 64
# Visited bytes: 0 is unvisited, 1 nobody's in particular.
NO_MARK = 1
MARKS = range(2, 256)


class Governing:
    """``refused`` is called with identity and sentence of each request that waited too long."""

    def __init__(
        self,
        leases: LeaseFile,
        state: SharedState,
        clock: Clock,
        refused: Callable[[str, str], None],
    ) -> None:
        self._leases = leases
        self._state = state
        self._clock = clock
        self.seats = Seats(leases)
        self.admission = Admission(clock, self.wake, refused)
        self.is_on = False
        self.generation = 0
        self.policy: Policy | None = None
        self.plan: Plan | None = None
        self.governor: Governor | None = None
        # Called with each new plan, None where there is none any more.
        self.listeners: list[Callable[[Plan | None], None]] = []
        self.turns = 0
        self.turn_cost_s = 0.0
        # Names that a process was enlisted under.
        self._enlisted: dict[Process, dict[str, set[str]]] = {}
        self._marks: dict[str, int] = {}
        self._plans: dict[str, tuple[IdentityPlan, ClassPlan]] = {}
        self._demand = asyncio.Event()
        self._shared_s = -inf
        self._task: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the lease file over; to be called when the agent is about to answer."""
        self._leases.begin()
        self._task = asyncio.create_task(self._run())
        self._announce()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def keep_to(self, policy: Policy | None, plan: Plan | None) -> None:
        """Put a policy and its plan of this moment in force, or end them."""
        now_s = self._clock.now()
        self.policy, self.plan = policy, plan
        if plan is None or policy is None:
            self._end()
        elif self.governor is None:
            from tiercache.policy.governor import Governor  # few agents have a policy

            self.governor = Governor(plan, now_s)
        else:
            self.governor.replace(plan, now_s)
        if plan is not None and self.governor is not None:
            classes = {rule.name: rule for rule in plan.classes}
            self._plans = {
                identity.name: (identity, classes[identity.class_name])
                for identity in plan.identities
            }
            self._mark(plan)
            self.admission.keep_to(plan, self.governor)
        self.is_on = self.governor is not None
        if self._task is not None:
            self._announce()
        for listener in self.listeners:
            listener(plan)

    def _end(self) -> None:
        self.governor = None
        self._plans = {}
        self.seats.drop_all()
        self._enlisted.clear()
        self.admission.let_go()

    def _announce(self) -> None:
        """Tell the clients, who ask for their seats anew."""
        if self.is_on:
            self.generation = self._leases.new_generation()
            self.turn()
            if self.governor is not None:
                self.seats.publish_all(self.governor)
            self.wake()
        else:
            self.generation = 0
            self._leases.turn_off()
        self._state.bump_epoch()

    def _mark(self, plan: Plan) -> None:
        """Give identities their visited bytes; those that stay keep theirs."""
        names = {identity.name for identity in plan.identities}
        self._marks = {name: mark for name, mark in self._marks.items() if name in names}
        free = sorted(set(MARKS) - set(self._marks.values()), reverse=True)
        for identity in plan.identities:
            if identity.name not in self._marks and free:
                self._marks[identity.name] = free.pop()

    def mark_of(self, identity: str) -> int:
        """Return the visited byte of an identity's hits; 1 where it has none of its own."""
        return self._marks.get(identity, NO_MARK)

    def marked(self, mark: int) -> str | None:
        """Return whose hits store this visited byte, None for nobody's in particular."""
        return next((name for name, own in self._marks.items() if own == mark), None)

    # -- seats ------------------------------------------------------------------------------

    async def enlist(self, account: Account, name: str) -> wire.Enlisted:
        """Return the seats of a process under a name; the same again for the same."""
        check_name(name)
        if not self.is_on:
            return wire.Enlisted(0)
        if name:
            account.rename(name)
        rules = await self._seats_of(account)
        governor = self.governor
        if governor is None:
            return wire.Enlisted(0)
        known = self._enlisted.setdefault(account.process, {})
        known.pop(account.name, None)
        is_full = len(known) >= NAMES_COUNT
        if is_full:
            del known[next(iter(known))]
        known[account.name] = {rule.identity for rule in rules}
        self.seats.keep(governor, account.process, set[str]().union(*known.values()))
        if is_full:  # the name that has lost its seats may be read under still
            self.seats.drop_spare(account.process)
        seats = tuple(self._seat(governor, account.process, rule) for rule in rules)
        return wire.Enlisted(self.generation, seats)

    def _seat(self, governor: Governor, process: Process, rule: SeatRule) -> wire.Seat:
        lease = self.seats.take(governor, process, rule.identity)
        identity = self._plans[rule.identity][0]
        safe = self._safe(identity) if lease is None else governor.safe(lease.payer)
        return wire.Seat(
            path=rule.path,
            identity=rule.identity,
            slot=-1 if lease is None else lease.slot,
            owner=0 if lease is None else lease.owner,
            mark=self.mark_of(rule.identity),
            max_wait_s=identity.max_wait_s,
            safe_read=safe[Resource.READ],
            safe_operations=safe[Resource.OPERATIONS],
        )

    def _safe(self, identity: IdentityPlan) -> Rates:
        """Return the rates of a process that no payer stands for."""
        assert self.plan is not None and self.governor is not None
        payer = self.governor.join(identity.name)
        safe = self.governor.safe(payer)
        self.governor.leave(payer)
        return safe

    async def _seats_of(self, account: Account) -> tuple[SeatRule, ...]:
        """Return which identity pays for which of an account's paths, by the policy of now."""
        while account.generation != self.generation or not account.seats:
            claimant = await find_claimant(account)
            policy = self.policy
            if policy is None:
                return (SeatRule(path="", identity=DEFAULT_IDENTITY),)
            account.seats = policy.seats(claimant)
            account.generation = self.generation
        return account.seats

    def gone(self, process: Process) -> None:
        """Forget a process whose last connection has gone, or a job that has ended."""
        self._enlisted.pop(process, None)
        if self.governor is not None:
            self._count(self.seats.leave(self.governor, process))
        self.admission.leave(process)

    # -- admission --------------------------------------------------------------------------

    def admitted(
        self, path: str, *, read: int = 0, write: int = 0, operations: int = 1
    ) -> Admitted:
        """Return the context within which who ``asking`` says does so much at a path. Entering it
        waits for what the policy grants: raises Throttled where that takes too long."""
        return Admitted(self, path, (read, write, operations))

    def work_at(self, path: str) -> work.Work:
        """Return on whose behalf what is not admitted (reading ahead) is done at a path: of who
        ``asking`` says, as far as that is known without a wait."""
        account = asking.get()
        if account is not None and account.generation == self.generation:
            for rule in account.seats:
                if covers(rule.path, path) and rule.identity in self._plans:
                    of_class = self._plans[rule.identity][1]
                    return work.Work(identity=rule.identity, priority=of_class.priority)
        return work.current.get()

    async def find_work_at(self, path: str) -> work.Work:
        """The same once it is known."""
        account = asking.get()
        if self.is_on and account is not None:
            await self._seats_of(account)
        return self.work_at(path)

    async def enter(self, account: Account, path: str, amounts: Rates) -> Inside:
        """The beginning of ``admitted``."""
        rules = await self._seats_of(account)
        identity = next(rule.identity for rule in rules if covers(rule.path, path))
        terms = self._plans.get(identity)
        if terms is None:  # the policy has ended while we looked
            return Inside([], work.NOBODYS)
        bounds = [terms[0].max_wait_s, account.max_wait_s]
        known = [bound for bound in bounds if bound is not None and not account.is_bulk]
        gates = await self.admission.enter(
            account, identity, amounts, max_wait_s=min(known, default=None)
        )
        tally = self.admission.tally(identity)
        tally.read_bytes += int(amounts[Resource.READ])
        tally.written_bytes += int(amounts[Resource.WRITE])
        tally.operations += int(amounts[Resource.OPERATIONS])
        return Inside(gates, work.Work(identity=identity, priority=terms[1].priority))

    def processes(self, identity: str) -> int:
        """Return how many processes and jobs have a lease of an identity, or asked in its name."""
        leased = {lease.process for lease in self.seats if lease.identity == identity}
        return len(leased | self.admission.processes(identity))

    # -- turns ------------------------------------------------------------------------------

    def wake(self) -> None:
        """Turn soon: somebody wants something."""
        self._demand.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._demand.wait()
            try:
                await self._turn_while_active()
            except Exception:  # the task's top: without turns everybody would wait for ever
                log.exception("a turn of the governor failed")
                await asyncio.sleep(TURN_S)

    async def _turn_while_active(self) -> None:
        while self.governor is not None:
            self._demand.clear()
            self.turn()
            if self._is_idle(self.governor):
                return
            await asyncio.sleep(max(TURN_S, TURN_SHARE * self.turn_cost_s))
        self._demand.clear()

    def _is_idle(self, governor: Governor) -> bool:
        return governor.is_idle() and self.admission.is_idle

    def turn(self) -> None:
        """Charge what was used and grant anew; also for whoever wants to know how things are."""
        governor = self.governor
        if governor is None:
            return
        began_s = self._clock.now()
        self._count(self.seats.collect(governor, began_s))
        governor.turn(began_s)
        self.admission.turned(began_s)
        self._publish(governor)
        self._leases.turned(int(began_s * 1e9))
        self.turns += 1
        self.turn_cost_s = self._clock.now() - began_s

    def _count(self, uses: list[Seen]) -> None:
        for seen in uses:
            tally = self.admission.tally(seen.identity)
            tally.read_bytes += seen.read
            tally.operations += seen.operations
            tally.waits += seen.waits
            tally.waited_s += seen.waited_ns / 1e9

    def _publish(self, governor: Governor) -> None:
        now_s = self._clock.now()
        shares = now_s - self._shared_s >= SHARES_S
        if shares:
            self._shared_s = now_s
            self.admission.drop_gone()
            if self._task is not None and self._leases.generation != self.generation:
                log.error("leases.state was written over by something else: leases begin anew")
                self._announce()
        self.seats.publish(governor, shares=shares)


@dataclass(frozen=True, slots=True)
class Inside:
    """What an admitted request holds until its end."""

    gates: list[Gate]
    work: work.Work

    def leave(self) -> None:
        for gate in self.gates:
            gate.leave()


class Admitted:
    """See ``Governing.admitted``. Free of charge while there is no policy, and for the agent's own
    doing."""

    __slots__ = ("_amounts", "_governing", "_inside", "_path", "_token")

    def __init__(self, governing: Governing, path: str, amounts: Rates) -> None:
        self._governing = governing
        self._path = path
        self._amounts = amounts
        self._inside: Inside | None = None

    async def __aenter__(self) -> Self:
        account = asking.get()
        if self._governing.is_on and account is not None:
            self._inside = await self._governing.enter(account, self._path, self._amounts)
            self._token = work.current.set(self._inside.work)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._inside is not None:
            self._inside.leave()
            work.current.reset(self._token)
