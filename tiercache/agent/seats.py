"""The slots of ``leases.state``: which process pays from which, and what stands in their words.

Owned by the event loop. ``collect`` before the governor's turn, ``publish`` after it.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isinf
from time import time_ns
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from tiercache.policy.governor import Governor

log = logging.getLogger("tiercache.agent")

# Whose slots they are: a process id, or what stands for one.
Process = int | str
# What a client may honestly say that it used between two turns, or wants at once: a second of the
# fastest memory. More is a word that was stored by something else.
MOST_TOKENS = 1 << 40
# The same of a wait that has ended: longer than any process has lived.
MOST_WAITED_NS = 1 << 60
NOTHING: Rates = (0.0, 0.0, 0.0)
SLOT_BYTES = SLOT_WORDS * 8
# Native, so that each word is one load: 0.24 µs a slot, where slicing and a list take 0.53.
_WORDS = struct.Struct(f"@{WAITS + 1}Q")


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
        self._leases: dict[Process, dict[str, Lease]] = {}
        # Leases of a process that none of its names uses any more.
        self._spare: dict[Process, list[Lease]] = {}
        self._by_payer: dict[int, Lease] = {}
        # Whose shares may be others than those stored.
        self._unshared: set[int] = set()
        # Whether somebody has come or gone since shares were stored.
        self._has_moved = False
        # Stamps that no other agent of this directory has used: time goes on.
        self._owner = time_ns()

    def __len__(self) -> int:
        return len(self._by_payer)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_payer.values())

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, governor: Governor, process: Process, identity: str) -> Lease | None:
        """Return the lease of a process for an identity, a new one where it has none, with its
        words stored; None where no slot is free."""
        own = self._leases.setdefault(process, {})
        lease = own.get(identity)
        if lease is not None:
            return lease
        spare = self._spare.get(process)
        if spare:  # its words go on counting: whoever still pays from it is of this process too
            lease = spare.pop()
            lease.identity, lease.payer = identity, governor.join(identity)
        elif self._free:
            lease = self._make(governor, process, identity)
        else:
            log.warning("no slot of the lease file is free: %s goes at a safe rate", process)
            return None
        own[identity] = self._by_payer[lease.payer] = lease
        self._has_moved = True
        self._publish_grant(governor, lease)
        self._publish_shares(governor, lease)
        return lease

    def _make(self, governor: Governor, process: Process, identity: str) -> Lease:
        slot = self._free.pop()
        self._file.clear(slot)
        self._owner += 1
        lease = Lease(slot, self._owner, process, identity, governor.join(identity))
        self._words[slot * SLOT_WORDS + OWNER] = lease.owner
        return lease

    def keep(self, governor: Governor, process: Process, identities: Iterable[str]) -> None:
        """Let the process have the leases of these identities; others may become another's of the
        same process."""
        kept, own = set(identities), self._leases.get(process, {})
        for identity in own.keys() - kept:
            lease = own.pop(identity)
            del self._by_payer[lease.payer]
            governor.leave(lease.payer)
            self._spare.setdefault(process, []).append(lease)

    def drop_spare(self, process: Process) -> None:
        """Free the leases that none of the process's names uses: whoever still pays from one finds
        that it is no longer its own, and enlists again."""
        for lease in self._spare.pop(process, ()):
            self._give_back(lease)

    def leave(self, governor: Governor, process: Process) -> list[Seen]:
        """Free what a process had; return what it used since the last look, which is charged: many
        that live for a moment each are one that lives for long."""
        self._has_moved = True
        seen = []
        for lease in self._leases.pop(process, {}).values():
            words = _WORDS.unpack_from(self._words, lease.slot * SLOT_BYTES)
            if _is_honest(words, lease):
                seen.append(self._note_use(governor, lease, words))
            del self._by_payer[lease.payer]
            governor.leave(lease.payer)
            self._give_back(lease)
        self.drop_spare(process)
        return seen

    def _give_back(self, lease: Lease) -> None:
        self._file.clear(lease.slot)
        self._free.append(lease.slot)

    def drop_all(self) -> None:
        """Free all, where there is no governor any more."""
        spare = [lease for leases in self._spare.values() for lease in leases]
        for lease in (*self._by_payer.values(), *spare):
            self._give_back(lease)
        for table in (self._leases, self._spare, self._by_payer, self._unshared):
            table.clear()

    # -- words ------------------------------------------------------------------------------

    def collect(self, governor: Governor, now_s: float) -> list[Seen]:
        """Tell the governor what has been used since the last time, and who waits."""
        seen = []
        for lease in self._by_payer.values():
            words = _WORDS.unpack_from(self._words, lease.slot * SLOT_BYTES)
            if (
                words[USED_READ] != lease.used_read
                or words[USED_OPS] != lease.used_operations
                or words[WAITS] != lease.waits
                or words[OWNER] != lease.owner
            ):
                if _is_honest(words, lease):
                    seen.append(self._note_use(governor, lease, words))
                else:
                    self._restore(governor, lease)
            if words[WAITING_NS] or lease.is_waiting:
                self._note_waiting(governor, lease, words, now_s)
        return seen

    def _note_use(self, governor: Governor, lease: Lease, words: tuple[int, ...]) -> Seen:
        read = words[USED_READ] - lease.used_read
        operations = words[USED_OPS] - lease.used_operations
        waits = words[WAITS] - lease.waits
        waited_ns = words[WAITED_NS] - lease.waited_ns
        lease.used_read, lease.used_operations = words[USED_READ], words[USED_OPS]
        lease.waits, lease.waited_ns = words[WAITS], words[WAITED_NS]
        governor.used(lease.payer, (read, 0.0, operations))
        return Seen(lease.identity, read, operations, waits, waited_ns)

    def _restore(self, governor: Governor, lease: Lease) -> None:
        """Store all words of a lease anew: something else than its client has stored there, and
        whoever pays from it would be stopped or lost for ever."""
        first = lease.slot * SLOT_WORDS
        self._words[first + OWNER] = lease.owner
        self._words[first + USED_READ] = lease.used_read
        self._words[first + USED_OPS] = lease.used_operations
        self._words[first + WAITS] = lease.waits
        self._words[first + WAITED_NS] = lease.waited_ns
        lease.stored.clear()
        self._publish_grant(governor, lease)
        self._publish_shares(governor, lease)

    def _note_waiting(
        self, governor: Governor, lease: Lease, words: tuple[int, ...], now_s: float
    ) -> None:
        if words[WAITING_NS]:
            wanted = (min(words[WANT_READ], MOST_TOKENS), 0, min(words[WANT_OPS], MOST_TOKENS))
            governor.wants(lease.payer, wanted, min(words[WAITING_NS] / 1e9, now_s))
            lease.is_waiting = True
            if any(words[word] != lease.stored[word] for word in (GRANT_READ, GRANT_OPS)):
                self._restore(governor, lease)  # what was stored over may be all it waits for
        elif lease.is_waiting:
            governor.wants(lease.payer, NOTHING, now_s)
            lease.is_waiting = False

    def publish(self, governor: Governor, *, shares: bool) -> None:
        """Store what each may use until the next turn, where that has changed, and with ``shares``
        the rates of those who were at it since."""
        for payer in governor.changed():
            lease = self._by_payer.get(payer)
            if lease is not None:
                self._publish_grant(governor, lease)
                self._unshared.add(payer)
        if shares:
            # With the number of an identity's payers the part of each changes.
            everybody = self._by_payer.keys()
            for payer in everybody if self._has_moved else everybody & self._unshared:
                self._publish_shares(governor, self._by_payer[payer])
            self._unshared.clear()
            self._has_moved = False

    def publish_all(self, governor: Governor) -> None:
        """Store everything anew: there is another plan."""
        for lease in self._by_payer.values():
            self._publish_grant(governor, lease)
            self._publish_shares(governor, lease)

    def _publish_grant(self, governor: Governor, lease: Lease) -> None:
        read, _, operations = governor.grant(lease.payer)
        self._store(lease, GRANT_READ, _up_to(lease.used_read, read))
        self._store(lease, GRANT_OPS, _up_to(lease.used_operations, operations))

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


def _is_honest(words: tuple[int, ...], lease: Lease) -> bool:
    """Whether it is a client that stored: its counters have not gone back, nor too far."""
    return (
        words[OWNER] == lease.owner
        and 0 <= words[USED_READ] - lease.used_read <= MOST_TOKENS
        and 0 <= words[USED_OPS] - lease.used_operations <= MOST_TOKENS
        and 0 <= words[WAITS] - lease.waits <= MOST_TOKENS
        and 0 <= words[WAITED_NS] - lease.waited_ns <= MOST_WAITED_NS
    )


def _up_to(used: int, tokens: float) -> int:
    """Return the word for ``tokens`` more than used, which may be less than none (debt)."""
    if isinf(tokens):
        return UNLIMITED
    return min(max(0, used + int(tokens)), UNLIMITED - 1)
