"""Files below one directory of this machine as an origin (``file:///directory``)."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from tiercache.errors import Unsupported
from tiercache.model import ObjectInfo
from tiercache.origins.fsspec_errors import translate
from tiercache.origins.fsspec_origin import FsspecOrigin
from tiercache.ports import Always, Buffer, Condition, IfAbsent

_T = TypeVar("_T")
# Writes in progress; not listed, and no key may begin so.
_PART_PREFIX = ".tiercache-part-"


class LocalOrigin(FsspecOrigin):
    """Writes are atomic: a file of another name, fsynced, takes the key's name when it is
    whole. No key leaves the root, neither by ``..`` nor by a symbolic link. A directory is listed
    where a file lies below it, as in an object store; empty ones are neither shown nor removed."""

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in key or self._hidden(key):
            raise Unsupported("a file system cannot name this key", path=self._named(key))
        path = f"{self._root}/{key}"
        root = os.path.realpath(self._root)
        if os.path.commonpath((root, os.path.realpath(path))) != root:
            raise Unsupported("the key leads out of the origin", path=self._named(key))
        return path

    def _hidden(self, key: str) -> bool:
        return key.rpartition("/")[2].startswith(_PART_PREFIX)

    async def _with_objects(self, prefixes: list[str]) -> list[str]:
        def check() -> list[str]:
            return [prefix for prefix in prefixes if _holds_files(f"{self._root}/{prefix}")]

        return await self._on_disk("", check)

    async def put(
        self, key: str, data: Buffer, *, condition: Condition = Always(), write_id: str = ""
    ) -> ObjectInfo:
        async def once() -> AsyncIterator[Buffer]:
            yield data

        return await self.put_stream(key, once(), condition=condition, write_id=write_id)

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
        part = f"{os.path.dirname(path)}/{_PART_PREFIX}{secrets.token_hex(8)}"
        descriptor = await self._on_disk(key, lambda: _create(part))
        try:
            try:
                async for chunk in chunks:
                    await self._on_disk(key, partial(_write_all, descriptor, chunk))
                await self._on_disk(key, lambda: os.fsync(descriptor))
            finally:
                os.close(descriptor)
            create = isinstance(condition, IfAbsent)
            await self._on_disk(key, lambda: _publish(part, path, create=create))
        except BaseException:
            _discard(part)
            raise
        return await self.head(key)

    async def _on_disk(self, key: str, call: Callable[[], _T]) -> _T:
        try:
            return await self._in_thread(call)
        except OSError as error:
            raise translate(error, path=self._named(key), protocol="file") from error


def _holds_files(folder: str) -> bool:
    """Return whether a whole file lies anywhere below. A link counts, wherever it leads, and so
    does a directory that cannot be looked into."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not entry.name.startswith(_PART_PREFIX):
                        return True
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return True
    return False


def _create(part: str) -> int:
    os.makedirs(os.path.dirname(part), exist_ok=True)
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _write_all(descriptor: int, chunk: Buffer) -> None:
    view = memoryview(chunk).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _publish(part: str, path: str, *, create: bool) -> None:
    """Give the finished file its name; link() refuses a name that is taken."""
    if create:
        os.link(part, path)
        os.unlink(part)
    else:
        os.replace(part, path)


def _discard(part: str) -> None:
    try:
        os.unlink(part)
    except FileNotFoundError:
        pass
