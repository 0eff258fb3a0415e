"""Which identity of the QoS policy each path is charged to in this process, and its payers."""

from __future__ import annotations

import threading
from math import inf
from time import CLOCK_BOOTTIME, clock_gettime_ns

from tiercache import wire
from tiercache.client.lease import Lease
from tiercache.client.link import Link
from tiercache.client.paying import Payer
from tiercache.policy.lease_words import GENERATION_WORD
from tiercache.policy.qos import covers
from tiercache.ports import LeaseFileView
from tiercache.settings import QosSettings

# Enlisting is one round trip; an agent that is busy starting a node's workers takes longer.
ANSWER_S = 1.0
# After this the agent is asked again, where it did not answer or had no slot left.
ASK_AGAIN_NS = 1_000_000_000
FULL_AGAIN_NS = 10_000_000_000


class Seats:
    """Payers by path, as the policy in force says. Thread safe; nothing survives a fork.

    A process enlists when it first reads under a policy, and again when that changes, when another
    agent serves, or when its slot was given away.
    """

    def __init__(self, *, file: LeaseFileView | None, link: Link, settings: QosSettings) -> None:
        """``file`` is None where the agent is too old to make one: then nothing is charged."""
        # Constant after construction
        self._file = file
        self._link = link
        self._name = settings.name
        self._max_wait_s = inf if settings.max_wait_s is None else settings.max_wait_s
        # Guarded by _lock; replaced as a whole
        self._lock = threading.Lock()
        self._generation = 0
        self._seats: tuple[tuple[str, Payer], ...] = ()
        self._payers: dict[str, Payer] = {}
        self._silent_until_ns = 0
        self._renew_ns = 0

    @property
    def are_given(self) -> bool:
        """Whether a policy is in force."""
        return self._file is not None and self._file.header[GENERATION_WORD] != 0

    def payer(self, path: str) -> tuple[Payer | None, bool]:
        """Return who pays for the hits of a namespace path, None where no policy is in force; and
        whether that holds until the epoch moves. It does not while the agent could not be asked.
        """
        file = self._file
        if file is None or not (generation := file.header[GENERATION_WORD]):
            return None, True
        is_known = generation == self._generation or self._enlist(generation)
        return self._payer_of_path(path), is_known

    def identity(self, path: str) -> str:
        """Return who pays for a namespace path, as far as that is known without asking; "" where
        it is not, or where no policy is in force."""
        if not self.are_given:
            return ""
        payer = self._payer_of_path(path)
        return "" if payer is None else payer.identity

    def _payer_of_path(self, path: str) -> Payer | None:
        for below, payer in self._seats:
            if covers(below, path):
                return payer
        return None

    def _enlist(self, generation: int) -> bool:
        with self._lock:
            if generation != self._generation and _now_ns() >= self._silent_until_ns:
                self._ask()
            return generation == self._generation

    def _ask(self) -> None:
        """Ask the agent, if there is one. Where it does not answer all stays as it was."""
        assert self._file is not None
        now_ns = _now_ns()
        answer = self._link.ask(wire.Enlist(self._name), wire.Enlisted, within_s=ANSWER_S)
        self._renew_ns = now_ns + ASK_AGAIN_NS
        if answer is None:
            self._silent_until_ns = now_ns + ASK_AGAIN_NS
            return
        payers: dict[str, Payer] = {}
        seats = []
        for seat in answer.seats:
            payer = payers.get(seat.identity)
            if payer is None:
                payer = payers[seat.identity] = self._payer_of(self._file, seat, now_ns)
            seats.append((seat.path, payer))
        if any(seat.slot < 0 for seat in answer.seats):
            self._renew_ns = now_ns + FULL_AGAIN_NS
        before, self._payers = self._payers, payers
        self._seats, self._generation = tuple(seats), answer.generation
        for identity in before.keys() - payers.keys():
            before[identity].retire()

    def _payer_of(self, file: LeaseFileView, seat: wire.Seat, now_ns: int) -> Payer:
        bound_s = inf if seat.max_wait_s is None else seat.max_wait_s
        max_wait_s = min(bound_s, self._max_wait_s)
        payer = self._payers.get(seat.identity)
        if payer is not None:
            payer.move(seat, max_wait_s)
            return payer
        lease = Lease(file, seat, now_ns)
        return Payer(lease, self, identity=seat.identity, mark=seat.mark, max_wait_s=max_wait_s)

    def abandon(self) -> None:
        """In a forked child: nobody pays from the parent's seats."""
        for payer in self._payers.values():
            payer.abandon()

    # -- what payers want of the agent ------------------------------------------------------

    def wake(self) -> bool:
        return self._link.tell(wire.Wake())

    def find(self) -> bool:
        return self._link.find(within_s=ANSWER_S)

    def is_current(self) -> bool:
        assert self._file is not None
        return bool(self._file.header[GENERATION_WORD] == self._generation)

    def may_renew(self, now_ns: int) -> bool:
        return now_ns >= max(self._renew_ns, self._silent_until_ns)

    def renew(self) -> None:
        with self._lock:
            if self.may_renew(_now_ns()):
                self._ask()


def _now_ns() -> int:
    return clock_gettime_ns(CLOCK_BOOTTIME)
