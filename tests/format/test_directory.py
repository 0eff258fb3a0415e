"""A cache directory written down byte for byte is read; one of another format is refused."""

from __future__ import annotations

import json
from pathlib import Path

import lmdb
import msgspec
import pytest

import tiercache
from tests.fault.cache_rig import kill_agent
from tests.format.golden import golden
from tiercache.errors import FormatError
from tiercache.model import Consistency
from tiercache.settings import CacheSettings, MountSettings, ProfileSettings, Settings, TotalBytes
from tiercache.units import MIB

SMALL = b"a small object of the golden cache\n" * 2000  # two pages
LARGE = bytes(range(256)) * 1200  # five pages, the last is short


def settings_of(cache_dir: Path) -> Settings:
    """The origin is never asked (nobody is there): what an immutable mount has bound is bound
    for good."""
    mount = MountSettings(
        path="/m", origin="s3://golden/data", profile="p", consistency=Consistency.IMMUTABLE
    )
    nobody = ProfileSettings(name="p", endpoint="http://127.0.0.1:9", deadline_s=1.0)
    return Settings(
        cache=CacheSettings(dir=str(cache_dir), limit=TotalBytes(64 * MIB), memory_bytes=16 * MIB),
        mounts=(mount,),
        profiles={"default": ProfileSettings(), "p": nobody},
    )


def put_extent(cache_dir: Path, extent_id: int, length: int, offset: int, data: bytes) -> None:
    name = f"{extent_id:016x}"
    path = cache_dir / "extents" / name[:2] / name[2:]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(length)
        file.seek(offset)
        file.write(data)


@pytest.fixture
def golden_dir(tmp_path: Path) -> Path:
    """A cache of format 1, made by nothing of tiercache."""
    root = tmp_path / "golden"
    root.mkdir(mode=0o700)
    (root / "superblock.json").write_text(
        '{"magic": "tiercache", "format_version": 1, "created": "2026-01-31T12:00:00Z"}'
    )
    (root / "shared.state").write_bytes(b"TCSTATE1" + bytes(1_052_672 - 8))
    env = lmdb.open(str(root / "index.lmdb"), subdir=False, map_size=MIB)
    with env.begin(write=True) as transaction:
        for key, value in golden("directory").items():
            transaction.put(bytes.fromhex(key), value)
    env.close()
    put_extent(root, 2, len(LARGE), 0, LARGE)
    put_extent(root, 4, MIB, 128, SMALL)
    return root


def test_a_directory_of_this_format_is_read_without_asking_anybody(golden_dir: Path) -> None:
    with tiercache.connect(settings_of(golden_dir), embedded=True) as ns:
        assert ns.read("/m/small") == SMALL
        assert ns.read("/m/large") == LARGE
        assert bytes(ns.view("/m/large", 65530, 100_000)) == LARGE[65530:165_530]
        assert ns.stat("/m/large").version == '"l1"'
        assert ns.cached_bytes("/m/large") == len(LARGE)
        status = ns.status()
    assert status["pins"] == ["/m/large"]
    assert (status["cache"]["extents"], status["cache"]["packs"]) == (2, 1)
    assert status["cache"]["corrupt_pages"] == 0
    assert status["origins"] == [] or all(o["requests"] == {} for o in status["origins"])


def test_numbers_go_on_where_the_directory_left_off(golden_dir: Path, tmp_path: Path) -> None:
    """An id used twice would give one object the bytes of another."""
    settings = settings_of(golden_dir)
    (tmp_path / "origin").mkdir()
    more = MountSettings(path="/f", origin=f"file://{tmp_path}/origin")
    settings = msgspec.structs.replace(settings, mounts=(*settings.mounts, more))
    (tmp_path / "origin/new").write_bytes(b"n" * 400_000)
    with tiercache.connect(settings, embedded=True) as ns:
        assert ns.read("/f/new") == b"n" * 400_000
        assert ns.read("/m/large") == LARGE
        files = {e.file for e in ns.locate("/f/new")}
    ids = {int(Path(file).parent.name + Path(file).name, 16) for file in files}
    assert ids and min(ids) >= 8


