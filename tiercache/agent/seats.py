"""The slots of ``leases.state``: which process pays from which, and what stands in their words.

Owned by the event loop. ``collect`` before the governor's turn, ``publish`` after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isinf
from time import time_ns

from tiercache.policy.governor import Governor
from tiercache.policy.lease_words import (
    GRANT_OPS,
    GRANT_READ,
    OWNER,
    RATE_OPS,
    RATE_READ,
    SAFE_OPS,
    SAFE_READ,
    SLOT_WORDS,
    SLOTS_COUNT,
    UNLIMITED,
    USED_OPS,
    USED_READ,
    WAITED_NS,
    WAITING_NS,
    WAITS,
    WANT_OPS,
    WANT_READ,
)
from tiercache.policy.qos import Rates
from tiercache.ports import LeaseFile

log = logging.getLogger("tiercache.agent")

# Whose slots they are: a process id, or what stands for one.
Process = int | str
# What a client may honestly say that it used between two turns, or wants at once: a second of the
# fastest memory. More is a word that was stored by something else.
MOST_TOKENS = 1 << 40
NOTHING: Rates = (0.0, 0.0, 0.0)


@dataclass(slots=True)
class Lease:
    """One slot and whose it is. The counters are of what its words said last."""

    slot: int
    owner: int
    process: Process
    identity: str
    payer: int
    used_read: int = 0
    used_operations: int = 0
    waited_ns: int = 0
    waits: int = 0
    is_waiting: bool = False
    stored: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a lease was used for since the last look: tokens, and the waits that ended."""

    identity: str
    read: int
    operations: int
    waits: int
    waited_ns: int


class Seats:
    """Leases by process and identity."""

    def __init__(self, file: LeaseFile) -> None:
        self._words = file.slots
        self._file = file
        self._free = list(range(SLOTS_COUNT - 1, -1, -1))
        self._leases: dict[tuple[Process, str], Lease] = {}
        # Leases of a process that none of its names uses any more.
        self._spare: dict[Process, list[Lease]] = {}
        # Stamps that no other agent of this directory has used: time goes on.
        self._owner = time_ns()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    @property
    def free(self) -> int:
        return len(self._free)

    def has(self, process: Process) -> bool:
        return any(key[0] == process for key in self._leases)

    def take(self, governor: Governor, process: Process, identity: str) -> Lease | None:
        """Return the lease of a process for an identity, a new one where it has none; None where
        no slot is free."""
        lease = self._leases.get((process, identity))
        if lease is not None:
            return lease
        spare = self._spare.get(process)
        if spare:  # its words go on counting: whoever still pays from it is of this process too
            lease = spare.pop()
            governor.leave(lease.payer)
            lease.identity, lease.payer = identity, governor.join(identity)
        elif self._free:
            lease = self._make(governor, process, identity)
        else:
            log.warning(
                "no slot of the lease file is free: process %s goes at a safe rate", process
            )
            return None
        self._leases[process, identity] = lease
        return lease

    def _make(self, governor: Governor, process: Process, identity: str) -> Lease:
        slot = self._free.pop()
        self._file.clear(slot)
        self._owner += 1
        lease = Lease(slot, self._owner, process, identity, governor.join(identity))
        self._words[slot * SLOT_WORDS + OWNER] = lease.owner
        return lease

    def keep(self, process: Process, identities: Iterable[str]) -> None:
        """Let the process have the leases of these identities; others may become another's of the
        same process."""
        kept = set(identities)
        for key in [key for key in self._leases if key[0] == process and key[1] not in kept]:
            self._spare.setdefault(process, []).append(self._leases.pop(key))

    def leave(self, governor: Governor, process: Process) -> None:
        """Free what a process had."""
        leases = [lease for key, lease in self._leases.items() if key[0] == process]
        for lease in leases:
            del self._leases[process, lease.identity]
        for lease in (*leases, *self._spare.pop(process, ())):
            governor.leave(lease.payer)
            self._file.clear(lease.slot)
            self._free.append(lease.slot)

    def drop_all(self) -> None:
        """Free all, where there is no governor any more."""
        spare = [lease for leases in self._spare.values() for lease in leases]
        for lease in (*self._leases.values(), *spare):
            self._file.clear(lease.slot)
            self._free.append(lease.slot)
        self._leases.clear()
        self._spare.clear()

    # -- words ------------------------------------------------------------------------------

    def collect(self, governor: Governor, now_s: float) -> list[Seen]:
        """Tell the governor what has been used since the last time, and who waits."""
        seen = []
        for lease in self._leases.values():
            first = lease.slot * SLOT_WORDS
            words = self._words[first : first + SLOT_WORDS].tolist()
            read = _since(words[USED_READ], lease.used_read)
            operations = _since(words[USED_OPS], lease.used_operations)
            if words[USED_READ] != lease.used_read or words[USED_OPS] != lease.used_operations:
                lease.used_read, lease.used_operations = words[USED_READ], words[USED_OPS]
                governor.used(lease.payer, (read, 0.0, operations))
            waits = _since(words[WAITS], lease.waits)
            if read or operations or waits:
                waited_ns = _since(words[WAITED_NS], lease.waited_ns)
                lease.waits, lease.waited_ns = words[WAITS], words[WAITED_NS]
                seen.append(Seen(lease.identity, read, operations, waits, waited_ns))
            self._note_waiting(governor, lease, words, now_s)
        return seen

    def _note_waiting(
        self, governor: Governor, lease: Lease, words: list[int], now_s: float
    ) -> None:
        if words[WAITING_NS]:
            wanted = (min(words[WANT_READ], MOST_TOKENS), 0, min(words[WANT_OPS], MOST_TOKENS))
            governor.wants(lease.payer, wanted, min(words[WAITING_NS] / 1e9, now_s))
            lease.is_waiting = True
        elif lease.is_waiting:
            governor.wants(lease.payer, NOTHING, now_s)
            lease.is_waiting = False

    def publish(self, governor: Governor, *, shares: bool) -> None:
        """Store what each may use until the next turn, and with ``shares`` its rates."""
        for lease in self._leases.values():
            read, _, operations = governor.grant(lease.payer)
            self._store(lease, GRANT_READ, _up_to(lease.used_read, read))
            self._store(lease, GRANT_OPS, _up_to(lease.used_operations, operations))
            if shares or RATE_READ not in lease.stored:
                self._publish_shares(governor, lease)

    def _publish_shares(self, governor: Governor, lease: Lease) -> None:
        read, _, operations = governor.share(lease.payer)
        self._store(lease, RATE_READ, _up_to(0, read))
        self._store(lease, RATE_OPS, _up_to(0, operations))
        read, _, operations = governor.safe(lease.payer)
        self._store(lease, SAFE_READ, _up_to(0, read))
        self._store(lease, SAFE_OPS, _up_to(0, operations))

    def _store(self, lease: Lease, word: int, value: int) -> None:
        if lease.stored.get(word) != value:
            lease.stored[word] = value
            self._words[lease.slot * SLOT_WORDS + word] = value


def _since(now: int, before: int) -> int:
    """Return by how much a counter has grown; what goes back, or too far, says nothing."""
    grown = now - before
    return grown if 0 <= grown <= MOST_TOKENS else 0


def _up_to(used: int, tokens: float) -> int:
    """Return the word for ``tokens`` more than used, which may be less than none (debt)."""
    if isinf(tokens):
        return UNLIMITED
    return min(max(0, used + int(tokens)), UNLIMITED - 1)
