"""Peers that talk nonsense, stop half-way, say nothing or never listen: each is on its own."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.cache_rig import (
    FileOrigin,
    agent_pid,
    cache_settings,
    end,
    is_agent,
    namespace,
    wait_for,
)
from tests.fault.other_user import as_root, run_as_nobody
from tiercache import wire
from tiercache.agent.server import HALF_FRAME_S
from tiercache.client.link import connect, receive
from tiercache.errors import ConfigError, NotFound
from tiercache.namespace import Namespace
from tiercache.settings import MountSettings, ProfileSettings
from tiercache.units import MIB

CONNECTIONS = 1000
DATA = bytes(range(256)) * 4096  # 1 MiB


class Rig:
    """A real agent, a well-behaved client, and its socket for those who are not."""

    def __init__(self, ns: Namespace, cache_dir: Path, origin: FileOrigin) -> None:
        self.ns = ns
        self.cache_dir = cache_dir
        self.origin = origin
        self.pid = agent_pid(cache_dir)

    def connect(self, *, timeout_s: float = 30.0) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        connect(sock, str(self.cache_dir / "agent.sock"))
        return sock

    @property
    def dropped(self) -> int:
        return int(self.ns.status()["agent"]["dropped_peers"])

    def assert_serving(self) -> None:
        """The same agent still answers, hits and misses alike, and promptly."""
        assert is_agent(self.pid, self.cache_dir)
        name = f"served-{time.monotonic_ns()}"
        self.origin.put(name, DATA)
        began = time.monotonic()
        assert self.ns.read(f"/m/{name}") == DATA
        assert self.ns.status()["agent"]["pid"] == self.pid
        assert time.monotonic() - began < 5.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    origin = FileOrigin(tmp_path / "origin")
    with namespace(cache_settings(tmp_path / "c", origin.url)) as ns:
        yield Rig(ns, tmp_path / "c", origin)


def framed(body: bytes, version: int = wire.WIRE_VERSION) -> bytes:
    return struct.pack("<IB", len(body), version) + body


def packed(*values: Any) -> bytes:
    return framed(msgspec.msgpack.encode(values))


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other end to hang up, without an answer."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # it left what we sent unread
        return True


NONSENSE: dict[str, bytes] = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(5),
    "noise": bytes(range(255, 0, -1)),
    "4 GiB": struct.pack("<IB", 2**32 - 1, wire.WIRE_VERSION),
    "one byte over the cap": struct.pack("<IB", wire.MAX_FRAME_BYTES + 1, wire.WIRE_VERSION),
    "another version": framed(msgspec.msgpack.encode([19]), version=2),
    "empty body": framed(b""),
    "no msgpack": framed(b"\xc1"),
    "cut msgpack": framed(b"\x93\x02"),
    "bytes behind the message": framed(msgspec.msgpack.encode([19]) + b"\0"),
    "a map": framed(msgspec.msgpack.encode({"t": 19})),
    "a number": framed(b"\x07"),
    "no tag": framed(b"\x90"),
    "an unknown tag": packed(99),
    "a tag of an answer": packed(101, 1),
    "a text as tag": packed("Lookup", "/m/a"),
    "a missing field": packed(2),
    "a number for a path": packed(2, 7),
    "a span of three": packed(3, "/m/a", "v", [[0, 1, 2]]),
    "invalid UTF-8": framed(b"\x92\x02\xa2\xff\xfe"),
    "deep nesting": framed(b"\x92\x03" + b"\x91" * 100_000),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_peer_that_talks_nonsense_is_dropped_alone(rig: Rig, name: str) -> None:
    before = rig.dropped
    with rig.connect() as other, rig.connect() as sock:
        sock.sendall(NONSENSE[name])
        assert is_closed(sock)
        assert rig.dropped == before + 1
        other.sendall(wire.frame(wire.MountList()))
        assert isinstance(receive(other), wire.Mounts)
    rig.assert_serving()


def test_a_whole_frame_before_the_nonsense_is_answered(rig: Rig) -> None:
    with rig.connect() as sock:
        sock.sendall(wire.frame(wire.MountList()) + NONSENSE["noise"])
        assert isinstance(receive(sock), wire.Mounts)
        assert is_closed(sock)


def test_half_sent_frames_are_waited_for_and_no_longer(rig: Rig) -> None:
    before = rig.dropped
    halves = [b"\x08", b"\x08\0\0\0", b"\x08\0\0\0\x01", b"\x08\0\0\0\x01\x93"]
    with ExitStack() as stack:
        socks = [stack.enter_context(rig.connect()) for _ in halves]
        for sock, half in zip(socks, halves, strict=True):
            sock.sendall(half)
        began = time.monotonic()
        rig.assert_serving()
        for sock in socks:
            assert is_closed(sock)
            assert HALF_FRAME_S - 1 < time.monotonic() - began < HALF_FRAME_S + 5
    assert rig.dropped == before + len(halves)


def test_a_frame_may_come_byte_by_byte(rig: Rig) -> None:
    with rig.connect() as sock:
        for byte in wire.frame(wire.MountList()):
            sock.sendall(bytes([byte]))
        assert isinstance(receive(sock), wire.Mounts)


HOSTILE: list[wire.Request] = [
    wire.Fill("/m/a", "no such version", ((0, 1),)),
    wire.Fill("/m/a", "", ((-65536, 1 << 62),)),
    wire.Fill("", "", ()),
    wire.ReadThrough("/m/a", "v", -1, 1 << 62),
    wire.FillMany((("/m/a", -5, -5), ("relative", 0, None))),
    wire.WriteData(4711, b"x"),
    wire.WriteFinish(4711),
    wire.WriteAbort(-1),
    wire.WriteBegin("/m/a", "no such mode"),
    wire.ReportCorrupt("/m/a", 1 << 60, (-1, 1 << 60)),
    wire.JobQuery("no such job", float("nan")),
    wire.Unpin("/m/never-pinned"),
    wire.CopyObject("/m/a", "../b"),
    wire.LocalPath("/nowhere", True),
    wire.Lookup("/m/" + "a" * 5000),
    wire.Lookup("/m/\0"),
]


def test_values_that_make_no_sense_cost_their_sender_an_error(rig: Rig) -> None:
    with rig.connect() as sock:
        for request in HOSTILE:
            sock.sendall(wire.frame(request))
            answer = receive(sock)
            assert isinstance(answer, wire.Failure | wire.FilledMany | wire.Done), request
        sock.sendall(wire.frame(wire.Advise("/m/a", "v", -1, 1 << 62)))  # no answer
        sock.sendall(wire.frame(wire.ReportUse((("/m", -1, -1),))))
        sock.sendall(wire.frame(wire.MountList()))
        assert isinstance(receive(sock), wire.Mounts)
    rig.assert_serving()


def test_a_greeting_with_a_mount_that_cannot_be_is_refused_and_forgotten(rig: Rig) -> None:
    """It was remembered once, and then refused every client that came with a mount of its own."""
    bad = wire.Hello("0", 1, (MountSettings(path="/x", origin="file:///x", profile="none"),), ())
    good = wire.Hello("0", 1, (MountSettings(path="/y", origin="file:///y"),), (ProfileSettings(),))
    with rig.connect() as sock:
        sock.sendall(wire.frame(bad))
        answer = receive(sock)
        assert isinstance(answer, wire.Failure)
        assert answer.error == ConfigError.__name__ and answer.path == "/x"
        sock.sendall(wire.frame(good))
        welcome = receive(sock)
    assert isinstance(welcome, wire.Welcome)
    assert [mount.path for mount in welcome.mounts] == ["/m", "/y"]
    rig.assert_serving()


def test_a_silent_peer_costs_nothing(rig: Rig) -> None:
    with rig.connect(), rig.connect():
        wait_for(lambda: len(rig.ns.status()["clients"]) >= 3)
        rig.assert_serving()
    wait_for(lambda: len(rig.ns.status()["clients"]) == 1)


def test_a_thousand_connections_at_once(rig: Rig) -> None:
    with descriptors(2 * CONNECTIONS), ExitStack() as stack:
        socks = [stack.enter_context(rig.connect()) for _ in range(CONNECTIONS)]
        ask = wire.frame(wire.MountList())
        for sock in socks:
            sock.sendall(ask)
        for sock in socks:
            assert isinstance(receive(sock), wire.Mounts)
        rig.assert_serving()
        assert len(rig.ns.status()["clients"]) == CONNECTIONS + 1
    wait_for(lambda: len(rig.ns.status()["clients"]) == 1)
    assert rig.dropped == 0


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes(pid: int) -> int:
    """Return the private memory of a process: what it mapped from files is the kernel's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def test_peers_that_never_read_their_answers(rig: Rig) -> None:
    """Each stops after what the kernel buffers; the agent keeps a few answers for it, not all."""
    rig.origin.put("a", DATA * 4)
    token = rig.ns.stat("/m/a").version
    ask = wire.frame(wire.ReadThrough("/m/a", token, 0, 4 * MIB))
    before = resident_bytes(rig.pid)
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(rig.connect())
            for _ in range(50):
                sock.sendall(ask)  # 200 MiB of answers that nobody fetches
        rig.assert_serving()
        rig.assert_serving()
        assert resident_bytes(rig.pid) - before < 160 * MIB
    rig.assert_serving()


