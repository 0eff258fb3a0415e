"""What ``tiercache://`` promises beyond the suites of others."""

from __future__ import annotations

import asyncio
import datetime
import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback
from hypothesis import given
from hypothesis import strategies as st

import tiercache
from tests.consumers.conftest import Tier
from tiercache.errors import ConfigError, NotFound, OriginUnavailable, Unsupported
from tiercache.fs import TierCacheFileSystem
from tiercache.fs.paths import parent, strip, unstrip
from tiercache.settings import CacheSettings, QosSettings, Settings
from tiercache.testing.datasets import object_bytes
from tiercache.units import KIB

DATA = bytes(range(251)) * 1000


@pytest.fixture
def fs(tier: Tier) -> TierCacheFileSystem:
    return tier.filesystem()


@pytest.fixture
def path(tier: Tier, new_path: Callable[[], str]) -> str:
    """An object of 251,000 bytes, not cached."""
    path = f"{new_path()}/object"
    tier.server.put(tier.bucket, path.removeprefix("/m/"), DATA)
    return path


# -- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stripped"),
    [
        ("tiercache://imagenet/a", "/imagenet/a"),
        ("tiercache:///imagenet/a", "/imagenet/a"),
        ("/imagenet/a/", "/imagenet/a"),
        ("imagenet/a", "/imagenet/a"),
        ("//imagenet//a", "/imagenet//a"),
        (Path("/imagenet/a"), "/imagenet/a"),
        ("tiercache://", "/"),
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("tiercache://s3://bucket/key", "s3://bucket/key"),
        ("s3://bucket/", "s3://bucket"),
        ("/imagenet/%2F ü", "/imagenet/%2F ü"),
    ],
)
def test_strip(given: str | Path, stripped: str) -> None:
    assert strip(given) == stripped
    assert strip(unstrip(stripped)) == stripped
    assert TierCacheFileSystem._strip_protocol([given]) == [stripped]


@pytest.mark.parametrize("given", [None, 1, b"/a", ["/a"]])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(TypeError):
        strip(given)


@pytest.mark.parametrize(
    ("path", "above"),
    [("/a/b", "/a"), ("/a", "/"), ("/", "/"), ("s3://b/k/l", "s3://b/k"), ("s3://b", "s3://b")],
)
def test_parent(path: str, above: str) -> None:
    assert parent(path) == above


def test_an_origin_url_names_the_mounted_object(
    tier: Tier, fs: TierCacheFileSystem, path: str
) -> None:
    url = f"{tier.server.url(tier.bucket)}/{path.removeprefix('/m/')}"
    assert fs.cat_file(f"tiercache://{url}", 3, 9) == DATA[3:9]
    assert fs.info(url)["name"] == url
    assert fs.ls(fs._parent(url), detail=False) == [url]
    assert fs.glob(fs._parent(url) + "/*") == [url]


# -- reading ------------------------------------------------------------------------------------


@given(
    st.none() | st.integers(-len(DATA) - 9, len(DATA) + 9),
    st.none() | st.integers(-len(DATA) - 9, len(DATA) + 9),
)
def test_slices_are_python_slices(
    tier: Tier, shared_object: str, start: int | None, end: int | None
) -> None:
    fs = tier.filesystem()
    assert fs.cat_file(shared_object, start, end) == DATA[start:end]
    assert fs.cat_file(shared_object, start=start, end=end) == DATA[start:end]
    ranges = fs.cat_ranges([shared_object, shared_object], [start, 0], [end, 5])
    assert ranges == [DATA[start:end], DATA[:5]]


@pytest.fixture(scope="module")
def shared_object(tier: Tier) -> str:
    path = f"/m/{uuid.uuid4().hex[:12]}/object"
    tier.server.put(tier.bucket, path.removeprefix("/m/"), DATA)
    return path


def test_handles(fs: TierCacheFileSystem, path: str) -> None:
    with fs.open(path) as handle:
        assert handle.readable() and handle.seekable() and not handle.writable()
        assert handle.size == len(DATA) and handle.info() == fs.info(path) == handle.details
        assert handle.read(5) == DATA[:5] and handle.tell() == 5
        assert handle.seek(-7, 2) == len(DATA) - 7
        assert handle.read() == DATA[-7:] and handle.read(1) == b""
        buffer = bytearray(9)
        handle.seek(100)
        assert handle.readinto(buffer) == 9 and bytes(buffer) == DATA[100:109]
        assert handle.full_name == f"tiercache://{path[1:]}"
    with pytest.raises(ValueError, match="closed"):
        handle.read(1)
    assert fs.read_block(path, 10, 20) == DATA[10:30]
    assert fs.head(path, 10) == DATA[:10] and fs.tail(path, 10) == DATA[-10:]


