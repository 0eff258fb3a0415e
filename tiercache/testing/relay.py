"""One request and its answer on the way through the proxy. All of it runs on its event loop."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from dataclasses import dataclass, field

from tiercache.testing.conditions import Conditions
from tiercache.testing.http_stream import BrokenStream, Head, HttpStream
from tiercache.testing.pacing import Lane, sleep_until

DRAIN_TIMEOUT_S = 5.0  # a client that does not read gets its reset all the same
OWN_DELAY_S = 0.00015
"""Measured from a delay's end to the client's first byte: the timer's slack of 50 µs, a turn of the
loop, the head on its way. Taken off every delay, so that 3 ms are 3 ms."""

UPLOAD_REST_S = 1.0  # for the last block's bookkeeping, when the answer is already through


class OrderlyClose(Exception):
    """The connection is to end with FIN, not with a reset."""


@dataclass(slots=True)
class Exchange:
    """One request as it passed. ``status`` 0: no answer was delivered."""

    method: str
    path: str  # the target as sent: quoted, with its query
    byte_range: str  # the Range header, "" for none
    status: int = 0
    body_bytes: int = 0  # of the answer, delivered to the client
    upload_bytes: int = 0  # of the request, taken from the client
    started_s: float = field(default_factory=time.monotonic)

    def span(self) -> tuple[int, int] | None:
        """Return the asked range as (start, end), end exclusive; None for another form or none."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.byte_range)
        return (int(found[1]), int(found[2]) + 1) if found else None


class ClientConnection:
    """A client's stream, and the pace of its connection, which outlasts a request."""

    def __init__(self, stream: HttpStream, conditions: Conditions) -> None:
        self.stream = stream
        self.down: Lane
        self.up: Lane
        self.down, self.up = conditions.shaper.lanes()


