"""All measures and contenders by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks import contenders, measures
from benchmarks.contenders.contender import Contender
from benchmarks.harness import Outcome
from benchmarks.workload import Workload

if TYPE_CHECKING:
    # Worker processes import contenders and with them this module, but never the laboratory: it
    # would take each of them 0.2 s and count as memory of the reader that is measured.
    from benchmarks.lab import Lab

Measure = Callable[["Lab", Workload], Outcome]
ContenderMaker = Callable[["Lab", str], Contender]  # of the laboratory and the origin's URL

MEASURES: dict[str, Measure] = {}
CONTENDERS: dict[str, ContenderMaker] = {}


def measure(name: str) -> Callable[[Measure], Measure]:
    """Register a function as the measure that workloads call by that name."""

    def register(run: Measure) -> Measure:
        MEASURES[name] = run
        return run

    return register


def contender(name: str) -> Callable[[ContenderMaker], ContenderMaker]:
    """Register what makes the contender that workloads call by that name."""

    def register(make: ContenderMaker) -> ContenderMaker:
        CONTENDERS[name] = make
        return make

    return register


def load() -> None:
    """Import every family, so that all are registered."""
    for package in (measures, contenders):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
