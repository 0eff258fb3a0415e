"""Paying for hits: what one identity of this process may read from the cache, and waiting for it.

A hit is admitted while less is used than granted, and then charged in full (the debt model): two
loads each of bytes and operations, one of the stamp, two stores, 0.25 µs in all with the call
(Python 3.11; a closure over the words is no faster than a method). Whoever is not admitted
queues: threads and event loops of this process in the order of coming, and behind the first of
them the governor decides among processes. The first one polls; the others sleep.

Misses are charged where they are served, in the agent.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Protocol

from tiercache import wire
from tiercache.client.lease import Lease
from tiercache.errors import Throttled
from tiercache.policy.lease_words import SLOT_WORDS

# A large read is charged in such pieces, each when there are tokens again, so that the debt of one
# operation stays what a small limit can pay off within seconds.
PIECE_BYTES = wire.MAX_SPAN_BYTES
# A governor that is awake turns every 10 ms; one that has not for two turns may be asleep.
STALE_NS = 20_000_000
# Told again after this: the first word may have come to an agent that was just falling asleep.
TELL_NS = 250_000_000
# An agent that is told and does not turn for so long is stopped or wedged.
GONE_NS = 1_000_000_000
# Whoever waits looks when the governor is about to have turned, or has just been woken, and not
# before half of what its operation takes at the rate of lately: a look costs 3 µs of processor
# time, but 50–100 µs after a sleep, with cold caches (2 cores, busy), so that 64 processes that
# looked every 5 ms would take more than a core.
MIN_POLL_S = 0.0005
TURN_NS = 10_000_000
MAX_POLL_S = 0.05
# Whoever is behind is woken when it comes first; and looks, rarely, whether there is anybody left
# before it: the loop of a task may have been closed.
BEHIND_S = 1.0
# Identities of which several wait for the agent at once; each takes seconds at the most.
ASIDE_THREADS = 4
# Who has not looked for so long is passed by. The loop of a task may be blocked, even by a read
# that stands behind it in the line.
LOST_NS = 1_500_000_000


class Agency(Protocol):
    """What a payer wants of the agent. All but ``wake`` may block for a second."""

    def wake(self) -> bool:
        """Have the governor turn; False where nobody could be told."""
        ...

    def find(self) -> bool:
        """Return whether an agent can be reached."""
        ...

    def is_current(self) -> bool:
        """Return whether the seats are of the policy in force."""
        ...

    def may_renew(self, now_ns: int) -> bool:
        """Return whether it is time to ask for seats again."""
        ...

    def renew(self) -> None:
        """Ask for seats again; leases are moved to them."""
        ...


class _Waiter:
    """An operation that waits, of a thread."""

    __slots__ = ("count", "is_first", "looked_ns", "operations", "since_ns", "woken")

    def __init__(self, count: int, operations: int, since_ns: int) -> None:
        self.count = count
        self.operations = operations
        self.since_ns = self.looked_ns = since_ns
        self.is_first = False  # when it last looked
        self.woken = threading.Event()

    @property
    def is_gone(self) -> bool:
        """Whether it will never look again."""
        return False

    def wake(self) -> None:
        """Let it look: it is first now."""
        self.woken.set()

    def rest(self) -> None:
        """It has looked, and is not first: let it sleep until it is."""
        self.woken.clear()


class _LoopWaiter(_Waiter):
    """The same of a task."""

    __slots__ = ("_loop", "first")

    def __init__(self, count: int, operations: int, since_ns: int) -> None:
        super().__init__(count, operations, since_ns)
        self._loop = asyncio.get_running_loop()
        self.first = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        return self._loop.is_closed()

    def wake(self) -> None:
        with suppress(RuntimeError):  # closed just now: whoever is behind finds out
            self._loop.call_soon_threadsafe(self.first.set)

    def rest(self) -> None:
        self.first.clear()


# What tasks have done that may block: all threads of their loop's own pool may be busy for long, or
# stand behind them in the line. It holds one pool, made when it is first needed.
_pool: list[ThreadPoolExecutor] = []
os.register_at_fork(after_in_child=_pool.clear)  # its threads are the parent's


async def _aside(call: Callable[[], object]) -> None:
    if not _pool:
        _pool.append(ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix="tiercache-qos"))
    await asyncio.get_running_loop().run_in_executor(_pool[0], call)


# What nobody is admitted by: while others wait, or a thread has paid ahead, all come to ``pay``.
_CLOSED = memoryview(bytes(SLOT_WORDS * 8)).cast("Q")


class Payer:
    """Pays for the hits of one identity. Thread safe; nothing survives a fork."""

    __slots__ = (
        "_agency", "_is_retired", "_lease", "_lock", "_queue", "_settled", "_stamp", "_told_ns",
        "_words", "identity", "mark", "max_wait_s",
    )  # fmt: skip

    def __init__(
        self, lease: Lease, agency: Agency, *, identity: str, mark: int, max_wait_s: float
    ) -> None:
        """``mark`` is the visited byte of its hits. Waits of more than ``max_wait_s`` end."""
        # Constant after construction, or replaced as a whole
        self.identity = identity
        self.mark = mark
        self.max_wait_s = max_wait_s
        self._agency = agency
        # Guarded by _lock; ``charge`` reads the words and the stamp without it
        self._lock = threading.Lock()
        self._lease = lease
        self._queue: deque[_Waiter] = deque()
        self._settled: dict[int, int] = {}
        self._told_ns = 0
        self._is_retired = False
        self._words = lease.words
        self._stamp = lease.stamp

    # -- the hit path -----------------------------------------------------------------------

    def charge(self, count: int) -> bool:
        """Charge one operation of so many bytes, if it is admitted here and now."""
        words = self._words
        used = words[1]
        if used < words[6] and count <= PIECE_BYTES and words[0] == self._stamp:
            operations = words[2]
            if operations < words[7]:
                # No call between the loads and here: no other thread has run.
                try:
                    words[1] = used + count
                    words[2] = operations + 1
                except ValueError:  # a peer has stored nonsense, which the agent will restore
                    return False
                return True
        return False

    def pay(self, path: str, count: int, operations: int = 1) -> None:
        """Charge ``operations`` of ``count`` bytes together, waiting until they are admitted.
        Interrupted, or Throttled after ``max_wait_s``, it has charged the pieces before."""
        while True:
            piece = min(count, PIECE_BYTES)
            self._pay(path, piece, operations)
            operations, count = 0, count - piece
            if not count:
                return

    # -- event loops ------------------------------------------------------------------------

    async def settle(self, path: str, count: int, operations: int = 1) -> None:
        """The same for a task: the loop goes on meanwhile. What is read then, under ``settled``, is
        not charged again."""
        while True:
            piece = min(count, PIECE_BYTES)
            if self._is_over(_now_ns()):
                await _aside(self._agency.renew)
            if not self._pay_now(piece, operations):
                await self._wait_async(path, piece, operations)
            operations, count = 0, count - piece
            if not count:
                return

    def settled(self) -> Settled:
        """Return a context within which all that this thread reads is paid for."""
        return Settled(self)

    def _note_settled(self, change: int) -> None:
        thread = threading.get_ident()
        with self._lock:
            depth = self._settled.get(thread, 0) + change
            if depth:
                self._settled[thread] = depth
            else:
                del self._settled[thread]
            self._show_words()

    # -- waiting ----------------------------------------------------------------------------

    def _is_over(self, now_ns: int) -> bool:
        """Return whether the seat is none any more, and it is time to ask for another."""
        lease = self._lease
        if lease.is_off or self._is_retired:
            return False
        is_over = lease.is_lost or not self._agency.is_current()
        return is_over and self._agency.may_renew(now_ns)

    def _pay(self, path: str, count: int, operations: int) -> None:
        if self._is_over(_now_ns()):
            self._agency.renew()  # also where it need not wait: its use is to be counted
        if self._pay_now(count, operations):
            return
        waiter = _Waiter(count, operations, _now_ns())
        try:
            self._join(waiter)
            while (step := self._step(path, waiter)) is not None:
                if callable(step):
                    step()
                elif waiter.is_first:
                    time.sleep(step)
                else:
                    waiter.woken.wait(step)
        finally:
            self._leave(waiter)

    async def _wait_async(self, path: str, count: int, operations: int) -> None:
        waiter = _LoopWaiter(count, operations, _now_ns())
        try:
            self._join(waiter)
            while (step := self._step(path, waiter)) is not None:
                if callable(step):
                    await _aside(step)
                elif waiter.is_first:
                    await asyncio.sleep(step)
                else:
                    # wait_for of Python 3.11 swallows a cancel that comes with what it waits for.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(step):
                            await waiter.first.wait()
        finally:
            self._leave(waiter)

    def _pay_now(self, count: int, operations: int) -> bool:
        """Charge if that needs no waiting; nobody overtakes who waits."""
        with self._lock:
            if threading.get_ident() in self._settled:
                return True
            return not self._queue and self._admit(count, operations)

    def _admit(self, count: int, operations: int) -> bool:
        lease = self._lease
        lease.look(_now_ns())
        self._show_words()
        if lease.is_off or self._is_retired:
            return True
        if not lease.is_open(operations):
            return False
        lease.charge(count, operations)
        return True

    def _join(self, waiter: _Waiter) -> None:
        with self._lock:
            self._queue.append(waiter)
            self._show_words()

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._queue:
                was_first = self._queue[0] is waiter
                self._queue.remove(waiter)
                self._lease.say_done(_now_ns() - waiter.since_ns)
                if was_first and self._queue:
                    self._queue[0].wake()
            self._show_words()

    def _step(self, path: str, waiter: _Waiter) -> float | Callable[[], object] | None:
        """Return None once it is paid, else for how many seconds to sleep, or what to do first:
        it may block. Raises Throttled."""
        now_ns = _now_ns()
        left_s = self.max_wait_s - (now_ns - waiter.since_ns) / 1e9
        with self._lock:
            waiter.looked_ns = now_ns
            self._pass_by(now_ns)
            waiter.is_first = self._queue[0] is waiter
            if not waiter.is_first:
                waiter.rest()
                if left_s <= 0:
                    raise self._throttled(path, waiter)
                return min(left_s, BEHIND_S)
            if self._admit(waiter.count, waiter.operations):
                return None
            lease = self._lease
            if self._is_over(now_ns):
                return self._agency.renew
            lease.say_waiting(waiter.count, waiter.operations, waiter.since_ns)
            if not lease.is_alone and now_ns - lease.turned_ns > STALE_NS:
                if not self._is_told(now_ns):
                    return self._find_agent
                if now_ns - max(lease.turned_ns, waiter.since_ns) > GONE_NS:
                    lease.stand_alone(now_ns)
            if left_s <= 0:
                raise self._throttled(path, waiter)
            wait_s = lease.wait_s(waiter.count, waiter.operations, now_ns - waiter.since_ns)
            if not lease.is_alone:
                # The next turn: due then, or late, or on the way since the governor was woken.
                due_s = (max(lease.turned_ns + TURN_NS, self._told_ns) - now_ns) / 1e9
                wait_s = max(wait_s / 2, due_s, -due_s / 2)
        return min(max(wait_s, MIN_POLL_S), MAX_POLL_S, left_s)

    def _pass_by(self, now_ns: int) -> None:
        """Have somebody first who looks: those who never will again leave the line, and those who
        have not for long go to its end."""
        queue = self._queue
        before = queue[0]
        while queue[0].is_gone or now_ns - queue[0].looked_ns > LOST_NS:
            if queue[0].is_gone:
                queue.popleft()
            else:
                queue.rotate(-1)
        if queue[0] is not before:
            queue[0].wake()

    def _is_told(self, now_ns: int) -> bool:
        """See that the governor knows that somebody waits; False where nobody can be told."""
        if now_ns - self._told_ns > TELL_NS:
            self._told_ns = now_ns
            return self._agency.wake()
        return True

    def _find_agent(self) -> None:
        """Stand alone at once where there is no agent; else it has been told by now."""
        if not (self._agency.find() and self._agency.wake()):
            with self._lock:
                self._lease.stand_alone(_now_ns())

    def _throttled(self, path: str, waiter: _Waiter) -> Throttled:
        error = Throttled(
            f"{self.identity!r} has waited {(_now_ns() - waiter.since_ns) / 1e9:.2f} s for its "
            "share of reading, the most it may",
            path=path,
            remedy="try again later, raise max_wait, or see: tiercache qos explain "
            f"{self.identity} {path}",
        )
        wait_s = self._lease.wait_s(waiter.count, waiter.operations, 0)
        error.retry_after_s = wait_s if wait_s < inf else MAX_POLL_S
        return error

    def _show_words(self) -> None:
        """Let ``charge`` see what it may."""
        is_closed = self._queue or self._settled or self._is_retired
        self._words = _CLOSED if is_closed else self._lease.words
        self._stamp = self._lease.stamp

    # -- other terms ------------------------------------------------------------------------

    def move(self, seat: wire.Seat, max_wait_s: float) -> None:
        """Pay from another seat of the same identity."""
        with self._lock:
            self.mark, self.max_wait_s = seat.mark, max_wait_s
            if seat.owner != self._lease.stamp or self._lease.is_lost:
                self._lease.take(seat, _now_ns())
            self._show_words()

    def retire(self) -> None:
        """Its identity is none of this process any more: let through whoever still comes, since
        the names are about to be looked up again."""
        with self._lock:
            self._is_retired = True
            self._show_words()

    def abandon(self) -> None:
        """In a forked child: whoever paid or waited here is not there, nor will let go of the
        lock; the child's own hits are paid from its own seat."""
        self._lock = threading.Lock()
        self._queue = deque()
        self._settled = {}
        self.retire()


class Settled:
    """See ``Payer.settled``. None stands for no policy."""

    __slots__ = ("_payer",)

    def __init__(self, payer: Payer | None) -> None:
        self._payer = payer

    def __enter__(self) -> None:
        if self._payer is not None:
            self._payer._note_settled(1)

    def __exit__(self, *error: object) -> None:
        if self._payer is not None:
            self._payer._note_settled(-1)


def _now_ns() -> int:
    return clock_gettime_ns(CLOCK_BOOTTIME)
