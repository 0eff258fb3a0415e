"""The metadata store on a block volume: who holds it, what is foreign, a volume that fails."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from tests.conformance.metadata_contract import committing
from tests.fault.test_device import fill_up, tmpfs
from tiercache.errors import (
    ConfigError,
    FormatError,
    MetadataUnavailable,
    NotFound,
    PreconditionFailed,
)
from tiercache.metadata import lmdb_volume
from tiercache.metadata.bookkeeping import FORMAT_KEY
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.metadata.open import open_metadata
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings

pytestmark = pytest.mark.timeout(60)


def config(directory: Path, deadline_s: float = 10.0) -> MetadataSettings:
    return MetadataSettings(url=f"lmdb:{directory}", deadline_s=deadline_s)


async def open_volume(directory: Path, deadline_s: float = 10.0) -> MetadataStore:
    return await open_metadata(config(directory, deadline_s), {})


async def test_a_second_agent_is_told_who_has_it(tmp_path: Path) -> None:
    place = tmp_path / "volume"
    with committing(config(place), ProfileSettings()) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(MetadataUnavailable) as caught:
            await open_volume(place)
        assert f"process {child.pid} on {os.uname().nodename}" in caught.value.message
        assert caught.value.remedy and str(place) in caught.value.path
        # It goes on as if nobody had asked; and a reader is welcome.
        before = int(child.stdout.readline())
        reader = await open_metadata(config(place), {}, read_only=True)
        assert reader.sequence >= before
        await reader.close()
    store = await open_volume(place)  # the kernel has released the lock of the dead
    with pytest.raises(MetadataUnavailable, match=f"process {os.getpid()}"):
        await open_volume(place)
    await store.commit({b"k": b"still works"})
    await store.close()


async def test_closed_it_is_free_though_a_forked_child_lives(tmp_path: Path) -> None:
    store = await open_volume(tmp_path / "volume")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    try:
        await store.commit({b"k": b"1"})
        await store.close()
        again = await open_volume(tmp_path / "volume")
        assert await again.get(b"k") == b"1"
        await again.close()
    finally:
        child.kill()
        child.join()


async def test_only_its_user_reads_it(tmp_path: Path) -> None:
    place = tmp_path / "volume"
    before = os.umask(0)
    try:
        store = await open_volume(place)
    finally:
        os.umask(before)
    await store.commit({b"k": b"1"})
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()} == {0o600}
    await store.close()


async def test_places_that_hold_no_store(tmp_path: Path) -> None:
    with pytest.raises(MetadataUnavailable, match="above it does not exist"):
        await open_volume(tmp_path / "not mounted" / "store")
    assert not (tmp_path / "not mounted").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letters.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"holds other files: letters\.txt"):
        await open_volume(tmp_path / "used")
    assert os.listdir(tmp_path / "used") == ["letters.txt"]
    with pytest.raises(ConfigError, match="not a directory"):
        await open_volume(tmp_path / "used" / "letters.txt")
    (tmp_path / "fresh" / "lost+found").mkdir(parents=True)  # as mkfs leaves it
    await (await open_volume(tmp_path / "fresh")).close()


async def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / lmdb_volume.DATA).write_bytes(b"not a database" * 1000)
    (tmp_path / "index").mkdir()
    index = LmdbStore(tmp_path / "index" / lmdb_volume.DATA)
    index.commit({b"k": b"of something else"})
    index.close()
    (tmp_path / "newer").mkdir()
    newer = LmdbStore(tmp_path / "newer" / lmdb_volume.DATA)
    newer.commit({FORMAT_KEY: bytes([99]) + bytes(16)})
    newer.close()
    for name, said in {
        "text": "not a metadata store of this version",
        "index": "no metadata store of tiercache",
        "newer": "format 99; this version reads 1",
    }.items():
        for _ in range(2):  # a refusal leaves no lock behind
            with pytest.raises(FormatError, match=said) as caught:
                await open_volume(tmp_path / name)
            assert str(tmp_path / name) in caught.value.path
            assert "cache directory" not in caught.value.remedy
        with pytest.raises(FormatError, match=said):
            await open_metadata(config(tmp_path / name), {}, read_only=True)


async def test_an_agent_that_died_while_making_it(tmp_path: Path) -> None:
    place = tmp_path / "volume"
    place.mkdir()
    for name in lmdb_volume.OURS:
        (place / name).touch()
    with pytest.raises(NotFound):
        await open_metadata(config(place), {}, read_only=True)
    store = await open_volume(place)
    assert store.sequence == 1 and len(store.identity) == 32
    await store.close()


async def test_a_full_volume(tmp_path: Path) -> None:
    """Commits fail until there is room, and what was there stays."""
    with tmpfs(tmp_path / "mount", "size=4m") as mount:
        store = await open_volume(mount / "volume")
        last = await store.commit({b"before": b"1"})
        fill_up(mount / "ballast")
        with pytest.raises(MetadataUnavailable) as caught:
            await store.commit({b"k%d" % i: bytes(4096) for i in range(64)})
        assert "volume" in caught.value.remedy
        assert [pair async for pair in store.scan(b"")] == [(b"before", b"1")]
        (mount / "ballast").unlink()
        assert await store.commit({b"k%d" % i: bytes(4096) for i in range(64)}) == last + 1
        await store.close()
        again = await open_volume(mount / "volume")
        assert again.sequence == last + 1 and await again.get(b"before") == b"1"
        await again.close()


async def test_another_directory_in_its_place(tmp_path: Path) -> None:
    """As after an unmount behind the agent's back."""
    store = await open_volume(tmp_path / "volume")
    (tmp_path / "volume").rename(tmp_path / "elsewhere")
    with pytest.raises(MetadataUnavailable):
        await store.check_owner()
    usurper = await open_volume(tmp_path / "volume")
    with pytest.raises(MetadataUnavailable, match="another directory"):
        await store.check_owner()
    await usurper.close()
    await store.close()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A volume whose writes wait until the event is set; it is."""
    flowing = threading.Event()
    flowing.set()
    commit = LmdbStore.commit

    def commit_when_it_flows(self: LmdbStore, batch: dict[bytes, bytes | None]) -> int:
        assert flowing.wait(30)
        return commit(self, batch)

    monkeypatch.setattr(LmdbStore, "commit", commit_when_it_flows)
    return flowing


async def test_a_volume_that_hangs(tmp_path: Path, hanging: threading.Event) -> None:
    """The caller is told in time, reads go on, and commits keep their order."""
    store = await open_volume(tmp_path / "volume", deadline_s=0.3)
    last = await store.commit({b"k": b"1"})
    hanging.clear()
    for value in (b"2", b"3"):
        with pytest.raises(MetadataUnavailable, match=r"within 0\.3 s"):
            await store.commit({b"k": value})
    assert await store.get(b"k") == b"1"
    hanging.set()
    # The first was under way and goes on. The second was still waiting, and is not begun.
    until = time.monotonic() + 10
    while await store.get(b"k") == b"1" and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert await store.get(b"k") == b"2"
    with pytest.raises(PreconditionFailed):
        await store.commit({b"k": b"4"}, preconditions={b"k": b"1"})
    assert await store.commit({b"k": b"4"}, preconditions={b"k": b"2"}) == last + 2
    await store.close()


async def test_a_volume_that_opens_too_late_keeps_no_lock(
    tmp_path: Path, hanging: threading.Event
) -> None:
    hanging.clear()  # making a store is a commit
    with pytest.raises(MetadataUnavailable, match=r"within 0\.3 s"):
        await open_volume(tmp_path / "volume", deadline_s=0.3)
    hanging.set()
    until = time.monotonic() + 10
    while True:
        try:
            store = await open_volume(tmp_path / "volume")
        except MetadataUnavailable:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        else:
            break
    assert store.sequence == 1
    await store.close()


async def test_a_commit_does_not_hold_up_the_event_loop(
    tmp_path: Path, hanging: threading.Event
) -> None:
    store = await open_volume(tmp_path / "volume")
    hanging.clear()
    commit = asyncio.create_task(store.commit({b"k": b"1"}))
    for _ in range(100):
        await asyncio.sleep(0)
        assert await store.get(b"k") is None
    assert not commit.done()
    hanging.set()
    assert await commit == 2
    await store.close()
