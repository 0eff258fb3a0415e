"""The agent's side of QoS on a real agent: seats, limits on what it does for others, life of slots.

Everything counts bytes and operations over a time, with wide margins: speed is the benchmarks'.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import tiercache
from tests.fault.cache_rig import end, kill_agent, start_script, wait_for
from tests.integration.qos_rig import (
    SLOW,
    Rig,
    enlist,
    generation,
    owners,
    qos_of,
    slot_of,
    use_of,
    with_version,
)
from tiercache import wire
from tiercache.clock import BootClock
from tiercache.compose_client import open_client
from tiercache.errors import ConfigError
from tiercache.policy import lease_words as words

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


def count_for(seconds: float, work: Callable[[], object]) -> int:
    """Do it again and again; return how often it was done in the time."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        work()
        count += 1
    return count


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """Run work in a forked child that then sleeps; it says when it has done it."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            work()
            os.write(done, b"x")
            time.sleep(100)
        finally:
            os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid
    finally:
        os.close(ready)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_without_a_policy_nobody_is_enlisted(rig: Rig) -> None:
    client = rig.client(policy=False)
    assert enlist(client, "slow") == wire.Enlisted(0)
    assert generation(client) == 0
    assert not owners(client)


def test_seats_say_what_the_policy_does(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    known = enlist(client, "slow")
    assert known.generation == generation(client) == 1
    assert [(seat.path, seat.identity) for seat in known.seats] == [("", "slow")]
    seat = known.seats[0]
    slot = slot_of(client, seat)
    assert (seat.safe_read, seat.safe_operations) == (200_000, 5)
    assert slot[words.OWNER] == seat.owner > 0
    assert slot[words.RATE_READ] == 2_000_000
    assert slot[words.SAFE_OPS] == 5
    assert slot[words.GRANT_READ] >= 1 and slot[words.GRANT_OPS] >= 1
    unknown = enlist(client, "somebody else")
    assert [(seat.path, seat.identity) for seat in unknown.seats] == [
        ("/m/scratch", "scratch"),
        ("", "default"),
    ]
    unbound = slot_of(client, unknown.seats[1])
    assert unbound[words.GRANT_OPS] == unbound[words.RATE_OPS] == words.UNLIMITED
    assert len({seat.mark for seat in (*known.seats, *unknown.seats)} - {1}) == 3
    assert enlist(client, "slow") == known
    assert len(owners(client)) == 3


def test_tokens_come_at_the_rate_of_the_limit(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client(name="slow")
    slot = slot_of(client, enlist(client, "slow").seats[0])
    clock = BootClock()

    def pay() -> None:
        if slot[words.USED_OPS] < slot[words.GRANT_OPS]:
            slot[words.USED_OPS] += 1
            slot[words.WAITING_NS] = 0
            return
        if not slot[words.WAITING_NS]:
            slot[words.WANT_OPS] = 1
            slot[words.WAITING_NS] = int(clock.now() * 1e9)
            client.link.tell(wire.Wake())
        time.sleep(0.001)

    count_for(1.0, pay)
    assert 25 < slot[words.USED_OPS] < 80  # 50 a second, and a burst


def test_misses_names_and_writes_are_charged_at_the_agent(rig: Rig) -> None:
    rig.write_policy(SLOW)
    objects = rig.origin.fill("misses", [500_000] * 6)
    client = rig.client(name="slow")
    began = time.monotonic()
    for key, data in objects.items():  # 3 MB at 2 MB/s
        assert client.reader.read(f"/m/{key}") == data
    assert 0.7 < time.monotonic() - began < 20
    lookup = wire.Lookup("/m/00000")
    assert count_for(1.0, lambda: client.link.request(lookup, wire.Found)) < 100  # 50 a second


def test_nobody_else_pays_for_it(rig: Rig) -> None:
    rig.write_policy(SLOW)
    rig.origin.fill("free", [1000])
    client = rig.client()
    lookup = wire.Lookup("/m/00000")
    began = time.monotonic()
    for _ in range(300):
        client.link.request(lookup, wire.Found)
    assert time.monotonic() - began < 5  # 6 s at the limit of the slow


@pytest.mark.parametrize("name", ["a" * 129, "two\nlines", "bell\a"])
def test_names_that_nobody_could_read_are_refused(rig: Rig, name: str) -> None:
    rig.write_policy(SLOW)
    with pytest.raises(ConfigError, match="no name for the QoS policy"):
        rig.client(name=name)
    with pytest.raises(ConfigError, match="no name for the QoS policy"):
        enlist(rig.client(), name)


def test_slots_go_with_the_last_connection(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    enlist(client)
    before = owners(client)
    settings = rig.settings()

    def another() -> None:
        enlist(open_client(settings), "slow")

    with child(another) as pid:
        assert len(owners(client) - before) == 1
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: owners(client) == before, timeout_s=2.0)


READING = """
ns.read("/m/00000")  # cold: from the origin
started = time.monotonic()
while True:
    ns.read("/m/00000", 0, 65536)
    sys.stdout.write(".")
    sys.stdout.flush()
