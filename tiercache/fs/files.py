"""File objects as fsspec's users know them: the namespace's, with names, lines and transactions."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fsspec.compression import compr

from tiercache import wire
from tiercache.client.file import ReadFile, WriteFile
from tiercache.client.reader import Reader
from tiercache.errors import StaleHandle
from tiercache.fs.paths import unstrip
from tiercache.fs.threads import in_thread, in_thread_of
from tiercache.model import Stat
from tiercache.ports import Buffer

if TYPE_CHECKING:
    from tiercache.fs.direct import DirectFileSystem

# Lines are cut from blocks of this size: a page, so that a block costs one ``pread``.
LINE_BLOCK_BYTES = 64 * 1024
# Up to this much is read on the event loop's own thread, ~0.1 ms; more goes to another.
INLINE_BYTES = 1 << 20


class ReadHandle(ReadFile):
    """One version of one object, for reading. Pickles by filesystem, path and offset; a copy
    whose version is gone raises StaleHandle."""

    def __init__(self, fs: DirectFileSystem, path: str) -> None:
        reader = fs.namespace.reader
        super().__init__(path, reader().names.entry(path), reader)
        self.fs = fs
        self.path = path
        self._block = b""
        self._block_offset = 0

    def __reduce__(self) -> tuple[Callable[..., ReadHandle], tuple[Any, ...]]:
        return _reopened, (self.fs, self.path, self.version, self.tell())

    @property
    def full_name(self) -> str:
        return unstrip(self.path)

    @property
    def details(self) -> dict[str, Any]:
        return self.info()

    def info(self) -> dict[str, Any]:
        """Return what ``fs.info`` does, of what is open."""
        return stat_info(self.stat)

    def readline(self, size: int | None = -1) -> bytes:
        self._check_open()
        limit = -1 if size is None else size
        parts: list[bytes] = []
        while limit:
            block, inside = self._block_here()
            if not block:
                break
            end = block.find(b"\n", inside) + 1 or len(block)
            if limit > 0:
                end = min(end, inside + limit)
                limit -= end - inside
            parts.append(block[inside:end])
            self._offset += end - inside
            if parts[-1].endswith(b"\n"):
                break
        return b"".join(parts)

    def _block_here(self) -> tuple[bytes, int]:
        """Return the block that the next byte lies in, and where; it is of this very version."""
        inside = self._offset - self._block_offset
        if not 0 <= inside < len(self._block):
            self._block = self.read_at(self._offset, LINE_BLOCK_BYTES)
            self._block_offset, inside = self._offset, 0
        return self._block, inside

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Return the bytes up to and with the first ``char``, or to the end; ``blocks`` is how
        much to read at a time."""
        self._check_open()
        found = bytearray()
        while part := self.read_at(self._offset + len(found), blocks or LINE_BLOCK_BYTES):
            begin = max(0, len(found) - len(char) + 1)
            found += part
            end = found.find(char, begin)
            if end >= 0:
                del found[end + len(char) :]
                break
        self._offset += len(found)
        return bytes(found)


def _reopened(fs: DirectFileSystem, path: str, version: str, offset: int) -> ReadHandle:
    handle = ReadHandle(fs, path)
    if handle.version != version:
        raise StaleHandle("the object was replaced since the handle was pickled", path=path)
    handle.seek(offset)
    return handle


def stat_info(known: Stat) -> dict[str, Any]:
    """Return fsspec's description of an object with what is known of its truth: ``validated`` is
    when the origin last confirmed it, in seconds since 1970 (-inf where nobody knows)."""
    return {
        "name": known.path,
        "size": known.size_bytes,
        "type": "file",
        "mtime": known.mtime_s,
        "ETag": known.version,
        "version": known.version,
        "validated": known.validated_unix_s,
        "stale": known.stale,
        "consistency": known.consistency,
    }


def file_info(path: str, *, size: int, version: str, mtime_s: float) -> dict[str, Any]:
    """Return fsspec's description of an object. ``mtime`` is seconds since 1970; ``ETag`` and
    ``version`` are the version token."""
    return {
        "name": path,
        "size": size,
        "type": "file",
        "mtime": mtime_s,
        "ETag": version,
        "version": version,
    }


