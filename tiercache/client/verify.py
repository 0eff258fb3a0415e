"""Verification: each page is checked when this process first touches it after an agent start.

Thread safe: two threads may check one page at once, to the same end.
"""

from __future__ import annotations

import os
import threading

import crc32c

from tiercache import records, wire
from tiercache.client.entry import UNCHECKED, Entry, Segment, span_pages
from tiercache.client.handles import Handles
from tiercache.client.link import Link
from tiercache.model import CHUNK_PAGES, PAGE_BYTES, PAGE_SHIFT
from tiercache.policy.pages import has_page
from tiercache.ports import ExtentReader, IndexReader
from tiercache.records import BITMAP_BYTES

# Chunk records at hand, 4.2 KiB each: each look into the index gives the interpreter away and takes
# it back three times, which costs more than the look where threads contend for it.
KEPT_CHUNKS = 256
# Verification reads through a buffer that stays in the processor's cache.
VERIFY_BYTES = 512 * 1024


class Verifier:
    """Presence and checksums, from the index."""

    def __init__(self, index: IndexReader, link: Link, handles: Handles) -> None:
        self._index = index
        self._link = link
        self._handles = handles
        self._buffers = threading.local()
        # Single dict operations, atomic by themselves
        self._chunks: dict[tuple[int, int], bytes] = {}

    def read(self, entry: Entry, segment: Segment, start: int, end: int) -> bytes | None:
        """Return bytes [start, end) of one segment, checking each page not checked before; one
        ``pread`` serves both. None where a page is absent or bad, for ``lacking`` and ``verify``
        to say which."""
        ext = segment.held.ext
        first = (start - segment.start) >> PAGE_SHIFT
        last = (end - segment.start + PAGE_BYTES - 1) >> PAGE_SHIFT
        record = entry.record
        if record.packed:
            crcs = record.crcs[first * 4 : last * 4]
        else:
            crcs = self._present(entry, segment, first, last)
        if ext is None or not crcs:
            return None
        begin = first << PAGE_SHIFT
        stop = min(last << PAGE_SHIFT, segment.end - segment.start)
        try:
            data = os.pread(ext.fd, stop - begin, segment.base + begin)
        except OSError:
            return None
        if last - first == 1:
            if crc32c.crc32c(data).to_bytes(4, "little") != crcs:
                return None
            segment.verified[first] = 1
        else:
            view = memoryview(data)
            for page in range(first, last):
                inside = (page - first) << PAGE_SHIFT
                crc = crc32c.crc32c(view[inside : inside + PAGE_BYTES])
                if crc.to_bytes(4, "little") != crcs[inside >> 14 : (inside >> 14) + 4]:
                    return None
                segment.verified[page] = 1
        offset = start - segment.start - begin
        return data if end - start == len(data) else data[offset : offset + end - start]

    def read_into(
        self, entry: Entry, segment: Segment, start: int, end: int, into: memoryview
    ) -> bool:
        """Fill ``into`` with bytes [start, end), whole pages of one segment, each checked while
        the processor's cache holds it. False where a page is cut, absent or bad."""
        ext = segment.held.ext
        begin, stop = start - segment.start, end - segment.start
        cut = begin % PAGE_BYTES or (stop % PAGE_BYTES and end != segment.end)
        if ext is None or cut or entry.record.packed:
            return False
        for at in range(begin, stop, VERIFY_BYTES):
            part = into[at - begin : min(at - begin + VERIFY_BYTES, stop - begin)]
            first, last = at >> PAGE_SHIFT, (at + len(part) + PAGE_BYTES - 1) >> PAGE_SHIFT
            crcs = self._present(entry, segment, first, last)
            try:
                if not crcs or os.preadv(ext.fd, (part,), segment.base + at) != len(part):
                    return False
            except OSError:
                return False
            for page in range(first, last):
                inside = (page - first) << PAGE_SHIFT
                crc = crc32c.crc32c(part[inside : inside + PAGE_BYTES])
                if crc.to_bytes(4, "little") != crcs[inside >> 14 : (inside >> 14) + 4]:
                    return False
                segment.verified[page] = 1
        return True

    def _present(self, entry: Entry, segment: Segment, first: int, last: int) -> bytes:
        """Return the checksums of these pages of a large object; nothing where one is absent.

        What was seen of a chunk is kept, and needs no check: bytes that agree with the checksum
        of their page are right, whatever became of the page since, and what does not agree is
        looked at anew.
        """
        base = segment.start >> PAGE_SHIFT
        chunk, relative = divmod(base + first, CHUNK_PAGES)
        if relative + last - first > CHUNK_PAGES:
            if self.lacking(entry, segment, first, last):
                return b""
            return self._checksums(entry, segment, first, last)
        end = relative + last - first
        raw = self._chunks.get((entry.record.data_id, chunk), b"")
        if not _all_present(raw, relative, end):
            raw = self._index.get(records.chunk_key(entry.record.data_id, chunk)) or b""
            if not _all_present(raw, relative, end):
                return b""
            if len(self._chunks) >= KEPT_CHUNKS:
                self._chunks.clear()
            self._chunks[entry.record.data_id, chunk] = raw
        return raw[BITMAP_BYTES + relative * 4 : BITMAP_BYTES + end * 4]

    def missing(self, entry: Entry, start: int, end: int) -> list[tuple[int, int]]:
        """Verify what is present of [start, end) and return the page spans, in object pages, that
        are not."""
        if not entry.segments:
            return [(start >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1)] if end > start else []
        missing: list[tuple[int, int]] = []
        for segment in entry.segments_of(start, end):
            first, last = span_pages(segment, start, end)
            if segment.verified.find(0, first, last) < 0 and segment.held.ext is not None:
                continue
            base = segment.start >> PAGE_SHIFT
            if segment.held.ext is None and not self._handles.open(entry, segment):
                missing.append((base + first, base + last))
                continue
            lacking = self.lacking(entry, segment, first, last)
            if lacking:
                missing += [(base + page, base + page + 1) for page in lacking]
            else:
                missing += [
                    (base + page, base + page + 1)
                    for page in self.verify(entry, segment, first, last)
                ]
        entry.note_verified()
        return missing

    def absent(self, entry: Entry, start: int, end: int) -> bool:
        """Return whether any page of the span is not present, verified or not."""
        for segment in entry.segments_of(start, end):
            first, last = span_pages(segment, start, end)
            if segment.verified.find(0, first, last) < 0:
                continue
            if not segment.extent_id or self.lacking(entry, segment, first, last):
                return True
        return not entry.segments

    def lacking(self, entry: Entry, segment: Segment, first: int, last: int) -> list[int]:
        if entry.record.packed:
            return []
        lacking = []
        base = segment.start >> PAGE_SHIFT
        chunk, bitmap = -1, b""
        for page in range(base + first, base + last):
            if segment.verified[page - base]:
                continue
            if page // CHUNK_PAGES != chunk:
                chunk = page // CHUNK_PAGES
                key = records.chunk_key(entry.record.data_id, chunk)
                bitmap = self._index.get(key) or bytes(BITMAP_BYTES)
            if not has_page(bitmap, page % CHUNK_PAGES):
                lacking.append(page - base)
        return lacking

    def verify(self, entry: Entry, segment: Segment, first: int, last: int) -> list[int]:
        """Check pages that are present for the first time; return those found bad, reported. Where
        the agent finds them good, the index has moved on, or the reader goes to the origin."""
        bad: list[int] = []
        step = VERIFY_BYTES >> PAGE_SHIFT
        for start in range(first, last, step):
            ext = segment.held.ext
            if ext is None:  # let go of meanwhile, which says nothing of its bytes
                entry.epoch = UNCHECKED
                return bad + list(range(start, last))
            bad += self._verify_block(ext, entry, segment, (start, min(last, start + step)))
        if bad:
            base = segment.start >> PAGE_SHIFT
            self.report(entry, [(base + page, base + page + 1) for page in bad])
            entry.epoch = UNCHECKED
        return bad

    def report(self, entry: Entry, spans: list[tuple[int, int]]) -> int:
        """Let the agent look at these pages of the object; return how many were bad there, and
        are dropped."""
        suspects = tuple(page for span in spans for page in range(*span))
        report = wire.ReportCorrupt(entry.path, entry.record.data_id, suspects)
        return self._link.request(report, wire.Done).count

    def _verify_block(
        self, ext: ExtentReader, entry: Entry, segment: Segment, span: tuple[int, int]
    ) -> list[int]:
        first, last = span
        length = min(last << PAGE_SHIFT, segment.end - segment.start) - (first << PAGE_SHIFT)
        buffer = self._buffer()[:length]
        try:
            got = os.preadv(ext.fd, [buffer], segment.base + (first << PAGE_SHIFT))
        except OSError:
            got = 0  # the device cannot read it: the same as bytes that are wrong
        crcs = self._checksums(entry, segment, first, last)
        bad = []
        for page in range(first, last):
            inside = (page - first) << PAGE_SHIFT
            data = buffer[inside : min(inside + PAGE_BYTES, got)]
            expected = crcs[(page - first) * 4 : (page - first) * 4 + 4]
            if crc32c.crc32c(data).to_bytes(4, "little") != expected:
                bad.append(page)
            else:
                segment.verified[page] = 1
        return bad

    def _checksums(self, entry: Entry, segment: Segment, first: int, last: int) -> bytes:
        if entry.record.packed:
            return entry.record.crcs[first * 4 : last * 4]
        found = b""
        base = segment.start >> PAGE_SHIFT
        page = base + first
        while page < base + last:
            chunk, relative = divmod(page, CHUNK_PAGES)
            count = min(CHUNK_PAGES - relative, base + last - page)
            raw = self._index.get(records.chunk_key(entry.record.data_id, chunk)) or b""
            start = BITMAP_BYTES + relative * 4
            found += raw[start : start + count * 4].ljust(count * 4, b"\0")
            page += count
        return found

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "verify", None)
        if buffer is None:
            buffer = self._buffers.verify = memoryview(bytearray(VERIFY_BYTES))
        return buffer


def _all_present(raw: bytes, first: int, end: int) -> bool:
    return bool(raw) and all(has_page(raw, page) for page in range(first, end))
