"""``TierCacheFileSystem``: the asynchronous calls, over the direct ones.

What is at hand is answered on the event loop's own thread; all else waits on a thread of the pool,
so that a loop never does. They work on any loop, and on many.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.core import has_magic

from tiercache.client.paying import Payer
from tiercache.errors import IsADirectory, NotFound
from tiercache.fs import paths
from tiercache.fs.direct import (
    DirectFileSystem,
    WriteMode,
    raise_unavailable,
)
from tiercache.fs.files import INLINE_BYTES, AsyncHandle, read_paid
from tiercache.fs.infos import Info, info_of
from tiercache.fs.threads import in_thread, in_thread_of
from tiercache.model import Kind, Stat
from tiercache.ports import Buffer

P = ParamSpec("P")
T = TypeVar("T")

# Ranges of one call that are read on the loop's own thread, 64 KiB each at most.
INLINE_ITEMS = 16


class TierCacheFileSystem(DirectFileSystem):
    """All mounts as one fsspec filesystem, ``tiercache://``; docs/quickstart.md has examples.

    Directories exist through the objects below them: ``mkdir`` and ``makedirs`` check and make
    nothing. Errors are those of ``tiercache.errors``; an origin that cannot be reached is never
    told as absence. Thread safe, fork safe, and pickles by its arguments.
    """

    # -- bytes ------------------------------------------------------------------------------

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        path = paths.strip(path)
        count = self._hit_bytes(path, start, end)
        if count is None:
            return await self._in_thread(path, self.cat_file, path, start, end)
        call = partial(self.cat_file, path, start, end)
        return await read_paid(self.namespace.reader(), path, count, call)

    def _in_thread(
        self, path: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Begin ``call`` on a thread of whoever is charged for the path: who waits for its share
        there keeps nobody else."""
        identity = self.namespace.reader().names.identity(paths.strip(path))
        return in_thread_of(identity, call, *args, **kwargs)

    def _hit_bytes(
        self, path: str, start: int | None, end: int | None, limit_bytes: int = INLINE_BYTES
    ) -> int | None:
        """Return how many bytes a slice has that can be read here and now without holding up the
        loop; None for one that cannot."""
        try:
            known = self.namespace.stat_unasked(path)
        except NotFound:
            return 0
        if known is None:
            return None
        first, last, _ = slice(start, end).indices(known.size_bytes)
        length = max(0, last - first)
        reader = self.namespace.reader()
        return length if length <= limit_bytes and reader.is_hit(path, first, length) else None

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
    ) -> list[Any]:
        """As ``cat_ranges``."""
        items = self.range_items(paths, starts, ends, max_gap)
        if len(items) > INLINE_ITEMS:
            return await self._in_thread(items[0][0], self.read_items, items, on_error)
        reader = self.namespace.reader()
        owed: dict[Payer, list[int]] = {}
        for item in items:
            count = self._hit_bytes(*item, limit_bytes=INLINE_BYTES // INLINE_ITEMS)
            if count is None:
                return await self._in_thread(items[0][0], self.read_items, items, on_error)
            payer = reader.payer(item[0])
            if payer is not None:
                owed.setdefault(payer, []).append(count)
        with ExitStack() as settled:
            for payer, counts in owed.items():
                await payer.settle(items[0][0], sum(counts), len(counts))
            for payer in owed:
                settled.enter_context(payer.settled())
            return self.read_items(items, on_error)

    async def _cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        batch_size: int | None = None,
    ) -> Any:
        """As fsspec's; directories that a pattern or ``recursive`` brings are left out. All
        objects travel together, so ``batch_size`` changes nothing."""
        found = await self._expand_path(path, recursive=recursive)
        whole = [(one, None, None) for one in found]
        first = found[0] if found else paths.ROOT
        read = await self._in_thread(first, self.read_items, whole, "return")
        out = dict(zip(found, read, strict=True))
        if recursive or (isinstance(path, str) and has_magic(path)):
            out = {name: data for name, data in out.items() if not isinstance(data, IsADirectory)}
        failed = [data for data in out.values() if isinstance(data, BaseException)]
        if failed and on_error == "raise":
            raise failed[0]
        if len(found) == 1 and not isinstance(path, list) and found[0] == paths.strip(path):
            return out.get(found[0])
        if on_error == "omit":
            out = {k: data for k, data in out.items() if not isinstance(data, BaseException)}
        return out

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> AsyncHandle:
        """Return a handle with asynchronous ``read``, ``write`` and ``close``; modes "rb", "wb"
        and "xb"."""
        if "b" not in mode or kwargs.get("compression"):
            raise ValueError("open_async opens binary files without compression")
        return AsyncHandle(await in_thread(self.open, path, mode, **kwargs))

    # -- names ------------------------------------------------------------------------------

    async def _stat(self, path: str) -> Stat:
        known = None if path == paths.ROOT else self.namespace.stat_unasked(path)
        return known if known is not None else await self._in_thread(path, self.stat_of, path)

    async def _info(self, path: str) -> Info:
        path = paths.strip(path)
        return info_of(path, await self._stat(path))

    async def _kind_of(self, path: str) -> Kind:
        try:
            return (await self._stat(paths.strip(path))).kind
        except NotFound:
            return Kind.ABSENT

    async def _exists(self, path: str) -> bool:
        return await self._kind_of(path) is not Kind.ABSENT

    async def _isfile(self, path: str) -> bool:
        return await self._kind_of(path) is Kind.FILE

    async def _isdir(self, path: str) -> bool:
        return await self._kind_of(path) is Kind.DIRECTORY

    async def _size(self, path: str) -> int:
        return (await self._stat(paths.strip(path))).size_bytes

    async def _ls(self, path: str, detail: bool = True, refresh: bool = False) -> list[Any]:
        return await in_thread(self.ls, path, detail, refresh)

    async def _walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], None] = "omit",
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        handler = raise_unavailable if on_error == "omit" else on_error
        async for found in super()._walk(path, maxdepth, topdown, handler, **kwargs):
            yield found

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        prefix: str = "",
    ) -> Any:
        return await in_thread(self.find, path, maxdepth, withdirs, detail, prefix)

    async def _du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False
    ) -> Any:
        return await in_thread(self.du, path, total, maxdepth, withdirs)

    # -- changes ----------------------------------------------------------------------------

    async def _pipe_file(self, path: str, value: Buffer, mode: WriteMode = "overwrite") -> None:
        await in_thread(self.pipe_file, path, value, mode)

    async def _put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: WriteMode = "overwrite",
    ) -> None:
        await in_thread(self.put_file, lpath, rpath, callback, mode)

    async def _get_file(
        self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK
    ) -> None:
        await in_thread(self.get_file, rpath, lpath, callback)

    async def _cp_file(self, path1: str, path2: str) -> None:
        await in_thread(self.cp_file, path1, path2)

    async def _mv_file(self, path1: str, path2: str) -> None:
        await in_thread(self.mv_file, path1, path2)

    async def _rm_file(self, path: str) -> None:
        await in_thread(self.rm_file, path)

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
    ) -> None:
        """As ``rm``; ``batch_size`` changes nothing, since a tree goes by one request."""
        await in_thread(self.rm, path, recursive, maxdepth)

    async def _mkdir(self, path: str, create_parents: bool = True) -> None:
        await in_thread(self.mkdir, path, create_parents)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await in_thread(self.makedirs, path, exist_ok)

    async def _rmdir(self, path: str) -> None:
        await in_thread(self.rmdir, path)
