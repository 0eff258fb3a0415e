"""tiercache: the direct API, the fsspec filesystem, and its async methods.

They share one cache and one agent a workload: what differs is the way of asking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from benchmarks import page_cache
from benchmarks import processes as kernel
from benchmarks.contenders.contender import Contender, Object, Recipe
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State

if TYPE_CHECKING:
    from benchmarks.lab import Lab
    from tiercache.namespace import Namespace
    from tiercache.settings import Settings

PREFETCH_NAMES = 1000  # a request: far below the size of a frame
HALF_READ_BYTES = 8 << 20


class Paths(dict[str, str]):
    """Namespace paths by key. A string that comes again has its hash at hand, as users' have."""

    def __init__(self, mount: str) -> None:
        super().__init__()
        self._mount = mount

    def __missing__(self, key: str) -> str:
        self[key] = path = f"{self._mount}/{key}"
        return path


class _Cache:
    """One cache directory and its agent, used by several contenders."""

    def __init__(self, lab: Lab, url: str) -> None:
        import tiercache
        from benchmarks.lab import MOUNT

        self.mount = MOUNT
        self.settings = lab.settings(endpoint=url)
        self.namespace: Namespace = tiercache.connect(self.settings)
        self.users = 0
        self._filled: tuple[str, ...] = ()

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        match state:
            case "cold":
                self._empty()
            case "half-warm":
                self._empty()
                self._fill_half(objects)
            case "hot":
                self._fill(objects)
            case "nvme":
                self._fill(objects)
                page_cache.drop_below(Path(self.settings.cache.dir) / "extents")

    def _empty(self) -> None:
        self._filled = ()
        self.namespace.evict(self.mount)
        self.namespace.invalidate(self.mount)

    def _fill(self, objects: Sequence[Object]) -> None:
        keys = tuple(one.key for one in objects)
        if keys != self._filled:
            # A data set has its folder to itself: one listing, where names cost a HEAD each.
            self._prefetch([os.path.commonpath(keys)])
            self._filled = keys

    def _fill_half(self, objects: Sequence[Object]) -> None:
        if len(objects) > 1:
            self._prefetch([one.key for one in objects[::2]])
            return
        path, half = f"{self.mount}/{objects[0].key}", objects[0].length // 2
        for offset in range(0, half, HALF_READ_BYTES):
            self.namespace.read(path, offset, min(HALF_READ_BYTES, half - offset))

    def _prefetch(self, keys: Sequence[str]) -> None:
        from tiercache.model import JobState

        for first in range(0, len(keys), PREFETCH_NAMES):
            names = [f"{self.mount}/{key}" for key in keys[first : first + PREFETCH_NAMES]]
            done = self.namespace.prefetch(names, background=False).wait()
            if done.failed or done.state is not JobState.DONE:
                raise RuntimeError(f"prefetch: {done.failed} failed: {done.errors} {done.message}")

    def close(self) -> None:
        from benchmarks.lab import stop_agent

        stop_agent(self.namespace)
        shutil.rmtree(self.settings.cache.dir, ignore_errors=True)


_CACHES: WeakKeyDictionary[Lab, dict[str, _Cache]] = WeakKeyDictionary()


class _Ours(Contender):
    role: Role = "ours"

    def __init__(self, lab: Lab, url: str) -> None:
        self._caches = _CACHES.setdefault(lab, {})
        self._url = url
        if url not in self._caches:
            self._caches[url] = _Cache(lab, url)
        self._lab = lab
        self.cache = self._caches[url]
        self.cache.users += 1
        self.namespace = self.cache.namespace

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        self.cache.prepare(objects, state)

    def processes(self) -> dict[str, list[int]]:
        return {"agent": [kernel.agent_pid(self.cache.namespace)]}

    def close(self) -> None:
        self.cache.users -= 1
        if not self.cache.users:
            del self._caches[self._url]
            self.cache.close()


@contender("ns.read")
class Direct(_Ours):
    """``Namespace.read``."""

    name = "ns.read"

    def recipe(self) -> Recipe:
        return Recipe(DirectReader, (self.cache.settings, self.cache.mount))


@contender("tiercache fsspec cat_file")
class CatFile(_Ours):
    """The filesystem's ``cat_file``, which answers hits directly."""

    name = "tiercache fsspec cat_file"

    def recipe(self) -> Recipe:
        filesystem = self._lab.filesystem(self.cache.namespace)
        return Recipe(CatFileReader, (filesystem, self.cache.mount))


@contender("tiercache fsspec _cat_file")
class AsyncCatFile(_Ours):
    """The filesystem's coroutine, on the reader's own loop."""

    name = "tiercache fsspec _cat_file"

    def recipe(self) -> Recipe:
        filesystem = self._lab.filesystem(self.cache.namespace)
        return Recipe(AsyncCatFileReader, (filesystem, self.cache.mount))


class DirectReader:
    def __init__(self, settings: Settings, mount: str) -> None:
        from tiercache.namespace import Namespace

        self._namespace = Namespace(settings)
        self._read = self._namespace.read
        self._paths = Paths(mount)

    def read(self, key: str, offset: int, length: int) -> object:
        return self._read(self._paths[key], offset, length)

    def close(self) -> None:
        self._namespace.close()


class CatFileReader:
    def __init__(self, filesystem: Any, mount: str) -> None:
        self._cat_file = filesystem.cat_file
        self._paths = Paths(mount)

    def read(self, key: str, offset: int, length: int) -> object:
        return self._cat_file(self._paths[key], offset, offset + length)

    def close(self) -> None:
        return


class AsyncCatFileReader:
    def __init__(self, filesystem: Any, mount: str) -> None:
        arguments = {**filesystem.storage_options, "asynchronous": True}
        self._filesystem = type(filesystem)(**arguments)
        self._paths = Paths(mount)

    async def read_async(self, key: str, offset: int, length: int) -> object:
        return await self._filesystem._cat_file(self._paths[key], offset, offset + length)

    async def close_async(self) -> None:
        return
