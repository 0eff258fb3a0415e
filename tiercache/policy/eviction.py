"""SIEVE (Zhang et al., NSDI '24): a FIFO queue, one visited bit an entry, and a moving hand.

New entries go in at the head. The hand walks from the tail towards the head; it clears the bit of
a visited entry and passes on, and evicts the first that was not visited. Survivors keep their
place, which is what makes a scan leave soon.

While an order of reads is announced, ``to_go`` ranks what SIEVE's hand points at instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tiercache.policy.order import Orders

# How long an entry is new, as a share of the cache: what it is read meanwhile is one use of it, the
# one that it was fetched for (the correlated reference period of LRU-K). Simulated on three
# shuffled epochs of four times the cache: without it SIEVE fetches what FIFO does, 0.2 % less than
# LRU; with any share from 1/32 to 1/8, 0.8 % less.
PROBATION_SHARE = 16
# A pack of which at most this share is announced counts as announced by nobody, and what is
# announced of it is copied forward: ahead of the reader, used-up packs would keep their room.
WORTH_KEEPING = 0.25
# Of a sample of extents this share, the best to go, is taken before another look. A look costs
# ~1 µs an extent, so an eviction costs ~16 µs, and is at most 6 % of the cache behind the reader.
VICTIM_SHARE = 16


class Sieve:
    """The queue and the hand. Not thread safe: the event loop owns it."""

    def __init__(self) -> None:
        # A doubly linked list in two dicts; 0 is the sentinel (no extent has the id 0).
        self._older: dict[int, int] = {0: 0}
        self._newer: dict[int, int] = {0: 0}
        self._hand = 0
        # How often the hand has begun at the oldest.
        self.rounds = 0

    def __len__(self) -> int:
        return len(self._older) - 1

    def __contains__(self, entry: int) -> bool:
        return entry in self._older and entry != 0

    def __iter__(self) -> Iterator[int]:
        """Oldest first."""
        entry = self._newer[0]
        while entry:
            yield entry
            entry = self._newer[entry]

    def insert(self, entry: int) -> None:
        """Add as the newest. Raises ValueError for a duplicate."""
        if entry in self._older:
            raise ValueError(f"entry {entry} is in the queue already")
        newest = self._older[0]
        self._older[entry], self._newer[entry] = newest, 0
        self._newer[newest] = entry
        self._older[0] = entry

    def insert_passed(self, entry: int) -> None:
        """Add where the hand has just been: the place of what it let live. Raises ValueError."""
        if not self._hand:
            self.insert(entry)
            return
        if entry in self._older:
            raise ValueError(f"entry {entry} is in the queue already")
        newer, older = self._hand, self._older[self._hand]
        self._older[entry], self._newer[entry] = older, newer
        self._newer[older] = self._older[newer] = entry

    def remove(self, entry: int) -> None:
        """Take it out, wherever it is. Raises KeyError when it is not there."""
        if self._hand == entry:
            self._hand = self._newer[entry]
        older, newer = self._older.pop(entry), self._newer.pop(entry)
        self._newer[older] = newer
        self._older[newer] = older

    def sample(self, count: int) -> list[int]:
        """Return up to ``count`` entries from the hand on, each once, and move the hand past them;
        where these are all, it comes round to where it stood."""
        found: list[int] = []
        entry = self._hand or self._newer[0]
        for _ in range(min(count, len(self))):
            found.append(entry)
            entry = self._newer[entry] or self._newer[0]
        self._hand = entry
        return found

    @property
    def hand(self) -> int:
        """The entry that the hand stands at, 0 at the newest's end."""
        return self._hand

    @property
    def next(self) -> int:
        """The entry that ``step`` would return, 0 for none."""
        return self._hand or self._newer[0]

    def step(self) -> int:
        """Move the hand past the next entry and return it, 0 where there is none."""
        if not self._hand:
            self.rounds += 1
            self._hand = self._newer[0]
        entry = self._hand
        self._hand = self._newer[entry]
        return entry

    def step_back(self, entry: int) -> None:
        """Put the hand back at an entry that it has just passed."""
        self._hand = entry

    def victim(
        self, *, take_visited: Callable[[int], bool], evictable: Callable[[int], bool]
    ) -> int | None:
        """Return the next entry to evict, or None where no entry is evictable.

        ``take_visited`` reads and clears the bit. The entry stays in the queue until ``remove``;
        the hand already stands past it. Two rounds at most: the first may clear every bit.
        """
        for _ in range(2 * len(self)):
            entry = self.step()
            if not evictable(entry):
                continue
            if not take_visited(entry):
                return entry
        return None


class Probation:
    """Entries that are new, in the order of their coming, by a clock of bytes. Not thread safe."""

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes
        self._clock_bytes = 0
        self._entries: deque[tuple[int, int]] = deque()

    def enter(self, entry: int) -> None:
        self._entries.append((self._clock_bytes + self._length_bytes, entry))

    def advance(self, count: int) -> list[int]:
        """Note that ``count`` bytes have come in; return the entries that are new no more. Some of
        them may have left the cache."""
        self._clock_bytes += count
        ended = []
        while self._entries and self._entries[0][0] <= self._clock_bytes:
            ended.append(self._entries.popleft()[1])
        return ended


@dataclass(frozen=True, slots=True)
class Candidate:
    """An extent that may go, while an order of reads is announced.

    ``next_use`` is how many reads lie before its own, None where nobody announced one; ``is_near``
    says that a reader is about to come to it. ``visited`` matters to what is not announced.
    """

    entry: int
    next_use: float | None = None
    is_near: bool = False
    visited: bool = False


def of_pack(entry: int, members: Sequence[bytes], orders: Orders) -> Candidate:
    """Return the pack of these objects as one candidate: it is read when, on average, its objects
    are; what is not announced, at the end of all orders."""
    uses = [orders.distance(name) for name in members]
    announced = [use for use in uses if use is not None]
    if len(announced) <= WORTH_KEEPING * len(members):
        return Candidate(entry)
    unannounced = (len(members) - len(announced)) * orders.farthest
    is_near = sum(map(orders.is_near, members)) > WORTH_KEEPING * len(members)
    return Candidate(entry, (sum(announced) + unannounced) / len(members), is_near)


def to_go(candidates: Iterable[Candidate], *, refused: Collection[int] = ()) -> list[int]:
    """Return the entries of ``candidates`` (in the order of SIEVE's queue), first to go first.

    What nobody announced goes first, but for what was read since it was last looked at; then the
    farthest announced (Belady), then what was spared, then what a reader is about to come to.
    Behind them stands what has ``refused`` to go.
    """

    def rank(candidate: Candidate) -> tuple[bool, int, float]:
        has_refused = candidate.entry in refused
        if candidate.next_use is None:
            return has_refused, (2 if candidate.visited else 0), 0.0
        return has_refused, (3 if candidate.is_near else 1), -candidate.next_use

    return [candidate.entry for candidate in sorted(candidates, key=rank)]
