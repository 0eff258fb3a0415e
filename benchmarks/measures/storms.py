"""Storms of names: many processes open, or look at, files in random order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import workers
from benchmarks.contenders import fsspec_caches, s3fs_s3
from benchmarks.contenders.contender import Object, Recipe, missing_package
from benchmarks.contenders.ours import Paths
from benchmarks.contenders.plain import files
from benchmarks.harness import CannotRun, Measured, Outcome, Race, Role
from benchmarks.registry import measure
from benchmarks.workload import Access, Dataset, Workload
from tiercache.units import KIB

if TYPE_CHECKING:
    # A worker imports this module, but needs neither.
    from benchmarks.lab import Lab
    from tiercache.settings import Settings

HEAD_BYTES = 4096
WARM_UP = Dataset(count=1, bytes=64 * KIB)
FILL_OBJECTS = 512  # at once in memory: 32 MiB of 64 KiB
FEW = 2_000  # names of rivals, which fill their caches by slower ways
KNOWN = "again and again"
FIRST = "each name for the first time"


class Storm(NamedTuple):
    """One contender: how its processes do it, and what is done before a round. With ``first``
    each process sees each of its names once."""

    name: str
    role: Role
    recipe: Recipe
    objects: Sequence[Object]
    first: bool = False
    prepare: Callable[[], None] | None = None


@measure("open-storm")
def open_storm(lab: Lab, workload: Workload) -> Outcome:
    """Open, read 4 KiB, close: of cached objects, and of the same as plain files."""
    return _storm(lab, workload, OpenOurs, OpenPlain)


@measure("stat-storm")
def stat_storm(lab: Lab, workload: Workload) -> Outcome:
    """Stat of names that a listing brought in, and of plain files."""
    return _storm(lab, workload, StatOurs, StatPlain)


def _storm(
    lab: Lab,
    workload: Workload,
    ours: type[OpenOurs | StatOurs],
    bound: type[OpenPlain | StatPlain],
) -> Outcome:
    from benchmarks.lab import path_of, settle, stop_agent

    objects = lab.objects(workload.dataset)
    folder = path_of(workload.dataset.folder)
    with lab.namespace() as namespace:
        # As os.walk would: of one listing the agent keeps the first 10,000 names ready for stat.
        for directory in sorted({one.key.rpartition("/")[0] for one in objects}):
            namespace.list(path_of(directory))
        if ours is OpenOurs:
            namespace.prefetch(folder, background=False).wait()

        def restart() -> None:
            # Whoever connects next starts another over the same directory.
            stop_agent(namespace)

        folder_of_files = files(lab, [*objects, *lab.objects(WARM_UP)])
        plain = Recipe(bound, (str(folder_of_files),))
        mine = Recipe(ours, (namespace.settings,))
        race = Race(unit="ops/s", per="s", sampler=lab.sampler(namespace=namespace))
        storms = [
            Storm(bound.name, "bound", plain, objects),
            Storm(ours.name, "ours", mine, objects),
            *_rivals(lab, workload, race, objects),
            Storm(f"{bound.name}, new processes", "bound", plain, objects, first=True),
            Storm(f"{ours.name}, agent restarted", "ours", mine, objects, True, restart),
        ]
        for storm in storms:
            _add(lab, workload, race, storm)
        settle()
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    return Outcome(
        figures=race.figures,
        missing=tuple(race.missing),
        sizes={"names": len(objects), "names_of_rivals": min(FEW, len(objects))},
        notes=(
            "names were brought by a listing of each directory, 1,000 names a directory",
            f"“{KNOWN}”: every process has seen its names once before the clock starts; "
            f"“{FIRST}”: its processes are new, and so is the agent: names come from the index",
            f"rivals have {FEW:,} names; those of s3fs lie in its cache of listings, which each "
            "process fills before the clock starts, and asks for no name again",
        ),
    )


def _add(lab: Lab, workload: Workload, race: Race, storm: Storm) -> None:
    (processes,) = workload.load.processes
    (warm,) = lab.objects(WARM_UP)
    # To a pattern each name is one block: what is read of it, if anything, the reader knows.
    heads = tuple(Object(one.key, HEAD_BYTES) for one in storm.objects)
    task = workers.Task(
        recipe=storm.recipe,
        objects=heads,
        access=Access(pattern="shuffled", block=HEAD_BYTES),
        threads=1,
        processes=processes,
        operations=len(heads) if storm.first else 0,
        seconds=workload.load.seconds,
        again=not storm.first,
        seed=lab.seed,
        warm=warm.key if storm.first else workers.WARM_ALL,
    )
    race.add(
        storm.name,
        storm.role,
        partial(_run, storm, task),
        prepare=storm.prepare,
        processes=processes,
        work=FIRST if storm.first else KNOWN,
    )


def _run(storm: Storm, task: workers.Task) -> Measured:
    try:
        measured = workers.read(task)
    except workers.WorkerFailed as error:
        if storm.role != "rival":
            raise
        raise CannotRun(f"failed: {error}") from error
    return replace(measured, bytes=0)  # these are about names


def _rivals(lab: Lab, workload: Workload, race: Race, objects: Sequence[Object]) -> Iterator[Storm]:
    few = objects[:FEW]
    folders = sorted({f"{lab.bucket}/{one.key.rpartition('/')[0]}" for one in few})
    for name in workload.contenders:
        if name not in RIVALS:
            raise ValueError(f"no contender {name!r}; there are {', '.join(sorted(RIVALS))}")
        if why := missing_package("s3fs"):
            race.miss(name, why)
            continue
        where: tuple[Any, ...] = (lab.server.endpoint, lab.bucket, folders)
        if name in CACHED:
            where = (*where, _filecache(lab, few if name == CACHED[0] else ()))
        yield Storm(name, "rival", Recipe(RIVALS[name], where), few)


def _filecache(lab: Lab, objects: Sequence[Object]) -> str:
    """Return the directory of a new filecache that holds these."""
    folder = str(lab.folder("filecache"))
    filesystem = fsspec_caches.caching("filecache", lab.server.endpoint, folder)
    for first in range(0, len(objects), FILL_OBJECTS):
        some = objects[first : first + FILL_OBJECTS]
        filesystem.cat([f"{lab.bucket}/{one.key}" for one in some])
    filesystem.save_cache()
    return folder


# -- in the processes -------------------------------------------------------------------------


class OpenPlain:
    name = "open + pread + close of plain files"

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self, key: str, _offset: int, _length: int) -> object:
        fd = os.open(f"{self._folder}/{key}", os.O_RDONLY)
        try:
            return os.pread(fd, HEAD_BYTES, 0)
        finally:
            os.close(fd)

    def close(self) -> None:
        return


class StatPlain(OpenPlain):
    name = "os.stat of plain files"

    def read(self, key: str, _offset: int, _length: int) -> object:
        return os.stat(f"{self._folder}/{key}")


class OpenOurs:
    name = "ns.open, read, close"

    def __init__(self, settings: Settings) -> None:
        from tiercache.namespace import Namespace

        self._namespace = Namespace(settings)
        self._paths = Paths(settings.mounts[0].path)

    def read(self, key: str, _offset: int, _length: int) -> object:
        with self._namespace.open(self._paths[key]) as file:
            return file.read(HEAD_BYTES)

    def close(self) -> None:
        self._namespace.close()


class StatOurs(OpenOurs):
    name = "ns.stat"

    def read(self, key: str, _offset: int, _length: int) -> object:
        return self._namespace.stat(self._paths[key])


class InfoS3fs:
    """``info`` of names that are in its cache of listings."""

    def __init__(self, endpoint: str, bucket: str, folders: Sequence[str]) -> None:
        self._filesystem = s3fs_s3.filesystem(endpoint)
        self._bucket = bucket
        for folder in folders:
            self._filesystem.ls(folder)

    def read(self, key: str, _offset: int, _length: int) -> object:
        return self._filesystem.info(f"{self._bucket}/{key}")

    def close(self) -> None:
        return


class OpenFilecache:
    """``open`` of files that it has; it does not check freshness."""

    def __init__(self, endpoint: str, bucket: str, _folders: Sequence[str], storage: str) -> None:
        self._filesystem = fsspec_caches.caching("filecache", endpoint, storage)
        self._bucket = bucket

    def read(self, key: str, _offset: int, _length: int) -> object:
        with self._filesystem.open(f"{self._bucket}/{key}", "rb") as file:
            return file.read(HEAD_BYTES)

    def close(self) -> None:
        return


class InfoFilecache(OpenFilecache):
    """``info``, which asks the filesystem below: its listings are filled before."""

    def __init__(self, endpoint: str, bucket: str, folders: Sequence[str], storage: str) -> None:
        super().__init__(endpoint, bucket, folders, storage)
        for folder in folders:
            self._filesystem.fs.ls(folder)

    def read(self, key: str, _offset: int, _length: int) -> object:
        return self._filesystem.info(f"{self._bucket}/{key}")


RIVALS: dict[str, Callable[..., Any]] = {
    "s3fs info": InfoS3fs,
    "fsspec filecache open": OpenFilecache,
    "fsspec filecache info": InfoFilecache,
}
CACHED = ("fsspec filecache open", "fsspec filecache info")
