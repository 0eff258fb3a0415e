"""Whose turn it is among those who wait for one scarce thing: the higher priority first, within one
the earlier, and now and then whoever came first of all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

# One turn in so many is the oldest waiter's, whatever its priority: low work goes on at a sixteenth
# of the pace under any load from above, and costs that no more.
OLDEST_EVERY = 16
# Those that left early are removed when they are half of the queue, and more than so many.
FEW = 64

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class Turn(Generic[_T]):
    """A place in a queue. ``arrived`` is a number that grows with time, the same for all queues of
    one owner: who comes back with an old one has lost nothing."""

    item: _T
    priority: int
    arrived: int
    waits: bool = True

    def __lt__(self, other: Turn[_T]) -> bool:
        return self.arrived < other.arrived

    def goes_before(self, other: Turn[_T]) -> bool:
        """Whether it is served first, but for the oldest's turn."""
        return (-self.priority, self.arrived) < (-other.priority, other.arrived)


class Turns(Generic[_T]):
    """Not thread safe. ``next`` answers the same until somebody joins, leaves or is served: what
    does not fit yet keeps its turn."""

    def __init__(self) -> None:
        self._by_priority: dict[int, list[Turn[_T]]] = {}
        self._served = 0
        self._waiting = 0
        self._gone = 0

    def __len__(self) -> int:
        return self._waiting

    def join(self, item: _T, *, priority: int, arrived: int) -> Turn[_T]:
        """Queue up. Two turns never have the same ``arrived``."""
        turn = Turn(item, priority, arrived)
        heapq.heappush(self._by_priority.setdefault(priority, []), turn)
        self._waiting += 1
        return turn

    def leave(self, turn: Turn[_T]) -> None:
        """Give the place up; one that does not wait any more is no error."""
        if not turn.waits:
            return
        turn.waits = False
        self._waiting -= 1
        self._gone += 1
        if self._gone > FEW and self._gone > self._waiting:
            self._sweep()

    def promote(self, turn: Turn[_T], priority: int) -> Turn[_T]:
        """Return its place at a higher priority, which takes the place of the one given; that one
        where it does not wait or has no lower one."""
        if not turn.waits or priority <= turn.priority:
            return turn
        self.leave(turn)
        return self.join(turn.item, priority=priority, arrived=turn.arrived)

    def serve(self, turn: Turn[_T]) -> None:
        """Take it out of the queue: it has got what it waited for."""
        assert turn.waits, "served twice"
        self._served += 1
        self.leave(turn)

    def first(self) -> Turn[_T] | None:
        """Return the earliest of the highest priority."""
        for priority in sorted(self._by_priority, reverse=True):
            if (head := self._head(priority)) is not None:
                return head
        return None

    def oldest(self) -> Turn[_T] | None:
        """Return the earliest of all."""
        heads = [head for one in list(self._by_priority) if (head := self._head(one)) is not None]
        return min(heads, default=None)

    def next(self) -> Turn[_T] | None:
        """Return whose turn it is; None where nobody waits."""
        return self.oldest() if is_oldests_turn(self._served) else self.first()

    def all(self) -> list[Turn[_T]]:
        """Return all who wait, in no order."""
        return [turn for heap in self._by_priority.values() for turn in heap if turn.waits]

    def _head(self, priority: int) -> Turn[_T] | None:
        heap = self._by_priority[priority]
        while heap and not heap[0].waits:
            heapq.heappop(heap)
            self._gone -= 1
        if not heap:
            del self._by_priority[priority]
            return None
        return heap[0]

    def _sweep(self) -> None:
        for priority, heap in list(self._by_priority.items()):
            waiting = [turn for turn in heap if turn.waits]
            heapq.heapify(waiting)
            if waiting:
                self._by_priority[priority] = waiting
            else:
                del self._by_priority[priority]
        self._gone = 0


def is_oldests_turn(served: int) -> bool:
    """Whether, after so many turns, the next is the oldest waiter's."""
    return served % OLDEST_EVERY == OLDEST_EVERY - 1
