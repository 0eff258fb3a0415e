"""Tenants do what they are told, in processes that are gone afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.processes import alive
from tests.fault.cache_rig import FileOrigin
from tiercache.namespace import Namespace
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing import qos_tracks
from tiercache.testing.qos_load import LoadFailed, Play, Tenant, bring_near, played
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    origin = FileOrigin(tmp_path / "origin")
    origin.fill("load", [2 * MIB, 2 * MIB])
    made = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(512 * MIB)),
        mounts=(MountSettings(path="/data", origin=origin.url),),
        agent=AgentSettings(idle_timeout_s=5.0),
    )
    with Namespace(made) as namespace:
        yield made
        namespace.shut_down_agent()


def test_readers_are_paced_and_prefetchers_fetch(settings: Settings) -> None:
    length = bring_near(settings, "/data/00000")
    assert length == 2 * MIB
    paced = Tenant(
        name="paced", paths=("/data/00000",), length_bytes=length, processes=2, rate=20.0
    )
    late = Tenant(
        name="late", paths=("/data/00000",), length_bytes=length, rate=50.0, begin_s=0.5, end_s=1.0
    )
    fetching = Tenant(name="fetching", paths=("/data/00001",), length_bytes=length, does="prefetch")
    window, tracks = played(settings, [paced, late, fetching], seconds=1.5)
    assert [len(tracks[one]) for one in (paced, late, fetching)] == [2, 1, 1]
    whole = window(-1.0, 1e3)
    # Pacing never makes up for more than one period: of what it asks, no more.
    assert 0 < qos_tracks.operations(tracks[paced], whole) <= 2 * 31
    assert all(track.operation_bytes == 64 * 1024 for track in tracks[paced])
    (track,) = tracks[late]
    outside = window(-1.0, 0.5)
    assert qos_tracks.operations([track], outside) == 0
    assert track.began_ns[0] >= outside.end_ns
    assert track.began_ns[-1] < window(0.0, 1.0).end_ns
    (track,) = tracks[fetching]
    assert track.operation_bytes == length and len(track.ended_ns) == len(track.began_ns) > 0


def test_a_play_may_end_sooner_than_it_was_to(settings: Settings) -> None:
    length = bring_near(settings, "/data/00000")
    tenant = Tenant(name="any", paths=("/data/00000",), length_bytes=length, rate=100.0)
    with Play(settings, [tenant], seconds=600.0) as play:
        play.start()
        play.end_at(0.5)
        (track,) = play.tracks()[tenant]
        assert track.began_ns[-1] < play.window(0.0, 0.5).end_ns


def test_a_tenant_that_fails_fails_the_play(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    lost = Tenant(name="lost", paths=("/data/no-such",), length_bytes=MIB)
    with Play(settings, [lost], seconds=0.1) as play, pytest.raises(LoadFailed, match="above"):
        play.start()
    assert "NotFound" in capfd.readouterr().err


def test_a_play_that_is_left_leaves_no_process(settings: Settings) -> None:
    length = bring_near(settings, "/data/00000")
    endless = Tenant(name="endless", paths=("/data/00000",), length_bytes=length, processes=3)
    with Play(settings, [endless], seconds=600.0) as play:
        play.start()
        group = play.group_id
        assert _members(group) == 4
    deadline = time.monotonic() + 10.0
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _members(group) == 0


def _members(group: int) -> int:
    """Return how many processes of a group run."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                found += os.getpgid(int(entry.name)) == group and alive(int(entry.name))
    return found
