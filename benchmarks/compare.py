"""``python -m benchmarks compare BEFORE.json AFTER.json``: what has become slower, if anything.

Two runs are never made in the same weather, so what is compared is not our time but our speed by
the bound's of the same rounds: a machine that was slower that day weighs on both. Something has
become worse where that share fell by more than the threshold *and* no round after was as good as
any round before. Exit status: 0, 1 where something became worse, 2 where the two cannot be
compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks import findings, results
from benchmarks.harness import Bar, Figure, Result
from benchmarks.results import Report, Surroundings
from benchmarks.texts import number
from tiercache.errors import ConfigError

THRESHOLD = 1.1  # a quiet machine repeats a share of the bound within some 5 %
# What makes two runs' absolute figures incomparable, and their shares of the bound doubtful.
MACHINE = ("processor", "cores", "memory_bytes", "kernel", "file_system", "python")

Verdict = Literal["same", "better", "worse", "within the spread"]


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one run: its median, and its speed ÷ the bound's over the rounds. Without a
    bound the shares are None."""

    median: float
    share: float | None
    low: float | None
    high: float | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One of our figures, or a bar's number, in both runs. ``factor`` is how many times as slow
    (or as large, of a number that should be small) it became: above 1 is worse, None without
    bound (it was nothing before)."""

    workload: str
    figure: str
    unit: str
    before: Share
    after: Share
    factor: float | None
    verdict: Verdict


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    changes: tuple[Change, ...]
    broken: tuple[str, ...]  # workloads that ran before and raise now
    gone: tuple[str, ...]  # workloads or figures that the second run does not have
    warnings: tuple[str, ...]

    @property
    def worse(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "worse"]


def compared(before: Report, after: Report, *, threshold: float = THRESHOLD) -> Comparison:
    """Compare two runs. ``threshold`` is a factor above 1."""
    later = {result.name: result for result in after.results}
    failed = {failed.name for failed in after.failed}
    changes: list[Change] = []
    gone: list[str] = []
    broken: list[str] = []
    for old in before.results:
        new = later.get(old.name)
        if new is None:
            (broken if old.name in failed else gone).append(old.name)
            continue
        changes += _changes(old, new, threshold)
        there = {one.label for one in new.outcome.figures}
        gone += [f"{old.name}: {one.label}" for one in _ours(old) if one.label not in there]
    return Comparison(
        changes=tuple(changes),
        broken=tuple(broken),
        gone=tuple(gone),
        warnings=tuple(_warnings(before.surroundings, after.surroundings)),
    )


def _ours(result: Result) -> list[Figure]:
    return [figure for figure in result.outcome.figures if figure.role == "ours"]


def _changes(old: Result, new: Result, threshold: float) -> Iterator[Change]:
    figures = {figure.label: figure for figure in _ours(new)}
    for figure in _ours(old):
        if figure.label in figures:
            yield _change(figure, old, figures[figure.label], new, threshold)
    bars = {bar.text: bar for bar in new.bars if not bar.ours}
    for bar in old.bars:
        if not bar.ours and bar.text in bars:
            yield _number_change(old.name, bar, bars[bar.text], threshold)


def _change(
    old: Figure, old_result: Result, new: Figure, new_result: Result, threshold: float
) -> Change:
    before, after = _share(old, old_result), _share(new, new_result)
    if before.share is not None and after.share is not None:
        factor = findings.quotient(before.share, after.share)
    elif old.higher_is_better:
        factor = findings.quotient(old.median, new.median)
    else:
        factor = findings.quotient(new.median, old.median)
    return Change(
        workload=old_result.name,
        figure=old.label,
        unit=old.unit,
        before=before,
        after=after,
        factor=None if math.isinf(factor) else factor,
        verdict=_verdict(factor, threshold, apart=_apart(before, after, old, new)),
    )


def _share(figure: Figure, result: Result) -> Share:
    bound = findings.bound_of(figure, result)
    if bound is None:
        return Share(median=figure.median, share=None, low=None, high=None)
    rounds = findings.speeds(figure, bound)
    return Share(
        median=figure.median,
        share=statistics.median(rounds),
        low=min(rounds),
        high=max(rounds),
    )


def _apart(before: Share, after: Share, old: Figure, new: Figure) -> bool:
    """Whether the rounds of the two runs do not overlap."""
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return new.low > old.high or new.high < old.low
    return after.low > before.high or after.high < before.low


def _verdict(factor: float, threshold: float, *, apart: bool) -> Verdict:
    if 1 / threshold <= factor <= threshold:
        return "same"
    if not apart:
        return "within the spread"
    return "worse" if factor > 1 else "better"


def _number_change(workload: str, old: Bar, new: Bar, threshold: float) -> Change:
    """Compare a number that a measure counted: it has no rounds, so no spread excuses it."""
    good, bad = (old.figure, new.figure) if old.at_most else (new.figure, old.figure)
    factor = findings.quotient(bad, good)
    return Change(
        workload=workload,
        figure=old.text,
        unit=old.unit,
        before=Share(median=old.figure, share=None, low=None, high=None),
        after=Share(median=new.figure, share=None, low=None, high=None),
        factor=None if math.isinf(factor) else factor,
        verdict=_verdict(factor, threshold, apart=True),
    )


def _warnings(before: Surroundings, after: Surroundings) -> Iterator[str]:
    if before.short != after.short:
        yield "one run is of the short form, the other of the full form: sizes differ"
    if before.seed != after.seed:
        yield f"the seeds differ ({before.seed}, {after.seed}): other data, other order"
    for name in MACHINE:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"not the same machine: {name.replace('_', ' ')} {old}, then {new}"
    for package in sorted(before.packages.keys() | after.packages.keys()):
        old = before.packages.get(package, "none")
        new = after.packages.get(package, "none")
        if old != new and package != "tiercache":
            yield f"another version of {package}: {old}, then {new}"


def text(comparison: Comparison) -> str:
    """Return a table for a terminal, the worst first, and what it says in the end."""
    head = ("workload", "figure", "before", "after", "÷ bound", "then", "slower by", "")
    ordered = sorted(comparison.changes, key=_factor, reverse=True)
    rows = [
        (
            change.workload,
            change.figure,
            f"{number(change.before.median)} {change.unit}".rstrip(),
            f"{number(change.after.median)} {change.unit}".rstrip(),
            "" if change.before.share is None else number(change.before.share),
            "" if change.after.share is None else number(change.after.share),
            "∞" if change.factor is None else f"{number(change.factor)} ×",
            change.verdict.upper() if change.verdict == "worse" else change.verdict,
        )
        for change in ordered
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    lines += [f"gone: {name}" for name in comparison.gone]
    lines += [f"REGRESSION {name}: it ran before and fails now" for name in comparison.broken]
    lines += [
        f"REGRESSION {change.workload}: {change.figure} was {_told(change.before)}, "
        f"is {_told(change.after)}"
        for change in comparison.worse
    ]
    if not comparison.worse and not comparison.broken:
        lines.append("Nothing became worse beyond the spread.")
    return "\n".join(lines)


def _factor(change: Change) -> float:
    return math.inf if change.factor is None else change.factor


def _told(share: Share) -> str:
    if share.share is None:
        return number(share.median)
    return f"{number(share.share)} × the bound's speed"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE.json")
    parser.add_argument("after", type=Path, metavar="AFTER.json")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="FACTOR",
        help="a smaller change is none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the comparison as JSON")
    options = parser.parse_args(arguments)
    if options.threshold < 1.0:
        parser.error("--threshold is a factor of at least 1")
    try:
        before, after = results.load(options.before), results.load(options.after)
    except (ConfigError, OSError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    comparison = compared(before, after, threshold=options.threshold)
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(comparison), indent=1).decode())
    else:
        print(text(comparison))
    return 1 if comparison.worse or comparison.broken else 0
