"""The filesystem in children of every kind, after pickling, from many threads and loops."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.consumers.conftest import Tier, stop_agent, tier_of
from tiercache.errors import StaleHandle
from tiercache.fs import TierCacheFileSystem
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import S3Server
from tiercache.testing.proxy import Fault, FaultyProxy
from tiercache.units import KIB, MIB

CHILD_S = 60.0
METHODS = ("fork", "spawn", "forkserver")
SIZE = 3 * MIB + 17


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def objects(tier: Tier, new_path: Callable[[], str]) -> dict[str, bytes]:
    """Four objects at the origin, none of them cached."""
    folder = new_path()
    made = {f"{folder}/{n}": object_bytes(f"{folder}/{n}", SIZE) for n in range(4)}
    for path, data in made.items():
        tier.server.put(tier.bucket, path.removeprefix("/m/"), data)
    return made


def run_child(method: str, target: Callable[..., Any], *args: Any) -> Any:
    """Return what ``target`` returns in a child of this kind; it is killed if it hangs."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, target, args))
    process.start()
    theirs.close()
    try:
        assert ours.poll(CHILD_S), f"the {method} child says nothing"
        outcome = ours.recv()
    finally:
        process.join(5)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        ours.close()
    assert not isinstance(outcome, BaseException), repr(outcome)
    assert process.exitcode == 0
    return outcome


def _child(pipe: Any, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        outcome = target(*args)
    except Exception as error:
        pipe.send(error)
        raise
    pipe.send(outcome)
    pipe.close()


def read_in_every_way(fs: TierCacheFileSystem, paths: list[str], out: str) -> list[str]:
    """Read hot and cold, singly, together, by the loop and by handles; write, list and rename."""
    whole = [fs.cat_file(path) for path in paths]
    together = fs.cat(paths)
    with fs.open(paths[0]) as handle:
        assert handle.read() == whole[0]
    ranges = fs.cat_ranges(paths, [5] * len(paths), [KIB] * len(paths))
    assert ranges == [data[5:KIB] for data in whole]
    assert [together[path] for path in paths] == whole
    fs.pipe({f"{out}/a": b"a", f"{out}/b": b"b"})
    fs.mv(f"{out}/a", f"{out}/c")
    assert fs.ls(out, detail=False) == [f"{out}/b", f"{out}/c"]
    fs.rm(out, recursive=True)
    return [digest(data) for data in whole]


@pytest.mark.parametrize("method", METHODS)
def test_children(
    method: str, tier: Tier, objects: dict[str, bytes], new_path: Callable[[], str]
) -> None:
    fs, paths = tier.filesystem(), list(objects)
    expected = [digest(data) for data in objects.values()]
    assert read_in_every_way(fs, paths[:2], new_path()) == expected[:2]
    assert run_child(method, read_in_every_way, fs, paths, new_path()) == expected
    assert read_in_every_way(fs, paths, new_path()) == expected


def test_a_grandchild_of_forks(tier: Tier, objects: dict[str, bytes]) -> None:
    fs, path = tier.filesystem(), next(iter(objects))
    assert fs.cat_file(path) == objects[path]
    found = run_child("fork", run_child, "fork", _digest_of, fs, path)
    assert found == digest(objects[path])


def _digest_of(fs: TierCacheFileSystem, path: str) -> str:
    return digest(fs.cat_file(path))


@pytest.mark.parametrize("method", METHODS)
def test_an_open_handle_goes_along(method: str, tier: Tier, objects: dict[str, bytes]) -> None:
    path = next(iter(objects))
    with tier.filesystem().open(path) as handle:
        handle.seek(100)
        assert handle.read(50) == objects[path][100:150]
        assert run_child(method, _rest_of, handle) == digest(objects[path][150:])
        assert handle.read(50) == objects[path][150:200]


def _rest_of(handle: Any) -> str:
    return digest(handle.read())


def test_pickling(tier: Tier, objects: dict[str, bytes]) -> None:
    fs, path = tier.filesystem(), next(iter(objects))
    again = pickle.loads(pickle.dumps(fs))
    assert again == fs and again.cat_file(path) == objects[path]
    assert fsspec.AbstractFileSystem.from_json(fs.to_json()).cat_file(path) == objects[path]
    with fs.open(path) as handle:
        handle.seek(7)
        pickled = pickle.dumps(handle)
    assert pickle.loads(pickled).read(9) == objects[path][7:16]
    fs.pipe_file(path, b"another version")
    with pytest.raises(StaleHandle):
        pickle.loads(pickled)


def test_instances_are_shared(tier: Tier) -> None:
    fs = tier.filesystem()
    assert tier.filesystem() is fs
    assert tier.filesystem(asynchronous=True) is not fs
    assert tier.filesystem(asynchronous=True).namespace is fs.namespace
    found = run_child("fork", _namespace_and_pid, tier.options)
    assert found != os.getpid()


def _namespace_and_pid(options: dict[str, Any]) -> int:
    assert TierCacheFileSystem(**options).ls("/m") is not None
    return os.getpid()


def test_many_threads(tier: Tier, objects: dict[str, bytes]) -> None:
    fs = tier.filesystem()

    def read(number: int) -> bool:
        path = list(objects)[number % len(objects)]
        start = number * 7919 % SIZE
        return fs.cat_file(path, start, start + 64 * KIB) == objects[path][start:][: 64 * KIB]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(500)))


