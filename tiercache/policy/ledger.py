"""The ledger of the cache device: reserve → charge | release. A limit is a limit.

Bytes are reserved before they are written. A reservation becomes a charge when the device says
what was really allocated. Each extent is charged to one identity, and each reservation made for
one; ``Account`` holds their sums. Nothing is clamped: a negative balance is a bug and raises.
"""

from __future__ import annotations

from dataclasses import dataclass

# Whom nobody's bytes are charged to: extents of a former agent that readers still hold.
NOBODY = ""


@dataclass(slots=True)
class Account:
    """What one identity holds, in bytes.

    ``live_bytes`` are the charges of extents that can be read, ``gone_bytes`` of those that were
    discarded and are still held open by readers. Of the live ones, ``pinned_bytes`` (with what is
    reserved inside them) are never evicted, and ``leaving_bytes`` are about to be.
    """

    live_bytes: int = 0
    gone_bytes: int = 0
    reserved_bytes: int = 0
    pinned_bytes: int = 0
    leaving_bytes: int = 0
    extents: int = 0

    @property
    def used_bytes(self) -> int:
        """What counts against ``max``."""
        return self.live_bytes + self.gone_bytes + self.reserved_bytes


@dataclass(slots=True)
class _Entry:
    """One extent. ``inside_bytes`` are reservations for writes into it."""

    identity: str
    charged_bytes: int = 0
    inside_bytes: int = 0
    pinned: bool = False
    leaving: bool = False
    gone: bool = False


