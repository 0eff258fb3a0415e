"""Pinning for an identity: what it holds by pins stays within its ``pin_max``. Owned by the event
loop.
"""

from __future__ import annotations

import msgspec

from tiercache import records
from tiercache.agent.governing import Governing
from tiercache.agent.plane import Plane
from tiercache.errors import CacheFull
from tiercache.policy.qos import DEFAULT_IDENTITY
from tiercache.records import ObjectRecord, PinRecord
from tiercache.units import format_bytes


class Pinning:
    """New pins are charged to who works; one that is there already stays its owner's."""

    def __init__(self, plane: Plane, governing: Governing) -> None:
        self._index = plane.index
        self._space = plane.space
        self._contents = plane.contents
        self._pins = plane.pins
        self._governing = governing

    async def add(self, pin: PinRecord, *, coming_bytes: int = 0) -> None:
        """Pin a name or a tree: what is cached of it now, and what comes later as far as
        ``pin_max`` goes. The caller flushes the index.

        ``coming_bytes`` are to be fetched at once. Raises CacheFull where these and what is cached
        exceed ``pin_max``, and what ``Governing.admitted`` does.
        """
        async with self._governing.admitted(pin.path):
            if self._pins.has(pin):
                return
            identity = self._space.payer()
            if self._space.quotas.of(identity).pin_max_bytes is not None:
                await self._check(pin, identity, coming_bytes)
            whose = "" if identity == DEFAULT_IDENTITY else identity
            self._pins.add(msgspec.structs.replace(pin, identity=whose))
            self._contents.refresh_pins(removed=False)

    async def _check(self, pin: PinRecord, identity: str, coming_bytes: int) -> None:
        wanted_bytes = coming_bytes
        if pin.tree:
            async for _, raw in self._index.walk(b"o"):
                record = records.decode_object(raw)
                if record.origin == pin.origin and record.key.startswith(pin.below):
                    wanted_bytes += self._pinnable_bytes(record, identity)
        else:
            found = self._index.get_object(records.name_hash(pin.origin, pin.prefix))
            if found is not None:
                wanted_bytes += self._pinnable_bytes(found, identity)
        if self._space.quotas.may_pin(identity, wanted_bytes):
            return
        most = self._space.quotas.of(identity).pin_max_bytes or 0
        pinned = self._space.ledger.account(identity).pinned_bytes
        message = (
            f"{identity!r} has pinned {format_bytes(pinned)} of its pin_max of "
            f"{format_bytes(most)}, and this is {format_bytes(wanted_bytes)} more"
        )
        self._space.books.pin_refused(identity, message)
        raise CacheFull(
            message,
            path=pin.path,
            remedy=f"unpin something (tiercache status lists the pins), or tiercache quota set "
            f"{identity} pin_max=…",
        )

    def _pinnable_bytes(self, record: ObjectRecord, identity: str) -> int:
        """Return what is cached of an object and not pinned for this identity yet."""
        space = self._space
        states = [space.live[i] for i, _ in record.extents if i in space.live]
        open_to = [s for s in states if not (s.pinned and s.identity == identity)]
        if record.packed:
            return record.size_bytes if open_to else 0
        return sum(space.ledger.charge_of(state.id) for state in open_to)
