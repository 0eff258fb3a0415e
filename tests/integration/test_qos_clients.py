"""Clients under a policy, with a real agent: every way of reading pays for its bytes once, and for
one operation a call."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiercache
from tests.fault.cache_rig import kill_agent, wait_for
from tests.integration.qos_rig import Rig
from tiercache import wire
from tiercache.errors import Throttled
from tiercache.fs.filesystem import TierCacheFileSystem
from tiercache.namespace import Namespace
from tiercache.policy import lease_words as words
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)

SMALL, LARGE = 100_000, 12 * MIB
PART = (65536, 30_000)  # offset and length of what a call reads a part of
AMPLE = """
[node]
read = "90GB/s"
write = "90GB/s"
operations = "90M/s"

[[identity]]
name = "reader"
match = { path = "/m" }
read.limit = "80GB/s"
operations.limit = "80M/s"
"""
TIGHT = """
[node]
read = "1GB/s"
write = "1GB/s"

[[identity]]
name = "slow"
match = { path = "/m/slow" }
read = { limit = "1MB/s", burst = "100kB" }

[[identity]]
name = "reader"
match = { path = "/m" }
read.limit = "900MB/s"
"""


class Counted:
    """A namespace, and what its identity was charged since it was last asked."""

    def __init__(self, rig: Rig) -> None:
        self.ns: Namespace = tiercache.connect(rig.settings())
        self.fs = TierCacheFileSystem(
            cache_dir=str(rig.cache),
            mounts={"/m": rig.origin.url},
            cache={"capacity": "64MiB", "memory": "64MiB"},
            skip_instance_cache=True,  # type: ignore[call-arg]  # fsspec takes it before us
        )
        self.rig = rig
        self.small = self.large = ""
        self._before = (0, 0)
        self._folders = 0

    def new_names(self) -> None:
        self._folders += 1
        folder = f"{self._folders:02}"
        self.rig.origin.fill(folder, [SMALL, LARGE], f"{folder}/")
        self.small, self.large = f"/m/{folder}/00000", f"/m/{folder}/00001"

    def close(self) -> None:
        self.fs.namespace.close()
        self.ns.close()

    def charged(self) -> tuple[int, int]:
        """Return (bytes, operations), all of them: the governor has turned since."""
        leases = self.ns.client.leases
        assert leases is not None
        for _ in range(2):
            turned = leases.header[words.TURN_WORD]
            self.ns.client.link.tell(wire.Wake())
            wait_for(lambda turned=turned: leases.header[words.TURN_WORD] > turned)  # type: ignore[misc]  # bound now
        found = next(one for one in self.ns.qos.top().identities if one.identity == "reader")
        before, self._before = self._before, (found.read_bytes, found.operations)
        return found.read_bytes - before[0], found.operations - before[1]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    rig = Rig(tmp_path_factory.mktemp("shared"))
    rig.write_policy(AMPLE)
    counted = Counted(rig)
    try:
        yield counted
    finally:
        counted.close()
        rig.close()


@pytest.fixture
def counted(shared: Counted) -> Counted:
    """One agent for all, with names of its own for each test, of processes that know nothing."""
    shared.ns.close()
    shared.fs.namespace.close()
    shared.new_names()
    shared.charged()
    return shared


def warm(ns: Namespace, path: str) -> None:
    """Read until the process has it all at hand: the index may tell of what was fetched a moment
    later only."""
    wait_for(lambda: ns.read(path) and ns.is_hit(path))
    ns.read(path)


Call = Callable[[Counted, str, int, int], object]


def _file(counted: Counted, path: str, offset: int, length: int) -> bytes:
    with counted.ns.open(path) as file:
        file.seek(offset)
        return file.read(length)


def _handle(counted: Counted, path: str, offset: int, length: int) -> bytes:
    with counted.fs.open(path) as file:
        file.seek(offset)
        return bytes(file.read(length))


async def _async_handle(counted: Counted, path: str, offset: int, length: int) -> bytes:
    handle = await counted.fs.open_async(path)
    async with handle:
        handle.seek(offset)
        return await handle.read(length)


CALLS: dict[str, Call] = {
    "read": lambda c, path, offset, length: c.ns.read(path, offset, length),
    "view": lambda c, path, offset, length: c.ns.view(path, offset, length),
    "read_into": lambda c, path, offset, length: c.ns.read_into(path, offset, bytearray(length)),
    "read_many": lambda c, path, offset, length: c.ns.read_many([(path, offset, length)]),
    "open().read": _file,
    "fs.open().read": _handle,
    "cat_file": lambda c, path, offset, length: c.fs.cat_file(path, offset, offset + length),
    "cat_ranges": lambda c, path, offset, length: c.fs.cat_ranges(
        [path], [offset], [offset + length], on_error="raise"
    ),
    "_cat_file": lambda c, path, offset, length: asyncio.run(
        c.fs._cat_file(path, offset, offset + length)
    ),
    "_cat_ranges": lambda c, path, offset, length: asyncio.run(
        c.fs._cat_ranges([path], [offset], [offset + length], on_error="raise")
    ),
    "open_async().read": lambda c, path, offset, length: asyncio.run(
        _async_handle(c, path, offset, length)
    ),
    "locate": lambda c, path, offset, length: c.ns.locate(path, offset, length),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_hit_pays_its_bytes_and_one_operation_once(counted: Counted, name: str) -> None:
    call = CALLS[name]
    for path, size, part in ((counted.small, SMALL, PART), (counted.large, LARGE, PART)):
        warm(counted.ns, path)
        warm(counted.fs.namespace, path)
        counted.charged()
        call(counted, path, *part)
        assert counted.charged() == (part[1], 1), path
        call(counted, path, 0, size)
        assert counted.charged() == (size, 1), path
        for _ in range(10):
            call(counted, path, *part)
        assert counted.charged() == (10 * part[1], 10), path


@pytest.mark.parametrize("name", CALLS)
def test_the_first_touch_of_a_process_pays_the_same(counted: Counted, name: str) -> None:
    warm(counted.ns, counted.small)
    warm(counted.ns, counted.large)
    call = CALLS[name]
    for path, size in ((counted.small, SMALL), (counted.large, LARGE)):
        counted.charged()
        counted.ns.close()  # opens anew, and knows nothing
        counted.fs.namespace.close()
        call(counted, path, 0, size)
        assert counted.charged() == (size, 1), path


@pytest.mark.parametrize("name", CALLS)
def test_a_miss_is_charged_by_the_agent_alone(counted: Counted, name: str) -> None:
    """One operation for the look-up, and one for what is fetched."""
    counted.charged()
    CALLS[name](counted, counted.small, 0, SMALL)
    assert counted.charged() == (SMALL, 2)


def test_many_misses_in_one_call(counted: Counted) -> None:
    counted.rig.origin.fill("many", [1000] * 20, "many/")
    items: list[tuple[str, int, int | None]] = [
        (f"/m/many/{number:05}", 0, None) for number in range(20)
    ]
    counted.charged()
    assert [len(data) for data in counted.ns.read_many(items)] == [1000] * 20
    assert counted.charged() == (20_000, 20)
    for path, _, _ in items:
        warm(counted.ns, path)
        warm(counted.fs.namespace, path)
    counted.charged()
    counted.ns.read_many(items)
    assert counted.charged() == (20_000, 20)
    ranges = [path for path, _, _ in items[:10]]
    asyncio.run(counted.fs._cat_ranges(ranges, 0, 500, on_error="raise"))
    asyncio.run(counted.fs._cat_ranges(ranges, 0, 500, on_error="raise"))
    assert counted.charged() == (10_000, 20)


def test_many_misses_of_a_snapshot(counted: Counted) -> None:
    counted.rig.origin.fill("frozen", [1000] * 20, "frozen/")
    counted.ns.snapshots.create("frozen", ("/m/frozen",)).wait(30)
    items: list[tuple[str, int, int | None]] = [
        (f"/frozen@snapshot/m/frozen/{number:05}", 100, None) for number in range(20)
    ]
    counted.charged()
    assert [len(data) for data in counted.ns.read_many(items)] == [900] * 20
    assert counted.charged() == (18_000, 20)
    counted.ns.snapshots.remove("frozen")


def test_what_is_there_of_a_miss_is_paid_too(counted: Counted) -> None:
    counted.ns.read(counted.large, MIB, MIB)
    counted.charged()
    counted.ns.read(counted.large, 0, 4 * MIB)
    count, _ = counted.charged()
    assert count == 4 * MIB


def test_a_local_path_is_charged_whole(counted: Counted) -> None:
    path = counted.ns.local_path(counted.small, pin=False)
    assert os.path.getsize(path) == SMALL
    assert counted.charged() == (SMALL, 1)
    counted.ns.local_path(counted.small)
    assert counted.charged() == (SMALL, 2)  # to pin is one too


def test_stats_cost_nothing_where_the_agent_is_not_asked(counted: Counted) -> None:
    warm(counted.ns, counted.small)
    counted.charged()
    for _ in range(10):
        counted.ns.stat(counted.small)
        counted.ns.is_hit(counted.small)
    assert counted.charged() == (0, 0)


# -- life -----------------------------------------------------------------------------------


def payer_of(ns: Namespace, path: str) -> object:
    ns.read(path, 0, 1)
    return ns.reader().payer(path)


def test_a_policy_comes_and_goes(rig: Rig) -> None:
    rig.origin.fill("clients", [SMALL])
    with tiercache.connect(rig.settings(policy=False)) as ns:
        assert payer_of(ns, "/m/00000") is None
        ns.qos.apply("version = 1\n" + AMPLE)
        payer = payer_of(ns, "/m/00000")
        assert payer is not None
        ns.qos.set("reader", {"read.limit": "1GB/s"})
        assert payer_of(ns, "/m/00000") is payer
        ns.qos.apply("version = 1\n")
        assert payer_of(ns, "/m/00000") is not payer


def test_a_forked_child_pays_from_a_slot_of_its_own(counted: Counted) -> None:
    warm(counted.ns, counted.small)
    counted.charged()
    slots = _slots_taken(counted.ns)
    _read_in_a_child(counted.ns, lambda: counted.ns.read(counted.small, 0, 1000))
    wait_for(lambda: _slots_taken(counted.ns) == slots)
    assert counted.charged() == (3000, 3)


def test_a_handle_of_a_forked_child_pays_from_the_child_s_slot(counted: Counted) -> None:
    """And waits for none of the parent's threads, which are not there."""
    warm(counted.ns, counted.small)
    with counted.ns.open(counted.small) as file:
        file.read(10)
        payer = counted.ns.reader().payer(counted.small)
        assert payer is not None
        counted.charged()
        slots = _slots_taken(counted.ns)
        with payer.settled(), payer._lock:  # as where threads pay at this moment
            _read_in_a_child(counted.ns, lambda: file.read(1000))
    wait_for(lambda: _slots_taken(counted.ns) == slots)
    assert counted.charged() == (3000, 3)


