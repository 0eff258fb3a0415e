"""Whether origins answer: one cheap listing each, outside any agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tiercache.errors import TiercacheError

if TYPE_CHECKING:
    from tiercache.settings import MountSettings, ProfileSettings, Settings

# Retries and all: a person waits for the answer.
DEADLINE_S = 8.0


@dataclass(frozen=True, slots=True)
class Reach:
    """How one mount's origin answered. ``error`` is None where it did."""

    mount: MountSettings
    latency_s: float
    error: TiercacheError | None


def reach_all(settings: Settings, mounts: Sequence[MountSettings]) -> list[Reach]:
    """Ask the origins of all mounts at the same time, each at most DEADLINE_S."""
    return asyncio.run(_reach_all(settings, mounts))


async def _reach_all(settings: Settings, mounts: Sequence[MountSettings]) -> list[Reach]:
    return list(await asyncio.gather(*(_reach(settings, mount) for mount in mounts)))


async def _reach(settings: Settings, mount: MountSettings) -> Reach:
    started = time.monotonic()
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            latency_s = await _list_one(mount, hurried(settings.profiles[mount.profile]))
    except TiercacheError as error:
        return Reach(mount, time.monotonic() - started, error)
    except TimeoutError:
        from tiercache.errors import OriginUnavailable

        late = OriginUnavailable("no answer in time", path=mount.origin)
        return Reach(mount, time.monotonic() - started, late)
    return Reach(mount, latency_s, None)


async def _list_one(mount: MountSettings, profile: ProfileSettings) -> float:
    """Return the seconds of one listing of at most one name. Raises as Origin.list."""
    from tiercache.clock import BootClock
    from tiercache.compose import open_wrapped
    from tiercache.origins.endpoint import Endpoints
    from tiercache.origins.open import origin_url

    url = origin_url(mount.origin)
    clock = BootClock()
    origin = open_wrapped(url, profile, clock, Endpoints(clock=clock))
    try:
        started = time.monotonic()
        async for _ in origin.list(url.key_prefix, recursive=True, limit=1):
            break
        return time.monotonic() - started
    finally:
        await origin.close()


def hurried(profile: ProfileSettings) -> ProfileSettings:
    """Return the profile with time-outs that a person can wait for."""
    return msgspec.structs.replace(
        profile,
        deadline_s=min(profile.deadline_s, DEADLINE_S),
        request_timeout_s=min(profile.request_timeout_s, DEADLINE_S),
    )
