"""Whether the settings of a client and those of the agent that it found agree.

Mounts and profiles are compared where they are taken over (``agent.mounts``); here is what an
agent has once and for all: its limits, its metrics, its log.
"""

from __future__ import annotations

from typing import TypeVar

from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    FreeSpaceRatio,
    Limit,
    MetadataSettings,
    QosSettings,
    TotalBytes,
)
from tiercache.units import format_bytes

REMEDY = "use one configuration a cache directory, or restart the agent: tiercache agent stop"

T = TypeVar("T")


def refused(wanted: CacheSettings, running: CacheSettings) -> list[str]:
    """Return, a sentence a key, which limits the agent does not keep as the client was told. A
    limit is a promise: one that is not kept is to be refused."""
    found = []
    if _differ(wanted.limit, running.limit, CacheSettings().limit):
        found.append(f"{_limit(wanted.limit)} here, {_limit(running.limit)} in the running agent")
    if _differ(wanted.memory_bytes, running.memory_bytes, CacheSettings().memory_bytes):
        here, there = _bytes(wanted.memory_bytes), _bytes(running.memory_bytes)
        found.append(f"cache.memory is {here} here, {there} in the running agent")
    return found


def refused_metadata(wanted: MetadataSettings, running: MetadataSettings) -> list[str]:
    """Return the same for the metadata store: what is learnt would be kept elsewhere than the
    client was told, or nowhere."""
    found = []
    if _differ(wanted.url, running.url, MetadataSettings().url):
        here, there = wanted.url, running.url or "nowhere"
        found.append(f"metadata.url is {here} here, {there} in the running agent")
    elif wanted.url and _differ(wanted.profile, running.profile, MetadataSettings().profile):
        found.append(
            f"metadata.profile is {wanted.profile} here, {running.profile} in the running agent"
        )
    return found


def refused_qos(wanted: QosSettings, running: QosSettings) -> list[str]:
    """Return the same for the QoS policy, whose limits and reservations are promises too. Name and
    ``max_wait_s`` are each client's own."""
    if not _differ(wanted.policy, running.policy, QosSettings().policy):
        return []
    here, there = wanted.policy, running.policy or "none"
    return [f"qos.policy is {here} here, {there} in the running agent"]


def ignored(wanted: AgentSettings, running: AgentSettings) -> list[str]:
    """Return, a sentence a key, what the agent does otherwise without harm to the client's data:
    that is to be said. How long it idles is a matter of whoever started it."""
    found = []
    for name in ("metrics_address", "log_level"):
        here, there = getattr(wanted, name), getattr(running, name)
        if _differ(here, there, getattr(AgentSettings(), name)):
            found.append(f"agent.{name} is {here!r} here, {there!r} in the running agent")
    return found


def _differ(wanted: T, running: T, default: T) -> bool:
    """Whoever leaves a key at its default says nothing about it and takes what is there."""
    return wanted not in (running, default)


def _limit(limit: Limit) -> str:
    match limit:
        case TotalBytes():
            return f"cache.capacity is {_bytes(limit.capacity_bytes)}"
        case FreeSpaceRatio():
            return f"cache.free_space is {limit.ratio * 100:g}%"


def _bytes(count: int) -> str:
    return f"{format_bytes(count)} ({count})"  # the rounded ones may look alike
