"""Writing through: whole or not at all, once, seen by the whole node at once, in little memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.origin_rig import (
    QUICK,
    Rig,
    agent_pids,
    eventually,
    in_other_process,
    kill_agent,
    origin_status,
    rig_of,
)
from tiercache.agent.mounts import Located
from tiercache.agent.names import Names
from tiercache.errors import (
    AccessDenied,
    AgentUnavailable,
    AlreadyExists,
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
)
from tiercache.model import Consistency, Kind, ObjectInfo
from tiercache.namespace import Namespace
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import MIB

NewBucket = Callable[[ObjectServer], str]
PAGE = 64 * 1024
# The first write into a bucket of SeaweedFS takes a second on a busy machine.
PATIENT = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}


@pytest.fixture
def rig(s3: S3Server, new_bucket: NewBucket, tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits = dict(PATIENT)
        yield rig


@pytest.fixture
def flat_rig(moto_s3: S3Server, new_bucket: NewBucket, tmp_path: Path) -> Iterator[Rig]:
    """Of a store without directories: SeaweedFS goes on listing those that have become empty."""
    with rig_of(moto_s3, new_bucket(moto_s3), tmp_path) as rig:
        rig.limits = dict(PATIENT)
        yield rig


def unfinished_uploads(rig: Rig) -> list[str]:
    assert isinstance(rig.server, S3Server)
    answer = rig.server.client.list_multipart_uploads(Bucket=rig.bucket)
    return [found["Key"] for found in answer.get("Uploads", ())]


@pytest.mark.parametrize(
    "length", [0, 1, PAGE, PAGE + 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 333]
)
def test_written_bytes_are_at_the_origin_and_in_the_cache(rig: Rig, length: int) -> None:
    ns = rig.namespace()
    data = object_bytes(length, length)
    stat = ns.write("/m/object", data)
    assert (stat.kind, stat.size_bytes, stat.stale) == (Kind.FILE, length, False)
    assert rig.get("object") == data
    rig.proxy.clear()
    assert ns.read("/m/object") == data
    assert ns.stat("/m/object").version == stat.version
    assert rig.proxy.counts() == {}
    assert ns.cached_bytes("/m/object") == length
    ns.invalidate("/m/object")
    assert ns.read("/m/object") == data
    assert rig.proxy.counts() == {"HEAD": 1}, "the token of the write is the origin's"


def test_a_long_stream_takes_little_memory(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    ns.write("/m/warm", b"x" * 9 * MIB)
    (pid,) = agent_pids(ns.settings)
    before = resident_bytes(pid)
    peaks = []
    length, block = 100 * MIB, object_bytes("block", MIB)
    with ns.open("/m/long", "wb") as file:
        for _ in range(length // MIB):
            file.write(block)
            peaks.append(resident_bytes(pid))
    # Four parts of 8 MiB in obstore, two of 4 MiB queued, one on its way to the device, twice.
    assert max(peaks) - before < 100 * MIB
    assert ns.stat("/m/long").size_bytes == length
    rig.proxy.clear()
    assert ns.read("/m/long", 33 * MIB, MIB) == block
    assert rig.proxy.counts() == {}
    assert rig.get("long") == block * 100


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("length", [100, 9 * MIB])
def test_conditions(rig: Rig, length: int) -> None:
    ns = rig.namespace()
    first, second, third = (object_bytes(n, length) for n in range(3))
    made = ns.write("/m/object", first, mode="create")
    with pytest.raises(AlreadyExists) as caught:
        ns.write("/m/object", second, mode="create")
    assert isinstance(caught.value, FileExistsError)
    changed = ns.write("/m/object", second, if_version=made.version)
    with pytest.raises(PreconditionFailed):
        ns.write("/m/object", third, if_version=made.version)
    assert ns.read("/m/object") == second == rig.get("object")
    with ns.open("/m/made", "xb") as file:
        file.write(first)
    with pytest.raises(FileExistsError), ns.open("/m/made", "xb") as file:
        file.write(second)
    ns.remove("/m/object")
    with pytest.raises(PreconditionFailed):
        ns.write("/m/object", third, if_version=changed.version)
    assert not ns.exists("/m/object")
    assert unfinished_uploads(rig) == []


def test_a_conflict_shows_the_version_that_caused_it(rig: Rig) -> None:
    """What we knew was old: the look-up after the conflict must not say it again for a ttl."""
    ns = rig.namespace(ttl_s=3600.0, negative_ttl_s=3600.0)
    ns.write("/m/object", b"ours")
    known = ns.stat("/m/object").version
    rig.put("object", b"theirs!")
    with pytest.raises(PreconditionFailed):
        ns.write("/m/object", b"again", if_version=known)
    assert ns.read("/m/object") == b"theirs!"
    assert not ns.exists("/m/new")
    rig.put("new", b"theirs")
    with pytest.raises(AlreadyExists):
        ns.write("/m/new", b"ours", mode="create")
    assert ns.read("/m/new") == b"theirs"


@pytest.mark.parametrize("length", [100, 9 * MIB, 66 * MIB])
@pytest.mark.parametrize("mode", ["overwrite", "create", "if-version"])
def test_own_success_with_a_lost_answer_is_a_success(rig: Rig, mode: str, length: int) -> None:
    ns = rig.namespace()
    ns.write("/m/first", b"", mode="create")  # whether conditions are kept is asked only once
    data = object_bytes(mode, length)
    version = ns.write("/m/object", b"before").version if mode != "create" else ""
    path = "/m/new" if mode == "create" else "/m/object"
    # Of a multipart upload, the request that completes it; of a single one, the PUT. A stream
    # under a condition goes up in one PUT as long as it is shorter than 64 MiB.
    multipart = length > (8 * MIB if mode == "overwrite" else 64 * MIB)
    methods, contains = (("POST",), "uploadId") if multipart else (("PUT",), "")
    rig.proxy.inject(Fault(methods=methods, path_contains=contains, lose_answer=True, times=1))
    if mode == "create":
        stat = ns.write(path, data, mode="create")
    elif mode == "overwrite":
        stat = ns.write(path, data)
    else:
        stat = ns.write(path, data, if_version=version)
    assert stat.size_bytes == length
    assert rig.get(path.removeprefix("/m/")) == data == ns.read(path)
    assert origin_status(ns)["settled"] == 1
    with pytest.raises(AlreadyExists):
        ns.write(path, b"other", mode="create")


@pytest.mark.parametrize("length", [1000, 20 * MIB])
def test_an_aborted_write_leaves_nothing(rig: Rig, length: int) -> None:
    ns = rig.namespace()
    ns.write("/m/kept", b"before")
    for path in ("/m/new", "/m/kept"):
        with pytest.raises(RuntimeError, match="changed my mind"):
            change_mind(ns, path, length)
    assert ns.read("/m/kept") == b"before" == rig.get("kept")
    assert not ns.exists("/m/new")
    assert rig.server.keys(rig.bucket) == ["kept"]
    eventually(lambda: not unfinished_uploads(rig), what="no parts are left")
    assert ns.status()["memory"]["held_bytes"] == 0


def change_mind(ns: Namespace, path: str, length: int) -> None:
    with ns.open(path, "wb") as file:
        file.write(bytes(length))
        raise RuntimeError("changed my mind")


def test_a_killed_writer_leaves_nothing(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    ns.write("/m/object", b"before")
    used = ns.status()["cache"]["used_bytes"]
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, msgspec, time\n"
            "from tiercache.namespace import Namespace\n"
            "from tiercache.settings import Settings\n"
            "ns = Namespace(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings))\n"
            "file = ns.open('/m/object', 'wb')\n"
            "file.write(bytes(30 << 20))\n"
            "print('written', flush=True)\n"
            "time.sleep(60)\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdin is not None and writer.stdout is not None
    with writer:
        writer.stdin.write(msgspec.json.encode(ns.settings))
        writer.stdin.close()
        assert writer.stdout.readline() == b"written\n"
        assert ns.read("/m/object") == b"before"
        writer.send_signal(signal.SIGKILL)
    eventually(lambda: not unfinished_uploads(rig), what="the parts are gone")
    eventually(lambda: ns.status()["cache"]["used_bytes"] <= used + MIB, what="its pages are gone")
    assert ns.read("/m/object") == b"before" == rig.get("object")


def test_an_agent_killed_under_a_writer(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    ns.write("/m/object", b"before")
    file = ns.open("/m/object", "wb")
    file.write(bytes(9 * MIB))
    kill_agent(ns)
    with pytest.raises((AgentUnavailable, OriginUnavailable)):
        file.close()
    assert ns.read("/m/object") == b"before" == rig.get("object")
    assert ns.write("/m/object", b"after").size_bytes == 5
    assert ns.read("/m/object") == b"after"


def test_own_writes_are_visible_at_once_to_other_processes(flat_rig: Rig) -> None:
    """Long times to live: only our own write can make the change visible."""
    ns = flat_rig.namespace(embedded=False, ttl_s=3600.0, negative_ttl_s=3600.0)
    other = Namespace(ns.settings)
    flat_rig.opened.append(other)
    for number in range(20):
        path = f"/m/d{number}/object"
        assert not other.exists(path) and other.list("/m") is not None
        with pytest.raises(NotFound):
            other.read(path)
        ns.write(path, b"one")
        assert other.exists(path) and other.stat(f"/m/d{number}").is_dir
        assert other.read(path) == b"one"
        assert f"d{number}" in {entry.name for entry in other.list("/m")}
        assert [entry.name for entry in other.list(f"/m/d{number}")] == ["object"]
        assert f"d{number}/object" in {e.name for e in other.list("/m", recursive=True)}
        ns.write(path, b"two two")
        assert other.read(path) == b"two two" and other.stat(path).size_bytes == 7
        assert [e.size_bytes for e in other.list(f"/m/d{number}")] == [7]
        with other.open(path) as file:
            assert file.read() == b"two two"
    result = in_other_process(ns.settings, "result = ns.read('/m/d3/object').decode()")
    assert result == "two two"
    ns.remove("/m/d3/object")
    for reader in (other, ns):
        assert not reader.exists("/m/d3/object")
        with pytest.raises(NotFound):
            reader.read("/m/d3/object")
        assert "d3" not in {entry.name for entry in reader.list("/m")}
        assert not reader.exists("/m/d3")


def test_overwritten_data_is_never_served_once_the_write_has_returned(rig: Rig) -> None:
    ns = rig.namespace(embedded=False, ttl_s=3600.0)
    readers = [Namespace(ns.settings) for _ in range(3)]
    rig.opened.extend(readers)
    floor = [0]
    ns.write("/m/object", number_bytes(0))
    stop = threading.Event()

    def read(reader: Namespace) -> int:
        count = 0
        while not stop.is_set():
            least = floor[0]
            got = int.from_bytes(reader.read("/m/object", 0, 8), "big")
            assert got >= least, f"version {got} after {least} was written"
            count += 1
        return count

    with ThreadPoolExecutor(len(readers)) as pool:
        running = [pool.submit(read, reader) for reader in readers]
        for number in range(1, 60):
            ns.write("/m/object", number_bytes(number))
            floor[0] = number
        stop.set()
        assert all(future.result() > 10 for future in running)


def number_bytes(number: int) -> bytes:
    return number.to_bytes(8, "big") * 2048


@pytest.mark.parametrize("length", [10, 9 * MIB])
def test_of_two_creators_exactly_one_wins(rig: Rig, length: int) -> None:
    ns = rig.namespace()
    for attempt in range(3):
        path = f"/m/race-{attempt}"
        versions = [object_bytes(f"{attempt}/{n}", length) for n in range(4)]

        def create(data: bytes, path: str = path) -> bytes | None:
            try:
                ns.write(path, data, mode="create")
            except AlreadyExists:
                return None
            return data

        with ThreadPoolExecutor(4) as pool:
            won = [data for data in pool.map(create, versions) if data is not None]
        assert len(won) == 1
        assert ns.read(path) == won[0] == rig.get(path.removeprefix("/m/"))


def test_concurrent_overwrites_leave_node_and_origin_agreeing(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=3600.0)
    for attempt in range(5):
        versions = [object_bytes(f"{attempt}/{n}", 200_000) for n in range(6)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda data: ns.write("/m/object", data), versions))
        assert ns.read("/m/object") == rig.get("object")


def test_a_write_returns_its_own_version_and_not_the_next_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or ``if_version`` would replace a version that the writer has never seen."""
    settle = Names.settle
    changed: list[Located] = []

    def changed_here(self: Names, located: Located, *args: Any) -> Any:
        changed.append(located)
        return publish(self, located, *args)

    async def overtaken(self: Names) -> None:
        await settle(self)
        other = ObjectInfo("object", 5, '"of-another"')
        self.learn(changed[-1], Kind.FILE, other, self._clock.now())

    publish = Names.changed_here
    monkeypatch.setattr(Names, "changed_here", changed_here)
    monkeypatch.setattr(Names, "settle", overtaken)
    ns = rig.namespace()
    written = ns.write("/m/object", b"mine")
    assert written.size_bytes == 4 and written.version != '"of-another"'


