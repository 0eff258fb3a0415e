"""Any fsspec filesystem as an origin: the fourth cloud, and the odd one.

Slower than obstore and poorer in promises. fsspec's answers name no version, so a read is
followed by a look at the object's attributes: it stands if these still bear the version asked
for. Version tokens are the generation, ETag or checksum that the filesystem tells, else
``~<mtime in µs>-<bytes>[-<inode>]``. Write ids cannot be kept; only ``IfAbsent`` conditions can,
and only where the filesystem knows ``mode="create"``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import fsspec

from tiercache.cloud.statuses import (
    bucket_missing,
    require_version,
    taken,
    truncated,
)
from tiercache.errors import (
    AlreadyExists,
    ConfigError,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
    Unsupported,
)
from tiercache.model import ObjectInfo
from tiercache.origins.fsspec_errors import translate
from tiercache.policy.urls import OriginUrl
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
from tiercache.settings import ProfileSettings

_T = TypeVar("_T")
# Outside the class, whose ``list`` is a method.
_Prefixes = list[str]
_Names = tuple[list[ObjectInfo], _Prefixes]
PAGE_KEYS = 1000
# A stream is held in memory up to here, then in a temporary file that the filesystem uploads in
# parts of its own.
HELD_BYTES = 64 << 20
# Blocking filesystems: as many calls at once as the usual number of ranges in flight.
_THREADS = 16
_READ_ATTEMPTS = 3  # of an object without a token that changes while it is read
# Filesystems that keep mode="create" atomically.
_CREATES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "file", "memory"})
# adlfs can be closed only from another loop than the one it runs on.
_THREADED = frozenset({"az", "abfs", "abfss"})
_CHECKSUMS = ("generation", "ETag", "etag", "e_tag", "md5Hash", "md5", "sha256", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class FsspecOrigin:
    """One bucket of one filesystem. Owned by the event loop of its first call. Asynchronous
    filesystems run on that loop, others in threads, where a cancelled call goes on to its end.
    Each request is bounded by the profile's ``request_timeout_s``."""

    def __init__(self, url: OriginUrl, profile: ProfileSettings, *, identity: str) -> None:
        _refuse_ignored(url.scheme, profile)
        # Constant after construction
        self._url = identity
        self._profile = profile
        self._protocol = url.scheme
        self._class: Any = _filesystem_class(url.scheme)
        self._root: str = self._class._strip_protocol(f"{url.scheme}://{url.bucket}")
        self._is_native = self._class.async_impl and url.scheme not in _THREADED
        self._capabilities = OriginCapabilities(
            conditional_get=False,
            conditional_put=url.scheme in _CREATES,
            conditional_replace=False,
            write_id=False,
            copy=True,
        )
        # Owned by the event loop
        self._opening: asyncio.Task[Any] | None = None
        self._pool: ThreadPoolExecutor | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> OriginCapabilities:
        return self._capabilities

    def __repr__(self) -> str:
        return f"FsspecOrigin({self._url!r})"

    async def head(self, key: str) -> ObjectInfo:
        return await self._info(key, self._path(key))

    async def get(
        self, key: str, *, start: int = 0, end: int | None = None, token: str | None = None
    ) -> Fetched:
        path = self._path(key)
        if token is not None:
            fetched = await self._read(key, path, start, end)
            require_version(fetched.info, token, path=self._named(key))
            return self._whole(fetched, start, end)
        for _ in range(_READ_ATTEMPTS):
            before = await self._info(key, path)
            fetched = await self._read(key, path, start, end)
            if fetched.info.token == before.token:
                return self._whole(fetched, start, end)
        raise OriginUnavailable("the object changes while it is read", path=self._named(key))

    async def _read(self, key: str, path: str, start: int, end: int | None) -> Fetched:
        """Read, and then look which version is there."""
        if end is not None and end <= start:
            return Fetched(await self._info(key, path), b"")
        try:
            data: bytes = await self._call("cat_file", path, start=start or None, end=end, key=key)
        except NotFound:
            raise
        except TiercacheError as error:
            # Filesystems treat a range past the end in many ways; it has no bytes.
            info = await self._info(key, path)
            if start < info.size_bytes:
                raise error
            return Fetched(info, b"")
        return Fetched(await self._info(key, path), data)

    def _whole(self, fetched: Fetched, start: int, end: int | None) -> Fetched:
        size_bytes = fetched.info.size_bytes
        want_bytes = max(0, min(size_bytes if end is None else end, size_bytes) - start)
        if len(fetched.data) != want_bytes:
            raise truncated(
                self._named(fetched.info.key), got_bytes=len(fetched.data), want_bytes=want_bytes
            )
        return fetched

    async def list(
        self, prefix: str, *, recursive: bool, limit: int | None = None, position: str = ""
    ) -> AsyncIterator[ListPage]:
        """Yield in key order; the filesystem's whole answer is held meanwhile (~1 kB a name)."""
        parent, _, _ = prefix.rpartition("/")
        path = f"{self._root}/{parent}" if parent else self._root
        try:
            if recursive:
                found = await self._call("find", path, detail=True, key=prefix)
                entries = list(found.values())
            else:
                entries = await self._call("ls", path, detail=True, key=prefix)
        except NotFound:
            entries = []
        objects, prefixes = self._sorted(entries, prefix)
        prefixes = await self._with_objects(prefixes)
        if not (objects or prefixes) and not await self._call("exists", self._root, key=""):
            raise bucket_missing(self._url)
        left = len(objects) + len(prefixes) if limit is None else limit
        for first in range(0, min(len(objects), left), PAGE_KEYS):
            yield ListPage(objects[first : min(left, first + PAGE_KEYS)])
        left -= min(left, len(objects))
        if prefixes and left > 0:
            yield ListPage((), prefixes[:left])

    def _sorted(self, entries: Any, prefix: str) -> _Names:
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        for entry in entries:
            key = self._key(entry["name"])
            if entry["type"] == "directory":
                named = f"{key}/"
                if named.startswith(prefix) and named != prefix:
                    prefixes.append(named)
            elif key.startswith(prefix) and key and not self._hidden(key):
                objects.append(_object_info(key, entry))
        objects.sort(key=lambda info: info.key.encode())
        return objects, sorted(prefixes)

    async def _with_objects(self, prefixes: _Prefixes) -> _Prefixes:
        """Return those of the prefixes that some object has."""
        return prefixes

    def _hidden(self, key: str) -> bool:
        return False

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        path = self._path(key)
        extra = self._mode(condition, key)
        try:
            await self._call("pipe_file", path, bytes(data), key=key, **extra)
        except PreconditionFailed as error:
            # s3fs tells a 412 from a 409 by text that not every server writes.
            if isinstance(condition, IfAbsent) and not isinstance(error, AlreadyExists):
                raise taken(error.path) from error
            raise
        return await self._info(key, path)

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[Buffer],
        *,
        condition: Condition = Always(),
        write_id: str = "",
    ) -> ObjectInfo:
        path = self._path(key)
        self._mode(condition, key)
        with tempfile.SpooledTemporaryFile(max_size=HELD_BYTES) as held:
            count_bytes = 0
            async for chunk in chunks:
                held.write(chunk)
                count_bytes += len(chunk)
            if count_bytes <= HELD_BYTES:
                held.seek(0)
                return await self.put(key, held.read(), condition=condition, write_id=write_id)
            if not isinstance(condition, Always):
                raise Unsupported(
                    f"a stream longer than {HELD_BYTES >> 20} MiB cannot be conditional here",
                    path=self._named(key),
                    remedy="write it without a condition",
                )
            held.flush()
            source = f"/proc/self/fd/{held.fileno()}"
            await self._call("put_file", source, path, key=key, bounded=False)
        return await self._info(key, path)

    def _mode(self, condition: Condition, key: str) -> dict[str, Any]:
        match condition:
            case Always():
                return {}
            case IfAbsent() if self._capabilities.conditional_put:
                return {"mode": "create"}
            case IfAbsent() | IfVersion():
                raise Unsupported(
                    f"the {self._protocol} filesystem keeps no such condition",
                    path=self._named(key),
                    remedy='use driver = "obstore", or write without a condition',
                )

    async def delete(self, key: str, *, may_repeat: bool = True) -> None:
        try:
            await self._call("rm_file", self._path(key), key=key)
        except NotFound:
            return

    async def copy(self, source_key: str, target_key: str) -> None:
        source, target = self._path(source_key), self._path(target_key)
        await self._call("cp_file", source, target, key=source_key)

    async def close(self) -> None:
        if self._opening is not None:
            filesystem = await self._opening
            self._opening = None
            if self._is_native:
                await _close_sessions(filesystem)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _path(self, key: str) -> str:
        """Return the filesystem's path of a key. Raises Unsupported where it would name
        another one: filesystems strip slashes at the end, some merge or resolve segments."""
        path = f"{self._root}/{key}"
        if not key or self._class._strip_protocol(path) != path:
            raise Unsupported(
                f"the {self._protocol} filesystem cannot name this key", path=self._named(key)
            )
        return path

    def _key(self, path: str) -> str:
        name = path.strip("/") if self._root == "" else path.removeprefix(self._root)
        return name.removeprefix("/") if self._root else name

    def _named(self, key: str) -> str:
        return f"{self._url}/{key}"

    async def _info(self, key: str, path: str) -> ObjectInfo:
        entry = await self._call("info", path, key=key)
        if entry["type"] == "directory":
            raise NotFound("no such object", path=self._named(key))
        return _object_info(key, entry)

    async def _call(
        self, method: str, *args: Any, key: str, bounded: bool = True, **extra: Any
    ) -> Any:
        """Call the filesystem, on the loop or in a thread, and translate what it raises."""
        limit_s = self._profile.request_timeout_s if bounded else None
        try:
            filesystem = await self._filesystem()
            async with asyncio.timeout(limit_s):
                if self._is_native:
                    return await getattr(filesystem, f"_{method}")(*args, **extra)
                return await self._in_thread(lambda: getattr(filesystem, method)(*args, **extra))
        except TimeoutError as error:
            raise OriginUnavailable(
                f"no answer within {limit_s:g} s", path=self._named(key)
            ) from error
        except Exception as error:  # each filesystem has errors of its own
            raise translate(error, path=self._named(key), protocol=self._protocol) from error

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tiercache-fsspec")
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _filesystem(self) -> Any:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._opening is opening:
                self._opening = None  # the next call tries again
            raise

    async def _open(self) -> Any:
        # Neither an instance nor a listing may be one that somebody else filled.
        options = {
            "skip_instance_cache": True,
            "use_listings_cache": False,
            **_options(self._protocol, self._profile),
        }
        if not self._is_native:
            return await self._in_thread(lambda: self._class(**options))
        loop = asyncio.get_running_loop()
        filesystem = self._class(asynchronous=True, loop=loop, **options)
        if hasattr(filesystem, "set_session"):
            filesystem.retries = 1  # s3fs: retries are ours
            await filesystem.set_session()
        elif hasattr(filesystem, "_set_session"):
            await filesystem._set_session()
        return filesystem


