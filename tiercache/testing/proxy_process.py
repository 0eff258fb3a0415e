"""The proxy in a process of its own, so that neither its interpreter lock nor its CPU seconds
are the client's. It dies with the process that started it.

The owner talks to it over a unix socket in a private directory: pickled (method, arguments) there,
pickled results back, one call at a time.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Self

from tiercache.testing.network import Fault, NetworkProfile
from tiercache.testing.processes import LeashedProcess
from tiercache.testing.proxy import Exchange, FaultyProxy
from tiercache.testing.timeline import Timeline, TimelineEvent

START_TIMEOUT_S = 30.0  # an interpreter's start on a machine with much else to do
CALL_TIMEOUT_S = 30.0
POLL_S = 0.01


class ProxyProcess:
    """``FaultyProxy`` elsewhere: same arguments, same methods, thread safe. A context manager.

    Raises ``RuntimeError`` where the process does not start or is gone; what the proxy itself
    raises, a call raises here.
    """

    def __init__(
        self,
        upstream_url: str,
        *,
        network: NetworkProfile | None = None,
        timeline: Timeline | None = None,
        seed: int = 0,
    ) -> None:
        # Constant after construction.
        self._network = network
        self._arguments = {"network": network, "timeline": timeline, "seed": seed}
        self._upstream_url = upstream_url
        # Written by start().
        self._process: LeashedProcess | None = None
        self._url = ""
        # Guarded by self._lock.
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @property
    def url(self) -> str:
        """The URL to give to clients instead of the server's."""
        return self._url

    @property
    def network(self) -> NetworkProfile | None:
        """The profile that it began with; None: it does not shape."""
        return self._network

    @property
    def pid(self) -> int:
        """The process that relays; its CPU time is the proxy's."""
        assert self._process is not None, "not started"
        return self._process.group_id

    # Life

    def start(self) -> Self:
        directory = Path(tempfile.mkdtemp(prefix="tiercache-proxy-"))
        address = directory / "control.sock"
        try:
            self._process = LeashedProcess(
                [sys.executable, "-m", "tiercache.testing.proxy_process", str(address)],
                directory=directory,
                log=directory / "log",
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        try:
            self._connection = self._connect(self._process, address)
            self._url = str(self._call("start", self._upstream_url, **self._arguments))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process and wait for it. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if self._process is not None:
            self._process.stop(keep_directory=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Faults and the network

    def inject(self, fault: Fault) -> Fault:
        self._call("inject", fault)
        return fault

    def black_hole(self) -> None:
        self._call("black_hole")

    def refuse(self) -> None:
        self._call("refuse")

    def drop_connections(self) -> None:
        self._call("drop_connections")

    def heal(self) -> None:
        self._call("heal")

    def set_network(self, network: NetworkProfile) -> None:
        self._call("set_network", network)

    def play(self, timeline: Timeline) -> None:
        self._call("play", timeline)

    def timeline_events(self) -> list[TimelineEvent]:
        """Their times are of ``time.monotonic``, which is one clock for all processes."""
        events: list[TimelineEvent] = self._call("timeline_events")
        return events

    # The log

    def exchanges(self, method: str = "", path_contains: str = "") -> list[Exchange]:
        found: list[Exchange] = self._call("exchanges", method, path_contains)
        return found

    def counts(self) -> Counter[str]:
        counted: Counter[str] = self._call("counts")
        return counted

    def bytes_out(self, path_contains: str = "") -> int:
        return int(self._call("bytes_out", path_contains))

    def bytes_in(self) -> int:
        return int(self._call("bytes_in"))

    @property
    def peak_in_flight(self) -> int:
        return int(self._call("peak_in_flight"))

    def clear(self) -> None:
        self._call("clear")

    def cpu_s(self) -> float:
        """Return the CPU seconds, user's and system's, that the process has used so far."""
        return float(self._call("cpu_s"))

    # The control line

    def _connect(self, process: LeashedProcess, address: Path) -> Connection:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and process.running():
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Client(str(address), "AF_UNIX")
            time.sleep(POLL_S)
        raise RuntimeError(f"the proxy's process did not start:\n{process.log_tail()}")

    def _call(self, method: str, *arguments: object, **named: object) -> Any:
        with self._lock:
            connection = self._connection
            if connection is None:
                raise RuntimeError("the proxy's process is not running")
            try:
                connection.send((method, arguments, named))
                if not connection.poll(CALL_TIMEOUT_S):
                    raise RuntimeError(f"no answer to {method!r} in {CALL_TIMEOUT_S} s")
                result, error = connection.recv()
            except (EOFError, OSError) as problem:
                raise RuntimeError(f"the proxy's process is gone at {method!r}") from problem
        if error is not None:
            raise error
        return result


class _Service:
    """The other end of the line: owns the proxy, answers calls until the line closes."""

    def __init__(self) -> None:
        self._proxy: FaultyProxy | None = None

    def serve(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                method, arguments, named = connection.recv()
                answer: tuple[Any, Exception | None]
                try:
                    answer = self._carry_out(method, arguments, named), None
                except (OSError, ValueError, RuntimeError) as error:
                    answer = None, error
                connection.send(answer)
        if self._proxy is not None:
            self._proxy.stop()

    def _carry_out(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if method == "start":
            self._proxy = FaultyProxy(*arguments, **named).start()
            return self._proxy.url
        if method == "cpu_s":
            used = resource.getrusage(resource.RUSAGE_SELF)
            return used.ru_utime + used.ru_stime
        found = getattr(self._proxy, method)
        return found(*arguments, **named) if callable(found) else found


def main(address: str) -> None:
    """Serve the one owner who connects, and end with it."""
    with Listener(address, "AF_UNIX") as listener:
        connection = listener.accept()
    _Service().serve(connection)


if __name__ == "__main__":
    main(sys.argv[1])
