"""Placement: which size of extent an object gets, from the capacity."""

from __future__ import annotations

from dataclasses import dataclass

from tiercache.model import PAGE_BYTES, SMALL_OBJECT_BYTES
from tiercache.units import GIB, MIB

# An extent is at most 1/128 of the cache, so that evicting one frees less than 1 %.
EXTENT_SHARE = 128
# ext4 and XFS map a file of 16 GiB cheaply; larger ones gain nothing.
MAX_EXTENT_BYTES = 16 * GIB
# 64 MiB packs: 1,024 objects of 64 KiB a file, so a million small files cost 1,000 inodes.
MAX_PACK_BYTES = 64 * MIB
MIN_PACK_BYTES = 1 * MIB
# Objects in a pack begin at multiples of 64 bytes: a cache line, and cheap to be wasted.
PACK_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Sizes derived once from the capacity. All in bytes, all multiples of a page."""

    extent_bytes: int
    pack_bytes: int
    small_object_bytes: int

    @classmethod
    def of_capacity(cls, capacity_bytes: int) -> Placement:
        share = capacity_bytes // EXTENT_SHARE // PAGE_BYTES * PAGE_BYTES
        extent = max(PAGE_BYTES, min(MAX_EXTENT_BYTES, share))
        pack = max(MIN_PACK_BYTES, min(MAX_PACK_BYTES, share))
        small = min(SMALL_OBJECT_BYTES, pack // 4)
        return cls(extent_bytes=extent, pack_bytes=pack, small_object_bytes=small)

    def is_small(self, size_bytes: int) -> bool:
        return size_bytes <= self.small_object_bytes

    def extents_of(self, size_bytes: int) -> tuple[int, int]:
        """Return (bytes an extent covers, how many) for a large object."""
        if size_bytes <= self.extent_bytes:
            whole = (size_bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
            return whole, 1
        return self.extent_bytes, -(-size_bytes // self.extent_bytes)
