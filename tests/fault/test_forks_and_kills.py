"""Clients that are killed or stopped while they hold extents, and agents killed under clients."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiercache
from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    end,
    kill_agent,
    namespace,
    occupied_bytes,
    start_script,
    wait_for,
)
from tests.fault.origin_rig import agent_pids
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.units import KIB, MIB

CAPACITY = 32 * MIB
SIZE = 512 * KIB
COUNT = 40  # 20 MiB: nearly all that the cache has room for

# Holds what it is told by handles and views, says so, and sleeps until it is killed.
HOLDER = """
views = [ns.view(path) for path in arguments[1:]]
files = [ns.open(path) for path in arguments[1:]]
assert all(len(file.read_at(0, 10)) == 10 for file in files)
if arguments[0] == "views":
    os.write(1, b"held\\n")
else:  # hold the extents as a hit does: open, and with a shared lock
    del views
    os.write(1, b"held\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def origin(tmp_path: Path) -> FileOrigin:
    return FileOrigin(tmp_path / "origin")


@pytest.fixture
def settings(tmp_path: Path, origin: FileOrigin) -> Settings:
    return cache_settings(tmp_path / "c", origin.url, capacity_bytes=CAPACITY)


@pytest.fixture
def ns(settings: Settings) -> Iterator[Namespace]:
    with namespace(settings) as found:
        yield found


def hold(settings: Settings, what: str, keys: list[str]) -> subprocess.Popen[bytes]:
    holder = start_script(
        "import signal\n" + HOLDER, settings, what, *(f"/m/{key}" for key in keys)
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def trash_bytes(settings: Settings) -> int:
    return occupied_bytes(Path(settings.cache.dir) / "extents/trash")


def kill_and_wait(settings: Settings) -> None:
    """Kill the agent and wait until the kernel has closed all it had open."""
    (pid,) = agent_pids(settings)
    kill_agent(settings.cache.dir)
    wait_for(lambda: is_dead(pid))


def is_dead(pid: int) -> bool:
    """Return whether its last thread has ended too: till then its descriptors are open."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX" and len(threads) <= 1


def read_all(ns: Namespace, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert ns.read(f"/m/{key}") == data


@pytest.mark.parametrize("what", ["views", "handles"])
def test_what_a_killed_client_held_is_free_again(
    ns: Namespace, settings: Settings, origin: FileOrigin, what: str
) -> None:
    held = origin.fill("held", [SIZE] * (COUNT // 2), prefix="held/")
    others = origin.fill("others", [SIZE] * COUNT, prefix="others/")
    holders = [hold(settings, what, list(held)) for _ in range(2)]
    try:
        for key in held:
            ns.evict(f"/m/{key}")
        if what == "views":
            # Mapped bytes cannot go: they count, and others fit beside them.
            assert trash_bytes(settings) >= len(held) * SIZE // 2
        read_all(ns, others)
        assert occupied_bytes(settings.cache.dir) <= CAPACITY
        for holder in holders:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        wait_for(lambda: trash_bytes(settings) < 64 * KIB)
        assert ns.status()["cache"]["used_bytes"] <= CAPACITY
        read_all(ns, held)
        assert_ledger_agrees(ns, settings.cache.dir)
    finally:
        for holder in holders:
            end(holder)


@pytest.mark.parametrize("what", ["views", "handles"])
def test_a_stopped_client_that_holds_extents_stops_nobody(
    ns: Namespace, settings: Settings, origin: FileOrigin, what: str
) -> None:
    """It cannot let go of what was evicted; the others live with what is left."""
    held = origin.fill("held", [SIZE] * (COUNT // 4), prefix="held/")
    others = origin.fill("others", [SIZE] * (2 * COUNT), prefix="others/")
    holder = hold(settings, what, list(held))
    try:
        holder.send_signal(signal.SIGSTOP)
        for key in held:
            ns.evict(f"/m/{key}")
        for _ in range(2):
            read_all(ns, others)
            assert occupied_bytes(settings.cache.dir) <= CAPACITY
        assert trash_bytes(settings) >= len(held) * SIZE // 2
        status = ns.status()
        assert status["cache"]["evicted_extents"] > 0
        assert status["reads"]["/m"]["read_through_bytes"] == 0  # there was room for the others
        holder.send_signal(signal.SIGCONT)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        wait_for(lambda: trash_bytes(settings) < 64 * KIB)
    finally:
        end(holder)


def test_a_stopped_client_that_holds_everything_costs_read_throughs_not_errors(
    ns: Namespace, settings: Settings, origin: FileOrigin
) -> None:
    held = origin.fill("held", [SIZE] * COUNT, prefix="held/")
    others = origin.fill("others", [SIZE] * 8, prefix="others/")
    holder = hold(settings, "views", list(held))
    try:
        holder.send_signal(signal.SIGSTOP)
        ns.evict("/m/held")
        read_all(ns, others)
        assert occupied_bytes(settings.cache.dir) <= CAPACITY
    finally:
        holder.send_signal(signal.SIGCONT)
        end(holder)
    wait_for(lambda: trash_bytes(settings) < 64 * KIB)
    read_all(ns, others)
    assert all(ns.cached_bytes(f"/m/{key}") == SIZE for key in others)


def test_many_clients_killed_in_the_middle_of_reading(
    ns: Namespace, settings: Settings, origin: FileOrigin
) -> None:
    objects = origin.fill("many", [SIZE] * (2 * COUNT))
    script = (
        "os.write(1, b'reading\\n')\n"
        "while True:\n"
        "    path = random.choice(arguments)\n"
        "    assert len(ns.read(path)) == 512 * 1024\n"
        "    ns.view(path, 100_000, 65536)\n"
    )
    paths = [f"/m/{key}" for key in objects]
    for _ in range(3):
        clients = [start_script(script, settings, *paths) for _ in range(3)]
        try:
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == b"reading\n"
            read_all(ns, dict(list(objects.items())[:20]))
            assert all(client.poll() is None for client in clients)  # none failed
        finally:
            for client in clients:
                end(client)
    wait_for(lambda: len(ns.status()["clients"]) == 1)
    assert ns.status()["agent"]["internal_errors"] == 0
    read_all(ns, objects)
    assert_ledger_agrees(ns, settings.cache.dir)


# -- the agent goes, the client stays -------------------------------------------------------


def test_what_was_never_sent_is_asked_again_after_the_agents_death(
    ns: Namespace, settings: Settings, origin: FileOrigin
) -> None:
    """A copy or a write must not be done twice; one that met a dead connection was not begun."""
    origin.put("a", b"a" * 1000)
    assert ns.read("/m/a") == b"a" * 1000
    kill_and_wait(settings)
    ns.rename("/m/a", "/m/b")
    assert not ns.exists("/m/a") and ns.read("/m/b") == b"a" * 1000
    kill_and_wait(settings)
    assert ns.write("/m/c", b"c").size_bytes == 1
    kill_and_wait(settings)
    assert ns.remove("/m/c") == 1


def test_hits_go_on_without_an_agent(ns: Namespace, settings: Settings, origin: FileOrigin) -> None:
    objects = origin.fill("hits", [SIZE, 1000, 0])
    read_all(ns, objects)
    wait_for(lambda: all(ns.cached_bytes(f"/m/{key}") == len(objects[key]) for key in objects))
    kill_and_wait(settings)
    for key, data in objects.items():
        assert ns.read(f"/m/{key}", 0, len(data)) == data
        assert bytes(ns.view(f"/m/{key}", 0, len(data))) == data
        assert ns.stat(f"/m/{key}").size_bytes == len(data)
    assert agent_pids(settings) == []


def test_a_forked_child_outlives_its_parents_extents(
    ns: Namespace, settings: Settings, origin: FileOrigin
) -> None:
    """The child lets go of the parent's extents, or eviction would wait for the child's end."""
    objects = origin.fill("fork", [SIZE] * 10)
    read_all(ns, objects)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:  # sleeps until the test ends
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    try:
        for key in objects:
            ns.evict(f"/m/{key}")
        wait_for(lambda: trash_bytes(settings) < 64 * KIB)
        with tiercache.connect(settings) as other:
            read_all(other, objects)
    finally:
        os.close(theirs)
        os.waitpid(child, 0)
