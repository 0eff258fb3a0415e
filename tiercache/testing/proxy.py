"""A faulty network in front of any HTTP server: counts what passes, breaks what a test asks.

The proxy relays HTTP/1.1 with the client's ``Host`` header untouched, so signatures over it stay
valid. It runs an event loop on a thread of its own; all public methods are thread safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from tiercache.testing.http_stream import BrokenStream, Head, HttpStream
from tiercache.testing.processes import free_ports

PACED_BLOCK_BYTES = 16 * 1024  # small enough to make a slow link smooth
BIND_ATTEMPTS = 5
CONTROL_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 5.0  # a client that does not read gets its reset all the same
UPLOAD_REST_S = 1.0  # for the last block's bookkeeping, when the answer is already through
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to requests that match; several fields combine where that makes sense.

    Matching: ``methods`` (empty: all), ``path_contains`` (of the decoded target), and at most
    ``times`` requests (None: for ever).
    """

    methods: tuple[str, ...] = ()
    path_contains: str = ""
    times: int | None = None

    first_byte_delay_s: float = 0.0
    """Each answer's head leaves this much after it is there."""
    connection_bytes_per_s: float = 0.0
    """Answers on one connection flow no faster (0: unlimited)."""
    respond_status: int = 0
    """Answer with this status without asking the server."""
    retry_after_s: int | None = None
    """The ``Retry-After`` header that goes with ``respond_status``."""
    lose_answer: bool = False
    """Let the server carry the request out, then drop the connection instead of answering."""
    ignore_if_match: bool = False
    """Strip ``If-Match``, as of a server that ignores it. Its signature goes too, so the server
    must let anyone read: moto, fake-gcs, or SeaweedS3 with a bucket named ``open-…``."""
    reset_after_bytes: int | None = None
    """Reset the connection after this many body bytes of the answer (0: after its head)."""
    truncate_after_bytes: int | None = None
    """Deliver this many body bytes, then close in good order, or, with ``truncate_stalls``,
    stay silent with the connection open until ``heal``."""
    truncate_stalls: bool = False


NO_FAULT = Fault()


class _OrderlyClose(Exception):
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


