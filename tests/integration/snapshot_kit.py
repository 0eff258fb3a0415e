"""What the tests of snapshots share."""

from __future__ import annotations

from pathlib import Path

from tiercache.metadata.lmdb_store import LmdbReader
from tiercache.model import JobState
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.snapshots import Snapshot
from tiercache.units import MIB

SIZES = [10, 70_000, 200_000, 3 * MIB, 0, 9 * MIB + 5]


def make(ns: Namespace, name: str, *paths: str, **how: bool) -> Snapshot:
    ended = ns.snapshots.create(name, paths or ("/m",), **how).wait(60)  # type: ignore[arg-type]
    assert ended.state is JobState.DONE, ended
    return ns.snapshot(name)


def keys(settings: Settings) -> set[bytes]:
    """Return the first bytes of the keys that snapshots have in the index."""
    reader = LmdbReader(str(Path(settings.cache.dir) / "index.lmdb"))
    try:
        return {key for letter in (b"s", b"t") for key, _ in reader.scan(letter)}
    finally:
        reader.close()