def test_lines_and_text(fs: TierCacheFileSystem, new_path: Callable[[], str]) -> None:
    path = f"{new_path()}/lines.txt"
    lines = [f"Zeile {n} ü\n" * (n % 7) for n in range(5000)]
    text = "".join(lines)
    with fs.open(path, "w", encoding="utf-8", newline="\n") as writer:
        writer.write(text)
    with fs.open(path) as handle:
        assert list(handle) == text.encode().splitlines(keepends=True)
        handle.seek(3)
        assert handle.readline(4) == text.encode()[3:7]
        handle.seek(0)
        assert handle.readuntil(b"4 ") == text.encode()[: text.encode().index(b"4 ") + 2]
        rest = text.encode()[handle.tell() :]
        assert handle.readuntil(b"not there") == rest
    with fs.open(path, "rt", encoding="utf-8") as reader:
        assert reader.read() == text
    assert fs.read_block(path, 5, 100, b"\n").endswith(b"\n")


@pytest.mark.parametrize("codec", ["gzip", "xz", "infer"])
def test_compression(fs: TierCacheFileSystem, new_path: Callable[[], str], codec: str) -> None:
    path = f"{new_path()}/a.gz"
    with fs.open(path, "wb", compression=codec) as writer:
        writer.write(DATA)
    assert fs.size(path) < len(DATA)
    with fs.open(path, "rb", compression=codec) as reader:
        assert reader.read() == DATA


