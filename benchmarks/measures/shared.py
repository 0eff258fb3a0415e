"""What depends on processes: the first touch of small objects, and many readers at once."""

from __future__ import annotations

import os

from benchmarks import workers
from benchmarks.harness import Bar, Race, Result
from benchmarks.hot import warm
from benchmarks.lab import READ_BLOCK, Lab, Meter, path_of
from benchmarks.registry import benchmark
from tiercache.testing.datasets import object_bytes

SAMPLE = 2_000
WARM_UP = 50
READERS = 4


@benchmark("hot-small", "hot small files, first touch by this process")
def hot_small(lab: Lab) -> Result:
    scale = lab.scale
    keys = lab.small()
    rng = lab.random()
    picked = rng.sample(range(len(keys)), min(SAMPLE, len(keys) // 2) + WARM_UP)
    folder = lab.folder("plain-small")
    noise = object_bytes(lab.seed, scale.small_bytes)
    files = []
    for number in range(len(keys)):
        file = folder / f"{number // 1000:03}" / f"{number:06}.bin"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(noise)
        files.append(str(file))
    settings = lab.settings()
    race = Race("hot-small", amount=len(picked) - WARM_UP, unit="µs", per="op")
    with lab.namespace(settings) as namespace:
        namespace.prefetch(path_of("small"), background=False).wait()
        paths = [path_of(keys[number]) for number in picked]
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

        race.add("open + pread + close of plain files", "bound", bound)
        race.add("ns.read, first touch", "ours", ours)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
    cost = race.median("ns.read, first touch")
    ratio = race.ratio("ns.read, first touch", "open + pread + close of plain files")
    return Result(
        name="hot-small",
        title=f"hot small file (64 KiB, one of {len(keys):,} in packs), first touch by a process",
        figures=race.figures,
        bars=(
            Bar(text="a first touch", figure=cost, limit=25.0, unit="µs", slack=2.5),
            Bar(text="÷ open + pread + close of plain files", figure=ratio, limit=2.0),
        ),
        tiers=tiers,
        sizes={"objects": len(keys), "touched": len(picked) - WARM_UP, "read_bytes": READ_BLOCK},
    )


@benchmark("hot-processes", "four processes reading hot")
def hot_processes(lab: Lab) -> Result:
    scale = lab.scale
    key = lab.hot()
    settings = lab.settings()
    race = Race("hot-processes", amount=1.0, unit="reads/s", per="s")
    with lab.namespace(settings) as namespace:
        path = path_of(key)
        os.close(warm(namespace, path))
        file = namespace.local_path(path, pin=False)
        length, seconds = scale.hot_bytes, scale.seconds

        def ours(count: int) -> float:
            arguments = [(settings, path, length, seconds)] * count
            return 1.0 / float(sum(workers.together(workers.reading, arguments)))

        def plain(count: int) -> float:
            arguments = [(file, length, seconds)] * count
            return 1.0 / float(sum(workers.together(workers.reading_plain, arguments)))

        race.add("os.pread, 1 process", "bound", lambda: plain(1))
        race.add(f"os.pread, {READERS} processes", "bound", lambda: plain(READERS))
        race.add("ns.read, 1 process", "ours", lambda: ours(1))
        race.add(f"ns.read, {READERS} processes", "ours", lambda: ours(READERS))
        meter = Meter(namespace)
        race.run(scale.cold_rounds, warm_up=0)
        tiers = meter.read()
    together, plain_together = f"ns.read, {READERS} processes", f"os.pread, {READERS} processes"
    growth = race.ratio(together, "ns.read, 1 process")
    growth_plain = race.ratio(plain_together, "os.pread, 1 process")
    return Result(
        name="hot-processes",
        title=f"{READERS} processes reading hot, 64 KiB each",
        figures=race.figures,
        bars=(
            Bar(
                text="growth from 1 process ÷ that of os.pread",
                figure=growth / growth_plain,
                limit=0.9,
                at_most=False,
                slack=1.35,
            ),
            Bar(
                text="all together ÷ os.pread in as many processes",
                figure=race.ratio(together, plain_together),
                limit=1 / 1.35,
                at_most=False,
            ),
        ),
        tiers=tiers,
        sizes={"processes": READERS, "cores": os.cpu_count() or 1, "object_bytes": length},
        notes=(f"growth: ours {growth:.2f} ×, os.pread {growth_plain:.2f} ×",),
    )
