"""How much of an object is on the device, from the index alone."""

from __future__ import annotations

from tiercache import records
from tiercache.model import CHUNK_PAGES, PAGE_BYTES
from tiercache.policy.pages import count_pages, has_page, page_count
from tiercache.ports import IndexReader
from tiercache.records import BITMAP_BYTES, ObjectRecord


def cached_bytes(index: IndexReader, digest: bytes) -> int:
    """Return the bytes present of the last known version of the name with this hash."""
    raw = index.get(records.object_key(digest))
    if raw is None:
        return 0
    return present_bytes(index, records.decode_object(raw))


def present_bytes(index: IndexReader, record: ObjectRecord) -> int:
    """Return the bytes present of a version."""
    if record.packed or not record.data_id:
        return record.size_bytes if record.packed else 0
    count = page_count(record.size_bytes)
    present = 0
    for _, chunk in index.scan(records.chunk_prefix(record.data_id)):
        present += count_pages(chunk[:BITMAP_BYTES])
    final = index.get(records.chunk_key(record.data_id, (count - 1) // CHUNK_PAGES))
    last = final is not None and has_page(final, (count - 1) % CHUNK_PAGES)
    return present * PAGE_BYTES - (count * PAGE_BYTES - record.size_bytes if last else 0)