def test_cat(fs: TierCacheFileSystem, new_path: Callable[[], str]) -> None:
    folder = new_path()
    objects = {f"{folder}/{name}": name.encode() for name in ("a", "b", "c/d")}
    fs.pipe(objects)
    assert fs.cat(f"{folder}/a") == b"a"
    assert fs.cat(list(objects)) == objects
    assert fs.cat(folder, recursive=True) == objects
    assert fs.cat(f"{folder}/?") == {f"{folder}/a": b"a", f"{folder}/b": b"b"}
    missing = [f"{folder}/a", f"{folder}/missing"]
    assert fs.cat(missing, on_error="omit") == {missing[0]: b"a"}
    assert isinstance(fs.cat(missing, on_error="return")[missing[1]], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat(missing)
    outcome = fs.cat_ranges(missing, 0, 1)
    assert outcome[0] == b"a" and isinstance(outcome[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(missing, 0, 1, on_error="raise")
    with pytest.raises(IsADirectoryError):
        fs.cat_file(folder)


# -- names --------------------------------------------------------------------------------------


def test_names(tier: Tier, fs: TierCacheFileSystem, new_path: Callable[[], str]) -> None:
    folder = new_path()
    fs.pipe({f"{folder}/a": b"1", f"{folder}/d/b": b"22", f"{folder}/d/e/c": b"333"})
    assert fs.info(folder) == {"name": folder, "size": 0, "type": "directory"}
    assert fs.ls(folder, detail=False) == [f"{folder}/a", f"{folder}/d"]
    assert fs.ls(f"{folder}/a") == [fs.info(f"{folder}/a")]
    assert fs.find(folder) == [f"{folder}/a", f"{folder}/d/b", f"{folder}/d/e/c"]
    withdirs = [folder, f"{folder}/a", f"{folder}/d", f"{folder}/d/b", f"{folder}/d/e"]
    assert fs.find(folder, withdirs=True) == [*withdirs, f"{folder}/d/e/c"]
    assert fs.find(folder, withdirs=True, maxdepth=2) == withdirs
    assert fs.find(f"{folder}/a") == [f"{folder}/a"] and fs.find(f"{folder}/x") == []
    assert fs.glob(f"{folder}/**/[bc]") == [f"{folder}/d/b", f"{folder}/d/e/c"]
    assert fs.du(folder) == 6 and fs.du(folder, total=False)[f"{folder}/d/b"] == 2
    assert [entry[0] for entry in fs.walk(folder)] == [folder, f"{folder}/d", f"{folder}/d/e"]
    assert set(fs.ls("/", detail=False)) >= {"/m", "/fresh"}
    assert fs.isdir("/") and fs.exists("tiercache://") and fs.isdir("/m") and not fs.isfile("/m")
    assert not fs.exists(f"{folder}/x") and not fs.isfile(folder)
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{folder}/x")
    with pytest.raises(FileNotFoundError):
        fs.info("/nothing-mounted")


def test_object_and_directory_of_one_name(
    fs: TierCacheFileSystem, new_path: Callable[[], str]
) -> None:
    folder = new_path()
    # One after the other: written at once, SeaweedFS loses one of them (6 in 400 times).
    fs.pipe_file(f"{folder}/a", b"object")
    fs.pipe_file(f"{folder}/a/b", b"below")
    assert fs.isfile(f"{folder}/a") and fs.cat_file(f"{folder}/a") == b"object"
    assert fs.ls(f"{folder}/a", detail=False) == [f"{folder}/a/b"]
    assert fs.find(folder) == [f"{folder}/a", f"{folder}/a/b"]
    fs.rm(folder, recursive=True)
    assert not fs.exists(f"{folder}/a/b") and not fs.exists(f"{folder}/a")


def test_versions(fs: TierCacheFileSystem, path: str) -> None:
    info = fs.info(path)
    assert info["type"] == "file" and info["size"] == len(DATA) and info["ETag"] == info["version"]
    modified = fs.modified(path)
    assert modified.tzinfo is datetime.UTC and modified.timestamp() == info["mtime"]
    before = fs.checksum(path), fs.ukey(path)
    fs.pipe_file(path, b"new")
    assert fs.checksum(path) != before[0] and fs.ukey(path) != before[1]
    with pytest.raises(NotImplementedError):
        fs.created(path)
    with pytest.raises(NotImplementedError):
        fs.sign(path)


def test_invalidate(tier: Tier, fs: TierCacheFileSystem, path: str) -> None:
    assert fs.size(path) == len(DATA)
    tier.server.put(tier.bucket, path.removeprefix("/m/"), b"shorter")
    assert fs.size(path) == len(DATA), "within its ttl a name is not asked for again"
    fs.invalidate_cache(path)
    assert fs.size(path) == 7 and fs.cat_file(path) == b"shorter"
    tier.server.put(tier.bucket, path.removeprefix("/m/"), b"short")
    fs.invalidate_cache()
    assert fs.cat_file(path) == b"short"


# -- writing ------------------------------------------------------------------------------------


def test_modes(fs: TierCacheFileSystem, path: str) -> None:
    for create in (
        lambda: fs.open(path, "xb"),
        lambda: fs.open(path, "x"),
        lambda: fs.pipe_file(path, b"", mode="create"),
    ):
        with pytest.raises(FileExistsError):
            create()
    for mode in ("ab", "a", "r+b", "wb+"):
        with pytest.raises(Unsupported, match="in place"):
            fs.open(path, mode)
    assert fs.cat_file(path) == DATA
    with fs.open(f"{path}2", "xb") as writer:
        writer.write(b"new")
    assert fs.cat_file(f"{path}2") == b"new"
    with pytest.raises(ValueError, match="mode"):
        fs.open(path, "qb")


def test_a_failed_block_publishes_nothing(fs: TierCacheFileSystem, path: str) -> None:
    for mode, part in (("wb", b"half"), ("w", "half")):
        with pytest.raises(KeyError):
            _write_half(fs.open(path, mode), part)
        with pytest.raises(KeyError):
            _write_half(fs.open(path, mode, compression="gzip"), part)
        assert fs.cat_file(path) == DATA


def _write_half(writer: Any, part: bytes | str) -> None:
    with writer:
        writer.write(part)
        raise KeyError


def test_transactions(fs: TierCacheFileSystem, new_path: Callable[[], str]) -> None:
    folder = new_path()
    with fs.transaction:
        with fs.open(f"{folder}/a", "wb") as writer:
            writer.write(b"a")
        fs.pipe_file(f"{folder}/b", b"b")
        assert not fs.exists(f"{folder}/a") and not fs.exists(f"{folder}/b")
    assert fs.cat([f"{folder}/a", f"{folder}/b"]) == {f"{folder}/a": b"a", f"{folder}/b": b"b"}
    with pytest.raises(KeyError):
        _fail_in_transaction(fs, f"{folder}/a")
    assert fs.cat_file(f"{folder}/a") == b"a"


def _fail_in_transaction(fs: TierCacheFileSystem, path: str) -> None:
    with fs.transaction:
        fs.pipe_file(path, b"changed")
        raise KeyError


def test_directories(fs: TierCacheFileSystem, path: str) -> None:
    folder = fs._parent(path)
    fs.mkdir(f"{folder}/new")
    fs.makedirs(f"{folder}/new/deep", exist_ok=True)
    fs.makedirs("/m", exist_ok=True)
    assert not fs.exists(f"{folder}/new")
    with pytest.raises(FileExistsError):
        fs.makedirs(folder)
    with pytest.raises(FileExistsError):
        fs.mkdir(path)
    with pytest.raises(FileNotFoundError):
        fs.mkdir("/nothing-mounted/a")
    with pytest.raises(FileNotFoundError):
        fs.rmdir(f"{folder}/new")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(folder)
    with pytest.raises(IsADirectoryError):
        fs.rm(folder)
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{folder}/new", recursive=True)
    fs.touch(f"{folder}/empty")
    assert fs.size(f"{folder}/empty") == 0
    with pytest.raises(NotImplementedError):
        fs.touch(path, truncate=False)


def test_moves(fs: TierCacheFileSystem, path: str, new_path: Callable[[], str]) -> None:
    folder, other = fs._parent(path), new_path()
    fs.rename(path, f"{path}2")
    assert not fs.exists(path) and fs.cat_file(f"{path}2") == DATA
    fs.mv(f"{path}2", f"{other}/")
    assert fs.find(other) == [f"{other}/object2"]
    fs.mv(other, folder, recursive=True)
    assert fs.find(folder) == [f"{folder}/object2"] and fs.find(other) == []
    fs.cp(f"{folder}/object2", path)
    assert fs.cat_file(path) == DATA


class Counting(Callback):  # type: ignore[misc]  # fsspec is untyped
    pass


def test_get_and_put(fs: TierCacheFileSystem, new_path: Callable[[], str], tmp_path: Path) -> None:
    folder = new_path()
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(DATA)
    (tmp_path / "in" / "sub" / "b").write_bytes(b"")
    counting = Counting()
    fs.put(f"{tmp_path}/in", folder, recursive=True, callback=counting)
    assert counting.value == counting.size == 2
    assert fs.find(folder) == [f"{folder}/a", f"{folder}/sub/b"]
    fs.get(folder, f"{tmp_path}/out", recursive=True, callback=Counting())
    assert (tmp_path / "out" / "a").read_bytes() == DATA
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b""
    counting = Counting()
    fs.get_file(f"{folder}/a", f"{tmp_path}/one", callback=counting)
    assert counting.value == counting.size == len(DATA)
    out = io.BytesIO()
    fs.get_file(f"{folder}/a", out)
    assert out.getvalue() == DATA
    with pytest.raises(FileExistsError):
        fs.put_file(f"{tmp_path}/one", f"{folder}/a", mode="create")


def test_a_large_write_streams(fs: TierCacheFileSystem, new_path: Callable[[], str]) -> None:
    path, part = f"{new_path()}/large", object_bytes("part", 700 * KIB)
    with fs.open(path, "wb") as writer:
        for _ in range(30):
            assert writer.write(part) == len(part)
    assert fs.cat_file(path) == part * 30


# -- asynchronous -------------------------------------------------------------------------------


async def test_async(tier: Tier, new_path: Callable[[], str], tmp_path: Path) -> None:
    fs, folder = tier.filesystem(asynchronous=True), new_path()
    await fs._pipe({f"{folder}/a": DATA, f"{folder}/d/b": b"b"})
    assert await fs._cat_file(f"{folder}/a", -5) == DATA[-5:]
    assert await fs._cat(f"{folder}/d/b") == b"b"
    assert await fs._find(folder) == [f"{folder}/a", f"{folder}/d/b"]
    assert [found[0] async for found in fs._walk(folder)] == [folder, f"{folder}/d"]
    assert await fs._glob(f"{folder}/*") == [f"{folder}/a", f"{folder}/d"]
    assert await fs._isdir(folder) and await fs._isfile(f"{folder}/a")
    assert await fs._size(f"{folder}/a") == len(DATA) == await fs._du(f"{folder}/a")
    assert await fs._cat_ranges([f"{folder}/a"], [1], [3]) == [DATA[1:3]]
    await fs._get(folder, f"{tmp_path}/out", recursive=True)
    assert (tmp_path / "out" / "a").read_bytes() == DATA
    await fs._mv_file(f"{folder}/a", f"{folder}/c")
    async with await fs.open_async(f"{folder}/c") as handle:
        assert await handle.read(5) == DATA[:5] and await handle.read() == DATA[5:]
    async with await fs.open_async(f"{folder}/e", "wb") as writer:
        await writer.write(b"e")
    assert await fs._cat_file(f"{folder}/e") == b"e"
    await fs._rm(folder, recursive=True)
    assert not await fs._exists(folder)
    with pytest.raises(NotFound):
        await fs._info(folder)


def test_synchronous_calls_inside_a_loop(fs: TierCacheFileSystem, path: str) -> None:
    async def run() -> bytes:
        return fs.cat_file(path) + b"".join(fs.cat([path]).values())

    assert asyncio.run(run()) == DATA + DATA


# -- configuration and failures -----------------------------------------------------------------


def test_configuration_by_file(
    tier: Tier, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tier.server
    config = tmp_path / "tiercache.toml"
    config.write_text(
        f'[cache]\ndir = "{tier.options["cache_dir"]}"\n'
        f'[[mount]]\npath = "/m"\norigin = "{server.url(tier.bucket)}"\nprofile = "p"\n'
        f'[profile.p]\nregion = "us-east-1"\nendpoint = "{server.endpoint}"\naddressing = "path"\n'
    )
    assert fsspec.filesystem("tiercache", config=str(config)).cat_file(path) == DATA
    monkeypatch.setenv("TIERCACHE_CONFIG", str(config))
    with fsspec.open(f"tiercache:/{path}") as handle:
        assert handle.read() == DATA


def test_options_that_mean_nothing_are_refused(tier: Tier) -> None:
    with pytest.raises(TypeError):
        tier.filesystem(anon=True)
    with pytest.raises(ConfigError):
        TierCacheFileSystem(mounts={"/m": {"origin": "s3://b", "tll": "60s"}})
    with pytest.raises(Unsupported):
        tier.filesystem().cat_ranges(["/m/a"], 0, 1, max_gap=5)


def test_an_unreachable_origin_is_never_absence(tmp_path: Path) -> None:
    fs = TierCacheFileSystem(
        cache_dir=str(tmp_path / "cache"),
        agent={"idle_timeout": "1s"},
        mounts={"/gone": {"origin": "s3://bucket", "profile": "gone"}},
        profiles={
            "gone": {"endpoint": "http://127.0.0.1:9", "region": "us-east-1", "deadline": "2s"}
        },
    )
    for call in (fs.exists, fs.isfile, fs.isdir, fs.info, fs.ls, fs.find, fs.cat_file, fs.glob):
        with pytest.raises(OriginUnavailable):
            call("/gone/a")
    with pytest.raises(OriginUnavailable):
        list(fs.walk("/gone/a"))
    with pytest.raises(OriginUnavailable):
        asyncio.run(TierCacheFileSystem(asynchronous=True, **fs.storage_options)._exists("/gone/a"))
    fs.namespace.shut_down_agent()


def test_a_filesystem_says_what_it_is_called(tmp_path: Path) -> None:
    fs = TierCacheFileSystem(
        cache_dir=str(tmp_path / "cache"), qos={"name": "training", "max_wait": "5s"}
    )
    assert (fs.namespace.settings.qos.name, fs.namespace.settings.qos.max_wait_s) == (
        "training",
        5.0,
    )
    with pytest.raises(ConfigError, match="unknown key 'nme'"):
        TierCacheFileSystem(cache_dir=str(tmp_path / "cache"), qos={"nme": "training"})


def test_a_connection_says_what_it_is_called(tmp_path: Path) -> None:
    settings = Settings(cache=CacheSettings(dir=str(tmp_path / "a")), qos=QosSettings(name="old"))
    config = tmp_path / "config.toml"
    config.write_text(f'[cache]\ndir = "{tmp_path}/b"\n[qos]\nname = "old"\nmax_wait = "5s"\n')
    for source, max_wait_s in ((settings, None), (config, 5.0)):
        with tiercache.connect(source, name="training", embedded=True) as ns:
            assert (ns.settings.qos.name, ns.settings.qos.max_wait_s) == ("training", max_wait_s)
        with tiercache.connect(source, embedded=True) as ns:
            assert ns.settings.qos.name == "old"


def test_embedded(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "a").write_bytes(DATA)
    fs = TierCacheFileSystem(
        cache_dir=str(tmp_path / "cache"),
        cache={"capacity": "64MiB"},
        mounts={"/m": f"file://{tmp_path}/origin"},
        embedded=True,
    )
    assert fs.cat_file("/m/a") == DATA
    fs.namespace.close()
