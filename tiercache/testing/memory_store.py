"""A IndexStore in memory: the fake that passes the conformance suite of the real ones."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from tiercache.errors import CacheFull

MAX_KEY_BYTES = 511
SEQUENCE_KEY = b"\x00seq"


class MemoryStore:
    """Keeps everything in one dict that is replaced, never changed, by a commit; so a reader's
    snapshot is the dict it began with. Durable for the life of the object only. Thread safe.

    ``limit_bytes`` makes commits beyond it raise CacheFull, as a full map does.
    """

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        # Constant after construction
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # Guarded by _lock for writing; read without it
        self._snapshot: dict[bytes, bytes] = {}
        self._sequence = 0

    def get(self, key: bytes) -> bytes | None:
        return self._snapshot.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        snapshot = self._snapshot
        return [snapshot.get(key) for key in keys]

    def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        snapshot = self._snapshot
        ordered = sorted(snapshot)
        position = bisect_left(ordered, max(prefix, start))
        end = len(ordered) if limit is None else min(len(ordered), position + limit)
        for key in ordered[position:end]:
            if not key.startswith(prefix):
                return
            yield key, snapshot[key]

    def sequence(self) -> int:
        return self._sequence

    def commit(self, batch: Mapping[bytes, bytes | None]) -> int:
        for key in batch:
            if not 0 < len(key) <= MAX_KEY_BYTES or key == SEQUENCE_KEY:
                raise ValueError(f"not a metadata key: {key!r}")
        with self._lock:
            if not batch:
                return self._sequence
            merged = dict(self._snapshot)
            for key, value in batch.items():
                if value is None:
                    merged.pop(key, None)
                else:
                    merged[key] = value
            if self._limit_bytes is not None and _total_bytes(merged) > self._limit_bytes:
                raise CacheFull("the metadata map is full")
            self._snapshot = merged
            self._sequence += 1
            return self._sequence

    def size_bytes(self) -> int:
        return _total_bytes(self._snapshot)

    def reader_check(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing to free."""

    def abandon(self) -> None:
        """Nothing to leave behind."""


def _total_bytes(records: Mapping[bytes, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in records.items())
