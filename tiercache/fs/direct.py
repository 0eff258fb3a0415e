"""The calls of fsspec, answered on the caller's own thread.

fsspec's way for asynchronous filesystems is to send every synchronous call to an event loop's
thread and back, 46–59 µs where a hit costs 1–9. So the single-object calls here go straight to the
namespace; the asynchronous ones (``filesystem.py``) call them in turn. Calls over many objects
(get, put, copy, cat …) stay fsspec's own, which run many at once.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.core import get_compression
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike

from tiercache.errors import (
    AlreadyExists,
    IsADirectory,
    NotFound,
    OriginUnavailable,
    TiercacheError,
    Unsupported,
)
from tiercache.fs import paths
from tiercache.fs.files import (
    CompressedHandle,
    ReadHandle,
    TextHandle,
    WriteHandle,
)
from tiercache.fs.infos import Info, directory_info, entry_info, info_of, refuse_partial
from tiercache.fs.options import Table, settings_of, shared_namespace
from tiercache.model import Kind, Stat
from tiercache.namespace import Namespace
from tiercache.ports import Buffer

# One part of a write, and what ``get`` holds in memory.
COPY_BYTES = 8 << 20

WriteMode = Literal["overwrite", "create"]


class DirectFileSystem(AsyncFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """The synchronous half of ``TierCacheFileSystem``.

    Directories exist through the objects below them: ``mkdir`` and ``makedirs`` check and make
    nothing. Errors are those of ``tiercache.errors``; an origin that cannot be reached is never
    told as absence. Thread safe, fork safe, and pickles by its arguments.
    """

    protocol = paths.PROTOCOL
    root_marker = paths.ROOT
    async_impl = True
    _pid: int

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        mounts: Mapping[str, str | Table] | None = None,
        profiles: Mapping[str, Table] | None = None,
        cache: Table | None = None,
        agent: Table | None = None,
        qos: Table | None = None,
        embedded: bool = False,
        asynchronous: bool = False,
        loop: Any = None,
        batch_size: int | None = None,
    ) -> None:
        """Storage options are laid over the configuration file (``config``, or the usual places)
        and the environment; without any, those alone count. ``mounts`` maps paths to origin URLs
        or to tables of a mount's keys; ``profiles``, ``cache``, ``agent`` and ``qos`` are
        tables as in the file. ``embedded`` runs the engine on a thread of this process. Nothing
        is opened before the first use. Raises ConfigError.
        """
        if self._cached:
            return
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size)
        settings = settings_of(
            config=config,
            cache_dir=cache_dir,
            mounts=mounts,
            profiles=profiles,
            cache=cache,
            agent=agent,
            qos=qos,
        )
        self.namespace: Namespace = shared_namespace(settings, embedded=embedded)

    @property
    def loop(self) -> Any:
        """The loop that synchronous calls over many objects run on; a forked child has its own."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = None if self.asynchronous else get_loop()
        return self._loop

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [paths.strip(one) for one in path]
        return paths.strip(path)

    def unstrip_protocol(self, name: str) -> str:
        return paths.unstrip(paths.strip(name))

    @classmethod
    def _parent(cls, path: str) -> str:
        return paths.parent(paths.strip(path))

    # -- bytes ------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return bytes [start, end) by the rules of Python slices."""
        if type(path) is not str or path[:1] != "/" or path[-1:] == "/":
            path = paths.strip(path)
        if end is not None and start is not None and 0 <= start <= end:
            return self.namespace.read(path, start, end - start)
        return self._cat_slice(path, start, end)

    def _cat_slice(self, path: str, start: int | None, end: int | None) -> bytes:
        if (start is None or start >= 0) and end is None:
            return self.namespace.read(path, start or 0)
        handle = ReadHandle(self, path)
        first, last, _ = slice(start, end).indices(handle.size)
        return handle.read_at(first, max(0, last - first))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        batch_size: int | None = None,
    ) -> list[Any]:
        """Return many slices; all misses travel together. ``batch_size`` changes nothing, since
        one frame holds them all.

        Raises Unsupported for ``max_gap``: the agent itself joins adjacent ranges.
        """
        items = self.range_items(paths, starts, ends, max_gap)
        return self.read_items(items, on_error)

    def range_items(
        self, paths: list[str], starts: Any, ends: Any, max_gap: int | None
    ) -> list[tuple[str, int | None, int | None]]:
        """Check the arguments of ``cat_ranges`` and return (path, start, end) each."""
        if max_gap is not None:
            raise Unsupported("max_gap", remedy="leave it out: adjacent ranges are joined anyway")
        if not isinstance(paths, list):
            raise TypeError("paths is to be a list")
        starts = [starts] * len(paths) if starts is None or isinstance(starts, int) else starts
        ends = [ends] * len(paths) if ends is None or isinstance(ends, int) else ends
        if not len(starts) == len(ends) == len(paths):
            raise ValueError("paths, starts and ends differ in length")
        return list(zip(self._strip_protocol(paths), starts, ends, strict=True))

    def read_items(
        self, items: Sequence[tuple[str, int | None, int | None]], on_error: str
    ) -> list[Any]:
        plain = [
            (path, start or 0, None if end is None else max(0, end - (start or 0)))
            for path, start, end in items
            if (start is None or start >= 0) and (end is None or end >= 0)
        ]
        answers = iter(self.namespace.read_many_or_errors(plain))
        results: list[Any] = []
        for path, start, end in items:
            if (start is None or start >= 0) and (end is None or end >= 0):
                results.append(next(answers))
                continue
            try:
                results.append(self._cat_slice(path, start, end))
            except TiercacheError as error:
                results.append(error)
        if on_error != "return":
            for result in results:
                if isinstance(result, TiercacheError):
                    raise result
        return results

    def read_block(
        self, fn: str, offset: int, length: int | None, delimiter: bytes | None = None
    ) -> bytes:
        if delimiter is None:
            return self.cat_file(fn, offset, None if length is None else offset + length)
        return bytes(super().read_block(fn, offset, length, delimiter))

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Mapping[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open for reading one version, or for writing a new one: "rb", "wb", "xb" (FileExistsError
        where there is an object) and their text forms with ``encoding``, ``errors``, ``newline``.

        ``block_size``, ``cache_type`` and ``cache_options`` tune buffers of other filesystems;
        none stands between a handle here and the device, so they change nothing. Raises
        Unsupported for appending: object stores cannot.
        """
        if mode == "rb" and compression is None and not kwargs:
            return ReadHandle(self, paths.strip(path))
        if "b" not in mode:
            text = {k: kwargs.pop(k) for k in ("encoding", "errors", "newline") if k in kwargs}
            binary = self.open(path, mode.replace("t", "") + "b", compression=compression, **kwargs)
            return TextHandle(binary, **text)
        handle = super().open(path, mode, **kwargs)
        codec = get_compression(paths.strip(path), compression)
        return handle if codec is None else CompressedHandle(handle, codec)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        cache_type: str | None = None,
    ) -> ReadHandle | WriteHandle:
        path = paths.strip(path)
        match mode:
            case "rb":
                return ReadHandle(self, path)
            case "wb":
                return WriteHandle(self, path, create=False, autocommit=autocommit)
            case "xb":
                self._refuse_existing(path)
                return WriteHandle(self, path, create=True, autocommit=autocommit)
            case "ab" | "r+b" | "rb+" | "w+b" | "wb+" | "a+b" | "ab+":
                raise Unsupported(
                    f"mode {mode!r}: an object cannot be changed in place",
                    path=path,
                    remedy="write it anew",
                )
            case _:
                raise ValueError(f"invalid mode: {mode!r}")

    def _refuse_existing(self, path: str) -> None:
        """Refuse before anything is written; the origin checks again when it is complete."""
        if self.isfile(path):
            raise AlreadyExists("there is an object already", path=path)

    # -- names ------------------------------------------------------------------------------

    def stat_of(self, path: str) -> Stat:
        """Return what a stripped path is; the root is a directory even where nothing is mounted."""
        if path == paths.ROOT:
            return Stat(path, Kind.DIRECTORY, 0, "", 0.0, 0.0)
        return self.namespace.stat(path)

    def info(self, path: str) -> Info:
        """Return name, size, type and, of an object, mtime and validated (when it was written and
        last confirmed, seconds since 1970), ETag and version, stale, consistency."""
        path = paths.strip(path)
        return info_of(path, self.stat_of(path))

    def exists(self, path: str) -> bool:
        """Return whether there is an object or a directory. Raises OriginUnavailable where nobody
        could be asked."""
        return self._kind(path) is not Kind.ABSENT

    def lexists(self, path: str) -> bool:
        return self.exists(path)

    def isfile(self, path: str) -> bool:
        return self._kind(path) is Kind.FILE

    def isdir(self, path: str) -> bool:
        return self._kind(path) is Kind.DIRECTORY

    def _kind(self, path: str) -> Kind:
        try:
            return self.stat_of(paths.strip(path)).kind
        except NotFound:
            return Kind.ABSENT

    def size(self, path: str) -> int:
        return self.stat_of(paths.strip(path)).size_bytes

    def sizes(self, paths: Sequence[str]) -> list[int]:
        return [self.size(path) for path in paths]

    def modified(self, path: str) -> datetime.datetime:
        """Return when the version was written, in UTC. Raises IsADirectory."""
        return datetime.datetime.fromtimestamp(self._file_stat(path).mtime_s, tz=datetime.UTC)

    def created(self, path: str) -> datetime.datetime:
        """Raises Unsupported: object stores keep no time of creation."""
        raise Unsupported("object stores keep no time of creation", path=path)

    def checksum(self, path: str) -> int:
        """Return a number that differs between any two versions."""
        return int(self.ukey(path), 16)

    def ukey(self, path: str) -> str:
        """Return a hash of name and version."""
        known = self._file_stat(path)
        named = "\0".join((known.path, known.version, str(known.size_bytes)))
        return hashlib.sha256(named.encode()).hexdigest()

    def _file_stat(self, path: str) -> Stat:
        known = self.stat_of(paths.strip(path))
        if known.kind is not Kind.FILE:
            raise IsADirectory("a directory has no version", path=known.path)
        return known

    def ls(self, path: str, detail: bool = True, refresh: bool = False) -> list[Any]:
        """Return what a directory holds, or the object itself. ``refresh`` asks the origin in any
        case. Raises NotFound."""
        path = paths.strip(path)
        infos = self._list(path, recursive=False, refresh=refresh)
        if infos is None:
            infos = [self.info(path)]
        return infos if detail else [info["name"] for info in infos]

    def _list(self, path: str, *, recursive: bool, refresh: bool = False) -> list[Info] | None:
        """Return what is below a directory, or None where there is no directory of this name."""
        if path == paths.ROOT and not self.namespace.settings.mounts:
            return []
        below = path if path == paths.ROOT else path + "/"
        try:
            entries = self.namespace.list(below, recursive, refresh=refresh)
        except NotFound:
            return None
        refuse_partial(entries, path)
        return [entry_info(below + entry.name, entry) for entry in entries]

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], None] = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec's; "omit" leaves out what is absent, never what could not be asked for."""
        handler = raise_unavailable if on_error == "omit" else on_error
        yield from AbstractFileSystem.walk(self, path, maxdepth, topdown, handler, **kwargs)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        prefix: str = "",
    ) -> Any:
        """Return all objects below a path, by one recursive listing; with ``maxdepth``, by one
        listing a directory. ``prefix`` is what the first name below the path begins with."""
        path = paths.strip(path)
        if maxdepth is not None:
            found = AbstractFileSystem.find(
                self, path, maxdepth=maxdepth, withdirs=withdirs, detail=True
            )
        else:
            found = self._find_all(path, withdirs)
        if prefix:
            start = paths.join(path, prefix)
            found = {name: info for name, info in found.items() if name.startswith(start)}
        return found if detail else list(found)

    def _find_all(self, path: str, withdirs: bool) -> dict[str, Info]:
        infos = self._list(path, recursive=True)
        if infos is None:
            try:
                return {path: self.info(path)}
            except NotFound:
                return {}
        found = {info["name"]: info for info in infos if info["type"] == "file"}
        if withdirs:
            found[path] = directory_info(path)
            for info in infos:
                name = info["name"] if info["type"] == "directory" else paths.parent(info["name"])
                while name not in found and len(name) > len(path):
                    found[name] = directory_info(name)
                    name = paths.parent(name)
        return {name: found[name] for name in sorted(found)}

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        return AbstractFileSystem.glob(self, path, maxdepth, **kwargs)

    def expand_path(
        self,
        path: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        assume_literal: bool = False,
    ) -> list[str]:
        found: list[str] = AbstractFileSystem.expand_path(
            self, path, recursive, maxdepth, assume_literal
        )
        return found

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False
    ) -> Any:
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def invalidate_cache(self, path: str | None = None) -> None:
        """Let the next use of the names at and below ``path``, or of all mounts, ask the origin."""
        if path is None:
            for mount in self.namespace.mounts():
                self.namespace.invalidate(mount.path)
        else:
            self.namespace.invalidate(paths.strip(path))

    # -- changes ----------------------------------------------------------------------------

    def pipe_file(self, path: str, value: Buffer, mode: WriteMode = "overwrite") -> None:
        """Write one object. "create" raises FileExistsError where there is one."""
        path = paths.strip(path)
        if mode not in ("overwrite", "create"):
            raise ValueError(f"invalid mode: {mode!r} (use 'overwrite' or 'create')")
        if self._intrans:
            with self.open(path, "xb" if mode == "create" else "wb") as handle:
                handle.write(value)
        else:
            self.namespace.write(path, value, mode)

    def touch(self, path: str, truncate: bool = True) -> None:
        """Make an empty object. Raises Unsupported for setting the time of one that exists."""
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")
        else:
            raise Unsupported("the time of an object cannot be set", path=path)

    def put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: WriteMode = "overwrite",
    ) -> None:
        """Write a local file to an object, whole or not at all."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with (
            open(lpath, "rb") as source,
            self.open(rpath, "xb" if mode == "create" else "wb") as target,
        ):
            callback.set_size(os.fstat(source.fileno()).st_size)
            while block := source.read(COPY_BYTES):
                target.write(block)
                callback.relative_update(len(block))

    def get_file(self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK) -> None:
        """Copy one version of an object to a local file or file object; a directory is made."""
        rpath = paths.strip(rpath)
        if not isfilelike(lpath) and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with self.open(rpath) as source:
            if isfilelike(lpath):
                _copy_out(source, lpath, callback)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb") as target:
                _copy_out(source, target, callback)

    def cp_file(self, path1: str, path2: str) -> None:
        """Copy one object. A directory needs no copy of its own."""
        path1, path2 = paths.strip(path1), paths.strip(path2)
        try:
            self.namespace.copy(path1, path2)
        except (NotFound, IsADirectory):
            if not self.isdir(path1):
                raise

    def mv(
        self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None
    ) -> None:
        """Move an object by one request to the agent; directories and globs object by object."""
        source = paths.strip(path1)
        if self.isfile(source):
            target = paths.strip(path2)
            if str(path2).endswith("/") or self.isdir(target):
                target = paths.join(target, source.rsplit("/", 1)[1])
            self.mv_file(source, target)
        else:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth)

    def mv_file(self, path1: str, path2: str) -> None:
        path1, path2 = paths.strip(path1), paths.strip(path2)
        if path1 != path2:
            self.namespace.rename(path1, path2)

    def rm_file(self, path: str) -> None:
        """Remove one object. Raises NotFound, IsADirectory."""
        path = paths.strip(path)
        try:
            self.namespace.remove(path)
        except NotFound:
            if self.isdir(path):
                raise IsADirectory("a directory", path=path, remedy="use recursive") from None
            raise

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove objects, globs of them, and with ``recursive`` all below directories."""
        if recursive and maxdepth is None:
            for one in self.expand_path(path):
                self._remove_tree(one)
            return
        found = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        for one in reversed(found):
            if not recursive or self.isfile(one):
                self.rm_file(one)

    def _remove_tree(self, path: str) -> None:
        """Remove the object of this name, and the directory of this name."""
        is_file = self.isfile(path)
        if is_file:
            self.namespace.remove(path)
        try:
            self.namespace.remove(path + "/", recursive=True)
        except NotFound:
            if not is_file:
                raise

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        """Check that a directory could be there: it appears with its first object.

        Raises FileExistsError for an object of this name, NotFound where nothing is mounted.
        """
        path = paths.strip(path)
        if self._kind(path) is Kind.FILE:
            raise AlreadyExists("there is an object of this name", path=path)
        if path != paths.ROOT:
            self._check_mounted(path)
        if not create_parents and not self.exists(paths.parent(path)):
            raise NotFound("no such directory", path=paths.parent(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if not exist_ok and self.isdir(path):
            raise AlreadyExists("there is a directory of this name", path=paths.strip(path))
        self.mkdir(path)

    def _check_mounted(self, path: str) -> None:
        try:
            self.namespace.client.resolver.locate(path)
        except IsADirectory:
            pass  # above the mounts

    def rmdir(self, path: str) -> None:
        """Raises OSError for a directory, since none is empty; NotFound where there is none."""
        path = paths.strip(path)
        match self._kind(path):
            case Kind.ABSENT:
                raise NotFound("no such directory", path=path)
            case Kind.FILE:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            case Kind.DIRECTORY:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def raise_unavailable(error: OSError) -> None:
    if isinstance(error, OriginUnavailable):
        raise error


def _copy_out(source: ReadHandle, target: Any, callback: Callback) -> None:
    callback.set_size(source.size)
    buffer = memoryview(bytearray(min(COPY_BYTES, source.size)))
    while count := source.readinto(buffer) if source.size else 0:
        target.write(buffer[:count])
        callback.relative_update(count)