def _read_in_a_child(ns: Namespace, read: Callable[[], object]) -> None:
    """Have a forked child read three times, and take as many slots as there were before."""
    slots = _slots_taken(ns)
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        signal.alarm(20)
        status = 1
        try:
            for _ in range(3):
                read()
            status = 0 if _slots_taken(ns) == 2 * slots else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _slots_taken(ns: Namespace) -> int:
    leases = ns.client.leases
    assert leases is not None
    return sum(leases.slots[n * words.SLOT_WORDS] != 0 for n in range(words.SLOTS_COUNT))


def test_who_has_lost_its_connections_is_seated_again(counted: Counted) -> None:
    warm(counted.ns, counted.small)
    counted.ns.client.link.close()  # as where each was broken off in the middle of an answer
    wait_for(lambda: _slots_taken(counted.ns) == 0)
    wait_for(
        lambda: (
            [counted.ns.read(counted.small, 0, 10) for _ in range(100)] and _slots_taken(counted.ns)
        )
    )
    payer = counted.ns.reader().payer(counted.small)
    assert payer is not None
    assert not payer._lease.is_lost


def test_hits_go_on_without_an_agent_and_pay_the_next(rig: Rig) -> None:
    rig.write_policy(AMPLE)
    rig.origin.fill("clients", [SMALL, SMALL])
    with tiercache.connect(rig.settings()) as ns:
        warm(ns, "/m/00000")
        kill_agent(rig.cache)
        began, count = time.monotonic(), 0
        while time.monotonic() < began + 1.5:
            assert len(ns.read("/m/00000", 0, 65536)) == 65536
            count += 1
        assert count > 100
        ns.read("/m/00001")  # a miss: another agent starts
        payer = ns.reader().payer("/m/00001")
        assert payer is not None
        wait_for(lambda: ns.read("/m/00000", 0, 1) and not payer._lease.is_alone)
        assert ns.reader().payer("/m/00000") is payer


