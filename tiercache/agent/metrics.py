"""The Prometheus endpoint: the counters of the status document, under stable names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from tiercache.agent.engine import Engine
from tiercache.agent.status import document
from tiercache.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from prometheus_client import Metric


class MetricsServer:
    """Serves /metrics on its own thread while ``address`` ("host:port") is not empty."""

    def __init__(self, address: str, engine: Engine) -> None:
        self._address = address
        self._engine = engine
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises Unsupported without prometheus-client, ConfigError for an address in use."""
        if not self._address:
            return
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise Unsupported(
                "agent.metrics_address needs prometheus-client",
                remedy="pip install 'tiercache[metrics]'",
            ) from error
        host, _, port = self._address.rpartition(":")
        if not port.isdecimal():
            raise ConfigError(
                f"agent.metrics_address {self._address!r} has no port",
                remedy='write it like "127.0.0.1:9464"',
            )
        registry = CollectorRegistry()
        registry.register(_Collector(self._engine))
        try:
            self._server, self._thread = start_http_server(
                int(port), addr=host or "127.0.0.1", registry=registry
            )
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {self._address}: {error.strerror}",
                remedy="choose a free port",
            ) from error

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Collector:
    """Turns the status document into metrics at each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = document(self._engine, clients=[], dropped_peers=0, internal_errors=0)
        yield from _cache(status["cache"])
        yield from _reads(status["reads"])
        yield from _origins(status["origins"])


def _cache(cache: dict[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in (
        ("capacity_bytes", "What the cache may hold."),
        ("used_bytes", "What it holds, index and reservations included."),
        ("pinned_bytes", "What is never evicted."),
        ("extents", "Extent files."),
    ):
        yield GaugeMetricFamily(f"tiercache_{name}", text, value=cache[name])
    for name, text in (
        ("evicted_bytes", "Bytes evicted since the agent started."),
        ("corrupt_pages", "Pages that failed their checksum."),
        ("device_failures", "Refusals of the cache device."),
    ):
        yield CounterMetricFamily(f"tiercache_{name}", text, value=cache[name])


def _reads(reads: dict[str, dict[str, int]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    for name, text in (
        ("hits", "Reads that clients answered from the cache."),
        ("hit_bytes", "Bytes of those reads."),
        ("filled_bytes", "Bytes fetched into the cache."),
        ("read_through_bytes", "Bytes fetched past the cache."),
    ):
        family = CounterMetricFamily(f"tiercache_{name}", text, labels=["mount"])
        for mount, counts in reads.items():
            family.add_metric([mount], counts[name])
        yield family


def _origins(origins: list[dict[str, Any]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        "tiercache_origin", "Requests, errors and bytes by origin.", labels=["origin", "what"]
    )
    for origin in origins:
        for what, count in origin.items():
            if isinstance(count, int) and not isinstance(count, bool):
                family.add_metric([origin["url"], what], count)
    yield family
