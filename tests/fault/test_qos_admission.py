"""Admission at the agent on a real one: what waits, what is refused, what goes with its client."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fault.cache_rig import kill_agent, wait_for
from tests.integration.qos_rig import Rig, enlist, generation, owners, qos_of, use_of
from tiercache import wire
from tiercache.client.link import connect
from tiercache.compose_client import Client, open_client
from tiercache.errors import ConfigError, Throttled
from tiercache.model import JobState

pytestmark = pytest.mark.timeout(120)

# One operation a second, or a tenth of a megabyte.
NARROW = """
[node]
read = "1GB/s"
write = "1GB/s"

[[identity]]
name = "hasty"
match = [{ name = "hasty" }]
max_wait = "300ms"
operations.limit = 1
operations.burst = 1

[[identity]]
name = "prefetch"
match = [{ name = "prefetch" }]
max_wait = "100ms"
read.limit = "2MB/s"

[[identity]]
name = "two"
match = [{ name = "two" }]
in_flight = 2
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.write_policy(NARROW)
    try:
        yield rig
    finally:
        rig.close()


def look_up(client: Client, path: str = "/m/00000") -> wire.Found:
    return client.link.request(wire.Lookup(path), wire.Found)


def ask_until_refused(client: Client) -> Throttled:
    for _ in range(10):
        try:
            look_up(client)
        except Throttled as error:
            return error
    raise AssertionError("never refused")


def test_whoever_waits_too_long_is_told_by_whom_and_when_to_come_again(rig: Rig) -> None:
    rig.origin.fill("t", [1000])
    client = rig.client(name="hasty")
    error = ask_until_refused(client)
    assert type(error) is Throttled
    assert "'hasty'" in error.message and "has waited 0.3" in error.message
    assert "tiercache qos explain hasty" in error.remedy
    assert error.path == "/m/00000"
    assert 0.3 <= error.retry_after_s <= 60
    assert use_of(client, "hasty").throttled == 1
    status = json.loads(client.link.request(wire.StatusQuery(), wire.Status).body)
    assert all(one["state"] == "online" for one in status["endpoints"])  # no outage
    assert status["agent"]["internal_errors"] == 0


def test_looking_many_names_up_at_once_costs_as_much_as_one_by_one(rig: Rig) -> None:
    rig.origin.fill("t", [1000] * 2)
    client = rig.client(name="two")
    names = ("/m/00000", "/m/00001", "/m/none", "/m/neither", "/m")
    items = tuple((name, 0, None) for name in names)
    client.link.request(wire.FillMany(items), wire.FilledMany)
    used = use_of(client, "two")
    assert (used.operations, used.read_bytes) == (5, 2000)


def test_a_client_may_wait_less_than_its_policy_lets_it(rig: Rig) -> None:
    rig.origin.fill("t", [1000])
    impatient = rig.client(name="hasty", max_wait_s=0.05)
    assert "has waited 0.0" in ask_until_refused(impatient).message
    patient = rig.client(name="hasty", max_wait_s=50.0)
    assert "has waited 0.3" in ask_until_refused(patient).message
    with pytest.raises(ConfigError, match="no time to wait"):
        rig.client(max_wait_s=-1.0)


def test_a_storm_of_refusals_is_a_few_lines_of_the_audit_log(rig: Rig) -> None:
    rig.origin.fill("t", [1000])
    client = rig.client(name="hasty")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask_until_refused(client), range(8)))
    path = rig.cache / "qos-audit.jsonl"
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["what"], line["identity"]) for line in lines] == [("denied", "hasty")]


def test_a_prefetch_pays_by_its_own_name_and_waits_as_long_as_it_takes(rig: Rig) -> None:
    rig.origin.fill("p", [1_000_000] * 6)
    client = rig.client()
    began = time.monotonic()
    job = client.link.request(wire.Prefetch(("/m",)), wire.Job).progress
    while not job.ended:
        job = client.link.request(wire.JobQuery(job.id, 10.0), wire.Job).progress
    assert (job.state, job.filled, job.failed) == (JobState.DONE, 6, 0)
    assert time.monotonic() - began > 1.5  # 6 MB at 2 MB/s
    used = use_of(client, "prefetch")
    assert (used.read_bytes, used.throttled, used.processes) == (6_000_000, 0, 0)


def test_a_resumed_job_goes_by_the_name_it_began_with(rig: Rig) -> None:
    rig.origin.fill("p", [1_000_000] * 6)
    named = rig.client(name="two")
    rig.policy.write_text(rig.policy.read_text().replace("in_flight = 2", 'read.limit = "1MB/s"'))
    wait_for(lambda: generation(named) == 2)
    named.link.request(wire.Prefetch(("/m",)), wire.Job)
    wait_for(lambda: use_of(named, "two").read_bytes)
    assert kill_agent(rig.cache)
    wait_for(lambda: use_of(named, "two").read_bytes)
    assert use_of(named, "prefetch").read_bytes == 0


