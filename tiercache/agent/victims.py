"""Which extents go: SIEVE by identity, or by what is announced to be read. Owned by the event loop.

What is returned here counts as leaving (``Ledger.leave``) until it has gone or the caller says that
it stays, so that those who evict at once never take the same bytes below somebody's ``min``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tiercache import records
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.index import Index
from tiercache.policy.eviction import VICTIM_SHARE, Candidate, of_pack, to_go
from tiercache.policy.ledger import NOBODY, Ledger
from tiercache.policy.order import Orders
from tiercache.policy.quotas import Queues, Quotas
from tiercache.ports import SharedState

# While an order is announced, victims are the best of so many extents, or of packs with so many
# objects: ~5 ms and ~20 ms of the event loop, for a share of them (VICTIM_SHARE) at a time.
LOOKED_AT_EXTENTS = 4096
LOOKED_AT_MEMBERS = 65536


class Victims:
    """All live extents in the order in which they may go.

    ``pass_on`` charges an extent to another identity where that has room, and says whether it did.
    """

    def __init__(
        self,
        *,
        index: Index,
        state: SharedState,
        ledger: Ledger,
        quotas: Quotas,
        live: Mapping[int, ExtentState],
        pass_on: Callable[[ExtentState, str], bool],
    ) -> None:
        self._index = index
        self._state = state
        self._ledger = ledger
        self._quotas = quotas
        self._live = live
        self._pass_on = pass_on
        self._queues = Queues()
        # Whose hits leave this mark; set by who gives the marks out.
        self.reader_of: Callable[[int], str] = lambda _: NOBODY
        # What is to be read, and when; jobs open and close orders.
        self.orders = Orders()
        # While there are some: victims found by the last looks, packs that refused to go since, and
        # the objects of packs.
        self._to_go: dict[str, list[int]] = {}
        self._refused: set[int] = set()
        self._members: dict[int, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, extent_id: int) -> bool:
        return extent_id in self._queues

    # -- the queues -------------------------------------------------------------------------

    def _group(self, identity: str) -> str:
        return identity if self._quotas.in_force else NOBODY

    def insert(self, state: ExtentState, *, survivors: bool = False) -> None:
        """Add as the newest; a pack of ``survivors`` stands where they stood."""
        if survivors:
            self._queues.insert_passed(state.id, self._group(state.identity))
        else:
            self._queues.insert(state.id, self._group(state.identity))

    def remove(self, state: ExtentState) -> None:
        self._queues.remove(state.id, self._group(state.identity))
        self._members.pop(state.id, None)

    def move(self, state: ExtentState, identity: str) -> None:
        """Take note that the extent, not yet said to be so, is another identity's."""
        self._queues.move(state.id, self._group(state.identity), self._group(identity))

    def regroup(self) -> None:
        """Take note that quotas have come into force, or are no more."""
        self._queues.regroup(lambda extent_id: self._group(self._live[extent_id].identity))
        self._to_go = {}

    def forget_orders(self) -> None:
        """Let go of what only orders need, where none is left."""
        if not self.orders:
            self._to_go, self._members = {}, {}
            self._refused.clear()

    def refused(self, victims: Sequence[ExtentState]) -> None:
        """Take note that none of these agreed to go; of none: that one did."""
        if victims:
            self._refused.update(victim.id for victim in victims)
        else:
            self._refused.clear()

    def is_evictable(self, extent_id: int) -> bool:
        state = self._live[extent_id]
        return (
            not state.busy
            and not state.pinned
            and state.sealed
            and not self._ledger.is_leaving(extent_id)
        )

    # -- choosing ---------------------------------------------------------------------------

    def for_node(self, worker: str, wanted_bytes: int) -> list[ExtentState]:
        """Return the next victims for the sake of ``worker``; of packs one at most, since copying
        one forward needs the headroom."""
        return self._collect(wanted_bytes, lambda: self._next_for(worker))

    def of_own(
        self, identity: str, worker: str, wanted_bytes: int
    ) -> tuple[int, list[ExtentState]]:
        """Return what ``identity`` gives up of its own: the bytes that have passed on to others,
        who read them last, and the victims."""
        if self.orders:
            return 0, self._collect(wanted_bytes, lambda: self._next_of(identity, worker))
        passed_bytes = 0

        def next_own() -> int | None:
            nonlocal passed_bytes
            if self._is_all_pinned(identity):
                return None
            queue = self._queues.of(self._group(identity))
            for _ in range(2 * len(queue)):
                entry = queue.step()
                if not self.is_evictable(entry):
                    continue
                state, charge = self._live[entry], self._ledger.charge_of(entry)
                mark = 0 if state.is_pack else self._state.take_visited(state.slot)
                if not mark and self._quotas.may_evict(worker, identity, charge):
                    return entry
                if not mark:
                    queue.step_back(entry)
                    return None
                reader = self.reader_of(mark)
                if reader not in (NOBODY, identity) and self._pass_on(state, reader):
                    passed_bytes += charge
                    if passed_bytes >= wanted_bytes:
                        return None
            return None

        victims = self._collect(wanted_bytes, next_own)  # which is what counts them
        return passed_bytes, victims

    def _collect(self, wanted_bytes: int, choose: Callable[[], int | None]) -> list[ExtentState]:
        victims: list[ExtentState] = []
        found_bytes = 0
        while found_bytes < wanted_bytes:
            victim = choose()
            if victim is None:
                break
            state = self._live[victim]
            if state.is_pack and any(other.is_pack for other in victims):
                break
            self._ledger.leave(victim, True)
            victims.append(state)
            found_bytes += self._ledger.charge_of(victim)
        return victims

    def _next_for(self, worker: str) -> int | None:
        """Return who goes for ``worker``: of those above ``soft`` first, then of all that have more
        than their ``min``, of the worker's own else."""
        if not self._quotas.in_force:
            return self._next_of(NOBODY, NOBODY)
        identities = self._queues.identities()
        for identity in self._quotas.over_soft(identities):
            victim = self._next_of(identity, worker)
            if victim is not None:
                return victim
        spare = [i for i in identities if self._quotas.spare_bytes(i) > 0]
        victim = (
            self._announced(NOBODY, spare, worker) if self.orders else self._fair(spare, worker)
        )
        if victim is None and worker in identities:
            victim = self._next_of(worker, worker)
        return self._any_of(spare, worker) if victim is None else victim

    def _fair(self, identities: Sequence[str], worker: str) -> int | None:
        left = list(identities)
        while left:
            identity = self._queues.nearest(left)
            victim = self._next_of(identity, worker)
            if victim is not None:
                return victim
            left.remove(identity)
        return None

    def _next_of(self, identity: str, worker: str) -> int | None:
        """Return the next of this identity, None where it is too large for what ``worker`` may take
        of it."""
        group = self._group(identity)
        if self.orders:
            return self._announced(group, [group], worker)
        if self._is_all_pinned(identity):
            return None
        queue = self._queues.of(group)
        victim = queue.victim(take_visited=self._take_visited, evictable=self.is_evictable)
        if victim is None or self._allowed(victim, worker):
            return victim
        queue.step_back(victim)
        return None

    def _is_all_pinned(self, identity: str) -> bool:
        """Whether there is nothing to look for: a look at all that is pinned would find that out
        at the cost of as many steps."""
        account = self._ledger.account(identity)
        return self._quotas.in_force and account.pinned_bytes >= account.live_bytes

    def _allowed(self, extent_id: int, worker: str) -> bool:
        if not self._quotas.in_force:
            return True
        identity = self._live[extent_id].identity
        return self._quotas.may_evict(worker, identity, self._ledger.charge_of(extent_id))

    def _any_of(self, identities: Sequence[str], worker: str) -> int | None:
        """Return any that may go, where those whose turn it is are too large: the last resort, for
        it looks at all."""

        def evictable(extent_id: int) -> bool:
            return self.is_evictable(extent_id) and self._allowed(extent_id, worker)

        for identity in identities:
            queue = self._queues.of(identity)
            victim = queue.victim(take_visited=self._take_visited, evictable=evictable)
            if victim is not None:
                return victim
        return None

    def _take_visited(self, extent_id: int) -> bool:
        state = self._live[extent_id]
        if state.is_pack:
            # What was visited in a pack is copied forward instead of keeping the whole.
            return False
        return self._state.take_visited(state.slot) != 0

    # -- while an order is announced --------------------------------------------------------

    def _announced(self, key: str, groups: Sequence[str], worker: str) -> int | None:
        """Return the best to go of these groups; ``key`` names their list."""
        found = self._to_go.setdefault(key, [])
        for _ in range(2):
            while found:
                victim = found.pop()
                known = victim in self._live and self.is_evictable(victim)
                if known and self._allowed(victim, worker):
                    return victim
            found.extend(self._look(groups))
        return None

    def _look(self, groups: Sequence[str]) -> list[int]:
        """Find the best victims of the extents that the hands come to, the best last."""
        candidates: list[Candidate] = []
        looked = 0
        for extent_id in self._queues.sample(groups, LOOKED_AT_EXTENTS):
            if looked >= LOOKED_AT_MEMBERS:
                break
            if self.is_evictable(extent_id):
                candidate, cost = self._candidate(self._live[extent_id])
                candidates.append(candidate)
                looked += cost
        first = to_go(candidates, refused=self._refused)
        return first[: max(1, len(first) // VICTIM_SHARE)][::-1]

    def _candidate(self, state: ExtentState) -> tuple[Candidate, int]:
        """Return the extent as eviction sees it, and how many names had to be looked up."""
        if state.is_pack:
            members = self._members_of(state)
            return of_pack(state.id, members, self.orders), len(members)
        next_use = self.orders.distance(state.owner)
        if next_use is None:
            visited = self._take_visited(state.id)
            return Candidate(state.id, visited=visited), 1
        return Candidate(state.id, next_use, self.orders.is_near(state.owner)), 1

    def _members_of(self, state: ExtentState) -> list[bytes]:
        """Return the names of a sealed pack's objects, also of those that were replaced since."""
        members = self._members.get(state.id)
        if members is None:
            prefix = records.member_prefix(state.id)
            members = self._members[state.id] = [digest for _, digest in self._index.scan(prefix)]
        return members
