"""Reports made up for tests of what is made of reports: no figure in them was measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

from benchmarks.harness import (
    Bar,
    Figure,
    Latency,
    Missing,
    Outcome,
    Result,
    Role,
    Sample,
    Series,
)
from benchmarks.results import Report, Surroundings

ROUNDS = 5


def surroundings(*, seed: int = 7, short: bool = False, processor: str = "a CPU") -> Surroundings:
    return Surroundings(
        when="2026-01-02 03:04 UTC",
        commit="0123456789ab",
        seed=seed,
        short=short,
        python="3.11.0",
        kernel="6.0",
        processor=processor,
        cores=2,
        memory_bytes=24 << 30,
        file_system="ext4",
        packages={"tiercache": "0.1.0", "obstore": "0.12.1"},
    )


def report(results: Sequence[Result], *, seed: int = 7, short: bool = False) -> Report:
    return Report(surroundings=surroundings(seed=seed, short=short), results=tuple(results))


def figure(
    name: str,
    role: Role,
    *values: float,
    unit: str = "µs",
    higher_is_better: bool = False,
    threads: int = 1,
    processes: int = 1,
    work: str = "",
    sample: Sample | None = None,
) -> Figure:
    return Figure(
        name=name,
        role=role,
        unit=unit,
        values=values,
        higher_is_better=higher_is_better,
        threads=threads,
        processes=processes,
        work=work,
        sample=sample,
    )


def result(
    name: str, *figures: Figure, bars: Sequence[Bar] = (), missing: Sequence[Missing] = ()
) -> Result:
    return Result(
        name=name,
        title=f"title of {name}",
        outcome=Outcome(figures=figures, missing=tuple(missing)),
        bars=tuple(bars),
    )


def histogram(values_us: Sequence[float]) -> str:
    made = HdrHistogram(1, 60_000_000_000, 3)
    for value in values_us:
        made.record_value(int(value * 1e3))
    return str(made.encode().decode("ascii"))


def sample(rng: random.Random, typical_us: float, *, origin: bool) -> Sample:
    latencies = sorted(typical_us * rng.lognormvariate(0.0, 0.35) for _ in range(5_000))

    def at(share: float) -> float:
        return latencies[min(len(latencies) - 1, int(share * len(latencies)))]

    operations = 20_000
    read = operations * 65_536
    tiers = {"delivered_bytes": read, "page_cache_bytes": read, "nvme_bytes": 0}
    if origin:
        tiers = {
            "delivered_bytes": read,
            "page_cache_bytes": read // 4,
            "nvme_bytes": 4096,
            "origin_bytes": read - read // 4,
            "origin_requests_get": operations * 3 // 4,
            "origin_requests_head": 1,
        }
    return Sample(
        operations=operations,
        bytes=read,
        seconds=typical_us * operations / 1e6,
        latency=Latency(
            count=len(latencies),
            p50_us=at(0.5),
            p90_us=at(0.9),
            p99_us=at(0.99),
            p999_us=at(0.999),
            max_us=latencies[-1],
            histogram=histogram(latencies),
        ),
        cpu_s={"reader": 1.5, "agent": 0.5, **({"server": 2.5} if origin else {})},
        rss_bytes={"reader": 80 << 20, "agent": 120 << 20},
        tiers=tiers,
        cost_dollars=0.0061 if origin else None,
    )


def _rounds(rng: random.Random, typical: float) -> tuple[float, ...]:
    return tuple(typical * rng.uniform(0.92, 1.12) for _ in range(ROUNDS))


def random_reads(state: str, *, seed: int = 1) -> Result:
    """A workload with several numbers of readers, samples, a missing rival and two bars."""
    rng = random.Random(f"{seed}-{state}")
    cold = state == "cold"
    rates: list[tuple[str, Role, float]] = [
        ("obstore asyncio" if cold else "os.pread", "bound", 700.0 if cold else 90_000.0),
        ("ns.read", "ours", 620.0 if cold else 85_000.0),
        ("s3fs", "rival", 210.0 if cold else 800.0),
        ("multi-storage-client", "rival", 660.0 if cold else 60_000.0),
    ]
    figures = []
    for readers in (1, 4, 16, 64):
        grown = readers**0.6
        for name, role, rate in rates:
            figures.append(
                figure(
                    f"{name} × {readers}",
                    role,
                    *_rounds(rng, rate * grown),
                    unit="reads/s",
                    higher_is_better=True,
                    threads=readers,
                    sample=sample(rng, readers / rate / grown * 1e6, origin=cold),
                )
            )
    bars = [
        Bar(
            text="ns.read ÷ the bound, 16 readers",
            figure=0.89,
            limit=0.8,
            at_most=False,
            ours="ns.read × 16",
            against=(f"{rates[0][0]} × 16",),
        ),
        Bar(text="bytes asked ÷ bytes read", figure=1.31, limit=1.02),
    ]
    outcome = Outcome(
        figures=tuple(figures),
        missing=(Missing(name="rclone mount", why="no `/dev/fuse` <on this machine>"),),
        numbers={"bytes_asked_by_bytes_read": 1.31},
        sizes={"object_bytes": 268_435_456, "block_bytes": 65_536},
        notes=("the page cache was dropped before each round",),
    )
    return Result(
        name=f"random-64k-{state}",
        title=f"random reads of 64 KiB, `{state}` | all readers",
        outcome=outcome,
        bars=tuple(bars),
        why="What a shuffled epoch does to a cache.",
        bound="the same blocks by the fastest client, straight from the server",
        state=state,
        network="same-region" if cold else "",
        took_s=21.0,
        load=3.2,
    )


def outage() -> Result:
    """A workload with series over time."""
    times = tuple(float(second) for second in range(40))
    marks = ((10.0, "outage"), (20.0, "origin back"))
    rate = tuple(0.0 if 12 <= second < 20 else 400.0 + 9 * (second % 7) for second in range(40))
    hits = tuple(min(1.0, 0.3 + 0.02 * second) for second in range(40))
    series = (
        Series(name="read", unit="MB/s", x=times, y=rate, marks=marks),
        Series(name="hit ratio", unit="hits ÷ reads", x=times, y=hits, marks=marks),
    )
    return Result(
        name="outage",
        title="an outage in mid-epoch",
        outcome=Outcome(series=series, numbers={"failed_reads": 0.0}),
        bars=(Bar(text="reads that failed", figure=0.0, limit=0.0, unit=""),),
        bound="nothing that is cached fails",
    )


def whole() -> Report:
    """One of everything."""
    small = result(
        "startup",
        figure("python -c pass", "bound", 15.0, 16.0, 15.5, unit="ms", work="import"),
        figure("import tiercache", "ours", 10.0, 12.0, 11.0, unit="ms", work="import"),
        figure("import fsspec", "rival", 90.0, 91.0, 95.0, unit="ms", work="import"),
        figure("agent start", "ours", 200.0, 210.0, 190.0, unit="ms", work="agent start"),
        bars=[Bar(text="agent start", figure=200.0, limit=500.0, unit="ms", ours="agent start")],
    )
    return report([random_reads("hot"), random_reads("cold"), outage(), small])
