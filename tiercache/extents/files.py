"""Extent files on a local file system, and the protocol that lets one vanish under its readers.

    <root>/ab/cdef0123456789    a live extent: 16 hex digits of its id, the first two as folder
    <root>/trash/abcdef…        a discarded extent whose blocks still count

The agent alone writes. A reader holds a shared ``flock`` for as long as it has the file open or
mapped. ``discard`` renames, so that ``du`` and the ledger go on counting the blocks, also over a
restart of the agent; ``reap`` unlinks what an exclusive lock proves to be unused. The kernel
drops the locks of the dead. A reader that loses the race sees the path gone, or moved, or the
lock taken, and reports the extent as gone.

Extent ids are 64-bit and never used twice in one directory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from tiercache.ports import Buffer

# Sixteen fills of one extent each, and a few packs, write at one time. 64 keeps them all open
# and stays far below the usual soft limit of 1,024 descriptors.
WRITABLE_HANDLES = 64
# IOV_MAX of Linux.
RUN_BUFFERS = 1024
# st_blocks counts these, whatever the file system's own block is (stat(2)).
STAT_BLOCK_BYTES = 512
# What a file system without an inode table (btrfs) answers.
UNLIMITED_INODES = (1 << 63) - 1
TRASH = "trash"

_ID_SHIFT = 56
_ID_REST = (1 << _ID_SHIFT) - 1
_FOLDER_NAME = re.compile(r"[0-9a-f]{2}")
_FILE_NAME = re.compile(r"[0-9a-f]{14}")
_TRASH_NAME = re.compile(r"[0-9a-f]{16}")


class OpenExtent:
    """One extent held open under a shared lock; both go with the last reference.

    Thread safe. ``fd`` is valid while a reference to this object is held.
    """

    # __del__ and not weakref.finalize: 0.2 µs an object instead of 2 µs.
    __slots__ = ("__weakref__", "_close", "_mapping", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close: Callable[[int], None] = os.close  # still there while the interpreter ends
        self._mapping: memoryview | None = None

    def view(self) -> memoryview:
        """Return a read-only view on a mapping of the whole file, made at the first call.

        The mapping has a descriptor of its own on the same open file, so bytes and lock live as
        long as any view does. Two threads that come first may map it twice.
        """
        if self._mapping is None:
            if os.fstat(self.fd).st_size == 0:
                self._mapping = memoryview(b"")  # nothing can be mapped
            else:
                self._mapping = memoryview(mmap.mmap(self.fd, 0, prot=mmap.PROT_READ))
        return self._mapping

    def __del__(self) -> None:
        self._close(self.fd)


class ExtentReaders:
    """The reading side of the extent files under ``root``. Thread safe."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # Constant after construction
        self._root = os.fspath(root)

    def path(self, extent_id: int) -> str:
        return f"{self._root}/{extent_id >> _ID_SHIFT:02x}/{extent_id & _ID_REST:014x}"

    def open(self, extent_id: int) -> OpenExtent | None:
        """Return the extent under a shared lock; None where it is gone or going (evicted).

        Costs ~6 µs. Raises OSError from the device, and for want of descriptors (EMFILE).
        """
        return _open_locked(self.path(extent_id), os.O_RDONLY)