def test_a_stopped_agent_stops_no_hit(rig: Rig) -> None:
    rig.write_policy(TIGHT)
    rig.origin.put("slow/a", bytes(SMALL))
    with tiercache.connect(rig.settings()) as ns:
        warm(ns, "/m/slow/a")
        pid = ns.client.link.welcome.agent_pid  # type: ignore[union-attr]  # connected
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(5):
                ns.read("/m/slow/a", 0, 50_000)
            assert time.monotonic() - began < 20
        finally:
            os.kill(pid, signal.SIGCONT)
        payer = ns.reader().payer("/m/slow/a")
        assert payer is not None
        wait_for(lambda: ns.read("/m/slow/a", 0, 1) and not payer._lease.is_alone, timeout_s=20)


# -- waiting --------------------------------------------------------------------------------


def test_waiting_tasks_hold_up_no_other_identity_s_loop(rig: Rig) -> None:
    rig.write_policy(TIGHT)
    rig.origin.put("slow/a", bytes(SMALL))
    rig.origin.put("fast", bytes(SMALL))
    counted = Counted(rig)
    ns, fs = counted.fs.namespace, counted.fs
    warm(ns, "/m/slow/a")
    warm(ns, "/m/fast")

    async def main() -> int:
        slow = [asyncio.create_task(fs._cat_file("/m/slow/a", 0, 65536)) for _ in range(50)]
        await asyncio.sleep(0.2)
        count, end = 0, time.monotonic() + 1.0
        while time.monotonic() < end:
            await fs._cat_file("/m/fast", 0, 1000)
            count += 1
        waiting = sum(not task.done() for task in slow)
        assert waiting > 20  # 16 a second
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return count

    try:
        assert asyncio.run(main()) > 200
        payer = ns.reader().payer("/m/slow/a")
        assert payer is not None
        assert not payer._queue
        assert not payer._lease.words[words.WAITING_NS]
        assert threading.active_count() < 40  # no threads wait for them
    finally:
        counted.close()


