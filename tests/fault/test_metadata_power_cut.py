"""The power fails while LMDB commits: what was acknowledged is there, and every commit is whole.

The same test is shown to find the loss when LMDB does not sync.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fault.cache_rig import ROOT
from tests.fault.power_cut import copy_of, mounted, new_image, standing_still
from tiercache.errors import TiercacheError
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.metadata.open import open_metadata
from tiercache.settings import MetadataSettings

pytestmark = pytest.mark.timeout(120)
CUTS = 8
# So many commits are kept apart: without syncing, commits would fill the file system.
SLOTS = 500

# Commits as fast as it can and prints the number of each commit that was acknowledged.
COMMITTING = """
import asyncio, os, sys, lmdb
engine, directory, sync = sys.argv[1], sys.argv[2], sys.argv[3] == "sync"
if not sync:
    opened = lmdb.open
    lmdb.open = lambda *given, **named: opened(*given, **(named | {"sync": False}))
from tests.fault.test_metadata_power_cut import records
from tiercache.errors import TiercacheError
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.metadata.open import open_metadata
from tiercache.settings import MetadataSettings
async def volume():
    store = await open_metadata(MetadataSettings(url=f"lmdb:{directory}/store"), {})
    while True:
        number = store.sequence + 1
        assert await store.commit(records(number)) == number
        os.write(1, b"%d\\n" % number)
def index():
    store = LmdbStore(f"{directory}/index.lmdb")
    while True:
        number = store.sequence() + 1
        assert store.commit(records(number)) == number
        os.write(1, b"%d\\n" % number)
index() if engine == "index" else asyncio.run(volume())
"""


def records(number: int) -> dict[bytes, bytes | None]:
    """What commit ``number`` writes: values inside a page, and of several pages."""
    value = b"%d:" % number * random.Random(number).randrange(1, 3000)
    slot = number % SLOTS
    return {b"last": b"%d" % number, b"a%03d" % slot: value, b"b%03d" % slot: value}


@dataclass(frozen=True, slots=True)
class Found:
    """What a store holds after the cut."""

    sequence: int
    records: dict[bytes, bytes]

    def assert_whole(self, first: int) -> None:
        """Raise unless it holds all of each commit from ``first`` to its sequence, no more."""
        expected: dict[bytes, bytes | None] = {}
        for number in range(max(first, self.sequence - SLOTS + 1), self.sequence + 1):
            expected |= records(number)
        assert self.records == expected


async def read_volume(directory: Path) -> Found:
    store = await open_metadata(MetadataSettings(url=f"lmdb:{directory}/store"), {})
    try:
        return Found(store.sequence, {key: value async for key, value in store.scan(b"")})
    finally:
        await store.close()


async def read_index(directory: Path) -> Found:
    store = LmdbStore(directory / "index.lmdb")
    try:
        return Found(store.sequence(), dict(store.scan(b"")))
    finally:
        store.close()


READ: dict[str, Callable[[Path], Coroutine[None, None, Found]]] = {
    "volume": read_volume,
    "index": read_index,
}


def read(engine: str, directory: Path) -> Found:
    """Open it as the next agent does. A store that cannot be read has lost everything."""
    try:
        return asyncio.run(READ[engine](directory))
    except TiercacheError:
        return Found(0, {})


# Making the volume's store is its first commit.
FIRST = {"volume": 2, "index": 1}


@contextmanager
def committing(engine: str, directory: Path, sync: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMITTING, engine, str(directory), sync],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def cuts(engine: str, sync: str, tmp_path: Path, seed: int) -> list[tuple[int, Found]]:
    """Return for each power cut what had been acknowledged, and what was there after."""
    rng = random.Random(seed)
    image = new_image(tmp_path / "image")
    outcomes = []
    with (
        mounted(image, tmp_path / "disk") as disk,
        committing(engine, disk, sync) as process,
    ):
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        acknowledged = int(os.read(pipe, 100).split()[0])
        os.set_blocking(pipe, False)
        for number in range(CUTS):
            time.sleep(rng.uniform(0.001, 0.05))
            assert process.poll() is None
            with standing_still(process):
                copy = copy_of(image, tmp_path / f"copy{number}")
                lines = b""
                while said := read_what_is_there(pipe):
                    lines += said
                acknowledged = max(acknowledged, *map(int, lines.split()), 0)
            with mounted(copy, tmp_path / f"after{number}") as after:
                outcomes.append((acknowledged, read(engine, after)))
            copy.unlink()
    return outcomes


def read_what_is_there(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("engine", ["volume", "index"])
def test_what_was_acknowledged_outlives_a_power_cut(engine: str, tmp_path: Path, seed: int) -> None:
    outcomes = cuts(engine, "sync", tmp_path, seed)
    for acknowledged, found in outcomes:
        assert found.sequence >= acknowledged
        found.assert_whole(FIRST[engine])
    assert outcomes[-1][0] > outcomes[0][0] > 0, "it went on committing between the cuts"


def test_without_syncing_the_loss_is_found(tmp_path: Path, seed: int) -> None:
    outcomes = cuts("volume", "no-sync", tmp_path, seed)
    assert any(found.sequence < acknowledged for acknowledged, found in outcomes)
