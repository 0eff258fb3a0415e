"""fsspec's own caches over s3fs: ``filecache`` keeps whole files, ``blockcache`` blocks of them.

Large objects are read through files that stay open, one a thread, which is their fast way; small
ones are opened each. Neither checks freshness here, and neither has a limit.
"""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import page_cache
from benchmarks.contenders.contender import Contender, Object, Recipe, missing_package
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State, Workload
from tiercache.units import KIB, MIB

if TYPE_CHECKING:
    from benchmarks.lab import Lab

SMALL_BYTES = MIB
READ_BYTES = 8 * MIB
# Files that a thread keeps open; of more, each read opens and closes its own.
OPEN_FILES = 64
FILL_OBJECTS = 512  # at once in memory: 32 MiB of 64 KiB


def caching(protocol: str, endpoint: str, storage: str) -> Any:
    """Return a new caching filesystem over a directory, which may hold things already."""
    import fsspec

    from benchmarks.contenders.s3fs_s3 import filesystem

    options: dict[str, Any] = {
        "fs": filesystem(endpoint),
        "cache_storage": storage,
        "skip_instance_cache": True,
        "check_files": False,
    }
    return fsspec.filesystem(protocol, **options)


class _Cached(Contender):
    role: Role = "rival"
    protocol = ""
    block_bytes: int | None = None

    def __init__(self, lab: Lab, url: str) -> None:
        self._endpoint = url or lab.server.endpoint
        self._bucket = lab.bucket
        self._storage = lab.folder(self.protocol)
        self._filled: tuple[str, ...] = ()
        self._keep_open = True

    def why_missing(self) -> str:
        return missing_package("s3fs")

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        self._keep_open = len(objects) <= OPEN_FILES
        wanted = tuple(one.key for one in objects)
        match state:
            case "cold":
                self._empty()
            case "half-warm":
                self._empty()
                self._fill_half(objects)
            case "hot" | "nvme" if wanted != self._filled:
                self._fill([(one.key, one.length) for one in objects])
                self._filled = wanted
        if state == "nvme":
            page_cache.drop_below(self._storage)

    def _empty(self) -> None:
        self._filled = ()
        shutil.rmtree(self._storage)
        self._storage.mkdir()

    def _fill_half(self, objects: Sequence[Object]) -> None:
        self._fill([(one.key, one.length) for one in objects[::2]])

    def _fill(self, parts: Sequence[tuple[str, int]]) -> None:
        """Read the first bytes of objects, so that they are kept."""
        filesystem = caching(self.protocol, self._endpoint, str(self._storage))
        for key, length in parts:
            with filesystem.open(f"{self._bucket}/{key}", "rb", **self._open_options()) as file:
                for offset in range(0, length, READ_BYTES):
                    file.read(min(READ_BYTES, length - offset))
        filesystem.save_cache()
        del filesystem
        gc.collect()  # mappings of what it keeps would hold the pages in memory

    def _open_options(self) -> dict[str, Any]:
        return {} if self.block_bytes is None else {"block_size": self.block_bytes}

    def recipe(self) -> Recipe:
        where = (self.protocol, self._endpoint, str(self._storage), self._bucket)
        return Recipe(CachedReader, (*where, self._open_options(), self._keep_open))

    def close(self) -> None:
        shutil.rmtree(self._storage, ignore_errors=True)


@contender("fsspec filecache")
class FileCache(_Cached):
    name = "fsspec filecache"
    protocol = "filecache"

    def why_not(self, workload: Workload) -> str:
        if workload.state == "half-warm" and workload.dataset.count == 1:
            return "keeps whole files: one file is never half there"
        return ""

    def _fill(self, parts: Sequence[tuple[str, int]]) -> None:
        if max(length for _, length in parts) > SMALL_BYTES:
            super()._fill(parts)
            return
        # Many at once: one by one takes four times as long.
        filesystem = caching(self.protocol, self._endpoint, str(self._storage))
        for first in range(0, len(parts), FILL_OBJECTS):
            some = parts[first : first + FILL_OBJECTS]
            filesystem.cat([f"{self._bucket}/{key}" for key, _ in some])
        filesystem.save_cache()


@contender("fsspec blockcache")
class BlockCache(_Cached):
    name = "fsspec blockcache"
    protocol = "blockcache"
    block_bytes = 4 * MIB

    def _fill_half(self, objects: Sequence[Object]) -> None:
        if len(objects) > 1:
            super()._fill_half(objects)
        else:
            self._fill([(objects[0].key, objects[0].length // 2)])


@contender("fsspec blockcache, 64 KiB blocks")
class SmallBlockCache(BlockCache):
    """The best for cold random reads: it fetches whole blocks only."""

    name = "fsspec blockcache, 64 KiB blocks"
    block_bytes = 64 * KIB


class CachedReader:
    def __init__(
        self,
        protocol: str,
        endpoint: str,
        storage: str,
        bucket: str,
        options: dict[str, Any],
        keep_open: bool,
    ) -> None:
        self._filesystem = caching(protocol, endpoint, storage)
        self._bucket = bucket
        self._options = options
        self._keep_open = keep_open
        self._local = threading.local()
        self._opened: list[Any] = []

    def read(self, key: str, offset: int, length: int) -> object:
        if self._keep_open:
            file = self._file(key)
            file.seek(offset)
            return file.read(length)
        with self._filesystem.open(f"{self._bucket}/{key}", "rb", **self._options) as file:
            file.seek(offset)
            return file.read(length)

    def _file(self, key: str) -> Any:
        files: dict[str, Any] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = {}
        file = files.get(key)
        if file is None:
            path = f"{self._bucket}/{key}"
            file = files[key] = self._filesystem.open(path, "rb", **self._options)
            self._opened.append(file)
        return file

    def close(self) -> None:
        # A block cache notes what it keeps when a file is closed, be it by the collector: late,
        # that would be in a directory that has been emptied since.
        for file in self._opened:
            file.close()
