"""Lines over time without a plotting library: an SVG file, and blocks for a terminal.

Pure functions of values; the same values give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

BLOCKS = "▁▂▃▄▅▆▇█"
# Okabe and Ito's, which people who cannot tell red from green tell apart, on either background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
WIDTH, PANEL_HEIGHT = 760, 130
LEFT, RIGHT, TOP, GAP, BOTTOM = 70, 16, 34, 34, 36
TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values at even steps; each panel of a plot holds one line."""

    name: str
    unit: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Lines that share their time: values are ``step_s`` apart, in the middle of their step.
    ``marks`` are events as (seconds, text)."""

    title: str
    step_s: float
    lines: tuple[Line, ...]
    marks: tuple[tuple[float, str], ...] = ()

    @property
    def seconds(self) -> float:
        return self.step_s * max((len(line.values) for line in self.lines), default=1)


def blocks(values: Sequence[float], most: float | None = None) -> str:
    """Return a character a value, as high as the value by the largest, or by ``most``."""
    top = max(values, default=0.0) if most is None else most
    if top <= 0:
        return BLOCKS[0] * len(values)
    last = len(BLOCKS) - 1
    return "".join(BLOCKS[min(last, max(0, round(value / top * last)))] for value in values)


def round_up(value: float) -> float:
    """Return 1, 2, 2.5, 4, 5 or 8 times a power of ten, not below the value: the end of an axis
    whose quarters are round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= value * 0.999)


def svg(plot: Plot) -> str:
    """Return an SVG that takes its ink from the page around it, light or dark."""
    height = TOP + len(plot.lines) * (PANEL_HEIGHT + GAP) + BOTTOM - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12" '
        'fill="currentColor" color="#555">',
        _text(LEFT, 18, plot.title, weight="bold"),
    ]
    for number, line in enumerate(plot.lines):
        top = TOP + number * (PANEL_HEIGHT + GAP) + 12
        parts += _panel(plot, line, top, COLOURS[number % len(COLOURS)])
    parts += _time_axis(plot, height - BOTTOM + 12)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(plot: Plot, at_s: float) -> float:
    return LEFT + at_s / plot.seconds * (WIDTH - LEFT - RIGHT)


def _panel(plot: Plot, line: Line, top: float, colour: str) -> Iterable[str]:
    most = round_up(max(line.values, default=0.0))
    high = PANEL_HEIGHT - 12
    yield _text(LEFT, top - 6, f"{line.name}, {line.unit}", fill=colour, weight="bold")
    for tick in range(TICKS + 1):
        value = most * tick / TICKS
        y = top + high * (1 - tick / TICKS)
        yield _stroke(LEFT, y, WIDTH - RIGHT, y, opacity=0.15)
        yield _text(LEFT - 6, y + 4, _tick(value), anchor="end")
    for at_s, text in plot.marks:
        yield _stroke(_x(plot, at_s), top, _x(plot, at_s), top + high, opacity=0.6, dashes="4 3")
        yield _text(_x(plot, at_s) + 4, top + 10, text)
    points = " ".join(
        f"{_x(plot, (number + 0.5) * plot.step_s):.1f},{top + high * (1 - value / most):.1f}"
        for number, value in enumerate(line.values)
    )
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _time_axis(plot: Plot, y: float) -> Iterable[str]:
    step = round_up(plot.seconds / 10)
    for number in range(int(plot.seconds / step + 1e-9) + 1):
        yield _text(_x(plot, number * step), y, f"{number * step:g}", anchor="middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, y + 16, "seconds", anchor="middle")


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "", fill: str = ""
) -> str:
    more = f' font-weight="{weight}"' if weight else ""
    more += f' fill="{fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _stroke(x1: float, y1: float, x2: float, y2: float, *, opacity: float, dashes: str = "") -> str:
    more = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="{opacity}"{more}/>'
    )
