"""What the tests of snapshots share: fixtures and helpers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.cache_rig import FileOrigin, cache_settings, namespace
from tests.fault.origin_rig import Rig, rig_of
from tiercache.metadata.lmdb_store import LmdbReader
from tiercache.model import JobState
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.snapshots import Snapshot
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.units import MIB

SIZES = [10, 70_000, 200_000, 3 * MIB, 0, 9 * MIB + 5]


@pytest.fixture(name="origin")
def origin_fixture(tmp_path: Path) -> FileOrigin:
    return FileOrigin(tmp_path / "origin")


@pytest.fixture(name="settings")
def settings_fixture(tmp_path: Path, origin: FileOrigin) -> Settings:
    return cache_settings(tmp_path / "cache", origin.url)


@pytest.fixture(name="ns")
def ns_fixture(settings: Settings) -> Iterator[Namespace]:
    with namespace(settings, embedded=True) as found:
        yield found


@pytest.fixture(name="rig")
def rig_fixture(
    s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path
) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        yield rig


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
