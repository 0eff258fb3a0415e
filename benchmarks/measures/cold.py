"""Cold reads: what the first reader of an object waits for, and what he costs the origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import rivals
from benchmarks.contenders import obstore_s3, s3fs_s3
from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, path_of, raced, settle
from benchmarks.measures.hot import offsets
from benchmarks.registry import measure
from benchmarks.workload import Workload


@measure("cold-sequential")
def cold_sequential(lab: Lab, workload: Workload) -> Outcome:
    """A whole object read while it is cached, against obstore and s3fs writing it to a file."""
    (found,) = lab.objects(workload.dataset)
    path, block_bytes = path_of(found.key), workload.access.block_bytes
    folder = lab.folder("plain")
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
                while data := handle.read(block_bytes):
                    done += len(data)
            assert done == found.length

        sampler = lab.sampler(namespace=namespace)
        length = found.length
        race = Race(amount=length / 1e6, bytes=length, unit="MB/s", per="s", sampler=sampler)
        race.add("ns.open, read", "ours", ours, prepare=evict)
        store = obstore_s3.store(lab.server.endpoint, lab.bucket)
        race.add(
            "obstore, one GET to a file",
            "rival",
            lambda: rivals.obstore_stream(store, found.key, folder / "stream"),
            prepare=fresh,
        )
        race.add(
            "obstore, 6 × 8 MiB ranges to a file",
            "bound",
            lambda: rivals.obstore_ranges(store, [found], folder),
            prepare=fresh,
        )
        for name in workload.contenders:
            if why := missing_package("s3fs"):
                race.miss(name, why)
                continue
            run = S3FS[name](lab, found, folder / "s3fs", block_bytes)
            race.add(name, "rival", run, prepare=fresh)
        return raced(race, workload, namespace, read_bytes=block_bytes)


def _s3fs_read(lab: Lab, found: Object, _: Path, block_bytes: int) -> Callable[[], None]:
    def run() -> None:
        with s3fs_s3.filesystem(lab.server.endpoint).open(
            f"{lab.bucket}/{found.key}", "rb"
        ) as handle:
            while handle.read(block_bytes):
                pass

    return run


def _s3fs_get_file(lab: Lab, found: Object, file: Path, _: int) -> Callable[[], None]:
    def run() -> None:
        s3fs_s3.filesystem(lab.server.endpoint).get_file(f"{lab.bucket}/{found.key}", str(file))

    return run


S3FS = {"s3fs, get_file": _s3fs_get_file, "s3fs, open + read (kept nowhere)": _s3fs_read}


@measure("cold-random")
def cold_random(lab: Lab, workload: Workload) -> Outcome:
    """Unaligned blocks of a cold object; returns the number ``bytes asked ÷ bytes read``, as the
    proxy in front of the origin counts them."""
    (found,) = lab.objects(workload.dataset)
    path, block_bytes = path_of(found.key), workload.access.block_bytes
    rng = lab.random()
    # Unaligned: a read of 64 KiB touches two pages.
    places = [
        min(place + rng.randrange(block_bytes), found.length - block_bytes)
        for place in offsets(rng, workload.load.operations, found.length, block_bytes)
    ]
    asked: list[int] = []
    with lab.network(workload.network) as proxy:
        assert proxy is not None, f"{workload.name} counts by a proxy: name a network"
        with lab.namespace(lab.settings(endpoint=proxy.url)) as namespace:

            def cold() -> None:
                namespace.evict(path)
                proxy.clear()

            def ours() -> None:
                for place in places:
                    namespace.read(path, place, block_bytes)
                asked.append(proxy.bytes_out(found.key))

            store = obstore_s3.store(proxy.url, lab.bucket)

            def bare() -> None:
                for place in places:
                    store.get_range(found.key, start=place, length=block_bytes)

            sampler = lab.sampler(namespace=namespace, proxy=proxy)
            race = Race(
                amount=len(places),
                bytes=len(places) * block_bytes,
                unit="µs",
                per="op",
                sampler=sampler,
            )
            race.add("ns.read", "ours", ours, prepare=cold)
            race.add("obstore get_range", "bound", bare)
            outcome = raced(race, workload, namespace, read_bytes=block_bytes)
    ratio = max(asked) / (len(places) * block_bytes)
    return msgspec.structs.replace(outcome, numbers={"bytes asked ÷ bytes read": ratio})