def refused(settings: Settings, *, embedded: bool) -> FormatError:
    try:
        with pytest.raises(FormatError) as caught:
            tiercache.connect(settings, embedded=embedded)
        return caught.value
    finally:
        kill_agent(settings.cache.dir)


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_a_directory_of_another_format_is_refused_and_left_alone(
    golden_dir: Path, version: object, embedded: bool
) -> None:
    superblock = golden_dir / "superblock.json"
    superblock.write_text(json.dumps({"magic": "tiercache", "format_version": version}))
    before = contents(golden_dir)
    error = refused(settings_of(golden_dir), embedded=embedded)
    assert error.path == str(golden_dir)
    assert f"has format {version}, this version reads 1" in error.message
    assert "--cache-dir" in error.remedy
    assert contents(golden_dir) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_a_damaged_superblock_is_refused(golden_dir: Path, text: str) -> None:
    (golden_dir / "superblock.json").write_text(text, encoding="latin-1")
    before = contents(golden_dir)
    error = refused(settings_of(golden_dir), embedded=True)
    assert str(golden_dir) in error.path
    assert error.remedy
    assert contents(golden_dir) == before


@pytest.mark.parametrize("name", ["shared.state", "leases.state", "index.lmdb"])
def test_a_foreign_file_in_place_of_ours_is_refused(golden_dir: Path, name: str) -> None:
    (golden_dir / name).write_bytes(b"something else" * 1000)
    error = refused(settings_of(golden_dir), embedded=True)
    assert str(golden_dir / name) in error.path
    assert error.remedy
    assert (golden_dir / name).read_bytes() == b"something else" * 1000


def contents(root: Path) -> dict[str, bytes]:
    """Return all files but the agent's log."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "agent.log"
    }


def test_the_files_of_a_qos_policy_are_read(golden_dir: Path) -> None:
    (golden_dir / "qos-policy.toml").write_text(
        'version = 1\n[[identity]]\nname = "train"\nmatch = { name = "train" }\n'
    )
    (golden_dir / "qos-overrides.json").write_text(
        '{"version":1,"overrides":['
        '{"identity":"train","assignment":"read.limit=200MB/s","until_unix_s":null},'
        '{"identity":"train","assignment":"in_flight=3","until_unix_s":1700000000.0}]}'
    )
    (golden_dir / "qos-calibration.json").write_text(
        '{"version":1,"read":4e9,"write":1e9,"direct_read":0.0,"measured_unix_s":1700000000.5,'
        '"is_fallback":false}'
    )
    with tiercache.connect(settings_of(golden_dir), embedded=True) as ns:
        told = ns.qos.show()
    train = next(one for one in told.identities if one.name == "train")
    assert (train.shares.read.limit, train.in_flight) == (200e6, None)  # the other has expired
    assert [(one.key, one.value, one.left_s) for one in told.overrides] == [
        ("read.limit", "200MB/s", None)
    ]
    assert (told.node.read, told.measured.write, told.measured_unix_s) == (4e9, 1e9, 1700000000.5)
    assert (told.source, told.error) == ("applied", "")


@pytest.mark.parametrize(
    "name", ["qos-policy.toml", "qos-overrides.json", "qos-calibration.json", "qos-audit.jsonl"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{}", b'{"version": 2}', b"x" * 100_000])
def test_what_is_broken_of_them_is_left_out(golden_dir: Path, name: str, content: bytes) -> None:
    (golden_dir / name).write_bytes(content)
    with tiercache.connect(settings_of(golden_dir), embedded=True) as ns:
        assert ns.read("/m/small") == SMALL
        told = ns.qos.show()
    assert (told.generation, told.identities) == (0, ())
    if name in ("qos-policy.toml", "qos-overrides.json"):
        assert name in told.error
