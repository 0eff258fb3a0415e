"""The metadata store on LMDB, in a directory of a block volume.

    <directory>/  metadata.lmdb  metadata.lmdb-lock  owner.lock

A commit is synced to the volume before it is acknowledged. One agent at a time: it holds a
``flock`` on ``owner.lock``, which the kernel releases when it dies, and is never fenced while it
lives. LMDB needs a file system of this host; a network's would corrupt it. All that may wait for
the device runs on two threads, one that writes and one that reads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tiercache.errors import (
    AccessDenied,
    CacheFull,
    ConfigError,
    FormatError,
    MetadataUnavailable,
    NotFound,
    TiercacheError,
    Unsupported,
)
from tiercache.metadata.bookkeeping import (
    FIRST_KEY,
    FORMAT_KEY,
    check_commit,
    decode_format,
    encode_format,
    is_key,
    new_identity,
    unmet,
)
from tiercache.metadata.lmdb_store import LmdbReader, LmdbStore
from tiercache.ports import NOTHING_REQUIRED

DATA = "metadata.lmdb"
LOCK = "owner.lock"
OURS = frozenset({DATA, f"{DATA}-lock", LOCK})
# What a file system makes by itself.
NOBODYS = frozenset({"lost+found"})
# What one turn of the reading thread brings: few enough for a `get` to wait ~1 ms behind it.
SCAN_PAIRS = 512
SCAN_BYTES = 4 * 1024 * 1024
# After so many commits, what readers held that were killed is free again; ~10 µs.
READER_CHECK_COMMITS = 100

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Opened:
    """``lock_fd`` is None for a reader."""

    store: LmdbReader
    lock_fd: int | None
    identity: str

    def close(self) -> None:
        self.store.close()
        if self.lock_fd is not None:
            # A forked child may hold the descriptor too; the lock is given up for all.
            fcntl.flock(self.lock_fd, fcntl.LOCK_UN)
            os.close(self.lock_fd)


class LmdbVolume:
    """A MetadataStore. One event loop; close it there.

    A reader (``read_only``) sees every commit of the agent at once; for it ``commit`` and
    ``check_owner`` raise Unsupported. A ``scan`` keeps the pages of its moment from being used
    again until it ends.
    """

    def __init__(self, directory: str, *, url: str, deadline_s: float) -> None:
        # Constant after construction
        self._directory = directory
        self._url = url
        self._deadline_s = deadline_s
        self._writing = ThreadPoolExecutor(1, "metadata-write")
        self._reading = ThreadPoolExecutor(1, "metadata-read")
        # Owned by the event loop
        self._opened: _Opened | None = None

    @classmethod
    async def open(
        cls, directory: str, *, url: str, deadline_s: float, read_only: bool = False
    ) -> LmdbVolume:
        """Open the store, making it where the directory is empty (not for ``read_only``).

        Raises MetadataUnavailable where another agent has it or the volume is not there,
        NotFound (only ``read_only``) where no store is, ConfigError where the directory holds
        other files, AccessDenied, FormatError.
        """
        volume = cls(directory, url=url, deadline_s=deadline_s)
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(volume._writing, _open, directory, url, read_only)
        try:
            with volume._translated():
                async with asyncio.timeout(deadline_s):
                    volume._opened = await asyncio.shield(opening)
        except BaseException:
            # A volume that answers too late must not keep its lock.
            opening.add_done_callback(_close_late)
            volume._writing.shutdown(wait=False)
            volume._reading.shutdown(wait=False)
            raise
        return volume

    @property
    def url(self) -> str:
        return self._url

    @property
    def identity(self) -> str:
        return self._live().identity

    @property
    def sequence(self) -> int:
        return self._live().store.sequence()

    async def get(self, key: bytes) -> bytes | None:
        if not is_key(key):
            return None
        return await self._run(self._reading, self._live().store.get, key)

    async def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        pairs = self._live().store.scan(prefix, start=max(start, FIRST_KEY), limit=limit)
        try:
            while batch := await self._run(self._reading, _take, pairs):
                for pair in batch:
                    yield pair
        finally:
            if self._opened is None:
                pairs.close()
            else:  # where the thread that may be in it is
                self._reading.submit(pairs.close)

    async def commit(
        self,
        batch: Mapping[bytes, bytes | None],
        *,
        preconditions: Mapping[bytes, bytes | None] = NOTHING_REQUIRED,
    ) -> int:
        check_commit(batch, preconditions)
        store = self._writable()
        return await self._run(self._writing, self._commit, store, dict(batch), preconditions)

    def _commit(
        self,
        store: LmdbStore,
        batch: Mapping[bytes, bytes | None],
        preconditions: Mapping[bytes, bytes | None],
    ) -> int:
        # Nothing is written between look and commit: this thread is the store's only writer.
        found = store.get_many(list(preconditions))
        for (key, required), value in zip(preconditions.items(), found, strict=True):
            if value != required:
                raise unmet(key, path=self._url)
        try:
            sequence = store.commit(batch)
        except OSError:
            store.reopen()
            raise
        if sequence % READER_CHECK_COMMITS == 0:
            store.reader_check()
        return sequence

    async def flush(self) -> None:
        """Nothing is held back."""
        self._live()

    async def check_owner(self) -> None:
        self._writable()
        await self._run(self._reading, self._check_place)

    def _check_place(self) -> None:
        """The lock keeps others away; so look whether it lies where they would look for it."""
        fd = self._live().lock_fd
        assert fd is not None  # _writable() has been asked
        held, there = os.fstat(fd), os.stat(os.path.join(self._directory, LOCK))
        if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
            raise MetadataUnavailable(
                "another directory lies where the store was opened",
                path=self._url,
                remedy="mount the volume again, then restart the agent",
            )

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            return
        self._reading.shutdown(wait=False)
        loop = asyncio.get_running_loop()
        closing = loop.run_in_executor(self._writing, opened.close)
        self._writing.shutdown(wait=False)
        with self._translated():
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(closing)

    def _live(self) -> _Opened:
        if self._opened is None:
            raise ValueError("the metadata store is closed")
        return self._opened

    def _writable(self) -> LmdbStore:
        store = self._live().store
        if not isinstance(store, LmdbStore):
            raise Unsupported("the store was opened for reading only", path=self._url)
        return store

    async def _run(
        self, executor: ThreadPoolExecutor, function: Callable[..., _T], *arguments: object
    ) -> _T:
        """Run it on that thread. What takes longer than the deadline goes on there, in its turn."""
        with self._translated():
            async with asyncio.timeout(self._deadline_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(executor, function, *arguments)

    def _translated(self) -> _Translated:
        return _Translated(self._url, self._deadline_s)


class _Translated:
    """Turns what the volume and LMDB raise inside into the port's errors."""

    def __init__(self, url: str, deadline_s: float) -> None:
        self._url = url
        self._deadline_s = deadline_s

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case TimeoutError():
                raise MetadataUnavailable(
                    f"the volume did not answer within {self._deadline_s:g} s",
                    path=self._url,
                    remedy="look at the volume with dmesg",
                ) from error
            case CacheFull():
                raise MetadataUnavailable(
                    error.message, path=self._url, remedy="make room on the volume"
                ) from error
            case FormatError():
                raise FormatError(
                    error.message.replace("metadata index", "metadata store"),
                    path=self._url,
                    remedy="import an export of it into another directory",
                ) from error
            case PermissionError() if not isinstance(error, TiercacheError):
                raise AccessDenied(
                    "permission denied", path=self._url, remedy="give the agent's user the rights"
                ) from error
            case OSError() if not isinstance(error, TiercacheError):
                # Of a full file system LMDB says EIO, where it wrote a part.
                raise MetadataUnavailable(
                    f"the volume failed: {error.strerror}",
                    path=self._url,
                    remedy="look at the volume with df and dmesg",
                ) from error