def test_writing_while_the_origin_is_down(rig: Rig) -> None:
    rig.limits = dict(QUICK)
    ns = rig.namespace(ttl_s=3600.0)
    eventually(lambda: writes(ns, "/m/object", b"before"), what="the bucket is warm")
    rig.proxy.refuse()
    for length in (10, 9 * MIB):
        started = time.monotonic()
        with pytest.raises(OriginUnavailable):
            ns.write("/m/object", bytes(length))
        with pytest.raises(OriginUnavailable):
            ns.write("/m/new", bytes(length))
        assert time.monotonic() - started < 10
    for call in (
        lambda: ns.remove("/m/object"),
        lambda: ns.rename("/m/object", "/m/other"),
        lambda: ns.copy("/m/object", "/m/other"),
    ):
        with pytest.raises(OriginUnavailable):
            call()
    assert ns.read("/m/object") == b"before", "cached, and the origin cannot say otherwise"
    rig.proxy.heal()
    eventually(lambda: writes(ns, "/m/later", b"x"), within_s=20)
    assert ns.read("/m/object") == b"before"
    assert not ns.exists("/m/new") and not ns.exists("/m/other")
    assert rig.server.keys(rig.bucket) == ["later", "object"]


def writes(ns: Namespace, path: str, data: bytes) -> bool:
    try:
        ns.write(path, data)
    except OriginUnavailable:
        return False
    return True


