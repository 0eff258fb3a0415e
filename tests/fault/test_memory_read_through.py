"""On a full device everything passes through the agent's memory, and must not stay there."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import msgspec
import pytest

from tests.fault.cache_rig import agent_pid, cache_settings, end, namespace, start_script
from tests.fault.test_device import fill_up, tmpfs
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import S3Server
from tiercache.units import MIB

OBJECTS = 8
OBJECT_BYTES = 16 * MIB
BUDGET_BYTES = 48 * MIB
SLACK_BYTES = 150 * MIB

# Reads the longest spans that one answer carries, with many threads at once.
CLIENT = """
import threading
threads, turns = map(int, arguments)
expected = [object_bytes(f"through {number}", 16 << 20) for number in range(8)]
failures = []
def work(own):
    for turn in range(turns):
        number, offset = (own + turn) % 8, (own + turn) % 2 * (8 << 20)
        data = ns.read(f"/m/{number}", offset, 8 << 20)
        if data != expected[number][offset : offset + (8 << 20)]:
            failures.append((own, turn))
workers = [threading.Thread(target=work, args=(own,)) for own in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
sys.exit(len(failures))
"""


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = s3.make_bucket(f"through-{uuid.uuid4().hex[:12]}")
    s3.put_many(
        name,
        (
            (str(number), object_bytes(f"through {number}", OBJECT_BYTES))
            for number in range(OBJECTS)
        ),
    )
    return name


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.slow
@pytest.mark.emulator
def test_bytes_that_pass_through_are_bounded(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "mount", "size=24m") as mount:
        settings = cache_settings(
            mount / "cache",
            s3.url(bucket),
            capacity_bytes=128 * MIB,
            memory_bytes=BUDGET_BYTES,
        )
        settings = msgspec.structs.replace(settings, profiles={"default": s3.profile()})
        with namespace(settings) as ns:
            ns.stat("/m/0")
            fill_up(mount / "foreign")
            client = start_script(CLIENT, settings, "24", "6")
            try:
                assert client.wait(100) == 0
            finally:
                end(client)
            status = ns.status()
            assert status["reads"]["/m"]["read_through_bytes"] > 500 * MIB
            assert status["memory"]["held_bytes"] == 0
            assert peak_bytes(agent_pid(mount / "cache")) <= BUDGET_BYTES + SLACK_BYTES
