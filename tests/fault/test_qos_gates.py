"""Who waits at the agent for room in flight and for tokens: order, caps, and those who leave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercache.agent.accounts import Account
from tiercache.agent.admission import Admission, Gate
from tiercache.clock import BootClock
from tiercache.errors import Throttled
from tiercache.policy.governor import Governor
from tiercache.policy.qos import ClassPlan, IdentityPlan, Plan, Rates, Share

pytestmark = pytest.mark.timeout(60)

ONE: Rates = (0, 0, 1)
UNBOUND = Share()


def account(process: int = 1, *, is_gone: bool = False) -> Account:
    found = Account(process, os.getpid(), os.getuid(), os.getgid())
    found.is_gone = lambda: is_gone
    return found


def plan_of(*, cap: int | None = None, class_cap: int | None = None, per_s: float = 1e9) -> Plan:
    shares = (UNBOUND, UNBOUND, Share(limit=per_s, burst=1))
    return Plan(
        classes=(ClassPlan(in_flight=class_cap),),
        identities=(
            IdentityPlan(in_flight=cap, shares=shares),
            IdentityPlan(name="other", shares=shares),
        ),
    )


class Bench:
    """An admission that keeps to a plan and turns every millisecond."""

    def __init__(self, plan: Plan) -> None:
        self.clock = BootClock()
        self.refused: list[str] = []
        self.governor = Governor(plan, self.clock.now())
        self.admission = Admission(
            self.clock, lambda: None, lambda identity, sentence: self.refused.append(identity)
        )
        self.admission.keep_to(plan, self.governor)
        self.inside = self.most = 0

    async def turns(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.governor.turn(self.clock.now())
            self.admission.turned(self.clock.now())
            self.admission.drop_gone()

    async def request(
        self,
        who: Account | None = None,
        identity: str = "default",
        *,
        max_wait_s: float | None = None,
        lasts_s: float = 0.002,
    ) -> None:
        gates = await self.admission.enter(who or account(), identity, ONE, max_wait_s=max_wait_s)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            self.inside -= 1
            for gate in gates:
                gate.leave()


@asynccontextmanager
async def bench(plan: Plan) -> AsyncIterator[Bench]:
    found = Bench(plan)
    turning = asyncio.create_task(found.turns())
    try:
        yield found
    finally:
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)


async def test_no_more_than_the_cap_are_inside() -> None:
    async with bench(plan_of(cap=2)) as b:
        await asyncio.gather(*(b.request() for _ in range(20)))
        assert b.most == 2
        await asyncio.gather(*(b.request(identity="other") for _ in range(20)))
        assert b.most == 20  # nobody else's cap


async def test_the_cap_of_a_class_holds_for_all_of_its_identities() -> None:
    async with bench(plan_of(cap=4, class_cap=3)) as b:
        both = [b.request() for _ in range(10)] + [b.request(identity="other") for _ in range(10)]
        await asyncio.gather(*both)
        assert b.most == 3


async def test_who_waits_for_tokens_keeps_nobody_else_of_its_class_out() -> None:
    slow = IdentityPlan(shares=(UNBOUND, UNBOUND, Share(limit=2, burst=1)))
    plan = Plan(classes=(ClassPlan(in_flight=2),), identities=(slow, IdentityPlan(name="other")))
    async with bench(plan) as b:
        waits = [asyncio.create_task(b.request(account(process))) for process in range(8)]
        await asyncio.sleep(0.05)
        for _ in range(10):
            await asyncio.wait_for(b.request(account(99), "other"), 0.3)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert (b.inside, b.admission.is_idle) == (0, True)


async def test_who_asks_for_nothing_does_not_wait_for_the_cap_of_its_class() -> None:
    async with bench(plan_of(class_cap=1)) as b:
        waits = [asyncio.create_task(b.request(lasts_s=0.1)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert b.admission.is_full("default") and not b.admission.is_full("other")
        await asyncio.gather(*waits)
        assert not b.admission.is_full("default")


async def test_who_gives_up_at_the_cap_of_its_class_has_paid_nothing() -> None:
    slow = IdentityPlan(shares=(UNBOUND, UNBOUND, Share(limit=0.2, burst=1)))
    plan = Plan(classes=(ClassPlan(in_flight=1),), identities=(slow, IdentityPlan(name="other")))
    async with bench(plan) as b:
        holder = asyncio.create_task(b.request(account(2), "other", lasts_s=0.5))
        await asyncio.sleep(0.05)
        with pytest.raises(Throttled, match="in flight"):
            await b.request(max_wait_s=0.05)
        cancelled = asyncio.create_task(b.request())
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(holder, cancelled, return_exceptions=True)
        await asyncio.wait_for(b.request(), 1.0)  # the next token comes in after 5 s


async def test_a_cap_that_is_raised_or_ended_lets_in_who_waits() -> None:
    async with bench(plan_of(cap=1)) as b:
        waits = [asyncio.create_task(b.request(lasts_s=0.5)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert b.inside == 1
        b.admission.keep_to(plan_of(cap=3), b.governor)
        await asyncio.sleep(0.05)
        assert b.inside == 3
        b.admission.let_go()
        await asyncio.sleep(0.05)
        assert b.inside == 5
        await asyncio.gather(*waits)


async def test_who_waits_too_long_for_room_is_told_so() -> None:
    async with bench(plan_of(cap=1)) as b:
        first = asyncio.create_task(b.request(lasts_s=0.3))
        await asyncio.sleep(0.02)
        with pytest.raises(Throttled, match="the cap of its requests in flight"):
            await b.request(max_wait_s=0.05)
        assert b.refused == ["default"]
        await first
        await b.request(max_wait_s=0.05)
        assert b.admission.tally("default").throttled == 1


async def test_those_who_have_gone_wait_no_longer_and_take_nothing() -> None:
    async with bench(plan_of(cap=1)) as b:
        first = asyncio.create_task(b.request(lasts_s=0.1))
        await asyncio.sleep(0.02)
        gone = account(2, is_gone=True)
        results = await asyncio.gather(*(b.request(gone) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, ConnectionResetError) for result in results)
        await first
        await b.request()
        assert (b.inside, b.admission.is_idle) == (0, True)


async def test_tokens_are_had_in_the_order_of_coming() -> None:
    async with bench(plan_of(per_s=100)) as b:
        order: list[int] = []

        async def ask(number: int) -> None:
            await b.request(lasts_s=0)
            order.append(number)

        await asyncio.gather(*(ask(number) for number in range(15)))
        assert order == sorted(order)


async def test_a_wait_that_is_cancelled_leaves_its_place() -> None:
    async with bench(plan_of(per_s=20)) as b:
        waits = [asyncio.create_task(b.request(lasts_s=0)) for _ in range(10)]
        await asyncio.sleep(0.01)
        for wait in waits[1:9]:
            wait.cancel()
        await asyncio.wait_for(waits[9], 1.0)
        assert b.admission.waiting("default") == (0, 0.0)


async def test_a_process_that_leaves_is_forgotten() -> None:
    async with bench(plan_of()) as b:
        await b.request(account(7))
        assert b.admission.processes("default") == {7}
        b.admission.leave(7)
        assert b.admission.processes("default") == set()
        await b.request(account(7))


async def test_who_is_let_in_and_gone_in_the_same_moment_leaves_its_place() -> None:
    gate = Gate(1)
    await gate.enter(account(), 0.0)
    next_one = asyncio.create_task(gate.enter(account(), 0.0))
    await asyncio.sleep(0)
    gate.leave()  # lets it in
    next_one.cancel()
    await asyncio.gather(next_one, return_exceptions=True)
    assert (gate.inside, gate.is_open) == (0, True)


def steps() -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(
        st.tuples(st.sampled_from(["come", "cancel", "leave", "limit", "gone"]), st.integers(0, 9)),
        max_size=60,
    )


@settings(max_examples=150, deadline=None)
@given(steps=steps())
def test_a_gate_counts_right_whatever_happens(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_walk(steps))


async def _walk(steps: list[tuple[str, int]]) -> None:
    """Come, are cancelled, leave, and find the limit changed, in any order and at once."""
    gate = Gate(2)
    tasks: list[asyncio.Task[None]] = []
    accounts: list[Account] = []
    inside: list[asyncio.Task[None]] = []
    for what, number in steps:
        if what == "come":
            accounts.append(account())
            tasks.append(asyncio.create_task(gate.enter(accounts[-1], 0.0)))
        elif what == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif what == "leave" and inside:
            inside.pop(number % len(inside))
            gate.leave()
        elif what == "gone" and accounts:
            accounts[number % len(accounts)].is_gone = lambda: True
            for waiter in gate.waiters:
                waiter.drop_if_gone()
        elif what == "limit":
            gate.limit = number
            gate.admit()
        if number % 2:
            await asyncio.sleep(0)
        _settle(tasks, inside)
    for _ in range(5):
        await asyncio.sleep(0)
    _settle(tasks, inside)
    assert gate.inside == len(inside)
    assert len(gate.waiters) == len(tasks)
    assert not tasks or not gate.is_open
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (gate.inside, len(gate.waiters)) == (len(inside), 0)


def _settle(tasks: list[asyncio.Task[None]], inside: list[asyncio.Task[None]]) -> None:
    for task in _done(tasks):
        tasks.remove(task)
        if not task.cancelled() and task.exception() is None:
            inside.append(task)


def _done(tasks: list[asyncio.Task[None]]) -> Iterator[asyncio.Task[None]]:
    yield from [task for task in tasks if task.done()]