def test_rename_and_copy(flat_rig: Rig) -> None:
    ns = flat_rig.namespace(ttl_s=3600.0, negative_ttl_s=3600.0)
    data = object_bytes("x", 2 * MIB)
    ns.write("/m/a/source", data)
    ns.write("/m/b/target", b"old")
    assert not ns.exists("/m/c/renamed")
    ns.copy("/m/a/source", "/m/b/target")
    assert ns.read("/m/b/target") == data == flat_rig.get("b/target")
    ns.rename("/m/a/source", "/m/c/renamed")
    assert ns.read("/m/c/renamed") == data
    assert not ns.exists("/m/a/source") and not ns.exists("/m/a")
    assert [entry.name for entry in ns.list("/m")] == ["b", "c"]
    for call in (ns.copy, ns.rename):
        with pytest.raises(NotFound):
            call("/m/never", "/m/x")
    assert not ns.exists("/m/x")


def test_removing_a_tree(flat_rig: Rig) -> None:
    ns = flat_rig.namespace(ttl_s=3600.0)
    for key in ("t/1", "t/2", "t/u/3", "tt"):
        ns.write(f"/m/{key}", key.encode())
    with pytest.raises(NotFound):
        ns.remove("/m/t")  # a directory is no object
    assert ns.remove("/m/t", recursive=True) == 3
    assert [entry.name for entry in ns.list("/m")] == ["tt"]
    assert not ns.exists("/m/t/u/3") and not ns.exists("/m/t")
    with pytest.raises(NotFound):
        ns.remove("/m/t", recursive=True)
    with pytest.raises(NotFound):
        ns.remove("/m/t/1")


