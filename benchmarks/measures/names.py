"""Names: stat of what is known, and a large listing from the index."""

from __future__ import annotations

import os

from benchmarks.harness import Bar, Race, Result
from benchmarks.lab import Lab, Meter, path_of
from benchmarks.registry import benchmark
from tiercache.settings import ProfileSettings

STAT_NAMES = 200
FOLDER_NAMES = 1000


@benchmark("stat", "hot ns.stat")
def stat(lab: Lab) -> Result:
    scale = lab.scale
    keys = lab.small()[:STAT_NAMES]
    race = Race("stat", amount=scale.hot_ops, unit="µs", per="op")
    with lab.namespace() as namespace:
        paths = [path_of(keys[number % len(keys)]) for number in range(scale.hot_ops)]
        namespace.list(path_of("small"), recursive=True)
        file = str(lab.folder("plain") / "file")
        with open(file, "wb"):
            pass

        def ours() -> None:
            look = namespace.stat
            for path in paths:
                look(path)

        def bound() -> None:
            look = os.stat
            for _ in paths:
                look(file)

        race.add("os.stat of a plain file", "bound", bound)
        race.add("ns.stat", "ours", ours)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
    rate = 1e3 / race.median("ns.stat")
    return Result(
        name="stat",
        title="hot `ns.stat`",
        figures=race.figures,
        bars=(Bar(text="a second", figure=rate, limit=300, unit="k/s", at_most=False, slack=2.5),),
        tiers=tiers,
        sizes={"names": len(keys), "stats": scale.hot_ops},
    )


@benchmark("list", "ns.list of cached names")
def list_names(lab: Lab) -> Result:
    scale = lab.scale
    count = scale.names_count
    folder = lab.folder("names")
    for number in range(count):
        if number % FOLDER_NAMES == 0:
            part = folder / f"{number // FOLDER_NAMES:03}"
            part.mkdir()
        os.close(os.open(part / f"{number:06}.bin", os.O_CREAT | os.O_WRONLY, 0o600))
    race = Race("list", amount=1.0, unit="µs", per="op")
    settings = lab.settings(origin=f"file://{folder}", profile=ProfileSettings(name="files"))
    with lab.namespace(settings) as namespace:
        root = path_of("").rstrip("/")
        assert len(namespace.list(root, recursive=True)) == count

        def ours() -> None:
            assert len(namespace.list(root, recursive=True)) == count

        def bound() -> None:
            assert sum(len(files) for _, _, files in os.walk(folder)) == count

        race.add("os.walk of plain files (names only)", "bound", bound)
        race.add("ns.list, recursive", "ours", ours)
        meter = Meter(namespace)
        race.run(scale.hot_rounds)
        tiers = meter.read()
    cost = race.median("ns.list, recursive") / 1e6
    return Result(
        name="list",
        title=f"`ns.list` of {count:,} cached names",
        figures=race.figures,
        bars=(
            Bar(text="the listing", figure=cost, limit=0.5 * count / 100_000, unit="s", slack=2.5),
        ),
        tiers=tiers,
        sizes={"names": count},
    )
