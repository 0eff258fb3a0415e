"""A limit is a limit: what ``du`` counts never exceeds the capacity, at no moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.cache_rig import (
    ROOT,
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    end,
    file_count,
    kill_agent,
    namespace,
    occupied_bytes,
    start_script,
    wait_for,
    with_capacity,
)
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.units import GIB, KIB, MIB

CAPACITY_BYTES = 48 * MIB
# The full million takes minutes; 30,000 show the same slopes.
LONG = os.environ.get("TIERCACHE_LONG_TESTS") == "1"
SMALL_OBJECTS = 1_000_000 if LONG else 30_000
SMALL_CAPACITY_BYTES = GIB if LONG else 64 * MIB

# Looks every few milliseconds at what a directory occupies; says, in the end, the most.
WATCH = """
import select, sys
from tests.fault.cache_rig import occupied_bytes
most = samples = 0
while not select.select([0], [], [], 0.004)[0]:
    most = max(most, occupied_bytes(sys.argv[1]))
    samples += 1
print(most, samples, flush=True)
"""


class Watch:
    """The most that a directory ever occupied, as another process saw it."""

    most_bytes = 0
    samples = 0


@contextmanager
def watched(directory: Path) -> Iterator[Watch]:
    found = Watch()
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield found
        output, _ = process.communicate(timeout=30)
        found.most_bytes, found.samples = map(int, output.split())
    finally:
        end(process)


def read_all(ns: Namespace, objects: dict[str, bytes], *, threads: int = 4) -> None:
    """Read every object whole, in parts and in disorder, and compare."""
    failures: list[str] = []

    def run(number: int) -> None:
        for key, data in list(objects.items())[number::threads]:
            if ns.read(f"/m/{key}") != data:
                failures.append(key)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert not failures


def test_a_fill_of_four_times_the_capacity(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    origin = FileOrigin(tmp_path / "origin")
    sizes: list[int] = []
    while sum(sizes) <= 4 * CAPACITY_BYTES:
        sizes.append(rng.choice((900, 40_000, 200_000, 700_000, 3_000_000)))
    objects = origin.fill(seed, sizes)
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns, watched(tmp_path / "cache") as watch:
        read_all(ns, objects)
        ns.prefetch("/m").wait(60)
        assert_ledger_agrees(ns, tmp_path / "cache")
        status = ns.status()["cache"]
        assert status["used_bytes"] > CAPACITY_BYTES * 3 // 4, "the room is used"
    assert 0 < watch.most_bytes <= CAPACITY_BYTES
    assert watch.samples > 100


def test_writes_of_four_times_the_capacity(tmp_path: Path, seed: int) -> None:
    origin = FileOrigin(tmp_path / "origin")
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns, watched(tmp_path / "cache") as watch:
        for number in range(24):
            size = (50_000, 3 * MIB, 22 * MIB)[number % 3]
            data = object_bytes(f"{seed}/{number}", size)
            ns.write(f"/m/w{number}", data)
            assert ns.read(f"/m/w{number}") == data
        assert_ledger_agrees(ns, tmp_path / "cache")
    assert 0 < watch.most_bytes <= CAPACITY_BYTES


def test_an_object_larger_than_the_cache_streams_through(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    data = object_bytes("larger", 120 * MIB)
    origin.put("larger", data)
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns, watched(tmp_path / "cache") as watch:
        assert ns.read("/m/larger") == data
        with ns.open("/m/larger") as file:
            position = 0
            while block := file.read(1_000_000):
                assert block == data[position : position + len(block)]
                position += len(block)
        assert position == len(data)
        reads = ns.status()["reads"]["/m"]
        fetched = reads["filled_bytes"] + reads["read_through_bytes"]
        assert fetched < 3 * len(data), "bytes were fetched again and again"
    assert 0 < watch.most_bytes <= CAPACITY_BYTES


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
def test_very_many_small_objects(tmp_path: Path, seed: int) -> None:
    """Inodes are bounded by the packs, bytes by the limit, whatever the count."""
    origin = FileOrigin(tmp_path / "origin")
    keys = [f"{number // 1000:04}/{number:07}" for number in range(SMALL_OBJECTS)]
    for number in range(0, SMALL_OBJECTS, 1000):
        (origin.root / f"{number // 1000:04}").mkdir()
    for key in keys:
        (origin.root / key).write_bytes(object_bytes(key, KIB))
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=SMALL_CAPACITY_BYTES)
    with namespace(settings) as ns, watched(tmp_path / "cache") as watch:
        progress = ns.prefetch("/m").wait(3000)
        assert progress.failed == 0
        for key in random.Random(seed).sample(keys, 3000):
            assert ns.read(f"/m/{key}") == object_bytes(key, KIB)
        items = [(f"/m/{key}", 0, None) for key in keys[:20_000]]
        found = ns.read_many(items)
        assert all(data == object_bytes(key, KIB) for key, data in zip(keys, found, strict=False))
        assert_ledger_agrees(ns, tmp_path / "cache")
        assert file_count(tmp_path / "cache") < 500
    assert 0 < watch.most_bytes <= SMALL_CAPACITY_BYTES


def test_readers_that_keep_evicted_objects(tmp_path: Path) -> None:
    """Views keep evicted bytes on the device; the ledger goes on counting them, and what is not
    held goes on being a cache."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("held", [300_000] * 60)
    others = origin.fill("others", [300_000] * 200, "o/")
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns, watched(tmp_path / "cache") as watch:
        views = {key: ns.view(f"/m/{key}", 0, len(data)) for key, data in objects.items()}
        ns.evict("/m")
        for _ in range(2):
            read_all(ns, others)
        assert_ledger_agrees(ns, tmp_path / "cache")
        assert all(views[key] == data for key, data in objects.items())
        trash = tmp_path / "cache" / "extents" / "trash"
        held = occupied_bytes(trash)
        assert held >= 60 * 300_000
        status = ns.status()
        assert status["cache"]["evicted_extents"] > 60
        assert status["reads"]["/m"]["read_through_bytes"] < 100 * 300_000
        views.clear()
        wait_for(lambda: not list(trash.iterdir()), timeout_s=5)
        assert_ledger_agrees(ns, tmp_path / "cache")
        read_all(ns, objects)
    assert 0 < watch.most_bytes <= CAPACITY_BYTES


