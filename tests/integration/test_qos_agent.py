"""The agent's side of QoS on a real agent: seats, limits on what it does for others, life of slots.

Everything counts bytes and operations over a time, with wide margins: speed is the benchmarks'.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import FileOrigin, cache_settings, end_agents, wait_for
from tiercache import wire
from tiercache.clock import BootClock
from tiercache.compose import Client, open_client
from tiercache.errors import ConfigError
from tiercache.extents.lease_file import LeaseFileReader
from tiercache.policy import lease_words as words
from tiercache.settings import QosSettings, Settings

pytestmark = pytest.mark.timeout(120)

SLOW = """
[[identity]]
name = "slow"
match = [{ name = "slow" }]
read.limit = "2MB/s"
operations.limit = 50

[[identity]]
name = "scratch"
match = [{ path = "/m/scratch" }]
"""


class Rig:
    """One cache directory with a policy file, and clients of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = FileOrigin(root / "origin")
        self.policy = root / "policy.toml"
        self.cache = root / "cache"
        self._clients: list[Client] = []

    def settings(self, *, name: str = "", policy: bool = True, idle_s: float = 30.0) -> Settings:
        found = cache_settings(self.cache, self.origin.url, idle_timeout_s=idle_s)
        file = str(self.policy) if policy else ""
        return msgspec.structs.replace(found, qos=QosSettings(policy=file, name=name))

    def write_policy(self, text: str) -> None:
        """Put a policy in the file's place, as an editor does."""
        new = self.policy.with_suffix(".new")
        new.write_text(f"version = 1\n{text}")
        os.rename(new, self.policy)

    def client(self, **settings: object) -> Client:
        client = open_client(self.settings(**settings))  # type: ignore[arg-type]  # as above
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        end_agents(self.cache)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


def enlist(client: Client, name: str = "") -> wire.Enlisted:
    return client.link.request(wire.Enlist(name), wire.Enlisted)


def leases_of(client: Client) -> LeaseFileReader:
    assert client.leases is not None
    return client.leases


def slot_of(client: Client, seat: wire.Seat) -> memoryview:
    first = seat.slot * words.SLOT_WORDS
    return leases_of(client).slots[first : first + words.SLOT_WORDS]


def generation(client: Client) -> int:
    return int(leases_of(client).header[words.GENERATION_WORD])


def owners(client: Client) -> set[int]:
    slots = leases_of(client).slots
    return {slots[n * words.SLOT_WORDS] for n in range(words.SLOTS_COUNT)} - {0}


def count_for(seconds: float, work: Callable[[], object]) -> int:
    """Do it again and again; return how often it was done in the time."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        work()
        count += 1
    return count


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
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
    assert unbound[words.GRANT_READ] == unbound[words.RATE_OPS] == words.UNLIMITED
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

    count_for(2.0, pay)
    assert 60 < slot[words.USED_OPS] < 130  # 50 a second, and a burst


def test_misses_names_and_writes_are_charged_at_the_agent(rig: Rig) -> None:
    rig.write_policy(SLOW)
    objects = rig.origin.fill("misses", [500_000] * 12)
    client = rig.client(name="slow")
    began = time.monotonic()
    for key, data in objects.items():  # 6 MB at 2 MB/s
        assert client.reader.read(f"/m/{key}") == data
    assert 1.5 < time.monotonic() - began < 20
    lookup = wire.Lookup("/m/00000")
    assert count_for(2.0, lambda: client.link.request(lookup, wire.Found)) < 150  # 50 a second


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
