"""The line of those who wait for their share: who is first, who is woken, who goes out of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.client.test_paying import PAGE, PATH, Desk, ended, paying
from tests.fault.cache_rig import wait_for
from tiercache.client import paying as paying_module
from tiercache.client.paying import Payer
from tiercache.policy.lease_words import UNLIMITED

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.view.close()


@pytest.mark.parametrize("ticks", range(8))
def test_a_cancel_is_not_lost_on_who_has_just_come_first(desk: Desk, ticks: int) -> None:
    """``wait_for`` of Python 3.11 swallows a cancel that comes with what it waits for."""
    payer = desk.payer()

    async def main() -> None:
        tasks = []
        for number in range(2):
            tasks.append(asyncio.create_task(payer.settle(PATH, PAGE)))
            while len(payer._queue) <= number:
                await asyncio.sleep(0.001)
        tasks[0].cancel()
        for _ in range(ticks):
            await asyncio.sleep(0)
        tasks[1].cancel()
        done, _ = await asyncio.wait(tasks, timeout=2.0)
        desk.grant(UNLIMITED)
        assert done == set(tasks)

    with desk.turning():
        asyncio.run(main())
    assert desk.used() == (0, 0)


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_who_comes_first_between_its_look_and_its_sleep_does_not_oversleep(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(paying_module, "BEHIND_S", 5.0)
    payer = desk.payer()
    look = Payer._step
    late: list[object] = []

    def step(self: Payer, path: str, waiter: paying_module._Waiter) -> object:
        found = look(self, path, waiter)
        if waiter.count == 2 and not late and isinstance(found, float):
            late.append(found)
            desk.grant(1)
            ended(first)
        return found

    monkeypatch.setattr(Payer, "_step", step)
    with desk.turning():
        first = paying(payer, 1)
        wait_for(lambda: desk.waits)
        began = time.monotonic()
        threading.Timer(0.2, lambda: desk.grant(UNLIMITED)).start()
        if kind == "thread":
            ended(paying(payer, 2))
        else:
            asyncio.run(payer.settle(PATH, 2))
        assert time.monotonic() - began < 3.0
    assert late and desk.used() == (3, 2)


def test_a_task_whose_loop_is_blocked_holds_nobody_up(desk: Desk) -> None:
    """It cannot look before the loop goes on, which may wait for who stands behind it."""
    payer = desk.payer()

    async def main() -> None:
        tasks = [asyncio.create_task(payer.settle(PATH, 1)) for _ in range(20)]
        while len(payer._queue) < 20:
            await asyncio.sleep(0.001)
        desk.grant(1)
        ended(paying(payer, 2))  # blocks the loop
        desk.grant(3)
        payer.pay(PATH, 3)
        assert desk.used() == (5, 2)
        desk.grant(UNLIMITED)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    with desk.turning():
        asyncio.run(main())
    assert desk.used() == (25, 22)
    assert not payer._queue


@pytest.mark.parametrize("why", ["no agent", "another policy"])
def test_a_task_needs_no_thread_of_its_loop_s_pool(desk: Desk, why: str) -> None:
    """They may all be busy for as long as the job likes."""
    desk.rate(100 * PAGE, UNLIMITED)
    payer = desk.payer(max_wait_s=5.0)
    if why == "no agent":
        desk.file.turned(1)
        desk.serves = False
    else:
        desk.current = False
        desk.on_renew = lambda: desk.grant(UNLIMITED)
    free = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, 20)
        try:
            await asyncio.wait_for(payer.settle(PATH, PAGE), 5)
        finally:
            free.set()
            await busy

    asyncio.run(main())
    assert desk.wakes if why == "no agent" else desk.renewals
