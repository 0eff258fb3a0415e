"""Races: contenders measured in turns, medians of several rounds, bars and what they decide.

A machine is never quiet, so contenders take turns within one run and are compared round by round:
a bar's ratio is the median of the rounds' ratios. Absolute times of different runs say little.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Role = Literal["ours", "bound", "rival"]

# "BENCHMARK=FACTOR" makes our contender of that benchmark so much slower: the gate's own test.
SLOW_VARIABLE = "TIERCACHE_BENCH_SLOW"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What one contender reached: one value a round, in ``unit``."""

    name: str
    role: Role
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A rival that could not run, and why."""

    name: str
    why: str


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A promise: ``figure`` is at most (or at least) ``limit``. ``slack`` is the factor that the
    short form, on a small and loaded machine, allows on top."""

    text: str
    figure: float
    limit: float
    unit: str = "×"
    at_most: bool = True
    slack: float = 1.25

    def passed(self, *, short: bool = False) -> bool:
        slack = self.slack if short else 1.0
        if self.at_most:
            return self.figure <= self.limit * slack
        return self.figure >= self.limit / slack

    def limit_now(self, *, short: bool) -> float:
        """Return the limit with the slack of the form."""
        slack = self.slack if short else 1.0
        return self.limit * slack if self.at_most else self.limit / slack


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark's outcome. ``tiers`` says who served the bytes while it ran."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    bars: tuple[Bar, ...]
    missing: tuple[Missing, ...] = ()
    tiers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    took_s: float = 0.0
    load: float = 0.0

    def failures(self, *, short: bool) -> list[Bar]:
        return [bar for bar in self.bars if not bar.passed(short=short)]


@dataclass(slots=True)
class _Contender:
    name: str
    role: Role
    run: Callable[[], float | None]
    prepare: Callable[[], None] | None
    values: list[float] = field(default_factory=list)


class Race:
    """The contenders of one benchmark.

    ``amount`` is what one run handles: with ``per="op"`` values are µs an operation, with
    ``per="s"`` amount a second. ``unit`` names the value.
    """

    def __init__(self, name: str, *, amount: float, unit: str, per: Literal["op", "s"]) -> None:
        self.name = name
        self._amount = amount
        self._unit = unit
        self._per = per
        self._contenders: list[_Contender] = []
        self.missing: list[Missing] = []

    def add(
        self,
        name: str,
        role: Role,
        run: Callable[[], float | None],
        *,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """``run`` is timed, ``prepare`` before it is not. A ``run`` that returns a number has
        measured its seconds itself (a process of its own does)."""
        self._contenders.append(_Contender(name, role, run, prepare))

    def miss(self, name: str, why: str) -> None:
        """Note a rival that cannot run here: a report without it would flatter us."""
        self.missing.append(Missing(name=name, why=why))

    def run(self, rounds: int, *, warm_up: int = 1) -> None:
        """Run all in turns, every other round in reverse; the first ``warm_up`` do not count."""
        for number in range(-warm_up, rounds):
            turns = self._contenders if number % 2 == 0 else self._contenders[::-1]
            for contender in turns:
                seconds = self._time(contender)
                if number >= 0:
                    contender.values.append(self._value(seconds))

    def _time(self, contender: _Contender) -> float:
        if contender.prepare is not None:
            contender.prepare()
        factor = slow_factor(self.name) if contender.role == "ours" else 1.0
        gc.collect()
        gc.disable()
        try:
            started = time.perf_counter()
            own = contender.run()
            seconds = time.perf_counter() - started
        finally:
            gc.enable()
        return (seconds if own is None else own) * factor

    def _value(self, seconds: float) -> float:
        if self._per == "op":
            return seconds / self._amount * 1e6
        return self._amount / seconds

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(
            Figure(
                name=contender.name,
                role=contender.role,
                unit=self._unit,
                values=tuple(contender.values),
            )
            for contender in self._contenders
        )

    def median(self, name: str) -> float:
        return next(f.median for f in self.figures if f.name == name)

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the rounds of one figure by another's of the same round: what
        else the machine does in a round weighs on both."""
        values = {figure.name: figure.values for figure in self.figures}
        return statistics.median(
            one / another for one, another in zip(values[name], values[other], strict=True)
        )

    def ratio_to_best(self, name: str, others: tuple[str, ...]) -> float | None:
        """Return the lowest ratio of a rate to those of the others; None where none ran."""
        there = {figure.name for figure in self.figures}
        return min((self.ratio(name, other) for other in others if other in there), default=None)


def slow_factor(name: str) -> float:
    """Return by how much the environment asks to slow our contender of this benchmark down."""
    wanted, _, factor = os.environ.get(SLOW_VARIABLE, "").partition("=")
    return float(factor) if factor and wanted == name else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large: the full form measures, the short one guards."""

    short: bool
    hot_bytes: int
    hot_ops: int
    hot_rounds: int
    sequential_bytes: int
    large_count: int
    large_bytes: int
    small_count: int
    small_bytes: int
    names_count: int
    cold_rounds: int
    seconds: float
    starts: int


MIB = 1 << 20
FULL = Scale(
    short=False,
    hot_bytes=256 * MIB,
    hot_ops=20_000,
    hot_rounds=9,
    sequential_bytes=1024 * MIB,
    large_count=32,
    large_bytes=64 * MIB,
    small_count=20_000,
    small_bytes=64 * 1024,
    names_count=100_000,
    cold_rounds=5,
    seconds=2.0,
    starts=9,
)
SHORT = Scale(
    short=True,
    hot_bytes=64 * MIB,
    hot_ops=4_000,
    hot_rounds=7,
    sequential_bytes=128 * MIB,
    large_count=4,
    large_bytes=64 * MIB,
    small_count=2_000,
    small_bytes=64 * 1024,
    names_count=20_000,
    cold_rounds=3,
    seconds=0.7,
    starts=5,
)
