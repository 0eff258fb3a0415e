"""Every adapter keeps the contract of the Origin port, against real servers."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import fsspec
import pytest

from tests.conformance.origin_contract import (
    EXACT_ODD,
    LONG_KEY,
    PLAIN_ODD,
    ServerContract,
    WritingContract,
    chunks,
    goes_on_at_positions,
    listed,
)
from tiercache.clock import BootClock
from tiercache.cloud.obstore_stores import build_store
from tiercache.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    Unsupported,
)
from tiercache.origins.backend import Backends
from tiercache.origins.endpoint import Endpoint
from tiercache.origins.exact import ExactNames
from tiercache.origins.obstore_origin import ObstoreOrigin
from tiercache.origins.open import open_origin
from tiercache.origins.probe import probe
from tiercache.origins.resilient import ResilientOrigin
from tiercache.policy.retry import RetryPolicy
from tiercache.policy.urls import parse_origin_url
from tiercache.ports import Buffer, IfAbsent, Origin
from tiercache.settings import ProfileSettings
from tiercache.testing.object_servers import (
    AZURE_ACCOUNT,
    AzureServer,
    GcsServer,
    ObjectServer,
    S3Server,
)

# adlfs takes "?" for a query, and does not look below a name that is an object too.
ADLFS_MISTAKES = {"odd/sp ace+b&c?d#e", "odd/a"}


@pytest.mark.emulator
class TestS3OnSeaweed(ServerContract, WritingContract):
    makes_buckets = True
    tells_positions = True
    odd = (*PLAIN_ODD, LONG_KEY[:250])  # it allows 255 bytes a segment

    @pytest.fixture
    def emulator(self, s3: S3Server) -> ObjectServer:
        return s3

    async def test_large_conditional_stream(self, origin: Origin) -> None:
        piece = os.urandom(1 << 20)
        await origin.put_stream("big", chunks(piece, 70), condition=IfAbsent(), write_id="b")
        assert self.peek("big") == piece * 70
        assert (await origin.head("big")).write_id == "b"
        with pytest.raises(AlreadyExists):
            await origin.put_stream("big", chunks(piece, 70), condition=IfAbsent())
        uploads = self.server.client.list_multipart_uploads(Bucket=self.bucket)  # type: ignore[attr-defined]  # S3Server
        assert not uploads.get("Uploads")

    async def test_wrong_secret(self, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seed("k", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-anyone")
        refused = self.open(self.bucket)
        for call in (refused.head("k"), refused.get("k"), refused.put("k", b"2")):
            with pytest.raises(AccessDenied) as caught:
                await call
            assert "not-the-secret" not in f"{caught.value} {caught.value!r} {refused!r}"
        with pytest.raises(AccessDenied):
            await listed(refused, "", recursive=True)
        with pytest.raises(AccessDenied):
            await listed(refused, "", recursive=False)

    async def test_probe(self, origin: Origin) -> None:
        self.seed("probe-me", b"1")
        found = await probe(origin, probe_writes=True)
        assert found.conditional_get and found.conditional_put and found.write_id and found.copy
        assert self.server.keys(self.bucket) == ["probe-me"]


@pytest.mark.emulator
class TestS3OnMoto(ServerContract, WritingContract):
    tells_positions = True
    odd = (*PLAIN_ODD, *EXACT_ODD, LONG_KEY)

    @pytest.fixture
    def emulator(self, moto_s3: S3Server) -> ObjectServer:
        return moto_s3

    async def test_without_boto3(self, origin: Origin) -> None:
        """Plain names work, markers are told apart, and what cannot be named says the remedy."""

        def missing() -> ExactNames:
            raise ImportError("botocore")

        plain = ObstoreOrigin(
            build_store(parse_origin_url(self.server.url(self.bucket)), self.profile()),
            url=origin.url,
            capabilities=origin.capabilities,
            exact=missing,
            exact_lists=False,
            exact_uploads=False,
        )
        for key in ("d/marker/", "d/both", "d/both/", "d/empty", "d/x/y"):
            self.seed(key, b"")
        objects, _ = await listed(plain, "d/", recursive=True)
        keys = {info.key for info in objects}
        assert keys == {"d/marker/", "d/both", "d/both/", "d/empty", "d/x/y"}
        objects, _ = await listed(plain, "d/marker/", recursive=False)
        assert [info.key for info in objects] == ["d/marker/"]
        self.seed("d//odd", b"")
        with pytest.raises(Unsupported, match="pip install"):
            await listed(plain, "d/", recursive=True)
        for call in (plain.head("d//odd"), plain.get("d/marker/"), plain.put("d/./k", b"")):
            with pytest.raises(Unsupported, match="pip install"):
                await call
        await plain.close()


@pytest.mark.emulator
class TestAzure(ServerContract, WritingContract):
    # Azurite resolves "." and ".." in URLs, as Azure itself does.
    odd = (*PLAIN_ODD, "odd//b", "odd/trailing/", "odd/x//")

    @pytest.fixture
    def emulator(self, azure: AzureServer) -> ObjectServer:
        return azure

    def nobody(self) -> str:
        return "http://127.0.0.1:1/devstoreaccount1"

    async def test_pages_of_azures_own_client(self, origin: Origin) -> None:
        for name in ("a", "b", "c", "d", "e"):
            self.seed(f"odd//{name}", b"1")
        assert isinstance(origin, ObstoreOrigin)
        # Its pages are as long as the limit, which is for the caller to keep.
        pages = [page async for page in origin._exact.list("odd//", recursive=True, limit=2)]
        assert [len(page.objects) for page in pages] == [2, 2, 1]
        await goes_on_at_positions(origin, "odd//", pages)


@pytest.mark.emulator
class TestGcs(ServerContract):
    """Reading alone: fake-gcs-server has no upload that obstore speaks. With retries, since it
    sometimes closes a connection after it answered 416."""

    odd = (*PLAIN_ODD, "odd//b", "odd/trailing/")

    @pytest.fixture
    def emulator(self, gcs: GcsServer) -> ObjectServer:
        return gcs

    def open(self, bucket: str) -> Origin:
        clock = BootClock()
        return ResilientOrigin(
            super().open(bucket),
            endpoint=Endpoint("fake-gcs", concurrency=8, clock=clock),
            clock=clock,
            backends=Backends(clock=BootClock()),
            policy=RetryPolicy(deadline_s=5.0, base_s=0.01),
            attempt_timeout_s=20.0,
        )

    async def test_pages_of_googles_own_client(self, origin: Origin) -> None:
        await asyncio.to_thread(self.seed_many, [f"p//{n:05d}" for n in range(1050)])
        pages = [page async for page in origin.list("p//", recursive=True)]
        assert [len(page.objects) for page in pages] == [1000, 50]
        await goes_on_at_positions(origin, "p//", pages)

    async def test_missing_bucket(self, origin: Origin) -> None:
        # The emulator answers 500 to a listing without a bucket: no more can be told apart.
        with pytest.raises(NotFound):
            await self.open(f"missing-{uuid.uuid4().hex[:12]}").head("key")

    async def test_probe_sees_a_condition_ignored(self, origin: Origin) -> None:
        self.seed("k", b"1")
        assert not (await probe(super().open(self.bucket))).conditional_get


@pytest.mark.emulator
class TestGcsfs(ServerContract, WritingContract):
    driver = "fsspec"
    conditions = False
    write_ids = False

    @pytest.fixture
    def emulator(self, gcs: GcsServer) -> ObjectServer:
        return gcs


@pytest.mark.emulator
class TestAdlfs(ServerContract, WritingContract):
    driver = "fsspec"
    odd = tuple(key for key in PLAIN_ODD if key not in ADLFS_MISTAKES)
    conditions = False
    write_ids = False

    @pytest.fixture
    def emulator(self, azure: AzureServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure.connection_string)
        self.monkeypatch = monkeypatch
        return azure

    def profile(self, endpoint: str = "") -> ProfileSettings:
        if endpoint:
            text = self.server.env["AZURE_STORAGE_CONNECTION_STRING"]
            text = text.replace(self.server.endpoint, endpoint)
            self.monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        return ProfileSettings(account=AZURE_ACCOUNT, driver="fsspec", request_timeout_s=20.0)

    def nobody(self) -> str:
        return "http://127.0.0.1:1/devstoreaccount1"


@pytest.mark.emulator
class TestS3fs(ServerContract, WritingContract):
    driver = "fsspec"
    conditions = False
    write_ids = False

    @pytest.fixture
    def emulator(self, s3: S3Server) -> ObjectServer:
        return s3


class TestLocal(WritingContract):
    conditions = False
    write_ids = False
    odd = tuple(key for key in PLAIN_ODD if key != "odd/a")

    @pytest.fixture
    def origin(self, tmp_path: Path) -> Origin:
        self.root = tmp_path / "root"
        self.root.mkdir()
        return open_origin(f"file://{self.root}", ProfileSettings(), clock=BootClock())

    def seed(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def peek(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    async def test_missing_root(self, origin: Origin) -> None:
        self.root.rmdir()
        with pytest.raises(NotFound, match="bucket does not exist"):
            await listed(origin, "", recursive=True)

    @pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a/./b", ""])
    async def test_no_key_leaves_the_root(self, origin: Origin, key: str) -> None:
        (self.root.parent / "outside").write_bytes(b"secret")
        for call in (origin.head(key), origin.get(key), origin.put(key, b"x")):
            with pytest.raises(Unsupported):
                await call

    async def test_no_link_leads_out(self, origin: Origin) -> None:
        (self.root.parent / "outside").write_bytes(b"secret")
        (self.root / "link").symlink_to(self.root.parent)
        with pytest.raises(Unsupported):
            await origin.get("link/outside")

    async def test_a_directory_without_files_is_not_listed(self, origin: Origin) -> None:
        for key in ("last/deep/one", "full/deep/two"):
            self.seed(key, b"x")
        await origin.delete("last/deep/one")
        assert (self.root / "last" / "deep").is_dir(), "it may be somebody's"
        for prefix, prefixes in (("", ["full/"]), ("last/", []), ("full/", ["full/deep/"])):
            assert await listed(origin, prefix, recursive=False) == ([], prefixes)
        (self.root / "last" / "deep" / ".tiercache-part-0").write_bytes(b"half")
        assert await listed(origin, "", recursive=False) == ([], ["full/"])
        assert await listed(origin, "", recursive=False, limit=1) == ([], ["full/"])
        (self.root / "last" / "link").symlink_to(self.root / "full")
        assert (await listed(origin, "", recursive=False))[1] == ["full/", "last/"]

    async def test_a_write_in_progress_is_not_listed(self, origin: Origin) -> None:
        listings = []

        async def watching() -> AsyncIterator[Buffer]:
            yield b"1"
            listings.append(await listed(origin, "", recursive=True))
            yield b"2"

        await origin.put_stream("file", watching())
        assert listings == [([], [])] and self.peek("file") == b"12"


class TestMemory(WritingContract):
    conditions = False
    write_ids = False
    odd = tuple(key for key in PLAIN_ODD if key != "odd/a")

    @pytest.fixture
    def origin(self, tmp_path: Path) -> Origin:
        self.name = tmp_path.name
        self.files = fsspec.filesystem("memory")
        self.files.pipe_file(f"/{self.name}/.root", b"")
        self.files.rm_file(f"/{self.name}/.root")
        self.files.makedirs(f"/{self.name}", exist_ok=True)
        return open_origin(f"memory://{self.name}", ProfileSettings(), clock=BootClock())

    def seed(self, key: str, data: bytes) -> None:
        self.files.pipe_file(f"/{self.name}/{key}", data)

    def peek(self, key: str) -> bytes:
        data: bytes = self.files.cat_file(f"/{self.name}/{key}")
        return data
