"""All benchmarks by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import Result
from benchmarks.lab import Lab


@dataclass(frozen=True, slots=True)
class Benchmark:
    name: str
    title: str
    run: Callable[[Lab], Result]


ALL: dict[str, Benchmark] = {}


def benchmark(name: str, title: str) -> Callable[[Callable[[Lab], Result]], Benchmark]:
    """Register a function as the benchmark of that name."""

    def register(run: Callable[[Lab], Result]) -> Benchmark:
        ALL[name] = Benchmark(name, title, run)
        return ALL[name]

    return register
