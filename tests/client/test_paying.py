"""Paying from a lease file made by hand: no agent, no namespace, only words.

``Desk`` stands where the agent does: it stores grants into a real lease file and says what a
payer asked of it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import pytest

from tests.fault.cache_rig import wait_for
from tiercache import wire
from tiercache.client import paying as paying_module
from tiercache.client.lease import Lease
from tiercache.client.paying import GONE_NS, MAX_POLL_S, PIECE_BYTES, Payer
from tiercache.errors import Throttled
from tiercache.extents.lease_file import LeaseFileReader, LeaseFileWriter
from tiercache.policy import lease_words as words
from tiercache.policy.lease_words import UNLIMITED

pytestmark = pytest.mark.timeout(60)

PATH = "/m/a"
PAGE = 65536
SLOT, OWNER = 5, 77


class Desk:
    """The governor's side of one slot, and the agency of its payer."""

    def __init__(self, root: Path) -> None:
        self.file = LeaseFileWriter(root / "leases.state")
        self.file.begin()
        self.file.new_generation()
        self.view = LeaseFileReader(root / "leases.state")
        first = SLOT * words.SLOT_WORDS
        self.slot = self.file.slots[first : first + words.SLOT_WORDS]
        self.slot[words.OWNER] = OWNER
        self.rate(UNLIMITED, UNLIMITED)
        self.turn()
        self.wakes = 0
        self.renewals = 0
        self.serves = True
        self.current = True
        self.on_renew: Callable[[], None] = lambda: None

    def seat(self, *, slot: int = SLOT, owner: int = OWNER) -> wire.Seat:
        safe_read = 100.0 * PAGE
        return wire.Seat("", "train", slot, owner, 7, safe_read=safe_read, safe_operations=1e9)

    def payer(self, *, max_wait_s: float = inf, seat: wire.Seat | None = None) -> Payer:
        lease = Lease(self.view, seat or self.seat(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        return Payer(lease, self, identity="train", mark=7, max_wait_s=max_wait_s)

    def grant(self, read: int, operations: int = UNLIMITED) -> None:
        self.slot[words.GRANT_READ], self.slot[words.GRANT_OPS] = read, operations

    def rate(self, read: int, operations: int) -> None:
        self.slot[words.RATE_READ], self.slot[words.RATE_OPS] = read, operations
        self.slot[words.SAFE_READ], self.slot[words.SAFE_OPS] = read, operations

    def turn(self) -> None:
        self.file.turned(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def used(self) -> tuple[int, int]:
        return self.slot[words.USED_READ], self.slot[words.USED_OPS]

    @property
    def waits(self) -> bool:
        return self.slot[words.WAITING_NS] != 0

    @contextmanager
    def turning(self) -> Iterator[None]:
        """Have the governor turn all the while, granting nothing by itself."""
        stop = threading.Event()

        def turn() -> None:
            while not stop.wait(0.005):
                self.turn()

        thread = threading.Thread(target=turn)
        self.turn()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    # What a payer asks for.

    def wake(self) -> bool:
        self.wakes += 1
        return self.serves

    def find(self) -> bool:
        return self.serves

    def is_current(self) -> bool:
        return self.current

    def may_renew(self, now_ns: int) -> bool:
        return not self.renewals

    def renew(self) -> None:
        self.renewals += 1
        self.on_renew()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.view.close()


def paying(payer: Payer, count: int = PAGE) -> threading.Thread:
    """Begin to pay on a thread."""
    thread = threading.Thread(target=payer.pay, args=(PATH, count))
    thread.start()
    return thread


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


# -- charging -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "operations", "charged"),
    [(1, 1, True), (0, 1, False), (1, 0, False), (UNLIMITED, UNLIMITED, True), (0, 0, False)],
)
def test_an_operation_is_admitted_on_the_level_and_charged_in_full(
    desk: Desk, read: int, operations: int, charged: bool
) -> None:
    desk.grant(read, operations)
    payer = desk.payer()
    assert payer.charge(PAGE) is charged
    assert desk.used() == ((PAGE, 1) if charged else (0, 0))
    if read == 1 and charged:
        assert not payer.charge(1)  # in debt
        assert desk.used() == (PAGE, 1)


def test_a_large_read_is_charged_in_pieces_as_one_operation(desk: Desk) -> None:
    desk.grant(1)
    payer = desk.payer()
    assert not payer.charge(PIECE_BYTES + 1)
    with desk.turning():
        thread = paying(payer, 2 * PIECE_BYTES + 5)
        for piece in (1, 2):
            wait_for(lambda: desk.waits)
            assert desk.used() == (piece * PIECE_BYTES, 1)
            assert desk.slot[words.WANT_OPS] == 0
            assert desk.slot[words.WANT_READ] == (PIECE_BYTES if piece == 1 else 5)
            desk.slot[words.WAITING_NS] = 0  # seen: the next one waits for the next piece
            desk.grant(desk.used()[0] + 1)
        ended(thread)
    assert desk.used() == (2 * PIECE_BYTES + 5, 1)


def test_what_is_settled_is_not_charged_again(desk: Desk) -> None:
    desk.grant(UNLIMITED)
    payer = desk.payer()
    with payer.settled(), payer.settled():
        assert not payer.charge(PAGE)
        payer.pay(PATH, PAGE)
        other = paying(payer)  # another thread's reads are its own
        ended(other)
    assert desk.used() == (PAGE, 1)
    assert payer.charge(PAGE)
    assert desk.used() == (2 * PAGE, 2)


@pytest.mark.parametrize("over", ["off", "retired"])
def test_where_the_policy_has_ended_nobody_is_held_up(desk: Desk, over: str) -> None:
    payer = desk.payer()
    thread = paying(payer)
    wait_for(lambda: desk.waits)
    desk.file.turn_off() if over == "off" else payer.retire()
    ended(thread)
    assert desk.used() == (0, 0)


def test_threads_lose_no_charge(desk: Desk) -> None:
    desk.grant(UNLIMITED)
    payer = desk.payer()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for number in range(5000):
            if not payer.charge(3):
                payer.pay(PATH, 3)
            if number % 500 == 0:
                with payer.settled():
                    payer.pay(PATH, 1000)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        ended(*threads)
    finally:
        sys.setswitchinterval(interval)
    assert desk.used() == (60_000, 20_000)


# -- waiting --------------------------------------------------------------------------------


def test_who_waits_says_so_until_it_is_granted(desk: Desk) -> None:
    payer = desk.payer()
    with desk.turning():
        thread = paying(payer)
        wait_for(lambda: desk.waits)
        assert (desk.slot[words.WANT_READ], desk.slot[words.WANT_OPS]) == (PAGE, 1)
        assert desk.used() == (0, 0)
        desk.grant(1)
        ended(thread)
    assert desk.used() == (PAGE, 1)
    assert (desk.slot[words.WANT_READ], desk.slot[words.WANT_OPS]) == (0, 0)
    assert not desk.waits
    assert desk.slot[words.WAITS] == 1
    assert desk.slot[words.WAITED_NS] > 0
    assert desk.wakes == 0  # the governor was awake


def test_a_governor_that_sleeps_is_woken(desk: Desk) -> None:
    desk.file.turned(1)
    payer = desk.payer()
    thread = paying(payer)
    wait_for(lambda: desk.wakes)
    desk.grant(1)
    ended(thread)
    assert desk.used() == (PAGE, 1)


def test_waiters_are_served_in_order_and_nobody_overtakes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paying_module, "BEHIND_S", 3600.0)  # woken, or never
    payer = desk.payer()
    served: list[int] = []

    def work(number: int) -> None:
        payer.pay(PATH, 100 + number)
        served.append(number)

    with desk.turning():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            wait_for(lambda expected=number + 1: len(payer._queue) == expected)  # type: ignore[misc]  # bound now
        for number in range(5):
            desk.grant(desk.used()[0] + 1)
            assert number == 4 or not payer.charge(1)
            wait_for(lambda expected=number + 1: len(served) == expected)  # type: ignore[misc]  # bound now
        ended(*threads)
    assert served == [0, 1, 2, 3, 4]
    assert desk.used() == (510, 5)
    desk.grant(UNLIMITED)
    assert payer.charge(1)  # the way is free again


@pytest.mark.parametrize("max_wait_s", [0.0, 0.05])
def test_after_max_wait_it_is_throttled(desk: Desk, max_wait_s: float) -> None:
    desk.file.turned(1)
    desk.rate(PAGE, 1)
    payer = desk.payer(max_wait_s=max_wait_s)
    with pytest.raises(Throttled, match=r"/m/a: 'train' has waited \d") as caught:
        payer.pay(PATH, PAGE)
    assert desk.wakes  # so that the next try may succeed
    assert caught.value.retry_after_s == 1.0
    assert "tiercache qos explain train /m/a" in caught.value.remedy
    assert pickle.loads(pickle.dumps(caught.value)).path == PATH
    assert not desk.waits
    desk.grant(1)
    payer.pay(PATH, PAGE)
    assert desk.used() == (PAGE, 1)


def test_who_stands_behind_gives_up_too(desk: Desk) -> None:
    payer = desk.payer()
    failures: list[Throttled] = []

    def give_up() -> None:
        try:
            payer.pay(PATH, PAGE)
        except Throttled as error:
            failures.append(error)

    with desk.turning():
        thread = threading.Thread(target=give_up)
        thread.start()
        wait_for(lambda: desk.waits)
        payer.max_wait_s = 0.0
        give_up()
        ended(thread)
    assert len(failures) == 2
    assert not desk.waits
    assert desk.used() == (0, 0)


def test_an_interrupt_takes_the_wait_back(desk: Desk) -> None:
    payer = desk.payer()
    main = threading.main_thread()
    assert threading.current_thread() is main

    def interrupt() -> None:
        wait_for(lambda: desk.waits)
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with desk.turning(), pytest.raises(KeyboardInterrupt):
            payer.pay(PATH, PAGE)
    finally:
        signal.signal(signal.SIGINT, before)
        ended(thread)
    assert not desk.waits
    assert desk.used() == (0, 0)
    desk.grant(1)
    assert payer.charge(PAGE)


# -- event loops ----------------------------------------------------------------------------


def test_a_task_waits_and_its_loop_goes_on(desk: Desk) -> None:
    payer = desk.payer()

    async def main() -> int:
        task = asyncio.create_task(payer.settle(PATH, PAGE))
        looks = 0
        while not desk.waits:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
            looks += 1
        assert not task.done()
        desk.grant(1)
        await asyncio.wait_for(task, 10)
        with payer.settled():
            payer.pay(PATH, PAGE)
        return looks

    with desk.turning():
        assert asyncio.run(main()) == 20
    assert desk.used() == (PAGE, 1)


@pytest.mark.parametrize("cancelled", ["first", "second"])
def test_a_cancelled_task_leaves_the_line(desk: Desk, cancelled: str) -> None:
    payer = desk.payer()

    async def main() -> None:
        tasks = []
        for number in range(2):
            tasks.append(asyncio.create_task(payer.settle(PATH, PAGE + number)))
            while len(payer._queue) <= number:
                await asyncio.sleep(0.001)
        gone = tasks.pop(0 if cancelled == "first" else 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        desk.grant(1)
        await asyncio.wait_for(tasks[0], 10)

    with desk.turning():
        asyncio.run(main())
    assert desk.used() == (PAGE + (cancelled == "first"), 1)
    assert not desk.waits
    assert not payer._queue


def test_a_thread_follows_a_task_in_the_line(desk: Desk) -> None:
    payer = desk.payer()

    async def main() -> None:
        task = asyncio.create_task(payer.settle(PATH, 1))
        while not payer._queue:
            await asyncio.sleep(0.001)
        thread = paying(payer, 2)
        while len(payer._queue) < 2:
            await asyncio.sleep(0.001)
        desk.grant(1)
        await asyncio.wait_for(task, 10)
        assert thread.is_alive()
        desk.grant(2)
        while thread.is_alive():
            await asyncio.sleep(0.001)

    with desk.turning():
        asyncio.run(main())
    assert desk.used() == (3, 2)


def test_a_task_whose_loop_was_closed_holds_nobody_up(desk: Desk) -> None:
    payer = desk.payer()
    loop = asyncio.new_event_loop()

    async def begin() -> list[asyncio.Task[None]]:
        tasks = []
        for number in range(2):
            tasks.append(asyncio.create_task(payer.settle(PATH, 1)))
            while len(payer._queue) <= number:
                await asyncio.sleep(0.001)
        return tasks

    with desk.turning():
        left = loop.run_until_complete(begin())
        loop.close()  # its tasks never hear of anything again
        desk.grant(UNLIMITED)
        payer.pay(PATH, 5)
    assert desk.used() == (5, 1)
    assert not payer._queue
    del left


# -- no agent -------------------------------------------------------------------------------


def test_without_an_agent_the_last_rate_holds_at_once(desk: Desk) -> None:
    desk.rate(100 * PAGE, UNLIMITED)
    desk.file.turned(1)
    desk.serves = False
    payer = desk.payer()
    began = time.monotonic()
    count = 0
    while time.monotonic() < began + 0.5:
        if not payer.charge(PAGE):
            payer.pay(PATH, PAGE)
        count += 1
    assert 25 <= count <= 56  # 50, and a burst of 2; slower where the machine is
    assert desk.used() == (0, 0)  # nobody counts there now
    before = payer._lease.words[words.USED_READ]
    assert before == count * PAGE
    # The same agent goes on after all, and no debt is waiting.
    desk.turn()
    desk.grant(1)
    payer.pay(PATH, PAGE)
    assert not payer._lease.is_alone
    assert desk.used() == (PAGE, 1)


def test_an_agent_that_is_told_and_does_not_turn_is_gone_after_a_second(desk: Desk) -> None:
    desk.rate(100 * PAGE, UNLIMITED)
    desk.file.turned(1)
    payer = desk.payer()
    began = time.monotonic()
    payer.pay(PATH, PAGE)
    assert time.monotonic() - began >= GONE_NS / 1e9
    assert payer._lease.is_alone
    assert 1 <= desk.wakes <= 10
    began = time.monotonic()
    payer.pay(PATH, PAGE)
    assert time.monotonic() - began < GONE_NS / 1e9


def test_a_slot_that_is_another_s_is_left_alone(desk: Desk) -> None:
    desk.grant(UNLIMITED)
    desk.rate(100 * PAGE, 1000)
    payer = desk.payer()
    assert payer.charge(1)
    desk.file.clear(SLOT)
    desk.slot[words.OWNER] = OWNER + 1
    desk.grant(UNLIMITED)
    assert not payer.charge(PAGE)
    for _ in range(20):
        payer.pay(PATH, PAGE)  # at the safe rate
    assert desk.used() == (0, 0)
    assert not desk.wakes  # no governor was waited for
    assert not desk.waits


def test_a_new_seat_is_asked_for_where_the_slot_was_lost(desk: Desk) -> None:
    payer = desk.payer()
    desk.file.clear(SLOT)

    def renew() -> None:
        desk.slot[words.OWNER] = OWNER + 1
        desk.grant(UNLIMITED)
        payer.move(desk.seat(owner=OWNER + 1), inf)

    desk.on_renew = renew
    payer.pay(PATH, PAGE)
    assert desk.renewals == 1
    assert payer.charge(PAGE)
    assert desk.used() == (2 * PAGE, 2)


def test_a_changed_policy_is_asked_about_by_who_waits(desk: Desk) -> None:
    payer = desk.payer()
    desk.current = False
    desk.on_renew = lambda: desk.grant(1)
    with desk.turning():
        payer.pay(PATH, PAGE)
    assert desk.renewals == 1


def test_without_a_slot_it_goes_at_the_safe_rate(desk: Desk) -> None:
    payer = desk.payer(seat=desk.seat(slot=-1, owner=0))
    began = time.monotonic()
    for _ in range(20):
        if not payer.charge(PAGE):
            payer.pay(PATH, PAGE)
    assert 0.1 < time.monotonic() - began < 5
    assert desk.used() == (0, 0)


def test_a_seat_that_stays_without_a_slot_keeps_its_debt(desk: Desk) -> None:
    seat = desk.seat(slot=-1, owner=0)
    payer = desk.payer(seat=seat)
    payer.pay(PATH, PIECE_BYTES)
    for _ in range(5):
        payer.move(seat, inf)
        assert not payer.charge(1)


def test_a_wait_costs_few_looks(desk: Desk) -> None:
    """Sleeps grow with what the operation takes at the rate of lately."""
    desk.rate(10 * PAGE, UNLIMITED)
    payer = desk.payer()
    slept: list[float] = []
    waiter_step = payer._step

    with desk.turning():
        thread = paying(payer, 10 * PAGE)  # a second
        wait_for(lambda: desk.waits)
        waiter = payer._queue[0]
        step = waiter_step(PATH, waiter)
        assert isinstance(step, float)
        slept.append(step)
        desk.grant(1)
        ended(thread)
    assert slept == [MAX_POLL_S]


def test_a_forked_child_charges_what_its_parent_does_not_see_twice(desk: Desk) -> None:
    desk.grant(UNLIMITED)
    payer = desk.payer()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        os._exit(0 if payer.charge(PAGE) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert desk.used() == (PAGE, 1)  # the mapping is one


def test_words_that_a_peer_has_filled_stop_no_read(desk: Desk) -> None:
    """The agent restores them; until then sums go round."""
    payer = desk.payer()
    for used in range(1, words.SLOT_WORDS):
        desk.slot[used] = UNLIMITED - 1
    desk.grant(UNLIMITED)
    assert not payer.charge(PAGE)
    payer.pay("/m/a", PAGE)
    assert desk.used() == (PAGE - 2, UNLIMITED)
    lease = payer._lease
    lease.say_done(100)
    lease.say_done(100)
    assert desk.slot[words.WAITED_NS] < 1000 and desk.slot[words.WAITS] == 0
