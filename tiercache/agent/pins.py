"""Pins: which names are never evicted. A pin names a path and covers all its versions."""

from __future__ import annotations

from tiercache import records
from tiercache.agent.index import Index
from tiercache.policy.qos import DEFAULT_IDENTITY
from tiercache.records import PinRecord


class Pins:
    """All pins, in memory and in the index. Owned by the event loop."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._by_path: dict[str, PinRecord] = {}
        self._exact: dict[tuple[str, str], str] = {}
        self._trees: list[tuple[str, str, str]] = []
        self.load()

    def load(self) -> None:
        """Take the pins over as the index has them."""
        loaded = [records.decode_pin(raw) for _, raw in self._index.scan(b"p")]
        self._by_path = {record.path: record for record in loaded}
        self._rebuild()

    def _rebuild(self) -> None:
        pins = self._by_path.values()
        self._exact = {(p.origin, p.prefix): p.identity or DEFAULT_IDENTITY for p in pins}
        self._trees = [(p.origin, p.below, p.identity) for p in pins if p.tree]

    @property
    def paths(self) -> list[str]:
        return sorted(self._by_path)

    def has(self, record: PinRecord) -> bool:
        """Return whether the same is pinned already, by whomever."""
        known = self._by_path.get(record.path)
        return known is not None and (known.origin, known.prefix, known.tree) == (
            record.origin,
            record.prefix,
            record.tree,
        )

    def add(self, record: PinRecord) -> None:
        self._by_path[record.path] = record
        self._index.put(records.pin_key(record.path), records.encode(record))
        self._rebuild()

    def remove(self, path: str) -> bool:
        """Return whether there was such a pin."""
        if self._by_path.pop(path, None) is None:
            return False
        self._index.put(records.pin_key(path), None)
        self._rebuild()
        return True

    def owners(self, origin: str, key: str) -> list[str]:
        """Return whose pins cover a name."""
        found = [self._exact[origin, key]] if (origin, key) in self._exact else []
        found += [
            identity or DEFAULT_IDENTITY
            for o, prefix, identity in self._trees
            if o == origin and key.startswith(prefix)
        ]
        return found
