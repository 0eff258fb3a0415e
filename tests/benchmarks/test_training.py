"""Training workloads: what they count is what was read, and what the server says it sent."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks import belady
from benchmarks.harness import Outcome
from benchmarks.lab import Lab
from benchmarks.measures import columns, epochs, interruption, training
from benchmarks.measures.interruption import Outage, Plan, Read, Reads
from benchmarks.trainer import Stopwatch, Trainer
from benchmarks.workload import FOLDER, Dataset, Load, Workload, read
from tiercache.testing.datasets import IMAGE_BYTES, parquet_table

OURS = ("plain files", "ns.open", "fsspec tiercache")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(seed=7, short=True, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        yield lab
    finally:
        lab.close()


def _tiny(name: str, **changes: object) -> Workload:
    workload = read(FOLDER / f"{name}.toml")
    return msgspec.structs.replace(workload, bar=(), short=None, **changes)


def _once(processes: int) -> Load:
    return Load(processes=(processes,), rounds=1, warm_up=0)


def _tiers(outcome: Outcome, name: str) -> dict[str, int]:
    figure = next(one for one in outcome.figures if one.name == name)
    assert figure.sample is not None
    return figure.sample.tiers


# -- the trainer ----------------------------------------------------------------------------


def _pid() -> int:
    return os.getpid()


def _fails() -> None:
    raise ValueError("as it must")


def test_a_trainer_runs_one_thing_after_another_in_one_process_and_leaves() -> None:
    with Trainer(timeout_s=60) as trainer:
        assert trainer.run(_pid) == trainer.run(_pid) == trainer.pid != os.getpid()
        pid = trainer.pid
    assert not Path(f"/proc/{pid}").exists()


def test_what_fails_in_a_trainer_fails_here() -> None:
    with Trainer(timeout_s=60) as trainer, pytest.raises(RuntimeError, match="_fails failed"):
        trainer.run(_fails)


def test_a_stopwatch_counts_processor_seconds_of_its_own_process() -> None:
    watch = Stopwatch()
    while watch.measured(operations=1, total_bytes=2).cpu_s["reader"] < 0.01:
        pass
    measured = watch.measured(operations=1, total_bytes=2)
    assert (measured.operations, measured.bytes) == (1, 2)
    assert measured.seconds > 0


# -- DataLoader and small files -------------------------------------------------------------


def test_an_epoch_of_shards_reads_every_sample_once_and_fetches_every_byte_once(lab: Lab) -> None:
    dataset = Dataset(kind="tar", count=4, bytes="256KiB")
    workload = _tiny(
        "dataloader-tar-cold", dataset=dataset, load=_once(2), contenders=(*OURS, "s3fs")
    )
    objects = lab.objects(dataset)
    sent = lab.server.traffic().bytes_sent
    outcome = training.dataloader_tar(lab, workload)
    samples = 4 * (dataset.object_bytes // (IMAGE_BYTES + 5 * 512))
    total = sum(found.length for found in objects)
    for figure in outcome.figures:
        assert figure.sample is not None
        assert (figure.sample.operations, figure.processes) == (samples, 2)
        assert figure.sample.bytes > samples * IMAGE_BYTES
    assert _tiers(outcome, "plain files")["origin_bytes"] == 0
    for name in ("ns.open", "fsspec tiercache", "s3fs"):
        assert _tiers(outcome, name)["origin_bytes"] == total
    # And the copy that the plain files are.
    assert lab.server.traffic().bytes_sent - sent == 4 * total


def test_later_epochs_ask_the_origin_for_nothing(lab: Lab) -> None:
    dataset = Dataset(kind="tar", count=4, bytes="256KiB")
    load = Load(processes=(2,), rounds=1, warm_up=1)
    workload = _tiny("dataloader-tar-hot", dataset=dataset, load=load, contenders=OURS)
    outcome = training.dataloader_tar(lab, workload)
    for name in OURS:
        assert _tiers(outcome, name)["origin_bytes"] == 0
        assert _tiers(outcome, name)["origin_requests_get"] == 0


def test_a_shuffled_epoch_reads_every_name_once_and_rivals_their_part(lab: Lab) -> None:
    dataset = Dataset(count=60, bytes="4KiB")
    workload = _tiny(
        "epoch-small-shuffled-cold",
        dataset=dataset,
        load=_once(2),
        options={"batch": 8, "rival_names": 20},
    )
    outcome = training.epoch_small(lab, workload)
    assert not outcome.missing
    read_bytes = {one.name: one.sample.bytes for one in outcome.figures if one.sample is not None}
    rival, whole = 20 * 4096, 60 * 4096
    assert read_bytes == {
        "plain files": whole,
        "ns.read_many": whole,
        "obstore asyncio": rival,
        "s3fs": rival,
        "fsspec filecache over s3fs": rival,
    }
    for name, count in read_bytes.items():
        expected = 0 if name == "plain files" else count
        assert _tiers(outcome, name)["origin_bytes"] == expected


# -- columns --------------------------------------------------------------------------------


def test_the_bytes_of_columns_are_those_of_their_chunks() -> None:
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(parquet_table(1, 1000), sink, row_group_size=300)
    file = sink.getvalue()
    rows, everything = columns.column_bytes(file, ["id", "user", "score", "text"])
    parts = [columns.column_bytes(file, [name])[1] for name in ("id", "user", "score", "text")]
    assert rows == 1000
    assert sum(parts) == everything < len(file)


def test_a_scan_asks_for_few_of_the_bytes_and_finds_the_same_rows(lab: Lab) -> None:
    dataset = Dataset(kind="parquet", count=2, bytes="2MiB")
    workload = _tiny("parquet-scan-cold", dataset=dataset, load=_once(1))
    outcome = columns.parquet_scan(lab, workload)
    assert not outcome.missing
    given = {one.sample.bytes for one in outcome.figures if one.sample is not None}
    assert len(given) == 1
    asked = _tiers(outcome, "fsspec tiercache")["origin_bytes"]
    assert outcome.sizes["column_bytes"] < asked < outcome.sizes["bytes"]
    assert outcome.numbers["origin bytes ÷ bytes of the columns"] == pytest.approx(
        asked / outcome.sizes["column_bytes"]
    )
    assert _tiers(outcome, "ns.local_path")["origin_bytes"] == outcome.sizes["bytes"]


# -- the working set ------------------------------------------------------------------------


def test_a_working_set_counts_what_the_server_sent_and_the_optimum_sends_less(lab: Lab) -> None:
    dataset = Dataset(count=32, bytes="512KiB")
    workload = _tiny(
        "working-set", dataset=dataset, contenders=(), options={"capacity": "8MiB", "epochs": 3}
    )
    objects = lab.objects(dataset)
    sent = lab.server.traffic().bytes_sent
    outcome = epochs.working_set(lab, workload)
    fetched = {one.name: round(one.median * 1e6) for one in outcome.figures}
    ours = {"ns.read", "ns.read, order announced"}
    assert sum(fetched[name] for name in ours) == lab.server.traffic().bytes_sent - sent
    for name in ours:
        assert _tiers(outcome, name)["origin_bytes"] == fetched[name]
        assert _tiers(outcome, name)["delivered_bytes"] == outcome.sizes["read_bytes"]
        assert fetched[name] >= fetched["optimum, computed"]
    assert outcome.sizes["read_bytes"] == 3 * outcome.sizes["bytes"]
    reads = belady.trace(objects, epochs=3, seed=lab.seed)
    assert fetched["LRU, computed"] == belady.lru(reads, 8 << 20)
    for series in outcome.series:
        assert len(series.x) == len(series.y)
        assert all(0.0 <= ratio <= 1.0 for ratio in series.y)
    drawn = next(one for one in outcome.series if one.name == "LRU, computed")
    missed = sum(1.0 - ratio for ratio in drawn.y) / len(drawn.y)
    assert missed * outcome.sizes["read_bytes"] == pytest.approx(fetched["LRU, computed"])


# -- an outage ------------------------------------------------------------------------------

PLAN = Plan(cached=["a", "b"], uncached=["x", "y", "z"], per_s=2.0, seconds=4.0)
OUTAGE = Outage(1.0, 2.0)


def test_a_cached_read_is_served_where_it_came_in_time() -> None:
    times = [due_s for due_s, _ in PLAN.cached_reads()]
    assert [key for _, key in PLAN.cached_reads()][:3] == ["a", "b", "a"]
    assert times[:3] == [0.0, 0.5, 1.0]
    prompt = [Read(due_s, due_s, due_s + 0.1) for due_s in times]
    assert interruption.served_share(Reads(prompt, []), PLAN, OUTAGE) == 1.0
    late = [read._replace(done_s=9.0) if read.due_s == 1.0 else read for read in prompt]
    assert interruption.served_share(Reads(late, []), PLAN, OUTAGE) == 0.5
    failed = [read._replace(error="OSError") for read in prompt]
    assert interruption.served_share(Reads(failed, []), PLAN, OUTAGE) == 0.0
    # What never began was due all the same.
    assert interruption.served_share(Reads(prompt[:3], []), PLAN, OUTAGE) == 0.5


def test_an_uncached_read_is_told_of_the_outage_or_counts_with_all_the_time() -> None:
    told = Read(1.0, 1.0, 1.4, "OriginUnavailable")
    before, over, wrong = Read(0.0, 0.0, 0.1), Read(1.5, 1.5, 2.2), Read(1.2, 1.2, 1.3, "NotFound")
    hung = Read(1.1, 1.1)
    waits = interruption.waits_for_error(Reads([], [before, told, over]), PLAN, OUTAGE)
    assert waits == pytest.approx([0.4])
    for other in (wrong, hung):
        found = interruption.waits_for_error(Reads([], [told, other]), PLAN, OUTAGE)
        assert max(found) == PLAN.seconds
    assert interruption.first_fill_s(Reads([], [before, over]), PLAN, OUTAGE) == pytest.approx(0.2)
    assert interruption.first_fill_s(Reads([], [before]), PLAN, OUTAGE) == PLAN.seconds


def test_an_outage_is_read_through(lab: Lab) -> None:
    workload = _tiny(
        "epoch-outage",
        dataset=Dataset(count=32, bytes="64KiB"),
        contenders=("ns.read_many", "s3fs"),
        load=Load(seconds=4.0),
        options={"outage_from_s": 1.0, "outage_to_s": 2.5, "deadline_s": 1.0, "ttl_s": 60.0,
                 "reads_per_s": 20},
    )  # fmt: skip
    outcome = interruption.epoch_outage(lab, workload)
    served = {one.name: one.median for one in outcome.figures}
    assert served["ns.read_many"] == 100.0
    assert outcome.numbers["share of cached reads served"] == 1.0
    assert outcome.numbers["longest wait for OriginUnavailable"] < workload.load.seconds
    assert outcome.numbers["first fill after the outage"] < workload.load.seconds
    for series in outcome.series:
        assert [text for _, text in series.marks] == ["outage begins", "outage ends"]
        assert series.x[-1] < workload.load.seconds
