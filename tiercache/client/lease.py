"""Where the hits of one identity in this process are paid from.

That is its slot of the lease file while the agent turns, and words of its own, which fill at the
rate last heard (``policy/alone.py``), while there is no agent or no slot. Both have the layout of
``policy/lease_words.py``, so whoever charges need not know which they are.
"""

from __future__ import annotations

from math import inf

from tiercache import wire
from tiercache.policy.alone import Alone, Pair
from tiercache.policy.lease_words import (
    GENERATION_WORD,
    GRANT_OPS,
    GRANT_READ,
    OWNER,
    RATE_OPS,
    RATE_READ,
    SAFE_OPS,
    SAFE_READ,
    SLOT_WORDS,
    TURN_WORD,
    UNLIMITED,
    USED_OPS,
    USED_READ,
    WAITED_NS,
    WAITING_NS,
    WAITS,
    WANT_OPS,
    WANT_READ,
)
from tiercache.ports import LeaseFileView


class Lease:
    """Not thread safe: its Payer guards it. A thread may charge ``words`` at any time all the same:
    loads and stores with no call between them are one step under the interpreter lock."""

    def __init__(self, file: LeaseFileView, seat: wire.Seat, now_ns: int) -> None:
        # Constant after construction
        self._header = file.header
        self._slots = file.slots
        # Guarded by the payer's lock
        self._slot: memoryview | None = None
        self._rates: Pair = (inf, inf)
        self._safe: Pair = (inf, inf)
        self._alone: Alone | None = None
        self._turn_ns = 0
        self.words: memoryview
        self.stamp: int
        self.take(seat, now_ns)

    def take(self, seat: wire.Seat, now_ns: int) -> None:
        """Pay from this seat from now on."""
        safe = (seat.safe_read, seat.safe_operations)
        if seat.slot < 0 and self._alone is not None and self._slot is None and self._safe == safe:
            return  # nothing has changed, and a debt is not forgiven
        self._safe = self._rates = safe
        self.stamp = seat.owner
        self._alone = None
        if seat.slot < 0:
            self._slot = None
            self.stand_alone(now_ns)
        else:
            first = seat.slot * SLOT_WORDS
            self._slot = self.words = self._slots[first : first + SLOT_WORDS]

    # -- what the agent says ----------------------------------------------------------------

    @property
    def is_off(self) -> bool:
        """Whether there is no policy now: nothing is to be paid."""
        return not self._header[GENERATION_WORD]

    @property
    def is_lost(self) -> bool:
        """Whether the process has no slot here, or none any more."""
        return self._slot is None or self._slot[OWNER] != self.stamp

    @property
    def is_alone(self) -> bool:
        return self._alone is not None

    @property
    def turned_ns(self) -> int:
        """CLOCK_BOOTTIME of the governor's last turn."""
        return int(self._header[TURN_WORD])

    def look(self, now_ns: int) -> None:
        """Take notice of what has become of slot and agent, and of the time."""
        slot = self._slot
        is_mine = slot is not None and slot[OWNER] == self.stamp
        if self._alone is None:
            if slot is not None and is_mine:
                self._rates = (_rate(slot[RATE_READ]), _rate(slot[RATE_OPS]))
                self._safe = (_rate(slot[SAFE_READ]), _rate(slot[SAFE_OPS]))
            else:
                self.stand_alone(now_ns)
        elif slot is not None and is_mine and self._header[TURN_WORD] != self._turn_ns:
            # What was used meanwhile was granted by the share of then. Charged now, all at once,
            # it would be a debt of as long a time as the agent was away.
            self._alone, self.words = None, slot
        else:
            self._refill(self._alone, now_ns)

    def stand_alone(self, now_ns: int) -> None:
        """Go on without the governor, until it turns again."""
        if self._alone is None:
            self._turn_ns = self._header[TURN_WORD]
            own = memoryview(bytearray(SLOT_WORDS * 8)).cast("Q")
            own[OWNER] = self.stamp
            self._alone, self.words = Alone(self._rates, self._safe, now_ns / 1e9), own
            self._refill(self._alone, now_ns)

    def _refill(self, alone: Alone, now_ns: int) -> None:
        own = self.words
        used = own[USED_READ], own[USED_OPS]
        own[GRANT_READ], own[GRANT_OPS] = alone.grants(used, now_ns / 1e9)

    # -- paying -----------------------------------------------------------------------------

    def is_open(self, operations: int) -> bool:
        """Whether what counts so many operations would be admitted now."""
        words = self.words
        return bool(
            words[USED_READ] < words[GRANT_READ]
            and (not operations or words[USED_OPS] < words[GRANT_OPS])
            and words[OWNER] == self.stamp
        )

    def charge(self, count: int, operations: int) -> None:
        """Charge in full, whatever there is."""
        words = self.words
        # Where a peer has stored nonsense a sum may pass a word; the agent then restores it.
        words[USED_READ] = words[USED_READ] + count & UNLIMITED
        words[USED_OPS] = words[USED_OPS] + operations & UNLIMITED

    def wait_s(self, count: int, operations: int, waited_ns: int) -> float:
        """Return how much longer an operation that has waited so long is likely to wait; inf where
        the rate of lately is none. At the governor it is whole operations that take turns."""
        if self._alone is not None:
            return self._alone.wait_s(operations)
        read, counted = self._rates
        wait_s = max(_time_s(count, read), _time_s(operations, counted))
        return max(0.0, wait_s - waited_ns / 1e9)

    def say_waiting(self, count: int, operations: int, since_ns: int) -> None:
        """Tell the governor what the longest waiting operation wants, since when."""
        words = self.words
        if words[WAITING_NS] != since_ns and words[OWNER] == self.stamp:
            words[WANT_READ], words[WANT_OPS] = count, operations
            words[WAITING_NS] = since_ns

    def say_done(self, waited_ns: int) -> None:
        """Tell it that nobody waits, after a wait of so long."""
        words = self.words
        if words[OWNER] == self.stamp:
            words[WAITING_NS] = words[WANT_READ] = words[WANT_OPS] = 0
            words[WAITED_NS] = words[WAITED_NS] + waited_ns & UNLIMITED
            words[WAITS] = words[WAITS] + 1 & UNLIMITED


def _rate(word: int) -> float:
    return inf if word == UNLIMITED else float(word)


def _time_s(tokens: int, rate: float) -> float:
    if not tokens:
        return 0.0
    return tokens / rate if rate else inf
