"""What reading asks of the origin, counted: no byte twice, no more than twice what is read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fault.origin_rig import Rig, eventually, in_other_process, rig_of
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import KIB, MIB

PAGE = 64 * KIB
BIG = object_bytes("big", 64 * MIB + 1000)


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}
        rig.put("big", BIG)
        yield rig


def spans(rig: Rig) -> list[tuple[int, int]]:
    """Return the byte ranges asked of the big object, in order of their start."""
    asked = [exchange.span() for exchange in rig.proxy.exchanges("GET", "/big")]
    return sorted(span for span in asked if span is not None)


def asked_bytes(rig: Rig) -> int:
    return sum(end - start for start, end in spans(rig))


@pytest.mark.parametrize("aligned", [True, False])
def test_cold_random_reads_ask_at_most_twice_what_they_read(
    rig: Rig, aligned: bool, seed: int
) -> None:
    ns = rig.namespace()
    rng = random.Random(seed)
    count = 100
    last = -2
    for _ in range(count):
        # Not the page after the last one: two in a row are a sequence, which is read ahead.
        page = rng.choice([p for p in range(len(BIG) // PAGE - 1) if p != last + 1])
        last = page
        offset = page * PAGE if aligned else page * PAGE + rng.randrange(PAGE)
        assert ns.read("/m/big", offset, PAGE) == BIG[offset : offset + PAGE]
    assert asked_bytes(rig) <= (1 if aligned else 2) * count * PAGE
    assert_no_byte_twice(spans(rig))


def assert_no_byte_twice(asked: list[tuple[int, int]]) -> None:
    for (_, end), (start, _) in itertools.pairwise(asked):
        assert end <= start


def test_what_came_with_an_answer_is_a_hit_soon_after(rig: Rig) -> None:
    rig.put("small", BIG[:1000])
    ns = rig.namespace()
    reads = {"/m/big": (5 * PAGE, PAGE), "/m/small": (0, 1000)}
    for path, (offset, length) in reads.items():
        assert ns.read(path, offset, length) == BIG[offset : offset + length]
    eventually(
        lambda: all(ns.cached_bytes(path) >= length for path, (_, length) in reads.items()),
        what="the index tells of them",
    )
    for path, (offset, length) in reads.items():
        ns.read(path, offset, length)
    (before,) = ns.status()["clients"]
    for path, (offset, length) in reads.items():
        for _ in range(50):
            assert ns.read(path, offset, length) == BIG[offset : offset + length]
    (after,) = ns.status()["clients"]
    assert after["requests"] - before["requests"] <= 4, "hits ask nobody; status and reports do"
    assert rig.proxy.counts()["GET"] == 2


def test_sequential_reads_run_ahead_in_large_requests(rig: Rig) -> None:
    ns = rig.namespace()
    with ns.open("/m/big") as file:
        done = 0
        while block := file.read(256 * KIB):
            assert block == BIG[done : done + len(block)]
            done += len(block)
    assert done == len(BIG)
    asked = spans(rig)
    assert_no_byte_twice(asked)
    assert sum(end - start for start, end in asked) == len(BIG)
    assert len(asked) < 40, "the window grows: most of it is asked for by megabytes"
    assert rig.proxy.peak_in_flight > 1


def test_small_sequential_reads_run_ahead_too(rig: Rig) -> None:
    """As a tar stream does: blocks that neither begin nor end with a page."""
    ns = rig.namespace()
    with ns.open("/m/big") as file:
        done = 0
        while done < 8 * MIB:
            block = file.read(10 * KIB)
            assert block == BIG[done : done + len(block)]
            done += len(block)
    asked = spans(rig)
    assert_no_byte_twice(asked)
    assert len(asked) < 20, "one request a page, and none ahead"


def test_a_whole_read_asks_for_each_byte_once_and_in_parallel(rig: Rig) -> None:
    ns = rig.namespace()
    assert ns.read("/m/big") == BIG
    asked = spans(rig)
    assert_no_byte_twice(asked)
    assert sum(end - start for start, end in asked) == len(BIG)
    assert rig.proxy.peak_in_flight > 1


def test_readers_of_one_cold_object_share_its_bytes(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    rig.proxy.inject(Fault(methods=("GET",), first_byte_delay_s=0.1))
    body = "import hashlib; result = hashlib.sha256(ns.read('/m/big')).hexdigest()"
    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(in_other_process, ns.settings, body) for _ in range(3)]
        whole = [pool.submit(ns.read, "/m/big") for _ in range(3)]
        assert all(run.result() == BIG for run in whole)
        assert len({run.result() for run in runs}) == 1
    assert_no_byte_twice(spans(rig))
    assert asked_bytes(rig) == len(BIG)
    assert rig.proxy.counts()["HEAD"] == 1


def test_small_objects_cost_one_get_each_and_one_trip_for_all(rig: Rig) -> None:
    items = {f"small/{n:03}": object_bytes(n, 1000 + n) for n in range(200)}
    rig.server.put_many(rig.bucket, items.items())
    ns = rig.namespace()
    assert len(ns.list("/m/small")) == 200
    rig.proxy.clear()
    (before,) = ns.status()["clients"]
    wanted: list[tuple[str, int, int | None]] = [(f"/m/{key}", 0, None) for key in items]
    assert ns.read_many(wanted) == list(items.values())
    assert rig.proxy.counts() == {"GET": 200}
    (after,) = ns.status()["clients"]
    assert after["requests"] - before["requests"] <= 3, "one frame fills, two ask for status"
    assert rig.proxy.peak_in_flight > 8
    rig.proxy.clear()
    assert ns.read_many(wanted) == list(items.values())
    # A part of a small object fetches it whole, once.
    assert rig.proxy.counts() == {}
    ns.evict("/m/small/007")
    assert ns.read("/m/small/007", 10, 5) == items["small/007"][10:15]
    assert ns.read("/m/small/007") == items["small/007"]
    assert rig.proxy.counts() == {"GET": 1}
