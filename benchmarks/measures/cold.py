"""Cold reads: what the first reader of an object waits for, and what he costs the origin."""

from __future__ import annotations

from pathlib import Path

from benchmarks import rivals
from benchmarks.harness import Bar, Race, Result
from benchmarks.hot import SEQUENTIAL_BLOCK, offsets
from benchmarks.lab import READ_BLOCK, Lab, Meter, path_of, settle
from benchmarks.registry import benchmark

RANDOM_READS = 400
OBSTORE = ("obstore, one GET to a file", "obstore, 6 × 8 MiB ranges to a file")
S3FS_UNKEPT = "s3fs, open + read (kept nowhere)"


@benchmark("cold-sequential", "cold sequential read, cached on the way")
def cold_sequential(lab: Lab) -> Result:
    scale = lab.scale
    key = lab.sequential()
    path, total = path_of(key), scale.sequential_bytes
    race = Race("cold-sequential", amount=total / 1e6, unit="MB/s", per="s")
    folder = lab.folder("plain")
    store = rivals.obstore_store(lab)

    with lab.namespace() as namespace:

        def evict() -> None:
            namespace.evict(path)
            settle()

        def fresh() -> None:
            for file in folder.iterdir():
                file.unlink()
            settle()

        def ours() -> None:
            done = 0
            with namespace.open(path) as handle:
                while data := handle.read(SEQUENTIAL_BLOCK):
                    done += len(data)
            assert done == total

        race.add("ns.open, read", "ours", ours, prepare=evict)
        race.add(
            OBSTORE[0],
            "rival",
            lambda: rivals.obstore_stream(store, key, folder / "stream"),
            prepare=fresh,
        )
        race.add(
            OBSTORE[1],
            "bound",
            lambda: rivals.obstore_ranges(store, [(key, total)], folder),
            prepare=fresh,
        )
        if not scale.short:
            _s3fs(lab, race, key, folder / "s3fs", fresh)
        meter = Meter(namespace)
        race.run(scale.cold_rounds)
        tiers = meter.read()
    bars = []
    for rivals_of_bar, text, limit in (
        (OBSTORE, "÷ the better obstore to a file", 0.85),
        (("s3fs, get_file",), "÷ s3fs, get_file", 2.0),
        ((S3FS_UNKEPT,), f"÷ {S3FS_UNKEPT}", 2.0),
    ):
        figure = race.ratio_to_best("ns.open, read", rivals_of_bar)
        if figure is not None:
            bars.append(Bar(text=text, figure=figure, limit=limit, at_most=False, slack=1.6))
    return Result(
        name="cold-sequential",
        title="cold sequential read (cache-on-read)",
        figures=race.figures,
        bars=tuple(bars),
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={"object_bytes": total, "read_bytes": SEQUENTIAL_BLOCK},
    )


def _s3fs(lab: Lab, race: Race, key: str, file: Path, fresh: object) -> None:
    assert callable(fresh)
    why = rivals.why_missing("s3fs")
    if why:
        race.miss("s3fs", why)
        return
    remote = f"{lab.bucket}/{key}"

    def read() -> None:
        with rivals.s3fs(lab).open(remote, "rb") as handle:
            while handle.read(SEQUENTIAL_BLOCK):
                pass

    race.add(S3FS_UNKEPT, "rival", read, prepare=fresh)
    race.add(
        "s3fs, get_file",
        "rival",
        lambda: rivals.s3fs(lab).get_file(remote, str(file)),
        prepare=fresh,
    )


@benchmark("cold-random", "bytes asked of the origin by cold random reads")
def cold_random(lab: Lab) -> Result:
    scale = lab.scale
    key = lab.hot()
    path = path_of(key)
    rng = lab.random()
    # Unaligned: a read of 64 KiB touches two pages.
    reads = min(RANDOM_READS, scale.hot_bytes // READ_BLOCK // 4)
    places = [place + rng.randrange(READ_BLOCK) for place in offsets(rng, reads, scale.hot_bytes)]
    places = [min(place, scale.hot_bytes - READ_BLOCK) for place in places]
    race = Race("cold-random", amount=len(places), unit="µs", per="op")
    asked = []
    store = rivals.obstore_store(lab)
    with lab.proxied() as (namespace, proxy):

        def ours() -> None:
            for place in places:
                namespace.read(path, place, READ_BLOCK)
            asked.append(proxy.bytes_out(key))

        def cold() -> None:
            namespace.evict(path)
            proxy.clear()

        def bare() -> None:
            for place in places:
                store.get_range(key, start=place, length=READ_BLOCK)

        race.add("ns.read", "ours", ours, prepare=cold)
        race.add("obstore get_range (without the counting proxy)", "bound", bare)
        meter = Meter(namespace)
        race.run(1 if scale.short else 3, warm_up=0)
        tiers = meter.read()
    ratio = max(asked) / (len(places) * READ_BLOCK)
    return Result(
        name="cold-random",
        title="cold random reads of 64 KiB, unaligned: bytes asked of the origin",
        figures=race.figures,
        bars=(Bar(text="bytes asked ÷ bytes read", figure=ratio, limit=2.0, slack=1.0),),
        tiers=tiers,
        sizes={"object_bytes": scale.hot_bytes, "reads": len(places)},
        notes=("bytes are counted by a proxy in front of the origin",),
    )
