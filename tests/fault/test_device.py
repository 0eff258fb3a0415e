"""The cache device full, failing, read-only or slow: reads go on from the origin, ``status`` says
so, and it heals."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import tiercache.compose
from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    end,
    namespace,
    occupied_bytes,
    start_script,
    wait_for,
)
from tiercache.errors import TiercacheError
from tiercache.extents.files import ExtentFiles
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.namespace import Namespace
from tiercache.ports import Buffer
from tiercache.settings import Settings
from tiercache.testing.datasets import object_bytes
from tiercache.units import MIB

FAULT_DELAY_S = 0.3
SIZES = [600_000] * 12 + [30_000] * 40


# -- a device that fails as it is told ------------------------------------------------------


class Fault:
    """What the device does. Set from the test's thread, read by the engine's."""

    code = 0
    """errno of every change of the device, 0 for none."""
    reads_too = False
    index_too = False
    delay_s = 0.0
    discard_delay_s = 0.0
    refusals = 0

    def change(self) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.code:
            self.refusals += 1
            raise OSError(self.code, os.strerror(self.code))


FAULT = Fault()


class FailingFiles(ExtentFiles):
    """Extent files on a device that may fail."""

    def create(self, extent_id: int, length: int) -> None:
        FAULT.change()
        super().create(extent_id, length)

    def write(self, extent_id: int, offset: int, data: Buffer) -> None:
        FAULT.change()
        super().write(extent_id, offset, data)

    def write_many(self, extent_id: int, parts: Sequence[tuple[int, Buffer]]) -> None:
        FAULT.change()
        super().write_many(extent_id, parts)

    def read(self, extent_id: int, offset: int, length: int) -> bytes:
        if FAULT.reads_too:
            FAULT.change()
        return super().read(extent_id, offset, length)

    def truncate(self, extent_id: int, length: int) -> None:
        FAULT.change()
        super().truncate(extent_id, length)

    def discard(self, extent_id: int) -> None:
        time.sleep(FAULT.discard_delay_s)
        if FAULT.code in (errno.EROFS, errno.EIO):
            FAULT.change()
        super().discard(extent_id)

    def reap(self) -> list[tuple[int, int]]:
        if FAULT.code in (errno.EROFS, errno.EIO) and self.discarded():
            FAULT.change()
        return super().reap()


class FailingStore(LmdbStore):
    """An index on the same device."""

    __slots__ = ()

    def commit(self, batch: dict[bytes, bytes | None]) -> int:  # type: ignore[override]  # narrower
        if FAULT.index_too:
            FAULT.change()
        return super().commit(batch)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """An embedded agent on a device that works, until FAULT says otherwise."""
    FAULT.__dict__.clear()
    monkeypatch.setattr(tiercache.compose, "ExtentFiles", FailingFiles)
    monkeypatch.setattr(tiercache.compose, "LmdbStore", FailingStore)
    origin = FileOrigin(tmp_path / "origin")
    settings = cache_settings(tmp_path / "cache", origin.url, capacity_bytes=32 * MIB)
    with namespace(settings, embedded=True) as ns:
        try:
            yield ns
        finally:
            FAULT.__dict__.clear()


def read_and_compare(ns: Namespace, objects: dict[str, bytes]) -> None:
    """Read all objects in every way and compare."""
    for number, (key, data) in enumerate(objects.items()):
        match number % 4:
            case 0:
                found = ns.read(f"/m/{key}")
            case 1:
                found = bytes(ns.view(f"/m/{key}"))
            case 2:
                with ns.open(f"/m/{key}") as file:
                    found = file.read(20_000) + file.read()
            case _:
                (found,) = ns.read_many([(f"/m/{key}", 0, None)])
        assert found == data, key


def problem(ns: Namespace) -> str:
    return str(ns.status()["cache"]["device_problem"])


def heals(ns: Namespace, fresh: dict[str, bytes]) -> bool:
    """Return whether new objects are cached again and nothing is complained of."""
    for key, data in fresh.items():
        assert ns.read(f"/m/{key}") == data
    whole = all(ns.cached_bytes(f"/m/{key}") == len(data) for key, data in fresh.items())
    return whole and not problem(ns)


@pytest.mark.parametrize("index_too", [False, True], ids=["extents", "extents-and-index"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_device_that_refuses(
    failing: Namespace, tmp_path: Path, code: int, index_too: bool
) -> None:
    origin = FileOrigin(tmp_path / "origin")
    before = origin.fill("before", SIZES, "before/")
    meanwhile = origin.fill("meanwhile", SIZES, "meanwhile/")
    after = origin.fill("after", SIZES, "after/")
    read_and_compare(failing, before)

    FAULT.code, FAULT.index_too = code, index_too
    read_and_compare(failing, meanwhile)
    read_and_compare(failing, before)
    assert os.strerror(code) in problem(failing)
    assert failing.status()["cache"]["device_failures"] >= 1
    written = object_bytes("written", 700_000)
    failing.write("/m/written", written)
    assert failing.read("/m/written") == written
    assert "written" in [entry.name for entry in failing.list("/m", refresh=True)]
    with suppress(TiercacheError):  # what cannot be removed is said to whoever asks for it
        failing.evict("/m/before")
    read_and_compare(failing, before)

    FAULT.__dict__.clear()
    wait_for(lambda: heals(failing, after), timeout_s=10)
    read_and_compare(failing, before | meanwhile | after)
    assert failing.read("/m/written") == written
    wait_for(lambda: not failing.status()["memory"]["held_bytes"])
    assert_ledger_agrees(failing, tmp_path / "cache")
    assert failing.status()["agent"]["internal_errors"] == 0


def test_a_device_that_cannot_be_read(failing: Namespace, tmp_path: Path) -> None:
    """What the agent reads (to copy forward, to lay out whole) is fetched again instead."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("unreadable", SIZES)
    read_and_compare(failing, objects)
    FAULT.code, FAULT.reads_too = errno.EIO, True
    with pytest.raises(TiercacheError):
        failing.local_path("/m/00000")
    assert failing.read("/m/00000") == objects["00000"]
    more = origin.fill("more", SIZES * 4, "more/")
    read_and_compare(failing, more)
    FAULT.__dict__.clear()
    after = origin.fill("after", SIZES, "after/")
    wait_for(lambda: heals(failing, after), timeout_s=10)
    read_and_compare(failing, objects)
    assert Path(failing.local_path("/m/00000")).read_bytes() == objects["00000"]
    assert_ledger_agrees(failing, tmp_path / "cache")
    assert failing.status()["agent"]["internal_errors"] == 0


