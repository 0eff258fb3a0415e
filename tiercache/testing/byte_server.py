"""The smallest HTTP server worth measuring a proxy against: ``GET /N`` answers N zero bytes, up to
``max_bytes``.

It takes uploads too and forgets them. Not an object store: for behaviour use ``object_servers``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import Self

ONE_WRITE_BYTES = 1024 * 1024  # up to here head and body leave in one system call
RECEIVE_BYTES = 512 * 1024
_ANSWER = b"HTTP/1.1 %d -\r\nContent-Length: %d\r\nContent-Type: application/octet-stream\r\n\r\n"


class ByteServer:
    """A context manager. One thread a connection; all of them end with ``stop``."""

    def __init__(self, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        # Constant after construction.
        self._zeros = memoryview(bytes(max_bytes))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        # Guarded by self._lock.
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._request_count = 0

    @property
    def request_count(self) -> int:
        """The requests answered so far."""
        with self._lock:
            return self._request_count

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the listener and every connection. Idempotent."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._connections:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # closed by stop()
                return
            with self._lock:
                self._connections.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pending: bytearray | None = bytearray()
        try:
            with sock, contextlib.suppress(OSError):
                while pending is not None:
                    pending = self._answer_one(sock, pending)
        finally:
            with self._lock:
                self._connections.discard(sock)

    def _answer_one(self, sock: socket.socket, pending: bytearray) -> bytearray | None:
        """Return what followed the request; None where the client is gone."""
        while (end := pending.find(b"\r\n\r\n")) < 0:
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                return None
            pending += data
        method, target = bytes(pending[:end]).split(b" ", 2)[:2]
        length = re.search(rb"\r\ncontent-length: *(\d+)", bytes(pending[:end]), re.IGNORECASE)
        rest = self._drop_body(sock, pending[end + 4 :], int(length[1]) if length else 0)
        if rest is None:
            return None
        self._send(sock, int(target[1:] or b"0") if method == b"GET" else 0)
        with self._lock:
            self._request_count += 1
        return rest

    def _drop_body(self, sock: socket.socket, data: bytearray, left: int) -> bytearray | None:
        while len(data) < left:
            left -= len(data)
            data = bytearray(sock.recv(RECEIVE_BYTES))
            if not data:
                return None
        return data[left:]

    def _send(self, sock: socket.socket, count: int) -> None:
        status, body = (200, self._zeros[:count]) if count <= len(self._zeros) else (404, b"")
        head = _ANSWER % (status, len(body))
        if len(body) <= ONE_WRITE_BYTES:
            sock.sendall(head + body)
        else:
            sock.sendall(head)
            sock.sendall(body)
