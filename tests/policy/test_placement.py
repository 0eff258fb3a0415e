"""Placement: sizes from the capacity, and objects into extents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.model import PAGE_BYTES
from tiercache.policy.placement import EXTENT_SHARE, MAX_EXTENT_BYTES, Placement
from tiercache.units import GIB, KIB, MIB, TIB


@pytest.mark.parametrize(
    ("capacity", "extent", "pack", "small"),
    [
        (8 * MIB, 64 * KIB, MIB, 256 * KIB),
        (64 * MIB, 512 * KIB, MIB, 256 * KIB),
        (GIB, 8 * MIB, 8 * MIB, MIB),
        (100 * GIB, 800 * MIB, 64 * MIB, MIB),
        (2 * TIB, 16 * GIB, 64 * MIB, MIB),
        (64 * TIB, 16 * GIB, 64 * MIB, MIB),
    ],
)
def test_sizes_by_capacity(capacity: int, extent: int, pack: int, small: int) -> None:
    placement = Placement.of_capacity(capacity)
    assert placement.extent_bytes == extent
    assert placement.pack_bytes == pack
    assert placement.small_object_bytes == small


@given(st.integers(0, 1 << 50))
def test_sizes_hold_their_bounds(capacity: int) -> None:
    placement = Placement.of_capacity(capacity)
    assert placement.extent_bytes % PAGE_BYTES == 0
    assert placement.pack_bytes % PAGE_BYTES == 0
    assert PAGE_BYTES <= placement.extent_bytes <= MAX_EXTENT_BYTES
    assert placement.extent_bytes <= max(PAGE_BYTES, capacity // EXTENT_SHARE)
    # The largest small object fits into a pack with room to spare.
    assert 4 * placement.small_object_bytes <= placement.pack_bytes
    assert placement.is_small(placement.small_object_bytes)
    assert not placement.is_small(placement.small_object_bytes + 1)


@given(capacity=st.integers(MIB, 1 << 45), size=st.integers(1, 1 << 42))
def test_extents_cover_the_object_with_none_to_spare(capacity: int, size: int) -> None:
    covers, count = Placement.of_capacity(capacity).extents_of(size)
    assert covers % PAGE_BYTES == 0  # or a page would lie in two extents
    assert covers * (count - 1) < size <= covers * count


def test_an_object_of_a_share_is_one_file() -> None:
    placement = Placement.of_capacity(GIB)
    assert placement.extents_of(8 * MIB) == (8 * MIB, 1)
    assert placement.extents_of(8 * MIB - 1) == (8 * MIB, 1)
    assert placement.extents_of(8 * MIB + 1) == (8 * MIB, 2)
