"""Live extents as the agent holds them, and the visited bytes they are given."""

from __future__ import annotations

from dataclasses import dataclass

from tiercache.errors import CacheFull

# A pack of 64 MiB has a visited byte for each MiB, so that copying forward is worth its reads.
PACK_SLOTS = 64


@dataclass(slots=True, kw_only=True)
class ExtentState:
    """One live extent, charged to ``identity``. ``busy`` counts fills, appends and copies that
    forbid eviction now; ``writers`` those whose reservation is on that identity's account, so that
    the extent cannot pass on. ``used_bytes`` is the append position of a pack; ``slots`` how many
    visited bytes it has."""

    id: int
    slot: int
    slots: int
    length_bytes: int
    owner: bytes
    data_id: int
    first_page: int
    identity: str
    busy: int = 0
    writers: int = 0
    used_bytes: int = 0
    pinned: bool = False
    sealed: bool = True

    @property
    def is_pack(self) -> bool:
        return not self.owner


class Slots:
    """Visited bytes: singles from the lower half, runs of PACK_SLOTS from the upper."""

    def __init__(self, count: int) -> None:
        half = count // 2
        self._next_single, self._end_single = 1, half
        self._next_run, self._end_run = half, half + (count - half) // PACK_SLOTS * PACK_SLOTS
        self._free: dict[int, set[int]] = {1: set(), PACK_SLOTS: set()}
        self._half = half

    def claim(self, slot: int) -> None:
        """Note a slot that a stored extent already has."""
        if slot < self._half:
            while self._next_single <= slot:
                self._free[1].add(self._next_single)
                self._next_single += 1
            self._free[1].remove(slot)
        else:
            while self._next_run <= slot:
                self._free[PACK_SLOTS].add(self._next_run)
                self._next_run += PACK_SLOTS
            self._free[PACK_SLOTS].remove(slot)

    def take(self, run: int) -> int:
        """Raises CacheFull when all are in use (half a million extents)."""
        if self._free[run]:
            return self._free[run].pop()
        if run == 1 and self._next_single < self._end_single:
            self._next_single += 1
            return self._next_single - 1
        if run == PACK_SLOTS and self._next_run < self._end_run:
            self._next_run += PACK_SLOTS
            return self._next_run - PACK_SLOTS
        raise CacheFull("all extent slots are in use", remedy="use a larger share of large objects")

    def give(self, slot: int, run: int) -> None:
        self._free[run].add(slot)
