"""``tiercache://NAME@snapshot/…`` through fsspec, and through what reads by it."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.consumers.conftest import Tier
from tiercache.errors import StaleHandle, Unsupported
from tiercache.fs import TierCacheFileSystem
from tiercache.model import JobState

OBJECTS = {"a": b"first object", "b/c": bytes(range(256)) * 1000, "b/d/e": b""}


@pytest.fixture
def fs(tier: Tier) -> TierCacheFileSystem:
    return tier.filesystem()


@pytest.fixture
def root(tier: Tier, fs: TierCacheFileSystem, new_path: Callable[[], str]) -> str:
    """The directory of a snapshot of OBJECTS, as fsspec spells it."""
    path, name = new_path(), f"s{uuid.uuid4().hex[:8]}"
    for key, data in OBJECTS.items():
        tier.server.put(tier.bucket, f"{path}/{key}".removeprefix("/m/"), data)
    ended = fs.namespace.snapshots.create(name, path).wait(30)
    assert ended.state is JobState.DONE, ended
    return f"{name}@snapshot{path}"


def test_names(fs: TierCacheFileSystem, root: str) -> None:
    url = f"tiercache://{root}"
    full = f"/{root}"
    assert fs.ls(url, detail=False) == [f"{full}/a", f"{full}/b"]
    assert fs.find(url) == [f"{full}/a", f"{full}/b/c", f"{full}/b/d/e"]
    assert fs.glob(f"{url}/b/*") == [f"{full}/b/c", f"{full}/b/d"]
    assert fs.info(f"{url}/a")["size"] == len(OBJECTS["a"]) and fs.info(f"{url}/a")["version"]
    assert fs.info(f"{url}/b")["type"] == "directory"
    assert fs.isdir(url) and fs.isfile(f"{url}/a") and not fs.exists(f"{url}/none")
    assert fs.isdir(url.split("/m/")[0]) and fs.du(url) == sum(map(len, OBJECTS.values()))
    assert [(len(dirs), len(files)) for _, dirs, files in fs.walk(url)] == [(1, 1), (1, 1), (0, 1)]


def test_bytes(fs: TierCacheFileSystem, root: str, tmp_path: Path) -> None:
    url, long = f"tiercache://{root}", OBJECTS["b/c"]
    assert fs.cat_file(f"{url}/a") == OBJECTS["a"]
    assert fs.cat_file(f"{url}/b/c", 100, -100) == long[100:-100]
    assert fs.cat(f"{url}/b", recursive=True) == {
        f"/{root}/b/c": long,
        f"/{root}/b/d/e": b"",
    }
    paths = [f"{url}/a", f"{url}/b/c", f"{url}/none"]
    found = fs.cat_ranges(paths, [1, 5, 0], [4, 9, 1])
    assert found[:2] == [OBJECTS["a"][1:4], long[5:9]]
    assert isinstance(found[2], FileNotFoundError)
    with fs.open(f"{url}/b/c") as file:
        file.seek(1000)
        assert file.read(10) == long[1000:1010]
    with fs.open(f"{url}/a", "rt") as text:
        assert text.read() == "first object"
    fs.get(url, str(tmp_path), recursive=True)
    assert {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == set(OBJECTS.values())


async def test_bytes_on_an_event_loop(tier: Tier, root: str) -> None:
    fs = tier.filesystem(asynchronous=True)
    assert await fs._cat_file(f"{root}/a") == OBJECTS["a"]
    assert await fs._cat_ranges([f"{root}/a", f"{root}/b/c"], 0, 2) == [b"fi", b"\0\1"]
    assert (await fs._info(f"{root}/b/c"))["size"] == len(OBJECTS["b/c"])


def test_it_is_read_only_and_bound(tier: Tier, fs: TierCacheFileSystem, root: str) -> None:
    url = f"tiercache://{root}"
    for change in (
        lambda: fs.pipe_file(f"{url}/a", b"x"),
        lambda: fs.pipe_file(f"{url}/new", b"x"),
        lambda: fs.rm(f"{url}/a"),
        lambda: fs.rm(url, recursive=True),
        lambda: fs.open(f"{url}/new", "wb"),
    ):
        with pytest.raises(Unsupported, match="read only"):
            change()
    path = "/" + root.split("@snapshot/")[1]
    tier.server.put(tier.bucket, f"{path}/a".removeprefix("/m/"), b"another one")
    fs.namespace.evict(path)
    fs.namespace.invalidate(path)
    assert fs.cat_file(f"{path}/a") == b"another one"
    with pytest.raises(StaleHandle, match="froze version"):
        fs.cat_file(f"{url}/a")


def test_a_table_is_read_from_a_snapshot(
    tier: Tier, fs: TierCacheFileSystem, new_path: Callable[[], str]
) -> None:
    path, name = new_path(), f"s{uuid.uuid4().hex[:8]}"
    table = pyarrow.table({"x": list(range(1000))})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    tier.server.put(tier.bucket, f"{path}/t.parquet".removeprefix("/m/"), buffer.getvalue())
    assert fs.namespace.snapshots.create(name, path).wait(30).state is JobState.DONE
    found = pyarrow.parquet.read_table(f"/{name}@snapshot{path}", filesystem=fs)
    assert found == table
