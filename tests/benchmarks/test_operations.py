"""The operations' workloads on tiny data: what they count, and what they say of wrong bytes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import registry, workload
from benchmarks.contenders.contender import Contender, Object, Recipe
from benchmarks.harness import Role
from benchmarks.lab import Lab
from benchmarks.measures import stampede, storms, streams, tenants
from benchmarks.trainer import Trainer
from benchmarks.workload import Access, Dataset, Load, State, Workload
from tiercache.units import KIB, MIB

SEED = 7
TINY = Dataset(count=1, bytes=300_000)
registry.load()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = dict(os.environ)
    made = Lab(seed=SEED, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


def _workload(measure: str, **changes: Any) -> Workload:
    options = {"dataset": TINY, "state": "cold", **changes}
    return Workload(name="t", title="t", measure=measure, **cast(Any, options))


# -- the stampede -----------------------------------------------------------------------------


def _stampede(*contenders: str) -> Workload:
    return _workload(
        "stampede",
        contenders=contenders,
        access=Access(pattern="sequential", block="64KiB"),
        load=Load(processes=(4,), rounds=2, warm_up=0),
        options={"stagger_s": 0.01, "processes_each_fetching": 2, "rival_limit_s": 30.0},
    )


@pytest.mark.timeout(180)
def test_a_stampede_is_counted_by_the_server_and_its_bytes_are_checked(lab: Lab) -> None:
    outcome = stampede.stampede(lab, _stampede("ns.read", "s3fs"))
    figures = {figure.name: figure for figure in outcome.figures}
    assert set(figures) == {"os.pread", "ns.read", "s3fs"}
    assert [len(figure.values) for figure in figures.values()] == [2, 2, 2]
    assert [figure.processes for figure in figures.values()] == [4, 4, 2]
    assert outcome.numbers == {stampede.NUMBER: 1.0}
    ours = figures["ns.read"].sample
    assert ours is not None
    assert (ours.operations, ours.bytes) == (8, 8 * 300_000)
    assert ours.tiers["origin_bytes"] == 2 * 300_000
    assert any(
        note.startswith("asked of the origin, s3fs, 2 processes: 2.") for note in outcome.notes
    )
    assert not multiprocessing.active_children()


class _Lying(Contender):
    """Reads the right number of bytes, and at the end fails or lies."""

    name = "lying"
    role: Role = "rival"
    kind = "lie"

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        return

    def recipe(self) -> Recipe:
        return Recipe(_LyingReader, (self.kind,))


class _LyingReader:
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def read(self, key: str, offset: int, length: int) -> bytes:
        if self._kind == "hang":
            threading.Event().wait()
        if self._kind == "fail" and offset:
            raise OSError("no such luck")
        return bytes(length)

    def close(self) -> None:
        return


@pytest.mark.timeout(120)
def test_a_rival_that_reads_other_bytes_has_no_figure_and_ours_would_end_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.CONTENDERS, "lying", lambda lab, url: _Lying())
    lied = stampede.stampede(lab, _stampede("ns.read", "lying"))
    assert "lying" not in {figure.name for figure in lied.figures}
    (missing,) = lied.missing
    assert missing.why.startswith("8 of 8 readings were of other bytes")
    monkeypatch.setattr(_Lying, "kind", "fail")
    (missing,) = stampede.stampede(lab, _stampede("ns.read", "lying")).missing
    assert "OSError: no such luck" in missing.why
    monkeypatch.setattr(_Lying, "role", "ours")
    with pytest.raises(RuntimeError, match="no such luck"):
        stampede.stampede(lab, _stampede("lying"))


@pytest.mark.timeout(60)
def test_readers_that_hang_are_ended_and_told_of() -> None:
    small = Object("small", 10)
    plan = stampede.Plan(small, small, 10, 2, 0.0)
    with Trainer() as trainer:
        recipe = Recipe(_LyingReader, ("hang",))
        told = trainer.run(stampede.all_read, recipe, (), plan, 0.5)
        assert told == "2 of 2 workers had no answer in 0.5 s"
        assert trainer.run(multiprocessing.active_children) == []


# -- tenants ----------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_each_tenant_is_measured_alone_and_together(lab: Lab) -> None:
    outcome = tenants.tenants(
        lab,
        _workload(
            "tenants",
            dataset=Dataset(count=1, bytes="1MiB"),
            load=Load(seconds=0.2, rounds=1),
            options={
                "prefetch_objects": 2,
                "prefetch_bytes": "1MiB",
                "cold_objects": 2,
                "cold_bytes": "8MiB",
                "written_bytes": "64KiB",
            },
        ),
    )
    figures = {figure.name: figure for figure in outcome.figures}
    blocks = {"hot reads": 64 * KIB, "prefetch": MIB, "cold reads": 64 * KIB, "writes": 64 * KIB}
    assert set(figures) == {f"{name}, {when}" for name in blocks for when in ("alone", "together")}
    for figure in figures.values():
        sample = figure.sample
        assert sample is not None and sample.latency is not None
        assert sample.latency.count == sample.operations > 0
        assert sample.bytes == sample.operations * blocks[figure.work]
        assert figure.median == pytest.approx(sample.bytes / 1e6 / sample.seconds)
    assert set(outcome.numbers) == {
        "p99 of hot reads together ÷ alone",
        "hot reads together ÷ alone",
    }
    assert [one.name for one in outcome.missing] == ["rivals"]


# -- storms -----------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("measure", "rivals"),
    [("open-storm", ("fsspec filecache open",)), ("stat-storm", tuple(storms.RIVALS)[::2])],
)
def test_a_storm_reaches_every_name_and_asks_the_origin_for_none(
    lab: Lab, measure: str, rivals: tuple[str, ...]
) -> None:
    load = Load(processes=(2,), seconds=0.1, rounds=1, warm_up=0)
    dataset = Dataset(count=40, bytes="4KiB")
    outcome = registry.MEASURES[measure](
        lab, _workload(measure, dataset=dataset, load=load, contenders=rivals)
    )
    assert not outcome.missing
    for figure in outcome.figures:
        assert figure.sample is not None and figure.processes == 2
        if figure.work == storms.FIRST:
            assert figure.sample.operations == 40
        else:
            assert figure.sample.operations >= 2
    ours = [figure for figure in outcome.figures if figure.role == "ours"]
    assert [figure.work for figure in ours] == [storms.KNOWN, storms.FIRST]
    for figure in ours:
        # The object that warms up may be asked for, whose name no listing has brought.
        assert figure.sample is not None
        asked = {kind: n for kind, n in figure.sample.tiers.items() if "requests" in kind and n}
        assert sum(asked.values()) <= 4, asked


def test_the_readers_of_a_storm_do_what_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(9000))
    assert storms.OpenPlain(str(tmp_path)).read("a", 0, 1) == bytes(4096)
    assert cast(Any, storms.StatPlain(str(tmp_path)).read("a", 0, 1)).st_size == 9000


# -- streams ----------------------------------------------------------------------------------


def test_a_watch_sees_memory_until_the_work_is_done() -> None:
    watch = streams.Watch()
    with ThreadPoolExecutor(1) as pool:
        watch.until(pool.submit(lambda: None), {"this": os.getpid()})
    (series,) = watch.series()
    assert (series.name, series.unit) == ("this", "MiB")
    assert len(series.x) == len(series.y) >= 1 and series.y[0] > 1


@pytest.mark.timeout(120)
def test_a_stream_comes_from_the_origin_in_every_pass(lab: Lab) -> None:
    before = lab.server.traffic().bytes_sent
    outcome = streams.long_stream_memory(
        lab,
        _workload(
            "long-stream-memory",
            dataset=Dataset(count=1, bytes="4MiB"),
            access=Access(pattern="sequential", block="256KiB"),
            load=Load(threads=(2,)),
            options={"passes": 3, "memory": "64MiB"},
        ),
    )
    assert outcome.sizes["streamed_bytes"] == 3 * 4 * MIB
    asked = lab.server.traffic().bytes_sent - before
    assert asked == 3 * 4 * MIB + 64 * KIB  # and the object that warms up
    assert 0 < outcome.numbers["agent RSS peak ÷ (budget + 150 MiB)"] < 2
    assert {series.name for series in outcome.series} == {"agent", "client"}
    throughput, memory = outcome.figures
    assert throughput.work != memory.work and throughput.threads == 2


# -- the files --------------------------------------------------------------------------------


def test_their_bars_and_contenders_are_there() -> None:
    found = {one.measure: one for one in workload.read_all().values()}
    for name in ("stampede", "tenants", "open-storm", "stat-storm", "long-stream-memory"):
        assert name in registry.MEASURES and found[name].name == name
    assert found["stampede"].in_gate()
    assert set(found["stampede"].contenders) <= set(registry.CONTENDERS)
    for name in ("open-storm", "stat-storm"):
        assert set(found[name].contenders) <= set(storms.RIVALS)
