"""Hot reads: what is on the node already, against the same bytes read without us."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import msgspec

from benchmarks.contenders import fsspec_caches
from benchmarks.contenders.contender import Object, Reader, missing_package
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, path_of, raced
from benchmarks.registry import CONTENDERS, measure
from benchmarks.workload import Workload
from tiercache.namespace import Namespace

# Rivals that take milliseconds a read would take minutes for as many reads as ours.
RIVAL_PART = 10
# By what workloads call them: fsspec's caches, used in the very way that ours is.
FSSPEC_CACHES = {
    "fsspec blockcache over s3fs": "blockcache",
    "fsspec filecache over s3fs": "filecache",
}
FILL_BYTES = 8 << 20

Run = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """One object in the page cache, the plain file it lies in, and the places that are read."""

    namespace: Namespace
    found: Object
    path: str
    file: str
    fd: int
    places: list[int]
    block_bytes: int

    @property
    def bytes(self) -> int:
        return len(self.places) * self.block_bytes

    def few(self) -> Warm:
        """Return the same with the places that slow rivals read."""
        return replace(self, places=self.places[: max(1, len(self.places) // RIVAL_PART)])

    def race(self, lab: Lab) -> Race:
        return Race(
            amount=len(self.places),
            bytes=self.bytes,
            unit="µs",
            per="op",
            sampler=lab.sampler(namespace=self.namespace),
        )

    def preads(self) -> None:
        pread, fd, block_bytes = os.pread, self.fd, self.block_bytes
        for place in self.places:
            pread(fd, block_bytes, place)


def offsets(rng: random.Random, count: int, length: int, block_bytes: int) -> list[int]:
    """Random places of whole blocks, aligned to them."""
    return [rng.randrange(length // block_bytes) * block_bytes for _ in range(count)]


def warm(namespace: Namespace, path: str) -> str:
    """Bring the object in, verified; return the plain file it lies in."""
    namespace.prefetch(path, background=False).wait()
    file = namespace.local_path(path, pin=False)
    namespace.read(path)
    return str(file)


@contextlib.contextmanager
def warmed(lab: Lab, workload: Workload) -> Iterator[Warm]:
    """Yield the data set's one object, hot."""
    (found,) = lab.objects(workload.dataset)
    block_bytes = workload.access.block_bytes
    path = path_of(found.key)
    with lab.namespace() as namespace:
        file = warm(namespace, path)
        fd = os.open(file, os.O_RDONLY)
        try:
            yield Warm(
                namespace=namespace,
                found=found,
                path=path,
                file=file,
                fd=fd,
                places=offsets(lab.random(), workload.load.operations, found.length, block_bytes),
                block_bytes=block_bytes,
            )
        finally:
            os.close(fd)


@measure("hot-read")
def hot_read(lab: Lab, workload: Workload) -> Outcome:
    """ns.read and ns.read_into of random blocks, against the same reads of the same file."""
    with warmed(lab, workload) as hot:
        namespace, path, places, block_bytes = hot.namespace, hot.path, hot.places, hot.block_bytes
        buffer = bytearray(block_bytes)

        def ours() -> None:
            read = namespace.read
            for place in places:
                read(path, place, block_bytes)

        def ours_into() -> None:
            read_into = namespace.read_into
            for place in places:
                read_into(path, place, buffer)

        def bound_into() -> None:
            preadv, fd, target = os.preadv, hot.fd, [buffer]
            for place in places:
                preadv(fd, target, place)

        race = hot.race(lab)
        race.add("os.pread", "bound", hot.preads)
        race.add("ns.read", "ours", ours)
        race.add("os.preadv into one buffer", "bound", bound_into, work="into a buffer")
        race.add("ns.read_into", "ours", ours_into, work="into a buffer")
        return raced(race, workload, namespace, read_bytes=block_bytes)


@measure("hot-cat-file")
def hot_cat_file(lab: Lab, workload: Workload) -> Outcome:
    """fsspec's cat_file of random blocks, against os.pread, fsspec's caches, and the rivals' own
    ways to read what they hold."""
    with warmed(lab, workload) as hot, contextlib.ExitStack() as stack:
        race = hot.race(lab)
        race.add("os.pread", "bound", hot.preads)
        race.add("cat_file", "ours", _cat_file(hot, lab.filesystem(hot.namespace), hot.path))
        for name in workload.contenders:
            if name in FSSPEC_CACHES:
                _add_cache(lab, race, hot, name, _cat_file)
            else:
                _add_reader(lab, race, workload, hot, name, stack)
        return raced(race, workload, hot.namespace, read_bytes=hot.block_bytes)


def _cat_file(hot: Warm, filesystem: Any, path: str) -> Run:
    def run() -> None:
        cat_file, block_bytes = filesystem.cat_file, hot.block_bytes
        for place in hot.places:
            cat_file(path, place, place + block_bytes)

    return run


