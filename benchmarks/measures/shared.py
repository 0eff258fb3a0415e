"""What depends on processes: the first touch of small objects, and many readers at once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import msgspec

from benchmarks import workers
from benchmarks.harness import Measured, Outcome, Race
from benchmarks.lab import Lab, path_of, raced
from benchmarks.measures.hot import warm
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.testing.datasets import object_bytes

WARM_UP = 50


@measure("hot-small")
def hot_small(lab: Lab, workload: Workload) -> Outcome:
    """Small objects, each for the first time in its process, against plain files."""
    objects = lab.objects(workload.dataset)
    wanted = min(workload.load.operations, len(objects) // 2)
    picked = lab.random().sample(range(len(objects)), wanted + WARM_UP)
    files = _plain_files(
        lab.folder("plain-small"), len(objects), object_bytes(lab.seed, objects[0].length)
    )
    settings = lab.settings()
    with lab.namespace(settings) as namespace:
        namespace.prefetch(path_of(workload.dataset.folder), background=False).wait()
        paths = [path_of(objects[number].key) for number in picked]
        plain = [files[number] for number in picked]
        for path in paths:  # the bytes lie in memory for both
            namespace.read(path)
        namespace.client.reader.report_use()

        def ours() -> float:
            arguments = (settings, paths[:WARM_UP], paths[WARM_UP:])
            return float(workers.together(workers.first_touch, [arguments])[0])

        def bound() -> float:
            arguments = (plain[:WARM_UP], plain[WARM_UP:])
            return float(workers.together(workers.first_touch_plain, [arguments])[0])

        sampler = lab.sampler(namespace=namespace)
        race = Race(
            amount=wanted,
            bytes=sum(objects[number].length for number in picked[WARM_UP:]),
            unit="µs",
            per="op",
            sampler=sampler,
        )
        race.add("open + pread + close of plain files", "bound", bound)
        race.add("ns.read, first touch", "ours", ours)
        return raced(race, workload, namespace, read_bytes=workers.READ_BLOCK)


def _plain_files(folder: Path, count: int, data: bytes) -> list[str]:
    files = []
    for number in range(count):
        file = folder / f"{number // 1000:03}" / f"{number:06}.bin"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        files.append(str(file))
    return files


@measure("hot-processes")
def hot_processes(lab: Lab, workload: Workload) -> Outcome:
    """Random blocks of one object by one process and by several; returns the number ``growth ÷
    growth of os.pread``."""
    (found,) = lab.objects(workload.dataset)
    few, many = workload.load.processes
    settings = lab.settings()
    with lab.namespace(settings) as namespace:
        path = path_of(found.key)
        file = warm(namespace, path)
        seconds = workload.load.seconds

        def ours(count: int) -> Measured:
            arguments = [(settings, path, found.length, seconds)] * count
            return _measured(workers.together(workers.reading, arguments), seconds)

        def plain(count: int) -> Measured:
            arguments = [(file, found.length, seconds)] * count
            return _measured(workers.together(workers.reading_plain, arguments), seconds)

        race = Race(unit="reads/s", per="s", sampler=lab.sampler(namespace=namespace))
        for count in (few, many):
            race.add(f"os.pread × {count}", "bound", partial(plain, count), processes=count)
            race.add(f"ns.read × {count}", "ours", partial(ours, count), processes=count)
        outcome = raced(race, workload, namespace, read_bytes=workers.READ_BLOCK)
    growth = race.ratio(f"ns.read × {many}", f"ns.read × {few}")
    growth_plain = race.ratio(f"os.pread × {many}", f"os.pread × {few}")
    return msgspec.structs.replace(
        outcome,
        numbers={"growth ÷ growth of os.pread": growth / growth_plain},
        notes=(
            f"growth from {few} to {many} on {os.cpu_count()} cores: ours {growth:.2f} ×, "
            f"os.pread {growth_plain:.2f} ×",
        ),
    )


def _measured(rates: list[float], seconds: float) -> Measured:
    """Return what processes of these reads a second did in so many seconds."""
    reads = round(sum(rates) * seconds)
    return Measured(seconds=seconds, operations=reads, bytes=reads * workers.READ_BLOCK)