def _open_locked(path: str, flags: int) -> OpenExtent | None:
    try:
        held = OpenExtent(os.open(path, flags | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mine = os.fstat(held.fd)
        there = os.stat(path)
    except (BlockingIOError, FileNotFoundError):
        return None  # being reaped, or moved to the trash since we opened it
    if mine.st_nlink == 0 or (mine.st_ino, mine.st_dev) != (there.st_ino, there.st_dev):
        return None
    return held


def _write_run(fd: int, offset: int, run: list[memoryview]) -> None:
    """Write the buffers one after another, also where the device takes them in pieces."""
    while run:
        written = os.pwritev(fd, run, offset)
        offset += written
        while run and written >= len(run[0]):
            written -= len(run.pop(0))
        if run:
            run[0] = run[0][written:]


class ExtentFiles(ExtentReaders):
    """The writing side: the agent's alone. Thread safe; calls may block on the device.

    Makes ``root`` where it is missing. Files are 0600 in folders of 0700.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, writable_handles: int = WRITABLE_HANDLES
    ) -> None:
        super().__init__(root)
        # Constant after construction
        self._trash = f"{self._root}/{TRASH}"
        self._writable_handles = writable_handles
        self._lock = threading.Lock()
        for folder in (self._root, self._trash):  # the mode is of the last one made only
            os.makedirs(folder, mode=0o700, exist_ok=True)
        # Guarded by _lock
        self._writable: OrderedDict[int, OpenExtent] = OrderedDict()
        self._discarded: set[int] = {
            int(name, 16) for name in os.listdir(self._trash) if _TRASH_NAME.fullmatch(name)
        }

    def create(self, extent_id: int, length: int) -> None:
        """Make a sparse file of ``length`` bytes. Costs no data blocks, one inode.

        Raises FileExistsError for an id in use, OSError from the device; then nothing is left.
        """
        path = self.path(extent_id)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        held = OpenExtent(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.ftruncate(fd, length)
        except BaseException:
            os.unlink(path)
            raise
        self._keep(extent_id, held)

    def write(self, extent_id: int, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at ``offset``. Not synced: checksums find what a crash lost.

        Raises FileNotFoundError for an unknown extent, OSError (ENOSPC, EIO, EROFS) from the
        device; some of the bytes may then have been written.
        """
        self.write_many(extent_id, [(offset, data)])

    def write_many(self, extent_id: int, parts: Sequence[tuple[int, Buffer]]) -> None:
        """Write several (offset, data) parts, in the given order; each run of parts that follow
        one another without a gap takes one system call. Errors as of ``write``."""
        held = self._open_writable(extent_id)
        run: list[memoryview] = []
        run_start = run_end = 0
        for offset, data in parts:
            view = memoryview(data).cast("B")
            if offset != run_end or len(run) == RUN_BUFFERS:
                _write_run(held.fd, run_start, run)
                run, run_start, run_end = [], offset, offset
            run.append(view)
            run_end += len(view)
        _write_run(held.fd, run_start, run)

    def read(self, extent_id: int, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes, fewer only at the end of the extent.

        Raises FileNotFoundError for an unknown extent.
        """
        held = self._open_writable(extent_id)  # by a name: it closes with its last reference
        return os.pread(held.fd, length, offset)

    def truncate(self, extent_id: int, length: int) -> None:
        """Set the file's length. Raises FileNotFoundError for an unknown extent."""
        held = self._open_writable(extent_id)
        os.ftruncate(held.fd, length)

    def allocated(self, extent_id: int) -> int:
        """Return the bytes it occupies on the device now, delayed allocation included.

        Raises FileNotFoundError for an unknown extent.
        """
        held = self._open_writable(extent_id)
        return os.fstat(held.fd).st_blocks * STAT_BLOCK_BYTES

    def discard(self, extent_id: int) -> None:
        """Take the extent out of readers' reach at once; its space counts until ``reap``.

        An extent that is not there is no error. Those who hold it open go on reading it.
        """
        with self._lock:
            self._writable.pop(extent_id, None)
        try:
            os.rename(self.path(extent_id), self._trash_path(extent_id))
        except FileNotFoundError:
            return
        with self._lock:
            self._discarded.add(extent_id)

    def reap(self) -> list[tuple[int, int]]:
        """Unlink discarded extents that nobody holds; return (extent_id, freed bytes) of each.

        Raises OSError from the device where it fails at the first; where it fails later, what was
        unlinked before is returned, and the next call meets the failure.
        """
        freed: list[tuple[int, int]] = []
        with self._lock:
            candidates = sorted(self._discarded)
        for extent_id in candidates:
            try:
                freed_bytes = self._unlink_unless_held(extent_id)
            except OSError:
                if freed:
                    break
                raise
            if freed_bytes is not None:
                freed.append((extent_id, freed_bytes))
                with self._lock:
                    self._discarded.discard(extent_id)
        return freed

    def _unlink_unless_held(self, extent_id: int) -> int | None:
        path = self._trash_path(extent_id)
        try:
            held = OpenExtent(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return 0  # removed behind our back: nothing counts any more
        try:
            fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        freed_bytes = os.fstat(held.fd).st_blocks * STAT_BLOCK_BYTES
        os.unlink(path)
        return freed_bytes

    def discarded(self) -> dict[int, int]:
        """Return allocated bytes of extents discarded and not yet reaped, by id."""
        with self._lock:
            candidates = sorted(self._discarded)
        sizes = {}
        for extent_id in candidates:
            with suppress(FileNotFoundError):  # reaped meanwhile
                status = os.stat(self._trash_path(extent_id))
                sizes[extent_id] = status.st_blocks * STAT_BLOCK_BYTES
        return sizes

    def scan(self) -> dict[int, int]:
        """Return allocated bytes of all live extent files on disk, by id. Reads every folder:
        ~3 µs a file. Names of another form are passed over."""
        sizes = {}
        for folder in self._folders():
            with os.scandir(folder.path) as files:
                for file in files:
                    if _FILE_NAME.fullmatch(file.name):
                        with suppress(FileNotFoundError):  # discarded meanwhile
                            status = file.stat(follow_symlinks=False)
                            extent_id = int(folder.name + file.name, 16)
                            sizes[extent_id] = status.st_blocks * STAT_BLOCK_BYTES
        return sizes

    def _folders(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._root) as folders:
            for folder in folders:
                if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
                    yield folder

    def free(self) -> tuple[int, int, int]:
        """Return (available bytes, total bytes, available inodes) of the file system."""
        status = os.statvfs(self._root)
        inodes = status.f_favail if status.f_files else UNLIMITED_INODES
        return (status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize, inodes)

    def close(self) -> None:
        """Close the writable handles. The object stays usable."""
        with self._lock:
            self._writable.clear()

    def _trash_path(self, extent_id: int) -> str:
        return f"{self._trash}/{extent_id:016x}"

    def _open_writable(self, extent_id: int) -> OpenExtent:
        with self._lock:
            held = self._writable.get(extent_id)
            if held is not None:
                self._writable.move_to_end(extent_id)
                return held
        # Under a shared lock, as readers do: a write in flight holds the reaper off.
        held = _open_locked(self.path(extent_id), os.O_RDWR)
        if held is None:
            raise FileNotFoundError(f"no extent {extent_id:016x} in {self._root}")
        self._keep(extent_id, held)
        return held

    def _keep(self, extent_id: int, held: OpenExtent) -> None:
        with self._lock:
            self._writable[extent_id] = held
            while len(self._writable) > self._writable_handles:
                self._writable.popitem(last=False)