def test_a_peer_that_leaves_before_the_answer(rig: Rig) -> None:
    rig.origin.put("a", DATA)
    for _ in range(50):
        with rig.connect() as sock:
            sock.sendall(wire.frame(wire.FillMany((("/m/a", 0, None),))))
    rig.assert_serving()
    assert rig.dropped == 0  # going away is no nonsense


def test_a_write_ends_with_its_peer(rig: Rig) -> None:
    """A process that dies between two parts leaves neither an object nor a write behind."""
    script = (
        "import os, socket, sys\n"
        "from tiercache import wire\n"
        "from tiercache.client.link import connect, receive\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "connect(sock, sys.argv[1])\n"
        "sock.sendall(wire.frame(wire.WriteBegin('/m/half', 'overwrite')))\n"
        "number = receive(sock).write\n"
        "sock.sendall(wire.frame(wire.WriteData(number, bytes(1 << 20))))\n"
        "receive(sock)\n"
        "print(number, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(rig.cache_dir / "agent.sock")], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        number = int(child.stdout.readline())
    finally:
        end(child)

    def is_unknown() -> bool:
        with rig.connect() as sock:
            sock.sendall(wire.frame(wire.WriteData(number, b"more")))
            return isinstance(receive(sock), wire.Failure)

    wait_for(is_unknown)
    with pytest.raises(NotFound):
        rig.ns.stat("/m/half")
    assert [path.name for path in rig.origin.root.iterdir()] == []


# -- who may come in ------------------------------------------------------------------------


def test_modes_are_private(rig: Rig) -> None:
    rig.origin.put("a", DATA)
    rig.origin.put("b", b"small")
    assert rig.ns.read("/m/a") == DATA and rig.ns.read("/m/b") == b"small"
    modes = {path: path.lstat().st_mode for path in (rig.cache_dir, *rig.cache_dir.rglob("*"))}
    assert len(modes) > 8
    for path, mode in modes.items():
        if path.name != "agent.log":  # 0600 by the directory above it
            assert mode & 0o077 == 0, (path, oct(mode))
    assert modes[rig.cache_dir / "agent.sock"] & 0o777 == 0o600
    assert modes[rig.cache_dir] & 0o777 == 0o700


@as_root
def test_another_user_cannot_even_reach_the_socket(rig: Rig) -> None:
    def attempt() -> str:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(rig.cache_dir / "agent.sock"))
        return "connected"

    assert "PermissionError" in run_as_nobody(attempt)


@as_root
def test_another_user_who_gets_hold_of_the_socket_is_refused(rig: Rig) -> None:
    """Through a directory descriptor opened by root, and a socket with open modes."""
    folder = os.open(rig.cache_dir, os.O_RDONLY | os.O_DIRECTORY)
    os.chmod(rig.cache_dir / "agent.sock", 0o777)
    os.chmod(rig.cache_dir, 0o711)

    def attempt() -> str:
        os.fchdir(folder)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect("agent.sock")
        try:
            sock.sendall(wire.frame(wire.MountList()))
            return repr(sock.recv(100))
        except (BrokenPipeError, ConnectionResetError):
            return "b''"

    try:
        assert run_as_nobody(attempt) == "b''"
    finally:
        os.chmod(rig.cache_dir, 0o700)
        os.close(folder)
    rig.assert_serving()


def test_many_threads_of_one_client_share_the_socket(rig: Rig) -> None:
    """Requests of different lengths, at once: every answer goes to whoever asked."""
    sizes = {f"t{n:02}": 1000 * n for n in range(32)}
    for name, size in sizes.items():
        rig.origin.put(name, name.encode() * size)
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(5):
            if rig.ns.read(f"/m/{name}") != name.encode() * sizes[name]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
