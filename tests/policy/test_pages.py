"""Page arithmetic against sets of page numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.model import CHUNK_PAGES, PAGE_BYTES
from tiercache.policy import pages

SIZES = st.one_of(st.integers(0, 4 * PAGE_BYTES), st.integers(0, 1 << 42))
PAGES = st.sets(st.integers(0, 127), max_size=60)


def test_a_page_is_64_kib_and_a_chunk_64_mib() -> None:
    assert PAGE_BYTES == 65536 == 1 << 16
    assert CHUNK_PAGES * PAGE_BYTES == 64 << 20


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 0), (1, 1), (65535, 1), (65536, 1), (65537, 2), (64 << 20, 1024), ((64 << 20) + 1, 1025)],
)
def test_page_count(size: int, count: int) -> None:
    assert pages.page_count(size) == count


@pytest.mark.parametrize(
    ("offset", "length", "span"),
    [
        (0, 0, (0, 0)),
        (65536, 0, (1, 1)),
        (0, 1, (0, 1)),
        (0, 65536, (0, 1)),
        (0, 65537, (0, 2)),
        (65535, 1, (0, 1)),
        (65535, 2, (0, 2)),
        (65536, 1, (1, 2)),
        (70000, 65536, (1, 3)),
    ],
)
def test_page_span(offset: int, length: int, span: tuple[int, int]) -> None:
    assert pages.page_span(offset, length) == span


@given(size=SIZES, offset=st.integers(0, 1 << 42), length=st.integers(1, 1 << 30))
def test_a_span_holds_exactly_the_pages_that_the_bytes_touch(
    size: int, offset: int, length: int
) -> None:
    first, end = pages.page_span(offset, length)
    assert first * PAGE_BYTES <= offset < (first + 1) * PAGE_BYTES
    assert (end - 1) * PAGE_BYTES < offset + length <= end * PAGE_BYTES


@given(size=st.integers(1, 40 * PAGE_BYTES))
def test_the_pages_of_an_object_add_up_to_it(size: int) -> None:
    lengths = [pages.page_bytes(page, size) for page in range(pages.page_count(size))]
    assert sum(lengths) == size
    assert all(length == PAGE_BYTES for length in lengths[:-1])
    assert 0 < lengths[-1] <= PAGE_BYTES


def bitmap_of(present: set[int]) -> bytearray:
    """The documented layout, spelt out: least significant bit first."""
    bitmap = bytearray(16)
    for page in present:
        bitmap[page // 8] += 2 ** (page % 8)
    return bitmap


@given(present=PAGES, first=st.integers(0, 128), end=st.integers(0, 128))
def test_bitmaps(present: set[int], first: int, end: int) -> None:
    span = set(range(first, end))
    bitmap = bitmap_of(present)
    assert {page for page in range(128) if pages.has_page(bitmap, page)} == present
    assert pages.count_pages(bitmap) == len(present)
    pages.set_pages(bitmap, first, end)
    assert bitmap == bitmap_of(present | span)
    assert pages.clear_pages(bitmap, first, end) == len(span)
    assert pages.clear_pages(bitmap, first, end) == 0
    assert bitmap == bitmap_of(present - span)


@given(first=st.integers(0, 5000), count=st.integers(0, 5000))
def test_chunk_pages_cover_the_span_once_and_in_order(first: int, count: int) -> None:
    covered = []
    for chunk, start, stop in pages.chunk_pages(first, first + count):
        assert 0 <= start < stop <= CHUNK_PAGES
        covered += [chunk * CHUNK_PAGES + page for page in range(start, stop)]
    assert covered == list(range(first, first + count))


@given(
    missing=PAGES,
    first=st.integers(0, 127),
    count=st.integers(0, 127),
    boundary=st.sampled_from([0, 1, 3, 16]),
    longest=st.integers(1, 20),
)
def test_missing_runs(
    missing: set[int], first: int, count: int, boundary: int, longest: int
) -> None:
    runs = pages.missing_runs(
        first, first + count, missing.__contains__, boundary_pages=boundary, run_pages=longest
    )
    fetched = [page for start, end in runs for page in range(start, end)]
    assert fetched == sorted(missing & set(range(first, first + count)))  # each once, no other
    for start, end in runs:
        assert 0 < end - start <= longest
        assert not boundary or start // boundary == (end - 1) // boundary
    for before, after in pairwise(runs):
        # Adjacent runs are split for a reason.
        split = before[1] == after[0]
        full = before[1] - before[0] == longest
        assert not split or full or (boundary and after[0] % boundary == 0)


def test_a_run_is_8_mib_and_a_gap_of_one_page_splits_it() -> None:
    assert pages.missing_runs(0, 300, lambda _: True) == [(0, 128), (128, 256), (256, 300)]
    assert pages.missing_runs(0, 10, lambda page: page != 4) == [(0, 4), (5, 10)]
    assert pages.missing_runs(0, 10, lambda _: False) == []
