"""The Prometheus endpoint: the counters of the status document, under stable names."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tiercache.agent import qos_metrics
from tiercache.agent.engine import Engine
from tiercache.agent.status import document
from tiercache.errors import ConfigError, Unsupported
from tiercache.model import EndpointState

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Metric

# A loop that does not come round to a scrape in this time has other troubles, which logs tell.
SCRAPE_TIMEOUT_S = 10.0


class MetricsServer:
    """Serves /metrics on its own thread while ``address`` ("host:port") is not empty."""

    def __init__(self, address: str, engine: Engine) -> None:
        self._address = address
        self._engine = engine
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """To be called on the event loop. Raises Unsupported without prometheus-client,
        ConfigError for an address in use."""
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
        registry.register(_Collector(self._engine, asyncio.get_running_loop()))
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

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._labels = qos_metrics.Labels()

    def collect(self) -> Iterator[Metric]:
        """Runs on the server's threads. Raises TimeoutError where the loop does not answer."""
        asked = asyncio.run_coroutine_threadsafe(self._status(), self._loop)
        status = asked.result(SCRAPE_TIMEOUT_S)
        yield from _cache(status["cache"])
        yield from _memory(status["memory"])
        yield from _reads(status["reads"])
        yield from _metadata(status["metadata"])
        yield from _origins(status["origins"])
        yield from _endpoints(status["endpoints"])
        yield from qos_metrics.metrics(status["qos"], self._labels)

    async def _status(self) -> dict[str, Any]:
        # On the loop, which owns all that the document reads.
        return document(self._engine, clients=[], dropped_peers=0, internal_errors=0)


def _cache(cache: dict[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in (
        ("capacity_bytes", "What the cache may hold."),
        ("used_bytes", "What it holds, index and reservations included."),
        ("pinned_bytes", "What is never evicted."),
        ("index_bytes", "What of it index and fixed files take."),
        ("extents", "Extent files."),
        ("packs", "Those of them that are packs of small objects."),
    ):
        yield GaugeMetricFamily(f"tiercache_{name}", text, value=cache[name])
    for name, text in (
        ("evicted_bytes", "Bytes evicted since the agent started."),
        ("evicted_extents", "Extents evicted since the agent started."),
        ("index_commits", "Durable commits of the index."),
        ("corrupt_pages", "Pages that failed their checksum."),
        ("disputed_pages", "Pages that failed their checksum in a client and not in the agent."),
        ("device_failures", "Refusals of the cache device."),
    ):
        yield CounterMetricFamily(f"tiercache_{name}", text, value=cache[name])


def _metadata(metadata: dict[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    if not metadata["url"]:
        return
    for name, text, value in (
        ("up", "1 while the store takes what is learnt.", metadata["state"] == "attached"),
        ("fenced", "1 where another agent has taken over.", metadata["state"] == "fenced"),
        ("pending_keys", "Records that are not committed yet.", metadata["pending_keys"]),
        ("sequence", "The number of the last commit.", metadata["sequence"]),
    ):
        yield GaugeMetricFamily(f"tiercache_metadata_{name}", text, value=float(value))
    for name, text in (
        ("commits", "Commits to the metadata store."),
        ("committed_keys", "Records in them."),
        ("imported_records", "Records taken over from the store."),
        ("damaged_records", "Records that could not be read."),
        ("failures", "Attempts at the store that failed."),
    ):
        yield CounterMetricFamily(f"tiercache_metadata_{name}", text, value=metadata[name])


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


def _memory(memory: dict[str, int]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, text in (
        ("limit_bytes", "Bound of all data buffers of the agent."),
        ("held_bytes", "What of it is in use."),
    ):
        yield GaugeMetricFamily(f"tiercache_memory_{name}", text, value=memory[name])


# What status says of an origin, as counters by origin.
ORIGIN_COUNTERS = {
    "bytes_read": "Bytes of answers to GETs.",
    "bytes_written": "Bytes of PUTs.",
    "errors": "Attempts that got no usable answer.",
    "throttled": "Attempts that the server put off (429, 503).",
    "retries": "Attempts that repeated another.",
    "rejected": "Calls that an open breaker refused without a request.",
    "settled": "Writes whose lost answer a HEAD made up for.",
}


def _origins(origins: list[dict[str, Any]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    told = [origin for origin in origins if "breaker" in origin]
    requests = CounterMetricFamily(
        "tiercache_origin_requests", "Attempts sent, by method.", labels=["origin", "method"]
    )
    for origin in told:
        for method, count in origin["requests"].items():
            requests.add_metric([origin["url"], method], count)
    yield requests
    for name, text in ORIGIN_COUNTERS.items():
        family = CounterMetricFamily(f"tiercache_origin_{name}", text, labels=["origin"])
        for origin in told:
            family.add_metric([origin["url"]], origin[name])
        yield family
    closed = GaugeMetricFamily(
        "tiercache_origin_up", "1 while the breaker of its endpoint is closed.", labels=["origin"]
    )
    for origin in told:
        closed.add_metric([origin["url"]], float(origin["breaker"]["mode"] == "closed"))
    yield closed


def _endpoints(endpoints: list[dict[str, Any]]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    state = GaugeMetricFamily(
        "tiercache_endpoint_state",
        "1 for the state that the endpoint is in, 0 for the others.",
        labels=["endpoint", "state"],
    )
    pending = GaugeMetricFamily(
        "tiercache_endpoint_pending_revalidations",
        "Names served stale that are still to be asked for.",
        labels=["endpoint"],
    )
    for endpoint in endpoints:
        for name in EndpointState:
            state.add_metric([endpoint["name"], name], float(endpoint["state"] == name))
        pending.add_metric([endpoint["name"]], endpoint["pending_revalidations"])
    yield state
    yield pending
