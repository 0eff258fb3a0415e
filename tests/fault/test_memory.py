"""Memory: many handles over much data, and a budget that holds.

What counts is ``RssAnon`` + ``RssShmem``, sampled while it runs: memory that only this process can
give back. ``RssFile``, which ``VmHWM`` includes, is page cache that happens to be mapped (index,
extents under views, libraries): the kernel takes it back when it likes.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fault.cache_rig import (
    FileOrigin,
    agent_pid,
    cache_settings,
    end,
    namespace,
    start_script,
)
from tiercache.units import MIB

HANDLES = 256
OBJECTS = 64
OBJECT_BYTES = 16 * MIB  # 1 GiB in all
BUDGET_BYTES = 64 * MIB
# An idle agent holds 25 MiB (this origin) to 70 MiB (three clouds); the rest is slack for what the
# allocator keeps.
AGENT_SLACK_BYTES = 150 * MIB
# The client buffers nothing but what it returns: 8 threads of 1 MiB each, and 256 handles.
CLIENT_SLACK_BYTES = 100 * MIB
SAMPLE_S = 0.02

# Half of the handles read on and on, the others here and there, from eight threads.
READER = """
import threading
MIB = 1 << 20
handles = [ns.open(f"/m/{n % 64:05}") for n in range(256)]
sys.stdout.write("open\\n"); sys.stdout.flush()
sys.stdin.readline()

def work(mine):
    rng = random.Random(mine)
    for turn in range(12):
        for number in range(mine, 256, 8):
            sequential = number // 64 % 2 == 0
            offset = turn * MIB if sequential else rng.randrange(256) * 65536
            length = MIB if sequential else 65536
            data = handles[number].read_at(offset, length)
            assert len(data) == length
            for start in range(0, length, MIB):
                if (offset + start) % MIB == 0:
                    expected = b"%05d/%05d" % (number % 64, (offset + start) // MIB)
                    assert data[start : start + 11] == expected, (data[:11], expected)

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
failures = []
threading.excepthook = lambda args: failures.append(args)
for thread in threads: thread.start()
for thread in threads: thread.join()
print("failed" if failures else "done", flush=True)
sys.stdin.readline()
"""


def own_bytes(pid: int) -> int:
    """Return what the process alone holds in memory; 0 for one that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


class Peak:
    """The most that a process held while it was watched."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.start_bytes = own_bytes(pid)
        self.peak_bytes = self.start_bytes

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, own_bytes(self.pid))


@contextmanager
def watched(*peaks: Peak) -> Iterator[None]:
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_S):
            for peak in peaks:
                peak.sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def put_marked(origin: FileOrigin, number: int) -> None:
    """A sparse object that names itself and the place at each MiB."""
    with (origin.root / f"{number:05}").open("wb") as file:
        file.truncate(OBJECT_BYTES)
        for place in range(OBJECT_BYTES // MIB):
            file.seek(place * MIB)
            file.write(b"%05d/%05d" % (number, place))


def test_256_handles_over_a_gibibyte_with_a_budget_of_64_mib(tmp_path: Path) -> None:
    origin = FileOrigin(tmp_path / "origin")
    for number in range(OBJECTS):
        put_marked(origin, number)
    settings = cache_settings(
        tmp_path / "c", origin.url, capacity_bytes=256 * MIB, memory_bytes=BUDGET_BYTES
    )
    with namespace(settings) as ns:
        client = start_script(READER, settings, stdin=subprocess.PIPE)
        try:
            assert client.stdin is not None and client.stdout is not None
            assert client.stdout.readline() == b"open\n"
            agent_peak, client_peak = Peak(agent_pid(settings.cache.dir)), Peak(client.pid)
            with watched(agent_peak, client_peak):
                client.stdin.write(b"go\n")
                client.stdin.flush()
                assert client.stdout.readline() == b"done\n"
            status = ns.status()
        finally:
            end(client)
    assert status["reads"]["/m"]["filled_bytes"] > 256 * MIB  # more than the cache holds
    assert status["agent"]["internal_errors"] == 0
    agent_mib = [agent_peak.start_bytes // MIB, agent_peak.peak_bytes // MIB]
    client_mib = [client_peak.start_bytes // MIB, client_peak.peak_bytes // MIB]
    print(f"agent {agent_mib} MiB, client {client_mib} MiB at the start and at most")
    assert agent_peak.peak_bytes < BUDGET_BYTES + AGENT_SLACK_BYTES, agent_mib
    assert client_peak.peak_bytes < client_peak.start_bytes + CLIENT_SLACK_BYTES, client_mib
