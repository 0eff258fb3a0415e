"""What lies in the extents: laying objects out, and taking their bytes out of the index again.

The index is changed here and flushed by the caller, except where an extent's file is about to go.
Owned by the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from tiercache import records
from tiercache.agent.chunks import Chunks, checksums
from tiercache.agent.index import Index
from tiercache.agent.packs import PackWriter
from tiercache.agent.pins import Pins
from tiercache.agent.space import ExtentState, Space
from tiercache.model import PAGE_BYTES, Kind
from tiercache.policy import pages
from tiercache.policy.eviction import WORTH_KEEPING
from tiercache.ports import ExtentStore
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
        packs: PackWriter,
        pinned_packs: PackWriter,
        kept_packs: PackWriter,
    ) -> None:
        self._index = index
        self._space = space
        self._chunks = chunks
        self._extents = extents
        self._pins = pins
        self._packs = packs
        self._pinned_packs = pinned_packs
        self._kept_packs = kept_packs
        space.drop_contents = self.drop_extent

    # -- layout -----------------------------------------------------------------------------

    def packs_for(self, record: ObjectRecord) -> PackWriter:
        pinned = self._pins.covers(record.origin, record.key)
        return self._pinned_packs if pinned else self._packs

    def seal_packs(self) -> None:
        """Close the open packs, so that they may be evicted."""
        for packs in (self._packs, self._pinned_packs, self._kept_packs):
            packs.seal()

    def lay_out(self, digest: bytes, record: ObjectRecord) -> ObjectRecord:
        """Give a large object its data id and its (still empty) places; put the record."""
        if record.data_id and not record.packed:
            return record
        extent_bytes, count = self._space.placement.extents_of(record.size_bytes)
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

    def extent_for(
        self, digest: bytes, record: ObjectRecord, number: int
    ) -> tuple[ObjectRecord, ExtentState]:
        """Return the ``number``-th extent of a large object, made now if it is not there."""
        extent_id, _ = record.extents[number]
        if extent_id in self._space.live:
            return record, self._space.live[extent_id]
        first = number * record.extent_bytes
        length = min(record.extent_bytes, record.size_bytes - first)
        state = self._space.new_extent(
            length=length,
            owner=digest,
            data_id=record.data_id,
            first_page=first // PAGE_BYTES,
        )
        state.pinned = self._pins.covers(record.origin, record.key)
        places = list(record.extents)
        places[number] = (state.id, state.slot)
        record = msgspec.structs.replace(record, extents=tuple(places))
        self._index.put_object(digest, record)
        return record, state

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
        state.pinned = self._pins.covers(record.origin, record.key)
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
        await self._space.reserve(record.size_bytes)
        state: ExtentState | None = None
        try:
            state = self._space.new_extent(
                length=record.size_bytes, owner=digest, data_id=self._space.next_id()
            )
            state.busy += 1
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
            if state is not None:
                self.free(state)
            raise
        finally:
            if state is None:
                self._space.ledger.release(record.size_bytes)
            else:
                state.busy -= 1
                self._space.settle(state, record.size_bytes)
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
        self._index.put(records.extent_key(state.id), None)
        self._space.forget(state)

    async def drop_extent(self, state: ExtentState) -> bool:
        """Take everything in this extent out of the index, durably. False: it stays."""
        if state.is_pack:
            if not await self._empty_pack(state):
                return False
        else:
            self._empty_single(state)
        self._index.put(records.extent_key(state.id), None)
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

    async def _empty_pack(self, state: ExtentState) -> bool:
        members = self.members(state)
        wanted = self._wanted(state, members)
        self._space.clear_visited(state)
        wanted_bytes = sum(m.record.size_bytes for m in wanted)
        if wanted_bytes > WORTH_COPYING * state.length_bytes:
            pinned = [m for m in members if self._pins.covers(m.record.origin, m.record.key)]
            pinned_bytes = sum(m.record.size_bytes for m in pinned)
            state.pinned = pinned_bytes > WORTH_COPYING * state.length_bytes
            return False
        for member in wanted:
            await self._copy_forward(state, member)
        for member in self.members(state):
            self._index.put_object(member.digest, without_data(member.record))
        self._index.delete_prefix(records.member_prefix(state.id))
        return True

    def _wanted(self, state: ExtentState, members: list[Member]) -> list[Member]:
        """Return the objects of a pack about to go that are to be copied forward: what is pinned,
        what was read since it was looked at, and what is announced to be read soon."""
        orders = self._space.orders
        announced = [m for m in members if orders.distance(m.digest) is not None] if orders else []
        if len(announced) > WORTH_KEEPING * len(members):
            announced = [m for m in announced if orders.is_near(m.digest)]
            if len(announced) > WORTH_COPYING * len(members):
                announced = []  # they go: there is nothing else
        kept = {m.digest for m in announced}

        def is_wanted(member: Member) -> bool:
            record = member.record
            if member.digest in kept or self._pins.covers(record.origin, record.key):
                return True
            if orders and orders.distance(member.digest) is not None:
                return False
            return self._space.visited_in(state, record.pack_offset)

        return [member for member in members if is_wanted(member)]

    async def _copy_forward(self, state: ExtentState, member: Member) -> None:
        """Append the object to an open pack. Bytes that fail their checksum, or that the device
        cannot read, are left behind."""
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

        pinned = self._pins.covers(record.origin, record.key)
        packs = self._pinned_packs if pinned else self._kept_packs
        await packs.append(data, digest=member.digest, commit=commit, use_headroom=True)

    def refresh_pins(self) -> None:
        """Bring the ``pinned`` mark of all extents up to the pins."""
        for state in self._space.live.values():
            if state.is_pack:
                state.pinned = False  # an eviction that finds it mostly pinned says so again
                continue
            record = self._index.get_object(state.owner)
            state.pinned = record is not None and self._pins.covers(record.origin, record.key)

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
