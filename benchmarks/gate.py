"""The gate: the short form's bars, held to what was recorded before.

A promise (docs/benchmarks.md's bars) is kept or not; a regression is something else: a ratio that
was 1.05 and is 1.9 may still keep a promise of 2. So the gate holds each bar of the short form,
a ratio within one run, to its recorded baseline times the bar's slack, in place of its limit.
Baselines are medians of several short runs, in ``benchmarks/baselines.json``.

A neighbour can spoil a run for some seconds: a workload that fails is measured once more, and
the better of the two counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.harness import Bar, Result
from benchmarks.workload import Workload
from tiercache.errors import ConfigError

BASELINES = Path(__file__).parent / "baselines.json"
RECORD = "make bench-baselines"

Measuring = Callable[[Workload], Result]  # one workload, in the form that it has


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The median of ``runs``."""

    figure: float
    runs: tuple[float, ...]


class Baselines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By workload and by the bar's text. The first three say where and when, for the reader."""

    when: str = ""
    commit: str = ""
    machine: str = ""
    workloads: dict[str, dict[str, Baseline]] = {}


def load(path: Path = BASELINES) -> Baselines:
    """Raises ConfigError where the file is not there, or is not such a file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baselines)
    except FileNotFoundError as error:
        raise ConfigError("no baselines are recorded", path=str(path), remedy=RECORD) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(str(error), path=str(path), remedy=RECORD) from error


def save(baselines: Baselines, path: Path = BASELINES) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baselines), indent=1) + b"\n")


def recorded(
    runs: Sequence[Iterable[Result]], *, when: str = "", commit: str = "", machine: str = ""
) -> Baselines:
    """Return the medians of runs of the same workloads."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for result in run:
            bars = found.setdefault(result.name, {})
            for bar in result.bars:
                bars.setdefault(bar.text, []).append(bar.figure)
    return Baselines(
        when=when,
        commit=commit,
        machine=machine,
        workloads={
            name: {
                text: Baseline(figure=statistics.median(values), runs=tuple(values))
                for text, values in bars.items()
            }
            for name, bars in found.items()
        },
    )


def gaps(workloads: Mapping[str, Workload], baselines: Baselines) -> list[str]:
    """Return a line for what is gated and has no baseline, and for what has one and is gated no
    more."""
    gated = {
        (name, bar.text)
        for name, workload in workloads.items()
        if workload.in_gate()
        for bar in workload.shortened().bar
    }
    there = {(name, text) for name, bars in baselines.workloads.items() for text in bars}
    return [
        *(f"{name}: {text}: no baseline; {RECORD}" for name, text in sorted(gated - there)),
        *(
            f"{name}: {text}: a baseline of a bar that is gated no more; {RECORD}"
            for name, text in sorted(there - gated)
        ),
    ]


def held(result: Result, baselines: Baselines) -> Result:
    """Return the result with its bars' baselines for limits. Raises ConfigError for one that has
    none."""
    return msgspec.structs.replace(
        result, bars=tuple(_held(result.name, bar, baselines) for bar in result.bars)
    )


def _held(name: str, bar: Bar, baselines: Baselines) -> Bar:
    try:
        baseline = baselines.workloads[name][bar.text]
    except KeyError:
        raise ConfigError(f"{name}: {bar.text}: no baseline", remedy=RECORD) from None
    return msgspec.structs.replace(bar, limit=baseline.figure)


def excess(result: Result) -> float:
    """Return by what factor the worst bar of a held result is off its baseline, its slack
    counted: more than 1 is a regression."""
    return max((_excess(bar) for bar in result.bars), default=0.0)


def _excess(bar: Bar) -> float:
    allowed = bar.limit_now(short=True)
    above, below = (bar.figure, allowed) if bar.at_most else (allowed, bar.figure)
    if below:
        return above / below
    return math.inf if above else 0.0


def gated(measure: Measuring, workload: Workload, baselines: Baselines) -> Result:
    """Measure a workload in its short form, and once more where it fails; return the better
    result, held to its baselines, with a note on the other."""
    short = workload.shortened()
    first = held(measure(short), baselines)
    missing = {bar.text for bar in short.bar} - {bar.text for bar in first.bars}
    if missing:
        raise ConfigError(
            f"{workload.name}: {', '.join(sorted(missing))}: nothing to divide by was measured",
            remedy="bars of the gate need contenders that run everywhere",
        )
    if not first.failures(short=True):
        return first
    second = held(measure(short), baselines)
    better, other = (first, second) if excess(first) <= excess(second) else (second, first)
    note = f"measured twice, the better counts; the other: {_figures(other)}"
    outcome = msgspec.structs.replace(better.outcome, notes=(*better.outcome.notes, note))
    return msgspec.structs.replace(better, outcome=outcome)


def _figures(result: Result) -> str:
    return ", ".join(f"{bar.text} {bar.figure:.3g} {bar.unit}" for bar in result.bars)


def regressions(results: Iterable[Result]) -> list[str]:
    """Return a line for each bar of held results that is off its baseline by more than its
    slack."""
    return [
        f"REGRESSION {result.name}: {bar.text}: "
        f"before {bar.limit:.3g} {bar.unit}, now {bar.figure:.3g} {bar.unit}; "
        f"with a slack of {bar.slack:g} {'at most' if bar.at_most else 'at least'} "
        f"{bar.limit_now(short=True):.3g} is allowed. Profile it (docs/benchmarks.md says how), "
        f"or, where the change is worth it, {RECORD} and say why in the commit"
        for result in results
        for bar in result.failures(short=True)
    ]
