"""File objects: reading one version, writing a new one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from time import time
from types import TracebackType
from typing import Self

from tiercache import wire
from tiercache.client.entry import Entry
from tiercache.client.link import Link
from tiercache.client.reader import Reader
from tiercache.client.spans import clamp
from tiercache.errors import StaleHandle
from tiercache.model import Consistency, Stat
from tiercache.ports import Buffer

# One frame a part: large enough that the round trip is noise, small enough for the memory.
PART_BYTES = 4 << 20
_STRONG = Consistency.STRONG


class ReadFile(io.RawIOBase):
    """One open handle reads one version. Raises StaleHandle when that version is gone; of a strong
    mount, when it is not the current one any more, which each read asks first.

    Not thread safe but for ``read_at``. ``read`` returns all it was asked for, except at the end.
    """

    # Set where ``_reader`` asks first
    _asks_nobody: Callable[[], Reader] | None = None

    def __init__(self, path: str, entry: Entry, reader: Callable[[], Reader]) -> None:
        # ``reader`` gives the process's own reader, so that a handle survives a fork.
        self.name = path
        self.mode = "rb"
        self._entry = entry
        self._reader = reader
        if entry.mount.consistency is _STRONG:
            self._asks_nobody = reader
            self._reader = self._validated_reader
        self._offset = 0
        self.size = entry.record.size_bytes

    @property
    def version(self) -> str:
        return self._entry.record.token

    @property
    def stat(self) -> Stat:
        """What is known of the open version now: when the origin last confirmed it, by this handle
        or any look-up of this process since, and whether it is served stale."""
        return (self._asks_nobody or self._reader)().names.stat_of(self._entry)

    def _validated_reader(self) -> Reader:
        """Each read of a strong mount asks first. Raises StaleHandle where the name has moved."""
        assert self._asks_nobody is not None
        reader = self._asks_nobody()
        self._entry = reader.names.validated(self._entry)
        return reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        match whence:
            case os.SEEK_SET:
                target = offset
            case os.SEEK_CUR:
                target = self._offset + offset
            case os.SEEK_END:
                target = self.size + offset
            case _:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if target < 0:
            raise ValueError(f"negative seek position {target}")
        self._offset = target
        return target

    def read(self, size: int | None = -1) -> bytes:
        self._check_open()
        length = None if size is None or size < 0 else size
        data = self.read_at(self._offset, length)
        self._offset += len(data)
        return data

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]  # io's is positional-only
        self._check_open()
        view = memoryview(buffer).cast("B")
        reader = self._reader()
        try:
            self._entry, count = reader.entry_into(self._entry, self._offset, view)
        except StaleHandle as error:
            again = reader.names.rebound(self._entry, error)
            self._entry, count = reader.entry_into(again, self._offset, view)
        self._offset += count
        return count

    def readinto1(self, buffer: Buffer) -> int:
        return self.readinto(buffer)

    def read_at(self, offset: int, length: int | None) -> bytes:
        """Read without moving; safe from many threads."""
        reader = self._reader()
        entry = self._entry
        start, end = clamp(offset, length, self.size)
        if start == end:
            return b""
        data = reader.read_verified(entry, start, end)
        if data is None:
            try:
                self._entry, data = reader.read_entry(entry, start, end - start)
            except StaleHandle as error:
                again = reader.names.rebound(entry, error)
                self._entry, data = reader.read_entry(again, start, end - start)
        return data

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")


class WriteFile(io.RawIOBase):
    """Writes through to the origin; the object appears, whole, when ``close`` returns.

    Leaving a ``with`` block by an exception discards it. Not thread safe.
    """

    _ended = True  # a writer that never began has nothing to take back

    def __init__(
        self, path: str, link: Link, begin: wire.WriteBegin, consistency: Consistency
    ) -> None:
        """``consistency`` is that of the path's mount."""
        self.name = path
        self.mode = "xb" if begin.mode == "create" else "wb"
        self._link = link
        self._consistency = consistency
        self._write = 0
        self._buffer = bytearray()
        self._offset = 0
        self._ended = False
        self.stat: Stat | None = None
        self._write = link.request(begin, wire.WriteStarted).write

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def write(self, data: Buffer) -> int:  # type: ignore[override]  # io's is positional-only
        if self.closed or self._ended:
            raise ValueError("I/O operation on closed file.")
        view = memoryview(data).cast("B")
        if len(self._buffer) + len(view) < PART_BYTES:
            self._buffer += view
        else:
            self._send_all(view)
        self._offset += len(view)
        return len(view)

    def _send_all(self, view: memoryview) -> None:
        if self._buffer:
            first = PART_BYTES - len(self._buffer)
            self._send(bytes(self._buffer) + bytes(view[:first]))
            self._buffer.clear()
            view = view[first:]
        while len(view) >= PART_BYTES:
            self._send(bytes(view[:PART_BYTES]))
            view = view[PART_BYTES:]
        self._buffer += view

    def _send(self, part: bytes) -> None:
        self._link.request(wire.WriteData(self._write, part), wire.Done)

    def close(self) -> None:
        """Complete the object. Raises what the origin said; nothing is visible then."""
        if self.closed:
            return
        try:
            if not self._ended:
                self._ended = True
                self._finish()
        finally:
            super().close()

    def _finish(self) -> None:
        try:
            if self._buffer:
                self._send(bytes(self._buffer))
                self._buffer.clear()
            found = self._link.request(wire.WriteFinish(self._write), wire.Found)
        except BaseException:
            self._link.tell_best_effort(wire.WriteAbort(self._write))
            raise
        self.stat = Stat(
            path=self.name,
            kind=found.kind,
            size_bytes=found.size_bytes,
            version=found.token,
            mtime_s=found.mtime_s,
            age_s=0.0,
            validated_unix_s=time(),
            consistency=self._consistency,
        )

    def discard(self) -> None:
        """Forget what was written; nothing becomes visible."""
        if not self._ended:
            self._ended = True
            self._link.request(wire.WriteAbort(self._write), wire.Done)
        super().close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
        else:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        # A writer that was forgotten must not publish half an object.
        if not self._ended and self._write:
            self._ended = True
            self._link.tell_best_effort(wire.WriteAbort(self._write))
