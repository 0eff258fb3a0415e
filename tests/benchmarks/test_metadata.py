"""The metadata store's workloads on tiny stores: what they count, and against whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks import metadata_terms as terms
from benchmarks import metadata_work as work
from benchmarks.harness import Figure, Outcome
from benchmarks.lab import Lab
from benchmarks.measures import attach, metadata, outage, revalidation
from benchmarks.metadata_work import Store, Task
from benchmarks.workload import FOLDER, Dataset, Load, Workload, read

NAMES = 300


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = dict(os.environ)
    made = Lab(seed=7, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


def _tiny(name: str, **changes: object) -> Workload:
    workload = read(FOLDER / f"{name}.toml")
    small = {
        "dataset": Dataset(kind="names", count=NAMES),
        "load": Load(operations=3, seconds=0.0, rounds=1, warm_up=0),
        "contenders": (metadata.LMDB, metadata.LOCAL, "SlateDB, 3 ms"),
    }
    return msgspec.structs.replace(workload, bar=(), **{**small, **changes})


def _works(outcome: Outcome, name: str, where: str) -> dict[str, Figure]:
    return {
        figure.work.removesuffix(f", {where}"): figure
        for figure in outcome.figures
        if figure.name == name and figure.work.endswith(f", {where}")
    }


@pytest.mark.timeout(120)
def test_every_commit_is_a_put_and_its_floor_is_one_too(lab: Lab) -> None:
    outcome = metadata.commit(lab, _tiny("metadata-commit"))
    ours = _works(outcome, "SlateDB", "3 ms")
    assert list(ours) == [what for what, _, _ in metadata.COMMITS]
    for what, figure in ours.items():
        sample = figure.sample
        assert sample is not None and sample.latency is not None
        assert sample.latency.count == sample.operations >= 3
        puts = sample.tiers["origin_requests_put"]
        assert puts >= (1 if figure.threads > 1 else sample.operations), what
        assert sample.latency.p50_us >= 3_000
        assert sample.cost_dollars is not None and sample.cost_dollars > 0
    for name in ("LMDB", "write + fdatasync"):
        assert len(_works(outcome, name, "this disk")) == len(metadata.COMMITS)
    floor = _works(outcome, "obstore, one object", "3 ms")["commit of 100 records"].sample
    assert floor is not None
    assert floor.tiers["origin_requests_put"] == floor.operations
    grouped = ours["commit of 100 records"].sample
    assert grouped is not None
    assert grouped.tiers["origin_received_bytes"] > 100 * 50 * grouped.operations
    assert outcome.numbers[terms.at_rest("3 ms")] >= 0
    assert outcome.numbers[terms.dollars_at_rest("3 ms")] >= 0


@pytest.mark.timeout(120)
def test_a_store_that_was_filled_is_read_scanned_and_opened(lab: Lab) -> None:
    contenders = (metadata.MEMORY, metadata.LMDB, "SlateDB, 0 ms", "SlateDB, 3 ms")
    outcome = metadata.read(lab, _tiny("metadata-read", contenders=contenders))
    assert outcome.sizes["names"] == NAMES
    assert outcome.sizes["record_bytes"] > NAMES * 100
    slate = _works(outcome, "SlateDB", "3 ms")
    assert set(slate) == {terms.COLD, terms.HOT, terms.SCAN, terms.OPEN}
    asked = {
        what: sum(n for kind, n in figure.sample.tiers.items() if "_requests_" in kind)
        for what, figure in slate.items()
        if figure.sample is not None
    }
    assert asked[terms.OPEN] > 3
    # What was just committed is in the engine's memory; only its own upkeep may ask.
    assert asked[terms.HOT] <= 4
    scanned = slate[terms.SCAN].sample
    assert scanned is not None and scanned.operations >= NAMES
    assert set(_works(outcome, "the fake", "memory")) == {
        terms.COLD,
        terms.HOT,
        terms.SCAN,
    }


@pytest.mark.timeout(120)
def test_a_takeover_is_timed_until_both_know(lab: Lab) -> None:
    outcome = metadata.takeover(lab, _tiny("metadata-takeover", options={"busy": "no such"}))
    assert set(_works(outcome, "LMDB", "this disk")) == {terms.FIRST_COMMIT}
    for where in ("local files", "3 ms"):
        found = _works(outcome, "SlateDB", where)
        assert set(found) == {terms.FIRST_COMMIT, terms.OLD_TOLD}
        assert all(0 < figure.median < work.OLD_LIMIT_S * 1e3 for figure in found.values())


def test_a_record_that_is_not_there_is_no_figure(tmp_path: Path) -> None:
    store = Store("engine", f"lmdb:{tmp_path}/store")
    work.open_store(store)
    try:
        work.fill(store, 10)
        assert work.scan(store, b"o", 10).operations == 10
        with pytest.raises(LookupError, match="10 of 11"):
            work.scan(store, b"o", 11)
        with pytest.raises(LookupError, match="not there"):
            work.reads(store, Task(0.0, 20), 20, seed=1)
        work.remember(store, 3)
        assert work.reads(store, Task(0.0, 5), 0, seed=1).operations == 5
    finally:
        work.close_store(store)


def test_an_unknown_contender_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="no contender 'RocksDB'"):
        metadata.commit(lab, _tiny("metadata-commit", contenders=("RocksDB",)))


@pytest.mark.timeout(120)
def test_names_that_expired_cost_a_request_and_no_data(lab: Lab) -> None:
    workload = _tiny(
        "revalidation",
        dataset=Dataset(count=80, bytes="4KiB"),
        load=Load(rounds=1, warm_up=0),
        options={"ttl_s": 1.0},
    )
    before = lab.server.traffic()
    outcome = revalidation.revalidation(lab, workload)
    after = lab.server.traffic()
    assert {figure.name for figure in outcome.figures} == {
        "obstore, HEAD × 64",
        "ns.read_many",
        "ns.read × 64",
    }
    assert 0.5 < outcome.numbers[revalidation.REQUESTS] <= 1.0
    assert outcome.numbers[revalidation.DATA] == 0.0
    assert (after.requests - before.requests)["HEAD"] >= 3 * 40


@pytest.mark.timeout(120)
def test_a_fresh_node_lists_what_the_lost_one_knew_and_asks_for_nothing(lab: Lab) -> None:
    contenders = (metadata.LMDB, "SlateDB, 3 ms")
    workload = _tiny("metadata-attach", contenders=contenders, options={"pins": 20})
    outcome = attach.attach(lab, workload)
    for name, where in (("LMDB", "this disk"), ("SlateDB", "3 ms")):
        found = _works(outcome, name, where)
        assert 0 < found[terms.NAMES].median <= found[terms.PINS].median
    assert outcome.numbers[attach.LISTS] == 0.0
    assert outcome.numbers[attach.SLOWEST] > 0.0
    assert outcome.sizes == {"names": NAMES, "pins": 20}


@pytest.mark.timeout(120)
def test_an_outage_is_told_by_the_second(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "KINDS", {"refused": outage.KINDS["refused"]})
    workload = _tiny(
        "outage",
        dataset=Dataset(count=20, bytes="4KiB"),
        load=Load(operations=10, seconds=1.0),
        options={"ttl_s": 60.0},
    )
    outcome = outage.outage(lab, workload)
    works = {figure.work for figure in outcome.figures}
    assert works == {
        f"{what}, refused"
        for what in (
            outage.OFFLINE,
            outage.ONLINE,
            outage.FILLED,
            outage.STALL,
            outage.MISS,
            outage.MISSES,
            outage.HIT,
        )
    }
    assert set(outcome.numbers) == {outage.BAR_STALL, outage.BAR_MISS, outage.BAR_ONLINE}
    (series,) = outcome.series
    assert len(series.x) == len(series.y)
    begins, ends = (at_s for at_s, _ in series.marks)
    assert 0 < begins < ends < series.x[-1] + outage.BIN_S