class FaultyProxy:
    """A context manager; ``url`` stands for ``upstream_url``, whose path it keeps.

    ``total_bytes_per_s`` bounds all answers together (0: unlimited).
    """

    def __init__(self, upstream_url: str, *, total_bytes_per_s: float = 0.0) -> None:
        # Constant after construction.
        parts = urlsplit(upstream_url)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 80)
        self._path = parts.path.rstrip("/")
        self._pacer = _Pacer(total_bytes_per_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="faulty-proxy", daemon=True)
        # Owned by the event loop.
        self._connections: set[asyncio.Task[None]] = set()
        self._acceptor: asyncio.Task[None] | None = None
        self._flowing = asyncio.Event()  # cleared: a black hole
        self._healed = asyncio.Event()  # set and replaced by heal()
        # Guarded by self._lock.
        self._lock = threading.Lock()
        self._log: list[Exchange] = []
        self._faults: list[tuple[Fault, list[int]]] = []
        self._in_flight = 0
        self._peak_in_flight = 0
        # Written by start().
        self.port = 0

    @property
    def url(self) -> str:
        """The URL to give to clients instead of the server's."""
        return f"http://127.0.0.1:{self.port}{self._path}"

    # Life

    def start(self) -> Self:
        self._thread.start()
        for attempt in range(BIND_ATTEMPTS):
            self.port = free_ports(1)[0]
            try:
                self._control(self._listen())
            except OSError:
                if attempt == BIND_ATTEMPTS - 1:
                    raise
            else:
                break
        return self

    def stop(self) -> None:
        """Drop all connections and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._control(self._drop_everything())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CONTROL_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Faults

    def inject(self, fault: Fault) -> Fault:
        """Let the fault act on requests from now on. The latest matching fault acts, alone."""
        with self._lock:
            self._faults.insert(0, (fault, [0]))
        return fault

    def black_hole(self) -> None:
        """Swallow everything: connections are accepted, and no byte moves until ``heal``."""
        self._control(self._set_flowing(False))

    def refuse(self) -> None:
        """Reset every connection and refuse new ones until ``heal``."""
        self._control(self._drop_everything())

    def drop_connections(self) -> None:
        """Reset every open connection; new ones are welcome."""
        self._control(self._drop_everything())
        self._control(self._listen())

    def heal(self) -> None:
        """End all faults. Connections caught in a black hole or a stall are reset."""
        with self._lock:
            self._faults.clear()
        self._control(self._heal())

    # The log

    def exchanges(self, method: str = "", path_contains: str = "") -> list[Exchange]:
        """Return the requests so far, in order of arrival, those in flight included."""
        with self._lock:
            log = list(self._log)
        return [
            exchange
            for exchange in log
            if method in ("", exchange.method) and path_contains in unquote(exchange.path)
        ]

    def counts(self) -> Counter[str]:
        """Return the number of requests by method."""
        return Counter(exchange.method for exchange in self.exchanges())

    def bytes_out(self, path_contains: str = "") -> int:
        """Return the body bytes delivered for matching paths."""
        return sum(found.body_bytes for found in self.exchanges(path_contains=path_contains))

    @property
    def peak_in_flight(self) -> int:
        """The most requests ever under way at once since ``clear``."""
        with self._lock:
            return self._peak_in_flight

    def clear(self) -> None:
        """Forget the log."""
        with self._lock:
            self._log.clear()
            self._peak_in_flight = self._in_flight

    # The event loop's side

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._flowing.set()
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _control(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CONTROL_TIMEOUT_S)

    async def _listen(self) -> None:
        if self._acceptor is None:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            listener.setblocking(False)
            self._acceptor = self._loop.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                sock, _ = await self._loop.sock_accept(listener)
                task = self._loop.create_task(self._serve(sock))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)

    async def _drop_everything(self) -> None:
        tasks = list(self._connections)
        if self._acceptor is not None:
            tasks.append(self._acceptor)
            self._acceptor = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _heal(self) -> None:
        self._healed.set()
        self._healed = asyncio.Event()
        self._flowing.set()
        await self._listen()

    async def _serve(self, sock: socket.socket) -> None:
        """Relay one client connection over one upstream connection until either ends."""
        client = HttpStream(sock)
        upstream: HttpStream | None = None
        spent = False
        try:
            while (head := await client.read_head()) is not None:
                await self._pass_black_hole()
                relay = _Relay(self, client, head)
                with self._logged(relay.exchange):
                    if upstream is not None and spent:
                        upstream.sock.close()
                        upstream = None
                    if upstream is None and not relay.fault.respond_status:
                        upstream = HttpStream(await self._connect())
                    if not await relay.run(upstream):
                        break
                # fake-gcs-server closes after a 416 whose body it did not announce.
                spent = relay.exchange.status == 416
        except _OrderlyClose:
            pass
        except (OSError, ValueError):
            _make_close_reset(sock)
        except asyncio.CancelledError:
            _make_close_reset(sock)
            raise
        finally:
            sock.close()
            if upstream is not None:
                upstream.sock.close()

    async def _connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await self._loop.sock_connect(sock, self._upstream)
        except BaseException:
            sock.close()
            raise
        return sock

    @contextlib.contextmanager
    def _logged(self, exchange: Exchange) -> Any:
        with self._lock:
            self._log.append(exchange)
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    async def _pass_black_hole(self) -> None:
        if not self._flowing.is_set():
            await self._flowing.wait()
            raise BrokenStream("lost in a black hole")

    async def _until_healed(self) -> None:
        await self._healed.wait()

    def _fault_for(self, method: str, path: str) -> Fault:
        decoded = unquote(path)
        with self._lock:
            for fault, used in self._faults:
                if fault.methods and method not in fault.methods:
                    continue
                if fault.path_contains not in decoded:
                    continue
                if fault.times is not None and used[0] >= fault.times:
                    continue
                used[0] += 1
                return fault
        return NO_FAULT


class _Relay:
    """One request and its answer. Lives on the proxy's event loop."""

    def __init__(self, proxy: FaultyProxy, client: HttpStream, head: Head) -> None:
        method, path, _ = head.start.split(" ", 2)
        byte_range = head.get("range") or head.get("x-ms-range")
        self._proxy = proxy
        self._client = client
        self._head = head
        self.exchange = Exchange(method, path, byte_range)
        self.fault = proxy._fault_for(method, path)
        self._pacer = _Pacer(self.fault.connection_bytes_per_s)

    async def run(self, upstream: HttpStream | None) -> bool:
        """Return whether both connections can carry another request."""
        if self.fault.respond_status or upstream is None:
            return await self._answer_ourselves()
        if self.fault.ignore_if_match:
            await upstream.send(self._head.without("if-match", "authorization"))
        else:
            await upstream.send(self._head.raw)
        upload = asyncio.ensure_future(self._upload_or_hang_up(upstream))
        try:
            reusable = await self._answer(upstream)
            await asyncio.wait({upload}, timeout=UPLOAD_REST_S)
            # An answer before the end of the upload (412, 503): what follows is unclear.
            return reusable and upload.done() and not upload.exception()
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _upload_or_hang_up(self, upstream: HttpStream) -> None:
        """Upload; if the client fails midway, end the connection whose answer is awaited."""
        try:
            await self._upload(upstream)
        except (OSError, ValueError):
            upstream.sock.shutdown(socket.SHUT_RDWR)
            raise

    async def _upload(self, upstream: HttpStream | None) -> None:
        if self._head.chunked():
            await self._client.relay_chunked(upstream, self._count_upload)
        else:
            length = self._head.content_length() or 0
            await self._client.relay_length(upstream, length, self._count_upload)

    async def _count_upload(self, count: int) -> int:
        await self._proxy._pass_black_hole()
        self.exchange.upload_bytes += count
        return count

    async def _answer(self, upstream: HttpStream) -> bool:
        while True:
            head = await upstream.read_head()
            if head is None:
                raise BrokenStream("the server closed without an answer")
            status = int(head.start.split(" ", 2)[1])
            if status >= 200:
                break
            await self._client.send(head.raw)
        await self._proxy._pass_black_hole()
        if self.fault.lose_answer:
            raise BrokenStream("the answer is lost")
        if self.fault.first_byte_delay_s:
            await asyncio.sleep(self.fault.first_byte_delay_s)
            await self._proxy._pass_black_hole()
        await self._client.send(head.raw)
        self.exchange.status = status
        return await self._answer_body(upstream, head, status)

    async def _answer_body(self, upstream: HttpStream, head: Head, status: int) -> bool:
        length = head.content_length()
        closes = "close" in head.get("connection").lower()
        if self.exchange.method == "HEAD" or status in (204, 304):
            return not closes
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
        await self._proxy._pass_black_hole()
        cut_bytes = self._cut_bytes()
        if cut_bytes is not None:
            left = cut_bytes - self.exchange.body_bytes
            if left <= 0:
                await self._cut()
            count = min(count, left)
        if self._pacer.limited or self._proxy._pacer.limited:
            count = min(count, PACED_BLOCK_BYTES)
            await self._pacer.take(count)
            await self._proxy._pacer.take(count)
        self.exchange.body_bytes += count
        return count

    def _cut_bytes(self) -> int | None:
        reset, truncate = self.fault.reset_after_bytes, self.fault.truncate_after_bytes
        return truncate if reset is None else reset

    async def _cut(self) -> None:
        if self.fault.reset_after_bytes is None:
            if not self.fault.truncate_stalls:
                raise _OrderlyClose
            await self._proxy._until_healed()
        # A reset discards what is still on its way: let the promised bytes arrive first.
        await self._client.drain(timeout_s=DRAIN_TIMEOUT_S)
        raise BrokenStream("cut")

    async def _answer_ourselves(self) -> bool:
        reusable = not self._head.get("expect")
        if reusable:
            await self._upload(None)
        fault = self.fault
        lines = [
            f"HTTP/1.1 {fault.respond_status} Injected",
            "Content-Length: 0",  # clients then go by the status alone
            "Connection: " + ("keep-alive" if reusable else "close"),
        ]
        if fault.retry_after_s is not None:
            lines.append(f"Retry-After: {fault.retry_after_s}")
        if fault.first_byte_delay_s:
            await asyncio.sleep(fault.first_byte_delay_s)
        await self._client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.exchange.status = fault.respond_status
        return reusable


class _Pacer:
    """Lets bytes through at a rate. Owned by the event loop."""

    def __init__(self, bytes_per_s: float) -> None:
        self.limited = bytes_per_s > 0
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    async def take(self, count: int) -> None:
        if not self.limited:
            return
        now_s = time.monotonic()
        self._free_at_s = max(now_s, self._free_at_s) + count / self._bytes_per_s
        await asyncio.sleep(self._free_at_s - now_s)


def _make_close_reset(sock: socket.socket) -> None:
    """Let the next close send RST rather than FIN."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
