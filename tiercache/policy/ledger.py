"""The ledger of the cache device: reserve → charge | release. A limit is a limit.

Bytes are reserved before they are written. A reservation becomes a charge when the device says
what was really allocated. Nothing is clamped: a negative balance is a bug and raises.
"""

from __future__ import annotations


class Ledger:
    """Bytes by extent, and their sum against the limit. The event loop owns it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.overhead_bytes = 0  # index and the directory's own files
        self.charged_bytes = 0
        self.reserved_bytes = 0
        self._charges: dict[int, int] = {}

    @property
    def used_bytes(self) -> int:
        return self.overhead_bytes + self.charged_bytes + self.reserved_bytes

    @property
    def room_bytes(self) -> int:
        """What may still be reserved; negative after the limit was lowered or the index grew."""
        return self.limit_bytes - self.used_bytes

    def reserve(self, count: int) -> bool:
        """Set bytes aside; return False, changing nothing, where they do not fit."""
        if count > self.room_bytes:
            return False
        self.reserved_bytes += count
        return True

    def release(self, count: int) -> None:
        """Give a reservation back."""
        self.reserved_bytes -= count
        self._check()

    def charge(self, extent_id: int, allocated_bytes: int) -> None:
        """Set what the extent occupies on the device now."""
        self.charged_bytes += allocated_bytes - self._charges.get(extent_id, 0)
        self._charges[extent_id] = allocated_bytes
        self._check()

    def charge_of(self, extent_id: int) -> int:
        return self._charges.get(extent_id, 0)

    def discharge(self, extent_id: int) -> int:
        """Forget an extent whose space is free again; return what it was charged."""
        freed = self._charges.pop(extent_id, 0)
        self.charged_bytes -= freed
        self._check()
        return freed

    def _check(self) -> None:
        if self.charged_bytes < 0 or self.reserved_bytes < 0:
            raise AssertionError(
                f"ledger below zero: charged {self.charged_bytes}, reserved {self.reserved_bytes}"
            )

    def assert_invariants(self) -> None:
        self._check()
        if sum(self._charges.values()) != self.charged_bytes:
            raise AssertionError("ledger: the charges do not add up to their sum")
