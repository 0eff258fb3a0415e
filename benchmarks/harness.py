"""Races: contenders measured in turns, medians of several rounds, bars and what they decide.

A machine is never quiet, so contenders take turns within one run and are compared round by round:
a bar's ratio is the median of the rounds' ratios. Absolute times of different runs say little.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import msgspec

from benchmarks.workload import BarSpec

Role = Literal["ours", "bound", "rival"]
Encoded = bytes  # where a field is called bytes, the type cannot be


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of single operations, in µs. ``histogram`` is an HDR histogram of nanoseconds in its
    standard compressed form (base64), from which a report draws the whole distribution."""

    count: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    histogram: str = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one contender's counted rounds took, all together.

    ``cpu_s`` and ``rss_bytes`` (the peak) are by kind of process: reader, agent, server, proxy,
    tool. ``tiers``: bytes by what served them and requests by kind, see ``benchmarks.sampler``.
    ``cost_dollars`` is what the origin's requests and bytes would have cost; None: no origin.
    """

    operations: int = 0
    bytes: int = 0
    seconds: float = 0.0
    latency: Latency | None = None
    cpu_s: dict[str, float] = {}
    rss_bytes: dict[str, int] = {}
    tiers: dict[str, int] = {}
    cost_dollars: float | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What one contender reached: one value a round, in ``unit``. ``threads`` and ``processes``
    tell how many read at once. Figures of one workload that do different things (a read, a read
    into a buffer) say so in ``work``; a report compares those of equal work."""

    name: str
    role: Role
    unit: str
    values: tuple[float, ...]
    higher_is_better: bool = False
    threads: int = 1
    processes: int = 1
    work: str = ""
    sample: Sample | None = None

    @property
    def label(self) -> str:
        """Its name, and its work where it says so: no two of a workload have the same."""
        return f"{self.name}, {self.work}" if self.work else self.name

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
    """A rival that could not run, or cannot do such a thing, and why."""

    name: str
    why: str


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Values over time, for a plot: ``x`` in seconds. ``marks``: events as (seconds, text)."""

    name: str
    unit: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    marks: tuple[tuple[float, str], ...] = ()


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A promise: ``figure`` is at most (or at least) ``limit``. ``slack`` is the factor that the
    gate, on a small and loaded machine, allows on top. ``ours`` names the figure that it is
    about, ``against`` those that it was divided by; both are empty where it is about a number."""

    text: str
    figure: float
    limit: float
    unit: str = "×"
    at_most: bool = True
    slack: float = 1.25
    ours: str = ""
    against: tuple[str, ...] = ()

    def passed(self, *, short: bool = False) -> bool:
        if self.at_most:
            return self.figure <= self.limit_now(short=short)
        return self.figure >= self.limit_now(short=short)

    def limit_now(self, *, short: bool) -> float:
        """Return the limit with the slack of the form."""
        slack = self.slack if short else 1.0
        return self.limit * slack if self.at_most else self.limit / slack


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a measure returns. ``numbers`` are what its bars may name besides figures."""

    figures: tuple[Figure, ...] = ()
    missing: tuple[Missing, ...] = ()
    numbers: dict[str, float] = {}
    tiers: dict[str, int] = {}  # of all our rounds; a figure's sample has its own
    sizes: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's outcome, judged."""

    name: str
    title: str
    outcome: Outcome
    bars: tuple[Bar, ...]
    why: str = ""
    bound: str = ""
    bound_by: tuple[str, ...] = ()
    state: str = ""
    network: str = ""
    took_s: float = 0.0
    load: float = 0.0
    commit: str = ""  # of what was measured

    def failures(self, *, short: bool) -> list[Bar]:
        return [bar for bar in self.bars if not bar.passed(short=short)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run has measured itself, in processes of its own for example. ``histogram`` is an
    encoded HDR histogram of nanoseconds; ``device_read_bytes`` are what these processes, which
    may have ended, read from block devices."""

    seconds: float
    operations: int = 0
    bytes: int = 0
    histogram: Encoded = b""
    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_bytes: dict[str, int] = field(default_factory=dict)
    device_read_bytes: int = 0


class CannotRun(Exception):
    """A rival that turns out, in the middle of a race, to fail at what it was asked. The message
    says how."""


class Sampling(Protocol):
    """Watches one contender: see ``benchmarks.sampler``."""

    def begin(self) -> None: ...
    def end(self, measured: Measured) -> None: ...
    def sample(self) -> Sample: ...


@dataclass(slots=True, kw_only=True)
class _Contender:
    name: str
    role: Role
    run: Callable[[], float | Measured | None]
    prepare: Callable[[], None] | None
    amount: float
    bytes: int
    threads: int
    processes: int
    work: str
    sampler: Sampling | None
    values: list[float] = field(default_factory=list)


class Race:
    """The contenders of one workload, or of one point of it.

    ``amount`` is what one run handles: with ``per="op"`` values are µs an operation, with
    ``per="s"`` amount a second. ``unit`` names the value. Where a run returns what it measured,
    its operations are the amount, or with ``counts="MB"`` its bytes in 10⁶. ``bytes`` are what
    readers are given in one run that does not measure that itself; 0: not known. ``sampler`` makes
    what watches one contender; its own work is outside the timed part.
    """

    def __init__(
        self,
        *,
        amount: float = 1.0,
        bytes: int = 0,
        unit: str,
        per: Literal["op", "s"],
        counts: Literal["operations", "MB"] = "operations",
        sampler: Callable[[], Sampling] | None = None,
    ) -> None:
        self._amount = amount
        self._bytes = bytes
        self._counts = counts
        self._unit = unit
        self._per = per
        self._sampler = sampler
        self._contenders: list[_Contender] = []
        self.missing: list[Missing] = []

    def add(
        self,
        name: str,
        role: Role,
        run: Callable[[], float | Measured | None],
        *,
        prepare: Callable[[], None] | None = None,
        amount: float | None = None,
        bytes: int | None = None,
        threads: int = 1,
        processes: int = 1,
        work: str = "",
        sampler: Callable[[], Sampling] | None = None,
    ) -> None:
        """``run`` is timed, ``prepare`` before it is not. A ``run`` that returns a number, or
        what it measured, has taken its seconds itself (a process of its own does); where it also
        counted operations, those are the amount. ``sampler`` goes before the race's."""
        make = sampler or self._sampler
        self._contenders.append(
            _Contender(
                name=name,
                role=role,
                run=run,
                prepare=prepare,
                amount=self._amount if amount is None else amount,
                bytes=self._bytes if bytes is None else bytes,
                threads=threads,
                processes=processes,
                work=work,
                sampler=None if make is None else make(),
            )
        )

    def miss(self, name: str, why: str) -> None:
        """Note a rival that cannot run here: a report without it would flatter us."""
        self.missing.append(Missing(name=name, why=why))

    def run(self, rounds: int, *, warm_up: int = 1) -> None:
        """Run all in turns, every other round in reverse; the first ``warm_up`` do not count.
        Who raises CannotRun leaves the race and is missing."""
        for number in range(-warm_up, rounds):
            turns = self._contenders[:: 1 if number % 2 == 0 else -1]
            for contender in turns:
                try:
                    measured = self._measure(contender, counts=number >= 0)
                except CannotRun as error:
                    self._contenders.remove(contender)
                    self.miss(contender.name, str(error))
                    continue
                if number >= 0:
                    contender.values.append(self._value(contender, measured))

    def _measure(self, contender: _Contender, *, counts: bool) -> Measured:
        if contender.prepare is not None:
            contender.prepare()
        sampler = contender.sampler if counts else None
        gc.collect()
        gc.disable()
        try:
            if sampler is not None:
                sampler.begin()
            started = time.perf_counter()
            own = contender.run()
            seconds = time.perf_counter() - started
        finally:
            gc.enable()
        measured = (
            own if isinstance(own, Measured) else Measured(seconds=seconds if own is None else own)
        )
        if sampler is not None:
            sampler.end(self._completed(contender, measured))
        return measured

    def _completed(self, contender: _Contender, measured: Measured) -> Measured:
        """Return it with what the run did not count itself but was known before."""
        known = int(contender.amount) if self._per == "op" else 0
        return replace(
            measured,
            operations=measured.operations or known,
            bytes=measured.bytes or contender.bytes,
        )

    def _value(self, contender: _Contender, measured: Measured) -> float:
        counted = measured.bytes / 1e6 if self._counts == "MB" else measured.operations
        if self._per == "op":
            return measured.seconds / (counted or contender.amount) * 1e6
        return (counted or contender.amount) / measured.seconds

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(
            Figure(
                name=one.name,
                role=one.role,
                unit=self._unit,
                values=tuple(one.values),
                higher_is_better=self._per == "s",
                threads=one.threads,
                processes=one.processes,
                work=one.work,
                sample=None if one.sampler is None else one.sampler.sample(),
            )
            for one in self._contenders
        )

    def median(self, name: str) -> float:
        return next(f.median for f in self.figures if f.name == name)

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the rounds of one figure by another's of the same round."""
        figures = {figure.name: figure for figure in self.figures}
        return ratio(figures[name], figures[other])


def ratio(one: Figure, other: Figure) -> float:
    """Return the median over the rounds of one figure by another's of the same round: what else
    the machine does in a round weighs on both. The rounds must be the same ones."""
    return statistics.median(a / b for a, b in zip(one.values, other.values, strict=True))


def judged(specs: Sequence[BarSpec], outcome: Outcome) -> tuple[Bar, ...]:
    """Return the bars of an outcome. Raises ValueError where one names what is not there."""
    found = (_judged(spec, outcome) for spec in specs)
    return tuple(bar for bar in found if bar is not None)


def _judged(spec: BarSpec, outcome: Outcome) -> Bar | None:
    figures = {figure.name: figure for figure in outcome.figures}
    at_most = spec.at_most is not None
    if spec.number:
        if spec.number not in outcome.numbers:
            raise ValueError(f"bar {spec.text!r}: the measure returned no {spec.number!r}")
        value = outcome.numbers[spec.number]
    elif spec.ours not in figures:
        raise ValueError(f"bar {spec.text!r}: no figure {spec.ours!r} among {list(figures)}")
    elif not spec.against:
        value = figures[spec.ours].median
    else:
        there = [figures[name] for name in spec.against if name in figures]
        if not there:
            return None
        worst = max if at_most else min
        value = worst(ratio(figures[spec.ours], other) for other in there)
    limit = spec.at_most if spec.at_most is not None else spec.at_least
    assert limit is not None
    return Bar(
        text=spec.text,
        figure=value,
        limit=limit,
        unit=spec.unit,
        at_most=at_most,
        slack=spec.slack,
        ours=spec.ours,
        against=tuple(name for name in spec.against if name in figures),
    )
