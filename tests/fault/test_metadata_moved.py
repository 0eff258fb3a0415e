"""Stores that go away while records are moved: it ends soon and says why, what it left is no harm,
and the same again goes on from there."""

from __future__ import annotations

import io
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from tests.integration.metadata_rig import Pairs, held, name_pair, scan_of
from tiercache.errors import FormatError, MetadataUnavailable
from tiercache.metadata.checking import check
from tiercache.metadata.dump import Dump, write_dump
from tiercache.metadata.open import open_metadata
from tiercache.metadata.transfer import BATCH_RECORDS, Mode, plan, transfer
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import FaultyProxy
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)

# Of each call while the network fails, and while it is well but the machine busy.
DEADLINE_S, PATIENT_S = 4.0, 30.0
# Far from what SlateDB's own retries, which have no end by default, would take.
ENDS_WITHIN_S = 45.0
RECORDS = 3 * BATCH_RECORDS


@dataclass
class Tier:
    """A store behind a faulty network."""

    proxy: FaultyProxy
    url: str
    server: S3Server

    @asynccontextmanager
    async def opened(
        self, *, read_only: bool = False, deadline_s: float = PATIENT_S
    ) -> AsyncIterator[MetadataStore]:
        profiles = {"default": self.server.profile(endpoint=self.proxy.url)}
        settings = MetadataSettings(url=self.url, deadline_s=deadline_s)
        store = await open_metadata(settings, profiles, read_only=read_only)
        try:
            yield store
        finally:
            await store.close()


@pytest.fixture
def tier(s3: S3Server, new_bucket: Callable[[ObjectServer], str]) -> Iterator[Tier]:
    with FaultyProxy(s3.endpoint) as proxy:
        yield Tier(proxy, f"s3://{new_bucket(s3)}/meta", s3)


def many_pairs() -> Pairs:
    pairs: Pairs = {}
    for number in range(RECORDS):
        pairs |= name_pair(f"data/{number}")
    return pairs


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_the_target_goes_away(tier: Tier, fault: str) -> None:
    pairs = many_pairs()
    source = partial(scan_of, pairs)

    async def cut_off() -> AsyncIterator[tuple[bytes, bytes]]:
        """The same; the network fails after the first commit."""
        position = 0
        async for pair in source():
            if position == BATCH_RECORDS + 1:
                getattr(tier.proxy, fault)()
            position += 1
            yield pair

    started = time.monotonic()
    with pytest.raises(MetadataUnavailable) as caught:
        async with tier.opened(deadline_s=DEADLINE_S) as store:
            await transfer(cut_off, store, mode=Mode.INTO_EMPTY)
    assert time.monotonic() - started < ENDS_WITHIN_S
    assert caught.value.path == tier.url and caught.value.remedy

    tier.proxy.heal()
    async with tier.opened(read_only=True) as store:
        there = partial(store.scan, b"")
        made = await plan(source, there, mode=Mode.INTO_EMPTY, target_name=store.url)
    assert made.unchanged >= BATCH_RECORDS and made.unchanged + made.written == RECORDS
    async with tier.opened() as store:
        await transfer(source, store, mode=Mode.INTO_EMPTY)
        assert await held(store) == pairs
        assert (await check(store, repair=False)).clean


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_the_source_goes_away(tier: Tier, fault: str, seed: int) -> None:
    # More than a scan reads ahead, and of bytes that no compression makes smaller.
    numbers = random.Random(seed)
    pairs = {b"z%03d" % number: numbers.randbytes(MIB // 4) for number in range(100)}
    async with tier.opened() as store:
        await transfer(partial(scan_of, pairs), store, mode=Mode.INTO_EMPTY)
    file = io.BytesIO()

    def fail(records: int, line_bytes: int) -> None:
        if records == 1:
            getattr(tier.proxy, fault)()

    started = time.monotonic()
    with pytest.raises(MetadataUnavailable):
        async with tier.opened(read_only=True, deadline_s=DEADLINE_S) as store:
            await write_dump(store, file, created="", on_progress=fail)
    assert time.monotonic() - started < ENDS_WITHIN_S
    with pytest.raises(FormatError, match="cut off"):
        list(Dump(file, "dump").pairs())
    tier.proxy.heal()
    whole = io.BytesIO()
    async with tier.opened(read_only=True) as store:
        assert (await write_dump(store, whole, created="")).records == len(pairs)
    assert dict(Dump(whole, "dump").pairs()) == pairs
