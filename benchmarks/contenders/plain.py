"""Plain files on the device that also holds the cache: the bounds of what a node can do.

``os.pread`` goes through the page cache; ``O_DIRECT pread`` reads as fio does with ``direct=1
ioengine=psync``: past the page cache, into aligned memory, as deep as there are threads.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from benchmarks import page_cache
from benchmarks.contenders.contender import Contender, Object, Recipe
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State, Workload

if TYPE_CHECKING:
    from benchmarks.lab import Lab

# Of the device: addresses, offsets and lengths of direct reads are multiples of it.
SECTOR_BYTES = 4096
# Files that a reader keeps open; of more, each read opens and closes its own.
OPEN_FILES = 1024
WRITE_BYTES = 4 << 20
IN_FLIGHT = 16

_FOLDERS: WeakKeyDictionary[Lab, dict[str, Path]] = WeakKeyDictionary()


def files(lab: Lab, objects: Sequence[Object], state: State = "hot") -> Path:
    """Bring objects to plain files named by their keys, once a run and state, unless they are
    there. What the page cache took in by blocks, as after ``nvme``, is slower to read than what
    was written: hot files are never dropped from it."""
    import obstore

    from benchmarks.contenders.obstore_s3 import store

    folders = _FOLDERS.setdefault(lab, {})
    if state not in folders:
        folders[state] = lab.folder(f"plain-{state}")
    folder = folders[state]
    left = [one for one in objects if not (folder / one.key).exists()]
    if not left:
        return folder
    origin = store(lab.server.endpoint, lab.bucket)

    def bring(one: Object) -> None:
        file = folder / one.key
        file.parent.mkdir(parents=True, exist_ok=True)
        # The kernel keeps what is written at once in larger pieces, and reads those twice as fast:
        # a bound must have what our extents have.
        with file.open("wb", buffering=WRITE_BYTES) as out:
            for chunk in obstore.get(origin, one.key).stream():
                out.write(chunk)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(bring, left))
    return folder


class _Plain(Contender):
    role: Role = "bound"

    def __init__(self, lab: Lab, url: str) -> None:
        self._lab = lab
        self._folder: Path | None = None
        self._open_files = True

    def why_not(self, workload: Workload) -> str:
        if workload.state in ("hot", "nvme"):
            return ""
        return "plain files lie on the device: they are never at the origin"

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        self._open_files = len(objects) <= OPEN_FILES
        self._folder = files(self._lab, objects, state)
        if state == "nvme":
            page_cache.drop(self._folder / one.key for one in objects)


@contender("os.pread")
class Buffered(_Plain):
    name = "os.pread"

    def recipe(self) -> Recipe:
        assert self._folder is not None
        return Recipe(BufferedReader, (str(self._folder), self._open_files))


@contender("O_DIRECT pread")
class Unbuffered(_Plain):
    name = "O_DIRECT pread"

    def why_not(self, workload: Workload) -> str:
        if workload.state == "hot":
            return "reads past the page cache: no read of it is hot"
        return super().why_not(workload)

    def recipe(self) -> Recipe:
        assert self._folder is not None
        return Recipe(DirectReader, (str(self._folder), self._open_files))


class _Files(dict[str, int]):
    """Descriptors by key, opened when first asked for. Two threads that ask at once may open one
    twice; both stay open until ``close``."""

    def __init__(self, folder: str, flags: int) -> None:
        super().__init__()
        self._folder = folder
        self._flags = flags
        self._all: list[int] = []

    def __missing__(self, key: str) -> int:
        fd = self.opened(key)
        self._all.append(fd)
        self[key] = fd
        return fd

    def opened(self, key: str) -> int:
        return os.open(f"{self._folder}/{key}", self._flags)

    def close(self) -> None:
        for fd in self._all:
            os.close(fd)
        self.clear()
        self._all.clear()


class BufferedReader:
    def __init__(self, folder: str, keep_open: bool) -> None:
        self._files = _Files(folder, os.O_RDONLY)
        self._keep_open = keep_open

    def read(self, key: str, offset: int, length: int) -> object:
        if self._keep_open:
            return os.pread(self._files[key], length, offset)
        fd = self._files.opened(key)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._files.close()


class DirectReader:
    """Returns a view of the thread's own buffer, which its next read overwrites."""

    def __init__(self, folder: str, keep_open: bool) -> None:
        self._files = _Files(folder, os.O_RDONLY | os.O_DIRECT)
        self._keep_open = keep_open
        self._local = threading.local()

    def read(self, key: str, offset: int, length: int) -> object:
        start = offset - offset % SECTOR_BYTES
        wanted = -(-(offset + length - start) // SECTOR_BYTES) * SECTOR_BYTES
        buffer = self._buffer(wanted)
        target = buffer[:wanted]
        if self._keep_open:
            os.preadv(self._files[key], [target], start)
        else:
            fd = self._files.opened(key)
            try:
                os.preadv(fd, [target], start)
            finally:
                os.close(fd)
        return target[offset - start : offset - start + length]

    def _buffer(self, length: int) -> memoryview:
        mine: memoryview | None = getattr(self._local, "buffer", None)
        if mine is None or len(mine) < length:
            self._local.buffer = mine = memoryview(mmap.mmap(-1, length))  # aligned to a page
        return mine

    def close(self) -> None:
        self._files.close()
