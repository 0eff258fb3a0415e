"""What identities hold of the cache, as the index and the metadata store have it, and what they
were refused. Owned by the event loop.

The sums change with the extents, in the same commit of the index. The metadata store is told within
TELL_S: it tells people what a node held, and nobody reckons with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from tiercache import records
from tiercache.agent.index import Index
from tiercache.policy.ledger import NOBODY, Ledger
from tiercache.policy.quotas import Quotas
from tiercache.records import QuotaRecord

log = logging.getLogger("tiercache.agent")

# A node that fills all the time would else commit to the metadata store ten times a second.
TELL_S = 10.0


@dataclass(slots=True)
class Refusals:
    """What an identity was refused because of its own bounds, since the agent started. Requests
    for room above ``max`` were read through; ``pins`` above ``pin_max`` were refused."""

    denied: int = 0
    denied_bytes: int = 0
    pins: int = 0


class Books:
    """The records of one ledger, and its refusals."""

    def __init__(self, index: Index, ledger: Ledger, quotas: Quotas) -> None:
        self._index = index
        self._ledger = ledger
        self._quotas = quotas
        self._untold: set[str] = set()
        self._told_s = float("-inf")
        self.refusals: dict[str, Refusals] = {}
        # By identity: bytes that the records and the extents differed by when the agent started
        self.drift: dict[str, int] = {}
        # Set by who keeps the audit log: an identity, and what it was refused.
        self.on_refusal: Callable[[str, str], None] = lambda identity, message: None
        # Set by the plane: a clock in seconds.
        self.now: Callable[[], float] = lambda: 0.0
        index.before_commit = self.put

    # -- records ----------------------------------------------------------------------------

    def record_of(self, identity: str) -> QuotaRecord | None:
        """Return the record of an identity as of now, None where it holds nothing."""
        account = self._ledger.account(identity)
        if not account.extents:
            return None
        return QuotaRecord(identity, account.live_bytes, account.pinned_bytes, account.extents)

    def recorded(self) -> dict[str, QuotaRecord]:
        """Return what the index says."""
        found = (records.decode_quota(raw) for _, raw in self._index.scan(b"u"))
        return {record.identity: record for record in found}

    def verify(self, recorded: dict[str, QuotaRecord]) -> None:
        """Hold what a former agent recorded against the extents that are there."""
        if not recorded:
            return
        for identity in recorded.keys() | self._ledger.accounts.keys() - {NOBODY}:
            known = recorded[identity].used_bytes if identity in recorded else 0
            difference = self._ledger.account(identity).live_bytes - known
            if difference:
                self.drift[identity] = difference
                log.info("%s holds %+d bytes to what was recorded", identity, difference)

    def begin(self) -> None:
        """Record everybody anew, or nobody where no quotas are in force."""
        if self._quotas.in_force:
            self._ledger.moved.update(self._ledger.accounts, self.recorded())
            return
        for identity in self.recorded():
            self._index.put(records.quota_key(identity), None)

    def put(self) -> None:
        """Put what has changed since the last commit of the index."""
        moved = self._ledger.moved
        if not self._quotas.in_force or not moved:
            return
        moved.discard(NOBODY)
        for identity in moved:
            record = self.record_of(identity)
            raw = records.encode(record) if record is not None else None
            self._index.adopt(records.quota_key(identity), raw)
        self._untold |= moved
        moved.clear()

    def tell(self, *, now: bool = False) -> None:
        """Have the metadata store told of what has changed, every TELL_S or at once."""
        at_s = self.now()
        if not self._untold or (at_s - self._told_s < TELL_S and not now):
            return
        self._told_s = at_s
        for key in map(records.quota_key, self._untold):
            self._index.put(key, self._index.get(key))
        self._untold.clear()

    # -- refusals ---------------------------------------------------------------------------

    def refusals_of(self, identity: str) -> Refusals:
        return self.refusals.setdefault(identity, Refusals())

    def denied(self, identity: str, count: int, message: str) -> None:
        """Count bytes that ``max`` kept out."""
        refusals = self.refusals_of(identity)
        refusals.denied += 1
        refusals.denied_bytes += count
        self.on_refusal(identity, message)

    def pin_refused(self, identity: str, message: str) -> None:
        self.refusals_of(identity).pins += 1
        self.on_refusal(identity, message)
