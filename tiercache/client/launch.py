"""Starting an agent: exec'd, never forked, so that it shares nothing with the training job."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from tiercache.errors import AgentUnavailable, ConfigError, from_wire
from tiercache.settings import Settings

READY_TIMEOUT_S = 15.0

# Kept so that an agent that ends is reaped at the next start instead of lying about as a zombie.
_started: list[subprocess.Popen[bytes]] = []


class Announcement(msgspec.Struct, frozen=True):
    """The one line an agent prints when it serves, gave way to another, or cannot start."""

    state: str  # "ready" | "busy" | "failed"
    error: str = ""
    message: str = ""
    path: str = ""
    remedy: str = ""


def start_agent(settings: Settings, log_path: str) -> None:
    """Start an agent for this cache directory and return when it, or one that was faster, serves.

    Raises what kept the agent from starting; ConfigError where the directory cannot be written,
    AgentUnavailable when the agent says nothing.
    """
    _started[:] = [process for process in _started if process.poll() is None]
    with _log(settings.cache.dir, log_path) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tiercache.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    _started.append(process)
    assert process.stdin is not None and process.stdout is not None
    try:
        with process.stdin:
            process.stdin.write(msgspec.json.encode(settings))
    except BrokenPipeError:
        pass  # it ended already; its announcement or log says why
    with process.stdout:
        ready, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S)
        line = process.stdout.readline() if ready else b""
    if not line:
        raise AgentUnavailable(
            f"the agent did not start: {_last_line(log_path)}",
            path=log_path,
            remedy="see its log",
        )
    said = msgspec.json.decode(line, type=Announcement)
    if said.state == "failed":
        raise from_wire(said.error, said.message, said.path, said.remedy)


def _log(cache_dir: str, log_path: str) -> BinaryIO:
    try:
        Path(cache_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(log_path, "ab")
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache directory: {error.strerror}",
            path=cache_dir,
            remedy="name a writable place with --cache-dir or cache.dir",
        ) from error


def _last_line(log_path: str) -> str:
    """Return the end of the log: what a crash says last names its cause."""
    with open(log_path, "rb") as log:
        lines = log.read()[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
