"""The Prometheus endpoint serves the counters of the status document."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import wait_for
from tiercache.agent.qos_metrics import Labels, metrics
from tiercache.namespace import connect
from tiercache.qos_reports import IdentityUse
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    QosSettings,
    Settings,
    TotalBytes,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "a.bin").write_bytes(b"x" * 200_000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(64 << 20)),
        mounts=(MountSettings(path="/data", origin=f"file://{tmp_path}/origin"),),
        agent=AgentSettings(metrics_address=f"127.0.0.1:{port}"),
    )


def scrape(settings: Settings) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{settings.agent.metrics_address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_counters_are_those_of_status(settings: Settings) -> None:
    with connect(settings, embedded=True) as namespace:
        namespace.read("/data/a.bin")
        namespace.read("/data/a.bin", 0, 1000)
        status = namespace.status()
        metrics = scrape(settings)
    label = '{mount="/data"}'
    reads = status["reads"]["/data"]
    assert reads["filled_bytes"] == 200_000
    assert metrics[f"tiercache_filled_bytes_total{label}"] == 200_000
    assert metrics[f"tiercache_hits_total{label}"] == reads["hits"] >= 1
    assert metrics["tiercache_capacity_bytes"] == 64 << 20
    assert metrics["tiercache_used_bytes"] == status["cache"]["used_bytes"]
    origin = status["origins"][0]
    label = f'{{method="get",origin="{origin["url"]}"}}'
    assert metrics[f"tiercache_origin_requests_total{label}"] == origin["requests"]["get"] == 1


POLICY = """
version = 1
[[identity]]
name = "job"
match = { name = "job" }
capacity = { max = "32MiB" }
[[backend]]
origin = "file://"
get = 100
"""


def test_counters_by_identity_are_those_of_status(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, qos=QosSettings(name="job"))
    with connect(settings, embedded=True) as namespace:
        assert scrape(settings)["tiercache_qos_generation"] == 0
        generation = namespace.qos.apply(POLICY).generation
        namespace.read("/data/a.bin")
        namespace.write("/data/b.bin", b"b" * 5000)
        wait_for(lambda: namespace.status()["qos"]["identities"][0]["written_bytes"] == 5000)
        told = namespace.status()["qos"]
        metrics = scrape(settings)
    job = next(one for one in told["identities"] if one["identity"] == "job")
    assert job["read_bytes"] == 200_000 and job["operations"] >= 2
    assert metrics["tiercache_qos_generation"] == told["generation"] == generation
    label = 'identity="job"'
    assert metrics[f'tiercache_qos_bytes_total{{direction="read",{label}}}'] == 200_000
    assert metrics[f'tiercache_qos_bytes_total{{direction="write",{label}}}'] == 5000
    assert metrics[f"tiercache_qos_operations_total{{{label}}}"] == job["operations"]
    assert metrics[f"tiercache_qos_used_bytes{{{label}}}"] == job["used_bytes"] > 0
    backend = '{backend="file://",resource="get"}'
    assert metrics[f"tiercache_qos_backend_limit{backend}"] == 100
    assert metrics[f"tiercache_qos_backend_rate{backend}"] == 100


@pytest.mark.parametrize(
    ("rounds", "labels"),
    [
        # The busiest get labels, whoever has used nothing none.
        ([{"a": 1, "b": 3, "c": 2, "d": 0}], "other b c other"),
        # One that has a label keeps it; else its counter would go back.
        ([{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 99}], "a b other"),
        # A free one is for whoever comes first, later ones are others.
        ([{"a": 1, "b": 0}, {"a": 1, "b": 0, "c": 5}, {"a": 9, "b": 9, "c": 9}], "a other c"),
        # An identity that the policy has no more leaves its label.
        ([{"a": 1, "b": 2}, {"b": 2, "c": 1}], "b c"),
        ([{}], ""),
    ],
)  # fmt: skip
def test_labels_are_few_and_stay(rounds: list[dict[str, float]], labels: str) -> None:
    found = Labels(2)
    for uses in rounds:
        told = found.of(uses)
    assert " ".join(told[name] for name in rounds[-1]) == labels


def test_others_are_summed() -> None:
    identities = [
        msgspec.to_builtins(IdentityUse(identity=f"i{n}", read_bytes=n, waits=1)) for n in range(5)
    ]
    qos = {"generation": 3, "error": "", "identities": identities, "backends": []}
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics(qos, Labels(2))
        for sample in family.samples
    }
    assert samples["tiercache_qos_bytes_total", "i4", "read"] == 4
    assert samples["tiercache_qos_bytes_total", "other", "read"] == 0 + 1 + 2
    assert samples["tiercache_qos_waits_total", "other"] == 3
    assert samples["tiercache_qos_generation",] == 3
    off = list(metrics({"generation": 0, "error": "x"}, Labels(2)))
    assert [family.name for family in off] == ["tiercache_qos_generation", "tiercache_qos_refused"]
    assert off[1].samples[0].value == 1


def test_an_address_without_port_is_refused(settings: Settings) -> None:
    bad = msgspec.structs.replace(settings, agent=AgentSettings(metrics_address="localhost"))
    with pytest.raises(ValueError, match="no port"):
        connect(bad, embedded=True)
