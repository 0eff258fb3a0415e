"""Hot reads: what is on the node already, against the same bytes read without us."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from benchmarks import rivals
from benchmarks.harness import Bar, Race, Result
from benchmarks.lab import READ_BLOCK, Lab, Meter, path_of
from benchmarks.registry import benchmark
from tiercache.namespace import Namespace

SMALL_SAMPLE = 2_000
VIEW_OPS_FACTOR = 5
SEQUENTIAL_BLOCK = 1 << 20


def offsets(rng: random.Random, count: int, length: int) -> list[int]:
    """Random page-aligned places of 64 KiB blocks."""
    return [rng.randrange(length // READ_BLOCK) * READ_BLOCK for _ in range(count)]


def warm(namespace: Namespace, path: str) -> int:
    """Bring the object in, verified; return a descriptor of the file it lies in."""
    namespace.prefetch(path, background=False).wait()
    file = namespace.local_path(path, pin=False)
    namespace.read(path)
    return os.open(file, os.O_RDONLY)


def _preads(fd: int, places: list[int]) -> Callable[[], None]:
    def run() -> None:
        pread = os.pread
        for place in places:
            pread(fd, READ_BLOCK, place)

    return run


@measure("hot-read")
def hot_read(lab: Lab, workload: Workload) -> Outcome:
    """ns.read and ns.read_into of random blocks, against the same reads of the same file."""
    (found,) = lab.objects(workload.dataset)
    path, block = path_of(found.key), workload.access.block_bytes
    places = offsets(lab.random(), workload.load.operations, found.length, block)
    with lab.namespace() as namespace:
        fd = warm(namespace, path)
        race = Race(
            amount=len(places), unit="µs", per="op", sampler=lab.sampler(namespace=namespace)
        )

        def ours() -> None:
            read = namespace.read
            for place in places:
                read(path, place, block)

        buffer = bytearray(block)

        def ours_into() -> None:
            read_into = namespace.read_into
            for place in places:
                read_into(path, place, buffer)

        def bound_into() -> None:
            preadv, target = os.preadv, [buffer]
            for place in places:
                preadv(fd, target, place)

        race.add("os.pread", "bound", _preads(fd, places, block))
        race.add("ns.read", "ours", ours)
        race.add("os.preadv into one buffer", "bound", bound_into)
        race.add("ns.read_into", "ours", ours_into)
        meter = Meter(namespace)
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
        tiers = meter.read()
        os.close(fd)
    return Outcome(figures=race.figures, tiers=tiers)


@benchmark("hot-cat-file", "hot fsspec cat_file(path, start, end), 64 KiB")
def hot_cat_file(lab: Lab) -> Result:
    scale = lab.scale
    key = lab.hot()
    path = path_of(key)
    places = offsets(lab.random(), scale.hot_ops // 4, scale.hot_bytes)
    race = Race("hot-cat-file", amount=len(places), unit="µs", per="op")
    with lab.namespace() as namespace:
        fd = warm(namespace, path)
        race.add("os.pread", "bound", _preads(fd, places))
        race.add("cat_file", "ours", _cat(lab.filesystem(namespace), path, places))
        if not scale.short:
            _cat_file_rivals(lab, race, key, places)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
        os.close(fd)
    ratio = race.ratio("cat_file", "os.pread")
    return Result(
        name="hot-cat-file",
        title="hot fsspec `cat_file(path, start, end)` 64 KiB",
        figures=race.figures,
        bars=(Bar(text="cat_file ÷ os.pread", figure=ratio, limit=1.5),),
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={"object_bytes": scale.hot_bytes, "read_bytes": READ_BLOCK, "reads": len(places)},
    )


def _cat(filesystem: Any, path: str, places: list[int]) -> Callable[[], None]:
    def run() -> None:
        cat_file = filesystem.cat_file
        for place in places:
            cat_file(path, place, place + READ_BLOCK)

    return run


def _cat_file_rivals(lab: Lab, race: Race, key: str, places: list[int]) -> None:
    path = f"{lab.bucket}/{key}"
    for protocol in ("blockcache", "filecache"):
        why = rivals.why_missing("s3fs")
        if why:
            race.miss(f"fsspec {protocol}", why)
            continue
        cache = rivals.fsspec_cache(lab, protocol)
        with cache.open(path, "rb") as file:  # reading it all fills it
            while file.read(8 << 20):
                pass
        race.add(f"fsspec {protocol} over s3fs", "rival", _cat(cache, path, places))
    why = rivals.why_missing("msc")
    if why:
        race.miss("multi-storage-client", why)
        return
    client = rivals.msc(lab)
    client.read(key)
    file = client.open(key, "rb")

    def seek_and_read() -> None:
        for place in places:
            file.seek(place)
            file.read(READ_BLOCK)

    from multistorageclient.types import Range

    few = places[: len(places) // 20]

    def ranged() -> float:
        import time

        started = time.perf_counter()
        for place in few:
            client.read(key, byte_range=Range(place, READ_BLOCK))
        return (time.perf_counter() - started) * len(places) / len(few)

    race.add("multi-storage-client, open file", "rival", seek_and_read)
    race.add("multi-storage-client, ranged read", "rival", ranged)


@benchmark("hot-view", "hot ns.view of 64 KiB")
def hot_view(lab: Lab) -> Result:
    scale = lab.scale
    places = offsets(lab.random(), scale.hot_ops * VIEW_OPS_FACTOR, scale.hot_bytes)
    path = path_of(lab.hot())
    race = Race("hot-view", amount=len(places), unit="µs", per="op")
    with lab.namespace() as namespace:
        fd = warm(namespace, path)
        whole = namespace.view(path, 0, scale.hot_bytes)

        def ours() -> None:
            view = namespace.view
            for place in places:
                view(path, place, READ_BLOCK)

        def bound(whole: memoryview = whole) -> None:
            for place in places:
                whole[place : place + READ_BLOCK]

        race.add("slice of a mapping", "bound", bound)
        race.add("ns.view", "ours", ours)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
        os.close(fd)
    cost = race.median("ns.view")
    return Result(
        name="hot-view",
        title="hot `ns.view` 64 KiB",
        figures=race.figures,
        bars=(
            Bar(text="a view", figure=cost, limit=1.5, unit="µs", slack=2.5),
            Bar(
                text="views a second on one core",
                figure=1e3 / cost,
                limit=600,
                unit="k/s",
                at_most=False,
                slack=2.5,
            ),
        ),
        tiers=tiers,
        sizes={"object_bytes": scale.hot_bytes, "reads": len(places)},
    )


@benchmark("hot-open", "hot open + read 64 KiB + close through fsspec")
def hot_open(lab: Lab) -> Result:
    scale = lab.scale
    key = lab.hot()
    path = path_of(key)
    places = offsets(lab.random(), scale.hot_ops // 4, scale.hot_bytes)
    race = Race("hot-open", amount=len(places), unit="µs", per="op")
    with lab.namespace() as namespace:
        fd = warm(namespace, path)
        file = namespace.local_path(path, pin=False)
        filesystem = lab.filesystem(namespace)

        def ours() -> None:
            for place in places:
                with filesystem.open(path, "rb") as handle:
                    handle.seek(place)
                    handle.read(READ_BLOCK)

        def ours_direct() -> None:
            for place in places:
                with namespace.open(path) as handle:
                    handle.seek(place)
                    handle.read(READ_BLOCK)

        def bound() -> None:
            for place in places:
                handle = os.open(file, os.O_RDONLY)
                os.pread(handle, READ_BLOCK, place)
                os.close(handle)

        def builtin() -> None:
            for place in places:
                with open(file, "rb", buffering=0) as handle:
                    handle.seek(place)
                    handle.read(READ_BLOCK)

        race.add("os.open + pread + close", "bound", bound)
        race.add("open() + read + close", "bound", builtin)
        race.add("fsspec open + read + close", "ours", ours)
        race.add("ns.open + read + close", "ours", ours_direct)
        if not scale.short:
            _open_rivals(lab, race, key, places)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
        os.close(fd)
    cost = race.median("fsspec open + read + close")
    return Result(
        name="hot-open",
        title="hot open + read 64 KiB + close through fsspec, path seen before",
        figures=race.figures,
        bars=(Bar(text="open + read + close", figure=cost, limit=20.0, unit="µs", slack=2.5),),
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={"object_bytes": scale.hot_bytes, "reads": len(places)},
    )


def _open_rivals(lab: Lab, race: Race, key: str, places: list[int]) -> None:
    why = rivals.why_missing("s3fs")
    path = f"{lab.bucket}/{key}"
    for protocol in ("blockcache", "filecache"):
        if why:
            race.miss(f"fsspec {protocol}", why)
            continue
        cache = rivals.fsspec_cache(lab, protocol)
        with cache.open(path, "rb") as file:
            while file.read(8 << 20):
                pass

        def run(cache: Any = cache) -> None:
            for place in places:
                with cache.open(path, "rb") as handle:
                    handle.seek(place)
                    handle.read(READ_BLOCK)

        race.add(f"fsspec {protocol} over s3fs", "rival", run)


@benchmark("hot-sequential", "hot sequential read through ns.open")
def hot_sequential(lab: Lab) -> Result:
    scale = lab.scale
    path = path_of(lab.sequential())
    total = scale.sequential_bytes
    race = Race("hot-sequential", amount=total / 1e6, unit="MB/s", per="s")
    with lab.namespace() as namespace:
        os.close(warm(namespace, path))
        file = namespace.local_path(path, pin=False)
        buffer = bytearray(SEQUENTIAL_BLOCK)

        def read(open_it: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                with open_it() as handle:
                    while handle.read(SEQUENTIAL_BLOCK):
                        pass

            return run

        def read_into(open_it: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                with open_it() as handle:
                    while handle.readinto(buffer):
                        pass

            return run

        def plain() -> Any:
            return open(file, "rb", buffering=0)

        def ours() -> Any:
            return namespace.open(path)

        race.add("plain file, read", "bound", read(plain))
        race.add("ns.open, read", "ours", read(ours))
        race.add("plain file, readinto", "bound", read_into(plain))
        race.add("ns.open, readinto", "ours", read_into(ours))
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
    return Result(
        name="hot-sequential",
        title="hot sequential read through `ns.open`, 1 MiB at a time",
        figures=race.figures,
        bars=(
            Bar(
                text="read ÷ plain file",
                figure=race.ratio("ns.open, read", "plain file, read"),
                limit=0.95,
                at_most=False,
            ),
            Bar(
                text="readinto ÷ plain file",
                figure=race.ratio("ns.open, readinto", "plain file, readinto"),
                limit=0.95,
                at_most=False,
            ),
        ),
        tiers=tiers,
        sizes={"object_bytes": total, "read_bytes": SEQUENTIAL_BLOCK},
    )
