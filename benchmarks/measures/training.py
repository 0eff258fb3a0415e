"""Epochs as training jobs read them: tar shards through a DataLoader, and small files by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Measured, Outcome, Race
from benchmarks.lab import BUCKET, Lab, Meter
from benchmarks.registry import measure
from benchmarks.sources import Source, Way, chosen
from benchmarks.trainer import Trainer
from benchmarks.workload import Workload
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

LITDATA = "litdata"
MOSAIC = (
    "mosaicml-streaming",
    "0.13 demands numpy < 2.2 and brings transformers and four clouds' packages along: it does "
    "not install beside this environment. litdata stands for its kind",
)


@measure("dataloader-tar")
def dataloader_tar(lab: Lab, workload: Workload) -> Outcome:
    """One epoch of tar shards in webdataset's form, by a DataLoader with forked workers."""
    objects = lab.objects(workload.dataset)
    keys = [found.key for found in objects]
    with lab.namespace() as namespace, Trainer() as trainer:
        race = Race(unit="samples/s", per="s")
        race.miss(*MOSAIC)
        names = [name for name in workload.contenders if name != LITDATA]
        sources, missing = chosen(lab, names, namespace)
        race.missing.extend(missing)
        for workers in workload.load.processes:
            for source in sources:
                _add(lab, race, source, workload, objects, workers, _tar(trainer, source, keys))
        if LITDATA in workload.contenders:
            _add_litdata(lab, race, trainer, workload, keys)
        meter = Meter(namespace)
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
        tiers = meter.read()
    return Outcome(
        figures=race.figures,
        missing=tuple(race.missing),
        tiers=tiers,
        sizes=_sizes(objects, workload),
        notes=(
            "a worker hands on the sizes of its samples, not their bytes, for every contender: "
            "what decoded tensors cost on their way to the job is the same for all",
            "litdata reads a copy of the samples in its own format, made beforehand and untimed",
        ),
    )


Run = Callable[[int], Measured]  # of the number of workers


def _tar(trainer: Trainer, source: Source, keys: Sequence[str]) -> Run:
    def run(workers: int) -> Measured:
        found: Measured = trainer.run(tar_epoch, source.way, keys, workers)
        return found

    return run


def _add(
    lab: Lab,
    race: Race,
    source: Source,
    workload: Workload,
    objects: Sequence[Object],
    workers: int,
    run: Run,
) -> None:
    def prepare() -> None:
        source.prepare(objects, workload.state)

    once = workload.state == "hot"
    if once:
        prepare()
    many = len(workload.load.processes) > 1
    race.add(
        f"{source.name} × {workers}" if many else source.name,
        source.role,
        lambda: run(workers),
        prepare=None if once else prepare,
        processes=workers,
        sampler=lab.sampler(namespace=source.namespace),
    )


def tar_epoch(way: Way, keys: Sequence[str], workers: int) -> Measured:
    """Runs in the trainer."""
    from benchmarks import loaders

    return loaders.tar_epoch(way, keys, workers)


def _sizes(objects: Sequence[Object], workload: Workload) -> dict[str, int]:
    return {
        "objects": len(objects),
        "bytes": sum(found.length for found in objects),
        "rounds": workload.load.rounds,
    }


# -- litdata --------------------------------------------------------------------------------


def _add_litdata(
    lab: Lab, race: Race, trainer: Trainer, workload: Workload, keys: Sequence[str]
) -> None:
    why = missing_package(LITDATA)
    if why:
        race.miss(LITDATA, why)
        return
    made, cache = lab.folder("litdata-made"), lab.folder("litdata")
    shards = [lab.server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys]
    trainer.run(optimize_for_litdata, shards, str(made), workload.dataset.object_bytes)
    prefix = f"litdata-{workload.dataset.folder}"
    files = [(f"{prefix}/{file.name}", file.read_bytes()) for file in sorted(made.iterdir())]
    lab.server.put_many(BUCKET, files)
    storage = {
        "endpoint_url": lab.server.endpoint,
        "region_name": REGION,
        "aws_access_key_id": S3_ACCESS_KEY,
        "aws_secret_access_key": S3_SECRET_KEY,
    }

    def forget() -> None:
        shutil.rmtree(cache)
        cache.mkdir()

    # Its fixed costs make it the slowest by far: the largest number of workers tells enough.
    workers = max(workload.load.processes)

    def run() -> Measured:
        found: Measured = trainer.run(
            litdata_epoch, f"s3://{BUCKET}/{prefix}", str(cache), storage, workers
        )
        return found

    race.add(
        f"{LITDATA} × {workers}" if len(workload.load.processes) > 1 else LITDATA,
        "rival",
        run,
        prepare=forget if workload.state == "cold" else None,
        processes=workers,
        sampler=lab.sampler(),
    )


def optimize_for_litdata(shards: list[bytes], folder: str, chunk_bytes: int) -> None:
    """Write the samples in litdata's format, in chunks as large as the shards."""
    from benchmarks import loaders

    loaders.optimize_for_litdata(shards, folder, chunk_bytes)


def litdata_epoch(url: str, cache: str, storage: dict[str, str], workers: int) -> Measured:
    from benchmarks import loaders

    return loaders.litdata_epoch(url, Path(cache), storage, workers)


# -- small files by name --------------------------------------------------------------------


@measure("epoch-small")
def epoch_small(lab: Lab, workload: Workload) -> Outcome:
    """One shuffled epoch of small objects by name, in batches. Those that ask the origin for
    everything in every epoch read the first part of it: their pace is the same all along."""
    objects = lab.objects(workload.dataset)
    shuffled = [found.key for found in objects]
    lab.random().shuffle(shuffled)
    part = min(len(shuffled), workload.option("rival_names", len(shuffled)))
    batch = workload.option("batch", 256)
    (workers,) = workload.load.processes
    with lab.namespace() as namespace, Trainer() as trainer:
        race = Race(unit="samples/s", per="s")
        sources, missing = chosen(lab, workload.contenders, namespace)
        race.missing.extend(missing)
        for source in sources:
            keys = shuffled[:part] if source.role == "rival" else shuffled

            def run(workers: int, source: Source = source, keys: list[str] = keys) -> Measured:
                found: Measured = trainer.run(names_epoch, source.way, keys, workers, batch)
                return found

            _add(lab, race, source, workload, objects, workers, run)
        meter = Meter(namespace)
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
        tiers = meter.read()
    return Outcome(
        figures=race.figures,
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={**_sizes(objects, workload), "names_of_rivals": part, "batch": batch},
        notes=(f"rivals read the first {part} of {len(shuffled)} names",),
    )


def names_epoch(way: Way, keys: Sequence[str], workers: int, batch: int) -> Measured:
    """Runs in the trainer."""
    from benchmarks import loaders

    return loaders.names_epoch(way, keys, workers, batch)
