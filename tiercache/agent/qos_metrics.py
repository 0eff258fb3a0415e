"""Metrics of the QoS policy: counters by identity, as many as a store of metrics can take."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Metric

# Each identity is ten time series; 64 are what a person reads and 640 a node costs nobody anything.
LABELS_COUNT = 64
OTHER = "other"


class Labels:
    """Which identities have a label of their own. One that has it keeps it, for a counter that
    moves between labels goes back; free ones go to whoever has used most. Thread safe."""

    def __init__(self, count: int = LABELS_COUNT) -> None:
        self._count = count
        # Guarded by _lock
        self._lock = threading.Lock()
        self._kept: set[str] = set()

    def of(self, uses: Mapping[str, float]) -> dict[str, str]:
        """Return the label of each identity, from how much it has used."""
        with self._lock:
            self._kept &= uses.keys()
            wanting = [name for name in uses if name not in self._kept and uses[name] > 0]
            wanting.sort(key=lambda name: (-uses[name], name))
            self._kept.update(wanting[: self._count - len(self._kept)])
            return {name: name if name in self._kept else OTHER for name in uses}


# What status says of an identity, as counters and gauges by identity.
COUNTERS = {
    "operations": "Operations charged.",
    "waits": "Operations that had to wait for tokens or room.",
    "waited_s": "Seconds that they waited.",
    "throttled": "Operations refused because they would have waited too long.",
}
GAUGES = {
    "waiting": "Processes and jobs that wait now.",
    "used_bytes": "Bytes of the cache charged to the identity.",
    "pinned_bytes": "What of them is pinned.",
}


def metrics(qos: Mapping[str, Any], labels: Labels) -> Iterator[Metric]:
    """Yield the metrics of the status document's ``qos``."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    yield GaugeMetricFamily(
        "tiercache_qos_generation",
        "Generation of the policy in force, 0 for none.",
        value=qos["generation"],
    )
    yield GaugeMetricFamily(
        "tiercache_qos_refused",
        "1 while a newer policy is refused.",
        value=float(bool(qos["error"])),
    )
    if not qos["generation"]:
        return
    sums = _sums(qos["identities"], labels)
    moved = CounterMetricFamily(
        "tiercache_qos_bytes", "Bytes charged.", labels=["identity", "direction"]
    )
    for label, one in sums.items():
        moved.add_metric([label, "read"], one["read_bytes"])
        moved.add_metric([label, "write"], one["written_bytes"])
    yield moved
    for name, text in COUNTERS.items():
        counter = CounterMetricFamily(_name(name), text, labels=["identity"])
        for label, one in sums.items():
            counter.add_metric([label], one[name])
        yield counter
    for name, text in GAUGES.items():
        gauge = GaugeMetricFamily(_name(name), text, labels=["identity"])
        for label, one in sums.items():
            gauge.add_metric([label], one[name])
        yield gauge
    yield from _backends(qos["backends"])


def _name(key: str) -> str:
    return "tiercache_qos_" + key.replace("waited_s", "waited_seconds")


def _sums(identities: list[dict[str, Any]], labels: Labels) -> dict[str, dict[str, float]]:
    """Return the numbers of each label."""
    uses = {one["identity"]: _use(one) for one in identities}
    label_of = labels.of(uses)
    names = ("read_bytes", "written_bytes", *COUNTERS, *GAUGES)
    sums: dict[str, dict[str, float]] = {}
    for one in identities:
        into = sums.setdefault(label_of[one["identity"]], dict.fromkeys(names, 0.0))
        for name in names:
            into[name] += one[name]
    return sums


def _use(identity: dict[str, Any]) -> float:
    """Return one number for how much an identity matters: an operation counts as a page."""
    return float(
        identity["read_bytes"] + identity["written_bytes"] + 65536 * identity["operations"]
        + identity["used_bytes"]
    )  # fmt: skip


def _backends(backends: list[dict[str, Any]]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["backend", "resource"]
    put_off = CounterMetricFamily(
        "tiercache_qos_backend_throttled", "Requests that the server put off.", labels=labels
    )
    gauges = {
        key: GaugeMetricFamily(f"tiercache_qos_backend_{key}", text, labels=labels)
        for key, text in (
            ("limit", "Requests or bytes a second that the policy allows."),
            ("rate", "What is kept to now: less than the limit where the server has put off."),
            ("waiting", "Requests that wait for this limit and others."),
        )
    }
    for one in backends:
        where = [one["scope"], one["kind"]]
        put_off.add_metric(where, one["throttled"])
        gauges["waiting"].add_metric(where, one["waiting"])
        bounds = [bound for bound in (one["limit"], one["rate"]) if bound is not None]
        if one["limit"] is not None:
            gauges["limit"].add_metric(where, one["limit"])
        if bounds:
            gauges["rate"].add_metric(where, min(bounds))
    yield from (put_off, *gauges.values())