def test_a_slow_device_slows_nobody_else(failing: Namespace, tmp_path: Path) -> None:
    """Hits and names are answered meanwhile, and a device that was slow once is not shunned."""
    origin = FileOrigin(tmp_path / "origin")
    hot = origin.fill("hot", [400_000] * 3, "hot/")
    cold = origin.fill("cold", [600_000] * 6 + [20_000] * 6, "cold/")
    read_and_compare(failing, hot)
    FAULT.delay_s = FAULT_DELAY_S
    readers = [
        threading.Thread(target=failing.read, args=(f"/m/{key}",), daemon=True) for key in cold
    ]
    for reader in readers:
        reader.start()
    waits_s = []
    for _ in range(10):
        begun_s = time.monotonic()
        read_and_compare(failing, hot)
        assert failing.stat("/m/hot/00001").size_bytes == 400_000
        waits_s.append(time.monotonic() - begun_s)
        assert failing.status()["agent"]["pid"] == os.getpid()
    FAULT.__dict__.clear()
    for reader in readers:
        reader.join(30)
    read_and_compare(failing, cold)
    assert sorted(waits_s)[len(waits_s) // 2] < FAULT_DELAY_S / 3, waits_s
    assert problem(failing) == ""


def test_readers_let_go_of_what_a_slow_device_discards(failing: Namespace, tmp_path: Path) -> None:
    """A reader looks when it is told of an eviction: the file must have left its place by then,
    or its bytes stay on the device until the next eviction, and reads wait for room."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("evicted", [4_000_000] * 9)
    trash = tmp_path / "cache" / "extents" / "trash"
    FAULT.discard_delay_s = 0.15
    read_and_compare(failing, objects)
    assert failing.status()["cache"]["evicted_extents"]
    wait_for(lambda: not os.listdir(trash), timeout_s=5)


# -- a real file system that is full --------------------------------------------------------


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tiercache-test", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(done.stderr)
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill_up(path: Path) -> None:
    """Write a file until the file system has no byte left."""
    with path.open("wb", buffering=0) as file:
        for block in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def test_a_file_system_smaller_than_the_capacity(tmp_path: Path) -> None:
    """It is a smaller cache then, and says why."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("small", [600_000] * 60 + [30_000] * 200)
    with tmpfs(tmp_path / "mount", "size=20m") as mount:
        settings = cache_settings(mount / "cache", origin.url, capacity_bytes=256 * MIB)
        with namespace(settings) as ns:
            read_and_compare(ns, objects)
            read_and_compare(ns, objects)
            assert_ledger_agrees(ns, mount / "cache")
            assert occupied_bytes(mount / "cache") > 8 * MIB, "it caches what it can"
            assert ns.status()["agent"]["internal_errors"] == 0


def test_a_file_system_filled_by_others(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    before = origin.fill("before", SIZES, "before/")
    meanwhile = origin.fill("meanwhile", SIZES, "meanwhile/")
    after = origin.fill("after", SIZES, "after/")
    with tmpfs(tmp_path / "mount", "size=40m") as mount:
        settings = cache_settings(mount / "cache", origin.url, capacity_bytes=32 * MIB)
        with namespace(settings) as ns:
            read_and_compare(ns, before)
            fill_up(mount / "foreign")
            read_and_compare(ns, meanwhile)
            fill_up(mount / "foreign2")
            read_and_compare(ns, before | meanwhile)
            evicted = ns.status()["cache"]["evicted_extents"]
            assert problem(ns) or evicted, "status says that the device is full, or was"
            ns.write("/m/written", b"w" * 500_000)
            assert ns.read("/m/written") == b"w" * 500_000
            _read_from_new_processes(settings, before)
            (mount / "foreign").unlink()
            (mount / "foreign2").unlink()
            wait_for(lambda: heals(ns, after), timeout_s=10)
            assert_ledger_agrees(ns, mount / "cache")
            for name in ("index.lmdb-lock", "shared.state"):
                found = (mount / "cache" / name).stat()
                assert found.st_blocks * 512 >= found.st_size, f"{name} has holes"
            assert ns.status()["agent"]["internal_errors"] == 0


def _read_from_new_processes(settings: Settings, objects: dict[str, bytes]) -> None:
    """New readers on a full file system: a store into a hole of a mapped file would kill them."""
    key, data = next(iter(objects.items()))
    readers = [
        start_script(
            "data = ns.read(arguments[0])\n"
            "print(len(data), flush=True)\n"
            "ns.stat(arguments[0])\n"
            "sys.stdin.read()\n",
            settings,
            f"/m/{key}",
            stdin=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"%d\n" % len(data)
        for reader in readers:
            reader.communicate(timeout=20)
            assert reader.returncode == 0
    finally:
        for reader in readers:
            end(reader)


def test_a_file_system_without_inodes(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("inodes", [600_000] * 30 + [3_000] * 50)
    with tmpfs(tmp_path / "mount", "size=64m,nr_inodes=40") as mount:
        settings = cache_settings(mount / "cache", origin.url, capacity_bytes=32 * MIB)
        with namespace(settings) as ns:
            read_and_compare(ns, objects)
            read_and_compare(ns, objects)
            assert ns.status()["agent"]["internal_errors"] == 0
            assert_ledger_agrees(ns, mount / "cache")


def test_a_read_only_file_system_is_refused_in_words(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("ro", [600_000])
    with tmpfs(tmp_path / "mount", "size=40m") as mount:
        settings = cache_settings(mount / "cache", origin.url, capacity_bytes=32 * MIB)
        with namespace(settings) as ns:
            read_and_compare(ns, objects)
            ns.shut_down_agent()
            ns.close()
            wait_for(lambda: _remounted(mount, "ro"), timeout_s=10, poll_s=0.1)
        with pytest.raises(TiercacheError, match=r"[Rr]ead-only"), namespace(settings):
            pass
        assert _remounted(mount, "rw")
        with namespace(settings) as ns:
            assert ns.cached_bytes("/m/00000") == 600_000
            read_and_compare(ns, objects)


def _remounted(mount: Path, how: str) -> bool:
    command = ["mount", "-o", f"remount,{how}", str(mount)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
