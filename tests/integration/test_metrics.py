"""The Prometheus endpoint serves the counters of the status document."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import msgspec
import pytest

from tiercache.namespace import connect
from tiercache.settings import AgentSettings, CacheSettings, MountSettings, Settings, TotalBytes


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


def test_an_address_without_port_is_refused(settings: Settings) -> None:
    bad = msgspec.structs.replace(settings, agent=AgentSettings(metrics_address="localhost"))
    with pytest.raises(ValueError, match="no port"):
        connect(bad, embedded=True)
