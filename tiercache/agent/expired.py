"""Many names past their time at once: one LIST tells of a thousand where HEADs tell of one each.

Owned by the event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from tiercache.agent.index import Index
from tiercache.agent.listings import listing_name, part_of
from tiercache.agent.mounts import Located, Mounts
from tiercache.agent.names import Names
from tiercache.clock import Clock
from tiercache.errors import TiercacheError
from tiercache.model import Consistency, Kind
from tiercache.policy.freshness import fresh_until_s

# Fewer names are asked for by HEADs, which go out 64 at a time: a round trip or two.
MIN_NAMES = 64
# A page of a listing holds so many names, costs what 12 HEADs do (at S3's prices), and pages come
# one after the other where HEADs go side by side.
PAGE_NAMES = 1000
HEADS_A_PAGE = 16
# A listing's word counts from when it was asked for: under a shorter ttl it is old on arrival.
MIN_TTL_S = 1.0


class Expired:
    """Revalidates by listings what one call asks for, where that is much cheaper."""

    def __init__(self, index: Index, mounts: Mounts, names: Names, clock: Clock) -> None:
        self._index = index
        self._mounts = mounts
        self._names = names
        self._clock = clock

    async def revalidate(self, paths: Iterable[str]) -> None:
        """List each directory of which many objects are past their time, if the last listing says
        that this takes few requests. Nothing is promised: what a listing did not tell, or could
        not, is for the look-ups that follow."""
        directories: dict[tuple[str, str], tuple[Located, set[bytes]]] = {}
        for path in paths:
            with contextlib.suppress(TiercacheError):
                located = self._mounts.locate(path)
                if self._is_expired(located):
                    above = located.key.rpartition("/")[0]
                    group = directories.setdefault(
                        (located.mount.path, above), (self._mounts.sibling(located, above), set())
                    )
                    group[1].add(located.digest)
        for directory, expired in directories.values():
            if self._pays(directory, len(expired)):
                with contextlib.suppress(TiercacheError):
                    await self._names.listing(directory, recursive=False, refresh=True)

    def _is_expired(self, located: Located) -> bool:
        mount = located.mount
        if mount.consistency is not Consistency.EVENTUAL or mount.ttl_s < MIN_TTL_S:
            return False  # the other modes never ask, or each call for itself
        record = self._index.get_object(located.digest)
        if record is None or record.kind is not Kind.FILE:
            return False
        until_s = fresh_until_s(
            mount,
            kind=record.kind,
            validated_s=record.validated_s,
            same_boot=record.boot == self._clock.boot_id,
        )
        return until_s <= self._clock.now()

    def _pays(self, directory: Located, names: int) -> bool:
        if names < MIN_NAMES:
            return False
        known = part_of(self._index, listing_name(directory, False), 0)
        if known is None or known.parts != 1:
            return False
        return (len(known.entries) // PAGE_NAMES + 1) * HEADS_A_PAGE <= names