class Relay:
    """One request and its answer."""

    def __init__(self, conditions: Conditions, connection: ClientConnection, head: Head) -> None:
        method, path, _ = head.start.split(" ", 2)
        byte_range = head.get("range") or head.get("x-ms-range")
        self._conditions = conditions
        self._shaper = conditions.shaper
        self._connection = connection
        self._client = connection.stream
        self._head = head
        self.exchange = Exchange(method, path, byte_range)
        self.fault = conditions.fault_for(method, path)
        self._own_status, self._retry_after_s = self.fault.respond_status, self.fault.retry_after_s
        if not self._own_status and not self._shaper.admit_request():
            network = self._shaper.network
            self._own_status, self._retry_after_s = network.throttle_status, network.retry_after_s
        self._delay_s = self._shaper.first_byte_delay_s()
        self._asked_at_s = self.exchange.started_s  # when the request's last byte had come

    @property
    def needs_server(self) -> bool:
        """Whether the server is to see this request."""
        return not self._own_status

    async def run(self, upstream: HttpStream | None) -> bool:
        """Return whether both connections can carry another request."""
        if upstream is None or not self.needs_server:
            return await self._answer_ourselves()
        if self.fault.ignore_if_match:
            await upstream.send(self._head.without("if-match", "if-none-match", "authorization"))
        else:
            await upstream.send(self._head.raw)
        if not self._head.has_body():
            return await self._answer(upstream)
        upload = asyncio.ensure_future(self._upload_or_hang_up(upstream))
        try:
            reusable = await self._answer(upstream)
            await asyncio.wait({upload}, timeout=UPLOAD_REST_S)
            # An answer before the end of the upload (412, 503): what follows is unclear.
            return reusable and upload.done() and not upload.exception()
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    # The request's body

    async def _upload_or_hang_up(self, upstream: HttpStream) -> None:
        """Upload; if the client fails midway, end the connection whose answer is awaited."""
        try:
            await self._upload(upstream)
        except (OSError, ValueError):
            # Its reader wakes up, and its connection is reset. An orderly end would do harm:
            # SeaweedFS takes a head, no body and FIN for an empty object, whatever the length.
            upstream.sock.shutdown(socket.SHUT_RD)
            raise

    async def _upload(self, upstream: HttpStream | None) -> None:
        self._connection.up.begin()
        if self._head.chunked():
            await self._client.relay_chunked(upstream, self._admit_upload)
        else:
            length = self._head.content_length() or 0
            await self._client.relay_length(upstream, length, self._admit_upload)

    async def _admit_upload(self, count: int) -> int:
        await self._conditions.pass_black_hole()
        # A fault's rate is that of answers, so none slows an upload.
        count = await self._connection.up.pass_some(count, 0.0, self._shaper.network)
        self.exchange.upload_bytes += count
        self._asked_at_s = time.monotonic()
        return count

    # The answer

    async def _answer(self, upstream: HttpStream) -> bool:
        while True:
            head = await upstream.read_head()
            if head is None:
                raise BrokenStream("the server closed without an answer")
            status = int(head.start.split(" ", 2)[1])
            if status >= 200:
                break
            await self._client.send(head.raw)
        await self._conditions.pass_black_hole()
        if self.fault.lose_answer:
            raise BrokenStream("the answer is lost")
        await self._first_byte()
        await self._client.send(head.raw)
        self.exchange.status = status
        return await self._answer_body(upstream, head, status)

    async def _first_byte(self) -> None:
        """Wait until the answer may begin: the network's delay, which runs since the request was
        complete, and the fault's, which begins now."""
        due_s = self._asked_at_s + self._delay_s - OWN_DELAY_S if self._delay_s else 0.0
        if self.fault.first_byte_delay_s:
            due_s = max(due_s, time.monotonic()) + self.fault.first_byte_delay_s
        if due_s:
            await sleep_until(due_s)
            await self._conditions.pass_black_hole()

    async def _answer_body(self, upstream: HttpStream, head: Head, status: int) -> bool:
        length = head.content_length()
        closes = "close" in head.get("connection").lower()
        if self.exchange.method == "HEAD" or status in (204, 304):
            return not closes
        self._connection.down.begin()
        if head.chunked():
            await upstream.relay_chunked(self._client, self._admit)
        else:
            await self._admit_nothing_of(length)
            await upstream.relay_length(self._client, length, self._admit)
        return not closes and (length is not None or head.chunked())

    async def _admit_nothing_of(self, length: int | None) -> None:
        """Let a cut at zero bytes act on an answer before its first byte arrives."""
        if length != 0 and self._cut_bytes() == 0:
            await self._cut()

    async def _admit(self, count: int) -> int:
        """Return how many of ``count`` body bytes may be delivered now."""
        await self._conditions.pass_black_hole()
        cut_bytes = self._cut_bytes()
        if cut_bytes is not None:
            left = cut_bytes - self.exchange.body_bytes
            if left <= 0:
                await self._cut()
            count = min(count, left)
        count = await self._connection.down.pass_some(
            count, self.fault.connection_bytes_per_s, self._shaper.network
        )
        self.exchange.body_bytes += count
        return count

    def _cut_bytes(self) -> int | None:
        reset, truncate = self.fault.reset_after_bytes, self.fault.truncate_after_bytes
        return truncate if reset is None else reset

    async def _cut(self) -> None:
        if self.fault.reset_after_bytes is None:
            if not self.fault.truncate_stalls:
                raise OrderlyClose
            await self._conditions.until_healed()
        # A reset discards what is still on its way: let the promised bytes arrive first.
        await self._client.drain(timeout_s=DRAIN_TIMEOUT_S)
        raise BrokenStream("cut")

    async def _answer_ourselves(self) -> bool:
        reusable = not self._head.get("expect")
        if reusable:
            await self._upload(None)
        lines = [
            f"HTTP/1.1 {self._own_status} Injected",
            "Content-Length: 0",  # clients then go by the status alone
            "Connection: " + ("keep-alive" if reusable else "close"),
        ]
        if self._retry_after_s is not None:
            lines.append(f"Retry-After: {self._retry_after_s}")
        await self._first_byte()
        await self._client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.exchange.status = self._own_status
        return reusable
