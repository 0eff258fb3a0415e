"""Random work of several identities on one node: nobody is ever above ``max`` or ``pin_max``,
nobody is taken below ``min`` by others, and ledger, device and index agree at every step.

The oracle (``quota_world``) looks at files and at raw records; it shares no code with the ledger.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.quota_world import IDENTITIES, World
from tiercache.policy.qos import Capacity
from tiercache.units import KIB, MIB

CAPACITY_BYTES = 16 * MIB
SIZES = {
    **{f"d{n % 2}/s{n}": (n % 5 + 1) * 40 * KIB + n for n in range(30)},
    **{f"d{n % 2}/l{n}": (n % 4 + 1) * 300 * KIB + n for n in range(24)},
    "d0/huge": 5 * MIB,
}
KEYS = sorted(SIZES)
POLICIES: list[dict[str, Capacity]] = [
    {},
    {
        "ann": Capacity(min_bytes=3 * MIB, pin_max_bytes=2 * MIB),
        "bob": Capacity(max_bytes=4 * MIB, pin_max_bytes=1 * MIB),
        "cat": Capacity(soft_bytes=1 * MIB),
        "default": Capacity(),
    },
    {
        "ann": Capacity(max_bytes=3 * MIB),
        "bob": Capacity(min_bytes=4 * MIB, max_bytes=5 * MIB, pin_max_bytes=3 * MIB),
        "cat": Capacity(max_bytes=600 * KIB, pin_max_bytes=0),
        "default": Capacity(max_bytes=9 * MIB, soft_bytes=2 * MIB),
    },
    {"ann": Capacity(max_bytes=2 * MIB, min_bytes=1 * MIB), "bob": Capacity(min_bytes=2 * MIB)},
]
identities, keys = st.sampled_from(IDENTITIES), st.sampled_from(KEYS)
policies = st.sampled_from(POLICIES)


class QuotaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="quota-model-"))
        self.runner = asyncio.Runner()
        self.pinned: list[str] = []
        self.held: list[Any] = []

    @initialize(capacities=policies, first=st.permutations(IDENTITIES), seed=st.integers(0, 99))
    def begin(self, capacities: dict[str, Capacity], first: list[str], seed: int) -> None:
        """The cache is full from the start: each identity has read its share of all there is."""
        self.world = World(self.root, SIZES, capacity_bytes=CAPACITY_BYTES)
        self.world.capacities = capacities
        self.runner.run(self.world.start())
        keys = random.Random(seed).sample(KEYS, len(KEYS))
        for number, who in enumerate(first):
            self.do(*(self.world.read(who, key, 0, SIZES[key]) for key in keys[number::4]))

    def do(self, *happening: Coroutine[None, None, Any]) -> None:
        """Let things happen at once while the oracle looks on, and then look at all."""

        async def run() -> None:
            looking = asyncio.create_task(self.world.keep_looking())
            try:
                async with asyncio.timeout(30):
                    await asyncio.gather(*happening)
                    await self.world.check_still()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)

        self.runner.run(run())

    @rule(
        reads=st.lists(
            st.tuples(identities, keys, st.floats(0, 0.9), st.integers(1, 2 * MIB)),
            min_size=1,
            max_size=8,
        )
    )
    def read(self, reads: list[tuple[str, str, float, int]]) -> None:
        self.do(
            *(
                self.world.read(who, key, int(SIZES[key] * share), length)
                for who, key, share, length in reads
            )
        )

    @rule(who=identities, keys=st.lists(keys, min_size=5, max_size=25))
    def scan(self, who: str, keys: list[str]) -> None:
        self.do(*(self.world.read(who, key, 0, SIZES[key]) for key in keys))

    @rule(who=identities, key=keys)
    def pin(self, who: str, key: str) -> None:
        self.do(self._pin(who, key, False))

    @rule(who=identities, number=st.integers(0, 1))
    def pin_tree(self, who: str, number: int) -> None:
        self.do(self._pin(who, f"d{number}", True))

    async def _pin(self, who: str, prefix: str, tree: bool) -> None:
        if await self.world.pin(who, prefix, tree=tree):
            self.pinned.append(f"/m/{prefix}")

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pinned:
            self.do(self.world.unpin(self.pinned.pop(data.draw(st.integers(0, 20)) % 1)))

    @rule(key=keys)
    def drop(self, key: str) -> None:
        self.do(self.world.drop(key))

    @rule(number=st.integers(0, 9))
    def hold(self, number: int) -> None:
        """A reader opens an extent, and lets go of it some steps later."""
        live = sorted(self.world.plane.space.live)
        if live:
            self.held.append(self.world.extents.open(live[number % len(live)]))
        if len(self.held) > 3:
            self.held.pop(0)

    @rule(capacities=policies)
    def change_policy(self, capacities: dict[str, Capacity]) -> None:
        self.world.set_capacities(capacities)
        self.do()

    @rule()
    def second_passes(self) -> None:
        self.do(self.world.plane.space.come_below())

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        self.held.clear()
        self.runner.run(self.world.end(crash=crash))
        self.world.begin()
        self.world.whose.clear()
        self.runner.run(self.world.start())
        self.world.set_capacities(self.world.capacities)
        self.do()

    def teardown(self) -> None:
        self.held.clear()
        if hasattr(self, "world"):
            self.runner.run(self.world.end(crash=True))
        self.runner.close()
        shutil.rmtree(self.root)


QuotaMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    # An example takes a second: to shrink one would take longer than any time-out.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
TestQuotas = QuotaMachine.TestCase


@pytest.mark.parametrize(("short", "kept"), [(0, True), (1, False)])
def test_a_bound_is_kept_to_the_block(tmp_path: Path, short: int, kept: bool) -> None:
    """An object of 300 KiB and a byte takes a block for the byte, and lies in five extents."""
    size = 300 * KIB + 1
    bound = 300 * KIB + 4096 + 5 * 8192 - short

    async def run() -> None:
        world = World(tmp_path, {"one": size}, capacity_bytes=CAPACITY_BYTES)
        world.capacities = {"ann": Capacity(max_bytes=bound)}
        await world.start()
        await world.read("ann", "one", 0, size)
        await world.check_still()
        assert (world.live()["ann"] == bound) is kept
        assert (world.plane.space.books.refusals_of("ann").denied == 0) is kept
        await world.end(crash=False)

    asyncio.run(run())


def test_small_objects_pass_on_to_who_reads_them(tmp_path: Path) -> None:
    sizes = {f"s{number:03}": 100 * KIB for number in range(120)}
    keys = list(sizes)

    async def run() -> None:
        world = World(tmp_path, sizes, capacity_bytes=64 * MIB)
        world.capacities = {"ann": Capacity(max_bytes=4 * MIB)}
        await world.start()
        for key in keys[:30]:
            await world.read("ann", key, 0, sizes[key])
        for key in keys[:10]:
            await world.read("bob", key, 0, sizes[key])
        assert world.live().keys() == {"ann"}, "the first who admitted them pays"
        for key in keys[30:]:
            await world.read("ann", key, 0, sizes[key])
        await world.check_still()
        assert world.live()["bob"] == pytest.approx(10 * 100 * KIB, rel=0.1)
        for key in keys[:10]:
            assert world.plane.contents.is_whole(world.filler.record_of(world.target(key)))
        assert not world.plane.space.books.refusals
        await world.end(crash=False)

    asyncio.run(run())


def test_what_an_identity_reads_again_and_again_still_makes_room(tmp_path: Path) -> None:
    """Packs and extents that were all read are given one more round, and then they go."""
    sizes = {f"s{n:03}": 100 * KIB for n in range(60)} | {f"t{n}": 400 * KIB for n in range(20)}

    async def run() -> None:
        world = World(tmp_path, sizes, capacity_bytes=64 * MIB)
        world.capacities = {"ann": Capacity(max_bytes=3 * MIB)}
        await world.start()
        for key, size in sizes.items():
            for _ in range(3):
                await world.read("ann", key, 0, size)
        await world.check_still()
        assert not world.plane.space.books.refusals
        await world.end(crash=False)

    asyncio.run(run())


def test_room_that_is_made_by_passing_on_alone_is_room(tmp_path: Path) -> None:
    sizes = {f"t{number}": 400 * KIB for number in range(9)}

    async def run() -> None:
        world = World(tmp_path, sizes, capacity_bytes=64 * MIB)
        world.capacities = {"ann": Capacity(max_bytes=3 * MIB)}
        await world.start()
        for who in ("ann", "bob"):
            for number in range(7):
                await world.read(who, f"t{number}", 0, 400 * KIB)
        assert world.live().keys() == {"ann"}
        await world.read("ann", "t8", 0, 400 * KIB)
        assert world.passed_on and not world.plane.space.books.refusals
        assert world.plane.contents.is_whole(world.filler.record_of(world.target("t8")))
        await world.check_still()
        await world.end(crash=False)

    asyncio.run(run())


def test_who_pins_an_object_while_room_is_made_for_it_does_not_pay_for_that_room(
    tmp_path: Path,
) -> None:
    sizes = {f"t{number}": 400 * KIB for number in range(9)}

    async def run() -> None:
        world = World(tmp_path, sizes, capacity_bytes=64 * MIB)
        world.capacities = {"ann": Capacity(max_bytes=3 * MIB), "bob": Capacity()}
        await world.start()
        for number in range(8):
            await world.read("ann", f"t{number}", 0, 400 * KIB)
        reading = asyncio.create_task(world.read("ann", "t8", 0, 400 * KIB))
        while not world.plane.space._reclaiming_own["ann"].locked():
            await asyncio.sleep(0)
        assert await world.pin("bob", "t8", tree=False)
        await reading
        await world.check_still()
        world.plane.contents.refresh_pins(removed=False)  # as the next pin or policy does
        await world.check_still()
        assert world.pinned().keys() == {"bob"}
        await world.end(crash=False)

    asyncio.run(run())


def test_what_readers_hold_open_makes_others_read_through_and_not_wait_for_ever(
    tmp_path: Path,
) -> None:
    sizes = {f"t{number:02}": 400 * KIB for number in range(20)}

    async def run() -> None:
        world = World(tmp_path, sizes, capacity_bytes=64 * MIB)
        world.capacities = {"ann": Capacity(max_bytes=3 * MIB)}
        await world.start()
        for key in list(sizes)[:8]:
            await world.read("ann", key, 0, sizes[key])
        held = [world.extents.open(extent_id) for extent_id in world.plane.space.live]
        async with asyncio.timeout(20):  # each of its extents could be waited for
            await world.read("ann", "t19", 0, sizes["t19"])
        world.look()
        assert not world.failures
        assert world.plane.space.books.refusals_of("ann").denied > 0
        held.clear()
        await world.read("ann", "t18", 0, sizes["t18"])
        await world.check_still()
        await world.end(crash=False)

    asyncio.run(run())