def test_checksums_of_a_snapshot_pay_once_for_what_they_fetch(rig: Rig) -> None:
    rig.origin.fill("s", [1_500_000] * 2)
    client = rig.client()
    for name, paid in (("v1", 3_000_000), ("v2", 3_000_000)):
        spec = wire.SnapshotCreate(name, ("/m",), checksums=True)
        job = client.link.request(spec, wire.Job).progress
        while not job.ended:
            job = client.link.request(wire.JobQuery(job.id, 10.0), wire.Job).progress
        assert job.state is JobState.DONE
        assert use_of(client, "prefetch").read_bytes == paid


def test_misses_pay_for_what_was_asked_once(rig: Rig) -> None:
    objects = rig.origin.fill("m", [300_000] * 4 + [100] * 30)
    client = rig.client()

    def charged() -> int:
        return use_of(client, "default").read_bytes

    assert client.reader.read("/m/00000", 65536, 65536) == objects["00000"][65536:131072]
    assert charged() == 65536
    items = [(f"/m/{number:05}", 0, None) for number in range(4, 34)]
    assert client.reader.read_many(items) == [objects[path[3:]] for path, _, _ in items]
    assert charged() == 65536 + 30 * 100
    file = client.link.request(wire.LocalPath("/m/00001", False), wire.Local).file
    assert Path(file).read_bytes() == objects["00001"]
    assert charged() == 65536 + 30 * 100 + 300_000


def test_writes_pay_for_their_bytes(rig: Rig) -> None:
    client = rig.client()
    write = client.link.request(wire.WriteBegin("/m/w", "overwrite"), wire.WriteStarted).write
    for _ in range(3):
        client.link.request(wire.WriteData(write, bytes(100_000)), wire.Done)
    client.link.request(wire.WriteFinish(write), wire.Found)
    used = use_of(client, "default")
    assert (used.written_bytes, used.operations) == (300_000, 1)


def test_no_more_than_the_cap_are_in_flight(rig: Rig) -> None:
    rig.origin.fill("f", [1000])
    client = rig.client(name="two")
    look_up(client)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: look_up(client), range(200)))
    assert len(answers) == 200
    assert use_of(client, "two").operations == 201
    assert use_of(client, "two").waiting == 0


def test_who_is_killed_while_waiting_leaves_within_a_second(rig: Rig) -> None:
    rig.origin.fill("k", [1000])
    rig.write_policy(NARROW.replace('max_wait = "300ms"\n', ""))
    watcher = rig.client()
    settings = rig.settings(name="hasty")
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            client = open_client(settings)
            enlist(client)
            threads = [
                threading.Thread(target=look_up, args=(client,), daemon=True) for _ in range(20)
            ]
            for thread in threads:
                thread.start()
            time.sleep(100)
        finally:
            os._exit(1)
    try:
        wait_for(lambda: use_of(watcher, "hasty").waiting)
        taken = owners(watcher)
        assert taken
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wait_for(lambda: not owners(watcher) and not use_of(watcher, "hasty").waiting, timeout_s=2.0)
    assert use_of(watcher, "hasty").processes == 0


def test_what_waits_goes_on_when_the_policy_does_not_hold_any_more(rig: Rig) -> None:
    rig.origin.fill("g", [1000])
    rig.write_policy(
        NARROW.replace('max_wait = "300ms"\n', "").replace("limit = 1", "limit = 0.02")
    )
    client, settler = rig.client(name="hasty"), rig.client()
    look_up(client)
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(look_up, client) for _ in range(8)]
        wait_for(lambda: use_of(settler, "hasty").waiting)
        qos_of(settler).set("hasty", {"operations.limit": "1000"})
        for wait in waits:
            wait.result(timeout=20)


@pytest.mark.parametrize(
    "body",
    [
        b"\x92\x2b\xc1",
        b"\x92\x2b\x01",
        b"\x91\x2c",
        b"\x93\x2d\xa3set\x05",
        b"\x92\x2e" * 5,
        b"\xff",
    ],
)
def test_nonsense_ends_its_connection_and_nothing_else(rig: Rig, body: bytes) -> None:
    client = rig.client()
    enlist(client, "two")
    before = owners(client)
    with socket.socket(socket.AF_UNIX) as sock:
        connect(sock, str(rig.cache / "agent.sock"))
        sock.settimeout(10.0)
        sock.sendall(wire.HEADER.pack(len(body), wire.WIRE_VERSION) + body)
        assert sock.recv(1) == b""
    assert owners(client) == before
    assert enlist(client, "two").generation == 1


def test_a_storm_of_wakes_harms_nobody(rig: Rig) -> None:
    client = rig.client()
    for _ in range(20_000):
        client.link.tell(wire.Wake())
    assert enlist(client, "two").seats
