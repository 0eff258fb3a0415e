"""Capacity by identity: who may take how much of the cache, and whose extents go for whom.

An extent is charged to the identity that first admitted it. Over ``max`` an identity evicts its own
or reads through. Where the device is full, those above ``soft`` give way first, then all alike but
for those that would fall below ``min``. Pure: decisions over a ``Ledger``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from tiercache.policy.eviction import Sieve
from tiercache.policy.ledger import Ledger
from tiercache.policy.placement import Placement
from tiercache.policy.qos import Capacity, Plan

UNBOUNDED = Capacity()
# An identity's extents are at most 1/16 of its ``max``: of_capacity() divides by 128.
EXTENT_SHARE_OF_MAX = 128 // 16
# What is copied forward out of a pack stands twice for a moment. Where ``max`` is at least so many
# packs, one of them is kept free for that; else an evicted pack takes all that is in it along.
MIN_PACKS_FOR_HEADROOM = 8


def capacities_of(plan: Plan | None) -> dict[str, Capacity]:
    """Return the capacities of a plan; none where it bounds nobody's."""
    identities = () if plan is None else plan.identities
    capacities = {one.name: one.capacity for one in identities}
    return capacities if any(one != UNBOUNDED for one in capacities.values()) else {}


class Quotas:
    """The capacities in force, held against a ledger. The event loop owns it."""

    def __init__(self, ledger: Ledger, placement: Placement) -> None:
        self._ledger = ledger
        self._placement = placement
        self._placements: dict[str, Placement] = {}
        self.capacities: Mapping[str, Capacity] = {}

    @property
    def in_force(self) -> bool:
        return bool(self.capacities)

    def replace(self, capacities: Mapping[str, Capacity]) -> None:
        """Take these from now on; none at all is no policy."""
        self.capacities = dict(capacities)
        self._placements = {
            identity: self._placement_for(capacity)
            for identity, capacity in self.capacities.items()
        }

    def of(self, identity: str) -> Capacity:
        return self.capacities.get(identity, UNBOUNDED)

    def _placement_for(self, capacity: Capacity) -> Placement:
        if capacity.max_bytes is None:
            return self._placement
        own = Placement.of_capacity(capacity.max_bytes * EXTENT_SHARE_OF_MAX)
        whole = self._placement
        return replace(
            whole,
            extent_bytes=min(own.extent_bytes, whole.extent_bytes),
            pack_bytes=min(own.pack_bytes, whole.pack_bytes),
        )

    def placement(self, identity: str) -> Placement:
        """Return the sizes of new extents of this identity."""
        return self._placements.get(identity, self._placement)

    # -- max --------------------------------------------------------------------------------

    def headroom_bytes(self, identity: str) -> int:
        """Return what of ``max`` only copying forward may use."""
        pack_bytes = self.placement(identity).pack_bytes
        largest = self.of(identity).max_bytes
        if largest is None or largest < MIN_PACKS_FOR_HEADROOM * pack_bytes:
            return 0
        return pack_bytes

    def ceiling_bytes(self, identity: str) -> int | None:
        """Return how much an identity may hold by admitting; None: no bound of its own."""
        largest = self.of(identity).max_bytes
        return None if largest is None else largest - self.headroom_bytes(identity)

    def lacking_bytes(self, identity: str, count: int, *, use_headroom: bool = False) -> int:
        """Return how much of its own an identity must give up before it may take ``count`` more;
        0 where it may."""
        largest = self.of(identity).max_bytes
        if largest is None:
            return 0
        bound = largest if use_headroom else largest - self.headroom_bytes(identity)
        over = self._ledger.account(identity).used_bytes + count - bound
        return over if over > 0 else 0

    def over(self) -> list[str]:
        """Return who holds more than its ``max``, which was lowered."""
        return [
            identity
            for identity, capacity in self.capacities.items()
            if capacity.max_bytes is not None
            and self._ledger.account(identity).used_bytes > capacity.max_bytes
        ]

    # -- min and soft -----------------------------------------------------------------------

    def spare_bytes(self, identity: str) -> int:
        """Return how much others may evict of it; negative below ``min``."""
        account = self._ledger.account(identity)
        return account.live_bytes - account.leaving_bytes - self.of(identity).min_bytes

    def may_evict(self, worker: str, identity: str, count: int) -> bool:
        """Whether ``count`` bytes of ``identity`` may go for the sake of ``worker``."""
        return worker == identity or self.spare_bytes(identity) >= count

    def over_soft(self, identities: Iterable[str]) -> list[str]:
        """Return those above ``soft``, the one that is most above it first."""
        over = {}
        for identity in identities:
            soft = self.of(identity).soft_bytes
            if soft is not None:
                account = self._ledger.account(identity)
                over[identity] = account.live_bytes - account.leaving_bytes - soft
        return sorted((i for i in over if over[i] > 0), key=lambda i: -over[i])

    # -- pins -------------------------------------------------------------------------------

    def may_pin(self, identity: str, count: int) -> bool:
        """Whether ``count`` bytes more may be pinned for this identity."""
        most = self.of(identity).pin_max_bytes
        return most is None or self._ledger.account(identity).pinned_bytes + count <= most


