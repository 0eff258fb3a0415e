"""Sixty-four processes on one cold object: the origin is asked for each byte once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    agent_pid,
    cache_settings,
    end,
    is_agent,
    kill_agent,
    namespace,
    start_script,
    wait_for,
)
from tiercache.settings import Settings
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import S3Server
from tiercache.testing.proxy import FaultyProxy
from tiercache.units import GIB, MIB

PROCESSES = 64
OBJECT_BYTES = 256 * MIB
STAGGER_S = 0.01
# What the agent may have asked for and not yet committed when it is killed: the read-ahead of
# one sequence, and each reader's own request of 1 MiB in 8 MiB runs at the very most.
IN_FLIGHT_BYTES = 64 * MIB + 64 * MIB

# Forks readers one after another; each reads the object whole, every other one in random order,
# and compares it with the bytes that all of them share.
READERS = """
import mmap, signal
path, expected, count, stagger_s, block = arguments[0], arguments[1], *map(float, arguments[2:])
with open(expected, "rb") as file:
    right = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
block, failed, children = int(block), 0, []
for number in range(int(count)):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            starts = list(range(0, len(right), block))
            if number % 2:
                random.Random(number).shuffle(starts)
            with ns.open(path) as file:
                for start in starts:
                    file.seek(start)
                    data = file.read(block)
                    if data != right[start : start + block]:
                        status = 2
                        break
                else:
                    status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    children.append(child)
    print(child, flush=True)
    time.sleep(stagger_s)
statuses = [os.waitpid(child, 0)[1] for child in children]
print(json.dumps([status & 0x7F or status >> 8 for status in statuses]), flush=True)
"""


@pytest.fixture(scope="module")
def cold(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The bucket of the one object, and a file with its bytes."""
    data = object_bytes("stampede", OBJECT_BYTES)
    bucket = s3.make_bucket(f"stampede-{uuid.uuid4().hex[:12]}")
    s3.put(bucket, "cold.bin", data)
    expected = tmp_path_factory.mktemp("stampede") / "expected"
    expected.write_bytes(data)
    return bucket, expected


@pytest.fixture
def proxied(
    s3: S3Server, cold: tuple[str, Path], tmp_path: Path
) -> Iterator[tuple[FaultyProxy, Settings, Path]]:
    """The object behind a counting proxy, settings of an empty cache, and its bytes' file."""
    bucket, expected = cold
    with FaultyProxy(s3.endpoint) as proxy:
        settings = cache_settings(
            tmp_path / "cache", s3.url(bucket), capacity_bytes=GIB, memory_bytes=256 * MIB
        )
        profiles = {"default": s3.profile(endpoint=proxy.url)}
        yield proxy, msgspec.structs.replace(settings, profiles=profiles), expected


def asked_bytes(proxy: FaultyProxy) -> int:
    return sum(exchange.body_bytes for exchange in proxy.exchanges("GET", "cold.bin"))


def assert_asked_once(proxy: FaultyProxy) -> None:
    spans = sorted(
        exchange.span() or (0, OBJECT_BYTES) for exchange in proxy.exchanges("GET", "cold.bin")
    )
    position = 0
    for start, stop in spans:
        assert start == position, f"[{start}, {stop}) after {position}"
        position = stop
    assert position == OBJECT_BYTES
    assert asked_bytes(proxy) == OBJECT_BYTES


@contextmanager
def stampede(settings: Settings, expected: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The readers of the cold object, on their way, beside a namespace that keeps an agent."""
    with namespace(settings):
        arguments = ("/m/cold.bin", str(expected), str(PROCESSES), str(STAGGER_S), str(MIB))
        readers = start_script(READERS, settings, *arguments)
        try:
            yield readers
        finally:
            end(readers)


def statuses_of(readers: subprocess.Popen[bytes]) -> list[int]:
    assert readers.stdout is not None
    lines = readers.stdout.read().decode().splitlines()
    assert readers.wait(10) == 0
    statuses: list[int] = json.loads(lines[-1])
    return statuses


@pytest.mark.slow
@pytest.mark.emulator
def test_the_origin_is_asked_for_each_byte_once(
    proxied: tuple[FaultyProxy, Settings, Path],
) -> None:
    proxy, settings, expected = proxied
    with stampede(settings, expected) as readers:
        assert statuses_of(readers) == [0] * PROCESSES
        assert_asked_once(proxy)


@pytest.mark.slow
@pytest.mark.emulator
def test_the_process_that_asked_first_is_killed(
    proxied: tuple[FaultyProxy, Settings, Path],
) -> None:
    proxy, settings, expected = proxied
    with stampede(settings, expected) as readers:
        assert readers.stdout is not None
        first = int(readers.stdout.readline())
        wait_for(lambda: proxy.exchanges("GET", "cold.bin"))
        os.kill(first, signal.SIGKILL)
        assert statuses_of(readers) == [signal.SIGKILL] + [0] * (PROCESSES - 1)
        assert_asked_once(proxy)


@pytest.mark.slow
@pytest.mark.emulator
def test_the_agent_is_killed_in_the_middle(
    proxied: tuple[FaultyProxy, Settings, Path],
) -> None:
    proxy, settings, expected = proxied
    with stampede(settings, expected) as readers:
        wait_for(lambda: asked_bytes(proxy) > OBJECT_BYTES // 4, timeout_s=30)
        assert kill_agent(settings.cache.dir)
        assert statuses_of(readers) == [0] * PROCESSES
        assert asked_bytes(proxy) <= OBJECT_BYTES + IN_FLIGHT_BYTES
        log = (Path(settings.cache.dir) / "agent.log").read_text()
        assert log.count("another agent serves") < 8, "a herd of agents was started"


def test_a_new_agent_takes_over_within_a_second(tmp_path: Path) -> None:
    """Of the next miss; the best of three, since other tests use this machine too."""
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("takeover", [100_000] * 4)
    settings = cache_settings(tmp_path / "cache", origin.url)
    taken_s = []
    with namespace(settings) as ns:
        for key, data in objects.items():
            begun_s = time.monotonic()
            assert ns.read(f"/m/{key}") == data
            taken_s.append(time.monotonic() - begun_s)
            path = f"/m/{key}"
            wait_for(lambda path=path: ns.cached_bytes(path) == 100_000)  # type: ignore[misc]  # default binds the loop variable
            assert kill_agent(settings.cache.dir)
            assert ns.read(f"/m/{key}") == data, "a hit needs no agent"
            assert not is_agent(agent_pid(settings.cache.dir), settings.cache.dir)
    assert min(taken_s[1:]) < 1.0, taken_s
