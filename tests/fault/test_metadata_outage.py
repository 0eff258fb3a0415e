"""The metadata store is out of reach: nobody waits for it, nothing that was learnt is lost, and it
is committed in order when the store is back, by whichever agent then serves the directory."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fault.metadata_rig import (
    MetadataRig,
    attached,
    in_state,
    metadata,
    metadata_rig_of,
)
from tests.fault.origin_rig import agent_pids, eventually, in_other_process, kill_agent
from tiercache import records
from tiercache.errors import ConfigError
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.settings import MetadataSettings
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.processes import free_ports

pytestmark = pytest.mark.timeout(90)

DATA = object_bytes("outage", 30_000)
# One patience for a store of which nothing is known yet, and a busy machine.
AT_ONCE_S = 3.0


@pytest.fixture
def rig(
    s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path
) -> Iterator[MetadataRig]:
    with metadata_rig_of(s3, new_bucket(s3), tmp_path, "slatedb") as rig:
        rig.rig.server.put_many(
            rig.rig.bucket, [(f"data/d/{number:02}", DATA) for number in range(8)]
        )
        yield rig


def use(ns: Namespace, mark: str) -> None:
    """Do what a job does; every call must be answered at once."""
    for call in (
        lambda: ns.read("/m/d/00"),
        lambda: ns.list("/m", recursive=True, refresh=True),
        lambda: ns.write(f"/m/w/{mark}", DATA),
        lambda: ns.pin(f"/m/w/{mark}"),
        lambda: ns.stat("/m/d/01"),
        lambda: ns.remove(f"/m/w/{mark}"),
    ):
        started = time.monotonic()
        call()
        assert time.monotonic() - started < AT_ONCE_S


def stored_pins(rig: MetadataRig) -> set[str]:
    return {
        records.decode_pin(raw[1:]).path
        for key, raw in rig.records().items()
        if key.startswith(b"p")
    }


@pytest.mark.parametrize("kind", ["refused", "black hole"])
def test_an_agent_starts_and_serves_without_its_store(rig: MetadataRig, kind: str) -> None:
    if kind == "refused":
        rig.store_proxy.refuse()
    else:
        rig.store_proxy.black_hole()
    started = time.monotonic()
    ns = rig.node("node")
    assert time.monotonic() - started < AT_ONCE_S
    use(ns, "first")
    in_state(ns, "unavailable")
    use(ns, "second")
    status = metadata(ns)
    assert status["pending_keys"] > 8 and status["failures"] and status["problem"]
    assert status["identity"] == "" and status["commits"] == 0
    rig.store_proxy.heal()
    assert attached(ns, within_s=30)["problem"] == ""
    rig.rig.close(ns)
    assert stored_pins(rig) == {"/m/w/first", "/m/w/second"}


def test_an_outage_in_the_middle_delays_nobody_and_is_made_up_for(
    rig: MetadataRig, caplog: pytest.LogCaptureFixture
) -> None:
    ns = rig.node("node")
    use(ns, "before")
    before = attached(ns)
    with caplog.at_level(logging.INFO):
        rig.store_proxy.refuse()
        use(ns, "during")
        in_state(ns, "unavailable")
        use(ns, "later")
        assert metadata(ns)["pending_keys"]
        assert metadata(ns)["identity"] == before["identity"]
        rig.store_proxy.heal()
        after = attached(ns, within_s=30)
    assert after["identity"] == before["identity"]
    assert after["sequence"] > before["sequence"]
    assert sum("is unavailable" in line for line in caplog.messages) == 1
    assert sum("is back" in line for line in caplog.messages) == 1
    rig.rig.close(ns)
    assert stored_pins(rig) == {"/m/w/before", "/m/w/during", "/m/w/later"}


def test_what_was_learnt_in_an_outage_survives_the_agent(rig: MetadataRig) -> None:
    ns = rig.node("node", embedded=False)
    use(ns, "before")
    attached(ns)
    rig.store_proxy.refuse()
    for number in range(5):
        ns.pin(f"/m/d/{number:02}")
    ns.unpin("/m/w/before")
    ns.list("/m/d")
    in_state(ns, "unavailable")
    waiting = metadata(ns)["pending_keys"]
    assert waiting >= 6
    kill_agent(ns)
    # The next agent meets the outage too, and is killed in it.
    assert ns.read("/m/d/05") == DATA
    in_state(ns, "unavailable")
    assert metadata(ns)["pending_keys"] >= waiting
    ns.pin("/m/d/05")
    kill_agent(ns)
    rig.store_proxy.heal()
    assert ns.read("/m/d/06") == DATA
    status = attached(ns, within_s=30)
    assert status["committed_keys"] >= waiting
    kill_agent(ns)
    assert stored_pins(rig) == {f"/m/d/{number:02}" for number in range(6)}


def test_an_agent_that_leaves_commits_what_it_learnt_last(rig: MetadataRig) -> None:
    ns = rig.node("node")
    attached(ns)
    ns.pin("/m/d/00")
    rig.rig.close(ns)
    assert stored_pins(rig) == {"/m/d/00"}


def test_an_agent_leaves_in_an_outage_too(rig: MetadataRig) -> None:
    ns = rig.node("node")
    attached(ns)
    rig.store_proxy.black_hole()
    ns.pin("/m/d/00")
    started = time.monotonic()
    rig.rig.close(ns)
    assert time.monotonic() - started < 10.0
    rig.store_proxy.heal()
    ns = rig.node("node")
    attached(ns, within_s=30)
    rig.rig.close(ns)
    assert stored_pins(rig) == {"/m/d/00"}


def test_placement_costs_the_store_nothing(rig: MetadataRig) -> None:
    ns = rig.node("node", Consistency.IMMUTABLE)
    ns.list("/m", recursive=True)
    before = attached(ns)
    rig.store_proxy.clear()
    for number in range(8):
        assert ns.read(f"/m/d/{number:02}") == DATA
    ns.local_path("/m/d/00", pin=False)
    assert ns.evict("/m/d")
    assert ns.read("/m/d/00") == DATA
    after = attached(ns)
    assert (after["commits"], after["sequence"]) == (before["commits"], before["sequence"])
    puts = rig.store_proxy.exchanges("PUT")
    assert not [put for put in puts if "/manifest/" not in put.path]  # the store's own upkeep


def test_confirming_a_name_again_and_again_costs_the_store_nothing(rig: MetadataRig) -> None:
    ns = rig.node("node", Consistency.CLOSE_TO_OPEN)
    assert ns.read("/m/d/00") == DATA
    before = attached(ns)
    for _ in range(30):
        assert ns.read("/m/d/00") == DATA
    after = attached(ns)
    assert after["committed_keys"] - before["committed_keys"] <= 1  # a minute may have ended


def test_a_client_with_another_store_is_refused(rig: MetadataRig) -> None:
    ns = rig.node("node", embedded=False)
    attached(ns)
    settings = rig.settings("node")
    elsewhere = msgspec.structs.replace(
        settings, metadata=MetadataSettings(url="lmdb:/somewhere/else")
    )
    with pytest.raises(ConfigError, match=r"metadata\.url is lmdb:/somewhere/else here"):
        Namespace(elsewhere).status()
    silent = msgspec.structs.replace(settings, metadata=MetadataSettings())
    assert in_other_process(silent, "result = ns.status()['metadata']['state']") == "attached"
    assert len(agent_pids(settings)) == 1


def test_metrics_tell_of_the_store(rig: MetadataRig) -> None:
    settings = rig.settings("node")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    agent = msgspec.structs.replace(settings.agent, metrics_address=address)
    ns = rig.rig.open(msgspec.structs.replace(settings, agent=agent))

    def value(name: str) -> float:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        return float(line.split()[1])

    ns.pin("/m/d/00")
    status = attached(ns)
    assert value("tiercache_metadata_up") == 1 and value("tiercache_metadata_fenced") == 0
    assert value("tiercache_metadata_committed_keys_total") == status["committed_keys"]
    rig.store_proxy.refuse()
    ns.pin("/m/d/01")
    in_state(ns, "unavailable")
    assert value("tiercache_metadata_up") == 0
    assert value("tiercache_metadata_pending_keys") >= 1
    assert value("tiercache_metadata_failures_total") >= 1
    rig.store_proxy.heal()
    eventually(lambda: value("tiercache_metadata_up") == 1, within_s=30)
