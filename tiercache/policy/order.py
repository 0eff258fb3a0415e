"""Announced orders of reads: where their readers stand, and what they come to next.

The rules are those of Cao, Felten, Karlin and Li ("A Study of Integrated Prefetching and Caching
Strategies", SIGMETRICS '95): fetch what is missing in the order of its reads, drop what is read
last, never drop what is read earlier than what it makes room for. Fetching as early as these allow
would cost hits (each byte fetched ahead takes the place of one that would be read again), so a
window bounds how far ahead room is made.

Positions are counted in reads, not bytes. Names are any hashable bytes: the engine's digests.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

# Room is made for what lies within this share of the cache ahead of the reader; what is farther is
# fetched into free room only. A byte of window is a byte that holds nothing for the next epoch: on
# three shuffled epochs of four times the cache 1/16 is 2/64 of the data, 1.3 % of what the optimum
# fetches; 1/8 would be 2.5 %. And of 2 TiB it is 128 GiB, a minute of reading at 2 GB/s.
WINDOW_SHARE = 16
# A reader that comes upon so many missing objects in a row, close together and none where it was
# thought to be, has moved there. Fewer, and a validation pass would be taken for it; more, and
# somebody who resumes in the middle waits longer to be prefetched for.
STRAYS = 32
STRAYS_SPAN = 8 * STRAYS
# Large objects being read at one time: those begun last are near until their end was read.
CURRENT = 16
# An order whose reader has not been seen for so long is forgotten, and what was fetched for it is
# evicted like anything else. Checkpoints and evaluations take minutes; a reader that crashed costs
# its window (1/16 of the cache) for this long.
IDLE_S = 900.0
# The same where all that is left to read is here: there is nothing more to do for the reader.
TAIL_IDLE_S = 30.0


class Order:
    """One announced sequence and its reader's place in it. Not thread safe.

    ``low``: every read before it was seen, or is no longer waited for. ``reach``: the caller
    prefetches [low, reach); it moves ``reach`` and never back.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = names
        self.low = 0
        self.reach = 0
        # Where the same name stands next; -1 for never.
        self._following = array("q", bytes(8 * len(names)))
        self._next: dict[bytes, int] = {}  # the first unread place of each name
        for place in range(len(names) - 1, -1, -1):
            self._following[place] = self._next.get(names[place], -1)
            self._next[names[place]] = place
        self._read = bytearray(len(names))
        self._read_beyond = 0  # places from ``low`` on that were read
        self._strays: deque[int] = deque(maxlen=STRAYS)
        self._current: dict[bytes, None] = {}  # begun and not ended, in the order of beginning

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_over(self) -> bool:
        return self.low >= len(self.names)

    def is_read(self, place: int) -> bool:
        return place < self.low or bool(self._read[place])

    def read(self, place: int) -> None:
        """Note that this read has happened: a hit was seen."""
        self._strays.clear()
        self._mark(place)
        self._pass_over()

    def begin(self, place: int) -> None:
        """Note that a read has begun that takes its time: until ``end`` the object stays near, or
        until CURRENT others have begun."""
        self.read(place)
        name = self.names[place]
        self._current.pop(name, None)
        self._current[name] = None
        if len(self._current) > CURRENT:
            del self._current[next(iter(self._current))]

    def end(self, name: bytes) -> None:
        self._current.pop(name, None)

    @property
    def current(self) -> tuple[bytes, ...]:
        """The objects begun and not ended."""
        return tuple(self._current)

    def distance(self, name: bytes) -> int | None:
        """Return how many reads lie before the next one of ``name``, None for none announced."""
        if name in self._current:
            return 0
        place = self._next.get(name)
        return None if place is None else place - self.low

    def is_near(self, name: bytes) -> bool:
        """Return whether the name is being read, or is in the window."""
        place = self._next.get(name)
        return (place is not None and place < self.reach) or name in self._current

    def touch(self, name: bytes, *, begins: bool = False) -> bool:
        """Note a read of ``name`` that found it missing (``begins``: of which more is to come);
        return whether the order expected it.

        Within twice the window it is a read of the order. Farther ahead it is out of order and
        changes nothing, unless many close together show that the reader has moved there.
        """
        place = self._next.get(name)
        if place is None:
            return False
        if place < self.reach + max(STRAYS, self.reach - self.low):
            if begins:
                self.begin(place)
            else:
                self.read(place)
            return True
        self._strays.append(place)
        first = min(self._strays)
        if len(self._strays) < STRAYS or max(self._strays) - first >= STRAYS_SPAN:
            return False
        moved_to = [*self._strays]
        self._strays.clear()
        for skipped in range(self.low, first):
            self._mark(skipped)
        for read in moved_to:
            self._mark(read)
        self.reach = max(self.reach, self.low)
        return True

    def _mark(self, place: int) -> None:
        if self.is_read(place):
            return
        self._read[place] = 1
        self._read_beyond += 1
        name = self.names[place]
        if self._next.get(name) == place:
            following = self._following[place]
            while following >= 0 and self._read[following]:
                following = self._following[following]
            if following < 0:
                del self._next[name]
            else:
                self._next[name] = following
        while self.low < len(self.names) and self._read[self.low]:
            self.low += 1
            self._read_beyond -= 1
        self.reach = max(self.reach, self.low)

    def _pass_over(self) -> None:
        """Wait no longer for reads that were skipped, or that nobody saw: when most of the window
        behind them was read."""
        while self.low < self.reach and 2 * self._read_beyond > self.reach - self.low:
            self._mark(self.low)


class Orders:
    """All orders announced at one time. Their readers are taken to go at the same pace."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def __bool__(self) -> bool:
        return bool(self._orders)

    def open(self, order: Order) -> None:
        self._orders.append(order)

    def close(self, order: Order) -> None:
        self._orders.remove(order)

    def distance(self, name: bytes) -> int | None:
        """Return how many reads lie before the next one of ``name``, None for none announced."""
        found = (order.distance(name) for order in self._orders)
        return min((distance for distance in found if distance is not None), default=None)

    def is_near(self, name: bytes) -> bool:
        """Return whether some reader is about to come to ``name``, or at it."""
        return any(order.is_near(name) for order in self._orders)

    @property
    def farthest(self) -> int:
        """Return how many reads the longest order still has: no announced read is farther."""
        return max((len(order) - order.low for order in self._orders), default=0)
