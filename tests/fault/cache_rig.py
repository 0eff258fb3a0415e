"""What the tests of the node cache share: an origin of files, agents that leave nothing behind,
and what the cache directory really occupies."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

import tiercache
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing.datasets import object_bytes
from tiercache.units import MIB

POLL_S = 0.005
ROOT = Path(__file__).resolve().parents[2]
# Blocks that a file system gives a directory, and that no ledger of files can know of.
DIRECTORY_SLACK_BYTES = MIB


class FileOrigin:
    """A directory as an origin; ``put`` replaces whole files, as a store does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tiercache-part-{path.name}")
        temporary.write_bytes(data)
        os.rename(temporary, path)

    def fill(self, seed: int | str, sizes: Sequence[int], prefix: str = "") -> dict[str, bytes]:
        """Put one object a size; return key → bytes."""
        objects = {
            f"{prefix}{number:05}": object_bytes(f"{seed}/{number}", size)
            for number, size in enumerate(sizes)
        }
        for key, data in objects.items():
            self.put(key, data)
        return objects


def cache_settings(
    cache_dir: Path,
    origin_url: str,
    *,
    capacity_bytes: int = 64 * MIB,
    memory_bytes: int = 64 * MIB,
    idle_timeout_s: float = 30.0,
    consistency: Consistency = Consistency.EVENTUAL,
) -> Settings:
    """Settings of a small cache with one mount at ``/m``."""
    return Settings(
        cache=CacheSettings(
            dir=str(cache_dir), limit=TotalBytes(capacity_bytes), memory_bytes=memory_bytes
        ),
        mounts=(MountSettings(path="/m", origin=origin_url, consistency=consistency),),
        agent=AgentSettings(idle_timeout_s=idle_timeout_s),
    )


def with_capacity(settings: Settings, capacity_bytes: int) -> Settings:
    cache = msgspec.structs.replace(settings.cache, limit=TotalBytes(capacity_bytes))
    return msgspec.structs.replace(settings, cache=cache)


# -- agents ---------------------------------------------------------------------------------


def agent_pid(cache_dir: Path | str) -> int:
    """Return the pid that the lock file names, 0 for none."""
    try:
        return int((Path(cache_dir) / "agent.lock").read_text() or 0)
    except FileNotFoundError:
        return 0


def is_agent(pid: int, cache_dir: Path | str) -> bool:
    """Return whether this process runs and holds this directory's lock file open."""
    lock = os.path.realpath(Path(cache_dir) / "agent.lock")
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            if os.path.realpath(f"/proc/{pid}/fd/{descriptor}") == lock:
                return True
    return False


def kill_agent(cache_dir: Path | str) -> bool:
    """SIGKILL the directory's agent process, if one runs (never this very process)."""
    pid = agent_pid(cache_dir)
    if not pid or pid == os.getpid() or not is_agent(pid, cache_dir):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_agent(pid, cache_dir))
    return True


def _is_free(cache_dir: Path | str) -> bool:
    """Return whether nobody holds the directory's lock."""
    try:
        fd = os.open(Path(cache_dir) / "agent.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def end_agents(cache_dir: Path | str) -> None:
    """Kill agents until nobody holds the directory, one that is about to start included."""
    wait_for(lambda: _is_free(cache_dir) or (kill_agent(cache_dir) and _is_free(cache_dir)))


def shut_down(ns: Namespace) -> None:
    """Stop the agent in good order and wait until it has left."""
    ns.shut_down_agent()
    ns.close()
    wait_for(lambda: _is_free(ns.settings.cache.dir))


@contextmanager
def namespace(settings: Settings, *, embedded: bool = False) -> Iterator[Namespace]:
    """A connected namespace; whatever agent serves its directory at the end is ended."""
    try:
        found = tiercache.connect(settings, embedded=embedded)
        try:
            yield found
        finally:
            found.close()
    finally:
        end_agents(settings.cache.dir)


def wait_for(
    condition: Callable[[], object], *, timeout_s: float = 10.0, poll_s: float = POLL_S
) -> None:
    """Poll until the condition holds. Raises AssertionError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(poll_s)


# -- child processes ------------------------------------------------------------------------


def start_script(
    script: str, settings: Settings, *arguments: str, stdin: int | None = None
) -> subprocess.Popen[bytes]:
    """Run Python code in a process of its own. It finds ``ns`` (connected), ``arguments`` and
    the usual imports; its standard output is a pipe."""
    prelude = (
        "import hashlib, os, random, sys, time, json\n"
        "import msgspec, tiercache\n"
        "from tiercache.settings import Settings\n"
        "from tiercache.testing.datasets import object_bytes\n"
        "arguments = json.loads(sys.argv[2])\n"
        "ns = tiercache.connect(msgspec.json.decode(sys.argv[1], type=Settings))\n"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            prelude + script,
            msgspec.json.encode(settings).decode(),
            json.dumps(arguments),
        ],
        stdin=stdin,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that a test started and wait for it."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


# -- what is on the device ------------------------------------------------------------------


def occupied_bytes(root: Path | str) -> int:
    """Return the blocks of everything below ``root``, as ``du`` counts them."""
    total, folders = 0, [os.fspath(root)]
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def file_count(root: Path | str) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def assert_ledger_agrees(ns: Namespace, cache_dir: Path | str) -> None:
    """The ledger covers what ``du`` finds, and not by much more than its own allowances. What
    readers let go of leaves both at any time, so the ledger is asked before and after."""
    before, occupied, after = ns.status()["cache"], occupied_bytes(cache_dir), ns.status()["cache"]
    allowance = before["extents"] * 8192 + 2 * MIB + DIRECTORY_SLACK_BYTES
    said = sorted((before["used_bytes"], after["used_bytes"]))
    assert occupied <= said[1] + DIRECTORY_SLACK_BYTES, (before, occupied, after)
    assert said[0] <= occupied + allowance, (before, occupied, after)
