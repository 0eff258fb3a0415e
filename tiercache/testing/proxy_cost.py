"""What the proxy itself costs, so that nobody takes its milliseconds for somebody else's.

Two measurements, straight and through an unshaped proxy in a process of its own: GETs of 64 KiB
one after the other, and large GETs one after the other. The client is a bare socket: it adds next
to nothing.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tiercache.testing.byte_server import ByteServer
from tiercache.testing.proxy_process import ProxyProcess

SMALL_PATH = "/65536"
LARGE_PATH = "/67108864"
WARM_UP_COUNT = 20
RECEIVE_BYTES = 1024 * 1024
TIMEOUT_S = 30.0
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCost:
    """Medians of one run on one machine."""

    added_s: float
    """To a GET of 64 KiB: the median through the proxy less the median straight."""
    added_cpu_s: float
    """The proxy's CPU seconds a GET of 64 KiB."""
    cpu_s_per_gb: float
    """The proxy's CPU seconds for 10⁹ bytes of large answers."""
    max_bytes_per_s: float
    """Large answers through the proxy, on one connection."""
    straight_bytes_per_s: float
    """The same without it: the bound."""

    def __str__(self) -> str:
        return (
            f"proxy: +{self.added_s * 1e6:.0f} µs a request of 64 KiB "
            f"({self.added_cpu_s * 1e6:.0f} µs of CPU), {self.cpu_s_per_gb:.2f} CPU s a GB, "
            f"at most {self.max_bytes_per_s / 1e6:.0f} MB/s "
            f"(straight {self.straight_bytes_per_s / 1e6:.0f})"
        )


def measure_own_cost(
    server_url: str | None = None,
    *,
    small_path: str = SMALL_PATH,
    large_path: str = LARGE_PATH,
    small_count: int = 500,
    large_count: int = 8,
) -> ProxyCost:
    """Measure and return the cost; takes about two seconds with the defaults.

    ``server_url`` is a server of the caller's whose paths anyone may read (the Host header sent
    is the server's, so a presigned path will do); None: a trivial server, started here. The large
    object should be of some 64 MiB. Raises ``OSError`` where an answer is not a 200 with its
    length.
    """
    with _server(server_url) as url:
        host = urlsplit(url).netloc
        straight_s, _ = _timed(url, host, small_path, small_count)
        straight_large_s, large_bytes = _timed(url, host, large_path, large_count)
        with ProxyProcess(url) as proxy:
            # CPU seconds are of what comes between, the first connection's set-up excluded.
            _timed(proxy.url, host, small_path, WARM_UP_COUNT)
            before_s = proxy.cpu_s()
            through_s, _ = _timed(proxy.url, host, small_path, small_count)
            between_s = proxy.cpu_s()
            large_s, _ = _timed(proxy.url, host, large_path, large_count)
            after_s = proxy.cpu_s()
    return ProxyCost(
        added_s=through_s - straight_s,
        added_cpu_s=(between_s - before_s) / small_count,
        cpu_s_per_gb=(after_s - between_s) / (large_count * large_bytes / _GB),
        max_bytes_per_s=large_bytes / large_s,
        straight_bytes_per_s=large_bytes / straight_large_s,
    )


@contextmanager
def _server(server_url: str | None) -> Iterator[str]:
    if server_url is not None:
        yield server_url
        return
    with ByteServer() as server:
        yield server.url


def _timed(url: str, host: str, path: str, count: int) -> tuple[float, int]:
    """GET the path ``count`` times on one connection; return (median seconds, body bytes)."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    target = parts.path.rstrip("/") + path
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    block = bytearray(RECEIVE_BYTES)
    spans_s = []
    body_bytes = 0
    address = (parts.hostname, parts.port or 80)
    with socket.create_connection(address, timeout=TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            started_s = time.perf_counter()
            sock.sendall(request)
            body_bytes = _receive(sock, block)
            spans_s.append(time.perf_counter() - started_s)
    return statistics.median(spans_s), body_bytes


def _receive(sock: socket.socket, block: bytearray) -> int:
    """Take one whole answer in; return its body's length."""
    head = bytearray()
    while (end := head.find(b"\r\n\r\n")) < 0:
        count = sock.recv_into(block)
        if not count:
            raise ConnectionError("closed within an answer's head")
        head += block[:count]
    status, *lines = head[:end].lower().split(b"\r\n")
    lengths = [line for line in lines if line.startswith(b"content-length:")]
    if status.split(b" ")[1] != b"200" or not lengths:
        raise OSError(f"not a 200 with its length: {bytes(status)!r}")
    length = int(lengths[0].split(b":")[1])
    left = length - (len(head) - end - 4)
    while left > 0:
        count = sock.recv_into(block)
        if not count:
            raise ConnectionError("closed within an answer's body")
        left -= count
    return length
