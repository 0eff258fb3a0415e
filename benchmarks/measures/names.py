"""Names: stat of what is known, and a large listing from the index."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from benchmarks.datasets import FOLDER_OBJECTS
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, path_of, raced
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.settings import ProfileSettings

STAT_NAMES = 200
# ext4 gives an inode 65,000 names: a million names need few inodes, and little time.
NAMES_PER_INODE = 50_000


@measure("stat")
def stat(lab: Lab, workload: Workload) -> Outcome:
    """ns.stat of names that a listing brought in, against os.stat of a plain file; returns the
    number ``thousand a second``."""
    keys = [found.key for found in lab.objects(workload.dataset)][:STAT_NAMES]
    operations = workload.load.operations
    file = str(lab.folder("plain") / "file")
    with open(file, "wb"):
        pass
    with lab.namespace() as namespace:
        paths = [path_of(keys[number % len(keys)]) for number in range(operations)]
        namespace.list(path_of(workload.dataset.folder), recursive=True)

        def ours() -> None:
            look = namespace.stat
            for path in paths:
                look(path)

        def bound() -> None:
            look = os.stat
            for _ in paths:
                look(file)

        sampler = lab.sampler(namespace=namespace)
        race = Race(amount=operations, unit="µs", per="op", sampler=sampler)
        race.add("os.stat of a plain file", "bound", bound)
        race.add("ns.stat", "ours", ours)
        outcome = raced(race, workload, namespace)
    rate = 1e3 / race.median("ns.stat")
    return msgspec.structs.replace(outcome, numbers={"thousand a second": rate})


@measure("list")
def list_names(lab: Lab, workload: Workload) -> Outcome:
    """ns.list of names that are in the index, against os.walk of the directory they are of;
    returns the number ``seconds``."""
    count = workload.dataset.count
    folder = lab.folder("names")
    make_names(folder, count)
    settings = lab.settings(origin=f"file://{folder}", profile=ProfileSettings(name="files"))
    with lab.namespace(settings) as namespace:
        root = path_of("").rstrip("/")
        assert len(namespace.list(root, recursive=True)) == count

        def ours() -> None:
            assert len(namespace.list(root, recursive=True)) == count

        def bound() -> None:
            assert sum(len(files) for _, _, files in os.walk(folder)) == count

        sampler = lab.sampler(namespace=namespace)
        race = Race(amount=1000.0, unit="ms", per="op", sampler=sampler)
        race.add("os.walk of plain files (names only)", "bound", bound)
        race.add("ns.list, recursive", "ours", ours)
        outcome = raced(race, workload, namespace)
    cost = race.median("ns.list, recursive") / 1e3
    return msgspec.structs.replace(outcome, numbers={"seconds": cost})


def make_names(folder: Path, count: int) -> None:
    """Make so many names below the folder, a thousand a directory."""
    file = folder
    for number in range(count):
        if number % FOLDER_OBJECTS == 0:
            part = folder / f"{number // FOLDER_OBJECTS:04}"
            part.mkdir()
        name = part / f"{number:07}.bin"
        if number % NAMES_PER_INODE == 0:
            name.touch()
            file = name
        else:
            os.link(file, name)
