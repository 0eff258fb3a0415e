"""Reading: hits from the index and the extent files, misses through the agent.

A hit costs a dict look-up, one load of the epoch, one store to the visited byte and a ``pread``.
Everything else (first touch, other layout, missing pages, stale names) takes the slow path below.
Thread safe; nothing survives a fork (the Namespace makes a new Reader in the child).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from time import CLOCK_BOOTTIME, clock_gettime
from typing import TypeVar

from tiercache import wire
from tiercache.client.batch import Item, Outcomes, read_through
from tiercache.client.bound import fill_many
from tiercache.client.copying import copy, copy_into, into_whole, read_whole
from tiercache.client.entry import UNCHECKED, Entry
from tiercache.client.handles import Handles
from tiercache.client.link import Link
from tiercache.client.many import read_many
from tiercache.client.names import Names
from tiercache.client.paying import Payer, Settled
from tiercache.client.presence import cached_bytes
from tiercache.client.resolver import Resolver
from tiercache.client.spans import clamp, spans_of
from tiercache.client.verify import VERIFY_BYTES, Verifier
from tiercache.errors import CacheFull, StaleHandle, TiercacheError
from tiercache.model import PAGE_BYTES
from tiercache.policy.readahead import MAX_WINDOW_BYTES
from tiercache.ports import ExtentDirectory, ExtentReader, IndexReader, SharedStateView

_EPOCH = 1
# A fill that answers "present" and is evicted before we read it, this often, means that the cache
# is far too small for its readers; then the bytes are read through.
ROUNDS = 16
# A read by path follows a name through this many versions; more, and somebody overwrites it as
# fast as it is read.
REPLACED_ROUNDS = 4

T = TypeVar("T")

_pread = os.pread
_NOTHING = memoryview(b"")


class _Gone:
    """An extent that was let go of while its reader waited: reading it fails."""

    fd = -1

    def view(self) -> memoryview:
        return _NOTHING


_GONE = _Gone()


class Reader:
    """All reads of one process."""

    def __init__(
        self,
        *,
        index: IndexReader,
        extents: ExtentDirectory,
        state: SharedStateView,
        link: Link,
        resolver: Resolver,
        names: Names,
    ) -> None:
        # Constant after construction
        self._index = index
        self._extents = extents
        self._words = state.words
        self._visited = state.visited
        self._link = link
        self._resolver = resolver
        self.names = names
        self._hot = names.hot
        self._handles = Handles(extents, lambda: state.words[_EPOCH])
        self._handles.chores.append(self.report_use)
        self._verifier = Verifier(index, link, self._handles)

    # -- the public calls -------------------------------------------------------------------

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes [offset, offset + length), fewer at the end of the object."""
        entry = self._hot.get(path)
        if entry is not None and length is not None:
            ext = entry.held.ext
            end = offset + length
            if (
                ext is not None
                and 0 <= offset <= end <= entry.fast_bytes
                and entry.epoch == self._words[1]
                and (entry.whole or entry.verified.find(0, offset >> 16, (end + 65535) >> 16) < 0)
                and clock_gettime(CLOCK_BOOTTIME) < entry.fresh_until_s
            ):
                pays = entry.pays
                if pays is not None and not pays.charge(length):
                    ext = None  # what is evicted meanwhile is not held on to
                    pays.pay(path, length)
                    ext = entry.held.ext or _GONE
                self._visited[entry.slot] = entry.mark
                use = entry.use
                use.hits += 1
                use.hit_bytes += length
                try:
                    data = _pread(ext.fd, length, entry.base + offset)
                except OSError:
                    data = b""  # the device fails: the general path knows how to go on
                if len(data) == length:
                    return data
                entry.distrust(offset, end)
        try:
            entry = self.names.unasked(path) or self.names.entry(path)
            return self.read_entry(entry, offset, length)[1]
        except StaleHandle:
            return self.again(path, lambda entry: self.read_entry(entry, offset, length)[1])

    def view(self, path: str, offset: int = 0, length: int | None = None) -> memoryview:
        """Return a read-only view, on the mapping where the bytes lie in one extent, else on a
        copy. It stays valid whatever is evicted meanwhile; the space counts while it lives."""
        entry = self._hot.get(path)
        if entry is not None and length is not None:
            mapping = entry.held.map
            end = offset + length
            if (
                mapping is not None
                and 0 <= offset <= end <= entry.fast_bytes
                and entry.epoch == self._words[1]
                and (entry.whole or entry.verified.find(0, offset >> 16, (end + 65535) >> 16) < 0)
                and clock_gettime(CLOCK_BOOTTIME) < entry.fresh_until_s
            ):
                pays = entry.pays
                if pays is not None and not pays.charge(length):
                    mapping = None
                    pays.pay(path, length)
                    mapping = entry.held.map or _NOTHING
                self._visited[entry.slot] = entry.mark
                use = entry.use
                use.hits += 1
                use.hit_bytes += length
                start = entry.base + offset
                view = mapping[start : start + length]
                if len(view) == length:
                    return view
        return self._view_slow(path, offset, length)

    def _view_slow(self, path: str, offset: int, length: int | None) -> memoryview:
        try:
            return self._view_entry(self.names.entry(path), offset, length)
        except StaleHandle:
            return self.again(path, lambda entry: self._view_entry(entry, offset, length))

    def _view_entry(self, entry: Entry, offset: int, length: int | None) -> memoryview:
        start, end = clamp(offset, length, entry.record.size_bytes)
        if start == end:
            return memoryview(b"")
        entry, inline = self._make_readable(entry, start, end)
        if inline is not None:
            return memoryview(inline)
        segments = entry.segments_of(start, end)
        ext = segments[0].held.ext if segments else None
        if len(segments) == 1 and ext is not None:
            segment = segments[0]
            mapping = segment.held.map = ext.view()
            self._visited[segment.slot] = entry.mark
            first = segment.base + start - segment.start
            view = mapping[first : first + end - start]
            if len(view) == end - start:  # else the file was cut off when it was mapped
                return view
        with Settled(entry.pays):
            return memoryview(self.read_entry(entry, offset, length)[1])

    def read_into(self, path: str, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset`` on; return how many bytes there were."""
        view = memoryview(buffer).cast("B")
        try:
            return self.entry_into(self.names.entry(path), offset, view)[1]
        except StaleHandle:
            return self.again(path, lambda entry: self.entry_into(entry, offset, view)[1])

    def again(self, path: str, read: Callable[[Entry], T]) -> T:
        """Read the version that took the place of one replaced under a read by path."""
        for _ in range(REPLACED_ROUNDS - 1):
            entry = self.names.asked(path)
            with contextlib.suppress(StaleHandle):
                return read(entry)
        return read(self.names.asked(path))

    def read_many(
        self, items: Sequence[Item], *, on_error: str = "raise"
    ) -> list[bytes | TiercacheError]:
        """Read parts of many names; all misses go to the agent in one frame.

        ``on_error="return"`` puts the error in the place of the bytes.
        """
        return read_many(self, items, on_error)

    def fill_many(self, missing: list[Item]) -> Outcomes:
        """Have the agent look up and fetch, in one trip."""
        epoch, forget = self._words[_EPOCH], self._handles.drop_evicted
        outcomes = fill_many(self._link, self._resolver, missing, epoch, forget)
        for path, _, _ in missing:
            if (known := self._hot.get(path)) is not None:
                known.epoch = UNCHECKED  # it has its bytes now, and a place for them
        return outcomes

    def is_hit(self, path: str, offset: int, length: int | None) -> bool:
        """Return whether ``read`` of the same would be answered here, be it by an error."""
        try:
            entry = self.names.unasked(path)
        except TiercacheError:
            return True  # known to fail: the read says how, and needs no fill
        if entry is None:
            return False
        start, end = clamp(offset, length, entry.record.size_bytes)
        return not self._verifier.missing(entry, start, end)

    # -- bytes ------------------------------------------------------------------------------

    def read_entry(self, entry: Entry, offset: int, length: int | None) -> tuple[Entry, bytes]:
        """Read this version; returns the entry to go on with, and the bytes."""
        start, end = clamp(offset, length, entry.record.size_bytes)
        if start == end:
            return entry, b""
        data = self.read_verified(entry, start, end)
        if data is not None:
            return entry, data
        if end - start <= VERIFY_BYTES:
            data = self._first_touch(entry, start, end)
            if data is not None:
                return entry, data
            for _ in range(ROUNDS):
                entry, inline = self._make_readable(entry, start, end, inline=True)
                if inline is not None:
                    return entry, bytes(inline)
                data = copy(entry, start, end, self._visited)
                if data is not None:
                    return entry, data
            return entry, read_through(self._link, entry, start, end)
        # BytesIO hands out the very bytes it was filled in: one allocation and one copy, where
        # bytes(bytearray) and b"".join would take two.
        whole = BytesIO(bytes(end - start))
        with whole.getbuffer() as view:
            entry, _ = self.entry_into(entry, start, view)
        return entry, whole.getvalue()

    def read_verified(self, entry: Entry, start: int, end: int) -> bytes | None:
        """Return bytes that this process has verified in one open extent; None where the general
        path is needed. ``start`` < ``end`` lie in the object."""
        ext = entry.held.ext
        if ext is not None and entry.whole and entry.epoch == self._words[1]:
            pays = entry.pays
            if pays is not None and not pays.charge(end - start):
                ext = None
                pays.pay(entry.asked, end - start)
                ext = entry.held.ext or _GONE
            self._visited[entry.slot] = entry.mark
            use = entry.use
            use.hits += 1
            use.hit_bytes += end - start
            return read_whole(ext, entry, (start, end), entry.base + start)
        place = self._verified(entry, start, end)
        return None if place is None else read_whole(place[0], entry, (start, end), place[1])

    def _verified(self, entry: Entry, start: int, end: int) -> tuple[ExtentReader, int] | None:
        """Count a hit and return (extent, file offset) of verified bytes; None as above."""
        segment = entry.segment_of(start)
        if segment is None or end > segment.end or entry.epoch != self._words[1]:
            return None
        ext = segment.held.ext
        begin = start - segment.start
        if ext is None:
            return None
        pages_end = (end - segment.start + 65535) >> 16
        if not entry.whole and segment.verified.find(0, begin >> 16, pages_end) >= 0:
            return None
        pays = entry.pays
        if pays is not None and not pays.charge(end - start):
            ext = None
            pays.pay(entry.asked, end - start)
            ext = segment.held.ext or _GONE
        self._visited[segment.slot] = entry.mark
        use = entry.use
        use.hits += 1
        use.hit_bytes += end - start
        return ext, segment.base + begin

    def _first_touch(self, entry: Entry, start: int, end: int) -> bytes | None:
        """Read and verify in one go what is present but not yet verified; None where the general
        path is needed."""
        if not entry.segments or entry.epoch != self._words[_EPOCH]:
            return None
        segments = entry.segments_of(start, end)
        if len(segments) != 1:
            return None
        segment = segments[0]
        if segment.held.ext is None and not self._handles.open(entry, segment):
            return None
        data = self._verifier.read(entry, segment, start, end)
        if data is None:
            return None
        entry.note_verified()
        self._visited[segment.slot] = entry.mark
        if entry.record.packed:
            pays = entry.pays
            if pays is not None and not pays.charge(end - start):
                pays.pay(entry.asked, end - start)
            entry.use.hits += 1
            entry.use.hit_bytes += end - start
        else:
            ahead = entry.ahead.plan(start, end - start, entry.record.size_bytes)
            self._note_hit(entry, start, end, ahead, 1)
        return data

    def _first_touch_into(self, entry: Entry, start: int, end: int, into: memoryview) -> bool:
        """Read whole pages of one extent into ``into``, verified on the way; False where the
        general path is needed."""
        segments = entry.segments_of(start, end) if entry.segments else []
        if len(segments) != 1:
            return False
        segment = segments[0]
        if segment.held.ext is None and not self._handles.open(entry, segment):
            return False
        if not self._verifier.read_into(entry, segment, start, end, into):
            return False
        entry.note_verified()
        self._visited[segment.slot] = entry.mark
        return True

    def entry_into(self, entry: Entry, offset: int, buffer: memoryview) -> tuple[Entry, int]:
        """Read this version into ``buffer``, run by run, reading ahead of itself."""
        wanted = len(buffer)
        ext = entry.held.ext
        if (
            ext is not None
            and entry.whole
            and 0 <= offset <= entry.fast_bytes - wanted
            and entry.epoch == self._words[1]
        ):
            pays = entry.pays
            if pays is not None and not pays.charge(wanted):
                ext = None
                pays.pay(entry.asked, wanted)
                ext = entry.held.ext or _GONE
            self._visited[entry.slot] = entry.mark
            use = entry.use
            use.hits += 1
            use.hit_bytes += wanted
            if into_whole(ext, entry, offset, buffer, entry.base + offset):
                return entry, wanted
        start, end = clamp(offset, wanted, entry.record.size_bytes)
        place = self._verified(entry, start, end) if start < end else None
        if place is not None:
            target = buffer if end - start == wanted else buffer[: end - start]
            if into_whole(place[0], entry, start, target, place[1]):
                return entry, end - start
        done, rounds = start, 0
        while done < end:
            stop = min(end, (done + wire.MAX_SPAN_BYTES) // PAGE_BYTES * PAGE_BYTES)
            part = buffer[done - start : stop - start]
            entry, inline = self._make_readable(
                entry, done, stop, wanted=end, inline=True, into=part, operations=int(done == start)
            )
            if inline is None and rounds == ROUNDS:
                inline = read_through(self._link, entry, done, stop)
            if inline is part:
                pass
            elif inline is not None:
                part[:] = inline
            elif not copy_into(entry, done, part, self._visited):
                rounds += 1
                continue
            done, rounds = stop, 0
        return entry, end - start

    def _make_readable(
        self,
        entry: Entry,
        start: int,
        end: int,
        *,
        wanted: int = 0,
        inline: bool = False,
        into: memoryview | None = None,
        operations: int = 1,
    ) -> tuple[Entry, bytes | memoryview | None]:
        """See that bytes [start, end), 8 MiB at most or hot, are present and verified. Returns
        the entry to use, and the bytes themselves where they could only be read through, or,
        with ``inline``, where they came with the answer; and ``into`` where it was filled with
        them on the way, which reads them once instead of twice. A hit pays for ``operations``, a
        miss for what of it was here."""
        # Planned once a read: a second look at the same place would end the sequence.
        ahead = entry.ahead.plan(start, end - start, entry.record.size_bytes)
        # What follows a sequential read is best found in the index, by this reader and others.
        inline = inline and end - start <= wire.MAX_INLINE_BYTES and not entry.ahead.is_sequential
        if wanted > end and not ahead[1]:
            ahead = (end, min(wanted - end, MAX_WINDOW_BYTES))
        is_hit, asked = True, b""
        for _ in range(ROUNDS):
            entry = self.names.current(entry)
            taken = into if into and self._first_touch_into(entry, start, end, into) else None
            missing = [] if taken is not None else self._verifier.missing(entry, start, end)
            if not missing:
                if is_hit:
                    self._note_hit(entry, start, end, ahead, operations)
                return entry, taken
            if asked and entry.raw == asked and entry.record.data_id:
                # It is there, said the agent, and yet it is not: let it look.
                self._verifier.report(entry, missing)
            asked = entry.raw
            spans = spans_of(missing, start, end)
            whole = spans == ((start, end - start),)
            if is_hit and entry.pays is not None:  # the agent charges what it is asked for
                here = end - start - sum(length for _, length in spans)
                if here:
                    entry.pays.pay(entry.asked, here, 0)
            fill = wire.Fill(entry.path, entry.record.token, spans, ahead, inline and whole)
            answer = self._link.request(fill, wire.Filled, meanwhile=self._handles.drop_evicted)
            if answer.data and answer.data[0] is not None:
                entry.epoch = UNCHECKED  # the index has, or will have, a place for them
                data = answer.data[0]
                return entry, data if whole else read_through(self._link, entry, start, end)
            is_hit, ahead = False, (0, 0)
            entry.epoch = UNCHECKED
        return entry, read_through(self._link, entry, start, end)

    def _note_hit(
        self, entry: Entry, start: int, end: int, ahead: tuple[int, int], operations: int
    ) -> None:
        if entry.pays is not None:
            entry.pays.pay(entry.asked, end - start, operations)
        use = entry.use
        use.hits += 1
        use.hit_bytes += end - start
        if ahead[1] and self._verifier.absent(entry, ahead[0], sum(ahead)):
            self._link.tell(wire.Advise(entry.path, entry.record.token, *ahead))

    def make_present(self, entry: Entry, start: int, end: int) -> Entry:
        """See that bytes [start, end) are on the device, verified; return the entry that says
        where. Raises CacheFull where they can only be read through."""
        for begin in range(start, end, wire.MAX_SPAN_BYTES):
            stop = min(end, begin + wire.MAX_SPAN_BYTES)
            entry, inline = self._make_readable(
                entry, begin, stop, wanted=end, operations=int(begin == start)
            )
            if inline is not None:
                raise CacheFull("the cache device takes no bytes now", path=entry.path)
        return entry

    def payer(self, path: str) -> Payer | None:
        """Return who pays for hits of a path that is known by heart; None where nobody need."""
        entry = self._hot.get(path)
        return None if entry is None else entry.pays

    def cached_bytes(self, path: str) -> int:
        """Return how many bytes of the last known version are present."""
        return cached_bytes(self._index, self._resolver.locate(path).digest)

    # -- the rest ---------------------------------------------------------------------------

    def report_use(self) -> None:
        """Tell the agent of hits since last said."""
        self.names.uses.report(self._link)

    def abandon(self) -> None:
        """In a forked child: close its copies of the parent's extents, and pay for none of its
        hits."""
        self._handles.abandon()
        self.names.abandon()

    def close(self) -> None:
        self.report_use()
        self._handles.close()
        self._hot.clear()