class Ledger:
    """Bytes by extent and by identity, and their sum against the limit. The event loop owns it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.overhead_bytes = 0  # index and the directory's own files
        self.charged_bytes = 0
        self.reserved_bytes = 0
        self.accounts: dict[str, Account] = {}
        # Whose live charges, pins or number of extents have changed since this was last cleared.
        self.moved: set[str] = set()
        self._entries: dict[int, _Entry] = {}

    @property
    def used_bytes(self) -> int:
        return self.overhead_bytes + self.charged_bytes + self.reserved_bytes

    @property
    def room_bytes(self) -> int:
        """What may still be reserved; negative after the limit was lowered or the index grew."""
        return self.limit_bytes - self.used_bytes

    def account(self, identity: str) -> Account:
        account = self.accounts.get(identity)
        if account is None:
            account = self.accounts[identity] = Account()
        return account

    # -- reservations -----------------------------------------------------------------------

    def reserve(self, count: int, identity: str = NOBODY) -> bool:
        """Set bytes aside; return False, changing nothing, where the limit forbids it."""
        if count > self.room_bytes:
            return False
        self.reserved_bytes += count
        self.account(identity).reserved_bytes += count
        return True

    def release(self, count: int, identity: str = NOBODY) -> None:
        """Give a reservation back."""
        self.reserved_bytes -= count
        account = self.account(identity)
        account.reserved_bytes -= count
        self._check(account)

    def hold(self, extent_id: int, count: int) -> None:
        """Note that ``count`` reserved bytes will be written into this extent; negative: that they
        were. Reserved bytes of a pinned extent are pinned."""
        entry = self._entries.get(extent_id)
        if entry is not None:
            entry.inside_bytes += count
            if entry.pinned:
                self.account(entry.identity).pinned_bytes += count

    # -- charges ----------------------------------------------------------------------------

    def charge(self, extent_id: int, allocated_bytes: int, identity: str = NOBODY) -> None:
        """Set what the extent occupies on the device now. ``identity`` matters when it is new."""
        entry = self._entries.get(extent_id)
        if entry is None:
            entry = self._entries[extent_id] = _Entry(identity)
            self.account(identity).extents += 1
        more = allocated_bytes - entry.charged_bytes
        entry.charged_bytes = allocated_bytes
        self.charged_bytes += more
        account = self.account(entry.identity)
        if entry.gone:
            account.gone_bytes += more
        else:
            account.live_bytes += more
            account.pinned_bytes += more if entry.pinned else 0
            account.leaving_bytes += more if entry.leaving else 0
            self.moved.add(entry.identity)
        self._check(account)

    def charge_of(self, extent_id: int) -> int:
        entry = self._entries.get(extent_id)
        return entry.charged_bytes if entry is not None else 0

    def pin(self, extent_id: int, pinned: bool) -> None:
        """Count the extent among what is never evicted, or no more."""
        entry = self._entries[extent_id]
        if entry.pinned != pinned and not entry.gone:
            entry.pinned = pinned
            account = self.account(entry.identity)
            held_bytes = entry.charged_bytes + entry.inside_bytes
            account.pinned_bytes += held_bytes if pinned else -held_bytes
            self.moved.add(entry.identity)
            self._check(account)

    def leave(self, extent_id: int, leaving: bool) -> None:
        """Note that the extent is about to be evicted, or is not after all."""
        entry = self._entries.get(extent_id)
        if entry is not None and entry.leaving != leaving and not entry.gone:
            entry.leaving = leaving
            charged = entry.charged_bytes
            self.account(entry.identity).leaving_bytes += charged if leaving else -charged

    def is_leaving(self, extent_id: int) -> bool:
        entry = self._entries.get(extent_id)
        return entry is not None and entry.leaving

    def pass_on(self, extent_id: int, identity: str) -> None:
        """Charge a live extent, which is neither pinned nor written to, to another identity."""
        entry = self._entries[extent_id]
        if entry.pinned or entry.leaving or entry.gone or entry.inside_bytes:
            raise AssertionError(f"extent {extent_id} is passed on while it is in use")
        for account, sign in ((self.account(entry.identity), -1), (self.account(identity), 1)):
            account.live_bytes += sign * entry.charged_bytes
            account.extents += sign
            self._check(account)
        self.moved.update((entry.identity, identity))
        entry.identity = identity

    def gone(self, extent_id: int) -> None:
        """Note that the extent was discarded; its bytes count until ``discharge``."""
        entry = self._entries.get(extent_id)
        if entry is None or entry.gone:
            return
        self.pin(extent_id, False)
        self.leave(extent_id, False)
        entry.gone = True
        account = self.account(entry.identity)
        account.live_bytes -= entry.charged_bytes
        account.gone_bytes += entry.charged_bytes
        account.extents -= 1
        self.moved.add(entry.identity)
        self._check(account)

    def discharge(self, extent_id: int) -> int:
        """Forget an extent whose space is free again; return what it was charged."""
        self.gone(extent_id)
        entry = self._entries.pop(extent_id, None)
        if entry is None:
            return 0
        self.charged_bytes -= entry.charged_bytes
        account = self.account(entry.identity)
        account.gone_bytes -= entry.charged_bytes
        self._check(account)
        return entry.charged_bytes

    # -- invariants -------------------------------------------------------------------------

    def _check(self, account: Account) -> None:
        if (
            self.charged_bytes < 0
            or self.reserved_bytes < 0
            or account.live_bytes < 0
            or account.gone_bytes < 0
            or account.reserved_bytes < 0
            or account.pinned_bytes < 0
            or account.leaving_bytes < 0
            or account.extents < 0
        ):
            raise AssertionError(
                f"ledger below zero: charged {self.charged_bytes}, reserved "
                f"{self.reserved_bytes}, {account}"
            )

    def sums(self) -> dict[str, Account]:
        """Return the accounts as their extents add up, reservations as they stand."""
        found: dict[str, Account] = {}
        for entry in self._entries.values():
            account = found.setdefault(entry.identity, Account())
            charged = entry.charged_bytes
            if entry.gone:
                account.gone_bytes += charged
                continue
            account.live_bytes += charged
            account.extents += 1
            account.pinned_bytes += charged + entry.inside_bytes if entry.pinned else 0
            account.leaving_bytes += charged if entry.leaving else 0
        for identity, account in self.accounts.items():
            found.setdefault(identity, Account()).reserved_bytes = account.reserved_bytes
        return found

    def assert_invariants(self) -> None:
        for account in self.accounts.values():
            self._check(account)
        found = self.sums()
        charged = sum(entry.charged_bytes for entry in self._entries.values())
        reserved = sum(account.reserved_bytes for account in found.values())
        if charged != self.charged_bytes or reserved != self.reserved_bytes:
            raise AssertionError("ledger: the charges do not add up to their sum")
        for identity, account in found.items():
            if account != self.account(identity):
                raise AssertionError(f"ledger: {identity!r} has {self.accounts}, not {account}")
