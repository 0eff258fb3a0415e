"""What a client keeps of one object version, so that a hit costs a dict look-up and a ``pread``."""

from __future__ import annotations

from tiercache.model import PAGE_BYTES, PAGE_SHIFT
from tiercache.policy.pages import page_count
from tiercache.policy.readahead import ReadAhead
from tiercache.ports import ExtentReader
from tiercache.records import ObjectRecord
from tiercache.settings import MountSettings

# Never a real epoch: the entry must be checked against the index before its next use.
UNCHECKED = -1


class Use:
    """Hits of one mount in this process. Plain additions: threads may lose a few of a million."""

    __slots__ = ("hit_bytes", "hits", "mount")

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.hits = 0
        self.hit_bytes = 0


class Segment:
    """The part of an object that lies in one extent.

    ``start`` and ``end`` are bytes of the object, ``base`` the file offset of ``start``;
    ``verified`` has one byte for each page, 1 once this process has checked it.
    """

    __slots__ = ("base", "end", "ext", "extent_id", "map", "slot", "start", "verified")

    def __init__(self, *, extent_id: int, slot: int, start: int, end: int, base: int) -> None:
        self.extent_id = extent_id
        self.slot = slot
        self.start = start
        self.end = end
        self.base = base
        self.ext: ExtentReader | None = None
        self.map: memoryview | None = None
        self.verified = bytearray(page_count(end - start))


class Entry:
    """One object version under one path, laid out one way. Another layout is another entry, so a
    thread in the middle of a read never sees places of one and files of the other.

    The fields of the first group repeat those of the only segment, for the fast path; an object
    of several segments has ``fast_bytes`` -1 and takes the general one.
    """

    __slots__ = (
        "__weakref__", "base", "digest", "epoch", "ext", "fast_bytes", "fresh_until_s",
        "generation", "map", "mount", "path", "raw", "read_ahead", "record", "segments",
        "slot", "stale", "use", "verified",
    )  # fmt: skip

    def __init__(
        self,
        *,
        path: str,
        digest: bytes,
        mount: MountSettings,
        use: Use,
        record: ObjectRecord,
        before: Entry | None = None,
    ) -> None:
        """``before`` is what was known of the same version under the same agent: what it has
        verified and opened is kept."""
        # Constant after construction
        self.path = path
        self.digest = digest
        self.mount = mount
        self.use = use
        self.record = record
        self.segments = _segments(record, before)
        self.fast_bytes = -1
        self.base = self.slot = 0
        self.verified = bytearray()
        if len(self.segments) == 1:
            only = self.segments[0]
            self.fast_bytes = record.size_bytes
            self.base, self.slot, self.verified = only.base, only.slot, only.verified
        # Moves with the index
        self.epoch = UNCHECKED
        self.fresh_until_s = 0.0
        self.generation = 0
        self.raw = b""
        self.stale = False
        self.read_ahead: ReadAhead = before.read_ahead if before else ReadAhead()
        # Of the only segment, None while it is not open
        single = self.segments[0] if len(self.segments) == 1 else None
        self.ext: ExtentReader | None = single.ext if single else None
        self.map: memoryview | None = single.map if single else None

    def opened(self, segment: Segment, ext: ExtentReader) -> None:
        segment.ext = ext
        segment.map = None
        if len(self.segments) == 1:
            self.map = None
            self.ext = ext

    def mapped(self, segment: Segment) -> memoryview:
        """Return the mapping of the segment's extent, made at the first call."""
        if segment.map is None:
            assert segment.ext is not None
            segment.map = segment.ext.view()
            if len(self.segments) == 1:
                self.map = segment.map
        return segment.map

    def let_go(self, extent_id: int) -> None:
        """Close the extent for this entry; what still reads it finishes undisturbed."""
        self.epoch = UNCHECKED
        self.raw = b""
        for segment in self.segments:
            if segment.extent_id == extent_id:
                segment.ext = None
                segment.map = None
        self.ext = None
        self.map = None

    def segments_of(self, start: int, end: int) -> list[Segment]:
        """Return the segments that hold bytes [start, end) of the object."""
        if len(self.segments) == 1:
            return self.segments
        width = self.record.extent_bytes
        return self.segments[start // width : -(-end // width)]


def _segments(record: ObjectRecord, before: Entry | None) -> list[Segment]:
    known: dict[int, Segment] = {}
    if before is not None and before.record.data_id == record.data_id:
        known = {segment.extent_id: segment for segment in before.segments}
    segments = []
    for number, (extent_id, slot) in enumerate(record.extents):
        start = number * record.extent_bytes
        end = record.size_bytes if record.packed else start + record.extent_bytes
        base = record.pack_offset if record.packed else 0
        segment = known.get(extent_id)
        if segment is None or not extent_id or segment.base != base:
            segment = Segment(
                extent_id=extent_id,
                slot=slot,
                start=start,
                end=min(end, record.size_bytes),
                base=base,
            )
        segments.append(segment)
    return segments


def span_pages(segment: Segment, start: int, end: int) -> tuple[int, int]:
    """Return the pages [first, end), relative to the segment, of object bytes [start, end)."""
    first = (max(start, segment.start) - segment.start) >> PAGE_SHIFT
    last = (min(end, segment.end) - segment.start + PAGE_BYTES - 1) >> PAGE_SHIFT
    return first, last
