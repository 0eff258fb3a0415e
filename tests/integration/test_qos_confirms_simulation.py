"""The simulation tells the truth: the same policy and load, simulated and with real processes.

Rates are so low that no machine is too slow for them (400 reads of 32 KiB a second in all), so what
differs is what the simulation got wrong, or the lease file, or the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from tests.fault.cache_rig import FileOrigin
from tiercache.config.qos_policy import parse_policy
from tiercache.namespace import Namespace
from tiercache.policy.qos import Plan
from tiercache.policy.qos_schedule import Moment
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    QosSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing import qos_tracks
from tiercache.testing.qos_load import Play, Tenant, bring_near
from tiercache.testing.qos_simulation import BIN_S, Load, Simulation
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)

BLOCK_BYTES = 32 * 1024
SETTLE_S, WINDOW_S = 2.0, 3.0
# A window holds 45 operations of the smallest share: one more or less at each edge is 5 %, and the
# machine may be busy with other tests. A governor that ignored weights or a reservation would be
# off by a factor of two and more.
TOLERANCE = 0.25
PACED_A_SECOND = 15.0
POLICY = """\
version = 1

[node]
read = "13MB/s"
write = "100MB/s"
operations = "10k/s"

[[class]]
name = "bulk"
priority = -10

[[identity]]
name = "reserved"
class = "bulk"
match = { name = "reserved" }
read = { reserve = "3MB/s" }

[[identity]]
name = "heavy"
match = { name = "heavy" }
read = { weight = 3 }

[[identity]]
name = "light"
match = { name = "light" }

[[identity]]
name = "limited"
match = { name = "limited" }
read = { limit = "1MB/s" }

[[identity]]
name = "slow"
match = { name = "slow" }
operations = { limit = "20/s" }

[[identity]]
name = "paced"
match = { name = "paced" }
"""
# Processes of each identity: more of them get no more for it, and where one of several comes late
# to a busy processor, the others go on.
PROCESSES = {"reserved": 2, "heavy": 2, "light": 4, "limited": 2, "slow": 2, "paced": 1}


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    origin = FileOrigin(tmp_path / "origin")
    origin.fill("confirm", [8 * MIB])
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    made = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(512 * MIB)),
        mounts=(MountSettings(path="/data", origin=origin.url),),
        agent=AgentSettings(idle_timeout_s=5.0),
        qos=QosSettings(policy=str(policy)),
    )
    with Namespace(made) as namespace:
        yield made
        namespace.shut_down_agent()


def simulated(plan: Plan) -> dict[str, float]:
    """Return bytes a second of each identity, of a window as long as the real one."""
    loads = [
        Load(
            identity=name,
            operation_bytes=BLOCK_BYTES,
            gap_s=1 / PACED_A_SECOND if name == "paced" else 0.0,
        )
        for name, count in PROCESSES.items()
        for _ in range(count)
    ]
    simulation = Simulation(plan, loads, seed=2)
    # As many windows as make chance small: arrivals of who is paced are random there.
    end_s = SETTLE_S + 14 * WINDOW_S
    simulation.run_to(end_s)
    first, last = round(SETTLE_S / BIN_S), round(end_s / BIN_S)
    return {
        name: sum(of.read_bytes for number, of in bins.items() if first <= number < last)
        / (BIN_S * (last - first))
        for name, bins in simulation.seen.identities.items()
    }


def real(settings: Settings) -> dict[str, float]:
    """Return the same of real processes."""
    path = "/data/00000"
    length = bring_near(settings, path)
    tenants = [
        Tenant(
            name=name,
            paths=(path,),
            length_bytes=length,
            block_bytes=BLOCK_BYTES,
            processes=count,
            rate=PACED_A_SECOND if name == "paced" else inf,
        )
        for name, count in PROCESSES.items()
    ]
    with Play(settings, tenants, seconds=SETTLE_S + WINDOW_S) as play:
        play.start()
        window = play.window(SETTLE_S, SETTLE_S + WINDOW_S)
        tracks = play.tracks()
    return {one.name: qos_tracks.byte_rate(tracks[one], window) for one in tenants}


def test_real_processes_get_what_the_simulation_says(settings: Settings) -> None:
    plan = parse_policy(POLICY, where="POLICY").plan(Moment(weekday=0, minute=0))
    expected = simulated(plan)
    got = real(settings)
    told = {name: (round(got[name] / 1e6, 2), round(expected[name] / 1e6, 2)) for name in got}
    for name in PROCESSES:
        assert got[name] == pytest.approx(expected[name], rel=TOLERANCE), told
    # And what the policy says by itself, which neither may get wrong together.
    assert got["reserved"] >= (1 - TOLERANCE) * 3e6, told
    assert got["limited"] <= (1 + TOLERANCE) * 1e6, told
    assert got["heavy"] == pytest.approx(3 * got["light"], rel=TOLERANCE), told
