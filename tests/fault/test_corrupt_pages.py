"""Bytes that rot on the device: detected, fetched again, counted, and never returned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    kill_agent,
    namespace,
)
from tiercache.model import PAGE_BYTES
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.units import KIB, MIB

LARGE = object_bytes("large", 3 * MIB + 1000)  # extents of 1/128 of 64 MiB: 512 KiB
SINGLE = object_bytes("single", 400 * KIB)  # one extent of its own
SMALL = {f"s{number}": object_bytes(f"small {number}", 70_000) for number in range(20)}
Damage = Callable[[Path, int], None]


def flip(file: Path, offset: int) -> None:
    """Flip one bit."""
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 0x10]))


def truncate(file: Path, offset: int) -> None:
    """Lose everything from ``offset`` on."""
    os.truncate(file, offset)


def swap(file: Path, offset: int) -> None:
    """Exchange this page and the file's first."""
    first = offset // PAGE_BYTES * PAGE_BYTES
    with file.open("r+b") as handle:
        here, there = handle.seek(first), 0
        page = handle.read(PAGE_BYTES)
        handle.seek(there)
        other = handle.read(PAGE_BYTES)
        handle.seek(there)
        handle.write(page)
        handle.seek(here)
        handle.write(other)


def remove(file: Path, offset: int) -> None:
    """Lose the whole file behind the agent's back."""
    file.unlink()


DAMAGES = [flip, truncate, swap]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Namespace]:
    """A namespace whose agent holds all objects, verified by nobody yet: the process that read
    them is another one (a client trusts what it has verified under the same agent)."""
    origin = FileOrigin(tmp_path / "origin")
    origin.put("large", LARGE)
    origin.put("single", SINGLE)
    for key, data in SMALL.items():
        origin.put(key, data)
    settings = cache_settings(tmp_path / "cache", origin.url)
    with namespace(settings) as ns:
        ns.prefetch("/m").wait(30)
        yield ns


def corrupt_pages(ns: Namespace) -> int:
    return int(ns.status()["cache"]["corrupt_pages"])


def damage_at(ns: Namespace, path: str, offset: int, damage: Damage) -> None:
    """Damage the byte of an object at ``offset`` where it lies."""
    (place,) = ns.locate(path, offset, 1)
    ns.close()  # what this process has verified is forgotten
    damage(Path(place.file), place.file_offset)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("how", ["read", "view", "open", "read_many", "local_path"])
@pytest.mark.parametrize(("path", "data"), [("/m/large", LARGE), ("/m/single", SINGLE)])
def test_large_object(
    filled: Namespace, tmp_path: Path, damage: Damage, how: str, path: str, data: bytes
) -> None:
    damage_at(filled, path, 200_000, damage)
    assert _fetch(filled, path, how) == data
    assert corrupt_pages(filled) >= 1
    found = corrupt_pages(filled)
    filled.close()
    assert _fetch(filled, path, how) == data
    assert corrupt_pages(filled) == found, "found again: it was not repaired"
    assert_ledger_agrees(filled, tmp_path / "cache")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("how", ["read", "view", "open", "read_many", "local_path"])
def test_small_object_in_a_pack(
    filled: Namespace, tmp_path: Path, damage: Damage, how: str
) -> None:
    damage_at(filled, "/m/s7", 66_000, damage)
    for key, data in SMALL.items():
        assert _fetch(filled, f"/m/{key}", how) == data, key
    assert corrupt_pages(filled) >= 1
    assert_ledger_agrees(filled, tmp_path / "cache")


def _fetch(ns: Namespace, path: str, how: str) -> bytes:
    match how:
        case "read":
            return ns.read(path)
        case "view":
            size = ns.stat(path).size_bytes
            step = 100 * KIB
            return b"".join(
                bytes(ns.view(path, offset, min(step, size - offset)))
                for offset in range(0, size, step)
            )
        case "open":
            with ns.open(path) as file:
                return b"".join(iter(lambda: file.read(50_000), b""))
        case "read_many":
            size = ns.stat(path).size_bytes
            items = [(path, offset, 90_000) for offset in range(0, size, 90_000)]
            return b"".join(ns.read_many(items))
        case _:
            return Path(ns.local_path(path)).read_bytes()


def test_damage_while_no_agent_runs(filled: Namespace, tmp_path: Path) -> None:
    """After a new start everything is verified anew, by clients that were connected all along."""
    assert filled.read("/m/large") == LARGE
    (place,) = filled.locate("/m/large", 1_000_000, 1)
    assert kill_agent(tmp_path / "cache")
    flip(Path(place.file), place.file_offset)
    filled.evict("/m/s1")  # starts the next agent
    assert filled.read("/m/large") == LARGE
    assert corrupt_pages(filled) == 1


def test_a_rotten_object_is_not_copied_forward(filled: Namespace, tmp_path: Path) -> None:
    """Eviction copies what is wanted of a pack; a bad byte must not get a good checksum."""
    damage_at(filled, "/m/s3", 100, flip)
    for key in SMALL:
        filled.read(f"/m/{key}", 70_000 - 10, 10)  # wanted, and not the damaged page
    origin = FileOrigin(tmp_path / "origin")
    for number in range(20):
        origin.put(f"more{number}", object_bytes(number, 4 * MIB))
        filled.read(f"/m/more{number}")
    filled.close()
    assert filled.read("/m/s3") == SMALL["s3"]


@pytest.mark.parametrize("path", ["/m/large", "/m/s5"])
def test_a_file_removed_behind_the_agent(filled: Namespace, path: str) -> None:
    """Reads go on from the origin; the agent, which has the file open, finds it gone when it
    starts again."""
    expected = filled.read(path)
    damage_at(filled, path, 0, remove)
    assert filled.read(path) == expected
    for key, data in SMALL.items():
        assert filled.read(f"/m/{key}") == data


@pytest.mark.parametrize("damage", [truncate])
def test_a_file_cut_off_after_it_was_verified(filled: Namespace, damage: Damage) -> None:
    """A hit that comes back short is no hit."""
    assert filled.read("/m/large", 0, 300_000) == LARGE[:300_000]
    (place,) = filled.locate("/m/large", 150_000, 1)
    damage(Path(place.file), place.file_offset)
    assert filled.read("/m/large", 100_000, 65_536) == LARGE[100_000:165_536]
    assert filled.read("/m/large") == LARGE
    assert corrupt_pages(filled) >= 1
