"""What the reading workloads ask of a contender.

A contender is made in the benchmark's own process, once a workload; its readers live in worker
processes, spawned for each round, so that nothing is shared that users' processes would not share.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from benchmarks.harness import Role
from benchmarks.workload import State, Workload

if TYPE_CHECKING:
    from tiercache.namespace import Namespace  # 0.1 s that a rival's process must not pay


def missing_package(module: str, package: str = "") -> str:
    """Return how to install what a contender needs; empty where it is there."""
    found = importlib.util.find_spec(module) is not None
    return "" if found else f"not installed: pip install '{package or module}'"


class Object(NamedTuple):
    key: str
    length: int  # bytes


class Reader(Protocol):
    """Reads in one process. All its threads share it."""

    def read(self, key: str, offset: int, length: int) -> object:
        """Return or map ``length`` bytes; what comes back must have been read, not promised."""

    def close(self) -> None: ...


class AsyncReader(Protocol):
    """Reads on one event loop; the load's threads are then tasks."""

    async def read_async(self, key: str, offset: int, length: int) -> object: ...

    async def close_async(self) -> None: ...


class Recipe(NamedTuple):
    """How a worker process makes its reader: a module's function and picklable arguments."""

    make: Callable[..., Reader | AsyncReader]
    arguments: tuple[Any, ...]


class Contender(ABC):
    """Close it; not thread safe."""

    name: str
    role: Role
    # Of ours, for the agent's counters.
    namespace: Namespace | None = None
    # Whether all readers of a point are tasks of one process rather than spread over several.
    one_process: bool = False

    def why_missing(self) -> str:
        """Return why it cannot run on this machine and how to mend that; empty where it can."""
        return ""

    def why_not(self, workload: Workload) -> str:
        """Return why it cannot do this workload at all, for the table; empty where it can."""
        return ""

    @abstractmethod
    def prepare(self, objects: Sequence[Object], state: State) -> None:
        """Bring its cache into this state for these objects, before a round and untimed: ``hot``
        in the page cache, ``nvme`` on the device alone, ``cold`` at the origin alone,
        ``half-warm`` every other object (of one object: its first half) hot, the rest cold."""

    @abstractmethod
    def recipe(self) -> Recipe: ...

    def processes(self) -> dict[str, list[int]]:
        """Return its own processes by kind (agent, tool): their CPU and memory count for it."""
        return {}

    def close(self) -> None:
        """End what it started and remove what it wrote."""
        return
