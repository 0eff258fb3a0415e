"""Which settings of a client the running agent's contradict."""

from __future__ import annotations

import pytest

from tiercache.policy.agreement import ignored, refused, refused_metadata, refused_qos
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    FreeSpaceRatio,
    Limit,
    MetadataSettings,
    QosSettings,
    TotalBytes,
)
from tiercache.units import GIB

DEFAULT = CacheSettings()


@pytest.mark.parametrize(
    ("wanted", "running", "keys"),
    [
        (DEFAULT.limit, DEFAULT.limit, []),
        (DEFAULT.limit, TotalBytes(GIB), []),  # whoever says nothing takes what is there
        (TotalBytes(GIB), TotalBytes(GIB), []),
        (TotalBytes(GIB), TotalBytes(GIB + 1), ["cache.capacity is 1.0 GiB (1073741824) here"]),
        (TotalBytes(GIB), DEFAULT.limit, ["cache.free_space is 10% in the running agent"]),
        (FreeSpaceRatio(0.125), FreeSpaceRatio(0.1), ["cache.free_space is 12.5% here"]),
        (FreeSpaceRatio(0.2), TotalBytes(GIB), ["cache.free_space is 20% here"]),
    ],
)
def test_limits(wanted: Limit, running: Limit, keys: list[str]) -> None:
    found = refused(CacheSettings(dir="/a", limit=wanted), CacheSettings(dir="/b", limit=running))
    assert len(found) == len(keys)
    assert all(key in sentence for key, sentence in zip(keys, found, strict=True))


@pytest.mark.parametrize(
    ("wanted", "running", "count"),
    [(GIB, GIB, 0), (GIB, 2 * GIB, 0), (2 * GIB, 2 * GIB, 0), (2 * GIB, GIB, 1), (3, 4, 1)],
)
def test_memory(wanted: int, running: int, count: int) -> None:
    assert DEFAULT.memory_bytes == GIB
    found = refused(CacheSettings(memory_bytes=wanted), CacheSettings(memory_bytes=running))
    assert len(found) == count
    assert all(sentence.startswith("cache.memory is ") for sentence in found)


@pytest.mark.parametrize(
    ("wanted", "running", "said"),
    [
        (MetadataSettings(), MetadataSettings(url="s3://a"), ""),
        (MetadataSettings(url="s3://a"), MetadataSettings(url="s3://a", deadline_s=1), ""),
        (MetadataSettings(url="s3://a"), MetadataSettings(), "nowhere in the running agent"),
        (MetadataSettings(url="s3://a"), MetadataSettings(url="s3://b"), "metadata.url is s3://a"),
        (
            MetadataSettings(url="s3://a", profile="x"),
            MetadataSettings(url="s3://a"),
            "metadata.profile is x here",
        ),
    ],
)
def test_the_metadata_store(wanted: MetadataSettings, running: MetadataSettings, said: str) -> None:
    assert said in "".join(refused_metadata(wanted, running))
    assert bool(said) is bool(refused_metadata(wanted, running))


@pytest.mark.parametrize(
    ("wanted", "running", "said"),
    [
        (QosSettings(name="a", max_wait_s=1.0), QosSettings(policy="/p"), ""),
        (QosSettings(policy="/p", name="a"), QosSettings(policy="/p", name="b"), ""),
        (QosSettings(policy="/p"), QosSettings(), "none in the running agent"),
        (QosSettings(policy="/p"), QosSettings(policy="/q"), "qos.policy is /p here, /q in"),
    ],
)
def test_the_qos_policy(wanted: QosSettings, running: QosSettings, said: str) -> None:
    found = refused_qos(wanted, running)
    assert bool(found) == bool(said)
    assert said in "".join(found)


def test_what_is_said_and_what_is_left_to_whoever_started_the_agent() -> None:
    running = AgentSettings(metrics_address="h:1", log_level="error", idle_timeout_s=0.0)
    assert ignored(AgentSettings(idle_timeout_s=5.0), running) == []
    assert ignored(running, running) == []
    said = ignored(AgentSettings(metrics_address="h:2", log_level="debug"), running)
    assert said == [
        "agent.metrics_address is 'h:2' here, 'h:1' in the running agent",
        "agent.log_level is 'debug' here, 'error' in the running agent",
    ]
