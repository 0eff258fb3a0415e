"""The metadata port on LMDB: one writer, any number of readers that take no lock.

LMDB's rules (lmdb.h, "Caveats"), and how they are kept here:

* *Never open one file twice in a process*: POSIX locks belong to the process, so closing the
  second descriptor would drop the first one's. All readers and the store of one process share
  one environment, found by the file's identity.
* *Never use an environment after fork, nor close it in the child*: closing it there frees the
  reader slots of the parent. So this module closes every environment just before a fork and
  reopens it at the next use, in the parent and in the child (~150 µs each).
* *Never grow the map under readers* (py-lmdb#269): ``MAP_BYTES`` is fixed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NoReturn, TypeAlias

import lmdb

from tiercache.errors import CacheFull, FormatError, NotFound, TiercacheError, Unsupported
from tiercache.metadata.bookkeeping import (
    MAX_KEY_BYTES,
    SEQUENCE_KEY,
    decode_sequence,
    encode_sequence,
)
from tiercache.units import GIB

# The map is sparse: it costs address space, not disk. A chunk record is ~4.3 KiB, so 64 TiB of
# NVMe in full (1 Mi chunks) need 4.5 GiB; 100 M catalog records of 300 B need ~45 GiB with
# half-full pages. 64 GiB holds both.
MAP_BYTES = 64 * GIB
# One slot for each reading thread of the node: 128 processes of 32 threads. 64 B each: 256 KiB.
MAX_READERS = 4096
# MDB_txninfo ends in the first reader's slot; each other slot is a cache line.
LOCK_FILE_BYTES = 192 + (MAX_READERS - 1) * 64

Transaction: TypeAlias = "lmdb.Transaction[bytes]"


def translate(error: lmdb.Error, path: str) -> Exception:
    """Return the error of our tree (or an OSError of the device) that ``error`` stands for."""
    match error:
        case lmdb.MapFullError():
            return CacheFull("the metadata map is full", path=path)
        case lmdb.DiskError():
            return CacheFull("no space left for metadata", path=path)
        case lmdb.InvalidError() | lmdb.VersionMismatchError():
            remedy = "remove the cache directory or name another one"
            return FormatError("not a metadata index of this version", path=path, remedy=remedy)
        case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.PanicError():
            remedy = "stop the agent and run tiercache fsck"
            return FormatError(f"the metadata index is damaged: {error}", path=path, remedy=remedy)
        case lmdb.LockError():
            # LMDB tells readers apart by the numbers of their processes.
            return Unsupported(
                f"a process of another container has the number {os.getpid()} too",
                path=path,
                remedy="let agent and jobs share one PID namespace: hostPID in Kubernetes, --pid "
                "in Docker",
            )
        case lmdb.ReadersFullError():
            remedy = "fewer reading threads on this node"
            return TiercacheError(f"more than {MAX_READERS} readers", path=path, remedy=remedy)
        case _:
            code = getattr(error, "code", None)
            if code is None or code <= 0:  # no errno of the device: the binding refused the file
                return FormatError(str(error), path=path, remedy="name another cache directory")
            return OSError(code, str(error), path)


class _Environment:
    """One LMDB environment of this process, shared by its users; closed around each fork.

    ``begin`` is the fast path: the environment's own ``begin`` while it is open, else a function
    that opens it first.
    """

    def __init__(self, path: str, *, writable: bool, map_bytes: int) -> None:
        # Constant after construction
        self.path = path
        self.map_bytes = map_bytes
        self.lock = threading.RLock()
        # Guarded by lock (``begin`` is read without it)
        self.writable = writable
        self.env: lmdb.Environment | None = None
        self.env_pid = 0
        self.begin: Callable[..., Transaction] = self._open_and_begin
        # Guarded by _registry_lock
        self.key: tuple[int, int] = (0, 0)
        self.users = 0

    def open(self) -> lmdb.Environment:
        """Return the environment, opened if it is not."""
        with self.lock:
            if self.env is None:
                self.env = self._open()
                self.env_pid = os.getpid()
                self.begin = self.env.begin
            return self.env

    def _open(self) -> lmdb.Environment:
        if not self.writable:
            # A reader that comes between the agent's creat() and its first page finds no index.
            try:
                empty = os.stat(self.path).st_size == 0
            except FileNotFoundError:
                empty = True
            if empty:
                raise NotFound("no metadata index here yet", path=self.path)
        try:
            return lmdb.open(
                self.path,
                map_size=self.map_bytes,
                subdir=False,
                readonly=not self.writable,
                create=self.writable,
                mode=0o600,
                max_readers=MAX_READERS,
                # Keep one reader slot between transactions: without it each begin() takes the
                # mutex that all processes share.
                max_spare_txns=1,
            )
        except lmdb.Error as error:
            raise translate(error, self.path) from error

    def _open_and_begin(self, *, write: bool = False) -> Transaction:
        return self.open().begin(write=write)

    def close(self) -> None:
        """Close it; transactions of other threads become invalid. The next use opens it again."""
        with self.lock:
            env, self.env = self.env, None
            self.begin = self._open_and_begin
            if env is None:
                return
            if self.env_pid == os.getpid():
                env.close()
            else:
                _abandoned.append(env)

    def reopen_writable(self, map_bytes: int) -> None:
        with self.lock:
            self.close()
            self.writable = True
            self.map_bytes = map_bytes


# Environments of a parent process, reached by a fork that ran no Python handlers: kept for ever,
# since their deallocation would free reader slots of the parent.
_abandoned: list[lmdb.Environment] = []
_registry: dict[tuple[int, int], _Environment] = {}
_registry_lock = threading.RLock()


def _file_key(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)


def _acquire(path: str, *, writable: bool, map_bytes: int) -> _Environment:
    with _registry_lock:
        key = _file_key(path)
        shared = _registry.get(key) if key is not None else None
        if shared is None:
            shared = _Environment(path, writable=writable, map_bytes=map_bytes)
            shared.open()
            key = _file_key(path)
            if key is None:
                shared.close()
                raise NotFound("the metadata index was removed while it was opened", path=path)
            shared.key = key
            _registry[key] = shared
        elif writable:
            shared.reopen_writable(map_bytes)
        shared.users += 1
        return shared


def _closed(*, write: bool = False) -> NoReturn:
    raise ValueError("the metadata index is closed")


def _release(shared: _Environment) -> None:
    with _registry_lock:
        shared.users -= 1
        if shared.users == 0:
            if _registry.get(shared.key) is shared:
                del _registry[shared.key]
            shared.close()
            shared.begin = _closed


def _before_fork() -> None:
    # Lock order: registry, then environment. Commits hold only the latter.
    _registry_lock.acquire()
    for shared in _registry.values():
        shared.lock.acquire()
        shared.close()


def _after_fork_in_parent() -> None:
    for shared in _registry.values():
        shared.lock.release()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for shared in _registry.values():
        shared.writable = False  # the parent is still the one writer
        shared.lock.release()
    _registry_lock.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


class LmdbReader:
    """The reading side. Thread safe. ``get`` costs ~0.5 µs and no system call.

    Survives forks on both sides; ``scan`` iterators that are open across a fork go on in a new
    snapshot. Raises NotFound where no index is, FormatError for a foreign file.
    """

    __slots__ = ("_closed", "_shared")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._shared = _acquire(os.fspath(path), writable=False, map_bytes=MAP_BYTES)
        self._closed = False

    @property
    def path(self) -> str:
        return self._shared.path

    def get(self, key: bytes) -> bytes | None:
        # begin() reuses the spare transaction of the environment: 0.41 µs with the look-up; as a
        # context manager 0.53 µs, with buffers=True 0.58 µs. Reference counting ends it at once.
        try:
            return self._shared.begin().get(key)
        except lmdb.Error as error:
            return self._get_again(key, error)

    def _get_again(self, key: bytes, error: lmdb.Error) -> bytes | None:
        if isinstance(error, lmdb.BadValsizeError):
            return None  # no such key can have been stored
        self._raise_unless_reopened(error)
        return self.get(key)

    def _raise_unless_reopened(self, error: lmdb.Error) -> None:
        """Return where another thread's fork closed the environment under a transaction."""
        if self._closed or "closed/deleted/dropped" not in str(error):
            raise translate(error, self._shared.path) from error
        # Waits until the fork is over.
        with self._shared.lock:
            pass

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look all up in one snapshot."""
        while True:
            try:
                transaction = self._shared.begin()
                return [
                    transaction.get(key) if 0 < len(key) <= MAX_KEY_BYTES else None for key in keys
                ]
            except lmdb.Error as error:
                self._raise_unless_reopened(error)

    def scan(
        self, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """Yield pairs whose key begins with ``prefix``, from the full key ``start`` on, in key
        order. The iterator holds a snapshot open: exhaust it promptly or close it."""
        first = max(prefix, start)
        remaining = limit
        while remaining is None or remaining > 0:
            try:
                with self._shared.begin() as transaction, transaction.cursor() as cursor:
                    if not cursor.set_range(first):
                        return
                    for key, value in cursor.iternext():
                        if not key.startswith(prefix) or remaining == 0:
                            return
                        first = key + b"\0"
                        if key == SEQUENCE_KEY:
                            continue
                        if remaining is not None:
                            remaining -= 1
                        yield key, value
                return
            except lmdb.Error as error:
                self._raise_unless_reopened(error)

    def sequence(self) -> int:
        """Return the number of the last commit, 0 before the first."""
        return decode_sequence(self.get(SEQUENCE_KEY))

    def close(self) -> None:
        """Close it. Idempotent. No other call may be in flight."""
        if not self._closed:
            self._closed = True
            _release(self._shared)

    def abandon(self) -> None:
        """Drop it in a forked child, freeing nothing that the parent uses. A fork by Python has
        closed the environment already; one that bypassed its handlers leaks it on purpose."""
        self.close()


def _allocate_lock_file(path: str) -> None:
    """Give the reader table its blocks: a store into a hole of it on a full file system would
    kill the storing process (SIGBUS). Only where it is not there yet, for closing any descriptor
    of it would drop the POSIX locks that this process has on it. Raises CacheFull, OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
    except OSError as error:
        os.unlink(path)
        if error.errno == errno.ENOSPC:
            raise CacheFull("no space left for metadata", path=path) from error
        raise
    finally:
        os.close(fd)


