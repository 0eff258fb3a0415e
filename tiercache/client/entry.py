"""What a client keeps of one object version, so that a hit costs a dict look-up and a ``pread``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercache.model import PAGE_BYTES, PAGE_SHIFT
from tiercache.policy.readahead import ReadAhead
from tiercache.ports import ExtentReader
from tiercache.records import ObjectRecord
from tiercache.settings import MountSettings

if TYPE_CHECKING:
    from tiercache.client.paying import Payer

# Never a real epoch: the entry must be checked against the index before its next use.
UNCHECKED = -1
# What a hit stores to the visited byte where no policy tells identities apart.
NOBODYS_MARK = 1


class Use:
    """Hits of one mount in this process. Plain additions: threads may lose a few of a million."""

    __slots__ = ("hit_bytes", "hits", "mount")

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.hits = 0
        self.hit_bytes = 0


class Held:
    """One extent as this process holds it, shared by all who read from it. ``ext`` is None once
    it was let go of; who took it before that may go on reading, since it closes with the last
    reference."""

    __slots__ = ("ext", "map")

    def __init__(self, ext: ExtentReader | None) -> None:
        self.ext = ext
        self.map: memoryview | None = None

    def let_go(self) -> None:
        self.ext = None
        self.map = None


# What has not been opened yet. Nobody ever puts an extent into it.
CLOSED = Held(None)


class Segment:
    """The part of an object that lies in one extent.

    ``start`` and ``end`` are bytes of the object, ``base`` the file offset of ``start``;
    ``verified`` has one byte for each page, 1 once this process has checked it.
    """

    __slots__ = ("base", "end", "extent_id", "held", "slot", "start", "verified")

    def __init__(self, extent_id: int, slot: int, start: int, end: int, base: int) -> None:
        self.extent_id = extent_id
        self.slot = slot
        self.start = start
        self.end = end
        self.base = base
        self.held = CLOSED
        self.verified = bytearray((end - start + PAGE_BYTES - 1) >> PAGE_SHIFT)


class Entry:
    """One object version under one path, laid out one way. Another layout is another entry, so a
    thread in the middle of a read never sees places of one and files of the other.

    The fields of the first group repeat those of the only segment, for the fast path; an object
    of several segments has ``fast_bytes`` -1 and takes the general one.
    """

    __slots__ = (
        "_ahead", "asked", "base", "digest", "epoch", "fast_bytes", "fresh_until_s", "generation",
        "held", "mark", "mount", "path", "pays", "raw", "record", "segments", "slot", "stale",
        "use", "verified", "whole",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        digest: bytes,
        mount: MountSettings,
        use: Use,
        record: ObjectRecord,
        before: Entry | None = None,
    ) -> None:
        """``before`` is what was known of the same version under the same agent: what it has
        verified and opened is kept."""
        # Constant after construction. ``asked`` is the path under which the reader knows it: that
        # of a frozen version lies in its snapshot.
        self.path = self.asked = path
        self.digest = digest
        self.mount = mount
        self.use = use
        self.record = record
        self.segments = _segments(record, before)
        if len(self.segments) == 1:
            only = self.segments[0]
            self.fast_bytes = record.size_bytes
            self.base, self.slot, self.verified = only.base, only.slot, only.verified
            self.held = only.held
        else:
            self.fast_bytes = -1
            self.base = self.slot = 0
            self.verified = bytearray()
            self.held = CLOSED
        self.whole = False
        if before is not None:
            self.note_verified()
        # Moves with the index
        self.epoch = UNCHECKED
        self.fresh_until_s = 0.0
        self.generation = 0
        self.raw = b""
        self.stale = False
        # Moves with the epoch, as the QoS policy does: who pays for hits (None: nobody need), and
        # what they store to the visited byte
        self.pays: Payer | None = None
        self.mark = NOBODYS_MARK
        self._ahead: ReadAhead | None = before._ahead if before else None

    @property
    def ahead(self) -> ReadAhead:
        """The detector of sequential reads, made when it is first needed."""
        if self._ahead is None:
            self._ahead = ReadAhead()
        return self._ahead

    def opened(self, segment: Segment, held: Held) -> None:
        segment.held = held
        if len(self.segments) == 1:
            self.held = held

    def note_verified(self) -> None:
        """Note whether every page is verified by now: a hit then needs no look at its own, a fifth
        of what it costs."""
        self.whole = len(self.segments) == 1 and self.verified.find(0) < 0

    def distrust(self, start: int, end: int) -> None:
        """Forget that the pages of bytes [start, end) were verified."""
        self.whole = False
        for segment in self.segments_of(start, end):
            first, last = span_pages(segment, start, end)
            segment.verified[first:last] = bytes(last - first)

    @property
    def is_open(self) -> bool:
        """Whether any of its extents is held."""
        return any(segment.held.ext is not None for segment in self.segments)

    def segment_of(self, offset: int) -> Segment | None:
        """Return the segment that holds this byte of the object; None where none is laid out."""
        segments = self.segments
        if len(segments) == 1:
            return segments[0]
        return segments[offset // self.record.extent_bytes] if segments else None

    def segments_of(self, start: int, end: int) -> list[Segment]:
        """Return the segments that hold bytes [start, end) of the object."""
        if len(self.segments) == 1:
            return self.segments
        width = self.record.extent_bytes
        return self.segments[start // width : -(-end // width)]


def _segments(record: ObjectRecord, before: Entry | None) -> list[Segment]:
    if record.packed:
        extent_id, slot = record.extents[0]
        return [Segment(extent_id, slot, 0, record.size_bytes, record.pack_offset)]
    known: dict[int, Segment] = {}
    if before is not None and before.record.data_id == record.data_id:
        known = {segment.extent_id: segment for segment in before.segments}
    segments = []
    for number, (extent_id, slot) in enumerate(record.extents):
        segment = known.get(extent_id)
        if segment is None or not extent_id:
            start = number * record.extent_bytes
            end = min(start + record.extent_bytes, record.size_bytes)
            segment = Segment(extent_id, slot, start, end, 0)
        segments.append(segment)
    return segments


def span_pages(segment: Segment, start: int, end: int) -> tuple[int, int]:
    """Return the pages [first, end), relative to the segment, of object bytes [start, end)."""
    first = (max(start, segment.start) - segment.start) >> PAGE_SHIFT
    last = (min(end, segment.end) - segment.start + PAGE_BYTES - 1) >> PAGE_SHIFT
    return first, last
