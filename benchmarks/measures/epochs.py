"""Epochs over a data set that the cache cannot hold: what is fetched, against the optimum."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import belady
from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Figure, Measured, Missing, Outcome, Role, Sample, Series
from benchmarks.lab import BUCKET, Lab, path_of
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.namespace import Namespace
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

UNIT = "MB from the origin"
POINTS_PER_EPOCH = 20
# A rival that holds more than this of its limit has another cache than the one compared.
OVERSHOOT = 1.1
MSC = "multi-storage-client, limited"
MIB = 1 << 20

Reads = list[Object]


@dataclass(slots=True)
class Epochs:
    """What one contender made of the trace. ``fetched_bytes`` is the server's own count."""

    fetched_bytes: int = 0
    seconds: float = 0.0
    sample: Sample | None = None
    held_bytes: int = 0  # the most that its directory ever held
    hit_times_s: list[float] = field(default_factory=list)
    hit_ratios: list[float] = field(default_factory=list)


@measure("working-set")
def working_set(lab: Lab, workload: Workload) -> Outcome:
    """Shuffled epochs of whole objects through a cache of a part of their bytes. All contenders
    read the very same trace; LRU and the optimum are computed from it."""
    objects = lab.objects(workload.dataset)
    reads = [
        Object(key, length)
        for key, length in belady.trace(objects, epochs=workload.option("epochs", 3), seed=lab.seed)
    ]
    capacity = workload.option("capacity", sum(found.length for found in objects) // 4)
    step = max(1, len(objects) // POINTS_PER_EPOCH)
    figures: list[Figure] = []
    series: list[Series] = []
    notes: list[str] = []
    for name, announced in (("ns.read", False), ("ns.read, order announced", True)):
        with _reading_ours(lab, capacity, reads) as (read, namespace):
            epochs = _read(lab, reads, read, step, namespace, announced=announced)
        figures.append(_figure(name, "ours", epochs.fetched_bytes, epochs.sample))
        series.append(
            Series(name=name, unit="hit ratio", x=tuple(epochs.hit_times_s),
                   y=tuple(epochs.hit_ratios))
        )  # fmt: skip
        notes.append(
            f"{name}: {epochs.seconds:.1f} s; its directory held at most "
            f"{epochs.held_bytes / 1e6:.0f} MB"
        )
    series.append(_lru_series(reads, capacity, step, series[0]))
    figures.append(_figure("LRU, computed", "bound", belady.lru(reads, capacity)))
    figures.append(_figure("SIEVE, computed", "bound", belady.sieve(reads, capacity)))
    figures.append(_figure("optimum, computed", "bound", belady.belady(reads, capacity)))
    missing = [*_rivals(lab, workload, reads, capacity, step, figures, notes)]
    return Outcome(
        figures=tuple(figures),
        missing=tuple(missing),
        sizes={
            "objects": len(objects),
            "bytes": sum(found.length for found in objects),
            "capacity_bytes": capacity,
            "reads": len(reads),
            "read_bytes": sum(found.length for found in reads),
        },
        notes=(
            "LRU, SIEVE and the optimum are computed from the trace, for whole objects in all of "
            "the capacity; what ours needs for its index is part of its capacity",
            *notes,
        ),
        series=tuple(series),
    )


def _figure(name: str, role: Role, fetched: int, sample: Sample | None = None) -> Figure:
    return Figure(name=name, role=role, unit=UNIT, values=(fetched / 1e6,), sample=sample)


@contextmanager
def _reading_ours(
    lab: Lab, capacity: int, reads: Reads
) -> Iterator[tuple[Callable[[str], Any], Namespace]]:
    with lab.namespace(lab.settings(capacity_bytes=capacity)) as namespace:
        namespace.list(path_of(reads[0].key.partition("/")[0]), recursive=True)
        yield (lambda key: namespace.read(path_of(key))), namespace


def _read(
    lab: Lab,
    reads: Reads,
    read: Callable[[str], Any],
    step: int,
    namespace: Namespace | None = None,
    folder: Path | None = None,
    announced: bool = False,
) -> Epochs:
    """Read the trace, in order and as fast as it comes; ``announced``: told to ours before."""
    epochs = Epochs()
    if namespace is not None:
        folder = Path(namespace.settings.cache.dir)
    before = lab.server.traffic().bytes_sent
    sampler = lab.sampler(namespace=namespace)()
    sampler.begin()
    started_s = time.perf_counter()
    if namespace is not None and announced:  # its first bytes count too
        namespace.prefetch([path_of(found.key) for found in reads], ordered=True)
    hits = 0
    for number, found in enumerate(reads, 1):
        if namespace is not None:
            hits += namespace.is_hit(path_of(found.key))
        if len(read(found.key)) != found.length:
            raise RuntimeError(f"{found.key} came in another length")
        if number % step == 0:
            epochs.hit_times_s.append(time.perf_counter() - started_s)
            epochs.hit_ratios.append(hits / step)
            hits = 0
            if folder is not None:
                epochs.held_bytes = max(epochs.held_bytes, held_bytes(folder))
    epochs.seconds = time.perf_counter() - started_s
    total = sum(found.length for found in reads)
    sampler.end(Measured(seconds=epochs.seconds, operations=len(reads), bytes=total))
    epochs.sample = sampler.sample()
    epochs.fetched_bytes = lab.server.traffic().bytes_sent - before
    return epochs


def held_bytes(folder: Path) -> int:
    """Return what a directory takes up on its device."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # evicted meanwhile
    return total


def _lru_series(reads: Reads, capacity: int, step: int, of: Series) -> Series:
    """The hit ratio of LRU at the same reads, drawn over the times of another's."""
    fetched = [belady.lru(reads[:end], capacity) for end in range(0, len(reads) + 1, step)]
    totals = [
        sum(found.length for found in reads[end - step : end])
        for end in range(step, len(reads) + 1, step)
    ]
    missed = (after - before for before, after in pairwise(fetched))
    ratios = (1 - one / total for one, total in zip(missed, totals, strict=True))
    return Series(name="LRU, computed", unit="hit ratio", x=of.x, y=tuple(ratios))


# -- rivals ---------------------------------------------------------------------------------


def _rivals(
    lab: Lab,
    workload: Workload,
    reads: Reads,
    capacity: int,
    step: int,
    figures: list[Figure],
    notes: list[str],
) -> Iterator[Missing]:
    yield Missing(name="fsspec filecache and blockcache", why="they have no limit")
    if MSC not in workload.contenders:
        return
    why = missing_package("multistorageclient", "multi-storage-client[boto3]")
    if why:
        yield Missing(name=MSC, why=why)
        return
    folder = lab.folder("msc")
    client = _limited_msc(lab, folder, capacity)
    epochs = _read(lab, reads, client.read, step, folder=folder)
    said = (
        f"took {epochs.seconds:.1f} s, fetched {epochs.fetched_bytes / 1e6:.0f} MB and held up to "
        f"{epochs.held_bytes / 1e6:.0f} MB with a limit of {capacity / 1e6:.0f}"
    )
    if epochs.held_bytes > OVERSHOOT * capacity:
        yield Missing(name=MSC, why=f"it does not keep its limit: it {said}")
    else:
        figures.append(_figure(MSC, "rival", epochs.fetched_bytes, epochs.sample))
        notes.append(f"{MSC} {said}")


def _limited_msc(lab: Lab, folder: Path, capacity: int) -> Any:
    """Its cache with a limit, looked after as often as it can be told to: every second."""
    from multistorageclient import StorageClient, StorageClientConfig

    config = StorageClientConfig.from_dict(
        {
            "profiles": {
                "bench": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": BUCKET,
                            "endpoint_url": lab.server.endpoint,
                            "region_name": REGION,
                        },
                    },
                    "credentials_provider": {
                        "type": "S3Credentials",
                        "options": {"access_key": S3_ACCESS_KEY, "secret_key": S3_SECRET_KEY},
                    },
                    "caching_enabled": True,
                }
            },
            "cache": {
                "location": str(folder),
                "size": f"{capacity // MIB}M",
                "eviction_policy": {"policy": "lru", "refresh_interval": 1},
            },
        },
        profile="bench",
    )
    return StorageClient(config)
