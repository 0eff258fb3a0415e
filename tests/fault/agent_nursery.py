"""Agents that are born quickly: forked from a process that has imported everything.

Run as a program it reads settings, one JSON line an agent, and answers with the pid of an agent
that serves. The product execs its agents; here they are born hundreds of times. Only for origins
of files: obstore does not survive a fork.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import msgspec

from tests.fault.cache_rig import ROOT
from tiercache.settings import Settings

READY_TIMEOUT_S = 20.0


class Nursery:
    """The tests' end. ``start`` may be called from one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._line = msgspec.json.encode(settings) + b"\n"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.agent_nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )

    def start(self) -> None:
        """Start an agent and return when it, or one that was faster, serves."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(self._line)
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], READY_TIMEOUT_S)
        assert ready and self._process.stdout.readline(), "the nursery is gone"

    def close(self) -> None:
        """End the nursery and whatever it has borne."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    # All that an agent imports, so that its birth is a fork.
    import tiercache.agent.engine
    import tiercache.agent.metrics
    import tiercache.agent.server
    import tiercache.origins.resilient  # noqa: F401
    from tiercache.compose import run_agent
    from tiercache.origins.open import open_origin  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in sys.stdin.buffer:
        settings = msgspec.json.decode(line, type=Settings)
        reader, writer = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(reader)
            os.dup2(writer, 1)
            os.close(writer)
            os._exit(run_agent(settings))
        os.close(writer)
        said = os.read(reader, 4096)
        os.close(reader)
        os.write(1, said.strip() + b"\n")


if __name__ == "__main__":
    main()
