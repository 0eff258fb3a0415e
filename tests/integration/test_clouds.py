"""One namespace over S3, GCS, Azure, a directory and memory: the same everywhere."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest

from tests.fault.origin_rig import QUICK
from tiercache.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    OriginUnavailable,
    Unsupported,
)
from tiercache.model import JobState, Kind
from tiercache.namespace import Namespace
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    ProfileSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import (
    AZURE_KEY,
    S3_SECRET_KEY,
    AzureServer,
    GcsServer,
    ObjectServer,
    S3Server,
)
from tiercache.units import MIB

NewBucket = Callable[[ObjectServer], str]
BIG = object_bytes("cloud", 3 * MIB + 5)
OBJECTS = {"data/big.bin": BIG, "data/sub/small": b"small", "data/sub/empty": b"", "top": b"t"}
CLOUDS = ("/s3", "/gcs", "/azure", "/local", "/memory")
# fake-gcs-server has no XML upload, so nothing can be written there with obstore.
WRITABLE = ("/s3", "/azure", "/local", "/memory")


@dataclass
class World:
    """All clouds, one namespace."""

    ns: Namespace
    buckets: dict[str, tuple[ObjectServer, str]]
    local: Path
    memory: str


@pytest.fixture
def world(
    s3: S3Server, gcs: GcsServer, azure: AzureServer, new_bucket: NewBucket, tmp_path: Path
) -> Iterator[World]:
    servers: dict[str, ObjectServer] = {"s3": s3, "gcs": gcs, "azure": azure}
    buckets = {name: (server, new_bucket(server)) for name, server in servers.items()}
    for server, bucket in buckets.values():
        for key, data in OBJECTS.items():
            server.put(bucket, key, data)
    local, memory = tmp_path / "origin", f"mem-{uuid.uuid4().hex}"
    for key, data in OBJECTS.items():
        (local / key).parent.mkdir(parents=True, exist_ok=True)
        (local / key).write_bytes(data)
        fsspec.filesystem("memory").pipe_file(f"/{memory}/{key}", data)
    profiles = {name: server.profile(name) for name, server in servers.items()}
    mounts = [
        MountSettings(path=f"/{name}", origin=server.url(bucket), profile=name)
        for name, (server, bucket) in buckets.items()
    ]
    mounts.append(MountSettings(path="/local", origin=f"file://{local}"))
    mounts.append(MountSettings(path="/memory", origin=f"memory://{memory}", profile="memory"))
    settings = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(256 * MIB)),
        mounts=tuple(mounts),
        profiles={
            "default": ProfileSettings(),
            "memory": ProfileSettings(name="memory", driver="fsspec"),
            **profiles,
        },
        agent=AgentSettings(idle_timeout_s=5.0),
    )
    with Namespace(settings, embedded=True) as ns:
        yield World(ns, buckets, local, memory)
    fsspec.filesystem("memory").rm(f"/{memory}", recursive=True)


def test_all_clouds_are_one_tree(world: World) -> None:
    ns = world.ns
    assert [entry.name for entry in ns.list("/")] == sorted(c.strip("/") for c in CLOUDS)
    assert all(entry.kind is Kind.DIRECTORY for entry in ns.list("/"))
    below = {entry.name for entry in ns.list("/", recursive=True) if entry.kind is Kind.FILE}
    assert below == {f"{cloud.strip('/')}/{key}" for cloud in CLOUDS for key in OBJECTS}
    assert ns.stat("/").is_dir


@pytest.mark.parametrize("cloud", CLOUDS)
def test_reading(world: World, cloud: str) -> None:
    ns = world.ns
    assert [(e.name, e.kind) for e in ns.list(cloud)] == [
        ("data", Kind.DIRECTORY),
        ("top", Kind.FILE),
    ]
    assert [e.name for e in ns.list(f"{cloud}/data/sub")] == ["empty", "small"]
    for key, data in OBJECTS.items():
        path = f"{cloud}/{key}"
        stat = ns.stat(path)
        assert (stat.kind, stat.size_bytes) == (Kind.FILE, len(data)) and stat.version
        assert ns.read(path) == data == bytes(ns.view(path))
        assert ns.read(path, 1, 3) == data[1:4]
    assert ns.stat(f"{cloud}/data").is_dir
    assert not ns.exists(f"{cloud}/data/never")
    with pytest.raises(NotFound):
        ns.read(f"{cloud}/never")
    ns.evict(cloud)
    job = ns.prefetch(cloud).wait(30)
    assert (job.state, job.listed) == (JobState.DONE, len(OBJECTS))
    assert ns.cached_bytes(f"{cloud}/data/big.bin") == len(BIG)
    assert ns.read(f"{cloud}/data/big.bin") == BIG


@pytest.mark.parametrize("cloud", WRITABLE)
def test_writing(world: World, cloud: str) -> None:
    ns = world.ns
    assert not ns.exists(f"{cloud}/new/object")
    for data in (b"first", BIG, b""):
        stat = ns.write(f"{cloud}/new/object", data)
        assert ns.read(f"{cloud}/new/object") == data
        ns.invalidate(f"{cloud}/new/object")
        assert ns.stat(f"{cloud}/new/object").version == stat.version
        ns.evict(f"{cloud}/new/object")
        assert ns.read(f"{cloud}/new/object") == data
    ns.write(f"{cloud}/new/object", b"x")
    ns.copy(f"{cloud}/new/object", f"{cloud}/new/copy")
    ns.rename(f"{cloud}/new/copy", f"{cloud}/new/renamed")
    assert [entry.name for entry in ns.list(f"{cloud}/new")] == ["object", "renamed"]
    assert ns.read(f"{cloud}/new/renamed") == b"x"
    assert ns.remove(f"{cloud}/new", recursive=True) == 2
    assert not ns.exists(f"{cloud}/new/object")
    if cloud.strip("/") in world.buckets:
        server, bucket = world.buckets[cloud.strip("/")]
        assert server.keys(bucket) == sorted(OBJECTS)


@pytest.mark.parametrize("source", CLOUDS)
@pytest.mark.parametrize("target", WRITABLE)
def test_copying_between_clouds(world: World, source: str, target: str) -> None:
    world.ns.copy(f"{source}/data/big.bin", f"{target}/copied.bin")
    assert world.ns.read(f"{target}/copied.bin") == BIG


def test_urls_name_the_same_objects_as_mounts(world: World) -> None:
    ns = world.ns
    for name, (server, bucket) in world.buckets.items():
        url = server.url(bucket, "data/big.bin")
        assert ns.read(url) == BIG
        assert ns.cached_bytes(f"/{name}/data/big.bin") == len(BIG), "cached under one name"
    assert ns.read(f"file://{world.local}/top") == b"t"


def test_implicit_mounts_need_no_configuration(world: World, s3: S3Server, tmp_path: Path) -> None:
    _, bucket = world.buckets["s3"]
    bare = Settings(
        cache=CacheSettings(dir=str(tmp_path / "bare"), limit=TotalBytes(64 * MIB)),
        # An emulator is not the cloud's own endpoint; nothing else is said.
        profiles={"default": s3.profile()},
    )
    with Namespace(bare, embedded=True) as ns:
        assert ns.read(f"s3://{bucket}/data/big.bin") == BIG
        assert [e.name for e in ns.list(f"s3://{bucket}")] == ["data", "top"]
        assert ns.prefetch(f"s3://{bucket}/data").wait(30).state is JobState.DONE
        with pytest.raises(ConfigError, match="s4"):
            ns.read("s4://bucket/x")
        with pytest.raises(NotFound, match="mounted"):
            ns.read("/not/mounted")


def one_mount(tmp_path: Path, origin: str, profile: ProfileSettings) -> Settings:
    limits: dict[str, Any] = {**QUICK, "request_timeout_s": 5.0, "deadline_s": 8.0}
    profile = msgspec.structs.replace(profile, name="p", **limits)
    return Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(64 * MIB)),
        mounts=(MountSettings(path="/m", origin=origin, profile="p"),),
        profiles={"default": ProfileSettings(), "p": profile},
        agent=AgentSettings(idle_timeout_s=5.0, log_level="debug"),
    )


WRONG = "wrong-secret-nobody-may-see"


@pytest.mark.parametrize("cloud", ["s3", "azure"])
def test_wrong_credentials_are_access_denied_and_never_shown(
    request: pytest.FixtureRequest,
    new_bucket: NewBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cloud: str,
) -> None:
    server: ObjectServer = request.getfixturevalue(cloud)
    bucket = new_bucket(server)
    server.put(bucket, "object", b"x")
    azure_wrong = "d3Jvbmctc2VjcmV0LW5vYm9keS1tYXktc2Vl"  # the same words, in base64
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure_wrong)
    settings = one_mount(tmp_path, server.url(bucket), server.profile())
    ns = Namespace(settings)  # a real agent, for its log
    said = []
    try:
        for call in (
            lambda: ns.stat("/m/object"),
            lambda: ns.exists("/m/object"),
            lambda: ns.read("/m/object"),
            lambda: ns.list("/m"),
            lambda: ns.write("/m/new", b"x"),
        ):
            with pytest.raises(AccessDenied) as caught:
                call()
            assert isinstance(caught.value, PermissionError)
            assert caught.value.remedy, "it says what to do"
            said.append(str(caught.value) + repr(caught.value))
        job = ns.prefetch("/m").wait(20)
        assert (job.state, job.error_class) == (JobState.FAILED, "AccessDenied")
        said.append(repr(job))
        said.append(repr(ns.status()))
    finally:
        ns.shut_down_agent()
        ns.close()
    said.append((Path(settings.cache.dir) / "agent.log").read_text())
    for secret in (WRONG, azure_wrong, S3_SECRET_KEY, AZURE_KEY):
        assert not any(secret in text for text in said)
    for path in Path(settings.cache.dir).rglob("*"):
        if path.is_file():
            assert WRONG.encode() not in path.read_bytes(), path


# fake-gcs-server answers 500 to a listing of a bucket that is not there.
@pytest.mark.parametrize("cloud", ["s3", "azure"])
def test_a_bucket_that_is_not_there(
    request: pytest.FixtureRequest, tmp_path: Path, cloud: str
) -> None:
    server: ObjectServer = request.getfixturevalue(cloud)
    origin = server.url(f"never-{uuid.uuid4().hex[:12]}")
    with Namespace(one_mount(tmp_path, origin, server.profile()), embedded=True) as ns:
        for call in (
            lambda: ns.read("/m/object"),
            lambda: ns.stat("/m/object"),
            lambda: ns.list("/m"),
        ):
            with pytest.raises(NotFound, match="bucket") as caught:
                call()
            assert caught.value.remedy
        job = ns.prefetch("/m").wait(20)
        assert (job.state, job.error_class) == (JobState.FAILED, "NotFound")


def test_azure_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    settings = one_mount(tmp_path, "az://container", ProfileSettings())
    with Namespace(settings, embedded=True) as ns, pytest.raises(ConfigError, match="account"):
        ns.read("/m/object")


def test_an_endpoint_where_nobody_listens(tmp_path: Path, s3: S3Server) -> None:
    profile = msgspec.structs.replace(s3.profile(), endpoint="http://127.0.0.1:9")
    settings = one_mount(tmp_path, "s3://bucket", profile)
    with Namespace(settings, embedded=True) as ns, pytest.raises(OriginUnavailable) as caught:
        ns.read("/m/object")
    assert "127.0.0.1:9" in str(caught.value)


def test_a_driver_that_does_not_exist(tmp_path: Path) -> None:
    settings = one_mount(tmp_path, "s3://bucket", ProfileSettings(driver="carrier-pigeon"))
    with Namespace(settings, embedded=True) as ns, pytest.raises((ConfigError, Unsupported)):
        ns.read("/m/object")
