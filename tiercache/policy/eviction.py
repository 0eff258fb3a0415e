"""SIEVE (Zhang et al., NSDI '24): a FIFO queue, one visited bit an entry, and a moving hand.

New entries go in at the head. The hand walks from the tail towards the head; it clears the bit of
a visited entry and passes on, and evicts the first that was not visited. Survivors keep their
place, which is what makes a scan leave soon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


class Sieve:
    """The queue and the hand. Not thread safe: the event loop owns it."""

    def __init__(self) -> None:
        # A doubly linked list in two dicts; 0 is the sentinel (no extent has the id 0).
        self._older: dict[int, int] = {0: 0}
        self._newer: dict[int, int] = {0: 0}
        self._hand = 0

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

    def remove(self, entry: int) -> None:
        """Take it out, wherever it is. Raises KeyError when it is not there."""
        if self._hand == entry:
            self._hand = self._newer[entry]
        older, newer = self._older.pop(entry), self._newer.pop(entry)
        self._newer[older] = newer
        self._older[newer] = older

    def victim(
        self, *, take_visited: Callable[[int], bool], evictable: Callable[[int], bool]
    ) -> int | None:
        """Return the next entry to evict, or None where no entry is evictable.

        ``take_visited`` reads and clears the bit. The entry stays in the queue until ``remove``;
        the hand already stands past it. Two rounds at most: the first may clear every bit.
        """
        for _ in range(2 * len(self)):
            entry = self._hand or self._newer[0]
            self._hand = self._newer[entry]
            if not evictable(entry):
                continue
            if not take_visited(entry):
                return entry
        return None
