"""What lies in the extents: laying objects out, and taking their bytes out of the index again.

The index is changed here and flushed by the caller, except where an extent's file is about to go.
Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from tiercache import records
from tiercache.agent.chunks import Chunks, checksums
from tiercache.agent.extent_state import ExtentState
from tiercache.agent.index import Index
from tiercache.agent.packs import Kind as Pack
from tiercache.agent.packs import Packs
from tiercache.agent.pins import Pins
from tiercache.agent.space import EXTENT_OVERHEAD_BYTES, Space
from tiercache.errors import CacheFull
from tiercache.model import PAGE_BYTES, Kind
from tiercache.policy import pages
from tiercache.policy.eviction import WORTH_KEEPING
from tiercache.policy.ledger import NOBODY
from tiercache.policy.qos import DEFAULT_IDENTITY
from tiercache.ports import Buffer, ExtentStore
from tiercache.records import ObjectRecord

# A pack more than half wanted is not worth copying: it would cost its own size to free less.
WORTH_COPYING = 0.5
# One device read of a copy; a multiple of the page.
COPY_BYTES = 4 << 20


class BadPages(Exception):
    """Among these pages of an object are some that fail their checksum."""

    def __init__(self, suspects: range) -> None:
        super().__init__(suspects)
        self.suspects = suspects


@dataclass(frozen=True, slots=True)
class Member:
    """A live object of a pack."""

    digest: bytes
    record: ObjectRecord


class Contents:
    """Objects ↔ extents."""

    def __init__(
        self,
        *,
        index: Index,
        space: Space,
        chunks: Chunks,
        extents: ExtentStore,
        pins: Pins,
        packs: Packs,
    ) -> None:
        self._index = index
        self._space = space
        self._chunks = chunks
        self._extents = extents
        self._pins = pins
        self._packs = packs
        space.drop_contents = self.drop_extent
        space.seal_packs_of = packs.seal_idle
        space.quotas_changed = self._quotas_changed

    # -- layout -----------------------------------------------------------------------------

    async def pack(
        self,
        record: ObjectRecord,
        data: Buffer,
        *,
        digest: bytes,
        commit: Callable[[ExtentState, int], None],
    ) -> None:
        """Append a small object to the pack where it belongs, as ``PackWriter.append``."""
        count = len(data) + EXTENT_OVERHEAD_BYTES
        owner = self._pinner(record.origin, record.key, count)
        if owner is not None:
            try:
                writer = self._packs.of(owner, Pack.PINNED)
                await writer.append(data, digest=digest, commit=commit)
                return
            except CacheFull:
                if not self._space.quotas.in_force:
                    raise
        writer = self._packs.of(self._space.payer(), Pack.NEW)
        await writer.append(data, digest=digest, commit=commit)

    def _pinner(self, origin: str, key: str, count: int) -> str | None:
        """Return who holds ``count`` bytes of this name by a pin, None for nobody: a pin beyond
        its owner's ``pin_max`` or ``max`` holds nothing."""
        owners = self._pins.owners(origin, key)
        quotas = self._space.quotas
        if not quotas.in_force:
            return DEFAULT_IDENTITY if owners else None
        for owner in owners:
            has_room = owner == self._space.payer() or not quotas.lacking_bytes(owner, count)
            if has_room and quotas.may_pin(owner, count):
                return owner
        return None

    def admitter(self, record: ObjectRecord) -> str:
        """Return whom a new extent of this object is to be charged to: who pinned it, else who
        works."""
        owner = self._pinner(record.origin, record.key, EXTENT_OVERHEAD_BYTES)
        return self._space.payer() if owner is None else owner

    def _quotas_changed(self) -> None:
        # A pack is one identity's, and of its size.
        self._packs.seal()
        self.refresh_pins()

    def seal_packs(self) -> None:
        """Close the open packs, so that they may be evicted."""
        self._packs.seal()

    def lay_out(self, digest: bytes, record: ObjectRecord) -> ObjectRecord:
        """Give a large object its data id and its (still empty) places; put the record."""
        if record.data_id and not record.packed:
            return record
        placement = self._space.quotas.placement(self._space.payer())
        extent_bytes, count = placement.extents_of(record.size_bytes)
        record = msgspec.structs.replace(
            record,
            data_id=self._space.next_id(),
            extent_bytes=extent_bytes,
            extents=((0, 0),) * count,
            packed=False,
            crcs=b"",
        )
        self._index.put_object(digest, record)
        return record

    async def admit_extent(
        self, *, length: int, identity: str, owner: bytes, data_id: int, first_page: int = 0
    ) -> ExtentState:
        """Reserve what an object's extent costs by itself and create it, held busy. Raises
        CacheFull, or OSError from the device."""
        await self._space.reserve(EXTENT_OVERHEAD_BYTES, identity=identity)
        try:
            state = self._space.new_extent(
                length=length,
                identity=identity,
                owner=owner,
                data_id=data_id,
                first_page=first_page,
            )
        except BaseException:
            self._space.ledger.release(EXTENT_OVERHEAD_BYTES, identity)
            raise
        state.busy += 1
        return state

    def make_extent(
        self, digest: bytes, record: ObjectRecord, number: int, *, identity: str
    ) -> ExtentState:
        """Make the ``number``-th extent of a large object, charged to ``identity``, for which its
        overhead is reserved (``Space.new_extent``), and what will be written into it: it does not
        pass on, not even to who has pinned the object while room was made."""
        first = number * record.extent_bytes
        length = min(record.extent_bytes, record.size_bytes - first)
        state = self._space.new_extent(
            length=length,
            identity=identity,
            owner=digest,
            data_id=record.data_id,
            first_page=first // PAGE_BYTES,
        )
        state.writers += 1
        self._pin_if_covered(state, record)
        state.writers -= 1
        places = list(record.extents)
        places[number] = (state.id, state.slot)
        record = msgspec.structs.replace(record, extents=tuple(places))
        self._index.put_object(digest, record)
        return state

    def extent_of(self, record: ObjectRecord, number: int) -> ExtentState | None:
        """Return the ``number``-th extent of a large object, None where it is not there."""
        return self._space.live.get(record.extents[number][0])

    def cached_bytes(self, record: ObjectRecord | None) -> int:
        """Return how many bytes of this version are present (whole pages, the last short)."""
        if record is None or not record.data_id or not record.size_bytes:
            return 0
        if record.packed:
            return record.size_bytes
        count = pages.page_count(record.size_bytes)
        present = self._chunks.present(record.data_id, count) * PAGE_BYTES
        if present and self._chunks.has(record.data_id, count - 1):
            present -= count * PAGE_BYTES - record.size_bytes
        return present

    def is_whole(self, record: ObjectRecord | None) -> bool:
        if record is None or record.kind is not Kind.FILE:
            return False
        return record.size_bytes == 0 or self.cached_bytes(record) == record.size_bytes

    def read(self, record: ObjectRecord, offset: int, length: int) -> bytes | None:
        """Return bytes of the object, a few pages of one extent at most, each held against its
        checksum; None where they are not all there, or not as they should be."""
        first, end = pages.page_span(offset, length)
        start, stop = first * PAGE_BYTES, min(end * PAGE_BYTES, record.size_bytes)
        if record.packed:
            extent_id, base = record.extents[0][0], record.pack_offset
            expected = record.crcs[first * 4 : end * 4]
        elif record.data_id and start // record.extent_bytes == (stop - 1) // record.extent_bytes:
            number = start // record.extent_bytes
            extent_id, base = record.extents[number][0], -number * record.extent_bytes
            if not all(self._chunks.has(record.data_id, page) for page in range(first, end)):
                return None
            crcs = (self._chunks.crc(record.data_id, page) for page in range(first, end))
            expected = b"".join(crcs)
        else:
            return None
        try:
            data = self._extents.read(extent_id, base + start, stop - start)
        except OSError:
            return None
        if checksums(memoryview(data)) != expected:
            return None
        return data if len(data) == length else data[offset - start : offset - start + length]

    async def make_single(self, digest: bytes, record: ObjectRecord) -> ObjectRecord | None:
        """Lay a wholly cached object out as one file of its own, with exactly its bytes.

        Returns the record; None where the object was evicted or replaced meanwhile. Raises
        BadPages, CacheFull, or OSError from the device.
        """
        if not record.packed and len(record.extents) == 1:
            return record
        live = self._space.live
        sources = [live[extent_id] for extent_id, _ in record.extents if extent_id in live]
        if len(sources) < len(record.extents):
            return None
        expected = self._expected(record)
        for source in sources:
            source.busy += 1
        try:
            state = await self._copy_whole(digest, record, expected)
        except FileNotFoundError:
            return None  # evicted under the copy
        finally:
            for source in sources:
                source.busy -= 1
        current = self._index.get_object(digest)
        if current is None or current.token != record.token or current.data_id != record.data_id:
            self.free(state)
            return None
        self.drop_object(current)
        record = msgspec.structs.replace(
            without_data(current),
            data_id=state.data_id,
            extent_bytes=pages.page_count(record.size_bytes) * PAGE_BYTES,
            extents=((state.id, state.slot),),
        )
        self._index.put_object(digest, record)
        self._chunks.mark(state.data_id, 0, expected)
        self._pin_if_covered(state, record)
        await self._index.flush()
        return record

    def _expected(self, record: ObjectRecord) -> bytes:
        """Return the checksums of all pages of a wholly cached object."""
        if record.packed:
            return record.crcs
        count = pages.page_count(record.size_bytes)
        return b"".join(self._chunks.crc(record.data_id, page) for page in range(count))

    async def _copy_whole(
        self, digest: bytes, record: ObjectRecord, expected: bytes
    ) -> ExtentState:
        """Copy a wholly cached object, page by page verified, into an extent of its own."""
        loop = asyncio.get_running_loop()
        state = await self.admit_extent(
            length=record.size_bytes,
            identity=self.admitter(record),
            owner=digest,
            data_id=self._space.next_id(),
        )
        reserved: int | None = None
        try:
            reserved = await self._space.reserve_in(state, record.size_bytes)
            offset = 0
            for extent_id, start, length in self._places(record):
                for inside in range(0, length, COPY_BYTES):
                    step = min(COPY_BYTES, length - inside)
                    first, last = offset // PAGE_BYTES, pages.page_count(offset + step)
                    source = (extent_id, start + inside, step)
                    crcs = await loop.run_in_executor(
                        None, self._copy_step, source, (state.id, offset)
                    )
                    if crcs != expected[first * 4 : last * 4]:
                        raise BadPages(range(first, last))
                    offset += step
        except BaseException:
            self.free(state)
            raise
        finally:
            state.busy -= 1
            if reserved is not None:
                self._space.settle(state, reserved)
        return state

    def _copy_step(self, source: tuple[int, int, int], target: tuple[int, int]) -> bytes:
        data = self._extents.read(*source)
        self._extents.write(*target, data)
        return checksums(memoryview(data))

    def _places(self, record: ObjectRecord) -> list[tuple[int, int, int]]:
        """Return (extent id, offset, length) of a wholly cached object, in order."""
        if record.packed:
            return [(record.extents[0][0], record.pack_offset, record.size_bytes)]
        places, left = [], record.size_bytes
        for extent_id, _ in record.extents:
            places.append((extent_id, 0, min(left, record.extent_bytes)))
            left -= record.extent_bytes
        return places

    # -- taking out -------------------------------------------------------------------------

    def drop_object(self, record: ObjectRecord) -> int:
        """Take this version's bytes out of the index and free its extents; return bytes freed
        from readers' reach. The record itself is the caller's to replace."""
        dropped = self.cached_bytes(record)
        if record.packed:
            extent_id = record.extents[0][0]
            self._index.put(records.member_key(extent_id, record.pack_offset), None)
            return dropped
        if record.data_id:
            self._chunks.drop(record.data_id, 0, pages.page_count(record.size_bytes))
        for extent_id, _ in record.extents:
            state = self._space.live.get(extent_id)
            if state is not None:
                self.free(state)
        return dropped

    def free(self, state: ExtentState) -> None:
        """Give up an extent in which nobody finds anything any more, or anything yet."""
        self._space.drop_record(state)
        self._space.forget(state)

    async def drop_extent(self, state: ExtentState, own: bool) -> bool:
        """Take everything in this extent out of the index, durably. False: it stays. ``own``: it
        goes because its identity has reached its ``max``."""
        if state.is_pack:
            if not await self._empty_pack(state, own):
                return False
        else:
            self._empty_single(state)
        self._space.drop_record(state)
        await self._index.flush()
        return True

    def _empty_single(self, state: ExtentState) -> None:
        page_count = pages.page_count(state.length_bytes)
        self._chunks.drop(state.data_id, state.first_page, state.first_page + page_count)
        record = self._index.get_object(state.owner)
        if record is None or record.data_id != state.data_id:
            return
        places = tuple((0, 0) if place[0] == state.id else place for place in record.extents)
        self._index.put_object(state.owner, msgspec.structs.replace(record, extents=places))

    def members(self, state: ExtentState) -> list[Member]:
        """Return the live objects of a pack, in offset order."""
        found = []
        for key, digest in self._index.scan(records.member_prefix(state.id)):
            record = self._index.get_object(digest)
            if record is None or not record.packed or record.extents[0][0] != state.id:
                continue
            if record.pack_offset == records.member_offset(key):
                found.append(Member(digest, record))
        return found

    async def _empty_pack(self, state: ExtentState, own: bool) -> bool:
        members = self.members(state)
        pinned = self._pinned_members(members)
        wanted = self._wanted(state, members, pinned)
        readers = self._readers(state, wanted) if own else {}
        self._space.clear_visited(state)
        if self._stays(state, wanted, readers | pinned):
            return False
        for member in wanted:
            owner, reader = pinned.get(member.digest), readers.get(member.digest, NOBODY)
            try:
                await self._copy_forward(state, member, pinner=owner, reader=reader)
            except CacheFull:
                if not self._space.quotas.in_force:
                    raise
                if owner is not None:
                    return False
        for member in self.members(state):
            self._index.put_object(member.digest, without_data(member.record))
        self._index.delete_prefix(records.member_prefix(state.id))
        return True

    def _readers(self, state: ExtentState, members: list[Member]) -> dict[bytes, str]:
        """Return to whom objects of a pack may pass on: to others who read them last, and have
        room for them."""
        found: dict[bytes, str] = {}
        for member in members:
            mark = self._space.reader_in(state, member.record.pack_offset)
            reader = self._space.victims.reader_of(mark) if mark else NOBODY
            if reader in (NOBODY, state.identity):
                continue
            if not self._space.quotas.lacking_bytes(reader, member.record.size_bytes):
                found[member.digest] = reader
        return found

    def _stays(self, state: ExtentState, wanted: list[Member], others: Mapping[bytes, str]) -> bool:
        """Whether so much of a pack is wanted that copying it would cost more than it frees; where
        most is pinned, the pack is from now on. ``others``: who holds objects by a pin, or takes
        them over; what is not for this identity does not keep the pack."""
        quotas = self._space.quotas
        wanted_bytes = pinned_bytes = 0
        for member in wanted:
            owner = others.get(member.digest, state.identity)
            if owner == state.identity or not quotas.in_force:
                wanted_bytes += member.record.size_bytes
                pinned_bytes += member.record.size_bytes if member.digest in others else 0
        much = WORTH_COPYING * state.length_bytes
        if pinned_bytes > much:
            may_pin = quotas.may_pin(state.identity, self._space.ledger.charge_of(state.id))
            self._space.set_pinned(state, may_pin)
            return may_pin
        return wanted_bytes > much

    def _pinned_members(self, members: list[Member]) -> dict[bytes, str]:
        """Return who holds which objects of a pack by a pin, within each one's ``pin_max``."""
        quotas = self._space.quotas
        found: dict[bytes, str] = {}
        claimed: dict[str, int] = {}
        for member in members:
            for owner in self._pins.owners(member.record.origin, member.record.key):
                count = claimed.get(owner, EXTENT_OVERHEAD_BYTES) + member.record.size_bytes
                if quotas.may_pin(owner, count):
                    found[member.digest], claimed[owner] = owner, count
                    break
        return found

    def _wanted(
        self, state: ExtentState, members: list[Member], pinned: Mapping[bytes, str]
    ) -> list[Member]:
        """Return the objects of a pack about to go that are to be copied forward: what is pinned,
        what was read since it was looked at, and what is announced to be read soon."""
        orders = self._space.victims.orders
        announced = [m for m in members if orders.distance(m.digest) is not None] if orders else []
        if len(announced) > WORTH_KEEPING * len(members):
            announced = [m for m in announced if orders.is_near(m.digest)]
            if len(announced) > WORTH_COPYING * len(members):
                announced = []  # they go: there is nothing else
        kept = {m.digest for m in announced}

        def is_wanted(member: Member) -> bool:
            record = member.record
            if member.digest in kept or member.digest in pinned:
                return True
            if orders and orders.distance(member.digest) is not None:
                return False
            return self._space.reader_in(state, record.pack_offset) != 0

        return [member for member in members if is_wanted(member)]

    async def _copy_forward(
        self, state: ExtentState, member: Member, *, pinner: str | None, reader: str
    ) -> None:
        """Append the object to an open pack: of who has pinned it, of its ``reader`` if that one
        has room, else of the same identity. Bytes that fail their checksum, or that the device
        cannot read, are left behind. Raises CacheFull."""
        record = member.record
        try:
            data = self._extents.read(state.id, record.pack_offset, record.size_bytes)
        except OSError:
            return
        if checksums(memoryview(data)) != record.crcs:
            return

        def commit(target: ExtentState, offset: int) -> None:
            current = self._index.get_object(member.digest)
            if current is None or current.data_id != record.data_id:
                return  # replaced while it was copied; the copy is dead space
            slot = target.slot + offset * target.slots // target.length_bytes
            self._index.put_object(
                member.digest,
                msgspec.structs.replace(record, extents=((target.id, slot),), pack_offset=offset),
            )

        in_force = self._space.quotas.in_force
        places = [(state.identity if in_force else DEFAULT_IDENTITY, Pack.SURVIVORS)]
        if pinner is not None:
            places = [(pinner if in_force else DEFAULT_IDENTITY, Pack.PINNED)]
        elif reader not in (NOBODY, state.identity):
            places.insert(0, (reader, Pack.SURVIVORS))
        for place in places:
            try:
                await self._packs.of(*place).append(
                    data, digest=member.digest, commit=commit, use_headroom=True
                )
                return
            except CacheFull:
                if place == places[-1]:
                    raise

    def refresh_pins(self, *, removed: bool = True) -> None:
        """Bring the ``pinned`` mark of all extents up to the pins; some were ``removed``."""
        quotas, space = self._space.quotas, self._space
        for state in space.live.values():
            if state.is_pack:
                if removed:  # an eviction that finds it mostly pinned says so again
                    space.set_pinned(state, False)
                continue
            record = self._index.get_object(state.owner)
            owners = [] if record is None else self._pins.owners(record.origin, record.key)
            if not quotas.in_force:
                space.set_pinned(state, bool(owners))
            elif state.identity not in owners or not quotas.may_pin(state.identity, 0):
                space.set_pinned(state, False)
        if quotas.in_force:
            for state in space.live.values():
                record = None if state.is_pack else self._index.get_object(state.owner)
                if record is not None:
                    self._pin_if_covered(state, record)

    def pin_covered(self, states: Iterable[ExtentState], record: ObjectRecord) -> None:
        """Pin new extents of an object as the pins that cover it have it."""
        for state in states:
            self._pin_if_covered(state, record)

    def _pin_if_covered(self, state: ExtentState, record: ObjectRecord) -> None:
        """Pin an extent for whoever has pinned its object, whom it is charged to from now on; not
        beyond that one's ``pin_max`` or ``max``."""
        if state.pinned:
            return
        owners, space = self._pins.owners(record.origin, record.key), self._space
        if not space.quotas.in_force:
            space.set_pinned(state, bool(owners))
            return
        charge = space.ledger.charge_of(state.id)
        for owner in owners:
            if space.quotas.may_pin(owner, charge):
                if owner == state.identity or space.pass_on(state, owner):
                    space.set_pinned(state, True)
                    return

    def unpinned_bytes(self) -> dict[str, int]:
        """Return, by who pinned them, the bytes of extents that pins cover and do not hold."""
        found: dict[str, int] = {}
        for state in self._space.live.values():
            record = None
            if not state.is_pack and not state.pinned:
                record = self._index.get_object(state.owner)
            for owner in self._pins.owners(record.origin, record.key)[:1] if record else ():
                charge = self._space.ledger.charge_of(state.id)
                found[owner] = found.get(owner, 0) + charge
        return found

    def pinned_bytes(self) -> int:
        """Return the charges of pinned extents."""
        ledger = self._space.ledger
        return sum(ledger.charge_of(s.id) for s in self._space.live.values() if s.pinned)


def without_data(record: ObjectRecord) -> ObjectRecord:
    """Return the record of a name whose bytes are not here."""
    return msgspec.structs.replace(
        record,
        data_id=0,
        extent_bytes=0,
        extents=(),
        packed=False,
        pack_offset=0,
        crcs=b"",
    )