def _add_cache(
    lab: Lab, race: Race, hot: Warm, name: str, way: Callable[[Warm, Any, str], Run]
) -> None:
    """Let one of fsspec's caches run, filled, in the same way as ours."""
    if why := missing_package("s3fs"):
        race.miss(name, why)
        return
    protocol = FSSPEC_CACHES[name]
    cache = fsspec_caches.caching(protocol, lab.server.endpoint, str(lab.folder(protocol)))
    remote = f"{lab.bucket}/{hot.found.key}"
    with cache.open(remote, "rb") as file:  # reading it all fills it
        while file.read(FILL_BYTES):
            pass
    few = hot.few()
    race.add(name, "rival", way(few, cache, remote), amount=len(few.places), bytes=few.bytes)


def _add_reader(
    lab: Lab, race: Race, workload: Workload, hot: Warm, name: str, stack: contextlib.ExitStack
) -> None:
    """Let another way of reading the object run, in this process."""
    contender = CONTENDERS[name](lab, lab.server.endpoint)
    stack.callback(contender.close)
    if why := contender.why_missing() or contender.why_not(workload):
        race.miss(name, why)
        return
    contender.prepare([hot.found], "hot")
    make, arguments = contender.recipe()
    reader = cast(Reader, make(*arguments))
    stack.callback(reader.close)
    few = hot.few()

    def run() -> None:
        for place in few.places:
            reader.read(hot.found.key, place, hot.block_bytes)

    amount, role = len(few.places), contender.role
    race.add(name, role, run, amount=amount, bytes=few.bytes, work="open files")


@measure("hot-view")
def hot_view(lab: Lab, workload: Workload) -> Outcome:
    """ns.view of random blocks, against slices of one mapping; returns the number ``thousand
    views a second``."""
    with warmed(lab, workload) as hot:
        namespace, path, places, block_bytes = hot.namespace, hot.path, hot.places, hot.block_bytes
        whole = namespace.view(path, 0, hot.found.length)

        def ours() -> None:
            view = namespace.view
            for place in places:
                view(path, place, block_bytes)

        def bound() -> None:
            view = whole
            for place in places:
                view[place : place + block_bytes]

        race = hot.race(lab)
        race.add("slice of a mapping", "bound", bound)
        race.add("ns.view", "ours", ours)
        outcome = raced(race, workload, namespace, read_bytes=block_bytes)
    rate = 1e3 / race.median("ns.view")
    return msgspec.structs.replace(outcome, numbers={"thousand views a second": rate})


@measure("hot-open")
def hot_open(lab: Lab, workload: Workload) -> Outcome:
    """Open, read a block and close: by fsspec, by the namespace, and of plain files."""
    with warmed(lab, workload) as hot:

        def bound() -> None:
            file, block_bytes = hot.file, hot.block_bytes
            for place in hot.places:
                handle = os.open(file, os.O_RDONLY)
                os.pread(handle, block_bytes, place)
                os.close(handle)

        race = hot.race(lab)
        race.add("os.open + pread + close", "bound", bound)
        plain = partial(open, buffering=0)
        race.add("open() + read + close", "bound", _opening(hot, plain, hot.file))
        filesystem = lab.filesystem(hot.namespace)
        race.add("fsspec open + read + close", "ours", _opening(hot, filesystem.open, hot.path))
        direct = hot.namespace.open
        race.add("ns.open + read + close", "ours", _opening(hot, direct, hot.path))
        for name in workload.contenders:
            _add_cache(
                lab, race, hot, name, lambda hot, cache, path: _opening(hot, cache.open, path)
            )
        return raced(race, workload, hot.namespace, read_bytes=hot.block_bytes)


def _opening(hot: Warm, open_it: Callable[[str, str], Any], path: str) -> Run:
    def run() -> None:
        for place in hot.places:
            with open_it(path, "rb") as handle:
                handle.seek(place)
                handle.read(hot.block_bytes)

    return run


@measure("hot-sequential")
def hot_sequential(lab: Lab, workload: Workload) -> Outcome:
    """A whole object by read and by readinto, against the plain file it lies in."""
    (found,) = lab.objects(workload.dataset)
    path, block_bytes = path_of(found.key), workload.access.block_bytes
    buffer = bytearray(block_bytes)
    with lab.namespace() as namespace:
        file = warm(namespace, path)

        def read(open_it: Callable[[], Any]) -> Run:
            def run() -> None:
                with open_it() as handle:
                    while handle.read(block_bytes):
                        pass

            return run

        def read_into(open_it: Callable[[], Any]) -> Run:
            def run() -> None:
                with open_it() as handle:
                    while handle.readinto(buffer):
                        pass

            return run

        def plain() -> Any:
            return open(file, "rb", buffering=0)

        def ours() -> Any:
            return namespace.open(path)

        sampler = lab.sampler(namespace=namespace)
        length = found.length
        race = Race(amount=length / 1e6, bytes=length, unit="MB/s", per="s", sampler=sampler)
        race.add("plain file, read", "bound", read(plain))
        race.add("ns.open, read", "ours", read(ours))
        race.add("plain file, readinto", "bound", read_into(plain), work="into a buffer")
        race.add("ns.open, readinto", "ours", read_into(ours), work="into a buffer")
        return raced(race, workload, namespace, read_bytes=block_bytes)
