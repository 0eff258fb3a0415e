"""Life without the network: what is cached goes on being read, what is not fails at once and says
what is missing, and everything heals by itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.cache_rig import ROOT
from tests.fault.origin_rig import Rig, config_file, eventually, kill_agent, rig_of
from tests.fault.training_loop import Plan
from tiercache.cli.program import run
from tiercache.errors import OriginUnavailable
from tiercache.fs import TierCacheFileSystem
from tiercache.model import JobState, Kind
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.testing.network import PROFILES, Fault
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.units import MIB

BIG = object_bytes("big", 3 * MIB + 12345)
SMALL = object_bytes("small", 50_000)
# As in production: a miss that waited for any of these would be noticed here.
PATIENT = {"connect_timeout_s": 5.0, "request_timeout_s": 30.0, "deadline_s": 60.0}
# Noticing takes 3 s and the probe that settles it 2 s; and a busy machine.
NOTICED_S = 15.0


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits.update(PATIENT)
        rig.put("big.bin", BIG)
        rig.put("dir/small.bin", SMALL)
        rig.put("dir/sub/deep.bin", SMALL)
        rig.put("cold.bin", SMALL)
        yield rig


def endpoint(ns: Namespace) -> dict[str, Any]:
    (found,) = ns.status()["endpoints"]
    return dict(found)


def state(ns: Namespace) -> str:
    return str(endpoint(ns)["state"])


def go_offline(rig: Rig, ns: Namespace, *, refuse: bool = False) -> None:
    """Cut the network and have somebody ask for something until that is noticed."""
    if refuse:
        rig.proxy.refuse()
    else:
        rig.proxy.black_hole()
    asking = threading.Thread(target=miss, args=(ns, "/m/asked-for"), daemon=True)
    asking.start()
    eventually(lambda: state(ns) == "offline", within_s=NOTICED_S, what="offline")
    asking.join(5.0)
    assert not asking.is_alive(), "whoever waits when it is noticed waits no more"


def miss(ns: Namespace, path: str) -> OriginUnavailable:
    with pytest.raises(OriginUnavailable) as caught:
        ns.read(path)
    return caught.value


def online(rig: Rig, ns: Namespace) -> None:
    rig.proxy.heal()
    eventually(lambda: state(ns) != "offline", within_s=25.0, what="online again, unasked")


# -- the state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("refuse", [True, False], ids=["refused", "black hole"])
def test_an_endpoint_goes_offline_and_comes_back_without_traffic(
    rig: Rig, refuse: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ns = rig.namespace()
    assert ns.read("/m/big.bin") == BIG
    before = endpoint(ns)
    assert before["state"] == "online" and before["last_error"] == ""
    with caplog.at_level("INFO", logger="tiercache.origins"):
        go_offline(rig, ns, refuse=refuse)
        down = endpoint(ns)
        assert down["since_s"] >= 3.0 and down["last_error"]
        assert 0.0 <= down["next_probe_s"] <= 15.0
        online(rig, ns)
        assert state(ns) == "degraded"
    changes = [record.message for record in caplog.records if before["name"] in record.message]
    assert [line.split()[2] for line in changes] == ["degraded", "offline", "degraded"]
    assert ns.read("/m/cold.bin") == SMALL


def test_nothing_is_asked_while_all_is_well(rig: Rig) -> None:
    ns = rig.namespace()
    assert ns.read("/m/big.bin") == BIG
    asked = len(rig.proxy.exchanges())
    # Long enough for every timer of a probe.
    time.sleep(2.5)
    assert len(rig.proxy.exchanges()) == asked


def test_a_blip_is_no_outage(rig: Rig) -> None:
    """Two seconds without an answer, then one: nobody sees an error."""
    ns = rig.namespace()
    assert ns.read("/m/big.bin") == BIG
    for _ in range(3):
        rig.proxy.black_hole()
        healer = threading.Timer(2.0, rig.proxy.heal)
        healer.start()
        ns.evict("/m/cold.bin")
        assert ns.read("/m/cold.bin") == SMALL
        healer.join()
        assert state(ns) in ("online", "degraded")
    assert ns.status()["origins"][0]["rejected"] == 0


def test_a_slow_transfer_is_no_outage(rig: Rig) -> None:
    """The only request in flight, and no byte of its answer is complete for four seconds."""
    ns = rig.namespace()
    slow = Fault(methods=("GET",), path_contains="cold.bin", connection_bytes_per_s=12_000)
    rig.proxy.inject(slow)
    assert ns.read("/m/cold.bin") == SMALL
    assert state(ns) == "online" and ns.status()["origins"][0]["rejected"] == 0


# -- misses, names and listings ----------------------------------------------------------------


def test_misses_fail_at_once_and_say_what_is_missing(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=0.2)
    ns.read("/m/big.bin", 0, 65536)
    ns.list("/m")
    go_offline(rig, ns)
    error = miss(ns, "/m/big.bin")
    assert error.path == "/m/big.bin"
    assert f"65536 of its {len(BIG)} bytes are cached" in error.message
    assert "offline: it has not answered for" in error.message and "autarky check" in error.remedy
    assert "nothing is known of this name" in miss(ns, "/m/never-heard-of").message
    assert "0 of its 50000 bytes" in miss(ns, "/m/cold.bin").message

    def timed(number: int) -> float:
        started = time.monotonic()
        miss(ns, ("/m/big.bin", "/m/cold.bin", f"/m/unknown-{number}")[number % 3])
        return time.monotonic() - started

    with ThreadPoolExecutor(64) as pool:
        slowest = max(pool.map(timed, range(192)))
    # A time-out would be 5 s, and the patience of a revalidation 0.75 s for each.
    assert slowest < 3.0
    assert ns.status()["cache"]["evicted_extents"] == 0
    online(rig, ns)
    assert ns.read("/m/big.bin") == BIG


def test_a_listing_that_was_never_whole_is_partial(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = rig.settings(ttl_s=0.2)
    ns = rig.open(settings)
    ns.read("/m/dir/small.bin")
    ns.read("/m/dir/sub/deep.bin", 0, 10)
    ns.list("/m/dir/sub")
    whole = ns.list("/m/dir/sub")
    assert not whole.partial
    go_offline(rig, ns)
    found = ns.list("/m/dir")
    assert found.partial and found.stale and found.age_s > 0.2
    assert [(entry.name, entry.kind) for entry in found] == [
        ("small.bin", Kind.FILE), ("sub", Kind.DIRECTORY),
    ]  # fmt: skip
    known = ns.stat("/m/dir/small.bin")
    assert (found[0].size_bytes, found[0].token) == (known.size_bytes, known.version)
    assert [entry.name for entry in ns.list("/m")] == ["dir"]
    assert ns.stat("/m/dir").kind is Kind.DIRECTORY and ns.stat("/m/dir").stale
    everything = ns.list("/", recursive=True)
    assert everything.partial
    files = {entry.name for entry in everything if entry.kind is Kind.FILE}
    assert files == {"m/dir/small.bin", "m/dir/sub/deep.bin"}
    again = ns.list("/m/dir/sub")
    assert not again.partial and again.stale and again == whole
    with pytest.raises(OriginUnavailable, match="nothing is known"):
        ns.list("/m/never")
    # fsspec has no room for the mark, and who copies wants all.
    fs = TierCacheFileSystem()
    fs.namespace = ns
    with pytest.raises(OriginUnavailable, match="never listed whole"):
        fs.find("/m/dir")
    assert fs.ls("/m/dir/sub", detail=False) == ["/m/dir/sub/deep.bin"]
    command = ["--config", str(config_file(rig, settings))]
    assert run([*command, "ls", "/m/dir"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["small.bin", "sub/"] and "/m/dir: partial:" in said.err
    assert run([*command, "ls", "--json", "/m/dir/sub", "/m/dir"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["partial"]) for one in listed] == [
        ("deep.bin", False), ("small.bin", True), ("sub", True),
    ]  # fmt: skip
    assert run([*command, "get", "/m/dir", str(rig.directory / "copy")]) == 5
    assert run([*command, "status"]) == 0
    assert "offline" in capsys.readouterr().out
    online(rig, ns)
    eventually(lambda: not ns.list("/m/dir").partial, what="whole again")
    assert len(ns.list("/m")) == 3


# -- jobs --------------------------------------------------------------------------------------


def test_a_prefetch_pauses_and_goes_on(rig: Rig) -> None:
    items = {f"many/{n:04}": object_bytes(f"m{n}", 20_000) for n in range(400)}
    rig.server.put_many(rig.bucket, items.items())
    rig.put("many/large", BIG)
    rig.proxy.set_network(PROFILES["same-region"])
    ns = rig.namespace()
    job = ns.prefetch("/m/many", concurrency=4)
    eventually(lambda: job.progress().filled >= 20)
    rig.proxy.black_hole()
    eventually(lambda: job.progress().state is JobState.PAUSED, within_s=NOTICED_S)
    paused = job.progress()
    assert not paused.ended and "is offline" in paused.message and paused.failed == 0
    rig.proxy.heal()
    done = job.wait(60)
    assert (done.state, done.failed, done.listed) == (JobState.DONE, 0, len(items) + 1)
    assert done.hit + done.filled == len(items) + 1
    assert done.hit_bytes + done.filled_bytes == 400 * 20_000 + len(BIG)
    for key, data in items.items():
        assert ns.read(f"/m/{key}") == data


def test_a_prefetch_that_begins_offline_waits(rig: Rig) -> None:
    ns = rig.namespace()
    ns.read("/m/cold.bin")
    go_offline(rig, ns)
    job = ns.prefetch("/m/dir")
    eventually(lambda: job.progress().state is JobState.PAUSED)
    dry = ns.prefetch("/m/dir", dry_run=True).wait(10)
    assert (dry.state, dry.error_class) == (JobState.FAILED, "OriginUnavailable")
    rig.proxy.heal()
    assert job.wait(60).state is JobState.DONE
    assert ns.read("/m/dir/small.bin") == SMALL


def test_a_paused_job_outlives_its_agent_and_can_be_cancelled(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    ns.read("/m/cold.bin")
    go_offline(rig, ns)
    job = ns.prefetch("/m/dir")
    eventually(lambda: job.progress().state is JobState.PAUSED)
    time.sleep(0.6)  # four times a second what is offline is written down
    kill_agent(ns)
    eventually(lambda: job.progress().state is JobState.PAUSED)
    other = ns.prefetch("/m/big.bin")
    eventually(lambda: other.progress().state is JobState.PAUSED)
    assert other.cancel().state is JobState.CANCELLED
    rig.proxy.heal()
    assert job.wait(60).state is JobState.DONE
    assert ns.cached_bytes("/m/big.bin") == 0


def test_an_announced_order_pauses_too(rig: Rig) -> None:
    items = {f"many/{n:04}": object_bytes(f"m{n}", 20_000) for n in range(60)}
    rig.server.put_many(rig.bucket, items.items())
    ns = rig.namespace()
    ns.read("/m/cold.bin")
    go_offline(rig, ns)
    job = ns.prefetch([f"/m/{key}" for key in items], ordered=True)
    eventually(lambda: job.progress().state is JobState.PAUSED)
    rig.proxy.heal()
    eventually(lambda: job.progress().filled == len(items), within_s=30.0)
    for key, data in items.items():
        assert ns.read(f"/m/{key}") == data
    done = job.wait(30)
    assert (done.state, done.failed, done.filled) == (JobState.DONE, 0, len(items))


# -- restarts ----------------------------------------------------------------------------------


def answers(ns: Namespace) -> dict[str, Any]:
    """What a job sees: reads, stats, listings, and the classes of errors."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OriginUnavailable as error:
            return type(error).__name__, error.path, error.message.partition(", and ")[0]

    calls: dict[str, Callable[[], Any]] = {
        "cached": lambda: hashlib.sha256(ns.read("/m/big.bin")).hexdigest(),
        "missing": lambda: ns.read("/m/cold.bin"),
        "unknown": lambda: ns.read("/m/never"),
        "stat": lambda: (ns.stat("/m/big.bin").version, ns.stat("/m/big.bin").stale),
        "directory": lambda: ns.stat("/m/dir").kind,
        "whole": lambda: (list(ns.list("/m")), ns.list("/m").stale, ns.list("/m").partial),
        "partial": lambda: (list(ns.list("/m/dir")), ns.list("/m/dir").partial),
    }
    return {name: outcome(call) for name, call in calls.items()}


