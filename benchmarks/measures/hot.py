"""Hot reads: what is on the node already, against the same bytes read without us."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from benchmarks import rivals
from benchmarks.contenders.contender import Object, Reader
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, path_of, raced
from benchmarks.registry import CONTENDERS, measure
from benchmarks.workload import Workload
from tiercache.namespace import Namespace

# Rivals that take milliseconds a read would take minutes for as many reads as ours.
RIVAL_PART = 10

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

    def race(self, lab: Lab) -> Race:
        return Race(
            amount=len(self.places),
            bytes=len(self.places) * self.block_bytes,
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
    """fsspec's cat_file of random blocks, against os.pread and the rivals' own hot reads."""
    with warmed(lab, workload) as hot, contextlib.ExitStack() as stack:
        filesystem, block_bytes = lab.filesystem(hot.namespace), hot.block_bytes

        def ours() -> None:
            cat_file = filesystem.cat_file
            for place in hot.places:
                cat_file(hot.path, place, place + block_bytes)

        race = hot.race(lab)
        race.add("os.pread", "bound", hot.preads)
        race.add("cat_file", "ours", ours)
        for name in workload.contenders:
            _add_reader(lab, race, workload, hot, name, stack)
        return raced(race, workload, hot.namespace, read_bytes=block_bytes)


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
    assert hasattr(reader, "read"), f"{name} reads on an event loop only"
    stack.callback(reader.close)
    few = hot.places[: max(1, len(hot.places) // RIVAL_PART)]

    def run() -> None:
        for place in few:
            reader.read(hot.found.key, place, hot.block_bytes)

    amount, handed = len(few), len(few) * hot.block_bytes
    race.add(name, contender.role, run, amount=amount, bytes=handed)


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
    """Open, read a block and close, by fsspec and by the namespace; plain files for a bound."""
    with warmed(lab, workload) as hot:
        namespace, path, file = hot.namespace, hot.path, hot.file
        places, block_bytes = hot.places, hot.block_bytes

        def bound() -> None:
            for place in places:
                handle = os.open(file, os.O_RDONLY)
                os.pread(handle, block_bytes, place)
                os.close(handle)

        race = hot.race(lab)
        race.add("os.open + pread + close", "bound", bound)
        race.add(
            "open() + read + close",
            "bound",
            _opening(hot, lambda: open(file, "rb", buffering=0)),  # noqa: SIM115 - closed there
        )
        filesystem = lab.filesystem(namespace)
        race.add(
            "fsspec open + read + close", "ours", _opening(hot, lambda: filesystem.open(path, "rb"))
        )
        race.add("ns.open + read + close", "ours", _opening(hot, lambda: namespace.open(path)))
        for name in workload.contenders:
            _add_opening(lab, race, hot, name)
        return raced(race, workload, namespace, read_bytes=block_bytes)


def _opening(hot: Warm, open_it: Callable[[], Any]) -> Run:
    def run() -> None:
        for place in hot.places:
            with open_it() as handle:
                handle.seek(place)
                handle.read(hot.block_bytes)

    return run


def _add_opening(lab: Lab, race: Race, hot: Warm, name: str) -> None:
    """Let fsspec's caches run, filled."""
    if why := rivals.why_missing("s3fs"):
        race.miss(name, why)
        return
    cache = rivals.fsspec_cache(lab, name.partition(" ")[2].partition(" ")[0])
    remote = f"{lab.bucket}/{hot.found.key}"
    with cache.open(remote, "rb") as file:  # reading it all fills it
        while file.read(8 << 20):
            pass
    race.add(name, "rival", _opening(hot, lambda: cache.open(remote, "rb")))


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
