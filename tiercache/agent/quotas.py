"""What identities hold of the cache, told and checked: ``QosQuery`` "quotas" and "quota-check",
``QosChange`` "quota-repair". Owned by the event loop.
"""

from __future__ import annotations

import asyncio

from tiercache.agent.plane import Plane
from tiercache.agent.space import EXTENT_OVERHEAD_BYTES
from tiercache.policy.ledger import NOBODY, Account
from tiercache.qos_reports import QuotaCheck, QuotaNow, QuotaProblem, Quotas
from tiercache.records import QuotaRecord

# Extents looked at on the device between two turns of the event loop: ~1 ms.
TURN_EXTENTS = 200


class QuotaDesk:
    """Answers for one ledger."""

    def __init__(self, plane: Plane) -> None:
        self._index = plane.index
        self._space = plane.space
        self._contents = plane.contents
        self._extents = plane.extents

    def holding(self, identity: str) -> tuple[int, int]:
        """Return what an identity holds of the cache, and what it has pinned of that."""
        account = self._space.ledger.accounts.get(identity) or Account()
        return account.used_bytes, account.pinned_bytes

    def quotas(self) -> Quotas:
        """Return everybody who has a capacity or holds something."""
        space = self._space
        unpinned = self._contents.unpinned_bytes()
        known = space.quotas.capacities.keys() | space.ledger.accounts.keys() - {NOBODY}
        return Quotas(
            in_force=space.quotas.in_force,
            capacity_bytes=space.capacity_bytes,
            quotas=tuple(self._now(name, unpinned.get(name, 0)) for name in sorted(known)),
        )

    def _now(self, identity: str, unpinned_bytes: int) -> QuotaNow:
        space = self._space
        account = space.ledger.accounts.get(identity) or Account()
        capacity, refusals = space.quotas.of(identity), space.books.refusals_of(identity)
        return QuotaNow(
            identity=identity,
            used_bytes=account.used_bytes,
            reserved_bytes=account.reserved_bytes,
            held_bytes=account.gone_bytes,
            pinned_bytes=account.pinned_bytes,
            unpinned_bytes=unpinned_bytes,
            extents=account.extents,
            min_bytes=capacity.min_bytes,
            soft_bytes=capacity.soft_bytes,
            max_bytes=capacity.max_bytes,
            pin_max_bytes=capacity.pin_max_bytes,
            denied=refusals.denied,
            denied_bytes=refusals.denied_bytes,
            pins_refused=refusals.pins,
        )

    async def check(self, *, repair: bool = False) -> QuotaCheck:
        """Hold the ledger against the device, and the records against the ledger; with ``repair``
        make them agree. Extents that are written to meanwhile are passed over."""
        problems = await self._charges(repair)
        await self._index.flush()
        problems += self._records()
        if repair and problems:
            self._space.books.begin()
            self._space.books.put()
            await self._index.flush()
        return QuotaCheck(problems=tuple(problems))

    async def _charges(self, repair: bool) -> list[QuotaProblem]:
        ledger, problems = self._space.ledger, []
        for number, state in enumerate(list(self._space.live.values())):
            if number % TURN_EXTENTS == TURN_EXTENTS - 1:
                await asyncio.sleep(0)
            if state.busy or state.writers or state.id not in self._space.live:
                continue
            try:
                on_disk = self._extents.allocated(state.id) + EXTENT_OVERHEAD_BYTES
            except OSError:
                continue  # its next reader finds that out, and drops it
            charged = ledger.charge_of(state.id)
            if charged != on_disk:
                what = f"extent {state.id:016x}"
                problems.append(QuotaProblem(state.identity, what, charged, on_disk))
                if repair:
                    ledger.charge(state.id, on_disk)
        return problems

    def _records(self) -> list[QuotaProblem]:
        books, problems = self._space.books, []
        if not self._space.quotas.in_force:
            return []
        recorded = books.recorded()
        moved = self._space.ledger.moved  # since the commit, and in the next one
        for identity in (recorded.keys() | self._space.ledger.accounts.keys()) - moved - {NOBODY}:
            nothing = QuotaRecord(identity, 0, 0, 0)
            said = recorded.get(identity, nothing)
            is_so = books.record_of(identity) or nothing
            for what in ("used_bytes", "extents"):
                one, other = getattr(said, what), getattr(is_so, what)
                if one != other:
                    problems.append(QuotaProblem(identity, f"record, {what}", one, other))
        return problems
