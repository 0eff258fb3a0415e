"""The outbox: which knowledge the metadata store has not got yet.

It lies in the index and is written in the same commit as the knowledge itself, so nothing that was
learnt durably is forgotten on its way. Oldest first; a key that waits already waits once, since
what is sent is its value of then. So the outbox holds each name once, however long an outage lasts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tiercache import records
from tiercache.ports import IndexReader

_COUNTS = struct.Struct(">QQ")
_U64 = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Waiting:
    """One entry. ``number`` gives its place in the order."""

    number: int
    key: bytes


class Outbox:
    """Owned by the event loop; the index calls ``note`` and ``entries``."""

    def __init__(self, get: Callable[[bytes], bytes | None], store: IndexReader) -> None:
        self._get = get
        self._store = store
        stored = get(records.META_OUTBOX)
        self._next, self._count = _COUNTS.unpack(stored) if stored else (1, 0)
        # Learnt since the last commit of the index began, oldest first
        self._noted: dict[bytes, None] = {}
        # Keys of a batch that is being sent, and those of them that were learnt again meanwhile:
        # these stay
        self._sending: frozenset[bytes] = frozenset()
        self._again: set[bytes] = set()
        self.on_entries: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        """How many entries wait, those that were only noted included."""
        return int(self._count) + len(self._noted)

    @property
    def noted(self) -> int:
        """How many keys the next commit of the index takes along."""
        return len(self._noted)

    def note(self, key: bytes) -> None:
        self._noted.pop(key, None)
        self._noted[key] = None

    def has(self, key: bytes) -> bool:
        """Return whether the store's word on this key is older than ours."""
        return key in self._noted or self._get(records.waiting_key(key)) is not None

    def entries(self) -> dict[bytes, bytes]:
        """Return the records that a commit of the index must take along."""
        batch: dict[bytes, bytes] = {}
        for key in self._noted:
            marker = records.waiting_key(key)
            if key in self._sending:
                self._again.add(key)
            if self._get(marker) is None:
                batch[records.outbox_key(self._next)] = key
                batch[marker] = _U64.pack(self._next)
                self._next += 1
                self._count += 1
        self._noted.clear()
        if batch:
            batch[records.META_OUTBOX] = _COUNTS.pack(self._next, self._count)
        return batch

    def oldest(self, limit: int) -> list[Waiting]:
        """Return up to ``limit`` durable entries, oldest first."""
        found = []
        # What was sent, and not taken out durably yet, stands before the others.
        for place, key in self._store.scan(b"q"):
            if self._get(place) is not None:
                found.append(Waiting(records.outbox_number(place), key))
                if len(found) == limit:
                    break
        return found

    def sending(self, waiting: Iterable[Waiting]) -> None:
        """Note what is about to be sent, before its values are looked up; nothing, where that has
        ended."""
        self._sending = frozenset(entry.key for entry in waiting)
        self._again.clear()

    def sent(self, waiting: Iterable[Waiting]) -> dict[bytes, bytes | None]:
        """Return the changes of the index that take these entries out, which ends the sending."""
        batch: dict[bytes, bytes | None] = {}
        for entry in waiting:
            if entry.key not in self._again:
                batch[records.outbox_key(entry.number)] = None
                batch[records.waiting_key(entry.key)] = None
                self._count -= 1
        self.sending(())
        batch[records.META_OUTBOX] = _COUNTS.pack(self._next, self._count)
        return batch
