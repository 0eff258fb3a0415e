"""Many threads on a cache far too small for them: all see the right bytes, nothing leaks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    namespace,
    occupied_bytes,
)
from tiercache.errors import CacheFull, TiercacheError
from tiercache.testing.datasets import object_bytes
from tiercache.units import KIB, MIB

SECONDS = 4.0
THREADS = 8


def _together(work: Callable[[random.Random], None], seed: int) -> list[str]:
    """Run ``work`` again and again on THREADS threads; return what they failed with."""
    failures: list[str] = []
    end_s = time.monotonic() + SECONDS

    def run(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        while time.monotonic() < end_s:
            try:
                work(rng)
            except (TiercacheError, OSError, AssertionError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failures


@pytest.mark.parametrize("embedded", [False, True])
def test_reads_evictions_and_local_files_at_once(tmp_path: Path, seed: int, embedded: bool) -> None:
    origin = FileOrigin(tmp_path / "origin")
    sizes = [3 * MIB] * 6 + [50_000] * 100 + [700 * KIB] * 10
    objects = origin.fill(seed, sizes)
    keys = list(objects)
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=24 * MIB)
    with namespace(settings, embedded=embedded) as ns:

        def work(rng: random.Random) -> None:
            key = rng.choice(keys)
            path, data = f"/m/{key}", objects[key]
            choice = rng.random()
            if choice < 0.7:
                offset, length = rng.randrange(len(data)), rng.randrange(1, 300_000)
                assert ns.read(path, offset, length) == data[offset : offset + length]
            elif choice < 0.8:
                ns.evict(path)
            elif choice < 0.85:
                ns.invalidate(path)
            elif choice < 0.9:
                assert ns.view(path, 0, len(data)) == data
            elif choice < 0.97:
                try:
                    local = Path(ns.local_path(path, pin=False)).read_bytes()
                except (CacheFull, FileNotFoundError):
                    return  # evicted before it was opened, or as fast as it was fetched
                assert local == data
            else:
                ns.evict("/m")

        assert not _together(work, seed)
        status = ns.status()
        assert status["agent"]["internal_errors"] == 0
        assert status["cache"]["corrupt_pages"] == 0
        assert status["memory"]["held_bytes"] == 0
        assert_ledger_agrees(ns, tmp_path / "cache")
        assert occupied_bytes(tmp_path / "cache") <= 24 * MIB


def test_writers_of_one_name_leave_the_version_that_its_origin_has(
    tmp_path: Path, seed: int
) -> None:
    """What is cached in the end is the object that stands at the origin, however large and small
    writes of one name overtook one another."""
    origin = FileOrigin(tmp_path / "origin")
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=48 * MIB)
    with namespace(settings) as ns:
        for number in range(15):
            begin = threading.Barrier(4)

            def write(size: int, begin: threading.Barrier = begin, number: int = number) -> None:
                begin.wait()
                ns.write("/m/one", object_bytes(f"{seed}/{number}", size))

            sizes = (10, 70_000, 3 * MIB, 9 * MIB)
            writers = [threading.Thread(target=write, args=(size,)) for size in sizes]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join(30)
            assert ns.read("/m/one") == (tmp_path / "origin" / "one").read_bytes()
        assert ns.status()["agent"]["internal_errors"] == 0
        assert_ledger_agrees(ns, tmp_path / "cache")
