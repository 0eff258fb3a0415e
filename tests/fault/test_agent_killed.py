"""``kill -9`` of the agent at random moments: no wrong byte, no lost capacity, ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.agent_nursery import Nursery
from tests.fault.cache_rig import (
    FileOrigin,
    agent_pid,
    assert_ledger_agrees,
    cache_settings,
    end_agents,
    is_agent,
    kill_agent,
    namespace,
    occupied_bytes,
    shut_down,
    wait_for,
)
from tiercache.compose import fsck
from tiercache.errors import AgentUnavailable, CacheFull, TiercacheError
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.units import KIB, MIB

ROUNDS = 200
CHECK_EVERY = 20
CAPACITY_BYTES = 20 * MIB
LARGE = [700 * KIB + 5 * number for number in range(12)] + [3 * MIB + 17] * 4
SMALL = [1 + 317 * number for number in range(150)]


class Workload:
    """Threads that use the cache in every way and compare every byte. ``failures`` is what they
    found wrong; an agent that went away under a write is not wrong."""

    def __init__(self, ns: Namespace, objects: dict[str, bytes], seed: int) -> None:
        self._ns = ns
        self._objects = objects
        self._seed = seed
        self._running = threading.Event()
        self._running.set()
        self._ended = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self.failures: list[str] = []
        self.done: dict[str, int] = {}
        works = (self._read, self._read, self._write, self._shake)
        self._threads = [
            threading.Thread(target=self._run, args=(work, number), name=work.__name__)
            for number, work in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Return when no thread is in the middle of anything."""
        self._running.clear()
        wait_for(lambda: self._busy == 0, timeout_s=30)

    def go_on(self) -> None:
        self._running.set()

    def end(self) -> None:
        self._ended.set()
        self._running.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, work: Callable[[random.Random, int], None], number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        while not self._ended.is_set():
            self._running.wait()
            with self._lock:
                self._busy += 1
            try:
                if self._running.is_set():
                    work(rng, number)
                    self.done[work.__name__] = self.done.get(work.__name__, 0) + 1
            except AgentUnavailable:
                pass  # killed four times under one request
            except (TiercacheError, OSError, AssertionError) as error:
                self.failures.append(f"{work.__name__}: {error!r}")
            finally:
                with self._lock:
                    self._busy -= 1

    def _read(self, rng: random.Random, number: int) -> None:
        key = rng.choice(list(self._objects))
        data = self._objects[key]
        offset = rng.randrange(len(data))
        length = rng.choice((1, 5000, 65_536, 300_000, None))
        expected = data[offset:] if length is None else data[offset : offset + length]
        assert self._ns.read(f"/m/{key}", offset, length) == expected, (key, offset, length)

    def _write(self, rng: random.Random, number: int) -> None:
        key = f"w/{rng.randrange(6)}"
        size = rng.choice((0, 10, 40_000, 600_000, 9_000_000))
        data = object_bytes(f"{self._seed}/{rng.random()}", size)
        try:
            self._ns.write(f"/m/{key}", data)
        except AgentUnavailable:
            return  # killed under it; whether it came to pass is not known
        except TiercacheError as error:
            if "does not know this write" not in str(error):
                raise
            return
        assert self._ns.read(f"/m/{key}") == data, f"own write of {key}"

    def _shake(self, rng: random.Random, number: int) -> None:
        """Change what is cached, and how."""
        key = f"/m/{rng.choice(list(self._objects))}"
        match rng.randrange(6):
            case 0:
                self._ns.evict(key)
            case 1:
                self._ns.invalidate(key)
            case 2:
                self._ns.prefetch("/m/small", background=False)
            case 3:
                items = [(f"/m/{name}", 0, None) for name in rng.sample(list(self._objects), 20)]
                for (path, _, _), found in zip(items, self._ns.read_many(items), strict=True):
                    assert found == self._objects[path[3:]], path
            case 4:
                try:
                    file = self._ns.local_path(key, pin=False)
                    data = Path(file).read_bytes()
                except (CacheFull, FileNotFoundError):
                    return  # evicted before it was opened
                assert data == self._objects[key[3:]], f"local file of {key}"
            case _:
                self._ns.list("/m", recursive=True, refresh=True)


@pytest.fixture
def objects(tmp_path: Path) -> dict[str, bytes]:
    origin = FileOrigin(tmp_path / "origin")
    return origin.fill("large", LARGE, "large/") | origin.fill("small", SMALL, "small/")


@pytest.fixture
def killable(tmp_path: Path, objects: dict[str, bytes]) -> Iterator[Namespace]:
    """A namespace whose agents come from a nursery."""
    settings = cache_settings(
        tmp_path / "cache", f"file://{tmp_path}/origin", capacity_bytes=CAPACITY_BYTES
    )
    nursery = Nursery(settings)
    try:
        (tmp_path / "cache").mkdir(mode=0o700)
        nursery.start()
        with namespace(settings) as ns:
            ns.client.link._start_agent = nursery.start
            yield ns
    finally:
        nursery.close()


def _check(ns: Namespace, cache_dir: Path, objects: dict[str, bytes]) -> None:
    """Every byte is right, and all capacity is there again once everything is evicted."""
    for key, data in objects.items():
        assert ns.read(f"/m/{key}") == data, key
    assert ns.status()["cache"]["corrupt_pages"] == 0
    assert_ledger_agrees(ns, cache_dir)
    ns.evict("/m")
    assert ns.status()["cache"]["extents"] == 0
    assert_ledger_agrees(ns, cache_dir)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_hundred_kills(
    killable: Namespace, tmp_path: Path, objects: dict[str, bytes], seed: int
) -> None:
    rng = random.Random(seed)
    cache_dir = tmp_path / "cache"
    workload = Workload(killable, objects, seed)
    try:
        for number in range(ROUNDS):
            wait_for(lambda: is_agent(agent_pid(cache_dir), cache_dir), timeout_s=20)
            time.sleep(rng.uniform(0.05, 0.3))
            kill_agent(cache_dir)
            assert not workload.failures, (number, workload.failures)
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                workload.pause()
                _check(killable, cache_dir, objects)
                workload.go_on()
    finally:
        workload.end()
    assert not workload.failures
    end_agents(cache_dir)
    left = fsck(killable.settings, repair=False)
    assert not left.corruptions and left.ledger_bytes >= left.disk_bytes, left.problems
    killable.status()  # starts an agent, which takes up what the dead one left
    shut_down(killable)
    left = fsck(killable.settings, repair=False)
    assert left.clean, left.problems
    assert min(workload.done.values()) > 20, workload.done
    assert occupied_bytes(cache_dir) <= CAPACITY_BYTES
