"""A new agent in a directory that a crash left in disorder: it serves, and all capacity is back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    kill_agent,
    namespace,
    occupied_bytes,
    shut_down,
)
from tiercache.compose import fsck
from tiercache.namespace import Namespace
from tiercache.units import KIB, MIB

SIZES = [600 * KIB] * 8 + [3 * MIB] + [20_000] * 60
Disorder = Callable[[Path], None]


def records_without_files(cache: Path) -> None:
    for file in _extents(cache)[::2]:
        file.unlink()


def files_without_records(cache: Path) -> None:
    for number in range(20):
        stray = cache / "extents" / "00" / f"{0x7000 + number:014x}"
        stray.write_bytes(os.urandom(MIB))


def full_trash(cache: Path) -> None:
    for number in range(20):
        stray = cache / "extents" / "trash" / f"{0x7000 + number:016x}"
        stray.write_bytes(os.urandom(MIB))


def half_written_packs(cache: Path) -> None:
    """What a power cut leaves: the file is long enough, its last pages never reached the disk."""
    for file in _packs(cache):
        data = file.read_bytes()
        half = len(data.rstrip(b"\0")) // 2
        file.write_bytes(data[:half])
        os.truncate(file, len(data))


def packs_cut_off(cache: Path) -> None:
    for file in _packs(cache):
        os.truncate(file, 100_000)


def foreign_files(cache: Path) -> None:
    (cache / "extents" / "00" / "not an extent").write_bytes(b"?")
    (cache / "extents" / "zz").mkdir()
    (cache / "superblock.12345").write_bytes(b"half a superblock")
    (cache / "shared.state.12345").write_bytes(b"half a state")


def stale_socket_and_lock(cache: Path) -> None:
    (cache / "agent.lock").write_text("999999999\n")
    (cache / "agent.sock").unlink(missing_ok=True)
    (cache / "agent.sock").write_text("no socket")


def no_shared_state(cache: Path) -> None:
    (cache / "shared.state").unlink()


def no_trash(cache: Path) -> None:
    (cache / "extents" / "trash").rmdir()


DISORDERS = [
    records_without_files,
    files_without_records,
    full_trash,
    half_written_packs,
    packs_cut_off,
    foreign_files,
    stale_socket_and_lock,
    no_shared_state,
    no_trash,
]


def _extents(cache: Path) -> list[Path]:
    return sorted((cache / "extents" / "00").iterdir())


def _packs(cache: Path) -> list[Path]:
    """Packs of a cache of 64 MiB have 1 MiB, its extents half of that."""
    packs = [file for file in _extents(cache) if file.stat().st_size == MIB]
    assert packs
    return packs


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A full cache whose agent was killed, and what it holds."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("recovery", SIZES)
    settings = cache_settings(tmp_path / "cache", origin.url)
    with namespace(settings) as ns:
        _read(ns, objects)
        kill_agent(tmp_path / "cache")
    return tmp_path / "cache", objects


def _read(ns: Namespace, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert ns.read(f"/m/{key}") == data, key


@pytest.mark.parametrize("disorder", DISORDERS)
def test_an_agent_starts_in_disorder(
    killed: tuple[Path, dict[str, bytes]], disorder: Disorder
) -> None:
    cache, objects = killed
    disorder(cache)
    settings = cache_settings(cache, f"file://{cache.parent}/origin")
    with namespace(settings) as ns:
        assert ns.status()["cache"]["device_problem"] == ""
        assert occupied_bytes(cache / "extents") < 16 * MIB
        assert_ledger_agrees(ns, cache)
        _read(ns, objects)
        assert_ledger_agrees(ns, cache)
        assert ns.status()["agent"]["internal_errors"] == 0
        ns.evict("/m")
        assert ns.status()["cache"]["extents"] == 0
        assert_ledger_agrees(ns, cache)
        _read(ns, objects)
        shut_down(ns)
    report = fsck(settings, repair=False)
    assert report.clean, report.problems
    assert report.ledger_bytes >= report.disk_bytes
