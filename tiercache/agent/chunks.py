"""Presence and checksums of large objects, chunk by chunk, as the agent keeps them at hand."""

from __future__ import annotations

from collections import OrderedDict

import crc32c

from tiercache import records
from tiercache.agent.index import Index
from tiercache.model import CHUNK_PAGES, PAGE_BYTES
from tiercache.policy import pages
from tiercache.records import BITMAP_BYTES

# 4.2 KiB each: 4,096 chunks are 17 MiB of memory and cover 256 GiB of hot objects.
KEPT_CHUNKS = 4096


def checksums(data: memoryview) -> bytes:
    """Return the CRC32C of each page of ``data`` (the last may be short), 4 bytes each."""
    out = bytearray()
    for start in range(0, len(data), PAGE_BYTES):
        out += crc32c.crc32c(data[start : start + PAGE_BYTES]).to_bytes(4, "little")
    return bytes(out)


class Chunks:
    """A cache over the chunk records. Owned by the event loop."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._kept: OrderedDict[bytes, tuple[bytearray, bytearray]] = OrderedDict()

    def _load(self, data_id: int, chunk: int) -> tuple[bytearray, bytearray]:
        key = records.chunk_key(data_id, chunk)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        raw = self._index.get(key)
        if raw is None:
            kept = (bytearray(BITMAP_BYTES), bytearray())
        else:
            kept = (bytearray(raw[:BITMAP_BYTES]), bytearray(raw[BITMAP_BYTES:]))
        self._kept[key] = kept
        if len(self._kept) > KEPT_CHUNKS:
            self._kept.popitem(last=False)
        return kept

    def has(self, data_id: int, page: int) -> bool:
        chunk, relative = divmod(page, CHUNK_PAGES)
        return pages.has_page(self._load(data_id, chunk)[0], relative)

    def crc(self, data_id: int, page: int) -> bytes:
        chunk, relative = divmod(page, CHUNK_PAGES)
        return bytes(self._load(data_id, chunk)[1][relative * 4 : relative * 4 + 4])

    def mark(self, data_id: int, first: int, crcs: bytes) -> None:
        """Make pages from ``first`` on present, one per checksum."""
        done = 0
        for chunk, start, stop in pages.chunk_pages(first, first + len(crcs) // 4):
            bitmap, stored = self._load(data_id, chunk)
            if len(stored) < stop * 4:
                stored.extend(bytes(stop * 4 - len(stored)))
            stored[start * 4 : stop * 4] = crcs[done : done + (stop - start) * 4]
            done += (stop - start) * 4
            pages.set_pages(bitmap, start, stop)
            self._index.put(records.chunk_key(data_id, chunk), bytes(bitmap) + bytes(stored))

    def drop(self, data_id: int, first: int, end: int) -> int:
        """Make pages [first, end) absent; return how many were present."""
        dropped = 0
        for chunk, start, stop in pages.chunk_pages(first, end):
            key = records.chunk_key(data_id, chunk)
            if key not in self._kept and self._index.get(key) is None:
                continue
            bitmap, stored = self._load(data_id, chunk)
            dropped += pages.clear_pages(bitmap, start, stop)
            if any(bitmap):
                self._index.put(key, bytes(bitmap) + bytes(stored))
            else:
                self._kept.pop(key, None)
                self._index.put(key, None)
        return dropped

    def present(self, data_id: int, page_count: int) -> int:
        """Return how many of the object's pages are present."""
        total = 0
        for chunk, _, _ in pages.chunk_pages(0, page_count):
            total += pages.count_pages(self._load(data_id, chunk)[0])
        return total