class LmdbStore(LmdbReader):
    """The writing side; one process at a time, which the caller ensures (the agent's lock).

    Commits are atomic, and durable when they return: LMDB syncs data, then the meta page.
    Thread safe; commits are serialised. Raises FormatError for a foreign file.
    """

    __slots__ = ()

    def __init__(self, path: str | os.PathLike[str], *, map_bytes: int = MAP_BYTES) -> None:
        _allocate_lock_file(f"{os.fspath(path)}-lock")
        self._shared = _acquire(os.fspath(path), writable=True, map_bytes=map_bytes)
        self._closed = False
        try:
            self._settle_cut_off_commit()
        except BaseException:
            self.close()
            raise

    def _settle_cut_off_commit(self) -> None:
        """Make visible what a writer committed and was killed before it told the readers.

        LMDB writes the meta page, then stores the transaction's number in shared memory, where
        readers look. The next writer finds the robust mutex orphaned and repairs that number; so
        take the mutex once before anything is read.
        """
        with self._shared.lock:
            try:
                self._shared.open().begin(write=True).abort()
            except lmdb.Error as error:
                raise translate(error, self._shared.path) from error

    def commit(self, batch: Mapping[bytes, bytes | None]) -> int:
        """Apply all (None deletes) atomically and durably; return the commit's sequence number.

        An empty batch writes nothing and returns the last one. Raises ValueError for a key of
        other than 1 to 511 bytes or a reserved one, CacheFull where map or device has no room;
        then nothing was applied.
        """
        for key in batch:
            if not 0 < len(key) <= MAX_KEY_BYTES or key == SEQUENCE_KEY:
                raise ValueError(f"not a metadata key: {key!r}")
        if not batch:
            return self.sequence()
        shared = self._shared
        with shared.lock:
            if not shared.writable:
                raise Unsupported("a forked child cannot write the metadata", path=shared.path)
            try:
                with shared.begin(write=True) as transaction:
                    sequence = decode_sequence(transaction.get(SEQUENCE_KEY)) + 1
                    for key, value in sorted(batch.items()):
                        if value is None:
                            transaction.delete(key)
                        else:
                            transaction.put(key, value)
                    transaction.put(SEQUENCE_KEY, encode_sequence(sequence))
            except lmdb.Error as error:
                raise translate(error, shared.path) from error
        return sequence

    def reopen(self) -> None:
        """Let the next use open the environment anew: LMDB refuses every commit after one whose
        meta page the device did not take."""
        self._shared.close()

    def size_bytes(self) -> int:
        """Return the bytes that the index and its lock file occupy on the device now."""
        path = self._shared.path
        return sum(os.stat(name).st_blocks * 512 for name in (path, f"{path}-lock"))

    def reader_check(self) -> int:
        """Free the reader slots of dead processes, which would keep old pages; return how many."""
        with self._shared.lock:
            try:
                return self._shared.open().reader_check()
            except lmdb.Error as error:
                raise translate(error, self._shared.path) from error
