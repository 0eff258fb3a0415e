"""S3, Google Cloud Storage and Azure Blob through obstore.

Version tokens are ETags, quoted: the one identity that listing, HEAD, GET and PUT of all three
clouds give alike (a listing names no generation). Where an ETag is missing or weak the token is
made of time and size, ``~<µs since 1970>-<bytes>``, with the weak tag behind it; such a token
is compared but never sent as a condition, and two writes of one size within the clock step of
the store (1 s) then look alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from math import inf
from typing import Any, TypeVar

import obstore

from tiercache.cloud.obstore_errors import BAD_NAME, OBSTORE_ERRORS, status_of, translate
from tiercache.cloud.obstore_stores import ObjectStore
from tiercache.cloud.statuses import (
    another_version,
    bucket_missing,
    require_version,
    truncated,
    version_gone,
)
from tiercache.errors import (
    AlreadyExists,
    NotFound,
    OriginThrottled,
    TiercacheError,
    Unsupported,
)
from tiercache.model import ObjectInfo
from tiercache.origins.exact import (
    ExactNames,
    ExactThreads,
    obstore_can_list,
    obstore_can_name,
)
from tiercache.origins.exact_upload import upload
from tiercache.policy.adaptive import PAUSE_MOST_S
from tiercache.ports import (
    Always,
    Buffer,
    Condition,
    Fetched,
    IfAbsent,
    IfVersion,
    ListPage,
    OriginCapabilities,
)

# The metadata name under which a write's id is kept. Letters only: Azure wants identifiers.
WRITE_ID = "tiercachewriteid"
PAGE_KEYS = 1000  # what all three clouds give in one answer
# A part of a multipart upload, 8 MiB. At 10,000 parts, S3's most, an object has 80 GB.
PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 3  # a stream holds four parts, with the one being filled
# A conditional stream is held in memory up to here and written by one conditional request.
CONDITIONAL_BYTES = 64 << 20
# While a server puts off it is asked for its advice so often: one request of the hundreds that it
# would be sent in this time. The name is one that no job uses.
ADVICE_EVERY_S = 5.0
ADVICE_KEY = ".tiercache-advice"
# HEADs at once that tell "x" from "x/" among the empty objects of a listing.
_CHECKS_IN_FLIGHT = 16

_T = TypeVar("_T")
_Page = list[dict[str, Any]]


class ObstoreOrigin:
    """One bucket. Owned by the event loop. Does not retry; bounds each request in time by the
    store's client options. A missing bucket raises NotFound that says so.

    ``exact`` makes the bucket's ExactNames at first need. With ``exact_lists`` it lists
    recursively, which obstore does 3 times as fast but not exactly; with ``exact_uploads`` it
    is an ExactUploads.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        url: str,
        capabilities: OriginCapabilities,
        exact: Callable[[], ExactNames],
        exact_lists: bool,
        exact_uploads: bool,
    ) -> None:
        # Constant after construction
        self._store: Any = store  # obstore's stubs know no union of stores
        self._url = url
        self._kind = url.partition(":")[0]
        self._capabilities = capabilities
        self._exact = ExactThreads(exact, url=url)
        self._exact_lists = exact_lists
        self._exact_uploads = exact_uploads
        # Owned by the event loop
        self._bucket_seen = False
        self._advised_s = -inf  # when advice was last asked for
        self._left_alone_until_s = -inf
        self._advice: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> OriginCapabilities:
        return self._capabilities

    def __repr__(self) -> str:
        return f"ObstoreOrigin({self._url!r})"

    async def head(self, key: str) -> ObjectInfo:
        if not obstore_can_name(key):
            return await self._exactly(key, lambda names: names.head(key))
        try:
            result = await obstore.get_async(self._store, key, options={"head": True})
        except OBSTORE_ERRORS as error:
            raise await self._failure(error, key) from error
        self._bucket_seen = True
        return _info(key, result.meta, result.attributes.get(WRITE_ID, ""))

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, token: str | None = None
    ) -> Fetched:
        if not obstore_can_name(key):
            return await self._exactly(key, lambda names: names.get(key, start, end, token))
        if end is not None and end <= start:
            return await self._empty(key, token)
        options: dict[str, Any] = {}
        if token is not None and token[:1] == '"':
            options["if_match"] = token
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        try:
            result = await obstore.get_async(self._store, key, options=options)  # type: ignore[arg-type]  # built above
            data: Any = await result.bytes_async()  # obstore's Bytes: a buffer
        except OBSTORE_ERRORS as error:
            if "range" in options and self._may_be_past_end(error):
                return await self._past_end(error, key, start, token)
            raise await self._failure(error, key) from error
        info = _info(key, result.meta)
        require_version(info, token, path=self._path(key))
        size_bytes = info.size_bytes
        want_bytes = (size_bytes if end is None or end > size_bytes else end) - start
        if len(data) != want_bytes:
            raise truncated(self._path(key), got_bytes=len(data), want_bytes=want_bytes)
        return Fetched(info, data)

    async def _empty(self, key: str, token: str | None) -> Fetched:
        """Answer a range without bytes by a HEAD: no store serves one."""
        info = await self.head(key)
        require_version(info, token, path=self._path(key))
        return Fetched(info, b"")

    def _may_be_past_end(self, error: Exception) -> bool:
        # Azurite answers such a range with 206 and a header that obstore cannot parse.
        status = status_of(error)
        untyped = isinstance(error, obstore.exceptions.GenericError)
        return status == 416 or (untyped and status is None and self._kind == "az")

    async def _past_end(self, error: Exception, key: str, start: int, token: str | None) -> Fetched:
        """Tell a range past the end (no bytes, as slices have it) from a real failure."""
        empty = await self._empty(key, token)
        if start < empty.info.size_bytes:
            raise await self._failure(error, key) from error
        return empty

    async def list(
        self, prefix: str, *, recursive: bool, limit: int | None = None, position: str = ""
    ) -> AsyncIterator[ListPage]:
        pages = self._pages(prefix, recursive=recursive, limit=limit, position=position)
        if limit is not None:
            pages = _limited(pages, limit)
        async for page in pages:
            self._bucket_seen = True
            yield page

    async def _pages(
        self, prefix: str, *, recursive: bool, limit: int | None, position: str
    ) -> AsyncIterator[ListPage]:
        # Positions are told by the cloud's own SDK; obstore keeps them to itself.
        if position or not obstore_can_list(prefix) or (recursive and self._exact_lists):
            pages = self._exact.list(prefix, recursive=recursive, limit=limit, position=position)
        elif recursive:
            pages = self._recursive(prefix)
        else:
            pages = self._delimited(prefix)
        try:
            async for page in pages:
                yield page
        except NotFound as error:
            raise bucket_missing(self._url) from error
        except OBSTORE_ERRORS as error:
            raise self._listing_failure(error, prefix) from error

    async def _delimited(self, prefix: str) -> AsyncIterator[ListPage]:
        """One level. Exact: a name that ends in a slash is a common prefix here, but for the
        object that is the prefix itself."""
        try:
            answer: Any = await obstore.list_with_delimiter_async(self._store, prefix or None)
        except BAD_NAME:
            async for page in self._exact.list(prefix, recursive=False):
                yield page
            return
        if prefix and not (answer["objects"] or answer["common_prefixes"]):
            async for page in self._unseen_marker(prefix):
                yield page
            return
        stripped = prefix[:-1]
        objects = [
            _info(prefix if found["path"] == stripped else found["path"], found)
            for found in answer["objects"]
        ]
        prefixes = [f"{name}/" for name in answer["common_prefixes"]]
        for first in range(0, len(objects), PAGE_KEYS):
            yield ListPage(objects[first : first + PAGE_KEYS])
        if prefixes:
            yield ListPage((), prefixes)

    async def _unseen_marker(self, prefix: str) -> AsyncIterator[ListPage]:
        """Yield the object named as the prefix itself, which obstore leaves out on Azure. Only
        an empty listing is worth a second look; beside others the marker stays unseen there."""
        if self._kind != "az":
            return
        try:
            async for page in self._exact.list(prefix, recursive=True):
                yield ListPage(page.objects)  # positions would be of another listing
        except Unsupported:
            return  # without the SDK: it was empty as far as we can see

    async def _recursive(self, prefix: str) -> AsyncIterator[ListPage]:
        """Everything below. obstore strips the slash at a key's end here, which is seen (by a
        HEAD) for empty objects alone: the directory markers that some tools write."""
        last = ""
        try:
            async for found in obstore.list(self._store, prefix or None, chunk_size=PAGE_KEYS):
                page = await self._checked([dict(meta) for meta in found])
                if page:
                    last = page[-1].key
                    yield ListPage(page)
        except BAD_NAME:
            async for rest in self._exact.list(prefix, recursive=True, after=last):
                yield rest

    async def _checked(self, found: _Page) -> Sequence[ObjectInfo]:
        gate = asyncio.Semaphore(_CHECKS_IN_FLIGHT)
        paths = {meta["path"] for meta in found if meta["size"] == 0}

        async def is_plain(path: str) -> bool:
            async with gate:
                try:
                    await self.head(path)
                except NotFound:
                    return False
                return True

        ordered = sorted(paths)
        plain = dict(zip(ordered, await asyncio.gather(*map(is_plain, ordered)), strict=True))
        objects = []
        for meta in found:
            path = meta["path"]
            if plain.get(path, True):
                # A second entry of that name can only be the marker "x/" beside "x".
                if path in plain:
                    plain[path] = False
                objects.append(_info(path, meta))
            else:
                objects.append(_info(f"{path}/", meta))
        return objects

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        if not obstore_can_name(key):
            return await self._exactly(key, lambda names: names.put(key, data, condition, write_id))
        mode = await self._mode(key, condition)
        try:
            answer = await obstore.put_async(
                self._store,
                key,
                data,
                attributes=_attributes(write_id),
                mode=mode,
                use_multipart=False,
            )
        except OBSTORE_ERRORS as error:
            raise await self._refusal(error, key, condition) from error
        return await self._written(key, memoryview(data).nbytes, answer, write_id)

    async def _mode(self, key: str, condition: Condition) -> Any:
        match condition:
            case Always():
                return "overwrite"
            case IfAbsent():
                return "create"
            case IfVersion(token):
                if self._kind != "gs":
                    return {"e_tag": token}
        # GCS conditions on the generation, which only GET and HEAD name; the generation whose
        # ETag is the token is the version that the caller means.
        try:
            meta = await obstore.head_async(self._store, key)
        except OBSTORE_ERRORS as error:
            raise await self._refusal(error, key, condition) from error
        if _token(meta) != token or not meta["version"]:
            raise another_version(self._path(key))
        return {"e_tag": token, "version": meta["version"]}

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[Buffer],
        *,
        condition: Condition = Always(),
        write_id: str = "",
    ) -> ObjectInfo:
        unconditional = isinstance(condition, Always)
        plain = unconditional and obstore_can_name(key)
        held = bytearray()
        async for chunk in chunks:
            held += chunk
            if len(held) > (PART_BYTES if plain else CONDITIONAL_BYTES):
                break
        else:
            return await self.put(key, bytes(held), condition=condition, write_id=write_id)
        joined = _Joined(held, chunks)
        if plain:
            return await self._multipart(key, joined, write_id)
        if not self._exact_uploads:
            raise Unsupported(
                f"a stream longer than {CONDITIONAL_BYTES >> 20} MiB cannot be written "
                + ("under this name" if unconditional else "under a condition"),
                path=self._path(key),
                remedy="write a plain name without a condition; for S3: "
                "pip install 'tiercache[s3]'",
            )
        return await upload(
            self._exact,
            key,
            joined.buffers(),
            condition=condition,
            write_id=write_id,
            part_bytes=PART_BYTES,
            parts_in_flight=PARTS_IN_FLIGHT,
        )

    async def _multipart(self, key: str, joined: _Joined, write_id: str) -> ObjectInfo:
        try:
            answer = await obstore.put_async(
                self._store,
                key,
                joined.buffers(),
                attributes=_attributes(write_id),
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        except OBSTORE_ERRORS as error:
            if joined.failure is not None:
                raise joined.failure from None
            raise await self._refusal(error, key, Always()) from error
        return await self._written(key, joined.count_bytes, answer, write_id)

    async def _written(self, key: str, size_bytes: int, answer: Any, write_id: str) -> ObjectInfo:
        """Return what was written. Its time is this machine's until the next HEAD."""
        self._bucket_seen = True
        e_tag = answer["e_tag"]
        if not e_tag or e_tag[:2] == "W/":
            return await self.head(key)
        return ObjectInfo(key, size_bytes, _quoted(e_tag), time.time(), write_id)

    async def delete(self, key: str, *, may_repeat: bool = True) -> None:
        if not obstore_can_name(key):
            await self._exactly(key, lambda names: names.delete(key))
            return
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError as error:
            await self._refuse_missing_bucket(error)
        except OBSTORE_ERRORS as error:
            raise await self._failure(error, key) from error

    async def copy(self, source_key: str, target_key: str) -> None:
        if not (obstore_can_name(source_key) and obstore_can_name(target_key)):
            await self._exactly(source_key, lambda names: names.copy(source_key, target_key))
            return
        try:
            await obstore.copy_async(self._store, source_key, target_key)
        except OBSTORE_ERRORS as error:
            raise await self._failure(error, source_key) from error

    async def refuses_wrong_token(self, key: str, token: str) -> bool:
        """Ask for the object under a condition that is false; return whether the server said
        so. No body is read. Raises as ``get``."""
        try:
            await obstore.get_async(self._store, key, options={"if_match": token})
        except obstore.exceptions.PreconditionError:
            return True
        except OBSTORE_ERRORS as error:
            raise await self._failure(error, key) from error
        return False

    async def close(self) -> None:
        if self._advice is not None:
            self._advice.cancel()
        self._exact.close()

    def _path(self, key: str) -> str:
        return f"{self._url}/{key}"

    async def _exactly(self, key: str, call: Callable[[ExactNames], _T]) -> _T:
        if not key:
            raise NotFound("an object has a name", path=self._url)
        return await self._exact.run(call, key=key)

    async def _failure(self, error: Exception, key: str) -> TiercacheError:
        if isinstance(error, FileNotFoundError):
            await self._refuse_missing_bucket(error)
        return self._advised(translate(error, path=self._path(key)))

    def _advised(self, error: TiercacheError) -> TiercacheError:
        """Add the server's Retry-After to an error that puts off. obstore does not tell the
        headers of a refusal, so the cloud's own SDK asks for them now and then, beside the
        requests: what it learns goes with all refusals until then."""
        if isinstance(error, OriginThrottled):
            now_s = time.monotonic()
            error.retry_after_s = max(0.0, self._left_alone_until_s - now_s)
            if now_s - self._advised_s >= ADVICE_EVERY_S:
                self._advised_s = now_s
                self._advice = asyncio.get_running_loop().create_task(self._ask_for_advice())
        return error

    async def _ask_for_advice(self) -> None:
        try:
            await self._exact.run(lambda names: names.head(ADVICE_KEY), key=ADVICE_KEY)
        except OriginThrottled as error:
            # Longer is kept by nobody: later refusals would be taken for what was said of others.
            advice_s = min(error.retry_after_s, PAUSE_MOST_S)
            self._left_alone_until_s = time.monotonic() + advice_s
        except TiercacheError:
            pass  # no such name, as is to be expected, or no SDK: there is no advice

    async def _refusal(self, error: Exception, key: str, condition: Condition) -> TiercacheError:
        """Translate the failure of a write, where 404 is about the bucket or the old version."""
        if isinstance(error, FileNotFoundError):
            await self._refuse_missing_bucket(error)
            if isinstance(condition, IfVersion):
                return version_gone(self._path(key))
            return bucket_missing(self._url)
        found = self._advised(translate(error, path=self._path(key)))
        if isinstance(found, AlreadyExists) and not isinstance(condition, IfAbsent):
            return another_version(self._path(key))
        return found

    def _listing_failure(self, error: Exception, prefix: str) -> TiercacheError:
        if status_of(error) == 404:
            return bucket_missing(self._url)
        return self._advised(translate(error, path=self._path(prefix)))

    async def _refuse_missing_bucket(self, error: Exception) -> None:
        """Raise where a 404 was about the bucket: until one answer proved that it exists, ask
        for a listing, in which 404 can mean nothing else."""
        if self._bucket_seen:
            return
        try:
            async for _ in obstore.list(self._store, chunk_size=1):
                break
        except OBSTORE_ERRORS as failure:
            if status_of(failure) == 404:
                raise bucket_missing(self._url) from error
            # Listing may be denied where reading is not: then nothing is known of the bucket.
            if not isinstance(failure, BAD_NAME):
                return
        self._bucket_seen = True


class _Joined:
    """The held beginning and the rest of a caller's stream, as one. ``failure`` is what the
    caller's iterator raised; ``count_bytes`` what went through."""

    def __init__(self, held: bytearray, rest: AsyncIterator[Buffer]) -> None:
        self._held = held
        self._rest = rest
        self.failure: Exception | None = None
        self.count_bytes = 0

    async def buffers(self) -> AsyncIterator[Buffer]:
        yield self._count(bytes(self._held))
        self._held = bytearray()
        try:
            async for chunk in self._rest:
                if len(chunk):
                    yield self._count(chunk)
        except Exception as error:  # kept and raised again: the origin is not to blame
            self.failure = error
            raise

    def _count(self, chunk: Buffer) -> Buffer:
        self.count_bytes += memoryview(chunk).nbytes
        return chunk


def _info(key: str, meta: Any, write_id: str = "") -> ObjectInfo:
    return ObjectInfo(key, meta["size"], _token(meta), meta["last_modified"].timestamp(), write_id)


def _token(meta: Any) -> str:
    e_tag: str | None = meta["e_tag"]
    if e_tag:
        if e_tag[0] == '"':
            return e_tag
        if e_tag[:2] != "W/":
            return _quoted(e_tag)
    stamp_us = int(meta["last_modified"].timestamp() * 1_000_000)
    return f"~{stamp_us}-{meta['size']}{e_tag or ''}"


def _quoted(e_tag: str) -> str:
    """Azure and fake servers leave the quotes out of listings."""
    return e_tag if e_tag[0] == '"' else f'"{e_tag}"'


def _attributes(write_id: str) -> dict[str, str] | None:
    return {WRITE_ID: write_id} if write_id else None


async def _limited(pages: AsyncIterator[ListPage], limit: int) -> AsyncIterator[ListPage]:
    """Cut a listing after ``limit`` names, objects and prefixes together."""
    left = limit
    async for page in pages:
        if left <= 0:
            return
        objects = page.objects[:left]
        prefixes = page.prefixes[: left - len(objects)]
        left -= len(objects) + len(prefixes)
        yield ListPage(objects, prefixes, page.position)
