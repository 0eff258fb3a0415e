"""What results mean: which figures may be compared, how far ours is from the bound, who beats us.

Pure functions of results. The Markdown, the page, the plots and the comparison of two runs all
ask here, so that they cannot disagree.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.harness import Bar, Figure, Result, Role

# Where several numbers of readers are measured, a figure's name ends with that number.
_READERS = re.compile(r" × \d+$")
MB = 1e6
OPERATION_BYTES = 1 << 20  # from so many bytes an operation on, costs are told per GB


def readers(figure: Figure) -> int:
    return figure.threads * figure.processes


def spread_out(counts: Iterable[int], most: int) -> list[int]:
    """Return at most so many of the counts: the lowest, the highest, some evenly between."""
    found = sorted(set(counts))
    if len(found) <= most:
        return found
    step = (len(found) - 1) / (most - 1)
    return [found[round(place * step)] for place in range(most)]


def contender(name: str) -> str:
    """Return the contender that a figure is of: its name without the number of readers."""
    return _READERS.sub("", name)


def alike(one: Figure, other: Figure) -> bool:
    """Whether two figures tell of the same work in the same unit."""
    return one.unit == other.unit and one.work == other.work


def _same_load(one: Figure, other: Figure) -> bool:
    return (one.threads, one.processes) == (other.threads, other.processes)


def like(figure: Figure, figures: Iterable[Figure], role: Role) -> list[Figure]:
    """Return the figures of a role that this one may be compared with: those of the same work
    and load; where there are none, those of the same work (a tool has its own concurrency)."""
    found = [other for other in figures if other.role == role and alike(figure, other)]
    return [other for other in found if _same_load(figure, other)] or found


def bound_of(figure: Figure, result: Result) -> Figure | None:
    """Return the bound of a figure: the best of those that fit. A rival may be it, where the
    workload says so; it is a rival all the same."""
    figures = result.outcome.figures
    named = [one for one in figures if contender(one.name) in result.bound_by]
    return fastest(like(figure, figures, "bound") or like(figure, named, "rival"))


def ratio(one: Figure, other: Figure) -> float:
    """Return one ÷ other: the median of the rounds' ratios where both ran in the same rounds."""
    return statistics.median(ratios(one, other))


def ratios(one: Figure, other: Figure) -> list[float]:
    """Return one ÷ other round by round, or by the other's median where the rounds are not the
    same ones."""
    same = len(one.values) == len(other.values)
    others = other.values if same else (other.median,) * len(one.values)
    return [quotient(a, b) for a, b in zip(one.values, others, strict=True)]


def quotient(one: float, other: float) -> float:
    """Return one ÷ other; of nothing by nothing 1, of something by nothing infinity."""
    return one / other if other else 1.0 if not one else math.inf


def speed(one: Figure, other: Figure) -> float:
    """Return how many times as fast one is as the other, whatever the unit: above 1 is faster."""
    return statistics.median(speeds(one, other))


def speeds(one: Figure, other: Figure) -> list[float]:
    """Return the same for each round of one."""
    found = ratios(one, other)
    return found if one.higher_is_better else [quotient(1.0, value) for value in found]


def fastest(figures: Sequence[Figure]) -> Figure | None:
    if not figures:
        return None
    choose = max if figures[0].higher_is_better else min
    return choose(figures, key=lambda figure: figure.median)


def best_rival(figure: Figure, figures: Iterable[Figure]) -> Figure | None:
    return fastest(like(figure, figures, "rival"))


def subject(bar: Bar, result: Result) -> Figure | None:
    """Return the figure that a bar is about; None where it is about a number."""
    return next((one for one in result.outcome.figures if one.name == bar.ours), None)


class Beat(NamedTuple):
    """A rival that was faster than us in the same run."""

    result: Result
    ours: Figure
    rival: Figure
    factor: float  # above 1

    @property
    def within_spread(self) -> bool:
        """Whether some round of ours was as fast as some round of the rival's."""
        return self.ours.low <= self.rival.high and self.rival.low <= self.ours.high


def beats(results: Iterable[Result]) -> list[Beat]:
    """Return every rival that beats the best of ours of the same work and load, or one of ours
    that a bar sets against it; the clearest first."""
    found = [beat for result in results for beat in _beats_in(result)]
    return sorted(found, key=lambda beat: (beat.within_spread, -beat.factor))


def _beats_in(result: Result) -> Iterable[Beat]:
    figures = result.outcome.figures
    rivals = {figure.name: figure for figure in figures if figure.role == "rival"}
    pairs: dict[tuple[str, str], tuple[Figure, Figure]] = {}
    for rival in rivals.values():
        ours = fastest(like(rival, figures, "ours"))
        if ours is not None:
            pairs[ours.name, rival.name] = ours, rival
    for bar in result.bars:
        about = subject(bar, result)
        if about is not None and about.role == "ours":
            pairs |= {
                (about.name, name): (about, rivals[name]) for name in bar.against if name in rivals
            }
    for ours, rival in pairs.values():
        factor = speed(rival, ours)
        # Of few noisy rounds, the medians may say the opposite of their ratios: no finding then.
        if factor > 1.0 and fastest([ours, rival]) is rival:
            yield Beat(result, ours, rival, factor)


class Distance(NamedTuple):
    """How fast the figures of one work and load are, as a share of their bound's speed."""

    result: Result
    bound: Figure
    ours: tuple[tuple[Figure, float], ...]
    rivals: tuple[tuple[Figure, float], ...]

    @property
    def best(self) -> float:
        return max(share for _, share in self.ours)


def distances(result: Result) -> list[Distance]:
    """Return one for every work and load that we have a figure and a bound of."""
    groups: dict[tuple[str, str, int, int], list[Figure]] = {}
    for figure in result.outcome.figures:
        if figure.role == "ours":
            key = (figure.unit, figure.work, figure.threads, figure.processes)
            groups.setdefault(key, []).append(figure)
    found = []
    for ours in groups.values():
        bound = bound_of(ours[0], result)
        if bound is None:
            continue
        rivals = like(ours[0], result.outcome.figures, "rival")
        distance = Distance(result, bound, _shares(ours, bound), _shares(rivals, bound))
        if distance.ours:
            found.append(distance)
    return found


def _shares(figures: Iterable[Figure], bound: Figure) -> tuple[tuple[Figure, float], ...]:
    """Return what can be shown on an axis of ratios: nothing and infinity cannot."""
    found = ((figure, speed(figure, bound)) for figure in figures)
    return tuple((figure, share) for figure, share in found if 0 < share < math.inf)


def farthest(result: Result) -> Distance | None:
    """Return the work and load at which even the best of ours is farthest from the bound."""
    return min(distances(result), key=lambda one: one.best, default=None)


class Per(NamedTuple):
    """What costs are told by: GB read, or a million operations where these are small."""

    text: str
    of_bytes: bool

    def amount(self, operations: int, count_bytes: int) -> float:
        return count_bytes / 1e9 if self.of_bytes else operations / 1e6


def per(result: Result) -> Per:
    """Return what the costs of a workload are divided by, the same for all its contenders."""
    samples = [one.sample for one in result.outcome.figures if one.sample is not None]
    operations = sum(sample.operations for sample in samples)
    read = sum(sample.bytes for sample in samples)
    if not operations or read / operations >= OPERATION_BYTES:
        return Per("GB", of_bytes=True)
    return Per("10⁶ operations", of_bytes=False)
