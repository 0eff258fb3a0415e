"""Page arithmetic: spans of bytes to pages, bitmaps, and the runs worth one GET each.

Pages are numbered from 0 in an object; the last may be short. A span is [start, end). A bitmap is
a ``bytearray`` of one bit a page of a chunk, least significant bit first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tiercache.model import CHUNK_PAGES, PAGE_BYTES, PAGE_SHIFT

# 8 MiB a ranged GET, six at once, fills at 0.8-1.6 GB/s (DESIGN §6); larger runs only add latency
# and buffer.
RUN_PAGES = 8 * 1024 * 1024 // PAGE_BYTES


def page_count(size_bytes: int) -> int:
    return (size_bytes + PAGE_BYTES - 1) >> PAGE_SHIFT


def page_span(offset: int, length: int) -> tuple[int, int]:
    """Return the pages [first, end) that bytes [offset, offset + length) touch."""
    if length <= 0:
        return (offset >> PAGE_SHIFT, offset >> PAGE_SHIFT)
    return (offset >> PAGE_SHIFT, ((offset + length - 1) >> PAGE_SHIFT) + 1)


def page_bytes(page: int, size_bytes: int) -> int:
    """Return how many bytes this page of an object of ``size_bytes`` holds."""
    return min(PAGE_BYTES, size_bytes - page * PAGE_BYTES)


def has_page(bitmap: bytes | bytearray, page: int) -> bool:
    """``page`` is relative to the chunk."""
    return bool(bitmap[page >> 3] >> (page & 7) & 1)


def set_pages(bitmap: bytearray, first: int, end: int) -> None:
    for page in range(first, end):
        bitmap[page >> 3] |= 1 << (page & 7)


def clear_pages(bitmap: bytearray, first: int, end: int) -> int:
    """Return how many of them were set."""
    dropped = 0
    for page in range(first, end):
        mask = 1 << (page & 7)
        if bitmap[page >> 3] & mask:
            bitmap[page >> 3] &= ~mask
            dropped += 1
    return dropped


def count_pages(bitmap: bytes | bytearray) -> int:
    return int.from_bytes(bitmap, "little").bit_count()


def chunk_pages(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Split pages [first, end) by chunk: yield (chunk, first, end) relative to the chunk."""
    while first < end:
        chunk, start = divmod(first, CHUNK_PAGES)
        stop = min(CHUNK_PAGES, start + end - first)
        yield chunk, start, stop
        first += stop - start


def missing_runs(
    first: int,
    end: int,
    is_missing: Callable[[int], bool],
    *,
    boundary_pages: int = 0,
    run_pages: int = RUN_PAGES,
) -> list[tuple[int, int]]:
    """Return the runs [first, end) of adjacent missing pages, none longer than ``run_pages`` and
    none crossing a multiple of ``boundary_pages`` (0: no such boundary). Present pages are never
    fetched again: a gap of even one page splits a run."""
    runs: list[tuple[int, int]] = []
    start = -1
    for page in range(first, end):
        if not is_missing(page):
            if start >= 0:
                runs.append((start, page))
                start = -1
            continue
        full = start >= 0 and page - start >= run_pages
        crossing = start >= 0 and boundary_pages > 0 and page % boundary_pages == 0
        if full or crossing:
            runs.append((start, page))
            start = page
        elif start < 0:
            start = page
    if start >= 0:
        runs.append((start, end))
    return runs
