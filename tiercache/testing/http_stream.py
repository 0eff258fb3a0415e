"""Just enough HTTP/1.1 to relay messages: heads are parsed, bodies only measured.

Bodies move through one reused block, socket to socket, so that a relay costs little more than
the two system calls a block.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BLOCK_BYTES = 512 * 1024  # beyond 256 KiB the copy, not the system call, is the cost
HEAD_LIMIT_BYTES = 64 * 1024  # servers themselves allow 8-16 KiB

BeforeSend = Callable[[int], Awaitable[int]]


class BrokenStream(ConnectionError):
    """The peer closed, or sent what is not HTTP."""


@dataclass(slots=True)
class Head:
    """A start line and its headers, names as sent; ``raw`` is what to forward."""

    start: str
    headers: list[tuple[str, str]]
    raw: bytes

    def get(self, name: str) -> str:
        """Return the header's first value, or an empty string."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), "")

    def without(self, *names: str) -> bytes:
        """Return the bytes of the head less these headers."""
        dropped = {name.lower() for name in names}
        lines = [self.start]
        lines += [f"{key}: {value}" for key, value in self.headers if key.lower() not in dropped]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def chunked(self) -> bool:
        return "chunked" in self.get("transfer-encoding").lower()

    def has_body(self) -> bool:
        """Return whether a request with this head goes on after it."""
        return self.chunked() or bool(self.content_length())

    def content_length(self) -> int | None:
        text = self.get("content-length")
        return int(text) if text else None


class HttpStream:
    """One connected non-blocking socket. Owned by one task at a time in each direction."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._block = memoryview(bytearray(BLOCK_BYTES))

    async def send(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def drain(self, *, timeout_s: float) -> None:
        """Wait until the peer's kernel has everything that was sent, or the time is over."""
        deadline_s = self._loop.time() + timeout_s
        unsent = bytearray(4)
        while self._loop.time() < deadline_s:
            fcntl.ioctl(self.sock, termios.TIOCOUTQ, unsent)
            if not any(unsent):
                return
            await asyncio.sleep(0.002)

    async def _fill(self) -> bool:
        """Take in more bytes; return whether there were any."""
        count = await self._loop.sock_recv_into(self.sock, self._block)
        self._pending += self._block[:count]
        return count > 0

    async def read_head(self) -> Head | None:
        """Return the next head, or None where the peer closed between messages."""
        while (end := self._pending.find(b"\r\n\r\n")) < 0:
            if len(self._pending) > HEAD_LIMIT_BYTES:
                raise BrokenStream("the head is too long")
            if not await self._fill():
                if self._pending:
                    raise BrokenStream("closed within a head")
                return None
        raw = bytes(self._pending[: end + 4])
        del self._pending[: end + 4]
        start, *lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        return Head(start, headers, raw)

    async def relay_length(
        self, target: HttpStream | None, length: int | None, before_send: BeforeSend
    ) -> None:
        """Move ``length`` bytes (None: up to the end of the stream) to the target, or drop them.

        ``before_send(count)`` is awaited with the bytes at hand and returns how many may go now;
        the rest stay for the next turn.
        """
        left = length
        while left is None or left > 0:
            if not self._pending:
                wanted = BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)
                count = await self._loop.sock_recv_into(self.sock, self._block[:wanted])
                if not count:
                    if left is None:
                        return
                    raise BrokenStream(f"closed {left} bytes early")
                await self._pass_on(self._block[:count], target, before_send)
            else:
                count = len(self._pending) if left is None else min(left, len(self._pending))
                if count == len(self._pending):
                    data, self._pending = self._pending, bytearray()
                else:
                    data = self._pending[:count]
                    del self._pending[:count]
                await self._pass_on(memoryview(data), target, before_send)
            if left is not None:
                left -= count

    async def _pass_on(
        self, data: memoryview, target: HttpStream | None, before_send: BeforeSend
    ) -> None:
        while data:
            count = await before_send(len(data))
            if target is not None:
                await target.send(data[:count])
            data = data[count:]

    async def relay_chunked(self, target: HttpStream | None, before_send: BeforeSend) -> None:
        """Move a chunked body with its framing and trailers; framing counts as no body bytes."""
        while True:
            line = await self._read_line()
            if target is not None:
                await target.send(line)
            length = int(line.split(b";")[0], 16)
            if length == 0:
                break
            await self.relay_length(target, length, before_send)
            ending = await self._read_line()
            if target is not None:
                await target.send(ending)
        while True:
            trailer = await self._read_line()
            if target is not None:
                await target.send(trailer)
            if trailer == b"\r\n":
                return

    async def _read_line(self) -> bytes:
        while (end := self._pending.find(b"\r\n")) < 0:
            if not await self._fill():
                raise BrokenStream("closed within a chunked body")
        line = bytes(self._pending[: end + 2])
        del self._pending[: end + 2]
        return line
