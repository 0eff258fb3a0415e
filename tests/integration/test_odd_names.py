"""Names that trip others over go through the whole namespace and come back (FIELD.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.origin_rig import Rig, rig_of
from tiercache.errors import ConfigError, IsADirectory, NotFound
from tiercache.model import JobState, Kind
from tiercache.namespace import Namespace
from tiercache.testing.object_servers import ObjectServer, S3Server

LONG = "long/" + "k" * (1024 - len("p/long/") - 3) + "€"  # 1,024 bytes with the mount's prefix
NAMES = [
    "a",
    "a/b",
    "a/b/c",
    "x//y",
    "x/y",
    "/lead",
    "//lead",
    "trail/",
    "trail//",
    "ünï-世界/🙂",
    "u\u0308 decomposed",
    "100%2Fx",
    "100%",
    "sp ace+b&c?d#e=f",
    "~'[]{}|\\^`\"<>",
    "tab\there",
    "...",
    ".hidden/..x/x..",
    "*?[a]",
    "CON",
    "UPPER",
    "upper",
    "empty",
    LONG,
]
# Only an object with bytes can stand under a name that ends in a slash: an empty one is a
# directory marker to everybody.
EMPTY = {"empty"}


def data_of(name: str) -> bytes:
    return b"" if name in EMPTY else f"data of {name}".encode()


@pytest.fixture
def rig(
    moto_s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path
) -> Iterator[Rig]:
    with rig_of(moto_s3, new_bucket(moto_s3), tmp_path) as rig:
        rig.limits = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}
        yield rig


def check(ns: Namespace, name: str) -> None:
    path, data = f"/m/{name}", data_of(name)
    stat = ns.stat(path)
    assert (stat.kind, stat.size_bytes) == (Kind.FILE, len(data)), path
    assert ns.read(path) == data
    assert bytes(ns.view(path)) == data
    assert ns.read_many([(path, 0, 4), (path, 2, None)]) == [data[:4], data[2:]]
    with ns.open(path) as file:
        assert file.read() == data
    assert ns.exists(path)


def test_odd_names_are_read(rig: Rig) -> None:
    for name in NAMES:
        rig.put(f"p/{name}", data_of(name))
    ns = rig.namespace(prefix="p")
    assert {entry.name for entry in ns.list("/m", recursive=True)} == set(NAMES)
    for name in NAMES:
        check(ns, name)
    ns.evict("/m")
    ns.invalidate("/m")
    for name in NAMES:
        check(ns, name)


def test_odd_names_are_prefetched_and_then_read_without_the_origin(rig: Rig) -> None:
    for name in NAMES:
        rig.put(f"p/{name}", data_of(name))
    ns = rig.namespace(prefix="p", ttl_s=3600.0)
    job = ns.prefetch("/m").wait(30)
    assert (job.state, job.listed, job.failed) == (JobState.DONE, len(NAMES), 0), job
    rig.proxy.refuse()
    for name in NAMES:
        check(ns, name)


def test_odd_names_are_written_and_removed(rig: Rig) -> None:
    ns = rig.namespace(prefix="p", ttl_s=3600.0)
    for name in NAMES:
        ns.write(f"/m/{name}", data_of(name))
        check(ns, name)
    assert rig.server.keys(rig.bucket) == sorted(f"p/{name}" for name in NAMES)
    for name in NAMES:
        assert rig.get(f"p/{name}") == data_of(name)
    for name in NAMES:
        ns.remove(f"/m/{name}")
        with pytest.raises((NotFound, IsADirectory)):
            ns.read(f"/m/{name}")
    assert rig.server.keys(rig.bucket) == []


def test_odd_names_by_url(rig: Rig) -> None:
    names = [name for name in NAMES if name != LONG]
    for name in names:
        rig.put(name, data_of(name))
    ns = rig.namespace()
    for name in names:
        assert ns.read(f"s3://{rig.bucket}/{name}") == data_of(name)


def test_an_object_and_a_directory_of_one_name(rig: Rig) -> None:
    rig.put("a", b"object")
    rig.put("a/b", b"below")
    ns = rig.namespace()
    assert [(e.name, e.kind) for e in ns.list("/m")] == [
        ("a", Kind.FILE),
        ("a", Kind.DIRECTORY),
    ]
    assert ns.stat("/m/a").is_file and ns.read("/m/a") == b"object"
    assert [entry.name for entry in ns.list("/m/a")] == ["b"]
    assert ns.read("/m/a/b") == b"below"
    ns.remove("/m/a")
    assert ns.stat("/m/a").is_dir and ns.read("/m/a/b") == b"below"
    assert ns.remove("/m/a", recursive=True) == 1
    assert not ns.exists("/m/a")


def test_own_writes_of_odd_names_show_in_what_was_known(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=3600.0, negative_ttl_s=3600.0)
    rig.put("x/seen", b"1")
    for path in ("/m", "/m/x", "/m/x/", "/m/t", "/m/x//", "/m/x//y"):
        ns.exists(path)
        if path in ("/m", "/m/x", "/m/x/"):
            ns.list(path), ns.list(path, recursive=True)
    ns.write("/m/x//y", b"2")
    ns.write("/m/t/", b"3")
    names = {entry.name for entry in ns.list("/m", recursive=True)}
    assert names == {"x/seen", "x//y", "t/"}
    assert {entry.name for entry in ns.list("/m/x", recursive=True)} == {"seen", "/y"}
    assert ns.read("/m/x//y") == b"2" and ns.stat("/m/t").is_dir and ns.read("/m/t/") == b"3"
    assert {entry.name for entry in ns.list("/m")} == {"x", "t"}


def test_directory_markers_are_directories(rig: Rig) -> None:
    rig.put("made/", b"")
    rig.put("made/inside", b"x")
    ns = rig.namespace()
    assert ns.stat("/m/made").is_dir and ns.stat("/m/made/").is_dir
    assert [entry.name for entry in ns.list("/m/made")] == ["inside"]
    with pytest.raises(IsADirectory):
        ns.read("/m/made")


@pytest.mark.parametrize("name", ["./x", "../x", "a/./b", "a/../b", ".", "..", "a/..", "nul\0x"])
def test_names_that_others_would_rewrite_are_refused(rig: Rig, name: str) -> None:
    ns = rig.namespace()
    for call in (ns.stat, ns.read, ns.exists, ns.list, ns.remove, ns.evict, ns.invalidate):
        with pytest.raises(ConfigError):
            call(f"/m/{name}")
    with pytest.raises(ConfigError):
        ns.write(f"/m/{name}", b"x")
    assert rig.server.keys(rig.bucket) == []


def test_a_name_of_more_than_1024_bytes_is_refused(rig: Rig) -> None:
    ns = rig.namespace(prefix="p")
    with pytest.raises(ConfigError, match="1024"):
        ns.write("/m/" + "k" * 1023, b"x")
    assert ns.write("/m/" + "k" * 1022, b"x").size_bytes == 1
