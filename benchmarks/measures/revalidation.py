"""Many names of an eventual mount expire at once: what it costs to learn that nothing changed."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.contenders import obstore_s3
from benchmarks.contenders.contender import Object
from benchmarks.harness import Measured, Outcome, Race
from benchmarks.lab import Lab, path_of, settle
from benchmarks.registry import measure
from benchmarks.sampler import encoded
from benchmarks.workload import Workload

if TYPE_CHECKING:
    from tiercache.namespace import Namespace

AT_ONCE = 64
# Past the time to live by so much, and every name has expired.
LATER_S = 0.05
REQUESTS, DATA = "requests a name", "bytes of data"


class Names:
    """Cached objects whose names expire together. ``wait`` returns when they have."""

    def __init__(self, objects: Sequence[Object], ttl_s: float) -> None:
        self.objects = objects
        self._ttl_s = ttl_s
        self._validated_s = time.monotonic()

    def validated(self) -> None:
        self._validated_s = time.monotonic()

    def wait(self) -> None:
        time.sleep(max(0.0, self._validated_s + self._ttl_s + LATER_S - time.monotonic()))


class Asked:
    """What the server was asked, and sent of objects, in the rounds of ours."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.names = self.requests = self.bytes = 0

    def during(self, names: Names, run: Callable[[], Measured]) -> Measured:
        before = self._lab.server.traffic()
        measured = run()
        names.validated()
        after = self._lab.server.traffic()
        self.names += measured.operations
        self.requests += (after.requests - before.requests).total()
        self.bytes += after.bytes_sent - before.bytes_sent
        return measured


@measure("revalidation")
def revalidation(lab: Lab, workload: Workload) -> Outcome:
    """Read cached objects whose names have all expired, in one call and from many threads,
    against HEADs of as many by obstore; returns what it took of requests and data."""
    ttl_s = float(workload.options["ttl_s"])
    objects = lab.objects(workload.dataset)
    half = len(objects) // 2
    with lab.network(workload.network) as proxy:
        endpoint = "" if proxy is None else proxy.url
        settings = lab.settings(endpoint=endpoint)
        mounts = tuple(msgspec.structs.replace(one, ttl_s=ttl_s) for one in settings.mounts)
        with lab.namespace(msgspec.structs.replace(settings, mounts=mounts)) as namespace:
            namespace.prefetch(path_of(workload.dataset.folder), background=False).wait()
            many, single = Names(objects[:half], ttl_s), Names(objects[half:], ttl_s)
            asked = Asked(lab)
            race = Race(
                unit="names/s", per="s", sampler=lab.sampler(namespace=namespace, proxy=proxy)
            )
            store = obstore_s3.store(endpoint or lab.server.endpoint, lab.bucket)
            race.add(
                f"obstore, HEAD × {AT_ONCE}",
                "bound",
                partial(_heads, store, [one.key for one in objects[:half]]),
                threads=AT_ONCE,
            )
            for name, names, read in (
                ("ns.read_many", many, _read_many),
                (f"ns.read × {AT_ONCE}", single, _read_each),
            ):
                race.add(
                    name,
                    "ours",
                    partial(asked.during, names, partial(read, namespace, names.objects)),
                    prepare=names.wait,
                    threads=AT_ONCE,
                )
            settle()
            race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    return Outcome(
        figures=race.figures,
        numbers={REQUESTS: asked.requests / asked.names, DATA: float(asked.bytes)},
        sizes={"names": half, "object_bytes": objects[0].length},
        notes=(
            f"the time to live is {ttl_s:g} s, and each round begins when it is over for all; "
            "what is read was cached before, so that each byte comes from the node",
            "requests and bytes are the server's own count, warm-up and all",
        ),
    )


def _read_many(namespace: Namespace, objects: Sequence[Object]) -> Measured:
    items = [(path_of(one.key), 0, None) for one in objects]
    started = time.perf_counter()
    found = namespace.read_many(items)
    seconds = time.perf_counter() - started
    _check(zip(objects, found, strict=True))
    return Measured(seconds=seconds, operations=len(found), bytes=sum(map(len, found)))


def _read_each(namespace: Namespace, objects: Sequence[Object]) -> Measured:
    """Each thread has its share of the names, which it reads one after the other."""
    took = array("q")

    def share(number: int) -> list[tuple[Object, bytes]]:
        found = []
        for one in objects[number::AT_ONCE]:
            begun = time.perf_counter_ns()
            data = namespace.read(path_of(one.key))
            took.append(time.perf_counter_ns() - begun)
            found.append((one, data))
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = time.perf_counter()
        shares = list(pool.map(share, range(AT_ONCE)))
        seconds = time.perf_counter() - started
    for found in shares:
        _check(found)
    return Measured(
        seconds=seconds,
        operations=len(objects),
        bytes=sum(one.length for one in objects),
        histogram=encoded(took),
    )


def _check(found: Iterable[tuple[Object, bytes]]) -> None:
    """Objects are stamped with their numbers, which their names end with."""
    for one, data in found:
        number = int(one.key.rpartition("/")[2].partition(".")[0])
        if len(data) != one.length or int.from_bytes(data[:8], "big") != number:
            raise RuntimeError(f"other bytes than those of {one.key}")


def _heads(store: Any, keys: Sequence[str]) -> Measured:
    async def heads() -> float:
        gate = asyncio.Semaphore(AT_ONCE)

        async def head(key: str) -> None:
            async with gate:
                await store.head_async(key)

        started = time.perf_counter()
        await asyncio.gather(*map(head, keys))
        return time.perf_counter() - started

    with asyncio.Runner() as runner:
        return Measured(seconds=runner.run(heads()), operations=len(keys))