def _filesystem_class(protocol: str) -> Any:
    try:
        return fsspec.get_filesystem_class("abfs" if protocol == "az" else protocol)
    except ImportError as error:
        raise Unsupported(
            f"the filesystem for {protocol}:// is not installed",
            remedy=f"install the fsspec package for {protocol}",
        ) from error
    except ValueError as error:
        raise ConfigError(f"unknown origin scheme {protocol}://") from error


def _refuse_ignored(protocol: str, profile: ProfileSettings) -> None:
    """Raise ConfigError for what the profile says and this filesystem would not hear."""
    heard = {
        "s3": {"endpoint", "anonymous", "credentials_profile"},
        "gs": {"endpoint", "anonymous"},
        "az": {"anonymous"},
    }.get(protocol, set())
    for name in ("endpoint", "anonymous", "credentials_profile"):
        if getattr(profile, name) and name not in heard:
            hint = (
                "adlfs takes it from AZURE_STORAGE_CONNECTION_STRING"
                if (protocol, name) == ("az", "endpoint")
                else "say it in options, in the filesystem's own words"
            )
            raise ConfigError(
                f"profile {profile.name}: {name} means nothing to the {protocol} filesystem",
                remedy=hint,
            )


def _options(protocol: str, profile: ProfileSettings) -> dict[str, Any]:
    """Return constructor arguments: what the profile says in each filesystem's words, under
    what its ``options`` say."""
    found: dict[str, Any] = {}
    match protocol:
        case "s3":
            found["config_kwargs"] = {
                "connect_timeout": profile.connect_timeout_s,
                "read_timeout": profile.request_timeout_s,
                "retries": {"total_max_attempts": 1},
                **({"s3": {"addressing_style": "path"}} if profile.endpoint else {}),
            }
            if profile.endpoint:
                found["endpoint_url"] = profile.endpoint
            if profile.region:
                found["client_kwargs"] = {"region_name": profile.region}
            if profile.credentials_profile:
                found["profile"] = profile.credentials_profile
            found["anon"] = profile.anonymous
        case "gs":
            if profile.endpoint:
                found["endpoint_url"] = profile.endpoint
            if profile.anonymous:
                found["token"] = "anon"
        case "az":
            if profile.account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
                account = profile.account or os.environ["AZURE_STORAGE_ACCOUNT_NAME"]
                found["account_name"] = account
            found["anon"] = profile.anonymous
        case "file":
            found["auto_mkdir"] = True
    return found | profile.options