def test_many_loops(tier: Tier, objects: dict[str, bytes]) -> None:
    fs = tier.filesystem(asynchronous=True)

    async def read_all() -> bool:
        found = await asyncio.gather(*(fs._cat_file(path) for path in objects))
        return found == list(objects.values())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: asyncio.run(read_all()), range(8)))
    assert run_child("fork", _read_on_a_loop, tier.options, list(objects)) == [
        digest(data) for data in objects.values()
    ]


def _read_on_a_loop(options: dict[str, Any], paths: list[str]) -> list[str]:
    fs = TierCacheFileSystem(asynchronous=True, **options)

    async def read() -> list[bytes]:
        return [await fs._cat_file(path) for path in paths]

    return [digest(data) for data in asyncio.run(read())]


# -- with an origin that can be made late -------------------------------------------------------

LATE_S = 1.0


@pytest.fixture
def late(s3: S3Server, tmp_path: Path) -> Iterator[tuple[Tier, FaultyProxy]]:
    """A tier whose GETs of keys with "late" in them take a second to begin."""
    bucket = s3.make_bucket(f"test-{uuid.uuid4().hex[:16]}")
    with FaultyProxy(s3.endpoint) as proxy:
        made = tier_of(S3Server(proxy.url), bucket, tmp_path / "cache")
        proxy.inject(Fault(methods=("GET",), path_contains="late", first_byte_delay_s=LATE_S))
        yield made, proxy
        stop_agent(made.filesystem().namespace.settings)


def wait_for_get(proxy: FaultyProxy, key: str) -> None:
    deadline = time.monotonic() + CHILD_S
    while not proxy.exchanges("GET", key):
        assert time.monotonic() < deadline, "no GET arrives"
        time.sleep(0.005)


def test_fork_while_a_read_is_in_flight(late: tuple[Tier, FaultyProxy]) -> None:
    tier, proxy = late
    fs = tier.filesystem()
    data = {f"late{n}": object_bytes(f"late{n}", 300 * KIB) for n in range(3)}
    data["hot"] = object_bytes("hot", 300 * KIB)
    for key, value in data.items():
        tier.server.put(tier.bucket, key, value)
    assert fs.cat_file("/m/hot") == data["hot"]
    for n in range(3):
        read: list[bytes] = []
        path = f"/m/late{n}"
        thread = threading.Thread(target=lambda path=path, read=read: read.append(fs.cat(path)))
        thread.start()
        wait_for_get(proxy, f"late{n}")
        assert run_child("fork", _digest_of, fs, "/m/hot") == digest(data["hot"])
        assert run_child("fork", _digest_of, fs, path) == digest(data[f"late{n}"])
        thread.join(CHILD_S)
        assert read == [data[f"late{n}"]]
    gets = [len(proxy.exchanges("GET", f"late{n}")) for n in range(3)]
    assert gets == [1, 1, 1], "parent and child shared one GET each"


def test_a_miss_does_not_hold_up_the_loop(late: tuple[Tier, FaultyProxy]) -> None:
    tier, _ = late
    fs = tier.filesystem(asynchronous=True)
    cold, hot = object_bytes("cold", 300 * KIB), object_bytes("hot", 64 * KIB)
    tier.server.put(tier.bucket, "late", cold)
    tier.server.put(tier.bucket, "hot", hot)

    async def run() -> float:
        assert await fs._cat_file("/m/hot") == hot
        miss = asyncio.create_task(fs._cat_file("/m/late"))
        longest, before = 0.0, time.perf_counter()
        while not miss.done():
            assert await fs._cat_file("/m/hot", 5, 500) == hot[5:500]
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        assert await miss == cold
        return longest

    assert asyncio.run(run()) < LATE_S / 2