def _take(pairs: Iterator[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    taken: list[tuple[bytes, bytes]] = []
    held_bytes = 0
    for pair in pairs:
        taken.append(pair)
        held_bytes += len(pair[1])
        if len(taken) == SCAN_PAIRS or held_bytes >= SCAN_BYTES:
            break
    return taken


def _open(directory: str, url: str, read_only: bool) -> _Opened:
    data = os.path.join(directory, DATA)
    if read_only:
        if not os.path.exists(data):
            raise NotFound(
                "no metadata store is here", path=url, remedy="an agent makes it when it starts"
            )
        reader = LmdbReader(data)
        try:
            return _Opened(reader, None, decode_format(reader.get(FORMAT_KEY), path=url))
        except BaseException:
            reader.close()
            raise
    _prepare(directory, url)
    fd = _lock(directory, url)
    try:
        store = LmdbStore(data)
        try:
            return _Opened(store, fd, _identity(store, directory, url))
        except BaseException:
            store.close()
            raise
    except BaseException:
        os.close(fd)
        raise


def _close_late(opening: asyncio.Future[_Opened]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _prepare(directory: str, url: str) -> None:
    """Make the directory where only it is missing; refuse one that is used for other things."""
    try:
        os.mkdir(directory, 0o700)
        _sync_directory(os.path.dirname(directory))
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        raise MetadataUnavailable(
            "the directory above it does not exist", path=url, remedy="mount the volume"
        ) from error
    if not os.path.isdir(directory):
        raise ConfigError("not a directory", path=url, remedy="name a directory of a volume")
    others = set(os.listdir(directory)) - OURS - NOBODYS
    if others and not os.path.exists(os.path.join(directory, DATA)):
        raise ConfigError(
            f"the directory holds other files: {min(others)}",
            path=url,
            remedy="name an empty directory, or one that does not exist yet",
        )


def _lock(directory: str, url: str) -> int:
    """Return a descriptor that holds the owner's lock. Raises MetadataUnavailable."""
    fd = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
    except BlockingIOError as error:
        holder = _holder(os.pread(fd, 4096, 0))
        os.close(fd)
        raise MetadataUnavailable(
            f"another agent has the store: {holder}",
            path=url,
            remedy="stop that agent, or give each its own directory",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _holder(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):  # it has only just begun
        return "unknown"


def _identity(store: LmdbStore, directory: str, url: str) -> str:
    """Return the store's identity; a store that was never finished is made now."""
    if store.sequence() == 0 and next(store.scan(b"", limit=1), None) is None:
        identity = new_identity()
        store.commit({FORMAT_KEY: encode_format(identity)})
        # LMDB syncs the file, not the entry that names it.
        _sync_directory(directory)
        return identity
    return decode_format(store.get(FORMAT_KEY), path=url)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
