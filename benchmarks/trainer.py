"""A process to train in: it forks DataLoader workers, so nothing in it may have threads yet."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.harness import Measured

TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 5.0


class Trainer:
    """One spawned process that runs one function after another. Close it; not thread safe."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        # Constant after construction
        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: those may have no children. It leaves when its pipe closes.
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returned there; all of it must pickle. Raises RuntimeError
        where it raised, died or took too long; the trainer is of no use then."""
        self._pipe.send((function, arguments))
        if not self._pipe.poll(self._timeout_s):
            raise RuntimeError(f"{function.__name__} took more than {self._timeout_s:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{function.__name__} failed; its traceback is above") from None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def close(self) -> None:
        """End it, with all that it forked."""
        self._pipe.close()
        self._process.join(EXIT_TIMEOUT_S)
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve(pipe: Connection) -> None:
    os.setpgid(0, 0)
    with pipe:
        while True:
            try:
                function, arguments = pipe.recv()
            except EOFError:
                return
            pipe.send(function(*arguments))


class Stopwatch:
    """Times what this process does and what its joined children did meanwhile."""

    def __init__(self) -> None:
        self._cpu_s = _cpu_s()
        self._started_s = time.perf_counter()

    def measured(self, *, operations: int, total_bytes: int) -> Measured:
        return Measured(
            seconds=time.perf_counter() - self._started_s,
            operations=operations,
            bytes=total_bytes,
            cpu_s={"reader": _cpu_s() - self._cpu_s},
        )


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