def prepared(rig: Rig, **how: Any) -> Namespace:
    ns = rig.namespace(ttl_s=0.2, **how)
    assert ns.read("/m/big.bin") == BIG
    assert ns.read("/m/dir/small.bin") == SMALL
    ns.list("/m")
    return ns


def test_a_restarted_agent_answers_as_the_one_before(rig: Rig) -> None:
    ns = prepared(rig, embedded=False)
    go_offline(rig, ns)
    before = answers(ns)
    down_s = endpoint(ns)["since_s"]
    time.sleep(0.6)  # four times a second what is offline is written down
    kill_agent(ns)
    started = time.monotonic()
    assert answers(ns) == before
    # It knows of the outage from its start on, and waits for nothing.
    assert state(ns) == "offline" and endpoint(ns)["since_s"] > down_s
    assert time.monotonic() - started < 10.0
    online(rig, ns)
    assert ns.read("/m/cold.bin") == SMALL


def test_a_rebooted_node_answers_as_before(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ns = prepared(rig)
    go_offline(rig, ns)
    before = answers(ns)
    rig.close(ns)
    rebooted(monkeypatch)
    again = rig.namespace(ttl_s=0.2)
    assert answers(again) == before
    assert again.stat("/m/big.bin").age_s < 120
    online(rig, again)
    eventually(lambda: not again.stat("/m/big.bin").stale)


def rebooted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every clock made from now on be of another boot."""
    from tiercache.clock import BootClock

    original = BootClock.__init__

    def other_boot(clock: BootClock) -> None:
        original(clock)
        clock.boot_id = "another-boot"

    monkeypatch.setattr(BootClock, "__init__", other_boot)


# -- a training job ----------------------------------------------------------------------------


class Worker:
    """One worker process; ``steps`` are what it has said so far."""

    def __init__(self, plan: Plan) -> None:
        self.steps: list[tuple[int, float, bool]] = []
        self.ended_s: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.training_loop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(plan))
        self._process.stdin.close()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, took_s, right = msgspec.json.decode(line)
            self.steps.append((number, took_s, right))
            self.ended_s.append(time.monotonic())

    def has_done(self, count: int) -> bool:
        return len(self.steps) >= count

    def end(self) -> None:
        self._process.wait(60)
        self._listener.join(10)
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def late_s(self) -> float:
        return self.steps[-1][1]


def test_a_training_job_outlives_its_network_and_its_agent(rig: Rig) -> None:
    data = {f"data/{n:04}.bin": object_bytes(f"s{n}", 20_000 + 100 * n) for n in range(240)}
    data |= {f"data/large-{n}.bin": object_bytes(f"l{n}", 4 * MIB + n) for n in range(4)}
    rig.server.put_many(rig.bucket, data.items())
    rig.proxy.set_network(PROFILES["same-region"])
    settings = rig.settings(ttl_s=0.5)
    ns = rig.open(settings, embedded=False)
    assert ns.prefetch("/m/data", pin=True).wait(60).state is JobState.DONE
    samples = [(f"/m/{key}", hashlib.sha256(value).hexdigest()) for key, value in data.items()]
    workers = [Worker(Plan(settings, seed, samples)) for seed in (1, 2)]
    try:
        for worker in workers:
            eventually(partial(worker.has_done, 30), within_s=30.0)
        rig.proxy.black_hole()
        cut_s = time.monotonic()
        eventually(lambda: state(ns) == "offline", within_s=NOTICED_S)
        time.sleep(0.6)  # four times a second what is offline is written down
        kill_agent(ns)
        killed_s = time.monotonic()
        assert not any(worker.has_done(len(samples) - 10) for worker in workers), "in mid-epoch"
        ns.status()  # a supervisor would start it so
        restarted_s = time.monotonic()
        workers.append(Worker(Plan(settings, 3, samples)))
        for worker in workers:
            worker.end()
    finally:
        for worker in workers:
            worker.kill()
    for worker in workers:
        assert len(worker.steps) == len(samples) + 1
        assert all(right for _, _, right in worker.steps)
        for (_, took_s, _), ended_s in zip(worker.steps[:-1], worker.ended_s, strict=False):
            # Nobody is there to ask while the agent starts, which takes what it takes here.
            starting = ended_s - took_s < restarted_s and ended_s > killed_s
            allowed_s = 1.0 + worker.late_s + (restarted_s - killed_s if starting else 0.0)
            assert took_s < allowed_s, (took_s, ended_s - cut_s, worker.late_s)
    heals(rig, ns, [path for path, _ in samples])


def heals(rig: Rig, ns: Namespace, paths: list[str]) -> None:
    """The network returns: what was served stale is asked for, a few at a time, and a new object
    is there."""
    # A new agent that was never asked for anything else may not have found out.
    ns.list("/m/data")
    assert endpoint(ns)["pending_revalidations"] > 0
    rig.put("data/new.bin", SMALL)
    rig.proxy.clear()
    before = rig.proxy.peak_in_flight
    rig.proxy.heal()
    eventually(lambda: state(ns) != "offline", within_s=25.0)
    eventually(lambda: endpoint(ns)["pending_revalidations"] == 0, within_s=20.0)
    assert rig.proxy.peak_in_flight <= before + 16
    eventually(lambda: "new.bin" in {entry.name for entry in ns.list("/m/data")})
    assert ns.read("/m/data/new.bin") == SMALL
    assert not any(ns.stat(path).stale for path in paths)