class Queues:
    """SIEVE, a queue for each identity. Not thread safe.

    Where several identities may give way, ``nearest`` chooses as one hand would that walks through
    all of their entries in the order of their coming: as without identities.
    """

    def __init__(self) -> None:
        self._queues: dict[str, Sieve] = {}
        self._number: dict[int, int] = {}
        self._next_number = 1
        # Where the one hand stands: round and number. A queue's own rounds count from its base.
        self._at = (0, 0)
        self._base: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def __contains__(self, entry: int) -> bool:
        return entry in self._number

    def of(self, identity: str) -> Sieve:
        queue = self._queues.get(identity)
        if queue is None:
            queue = self._queues[identity] = Sieve()
            self._base[identity] = self._at[0] - 1
        return queue

    def identities(self) -> list[str]:
        """Return who has entries."""
        return [identity for identity, queue in self._queues.items() if len(queue)]

    def insert(self, entry: int, identity: str) -> None:
        """Add as the newest. Raises ValueError for a duplicate."""
        self.of(identity).insert(entry)
        self._number[entry] = self._next_number
        self._next_number += 1

    def insert_passed(self, entry: int, identity: str) -> None:
        """Add where the hand of this identity has just been. Raises ValueError."""
        queue = self.of(identity)
        hand = queue.hand
        queue.insert_passed(entry)
        if hand:
            self._number[entry] = self._number[hand]
        else:
            self._number[entry] = self._next_number
            self._next_number += 1

    def remove(self, entry: int, identity: str) -> None:
        """Take it out. Raises KeyError when it is not there."""
        self.of(identity).remove(entry)
        del self._number[entry]

    def move(self, entry: int, identity: str, other: str) -> None:
        """Make it the newest of another identity."""
        self.remove(entry, identity)
        self.insert(entry, other)

    def regroup(self, group_of: Callable[[int], str]) -> None:
        """Distribute all entries anew, in the order of their coming."""
        entries = [entry for _, entry in sorted((n, entry) for entry, n in self._number.items())]
        self._queues, self._number, self._base, self._at = {}, {}, {}, (0, 0)
        for entry in entries:
            self.insert(entry, group_of(entry))

    def nearest(self, identities: Collection[str]) -> str:
        """Return whose entry the one hand comes to next, and move it there. ``identities`` are some
        that have entries."""
        places = {identity: self._place(identity) for identity in identities}
        chosen = min(places, key=lambda identity: places[identity])
        self._at = places[chosen]
        return chosen

    def _place(self, identity: str) -> tuple[int, int]:
        """Return where the hand of an identity stands; one that was left behind, while its
        identity might give nothing, is brought up first."""
        queue, numbers = self._queues[identity], self._number
        place = self._standing(identity)
        if place >= self._at:
            return place
        self._base[identity] += self._at[0] - place[0]
        for _ in range(len(queue)):
            if numbers[queue.next] >= self._at[1]:
                break
            queue.step()
            if not queue.hand:
                break  # the rest of its round is behind
        return self._standing(identity)

    def _standing(self, identity: str) -> tuple[int, int]:
        queue = self._queues[identity]
        rounds = queue.rounds + (0 if queue.hand else 1)
        return rounds + self._base[identity], self._number[queue.next]

    def sample(self, identities: Collection[str], count: int) -> Iterator[int]:
        """Yield up to ``count`` entries of these, from each as its share of them is."""
        total = sum(len(self.of(identity)) for identity in identities)
        for identity in identities:
            queue = self.of(identity)
            yield from queue.sample(-(-count * len(queue) // total) if total > count else total)