async def _close_sessions(filesystem: Any) -> None:
    """Close the connections of s3fs and gcsfs, which else complain at exit."""
    for name in ("_s3", "_session"):
        client = getattr(filesystem, name, None)
        if client is not None and hasattr(client, "close"):
            closing = client.close()
            if inspect.isawaitable(closing):
                await closing
            return


def _object_info(key: str, entry: Any) -> ObjectInfo:
    mtime_us = _mtime_us(entry)
    size_bytes = int(entry["size"] or 0)
    return ObjectInfo(key, size_bytes, _token(entry, mtime_us, size_bytes), mtime_us / 1e6)


def _token(entry: Any, mtime_us: int, size_bytes: int) -> str:
    for name in _CHECKSUMS:
        if entry.get(name):
            return str(entry[name])
    inode = f"-{entry['ino']}" if entry.get("ino") else ""
    return f"~{mtime_us}-{size_bytes}{inode}"


def _mtime_us(entry: Any) -> int:
    """Return whole microseconds: the finest that a float, a date and a text all hold alike."""
    for name in _TIMES:
        value = entry.get(name)
        match value:
            case int() | float():
                return round(value * 1e6)
            case datetime():
                return round(value.timestamp() * 1e6)
            case str() if value:
                return round(datetime.fromisoformat(value).timestamp() * 1e6)
    return 0