class WriteHandle(WriteFile):
    """A new version of one object. It appears when ``close`` returns, or, inside a transaction,
    when that ends; leaving a ``with`` block by an exception discards it."""

    def __init__(self, fs: DirectFileSystem, path: str, *, create: bool, autocommit: bool) -> None:
        begin = wire.WriteBegin(path, "create" if create else "overwrite")
        client = fs.namespace.client
        consistency = client.resolver.table.resolve(path).mount.consistency
        super().__init__(path, client.link, begin, consistency)
        self.fs = fs
        self.path = path
        self.autocommit = autocommit

    @property
    def full_name(self) -> str:
        return unstrip(self.path)

    def close(self) -> None:
        if self.autocommit:
            super().close()
        else:
            io.RawIOBase.close(self)  # takes no more; ``commit`` completes it

    def commit(self) -> None:
        """Complete the object. Raises what the origin said."""
        self.autocommit = True
        if not self._ended:
            self._ended = True
            self._finish()
        io.RawIOBase.close(self)


class CompressedHandle(io.BufferedIOBase):
    """A handle seen through one of fsspec's codecs. Closing it closes the handle too, which the
    codecs themselves do not; leaving a ``with`` block by an exception publishes nothing."""

    def __init__(self, handle: ReadHandle | WriteHandle, codec: str) -> None:
        self.handle = handle
        self._stream = compr[codec](handle, mode="rb" if handle.readable() else "wb")

    def readable(self) -> bool:
        return self.handle.readable()

    def writable(self) -> bool:
        return self.handle.writable()

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._stream.read(-1 if size is None else size))

    def read1(self, size: int = -1) -> bytes:
        return self.read(LINE_BLOCK_BYTES if size < 0 else size)

    def write(self, data: Buffer) -> int:  # type: ignore[override]  # io's is positional-only
        self._stream.write(data)
        return memoryview(data).nbytes

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
                self.handle.close()
            finally:
                super().close()

    def discard(self) -> None:
        """Forget what was written."""
        if isinstance(self.handle, WriteHandle):
            self.handle.discard()
        super().close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class TextHandle(io.TextIOWrapper):
    """Text over a handle; leaving a ``with`` block by an exception publishes nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        inner = self.buffer
        if kind is not None and isinstance(inner, WriteHandle | CompressedHandle):
            inner.discard()
        else:
            self.close()


async def read_paid(reader: Reader, path: str, count: int, read: Callable[[], bytes]) -> bytes:
    """Return what ``read`` does, ``count`` bytes all at hand. Where the share of their identity is
    spent the task waits, and the loop goes on. Raises Throttled."""
    payer = reader.payer(path)
    if payer is None:
        return read()
    if not payer.charge(count):
        await payer.settle(path, count)
    with payer.settled():
        return read()


class AsyncHandle:
    """A handle for event loops: what is cached and short is answered at once, all else waits on
    a thread. One call at a time."""

    def __init__(self, handle: ReadHandle | WriteHandle) -> None:
        self._handle = handle

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def tell(self) -> int:
        return self._handle.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    async def read(self, size: int = -1) -> bytes:
        handle = self._handle
        if not isinstance(handle, ReadHandle):
            raise io.UnsupportedOperation("not readable")
        offset = handle.tell()
        left = max(0, handle.size - offset)
        length = left if size < 0 else min(size, left)
        reader = handle.fs.namespace.reader()
        if length > INLINE_BYTES or not reader.is_hit(handle.path, offset, length):
            identity = reader.names.identity(handle.path)
            return await in_thread_of(identity, handle.read, size)
        return await read_paid(reader, handle.path, length, partial(handle.read, size))

    async def write(self, data: Buffer) -> int:
        if not isinstance(self._handle, WriteHandle):
            raise io.UnsupportedOperation("not writable")
        return await in_thread(self._handle.write, data)

    async def close(self) -> None:
        await in_thread(self._handle.close)

    async def discard(self) -> None:
        if isinstance(self._handle, WriteHandle):
            await in_thread(self._handle.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.close() if kind is None else self.discard())
