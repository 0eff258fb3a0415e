"""The contract of the MetadataStore port; test_metadata_store.py holds every engine to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiercache.errors import (
    MetadataFenced,
    MetadataUnavailable,
    NotFound,
    PreconditionFailed,
    Unsupported,
)
from tiercache.metadata.open import open_metadata
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 10.0
KEYS = st.binary(min_size=1, max_size=4).filter(lambda key: key[0] != 0)
BATCHES = st.lists(
    st.dictionaries(KEYS, st.none() | st.binary(max_size=200), max_size=6), min_size=1, max_size=6
)

Open = Callable[[], Awaitable[MetadataStore]]


async def pairs(store: MetadataStore, prefix: bytes, **bounds: Any) -> list[tuple[bytes, bytes]]:
    return [pair async for pair in store.scan(prefix, **bounds)]


async def keys(store: MetadataStore, prefix: bytes, **bounds: Any) -> list[bytes]:
    return [key for key, _ in await pairs(store, prefix, **bounds)]


class MetadataPlace(ABC):
    """Subclasses say how one place is opened, again and again. ``open_store`` is the fixture
    that the tests use: it closes what it opened."""

    @pytest.fixture
    @abstractmethod
    def opener(self) -> Open:
        """Return what opens the same place at each call; the first call finds it empty."""

    @pytest_asyncio.fixture
    async def open_store(self, opener: Open) -> AsyncIterator[Open]:
        opened: list[MetadataStore] = []

        async def open_and_remember() -> MetadataStore:
            store = await opener()
            opened.append(store)
            return store

        yield open_and_remember
        for store in opened:
            await store.close()

    @pytest_asyncio.fixture
    async def store(self, open_store: Open) -> MetadataStore:
        return await open_store()


class MetadataStoreContract(MetadataPlace):
    """Of every engine."""

    # One key

    async def test_absent_keys_are_none(self, store: MetadataStore) -> None:
        for key in (b"nothing", b"", b"k" * 512, b"\x00seq", b"\x00format"):
            assert await store.get(key) is None

    async def test_commit_then_get(self, store: MetadataStore) -> None:
        await store.commit({b"a": b"1", b"b": b""})
        assert await store.get(b"a") == b"1"
        assert await store.get(b"b") == b""

    async def test_none_deletes_and_absence_is_no_error(self, store: MetadataStore) -> None:
        await store.commit({b"a": b"1"})
        await store.commit({b"a": None, b"never": None})
        assert await store.get(b"a") is None
        assert await keys(store, b"") == []

    async def test_longest_key_and_largest_value(self, store: MetadataStore) -> None:
        large = os.urandom(1024) * 16 * 1024
        await store.commit({b"k" * 511: large})
        assert await store.get(b"k" * 511) == large
        assert await pairs(store, b"k") == [(b"k" * 511, large)]

    @pytest.mark.parametrize("key", [b"", b"k" * 512, b"\x00seq", b"\x00"])
    async def test_a_bad_key_refuses_the_whole_batch(
        self, store: MetadataStore, key: bytes
    ) -> None:
        before = store.sequence
        with pytest.raises(ValueError, match="metadata key"):
            await store.commit({b"good": b"1", key: b"2"})
        with pytest.raises(ValueError, match="metadata key"):
            await store.commit({b"good": b"1"}, preconditions={key: None})
        assert await store.get(b"good") is None
        assert store.sequence == before

    async def test_a_value_too_large_refuses_the_whole_batch(self, store: MetadataStore) -> None:
        with pytest.raises(ValueError, match="16777217 bytes"):
            await store.commit({b"good": b"1", b"bad": bytes(16 * 1024 * 1024 + 1)})
        assert await store.get(b"good") is None

    # Sequence and identity

    async def test_sequence_numbers_rise_by_commit(self, store: MetadataStore) -> None:
        assert store.sequence == 1, "making a store is its first commit"
        assert await store.commit({b"a": b"1"}) == 2
        assert await store.commit({b"a": b"2"}) == 3
        assert await store.commit({}) == 3
        assert store.sequence == 3

    async def test_identity_is_of_the_store(self, store: MetadataStore, open_store: Open) -> None:
        identity = store.identity
        assert re.fullmatch("[0-9a-f]{32}", identity)
        await store.commit({b"a": b"1"})
        await store.close()
        assert (await open_store()).identity == identity

    # Scan

    async def test_scan_is_ordered_and_bounded(self, store: MetadataStore) -> None:
        await store.commit({b"b%d" % i: b"%d" % i for i in range(10)} | {b"a": b"-", b"c": b"-"})
        assert await keys(store, b"b") == [b"b%d" % i for i in range(10)]
        assert await keys(store, b"b", start=b"b7") == [b"b7", b"b8", b"b9"]
        assert await keys(store, b"b", start=b"b7x") == [b"b8", b"b9"]
        assert await keys(store, b"b", start=b"a") == [b"b%d" % i for i in range(10)]
        assert await keys(store, b"b", limit=2) == [b"b0", b"b1"]
        assert await keys(store, b"b", start=b"b8", limit=9) == [b"b8", b"b9"]
        assert await keys(store, b"b", limit=0) == []
        assert await keys(store, b"b", start=b"c") == []
        assert await keys(store, b"b3") == [b"b3"]
        assert await keys(store, b"x") == []

    async def test_scan_of_all_hides_bookkeeping(self, store: MetadataStore) -> None:
        await store.commit({b"\x01": b"first", b"a": b"-", b"\xff" * 511: b"last"})
        assert await keys(store, b"") == [b"\x01", b"a", b"\xff" * 511]
        assert await keys(store, b"\x00") == []
        assert await keys(store, b"\x00seq") == []
        assert await keys(store, b"", start=b"\x00seq", limit=1) == [b"\x01"]

    async def test_scan_holds_its_snapshot(self, store: MetadataStore) -> None:
        expected = {b"k%05d" % i: b"old" for i in range(3000)}  # several turns of any engine
        await store.commit(expected)
        found = store.scan(b"k")
        first = await anext(found)
        await store.commit({b"k00001": b"new", b"k02999": None, b"k9": b"new"})
        assert [first, *[pair async for pair in found]] == sorted(expected.items())

    async def test_scan_brings_many_large_values(self, store: MetadataStore) -> None:
        values = {b"v%03d" % i: os.urandom(64) * 4096 for i in range(40)}
        await store.commit(values)
        assert await pairs(store, b"v") == sorted(values.items())
        assert await keys(store, b"v", limit=33) == sorted(values)[:33]

    async def test_a_scan_can_be_left_and_two_can_run(self, store: MetadataStore) -> None:
        await store.commit({b"k%05d" % i: b"" for i in range(2000)})
        left, one, other = store.scan(b"k"), store.scan(b"k"), store.scan(b"k01")
        assert (await anext(left))[0] == b"k00000"
        async for key, _ in one:
            if key >= b"k01000":
                assert (await anext(other))[0] == key
        with pytest.raises(StopAsyncIteration):
            await anext(other)
        await left.aclose()  # type: ignore[attr-defined]  # an async generator, as scan's are
        assert await store.commit({b"k": b"1"}) == 3

    # Commit

    async def test_met_preconditions(self, store: MetadataStore) -> None:
        await store.commit({b"a": b"1"}, preconditions={b"a": None, b"b": None})
        await store.commit({b"a": b"2"}, preconditions={b"a": b"1"})
        await store.commit({b"c": b"3"}, preconditions={b"a": b"2", b"b": None})
        assert await pairs(store, b"") == [(b"a", b"2"), (b"c", b"3")]

    @pytest.mark.parametrize("unmet", [{b"a": None}, {b"a": b"2"}, {b"a": b""}, {b"b": b"1"}])
    async def test_an_unmet_precondition_applies_nothing(
        self, store: MetadataStore, unmet: dict[bytes, bytes | None]
    ) -> None:
        before = await store.commit({b"a": b"1"})
        with pytest.raises(PreconditionFailed):
            await store.commit({b"a": b"9", b"new": b"9"}, preconditions=unmet)
        with pytest.raises(PreconditionFailed):
            await store.commit({}, preconditions=unmet)
        assert await pairs(store, b"") == [(b"a", b"1")]
        assert store.sequence == before
        assert await store.commit({b"x": b""}) == before + 1

    async def test_of_racing_conditional_commits_one_wins(self, store: MetadataStore) -> None:
        async def take(name: bytes) -> bytes | None:
            try:
                await store.commit({b"lock": name}, preconditions={b"lock": None})
            except PreconditionFailed:
                return None
            return name

        names = await asyncio.gather(*[take(b"%d" % i) for i in range(20)])
        winners = [name for name in names if name is not None]
        assert winners == [await store.get(b"lock")]

    async def test_concurrent_commits_keep_their_order(self, store: MetadataStore) -> None:
        first = store.sequence
        numbers = await asyncio.gather(
            *[store.commit({b"last": b"%d" % i, b"n%02d" % i: b""}) for i in range(50)]
        )
        assert numbers == list(range(first + 1, first + 51))
        assert await store.get(b"last") == b"49"
        assert len(await keys(store, b"n")) == 50

    async def test_a_cancelled_commit_is_whole_or_not_at_all(
        self, store: MetadataStore, open_store: Open
    ) -> None:
        for number in range(6):
            batch: dict[bytes, bytes | None] = dict.fromkeys(
                [b"k%02d" % i for i in range(20)], b"%d" % number
            )
            task = asyncio.create_task(store.commit(batch))
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await store.commit({b"after": b"%d" % number}) == store.sequence
            values = {value for _, value in await pairs(store, b"k")}
            assert len(values) <= 1
        await store.close()
        again = await open_store()
        assert await again.get(b"after") == b"5"

    # Life

    async def test_reopened_it_is_as_it_was_left(
        self, store: MetadataStore, open_store: Open
    ) -> None:
        last = await store.commit({b"k%04d" % i: b"%d" % i for i in range(1500)})
        last = await store.commit({b"k0003": None, b"k0004": b"new"})
        await store.flush()
        last = await store.commit({b"after": b"flush"})
        before = await pairs(store, b"")
        await store.close()
        again = await open_store()
        assert again.sequence == last
        assert await pairs(again, b"") == before
        assert await again.commit({b"more": b""}) == last + 1

    async def test_close_is_idempotent_and_final(self, store: MetadataStore) -> None:
        await store.commit({b"a": b"1"})
        await store.close()
        await store.close()
        for call in (store.get(b"a"), store.commit({b"a": b"2"}), store.flush(), pairs(store, b"")):
            with pytest.raises(ValueError, match="closed"):
                await call

    async def test_its_writer_is_its_owner(self, store: MetadataStore) -> None:
        await store.check_owner()

    # Against a dict

    @settings(max_examples=15, suppress_health_check=[*HealthCheck], print_blob=True, deadline=None)
    @given(batches=BATCHES, prefix=KEYS, start=KEYS)
    async def test_batches_like_a_dict(
        self,
        store: MetadataStore,
        batches: list[dict[bytes, bytes | None]],
        prefix: bytes,
        start: bytes,
    ) -> None:
        await store.commit(dict.fromkeys(await keys(store, b"")))
        expected: dict[bytes, bytes] = {}
        for batch in batches:
            before = store.sequence
            assert await store.commit(batch) == before + bool(batch)
            for key, value in batch.items():
                if value is None:
                    expected.pop(key, None)
                else:
                    expected[key] = value
        assert await pairs(store, b"") == sorted(expected.items())
        for shorter in (prefix, prefix[:1]):
            assert await keys(store, shorter, start=start) == sorted(
                key for key in expected if key.startswith(shorter) and key >= start
            )
        for key in {key for batch in batches for key in batch}:
            assert await store.get(key) == expected.get(key)


class TakeoverContract(MetadataPlace):
    """Of the engines where a second agent takes over."""

    async def test_the_next_commit_of_who_was_replaced_fails(
        self, store: MetadataStore, open_store: Open
    ) -> None:
        await store.commit({b"a": b"old"})
        newer = await open_store()
        assert await newer.get(b"a") == b"old"
        assert newer.identity == store.identity
        with pytest.raises(MetadataFenced, match="another agent"):
            await store.commit({b"a": b"lost", b"b": b"lost"})
        with pytest.raises(MetadataFenced):
            await store.commit({b"b": b"lost"})
        assert await newer.commit({b"a": b"new"}) == newer.sequence
        assert await pairs(newer, b"") == [(b"a", b"new")]
        await newer.check_owner()

    async def test_it_is_told_when_it_asks(self, store: MetadataStore, open_store: Open) -> None:
        newer = await open_store()
        for _ in range(2):
            with pytest.raises(MetadataFenced):
                await store.check_owner()
        await newer.close()
        with pytest.raises(MetadataFenced):
            await store.commit({b"a": b"1"})
        await store.close()

    async def test_owners_in_turn(self, store: MetadataStore, open_store: Open) -> None:
        for number in range(3):
            before = store
            await before.commit({b"k%d" % number: b""})
            store = await open_store()
            with pytest.raises(MetadataFenced):
                await before.commit({b"lost": b""})
        assert await keys(store, b"") == [b"k0", b"k1", b"k2"]
        assert store.sequence == 4


class RealEngineContract(MetadataPlace):
    """Of the engines that settings open: they outlive a process."""

    @pytest.fixture
    @abstractmethod
    def config(self) -> MetadataSettings: ...

    @pytest.fixture
    @abstractmethod
    def profile(self) -> ProfileSettings: ...

    @pytest.fixture
    def opener(self, config: MetadataSettings, profile: ProfileSettings) -> Open:
        return lambda: open_metadata(config, {"default": profile})

    async def test_url_is_as_configured(
        self, store: MetadataStore, config: MetadataSettings
    ) -> None:
        assert store.url == config.url

    async def test_what_a_killed_agent_acknowledged_is_there(
        self, config: MetadataSettings, profile: ProfileSettings, opener: Open
    ) -> None:
        for _ in range(2):
            with committing(config, profile) as child:
                assert child.stdout is not None
                for _ in range(15):
                    acknowledged = int(child.stdout.readline())
                os.kill(child.pid, signal.SIGKILL)
                acknowledged = max(acknowledged, *map(int, child.stdout.read().split()), 0)
                child.wait(DEADLINE_S)
            store = await opener()
            try:
                assert store.sequence >= acknowledged
                assert await store.get(b"a") == await store.get(b"b") == b"%d" % store.sequence
                after = b"%d" % (store.sequence + 1)
                await store.commit({b"a": after, b"b": after})
            finally:
                await store.close()

    async def test_a_reader_beside_the_writer(
        self, store: MetadataStore, config: MetadataSettings, profile: ProfileSettings
    ) -> None:
        last = await store.commit({b"a": b"1", b"b": b"2"})
        reader = await open_metadata(config, {"default": profile}, read_only=True)
        try:
            assert reader.identity == store.identity and reader.sequence == last
            assert await pairs(reader, b"") == [(b"a", b"1"), (b"b", b"2")]
            with pytest.raises(Unsupported):
                await reader.commit({b"a": b"2"})
            with pytest.raises(Unsupported):
                await reader.check_owner()
            last = await store.commit({b"a": b"2"})
            await store.check_owner()
            until = time.monotonic() + 30
            while await reader.get(b"a") != b"2" and time.monotonic() < until:
                await asyncio.sleep(0.02)
            assert await reader.get(b"a") == b"2"
            await reader.flush()
            assert reader.sequence == last
        finally:
            await reader.close()

    async def test_nothing_to_read(
        self, config: MetadataSettings, profile: ProfileSettings, opener: Open
    ) -> None:
        with pytest.raises(NotFound):
            await open_metadata(config, {"default": profile}, read_only=True)
        store = await opener()
        assert store.sequence == 1
        await store.close()


class OutageContract(MetadataPlace):
    """Of the engines whose store can be made unreachable: ``cut`` and ``heal`` by the fixture."""

    @pytest.fixture
    @abstractmethod
    def outage(self) -> Outage: ...

    async def test_an_outage_is_told_and_over_when_it_is_over(
        self, store: MetadataStore, outage: Outage
    ) -> None:
        await store.commit({b"a": b"1"})
        for how in outage.ways:
            outage.cut(how)
            began = time.monotonic()
            with pytest.raises(MetadataUnavailable):
                await store.commit({b"a": how.encode(), b"b": how.encode()})
            with pytest.raises(MetadataUnavailable):
                await store.check_owner()
            assert time.monotonic() - began < 2 * outage.deadline_s + 2
            outage.heal()
            # The commit's outcome is unknown, but it is whole; putting it again is safe.
            found = await until_available(lambda: store.get(b"a")), await store.get(b"b")
            assert found in ((b"1", None), (how.encode(), how.encode()))
            await until_available(lambda: store.commit({b"a": b"1", b"b": None}))
            await store.check_owner()
            assert await pairs(store, b"") == [(b"a", b"1")]

    async def test_a_takeover_while_the_old_one_was_cut_off(
        self, store: MetadataStore, outage: Outage, around: Open
    ) -> None:
        await store.commit({b"a": b"1"})
        outage.cut(outage.ways[0])
        with pytest.raises(MetadataUnavailable):
            await store.commit({b"a": b"cut off"})
        newer = await around()
        try:
            last = await newer.commit({b"a": b"new"})
            outage.heal()
            with pytest.raises(MetadataFenced):
                await until_available(lambda: store.commit({b"a": b"late"}))
            assert await newer.commit({b"b": b"new"}) == last + 1
            assert await newer.get(b"a") == b"new"
        finally:
            await newer.close()

    @pytest.fixture
    @abstractmethod
    def around(self) -> Open:
        """Return what opens the store by a way that no outage cuts."""


class Outage:
    """``ways`` are the names of the outages that ``cut`` knows."""

    def __init__(
        self,
        cut: Callable[[str], None],
        heal: Callable[[], None],
        *,
        ways: tuple[str, ...] = ("off",),
        deadline_s: float = 0.0,
    ) -> None:
        self.cut = cut
        self.heal = heal
        self.ways = ways
        self.deadline_s = deadline_s


async def until_available(ask: Callable[[], Awaitable[Any]]) -> Any:
    until = time.monotonic() + 20
    while True:
        try:
            return await ask()
        except MetadataUnavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


COMMITTING = """
import asyncio, sys, msgspec
from tiercache.metadata.open import open_metadata
from tiercache.settings import MetadataSettings, ProfileSettings
async def main():
    config = msgspec.json.decode(sys.argv[1], type=MetadataSettings)
    profile = msgspec.json.decode(sys.argv[2], type=ProfileSettings)
    store = await open_metadata(config, {"default": profile})
    while True:
        number = b"%d" % (store.sequence + 1)
        print(await store.commit({b"a": number, b"b": number}), flush=True)
asyncio.run(main())
"""


@contextmanager
def committing(
    config: MetadataSettings, profile: ProfileSettings
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that commits as fast as it can and prints the number of each commit."""
    child = subprocess.Popen(
        [sys.executable, "-c", COMMITTING, *map(msgspec.json.encode, (config, profile))],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=DEADLINE_S)
