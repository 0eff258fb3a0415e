"""Server processes for tests: on a leash, in their own process group, on ports that stay theirs."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")
FIRST_PORT = 12_000  # below lies what system services like to use


def free_ports(count: int) -> list[int]:
    """Return distinct ports on which nobody listens now.

    They lie below the kernel's range for outgoing connections, so that none of those takes the
    port while its server is down for a restart. Another process may still bind one first: the
    caller retries with fresh ports.
    """
    range_file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    last = int(range_file.read_text().split()[0]) if range_file.exists() else 32_768
    if last - FIRST_PORT < 1000:
        return _ephemeral_ports(count)
    chosen: set[int] = set()
    while len(chosen) < count:
        port = random.SystemRandom().randrange(FIRST_PORT, last)
        if _is_free(port):
            chosen.add(port)
    return list(chosen)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _ephemeral_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class LeashedProcess:
    """A command in its own process group that dies with the process that started it.

    ``directory`` is the command's own: removed when the leash ends unless kept. Output goes to
    ``log``. Not thread safe. Close with ``stop``.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        grace_s: float = 2.0,
    ) -> None:
        self._log = log
        self._grace_s = grace_s
        leash = [sys.executable, "-I", "-S", str(LEASH), str(grace_s), str(directory), "--"]
        with log.open("ab") as output:
            self._leash = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.group_id = self._read_group_id()

    def _read_group_id(self) -> int:
        assert self._leash.stdout is not None
        select.select([self._leash.stdout], [], [], 10.0)
        line = self._leash.stdout.readline() if self._leash.poll() is None else b""
        if not line:
            self.stop(keep_directory=True)
            raise RuntimeError(f"the command did not start:\n{self.log_tail()}")
        return int(line)

    def running(self) -> bool:
        """Return whether the command itself is still there."""
        return self._leash.poll() is None and not self._has_output()

    def _has_output(self) -> bool:
        # After the first line the only event on it is its end.
        assert self._leash.stdout is not None
        return bool(select.select([self._leash.stdout], [], [], 0)[0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; a group already gone is no error."""
        try:
            os.killpg(self.group_id, number)
        except ProcessLookupError:
            pass

    def stop(self, *, keep_directory: bool) -> None:
        """End the group (TERM, then KILL after the grace time) and wait for it. Idempotent."""
        leash = self._leash
        assert leash.stdin is not None and leash.stdout is not None
        try:
            if keep_directory and leash.poll() is None:
                leash.stdin.write(b"k")
            leash.stdin.close()
        except BrokenPipeError:
            pass
        leash.stdout.close()
        try:
            leash.wait(timeout=self._grace_s + 10.0)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            leash.kill()
            leash.wait()

    def log_tail(self, line_count: int = 20) -> str:
        """Return the last lines of the command's output."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-line_count:])