def test_a_reader_that_is_killed_gives_back_what_it_held(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("held", [300_000] * 60)
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    trash = tmp_path / "cache" / "extents" / "trash"
    with namespace(settings) as ns:
        holder = start_script(
            "views = [ns.view(f'/m/{n:05}', 0, 300_000) for n in range(60)]\n"
            "print('held', flush=True)\n"
            "time.sleep(60)\n",
            settings,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            ns.evict("/m")
            assert occupied_bytes(trash) >= 60 * 300_000
            assert_ledger_agrees(ns, tmp_path / "cache")
            holder.send_signal(signal.SIGKILL)
            holder.wait(10)
            wait_for(lambda: not list(trash.iterdir()), timeout_s=5)
            wait_for(lambda: ns.status()["cache"]["used_bytes"] < 4 * MIB, timeout_s=5)
            read_all(ns, objects)
        finally:
            end(holder)


def test_a_writer_that_is_killed_gives_back_what_it_wrote(tmp_path: Path) -> None:
    """Its half object is nowhere, at the origin or in the cache."""
    origin = FileOrigin(tmp_path / "origin")
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns:
        writer = start_script(
            "file = ns.open('/m/half', 'wb')\n"
            "file.write(bytes(20 << 20))\n"
            "print('written', flush=True)\n"
            "time.sleep(60)\n",
            settings,
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            assert ns.status()["cache"]["used_bytes"] > 15 * MIB
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
            wait_for(lambda: ns.status()["cache"]["used_bytes"] < 4 * MIB, timeout_s=20)
            wait_for(lambda: not list(origin.root.iterdir()), timeout_s=5)
            assert not ns.exists("/m/half")
        finally:
            end(writer)


@pytest.mark.parametrize("by_kill", [False, True])
def test_a_capacity_lowered_at_restart(tmp_path: Path, by_kill: bool) -> None:
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("lowered", [500_000] * 60 + [20_000] * 100)
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=CAPACITY_BYTES)
    with namespace(settings) as ns:
        read_all(ns, objects)
        assert occupied_bytes(tmp_path / "cache") > 25 * MIB
        if by_kill:
            kill_agent(tmp_path / "cache")
        else:
            ns.shut_down_agent()
            wait_for(lambda: not (tmp_path / "cache" / "agent.sock").exists())
    lowered = with_capacity(settings, 16 * MIB)
    with namespace(lowered) as ns:
        assert occupied_bytes(tmp_path / "cache") <= 16 * MIB
        assert_ledger_agrees(ns, tmp_path / "cache")
        read_all(ns, objects)
        assert occupied_bytes(tmp_path / "cache") <= 16 * MIB
