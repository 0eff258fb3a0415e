"""Space on the cache device: reserving it, giving it out as extents, and taking it back.

Everything on the device belongs to one ``ExtentState`` here or lies in the trash waiting for its
last reader. Capacity is reserved before a byte is written; where there is none, SIEVE names an
extent to evict. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass

from tiercache import records
from tiercache.agent.index import Index
from tiercache.agent.pins import Pins
from tiercache.errors import CacheFull
from tiercache.policy.eviction import (
    PROBATION_SHARE,
    VICTIM_SHARE,
    Candidate,
    Probation,
    Sieve,
    of_pack,
    to_go,
)
from tiercache.policy.ledger import Ledger
from tiercache.policy.order import Orders
from tiercache.policy.placement import Placement
from tiercache.ports import ExtentStore, SharedState
from tiercache.records import ExtentRecord
from tiercache.settings import FreeSpaceRatio, Limit
from tiercache.units import MIB

# The device rounds every file up to a block and keeps its own tree of blocks (ext4: 4 KiB for
# ~340 fragments); two blocks an extent cover both.
EXTENT_OVERHEAD_BYTES = 8192
# The shared mapping 1,028 KiB, the leases 260, two logs of 256, two audit logs of 64, the policy
# that was applied and its successor 64 each, overrides and calibration 16 each and as much for
# their successors, superblock and lock 8: 2,128 KiB.
FIXED_OVERHEAD_BYTES = 2 * MIB + MIB // 4
# Clients let go of evicted extents when the epoch moves: at once when they read, else when their
# janitor looks (every 0.1 s). Waiting longer than this means that somebody really holds on.
HELD_WAIT_S = 3.0
HELD_POLL_S = 0.005
# While readers let go of less than this share of the capacity, another extent is evicted rather
# than waited for: a full cache then turns over in 64 janitor rounds (6 s) whatever is held.
COMING_SHARE = 64
# Small files need inodes; leave the file system some for others.
MIN_FREE_INODES = 1000
# A reading of the file system's free space holds for this many reserved bytes, and for one tick,
# where this much and more is free: asking for each small object costs as much as writing it.
TRUSTED_BYTES = 16 * MIB
AMPLE_BYTES = 1024 * MIB
# While an order is announced, victims are the best of so many extents, or of packs with so many
# objects: ~5 ms and ~20 ms of the event loop, for a share of them (VICTIM_SHARE) at a time.
LOOKED_AT_EXTENTS = 4096
LOOKED_AT_MEMBERS = 65536


@dataclass(slots=True, kw_only=True)
class ExtentState:
    """One live extent. ``busy`` counts fills, appends and copies that forbid eviction now.
    ``used_bytes`` is the append position of a pack; ``slots`` how many visited bytes it has."""

    id: int
    slot: int
    slots: int
    length_bytes: int
    owner: bytes
    data_id: int
    first_page: int
    busy: int = 0
    used_bytes: int = 0
    pinned: bool = False
    sealed: bool = True

    @property
    def is_pack(self) -> bool:
        return not self.owner


# A pack of 64 MiB has a visited byte for each MiB, so that copying forward is worth its reads.
PACK_SLOTS = 64


class Slots:
    """Visited bytes: singles from the lower half, runs of PACK_SLOTS from the upper."""

    def __init__(self, count: int) -> None:
        half = count // 2
        self._next_single, self._end_single = 1, half
        self._next_run, self._end_run = half, half + (count - half) // PACK_SLOTS * PACK_SLOTS
        self._free: dict[int, set[int]] = {1: set(), PACK_SLOTS: set()}
        self._half = half

    def claim(self, slot: int) -> None:
        """Note a slot that a stored extent already has."""
        if slot < self._half:
            while self._next_single <= slot:
                self._free[1].add(self._next_single)
                self._next_single += 1
            self._free[1].remove(slot)
        else:
            while self._next_run <= slot:
                self._free[PACK_SLOTS].add(self._next_run)
                self._next_run += PACK_SLOTS
            self._free[PACK_SLOTS].remove(slot)

    def take(self, run: int) -> int:
        """Raises CacheFull when all are in use (half a million extents)."""
        if self._free[run]:
            return self._free[run].pop()
        if run == 1 and self._next_single < self._end_single:
            self._next_single += 1
            return self._next_single - 1
        if run == PACK_SLOTS and self._next_run < self._end_run:
            self._next_run += PACK_SLOTS
            return self._next_run - PACK_SLOTS
        raise CacheFull("all extent slots are in use", remedy="use a larger share of large objects")

    def give(self, slot: int, run: int) -> None:
        self._free[run].add(slot)


class Space:
    """Ledger, extents and eviction."""

    def __init__(
        self,
        *,
        index: Index,
        extents: ExtentStore,
        state: SharedState,
        pins: Pins,
        limit: Limit,
    ) -> None:
        # Constant after construction
        self._index = index
        self._extents = extents
        self._state = state
        self._pins = pins
        self._limit = limit
        self._free_ratio = limit.ratio if isinstance(limit, FreeSpaceRatio) else 0.0
        _, total, _ = extents.free()
        capacity = total if isinstance(limit, FreeSpaceRatio) else limit.capacity_bytes
        self.capacity_bytes = capacity
        self.placement = Placement.of_capacity(capacity)
        # Copying a pack forward needs room while the old one still stands; the rest is for the
        # index, which grows by a few pages with every commit.
        self.headroom_bytes = self.placement.pack_bytes + max(MIB, capacity // 256)
        self.ledger = Ledger(capacity)
        # Owned by the event loop
        self.live: dict[int, ExtentState] = {}
        self._sieve = Sieve()
        self._probation = Probation(capacity // PROBATION_SHARE)
        # What is to be read, and when; jobs open and close orders.
        self.orders = Orders()
        # While there are some: victims found by the last look, packs that refused to go since, and
        # the objects of packs.
        self._to_go: list[int] = []
        self._refused: set[int] = set()
        self._members: dict[int, list[bytes]] = {}
        self._slots = Slots(state.slots_count)
        self._next_id = 1
        self._reclaiming = asyncio.Lock()
        # Why the file system, not the limit, keeps the cache small; empty where it does not.
        self.shortage = ""
        # Discards that the device refused; tried again, and charged until then.
        self._refused_discards: set[int] = set()
        # Of all reservations that wait for room, so that they wait together.
        self._wanted_bytes = 0
        # When extents were discarded that may be held by readers, in seconds of the loop's clock.
        self._forgotten_s: dict[int, float] = {}
        self._trusted_bytes = 0
        self.evicted_extents = 0
        self.evicted_bytes = 0
        # Set by the engine: how the contents of an extent leave the index.
        self.drop_contents: Callable[[ExtentState], Coroutine[None, None, bool]]

    # -- start ------------------------------------------------------------------------------

    def load(self) -> None:
        """Take over what a former agent left: known extents are charged, unknown files go to the
        trash, records without a file are dropped by the engine (``lost``)."""
        raw = self._index.get(records.META_NEXT_ID)
        self._next_id = int.from_bytes(raw, "big") if raw else 1
        on_disk = self._extents.scan()
        for key, value in self._index.scan(b"x"):
            extent_id, record = records.extent_id_of(key), records.decode_extent(value)
            state = self._adopt(extent_id, record)
            if extent_id in on_disk:
                self.ledger.charge(extent_id, on_disk.pop(extent_id) + EXTENT_OVERHEAD_BYTES)
            self._next_id = max(self._next_id, extent_id + 1, state.data_id + 1)
        for orphan in on_disk:
            self._extents.discard(orphan)
        self.reap()
        self.measure_overhead()

    def _adopt(self, extent_id: int, record: ExtentRecord) -> ExtentState:
        self._slots.claim(record.slot)
        state = ExtentState(
            id=extent_id,
            slot=record.slot,
            slots=PACK_SLOTS if record.is_pack else 1,
            length_bytes=record.length_bytes,
            owner=record.owner,
            data_id=record.data_id,
            first_page=record.first_page,
            used_bytes=record.length_bytes if record.is_pack else 0,
        )
        self.live[extent_id] = state
        self._sieve.insert(extent_id)
        return state

    def lost(self) -> list[ExtentState]:
        """Return extents that the index knows and the device does not hold."""
        return [s for s in self.live.values() if not self.ledger.charge_of(s.id)]

    def measure_overhead(self) -> None:
        """Charge the index file at what it occupies now; look at the device anew."""
        self._trusted_bytes = 0
        self.ledger.overhead_bytes = FIXED_OVERHEAD_BYTES + self._index.size_bytes()

    # -- giving out -------------------------------------------------------------------------

    def next_id(self) -> int:
        """Return a number never used before in this directory, for extents and data."""
        number = self._next_id
        self._next_id += 1
        self._index.put(records.META_NEXT_ID, self._next_id.to_bytes(8, "big"))
        return number

    async def reserve(self, count: int, *, use_headroom: bool = False) -> None:
        """Set ``count`` bytes aside, evicting as needed. Raises CacheFull where nothing more can
        be evicted (pinned, busy, or held open by readers)."""
        if self._try_reserve(count, use_headroom):
            return
        if use_headroom:
            raise CacheFull("the headroom of the cache is used up")
        self._wanted_bytes += count
        try:
            async with self._reclaiming:
                while not self._try_reserve(count, use_headroom):
                    if not await self._reclaim():
                        raise CacheFull(
                            f"no room for {count} bytes in a cache of {self.capacity_bytes}",
                            remedy="unpin something, close unused handles, or raise cache.capacity",
                        )
        finally:
            self._wanted_bytes -= count

    def _try_reserve(self, count: int, use_headroom: bool) -> bool:
        headroom = 0 if use_headroom else self.headroom_bytes
        self.ledger.overhead_bytes = FIXED_OVERHEAD_BYTES + self._index.size_bytes()
        if self.ledger.room_bytes < count + headroom:
            return False
        if count > self._trusted_bytes and not self._device_has(count + headroom):
            return False
        self._trusted_bytes = max(0, self._trusted_bytes - count)
        return self.ledger.reserve(count)

    def _device_has(self, count: int) -> bool:
        """Ask the file system whether it can give ``count`` bytes and leave the rest its share."""
        available, total, inodes = self._extents.free()
        # Reserved bytes are not on the device yet, so the device still counts them as free.
        floor = int(total * self._free_ratio) + self.ledger.reserved_bytes
        if available - count < floor or inodes < MIN_FREE_INODES:
            what = "inodes" if inodes < MIN_FREE_INODES else f"{available} bytes"
            if not self._free_ratio:
                self.shortage = f"the file system has only {what} left for the cache"
            return False
        self.shortage = ""
        ample = available - floor > AMPLE_BYTES
        self._trusted_bytes = TRUSTED_BYTES if ample else 0
        return True

    def new_extent(
        self,
        *,
        length: int,
        owner: bytes = b"",
        data_id: int = 0,
        first_page: int = 0,
        survivors: bool = False,
    ) -> ExtentState:
        """Create a file and its state. Raises OSError from the device. The caller charges it.

        A pack of ``survivors`` stands in the queue where they stood, not among the new.
        """
        slots = 1 if owner else PACK_SLOTS
        slot = self._slots.take(slots)
        extent_id = self.next_id()
        try:
            self._extents.create(extent_id, length)
        except OSError:
            self._slots.give(slot, slots)
            raise
        state = ExtentState(
            id=extent_id,
            slot=slot,
            slots=slots,
            length_bytes=length,
            owner=owner,
            data_id=data_id,
            first_page=first_page,
        )
        for index in range(slot, slot + slots):
            self._state.take_visited(index)
        self.live[extent_id] = state
        if survivors:
            self._sieve.insert_passed(extent_id)
        else:
            self._sieve.insert(extent_id)
            self._probation.enter(extent_id)
        self.ledger.charge(extent_id, EXTENT_OVERHEAD_BYTES)
        self.put_record(state)
        return state

    def put_record(self, state: ExtentState) -> None:
        """Put the extent's record into the index."""
        self._index.put_extent(
            state.id,
            ExtentRecord(
                slot=state.slot,
                length_bytes=state.length_bytes,
                owner=state.owner,
                data_id=state.data_id,
                first_page=state.first_page,
            ),
        )

    def settle(self, state: ExtentState, reserved: int) -> None:
        """Turn a reservation for this extent into what the device allocated."""
        self.ledger.release(reserved)
        if state.id in self.live:
            allocated = self._extents.allocated(state.id)
            self.ledger.charge(state.id, allocated + EXTENT_OVERHEAD_BYTES)
        for extent_id in self._probation.advance(reserved):
            # The marks of announced extents tell where their reader stands.
            if extent_id in self.live and not self.orders:
                self.clear_visited(self.live[extent_id])

    # -- taking back ------------------------------------------------------------------------

    async def _reclaim(self) -> bool:
        """Make progress towards what is wanted; return False where none is possible."""
        if self.reap():
            return True
        missing = max(1, self._wanted_bytes + self.headroom_bytes - self.ledger.room_bytes)
        coming = self._coming_bytes()
        goal = max(missing, self.capacity_bytes // COMING_SHARE) if coming else missing
        if coming < goal and await self._evict_some(goal - coming):
            return True
        if not coming:
            return False
        await asyncio.sleep(HELD_POLL_S)
        return True

    def _coming_bytes(self) -> int:
        """Return the bytes of evicted extents that their readers have yet to let go of. What is
        held for longer than HELD_WAIT_S is not waited for: others are evicted in its place."""
        since = asyncio.get_running_loop().time() - HELD_WAIT_S
        held = self._extents.discarded()
        self._forgotten_s = {i: at for i, at in self._forgotten_s.items() if i in held}
        return sum(held[i] for i, at in self._forgotten_s.items() if at > since)

    async def _evict_some(self, wanted_bytes: int) -> bool:
        """Evict so many bytes of victims with one commit; False where none agrees to go in two
        rounds."""
        for _ in range(2 * len(self._sieve)):
            victims = self._victims(wanted_bytes)
            if not victims:
                return False
            outcomes = await asyncio.gather(
                *(self._evict_idle(victim) for victim in victims), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            if any(outcomes):
                self._refused.clear()
                return True
            self._refused.update(victim.id for victim in victims)
        return False

    async def _evict_idle(self, state: ExtentState) -> bool:
        """Evict, unless a fill has begun in it since it was chosen."""
        if state.busy or state.id not in self.live:
            return False
        return await self.evict(state)

    def _victims(self, wanted_bytes: int) -> list[ExtentState]:
        """Return the next victims; of packs one at most, since copying one forward needs the
        headroom."""
        victims: dict[int, ExtentState] = {}
        found_bytes = 0
        while found_bytes < wanted_bytes:
            victim = self._next_victim(victims.keys())
            if victim is None:
                break
            state = self.live[victim]
            if state.is_pack and any(other.is_pack for other in victims.values()):
                break
            victims[victim] = state
            found_bytes += self.ledger.charge_of(victim)
        return list(victims.values())

    def _next_victim(self, taken: Collection[int]) -> int | None:
        def evictable(extent_id: int) -> bool:
            return extent_id not in taken and self._evictable(extent_id)

        if not self.orders:
            return self._sieve.victim(take_visited=self._take_visited, evictable=evictable)
        for _ in range(2):
            while self._to_go:
                victim = self._to_go.pop()
                if victim in self.live and evictable(victim):
                    return victim
            self._look_for_victims(evictable)
        return None

    def _look_for_victims(self, evictable: Callable[[int], bool]) -> None:
        """Find the best victims of the extents that the hand comes to, by what is announced."""
        candidates: list[Candidate] = []
        looked = 0
        for extent_id in self._sieve.sample(LOOKED_AT_EXTENTS):
            if looked >= LOOKED_AT_MEMBERS:
                break
            if evictable(extent_id):
                candidate, cost = self._candidate(self.live[extent_id])
                candidates.append(candidate)
                looked += cost
        first = to_go(candidates, refused=self._refused)
        self._to_go = first[: max(1, len(first) // VICTIM_SHARE)][::-1]

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

    def forget_orders(self) -> None:
        """Let go of what only orders need, where none is left."""
        if not self.orders:
            self._to_go, self._members = [], {}
            self._refused.clear()

    def _take_visited(self, extent_id: int) -> bool:
        state = self.live[extent_id]
        if state.is_pack:
            # What was visited in a pack is copied forward instead of keeping the whole.
            return False
        return self._state.take_visited(state.slot)

    def _evictable(self, extent_id: int) -> bool:
        state = self.live[extent_id]
        return not state.busy and not state.pinned and state.sealed

    async def evict(self, state: ExtentState) -> bool:
        """Drop the extent's contents from the index, then the file. Returns False where the
        contents chose to stay (a pack that is mostly wanted)."""
        state.busy += 1
        try:
            dropped = await self.drop_contents(state)
        finally:
            state.busy -= 1
        if dropped:
            freed = self.ledger.charge_of(state.id)
            self.forget(state)
            self.evicted_extents += 1
            self.evicted_bytes += freed
        return dropped

    def forget(self, state: ExtentState) -> None:
        """Discard an extent whose contents are out of the index already."""
        if self.live.pop(state.id, None) is None:
            return
        self._sieve.remove(state.id)
        self._members.pop(state.id, None)
        self._slots.give(state.slot, state.slots)
        self._forgotten_s[state.id] = asyncio.get_running_loop().time()
        try:
            self._discard(state.id)
        except OSError:
            self._refused_discards.add(state.id)
            return
        with contextlib.suppress(OSError):  # the next tick tries again
            self.reap()

    def _discard(self, extent_id: int) -> None:
        """Take the file out of readers' reach, and tell them. Raises OSError."""
        try:
            self._extents.discard(extent_id)
        finally:
            # Behind the rename: a reader that looks when the epoch moves, and finds the file still
            # in its place, holds it until the epoch moves again.
            self._state.bump_epoch()

    def reap(self) -> int:
        """Take back what no reader holds any more; return freed bytes. Raises OSError."""
        freed = 0
        while self._refused_discards:
            extent_id = next(iter(self._refused_discards))
            self._discard(extent_id)
            self._refused_discards.remove(extent_id)
        for extent_id, _ in self._extents.reap():
            freed += self.ledger.discharge(extent_id)
        for extent_id, allocated in self._extents.discarded().items():
            if extent_id not in self.live:
                self.ledger.charge(extent_id, allocated + EXTENT_OVERHEAD_BYTES)
        return freed

    def visited_in(self, state: ExtentState, offset: int) -> bool:
        """Return whether the granule of a pack that holds ``offset`` was read since last asked
        (without clearing)."""
        granule = offset * PACK_SLOTS // state.length_bytes
        return self._state.is_visited(state.slot + min(granule, PACK_SLOTS - 1))

    def clear_visited(self, state: ExtentState) -> None:
        for slot in range(state.slot, state.slot + state.slots):
            self._state.take_visited(slot)