"""


def reads_in(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Return how many reads a reader that prints a dot for each has made in the time."""
    assert process.stdout is not None
    descriptor, count, end = process.stdout.fileno(), 0, time.monotonic() + seconds
    os.set_blocking(descriptor, False)
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            count += len(os.read(descriptor, 1 << 20))
        time.sleep(0.01)
    return count


def test_a_running_client_keeps_to_a_policy_that_comes_changes_and_ends(rig: Rig) -> None:
    rig.origin.fill("r", [1_000_000])
    watcher = rig.client(policy=False)
    qos = qos_of(watcher)
    reader = start_script(READING, rig.settings(name="slow", policy=False))
    try:
        wait_for(lambda: reads_in(reader, 0.5) > 1000, timeout_s=30.0)
        qos.apply(with_version(SLOW))  # 50 operations a second
        wait_for(lambda: reads_in(reader, 0.5) < 100)
        assert 10 < reads_in(reader, 1.0) < 90  # 50, or fewer on a busy machine
        qos.set("slow", {"operations.limit": "400", "read.limit": "1GB/s"})
        wait_for(lambda: reads_in(reader, 0.5) > 100)
        assert 200 < reads_in(reader, 1.0) < 700
        qos.apply(with_version(SLOW.replace('"slow"', '"other"')))
        wait_for(lambda: reads_in(reader, 0.5) > 1000)  # nobody's limit
    finally:
        end(reader)


def test_parent_and_child_pay_by_slots_of_their_own(rig: Rig) -> None:
    rig.origin.fill("f", [1_000_000])
    rig.write_policy(SLOW)
    with tiercache.connect(rig.settings(name="slow")) as ns:
        ns.read("/m/00000", 0, 65536)
        watcher = rig.client()
        wait_for(lambda: use_of(watcher, "slow").processes == 1)
        with child(lambda: ns.read("/m/00000", 65536, 65536)) as pid:
            assert use_of(watcher, "slow").processes == 2
            assert len(owners(watcher)) >= 2
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: use_of(watcher, "slow").processes == 1, timeout_s=2.0)
        ns.read("/m/00000", 0, 65536)


def test_an_agent_that_is_killed_leaves_its_clients_their_shares(rig: Rig) -> None:
    """Never a stop, never a storm; and the next agent goes on with the same policy."""
    rig.origin.fill("k", [1_000_000])
    rig.write_policy(SLOW)
    reader = start_script(READING, rig.settings(name="slow"))
    try:
        wait_for(lambda: reads_in(reader, 0.5), timeout_s=30.0)
        assert reads_in(reader, 1.0) < 200
        assert kill_agent(rig.cache)
        assert 0 < reads_in(reader, 2.0) < 300
        wait_for(lambda: use_of(rig.client(), "slow").operations)
        assert 0 < reads_in(reader, 2.0) < 300
    finally:
        end(reader)
