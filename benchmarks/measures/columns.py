"""Columns of Parquet files: a scan needs few of the bytes, and should cost no more."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders.contender import Object
from benchmarks.harness import Figure, Measured, Outcome, Race
from benchmarks.lab import BUCKET, Lab
from benchmarks.registry import measure
from benchmarks.sources import Source, Way, chosen
from benchmarks.trainer import Stopwatch, Trainer
from benchmarks.workload import Workload

COLUMNS = ("user", "score")
# Every row group has rows of both kinds, so that no statistics spare a reader anything.
LEAST_SCORE = 0.5
WHOLE = "whole files"


@measure("parquet-scan")
def parquet_scan(lab: Lab, workload: Workload) -> Outcome:
    """Two of four columns and a filter over one of them, all files, by pyarrow's dataset."""
    objects = lab.objects(workload.dataset)
    rows, needed = _contents(lab, objects)
    with lab.namespace() as namespace, Trainer() as trainer:
        sources, missing = chosen(lab, workload.contenders, namespace)
        race = Race(amount=rows / 1e6, unit="M rows/s", per="s")
        race.missing.extend(missing)
        for source in sources:
            _add(lab, race, trainer, source, workload, objects)
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    figures = race.figures
    rounds = workload.load.rounds
    asked = {figure.name: _origin_bytes(figure) / rounds for figure in figures}
    ours = max(
        (asked[one.name] for one in figures if one.role == "ours" and one.work != WHOLE),
        default=0.0,
    )
    return Outcome(
        figures=figures,
        missing=tuple(race.missing),
        numbers={"origin bytes ÷ bytes of the columns": ours / needed},
        sizes={
            "files": len(objects),
            "rows": rows,
            "bytes": sum(o.length for o in objects),
            "column_bytes": needed,
            "rounds": rounds,
        },
        notes=(
            f"asked of the origin in one {workload.state} scan, in MB, where the "
            f"columns have {needed / 1e6:.1f}: "
            + ", ".join(f"{name} {count / 1e6:.1f}" for name, count in asked.items()),
            "ns.local_path fetches whole files: its scan has them on the node, and on any later "
            "column",
        ),
    )


def _add(
    lab: Lab,
    race: Race,
    trainer: Trainer,
    source: Source,
    workload: Workload,
    objects: Sequence[Object],
) -> None:
    def prepare() -> None:
        source.prepare(objects, workload.state)

    def run() -> Measured:
        found: Measured = trainer.run(scan, source.way, workload.dataset.folder)
        return found

    once, cold = workload.state == "hot", workload.state == "cold"
    if once:
        prepare()
    race.add(
        source.name,
        source.role,
        run,
        prepare=None if once else prepare,
        work=WHOLE if cold and source.name == "ns.local_path" else "",
        sampler=lab.sampler(namespace=source.namespace),
    )


def scan(way: Way, folder: str) -> Measured:
    """Runs in the trainer. Operations are left out: rows depend on the filter."""
    import pyarrow.dataset

    watch = Stopwatch()
    files = way.opened()
    filesystem, path = files.arrow(folder)
    dataset = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
    table = dataset.to_table(
        columns=list(COLUMNS), filter=pyarrow.dataset.field(COLUMNS[1]) > LEAST_SCORE
    )
    measured = watch.measured(operations=0, total_bytes=table.nbytes)
    files.close()
    return measured


def _contents(lab: Lab, objects: Sequence[Object]) -> tuple[int, int]:
    """Return the rows of all files, and the bytes of the columns' chunks in them."""
    rows = needed = 0
    for found in objects:
        body = lab.server.client.get_object(Bucket=BUCKET, Key=found.key)["Body"].read()
        one_rows, one_bytes = column_bytes(body, COLUMNS)
        rows, needed = rows + one_rows, needed + one_bytes
    return rows, needed


def column_bytes(file: bytes, columns: Sequence[str]) -> tuple[int, int]:
    """Return the rows of a Parquet file and the bytes that these columns take in it."""
    import pyarrow.parquet

    metadata: Any = pyarrow.parquet.ParquetFile(io.BytesIO(file)).metadata
    chunks = (
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    needed = sum(one.total_compressed_size for one in chunks if one.path_in_schema in columns)
    return metadata.num_rows, needed


def _origin_bytes(figure: Figure) -> int:
    return 0 if figure.sample is None else figure.sample.tiers.get("origin_bytes", 0)
