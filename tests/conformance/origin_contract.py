"""The contract of the Origin port; test_origin.py holds every adapter to it."""

from __future__ import annotations

import asyncio
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import ClassVar

import msgspec
import pytest
import pytest_asyncio

from tiercache.clock import BootClock
from tiercache.errors import (
    AlreadyExists,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    Unsupported,
)
from tiercache.model import ObjectInfo
from tiercache.origins.open import open_origin
from tiercache.ports import Buffer, IfAbsent, IfVersion, ListPage, Origin
from tiercache.settings import ProfileSettings
from tiercache.testing.object_servers import (
    ObjectServer,
)

WORDS = b"0123456789" * 10
LONG_KEY = "odd/" + "k" * 1020
# FIELD.md's odd names, with what paths and URLs trip over.
PLAIN_ODD = ("odd/a", "odd/a/b", "odd/ünï-世界", "odd/100%2Fx", "odd/sp ace+b&c?d#e", "odd/~'[]")
EXACT_ODD = ("odd//b", "odd/trailing/", "odd/./x", "odd/../y", "//lead", "odd/x//")

NewBucket = Callable[[ObjectServer], str]


class OriginContract(ABC):
    """Subclasses give ``origin`` (raw), and helpers that bypass it."""

    odd: ClassVar[tuple[str, ...]] = PLAIN_ODD
    tells_positions: ClassVar[bool] = False

    @pytest.fixture
    @abstractmethod
    def origin(self) -> Origin: ...

    @abstractmethod
    def seed(self, key: str, data: bytes) -> None:
        """Write an object without the adapter."""

    @abstractmethod
    def peek(self, key: str) -> bytes:
        """Read an object without the adapter."""

    async def test_head_names_size_time_and_version(self, origin: Origin) -> None:
        self.seed("dir/one", WORDS)
        info = await origin.head("dir/one")
        assert (info.key, info.size_bytes) == ("dir/one", 100)
        assert info.token and info.mtime_s > 1.6e9
        assert (await origin.head("dir/one")).token == info.token

    async def test_missing_object(self, origin: Origin) -> None:
        self.seed("here", b"x")
        for call in (origin.head("absent/key"), origin.get("absent/key")):
            with pytest.raises(NotFound) as caught:
                await call
            assert "bucket" not in caught.value.message
            assert "absent/key" in caught.value.path

    async def test_a_prefix_is_not_an_object(self, origin: Origin) -> None:
        self.seed("folder/x", b"x")
        with pytest.raises(NotFound):
            await origin.head("folder")

    async def test_get_whole(self, origin: Origin) -> None:
        self.seed("whole", WORDS)
        fetched = await origin.get("whole")
        assert bytes(fetched.data) == WORDS
        assert fetched.info.token == (await origin.head("whole")).token

    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, 10), (5, 6), (90, 100), (90, 500), (7, None), (99, None), (0, None), (4, 4)],
    )
    async def test_get_range_follows_slices(
        self, origin: Origin, start: int, end: int | None
    ) -> None:
        self.seed("range", WORDS)
        token = (await origin.head("range")).token
        fetched = await origin.get("range", start=start, end=end, token=token)
        assert bytes(fetched.data) == WORDS[start:end]
        assert fetched.info.size_bytes == 100 and fetched.info.token == token

    @pytest.mark.parametrize(("start", "end"), [(100, 110), (5000, None)])
    async def test_range_past_the_end_is_empty(
        self, origin: Origin, start: int, end: int | None
    ) -> None:
        self.seed("short", WORDS)
        assert bytes((await origin.get("short", start=start, end=end)).data) == b""

    async def test_empty_object(self, origin: Origin) -> None:
        self.seed("empty", b"")
        assert bytes((await origin.get("empty")).data) == b""
        assert (await origin.head("empty")).size_bytes == 0
        assert bytes((await origin.get("empty", start=0, end=10)).data) == b""

    async def test_get_of_another_version_is_refused(self, origin: Origin) -> None:
        self.seed("moving", b"first version")
        token = (await origin.head("moving")).token
        self.seed("moving", b"second")
        with pytest.raises(PreconditionFailed):
            await origin.get("moving", start=0, end=4, token=token)
        with pytest.raises(PreconditionFailed):
            await origin.get("moving", token=token)
        # Past the new end: still another version, never an empty success.
        with pytest.raises(PreconditionFailed):
            await origin.get("moving", start=8, end=12, token=token)
        assert (await origin.head("moving")).token != token

    async def test_list_recursive(self, origin: Origin) -> None:
        for key in ("l/b", "l/a/1", "l/a/2", "l/a/deep/3", "other/x"):
            self.seed(key, b"12345")
        objects, prefixes = await listed(origin, "l/", recursive=True)
        assert [info.key for info in objects] == ["l/a/1", "l/a/2", "l/a/deep/3", "l/b"]
        assert prefixes == [] and {info.size_bytes for info in objects} == {5}
        for info in objects:
            assert info.token == (await origin.head(info.key)).token
            assert info.mtime_s > 1.6e9

    async def test_list_one_level(self, origin: Origin) -> None:
        for key in ("l/b", "l/a/1", "l/a/deep/3", "l/c/4", "other/x"):
            self.seed(key, b"1")
        objects, prefixes = await listed(origin, "l/", recursive=False)
        assert [info.key for info in objects] == ["l/b"]
        assert prefixes == ["l/a/", "l/c/"]
        objects, prefixes = await listed(origin, "", recursive=False)
        assert objects == [] and prefixes == ["l/", "other/"]

    async def test_list_matches_the_prefix_as_a_string(self, origin: Origin) -> None:
        for key in ("s/ab1", "s/ab2/x", "s/a", "s/b"):
            self.seed(key, b"1")
        objects, _ = await listed(origin, "s/ab", recursive=True)
        assert [info.key for info in objects] == ["s/ab1", "s/ab2/x"]
        objects, prefixes = await listed(origin, "s/ab", recursive=False)
        assert [info.key for info in objects] == ["s/ab1"] and prefixes == ["s/ab2/"]

    async def test_list_of_nothing_is_empty(self, origin: Origin) -> None:
        self.seed("something", b"1")
        assert await listed(origin, "nothing/", recursive=True) == ([], [])
        assert await listed(origin, "nothing/", recursive=False) == ([], [])

    async def test_list_limit(self, origin: Origin) -> None:
        for number in range(7):
            self.seed(f"m/{number}", b"1")
        self.seed("m/d/x", b"1")
        objects, _ = await listed(origin, "m/", recursive=True, limit=3)
        assert [info.key for info in objects] == ["m/0", "m/1", "m/2"]
        objects, prefixes = await listed(origin, "m/", recursive=False, limit=4)
        assert len(objects) + len(prefixes) == 4

    async def test_list_in_pages(self, origin: Origin) -> None:
        await asyncio.to_thread(self.seed_many, [f"p/{n:05d}" for n in range(1050)])
        pages = [page async for page in origin.list("p/", recursive=True)]
        keys = [info.key for page in pages for info in page.objects]
        assert keys == [f"p/{n:05d}" for n in range(1050)]
        assert len(pages) > 1 and max(len(page.objects) for page in pages) <= 5000
        if self.tells_positions:
            await goes_on_at_positions(origin, "p/", pages)

    async def test_odd_names(self, origin: Origin) -> None:
        for key in self.odd:
            self.seed(key, key.encode())
        for key in self.odd:
            fetched = await origin.get(key)
            assert bytes(fetched.data) == key.encode(), key
            assert (await origin.head(key)).token == fetched.info.token
            part = await origin.get(key, start=1, end=3, token=fetched.info.token)
            assert bytes(part.data) == key.encode()[1:3]
        objects, _ = await listed(origin, "odd/", recursive=True)
        expected = sorted((key for key in self.odd if key.startswith("odd/")), key=str.encode)
        assert [info.key for info in objects] == expected
        assert await walked(origin, "") == set(self.odd)

    async def test_names_of_an_origin(self, origin: Origin) -> None:
        assert "://" in origin.url
        assert origin.url in repr(origin)

    async def test_cancelled_get_leaves_the_origin_usable(self, origin: Origin) -> None:
        self.seed("c", WORDS)
        task = asyncio.create_task(origin.get("c"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bytes((await origin.get("c")).data) == WORDS

    def seed_many(self, keys: list[str]) -> None:
        for key in keys:
            self.seed(key, b"1")


class WritingContract(OriginContract):
    """What adapters promise where they can write."""

    conditions: ClassVar[bool] = True  # IfAbsent and IfVersion, else IfAbsent alone
    write_ids: ClassVar[bool] = True

    async def test_odd_names_written(self, origin: Origin) -> None:
        for key in self.odd:
            info = await origin.put(key, key.encode())
            assert self.peek(key) == key.encode()
            assert info.token == (await origin.head(key)).token
        for key in self.odd:
            await origin.delete(key)
            with pytest.raises(NotFound):
                await origin.head(key)

    async def test_put_and_overwrite(self, origin: Origin) -> None:
        first = await origin.put("w", b"first", write_id="id-1")
        assert self.peek("w") == b"first" and first.size_bytes == 5
        second = await origin.put("w", memoryview(b"second!"), write_id="id-2")
        assert self.peek("w") == b"second!" and second.token != first.token
        found = await origin.head("w")
        assert found.token == second.token
        assert found.write_id == ("id-2" if self.write_ids else "")
        await origin.put("w", b"")
        assert self.peek("w") == b""

    async def test_put_if_absent(self, origin: Origin) -> None:
        await origin.put("once", b"1", condition=IfAbsent())
        with pytest.raises(AlreadyExists):
            await origin.put("once", b"2", condition=IfAbsent())
        assert self.peek("once") == b"1"

    async def test_put_if_version(self, origin: Origin) -> None:
        first = await origin.put("v", b"1")
        if not self.conditions:
            with pytest.raises(Unsupported):
                await origin.put("v", b"2", condition=IfVersion(first.token))
            return
        second = await origin.put("v", b"22", condition=IfVersion(first.token))
        for token in (first.token, '"never"'):
            with pytest.raises(PreconditionFailed) as caught:
                await origin.put("v", b"333", condition=IfVersion(token))
            assert not isinstance(caught.value, AlreadyExists)
        assert self.peek("v") == b"22"
        await origin.delete("v")
        with pytest.raises(PreconditionFailed):
            await origin.put("v", b"4", condition=IfVersion(second.token))

    @pytest.mark.parametrize("count", [0, 1, 5])
    async def test_put_stream(self, origin: Origin, count: int) -> None:
        piece = os.urandom(3 << 20)
        info = await origin.put_stream("stream", chunks(piece, count), write_id="w-id")
        assert self.peek("stream") == piece * count
        found = await origin.head("stream")
        assert found.token == info.token and found.size_bytes == info.size_bytes
        assert found.write_id == ("w-id" if self.write_ids else "")

    @pytest.mark.parametrize("count", [1, 5])
    async def test_put_stream_that_breaks_leaves_nothing(self, origin: Origin, count: int) -> None:
        with pytest.raises(KeyError, match="mine"):
            await origin.put_stream("broken", chunks(bytes(3 << 20), count, KeyError("mine")))
        with pytest.raises(NotFound):
            await origin.head("broken")

    async def test_put_stream_if_absent(self, origin: Origin) -> None:
        piece = bytes(3 << 20)
        await origin.put_stream("sc", chunks(piece, 5), condition=IfAbsent())
        with pytest.raises(AlreadyExists):
            await origin.put_stream("sc", chunks(b"other", 1), condition=IfAbsent())
        assert self.peek("sc") == piece * 5

    async def test_delete(self, origin: Origin) -> None:
        self.seed("gone", b"1")
        await origin.delete("gone")
        with pytest.raises(NotFound):
            await origin.head("gone")
        await origin.delete("gone")

    async def test_copy(self, origin: Origin) -> None:
        self.seed("from", WORDS)
        self.seed("to", b"old")
        await origin.copy("from", "to")
        assert self.peek("to") == WORDS == self.peek("from")
        with pytest.raises(NotFound):
            await origin.copy("absent", "to")


class ServerContract(OriginContract):
    """Adapters over the network, behind an emulator."""

    driver: ClassVar[str] = "obstore"
    makes_buckets: ClassVar[bool] = False  # the emulator does at the first put
    server: ObjectServer
    bucket: str

    @pytest.fixture
    @abstractmethod
    def emulator(self) -> ObjectServer: ...

    @pytest_asyncio.fixture
    async def origin(  # type: ignore[override]  # a fixture that takes fixtures
        self, emulator: ObjectServer, new_bucket: NewBucket
    ) -> AsyncIterator[Origin]:
        self.server = emulator
        self.bucket = new_bucket(emulator)
        opened = self.open(self.bucket)
        yield opened
        await opened.close()

    def profile(self, endpoint: str = "") -> ProfileSettings:
        profile = self.server.profile(endpoint=endpoint)
        return msgspec.structs.replace(profile, driver=self.driver, request_timeout_s=20.0)

    def open(self, bucket: str) -> Origin:
        return open_origin(self.server.url(bucket), self.profile(), clock=BootClock())

    def seed(self, key: str, data: bytes) -> None:
        self.server.put(self.bucket, key, data)

    def seed_many(self, keys: list[str]) -> None:
        self.server.put_many(self.bucket, ((key, b"1") for key in keys))

    def peek(self, key: str) -> bytes:
        return self.server.get(self.bucket, key)

    async def test_missing_bucket(self, origin: Origin) -> None:
        missing = self.open(f"missing-{uuid.uuid4().hex[:12]}")
        with pytest.raises(NotFound, match="bucket does not exist") as caught:
            await listed(missing, "x/", recursive=False)
        assert caught.value.remedy
        with pytest.raises(NotFound, match="bucket does not exist"):
            await listed(missing, "", recursive=True)
        if self.driver == "obstore":
            with pytest.raises(NotFound, match="bucket does not exist"):
                await missing.head("key")
            if not self.makes_buckets:
                with pytest.raises(NotFound, match="bucket does not exist"):
                    await missing.put("key", b"")
        await missing.close()

    async def test_server_down(self, origin: Origin) -> None:
        profile = msgspec.structs.replace(self.profile(self.nobody()), request_timeout_s=1.0)
        down = open_origin(self.server.url(self.bucket), profile, clock=BootClock())
        for call in (down.head("k"), down.get("k", start=0, end=5)):
            with pytest.raises(OriginUnavailable):
                await call
        for recursive in (True, False):
            with pytest.raises(OriginUnavailable):
                await listed(down, "x/", recursive=recursive)
        await down.close()

    def nobody(self) -> str:
        return "http://127.0.0.1:1"


async def listed(
    origin: Origin, prefix: str, *, recursive: bool, limit: int | None = None, position: str = ""
) -> tuple[list[ObjectInfo], list[str]]:
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    async for page in origin.list(prefix, recursive=recursive, limit=limit, position=position):
        objects += page.objects
        prefixes += page.prefixes
    return objects, prefixes


async def goes_on_at_positions(origin: Origin, prefix: str, pages: list[ListPage]) -> None:
    """Where a page tells a position, the listing goes on there with what followed."""
    assert pages[0].position
    for number, page in enumerate(pages, 1):
        if page.position:
            rest, _ = await listed(origin, prefix, recursive=True, position=page.position)
            later = [info.key for page in pages[number:] for info in page.objects]
            assert [info.key for info in rest] == later


async def walked(origin: Origin, prefix: str) -> set[str]:
    """Find all keys by listing level after level, as a directory walk does."""
    objects, prefixes = await listed(origin, prefix, recursive=False)
    found = {info.key for info in objects}
    for below in prefixes:
        assert below != prefix and below.startswith(prefix)
        found |= await walked(origin, below)
    return found


async def chunks(
    piece: bytes, count: int, failure: Exception | None = None
) -> AsyncIterator[Buffer]:
    for _ in range(count):
        yield piece
    if failure is not None:
        raise failure
