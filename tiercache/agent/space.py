"""Space on the cache device: reserving it, giving it out as extents, and taking it back.

Everything on the device belongs to one ``ExtentState`` here or lies in the trash waiting for its
last reader. Capacity is reserved before a byte is written, the device's and that of the identity
that pays; where there is none, ``Victims`` names an extent to evict. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping

from tiercache import records, work
from tiercache.agent.books import Books
from tiercache.agent.extent_state import PACK_SLOTS, ExtentState, Slots
from tiercache.agent.index import Index
from tiercache.agent.victims import Victims
from tiercache.errors import CacheFull
from tiercache.policy.eviction import PROBATION_SHARE, Probation
from tiercache.policy.ledger import NOBODY, Ledger
from tiercache.policy.placement import Placement
from tiercache.policy.qos import DEFAULT_IDENTITY, Capacity
from tiercache.policy.quotas import Quotas
from tiercache.ports import ExtentStore, SharedState
from tiercache.records import ExtentRecord
from tiercache.settings import FreeSpaceRatio, Limit
from tiercache.units import MIB, format_bytes

# The device rounds every file up to a block and keeps its own tree of blocks (ext4: 4 KiB for
# ~340 fragments); two blocks an extent cover both.
EXTENT_OVERHEAD_BYTES = 8192
# The device gives a file whole blocks.
BLOCK_BYTES = 4096
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
# Who is above a ``max`` that was lowered gives up this share of the capacity a second, and a reader
# evicts for it no more than that at a time: ~50 ms of the event loop for 128 extents.
GRADUAL_SHARE = 64
# Small files need inodes; leave the file system some for others.
MIN_FREE_INODES = 1000
# A reading of the file system's free space holds for this many reserved bytes, and for one tick,
# where this much and more is free: asking for each small object costs as much as writing it.
TRUSTED_BYTES = 16 * MIB
AMPLE_BYTES = 1024 * MIB


def whole_blocks(count: int) -> int:
    """Return what the device gives for so many bytes."""
    return -(-count // BLOCK_BYTES) * BLOCK_BYTES


class Space:
    """Ledger, extents and eviction."""

    def __init__(
        self,
        *,
        index: Index,
        extents: ExtentStore,
        state: SharedState,
        limit: Limit,
    ) -> None:
        # Constant after construction
        self._index = index
        self._extents = extents
        self._state = state
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
        self.quotas = Quotas(self.ledger, self.placement)
        self.books = Books(index, self.ledger, self.quotas)
        # Owned by the event loop
        self.live: dict[int, ExtentState] = {}
        self.victims = Victims(
            index=index,
            state=state,
            ledger=self.ledger,
            quotas=self.quotas,
            live=self.live,
            pass_on=self.pass_on,
        )
        self._probation = Probation(capacity // PROBATION_SHARE)
        self._slots = Slots(state.slots_count)
        self._next_id = 1
        self._reclaiming = asyncio.Lock()
        # Of those who make room below their own ``max``.
        self._reclaiming_own: dict[str, asyncio.Lock] = {}
        # One pack is copied forward at a time, since that needs the headroom.
        self._emptying_pack = asyncio.Lock()
        # Why the file system, not the limit, keeps the cache small; empty where it does not.
        self.shortage = ""
        # Discards that the device refused; tried again, and charged until then.
        self._refused_discards: set[int] = set()
        # Of all reservations that wait for room, so that they wait together.
        self._wanted_bytes = 0
        # When extents were discarded that may be held by readers, in seconds of the loop's clock,
        # and whose they were.
        self._forgotten_s: dict[int, tuple[float, str]] = {}
        self._trusted_bytes = 0
        self.evicted_extents = 0
        self.evicted_bytes = 0
        # Set by the contents: how those of an extent leave the index (of ``own``: because of its
        # identity's ``max``), how the open packs of an identity are closed, and what follows when
        # the quotas are others.
        self.drop_contents: Callable[[ExtentState, bool], Coroutine[None, None, bool]]
        self.seal_packs_of: Callable[[str], bool]
        self.quotas_changed: Callable[[], None]

    # -- start ------------------------------------------------------------------------------

    def load(self) -> None:
        """Take over what a former agent left: known extents are charged, unknown files go to the
        trash, records without a file are dropped by the engine (``lost``)."""
        raw = self._index.get(records.META_NEXT_ID)
        self._next_id = int.from_bytes(raw, "big") if raw else 1
        on_disk = self._extents.scan()
        recorded = self.books.recorded()
        for key, value in self._index.scan(b"x"):
            extent_id, record = records.extent_id_of(key), records.decode_extent(value)
            state = self._adopt(extent_id, record)
            if extent_id in on_disk:
                allocated = on_disk.pop(extent_id) + EXTENT_OVERHEAD_BYTES
                self.ledger.charge(extent_id, allocated, state.identity)
            self._next_id = max(self._next_id, extent_id + 1, state.data_id + 1)
        for orphan in on_disk:
            self._extents.discard(orphan)
        self.reap()
        self.measure_overhead()
        self.books.verify(recorded)

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
            identity=record.identity or DEFAULT_IDENTITY,
            used_bytes=record.length_bytes if record.is_pack else 0,
        )
        self.live[extent_id] = state
        self.victims.insert(state)
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

    def payer(self) -> str:
        """Return whom the work at hand is charged to; the default one where nobody has a bound."""
        identity = work.current.get().identity if self.quotas.in_force else ""
        return identity or DEFAULT_IDENTITY

    async def reserve(
        self, count: int, *, identity: str | None = None, use_headroom: bool = False
    ) -> None:
        """Set ``count`` bytes aside for an identity (None: the payer), evicting as needed.

        Raises CacheFull where nothing more can be evicted: pinned, busy, held open by readers, or
        what others are sure of; or where the identity's ``max`` forbids it.
        """
        who = self.payer() if identity is None else identity
        while not self._try_reserve(count, who, use_headroom):
            if use_headroom:
                raise CacheFull("the headroom of the cache is used up")
            if self.quotas.lacking_bytes(who, count):
                await self._make_own_room(who, count)
            elif await self._make_room(who, count):
                return

    async def reserve_in(self, state: ExtentState, count: int) -> int:
        """Set bytes aside for a write into a large extent, in whole blocks, at the expense of whom
        it is charged to; ``settle`` ends that. Where that identity has reached its ``max``, the
        extent passes on to who works, if that one has room. Returns what was reserved. Raises
        CacheFull. The caller holds the extent ``busy``."""
        count = whole_blocks(count)
        worker = self.payer()
        if state.identity != worker and self.quotas.lacking_bytes(state.identity, count):
            # Nobody's own goes for what others read of it, but for what it has pinned itself.
            if not self.pass_on(state, worker) and not state.pinned:
                raise self._denial(state.identity, count)
        state.writers += 1
        try:
            await self.reserve(count, identity=state.identity)
        finally:
            state.writers -= 1
        return self.begin_write(state, count)

    def begin_write(self, state: ExtentState, count: int) -> int:
        """Take a reservation of whom a large extent is charged to for a write into it, until
        ``settle``."""
        state.writers += 1
        if state.pinned and not self.quotas.may_pin(state.identity, count):
            self.set_pinned(state, False)
        self.ledger.hold(state.id, count)
        return count

    def most_bytes(self) -> int:
        """Return how much of the cache the payer may come to hold."""
        ceiling = self.quotas.ceiling_bytes(self.payer())
        return self.capacity_bytes if ceiling is None else min(self.capacity_bytes, ceiling)

    def free_bytes(self) -> int:
        """Return what the payer may take without evicting; negative where bounds were lowered."""
        who = self.payer()
        ceiling, free = self.quotas.ceiling_bytes(who), self.ledger.room_bytes - self.headroom_bytes
        return free if ceiling is None else min(free, ceiling - self.ledger.account(who).used_bytes)

    def _try_reserve(self, count: int, identity: str, use_headroom: bool) -> bool:
        headroom = 0 if use_headroom else self.headroom_bytes
        self.ledger.overhead_bytes = FIXED_OVERHEAD_BYTES + self._index.size_bytes()
        if self.ledger.room_bytes < count + headroom:
            return False
        if self.quotas.lacking_bytes(identity, count, use_headroom=use_headroom):
            return False
        if count > self._trusted_bytes and not self._device_has(count + headroom):
            return False
        self._trusted_bytes = max(0, self._trusted_bytes - count)
        return self.ledger.reserve(count, identity)

    async def _make_room(self, identity: str, count: int) -> bool:
        """Reserve, once extents have gone; False where the identity's own ``max`` has come in
        between. Raises CacheFull."""
        self._wanted_bytes += count
        try:
            async with self._reclaiming:
                while not self._try_reserve(count, identity, False):
                    if self.quotas.lacking_bytes(identity, count):
                        return False
                    if not await self._reclaim():
                        raise CacheFull(
                            f"no room for {count} bytes in a cache of {self.capacity_bytes}",
                            remedy="unpin something, close unused handles, or raise cache.capacity",
                        )
        finally:
            self._wanted_bytes -= count
        return True

    async def _make_own_room(self, identity: str, count: int) -> None:
        """Have an identity give up as much of its own as it takes, within HELD_WAIT_S. Raises
        CacheFull."""
        gradual_bytes = self.capacity_bytes // GRADUAL_SHARE
        clock = asyncio.get_running_loop().time
        async with self._reclaiming_own.setdefault(identity, asyncio.Lock()):
            until_s = clock() + HELD_WAIT_S
            while missing := self.quotas.lacking_bytes(identity, count):
                too_much = count > (self.quotas.ceiling_bytes(identity) or 0)
                too_far = missing > count + gradual_bytes or clock() > until_s
                if too_much or too_far or not await self._reclaim_own(identity, missing):
                    raise self._denial(identity, count)

    def _denial(self, identity: str, count: int) -> CacheFull:
        used = self.ledger.account(identity).used_bytes
        largest = self.quotas.of(identity).max_bytes or 0
        message = (
            f"no room for {format_bytes(count)}: {identity!r} holds {format_bytes(used)} of its "
            f"max of {format_bytes(largest)}"
        )
        self.books.denied(identity, count, message)
        return CacheFull(
            message, remedy=f"tiercache quota set {identity} max=…, or unpin something"
        )

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
        identity: str,
        owner: bytes = b"",
        data_id: int = 0,
        first_page: int = 0,
        survivors: bool = False,
    ) -> ExtentState:
        """Create a file and its state. Raises OSError from the device. The caller has reserved
        EXTENT_OVERHEAD_BYTES for ``identity``, which this takes over unless it raises.

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
            identity=identity,
        )
        for index in range(slot, slot + slots):
            self._state.take_visited(index)
        self.live[extent_id] = state
        self.victims.insert(state, survivors=survivors)
        if not survivors:
            self._probation.enter(extent_id)
        self.ledger.release(EXTENT_OVERHEAD_BYTES, identity)
        self.ledger.charge(extent_id, EXTENT_OVERHEAD_BYTES, identity)
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
                identity="" if state.identity == DEFAULT_IDENTITY else state.identity,
            ),
        )

    def drop_record(self, state: ExtentState) -> None:
        """Take the extent's record out of the index: it is nobody's from that commit on, though its
        bytes count until they are free."""
        self._index.put(records.extent_key(state.id), None)
        self.ledger.gone(state.id)

    def settle(self, state: ExtentState, reserved: int) -> None:
        """Turn a reservation for this extent into what the device allocated."""
        self.ledger.hold(state.id, -reserved)
        self.ledger.release(reserved, state.identity)
        if not state.is_pack:
            state.writers -= 1
        if state.id in self.live:
            allocated = self._extents.allocated(state.id)
            self.ledger.charge(state.id, allocated + EXTENT_OVERHEAD_BYTES)
        for extent_id in self._probation.advance(reserved):
            # The marks of announced extents tell where their reader stands.
            if extent_id in self.live and not self.victims.orders:
                self._end_probation(self.live[extent_id])

    def _end_probation(self, state: ExtentState) -> None:
        """Forget what an extent was read while it was new, but for what others read of it."""
        for slot in range(state.slot, state.slot + state.slots):
            mark = self._state.visited_by(slot)
            if mark and self.victims.reader_of(mark) in (NOBODY, state.identity):
                self._state.take_visited(slot)

    # -- whose it is ------------------------------------------------------------------------

    def pass_on(self, state: ExtentState, identity: str) -> bool:
        """Charge a large extent to another identity; False where that has no room for it, or
        somebody writes at the expense of the one it is charged to."""
        if state.is_pack or state.pinned or state.writers or self.ledger.is_leaving(state.id):
            return False
        charge = self.ledger.charge_of(state.id)
        if self.quotas.lacking_bytes(identity, charge):
            return False
        self.victims.move(state, identity)
        self.ledger.pass_on(state.id, identity)
        state.identity = identity
        self.put_record(state)
        return True

    def set_pinned(self, state: ExtentState, pinned: bool) -> None:
        state.pinned = pinned
        self.ledger.pin(state.id, pinned)

    def set_quotas(self, capacities: Mapping[str, Capacity]) -> None:
        """Keep to these capacities from now on, by identity; without any, to none.

        Who is above a lowered ``max`` comes below it in the seconds that follow
        (``come_below``); what is pinned above a lowered ``pin_max`` is unpinned at once.
        """
        if capacities == self.quotas.capacities:
            return
        was_in_force = self.quotas.in_force
        self.quotas.replace(capacities)
        if self.quotas.in_force != was_in_force:
            self.victims.regroup()
        self.books.begin()
        self.quotas_changed()

    async def come_below(self) -> None:
        """Have those above their ``max`` give up some of their own. Call it once a second."""
        for identity in self.quotas.over():
            over_bytes = self.quotas.lacking_bytes(identity, 0)
            wanted_bytes = min(over_bytes, self.capacity_bytes // GRADUAL_SHARE)
            async with self._reclaiming_own.setdefault(identity, asyncio.Lock()):
                await self._reclaim_own(identity, wanted_bytes, worker=identity)

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

    async def _reclaim_own(self, identity: str, missing: int, *, worker: str | None = None) -> bool:
        """The same within what one identity holds."""
        if self.reap():
            return True
        who = self.payer() if worker is None else worker
        coming = self._coming_bytes(identity)
        if coming < missing:
            if await self._evict_own(identity, who, missing - coming):
                return True
            if self.seal_packs_of(identity):
                return True
        if not coming:
            return False
        await asyncio.sleep(HELD_POLL_S)
        return True

    def _coming_bytes(self, identity: str | None = None) -> int:
        """Return the bytes of evicted extents, of one identity or of all, that their readers have
        yet to let go of. What is held for longer than HELD_WAIT_S is not waited for: others are
        evicted in its place."""
        since = asyncio.get_running_loop().time() - HELD_WAIT_S
        held = self._extents.discarded()
        self._forgotten_s = {i: at for i, at in self._forgotten_s.items() if i in held}
        return sum(
            held[i]
            for i, (at, whose) in self._forgotten_s.items()
            if at > since and identity in (None, whose)
        )

    async def _evict_some(self, wanted_bytes: int) -> bool:
        """Evict so many bytes of victims with one commit; False where none agrees to go in two
        rounds."""
        for _ in range(2 * len(self.victims)):
            victims = self.victims.for_node(self.payer(), wanted_bytes)
            if not victims:
                return False
            if await self._evict_all(victims):
                return True
        return False

    async def _evict_own(self, identity: str, worker: str, wanted_bytes: int) -> bool:
        """The same of what one identity holds, or pass it on to others."""
        for _ in range(2 * len(self.victims)):
            passed_bytes, victims = self.victims.of_own(identity, worker, wanted_bytes)
            if await self._evict_all(victims, own=True) or passed_bytes:
                return True
            if not victims:
                return False
        return False

    async def _evict_all(self, victims: list[ExtentState], *, own: bool = False) -> bool:
        """Return whether any agreed to go."""
        if not victims:
            return False
        try:
            outcomes = await asyncio.gather(
                *(self._evict_idle(victim, own) for victim in victims), return_exceptions=True
            )
        finally:
            for victim in victims:
                self.ledger.leave(victim.id, False)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        has_gone = any(outcomes)
        self.victims.refused([] if has_gone else victims)
        return has_gone

    async def _evict_idle(self, state: ExtentState, own: bool) -> bool:
        """Evict, unless a fill has begun in it since it was chosen."""
        async with self._emptying_pack if state.is_pack else contextlib.nullcontext():
            if state.busy or state.id not in self.live:
                return False
            return await self.evict(state, own=own)

    async def evict(self, state: ExtentState, *, own: bool = False) -> bool:
        """Drop the extent's contents from the index, then the file. Returns False where the
        contents chose to stay (a pack that is mostly wanted). ``own``: because its identity has
        reached its ``max``."""
        state.busy += 1
        try:
            dropped = await self.drop_contents(state, own)
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
        self.victims.remove(state)
        self.ledger.gone(state.id)
        self._slots.give(state.slot, state.slots)
        now_s = asyncio.get_running_loop().time()
        self._forgotten_s[state.id] = now_s, state.identity
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
                self.ledger.charge(extent_id, allocated + EXTENT_OVERHEAD_BYTES, NOBODY)
                self.ledger.gone(extent_id)
        return freed

    def reader_in(self, state: ExtentState, offset: int) -> int:
        """Return the mark of who last read in the granule of a pack that holds ``offset`` since
        last asked, 0 for nobody (without clearing)."""
        granule = offset * PACK_SLOTS // state.length_bytes
        return self._state.visited_by(state.slot + min(granule, PACK_SLOTS - 1))

    def clear_visited(self, state: ExtentState) -> None:
        for slot in range(state.slot, state.slot + state.slots):
            self._state.take_visited(slot)