def test_max_wait_ends_a_wait(rig: Rig) -> None:
    rig.write_policy(TIGHT)
    rig.origin.put("slow/a", bytes(8 * MIB))
    with tiercache.connect(rig.settings()) as ns:
        ns.read("/m/slow/a", 0, 1)
        ns.qos.set("slow", {"max_wait": "100ms"})
        ns.read("/m/slow/a")
        with pytest.raises(Throttled, match=r"/m/slow/a: 'slow' has waited 0\.1") as caught:
            ns.read("/m/slow/a")
        assert caught.value.retry_after_s > 0


def test_misses_that_wait_for_their_share_keep_no_other_identity_s_from_a_thread(rig: Rig) -> None:
    rig.write_policy(TIGHT)
    rig.origin.fill("slow", [50_000] * 200, "slow/")  # 20 a second
    rig.origin.fill("fast", [SMALL] * 2, "fast/")
    counted = Counted(rig)
    ns, fs = counted.fs.namespace, counted.fs
    warm(ns, "/m/fast/00000")

    async def main() -> int:
        slow = [asyncio.create_task(fs._cat_file(f"/m/slow/{n:05}")) for n in range(200)]
        await asyncio.sleep(0.2)
        await fs._cat_file("/m/fast/00001")
        done = sum(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return done

    try:
        assert asyncio.run(main()) < 100  # 137 of them left no thread free
    finally:
        counted.close()