def test_a_read_only_mount_refuses_every_change(rig: Rig) -> None:
    rig.put("object", b"kept")
    ns = rig.namespace(read_only=True)
    calls: list[Callable[[], Any]] = [
        lambda: ns.write("/m/new", b"x"),
        lambda: ns.open("/m/new", "wb"),
        lambda: ns.remove("/m/object"),
        lambda: ns.remove("/m", recursive=True),
        lambda: ns.copy("/m/object", "/m/new"),
        lambda: ns.rename("/m/object", "/m/new"),
    ]
    for call in calls:
        with pytest.raises(AccessDenied, match="read-only"):
            call()
    assert rig.server.keys(rig.bucket) == ["object"]
    assert ns.read("/m/object") == b"kept"


def test_a_listing_that_a_write_overtakes_is_not_kept(rig: Rig) -> None:
    rig.put("d/before", b"1")
    ns = rig.namespace(ttl_s=3600.0)
    rig.proxy.inject(
        Fault(methods=("GET",), path_contains="list-type", first_byte_delay_s=0.5, times=1)
    )
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ns.list, "/m/d")
        eventually(lambda: rig.proxy.exchanges("GET", "list-type"))
        time.sleep(0.1)  # the server has answered; its answer is on its way
        ns.write("/m/d/after", b"2")
        assert [entry.name for entry in ns.list("/m/d")] == ["after", "before"]
        assert early.result()
    assert [entry.name for entry in ns.list("/m/d")] == ["after", "before"]


def test_close_to_open_sees_other_writers_at_open(rig: Rig) -> None:
    here = rig.namespace(Consistency.CLOSE_TO_OPEN, name="here")
    there = rig.namespace(Consistency.CLOSE_TO_OPEN, name="there")
    for number in range(10):
        with there.open("/m/object", "wb") as file:
            file.write(number_bytes(number))
        with here.open("/m/object") as reader:
            assert reader.read() == number_bytes(number)
        assert [entry.name for entry in here.list("/m")] == ["object"]
