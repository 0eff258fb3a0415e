"""The line of those who wait for their share: who is first, who is woken, who goes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.test_paying import PAGE, PATH, Desk
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
