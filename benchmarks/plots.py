"""Plots of results: distance from the bound, latency, load, and what happened over time.

matplotlib comes with the extra ``bench`` and is imported where something is drawn, so that
whoever only measures does without. A contender has the same colour in every plot of a run. An SVG
takes its ink from the page around it (``currentColor``), light or dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmarks.findings import alike, contender, distances, farthest, readers, spread_out
from benchmarks.harness import Figure, Result, Series
from benchmarks.texts import number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Kind = Literal["bound", "latency", "load", "time"]

# Blues are ours and greys the bound; the rivals' are Okabe and Ito's, which people who cannot
# tell red from green tell apart. All are dark and light enough for either background.
OURS = ("#0072B2", "#56B4E9", "#3B5BDB", "#22A6B3", "#7C8CF8")
BOUNDS = ("#8A8A8A", "#A8A8A8", "#6F6F6F")
RIVALS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#A0522D", "#8E6BBF", "#B8A100", "#E0558A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#111213"  # becomes currentColor in an SVG
WIDTH = 7.5  # inches; with PNG_DPI as wide as a page of text
PNG_DPI = 100
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tiercache",  # the same data give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
SHADES = 15  # of 17 colours: 255 entries, as many as a palette holds
POINTS = 240  # of a line: more cannot be seen
DECADES = 5  # of the quantiles' axis: down to one operation in 100,000
LATENCY_PANELS = 3
ROW = 0.27  # inches of height for one workload in the chart of all
# The documentation quotes these, as far as they are there: (kind, how the workload's name begins).
QUOTED: tuple[tuple[Kind, str], ...] = (
    ("bound", ""),
    ("latency", "random-64k-hot"),
    ("load", "random-64k-cold"),
    ("time", "working-set"),
    ("time", "outage"),
)


class Look(NamedTuple):
    colour: str
    marker: str
    dashes: str
    width: float


class Plot(NamedTuple):
    """What can be drawn of results. ``name`` is that of its file, without the ending."""

    name: str
    kind: Kind
    title: str
    workload: str  # empty: of all
    results: tuple[Result, ...]


def wanted(results: Sequence[Result]) -> list[Plot]:
    """Return the plots that these results have the data for. Draws nothing."""
    found = []
    if any(distances(result) for result in results):
        title = "speed ÷ bound, all workloads"
        found.append(Plot("bound", "bound", title, "", tuple(results)))
    for result in results:
        kinds: tuple[tuple[Kind, str, bool], ...] = (
            ("latency", "latency", bool(_with_histogram(result))),
            ("load", "against the number of readers", bool(_lines(result))),
            ("time", "over time", bool(result.outcome.series)),
        )
        for kind, text, there in kinds:
            if there:
                title = f"{plain(result.title)}: {text}"
                found.append(Plot(f"{result.name}-{kind}", kind, title, result.name, (result,)))
    return found


def quoted(results: Sequence[Result]) -> list[Plot]:
    """Return the few plots that the documentation shows."""
    found = []
    there = wanted(results)
    for kind, name in QUOTED:
        fitting = [one for one in there if one.kind == kind and one.workload.startswith(name)]
        found += fitting[:1]
    return found


def looks(results: Sequence[Result]) -> dict[str, Look]:
    """Return how each contender of a run is drawn, by its name."""
    found: dict[str, Look] = {}
    counts = dict.fromkeys(("ours", "bound", "rival"), 0)
    for result in results:
        for figure in result.outcome.figures:
            name = contender(figure.name)
            if name in found:
                continue
            place = counts[figure.role]
            counts[figure.role] += 1
            marker = MARKERS[place % len(MARKERS)]
            if figure.role == "ours":
                found[name] = Look(OURS[place % len(OURS)], marker, "-", 2.2)
            elif figure.role == "bound":
                found[name] = Look(BOUNDS[place % len(BOUNDS)], marker, "--", 1.6)
            else:
                dashes = ("-", "-.", ":")[place // len(RIVALS) % 3]
                found[name] = Look(RIVALS[place % len(RIVALS)], marker, dashes, 1.4)
    return found


def png(plot: Plot, styles: dict[str, Look]) -> bytes:
    """Draw on white. Raises ImportError without matplotlib."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    with _canvas(plot, styles) as canvas:
        canvas.savefig(whole, format="png", dpi=PNG_DPI, facecolor="white")
    palette = Image.new("P", (1, 1))
    palette.putpalette(_shades())
    with Image.open(whole) as image:
        flat = image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
        flat.save(small, format="png", optimize=True)
    return small.getvalue()


def _shades() -> list[int]:
    """Return our colours, each from itself to white, as red, green, blue, red, …: what an
    anti-aliased plot on white consists of. A third of the bytes of one in full colour."""
    found = []
    for colour in (INK, *OURS, *BOUNDS, *RIVALS):
        whole = bytes.fromhex(colour[1:])
        for step in range(SHADES):
            white = step / (SHADES - 1)
            found += [round(part + (255 - part) * white) for part in whole]
    return found


def svg(plot: Plot, styles: dict[str, Look]) -> str:
    """Draw an element for a page: no prolog, no reference outwards, ids of its own."""
    with _canvas(plot, styles) as canvas:
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg ") :].replace(INK, "currentColor")
    # Ids are unique in a drawing but not among the drawings of a page.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{plot.name}-", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    label = plain(plot.title).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


@contextmanager
def _canvas(plot: Plot, styles: dict[str, Look]) -> Iterator[Canvas]:
    from matplotlib import rc_context

    draw: dict[Kind, Callable[[Plot, dict[str, Look]], Canvas]] = {
        "bound": _draw_bound,
        "latency": _draw_latency,
        "load": _draw_load,
        "time": _draw_time,
    }
    # matplotlib types these by key, of which a dictionary of settings cannot know.
    settings: Any = RC
    with rc_context(settings):
        yield draw[plot.kind](plot, styles)


def _new(panels: int, height: float, *, stacked: bool = False) -> tuple[Canvas, list[Axes]]:
    from matplotlib.figure import Figure as NewCanvas

    canvas = NewCanvas(figsize=(WIDTH, height), layout="constrained")
    shape = (panels, 1) if stacked else (1, panels)
    axes = canvas.subplots(*shape, squeeze=False, sharex=stacked, sharey=not stacked)
    return canvas, [one for row in axes for one in row]


def _legend(canvas: Canvas, axes: Sequence[Axes]) -> None:
    """Put one legend for all panels below them."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = 2 if max(map(len, handles), default=0) > 34 else 3
    canvas.legend(
        handles=list(handles.values()),
        labels=list(handles),
        loc="outside lower left",
        ncols=columns,
    )


# -- distance from the bound --------------------------------------------------------------------


def _draw_bound(plot: Plot, styles: dict[str, Look]) -> Canvas:
    """One row a workload: ours as a bar from the bound, left where it is slower."""
    rows = [found for result in plot.results if (found := farthest(result)) is not None]
    names = {contender(figure.name) for row in rows for figure, _ in row.rivals}
    canvas, (axes,) = _new(1, 1.3 + ROW * len(rows) + 0.17 * math.ceil(len(names) / 3))
    for place, row in enumerate(rows):
        share = row.best
        axes.barh(
            place, share - 1.0, left=1.0, height=0.62, color=OURS[0],
            label="tiercache" if place == 0 else None,
        )  # fmt: skip
        axes.annotate(
            f"{number(share)} ×", (1.0, place), xycoords=("axes fraction", "data"),
            xytext=(42, 0), textcoords="offset points", va="center", ha="right", color=OURS[0],
        )  # fmt: skip
        for figure, other in row.rivals:
            look = styles[contender(figure.name)]
            axes.plot(
                other, place, look.marker, color=look.colour, markersize=4.5, zorder=3,
                label=contender(figure.name), linestyle="none",
            )  # fmt: skip
    axes.axvline(1.0, color=BOUNDS[0], linewidth=1.6, linestyle="--", label="the bound")
    axes.set_xscale("log")
    axes.margins(x=0.1)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    # Within less than a decade, the places between its ends are all there is to read.
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high < 10 * low else "")
    axes.set_yticks(range(len(rows)), [_row_name(row.result, row.ours[0][0]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("speed ÷ bound: to the left of the line is slower than the bound")
    _legend(canvas, [axes])
    return canvas


def _row_name(result: Result, figure: Figure) -> str:
    several = len({readers(one) for one in result.outcome.figures if one.role == "ours"}) > 1
    return f"{result.name} × {readers(figure)}" if several else result.name


# -- latency ------------------------------------------------------------------------------------


def _with_histogram(result: Result) -> list[Figure]:
    return [
        figure
        for figure in result.outcome.figures
        if figure.sample and figure.sample.latency and figure.sample.latency.histogram
    ]


def quantiles(histogram: str) -> tuple[list[float], list[float]]:
    """Return latencies in µs and the share of operations that took at most so long, from an HDR
    histogram of nanoseconds in its compressed form."""
    from hdrh.histogram import HdrHistogram

    decoded = HdrHistogram.decode(histogram)
    total = decoded.get_total_count()
    latencies, shares, before = [], [], 0
    for entry in decoded.get_recorded_iterator():
        before += entry.count_added_in_this_iter_step
        latencies.append(entry.value_iterated_to / 1e3)
        shares.append(before / total)
    return latencies, shares


def nines(share: float) -> float:
    """Return where a share of the operations lies on the axis: 0, 0.9, 0.99 are 0, 1, 2."""
    return -math.log10(max(1.0 - share, 10.0**-DECADES))


def _draw_latency(plot: Plot, styles: dict[str, Look]) -> Canvas:
    (result,) = plot.results
    figures = _with_histogram(result)
    loads = spread_out((readers(figure) for figure in figures), LATENCY_PANELS)
    canvas, panels = _new(len(loads), 3.6)
    top = 1.0
    for axes, count in zip(panels, loads, strict=True):
        for figure in (one for one in figures if readers(one) == count):
            assert figure.sample is not None and figure.sample.latency is not None
            latencies, shares = quantiles(figure.sample.latency.histogram)
            x, y = _thinned(latencies, [nines(share) for share in shares])
            # One operation alone says nothing of the share of those slower than it.
            top = max(top, nines(1.0 - 1.0 / max(2, figure.sample.latency.count)))
            look = styles[contender(figure.name)]
            axes.plot(
                x, y, color=look.colour, linestyle=look.dashes, linewidth=look.width,
                label=contender(figure.name), drawstyle="steps-post",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: _microseconds(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("latency of one operation")
        if len(loads) > 1:
            axes.set_title(f"{count} reader{'s' if count > 1 else ''}")
    ticks = {"0": 0.0, "50 %": nines(0.5), "90 %": 1, "99 %": 2, "99.9 %": 3, "99.99 %": 4}
    shown = {text: place for text, place in ticks.items() if place <= top + 0.2}
    panels[0].set_yticks(list(shown.values()), list(shown))
    panels[0].set_ylim(0.0, min(top + 0.15, DECADES))
    panels[0].set_ylabel("operations that took no longer")
    _legend(canvas, panels)
    return canvas


def _microseconds(value: float) -> str:
    for factor, unit in ((1e6, "s"), (1e3, "ms")):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} µs"


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most POINTS points and the last one."""
    step = math.ceil(len(x) / POINTS)
    kept = [*range(0, len(x), step)]
    if kept and kept[-1] != len(x) - 1:
        kept.append(len(x) - 1)
    return [x[place] for place in kept], [y[place] for place in kept]


# -- load ---------------------------------------------------------------------------------------


def _lines(result: Result) -> dict[str, list[Figure]]:
    """Return the contenders that were measured with several numbers of readers."""
    found: dict[str, list[Figure]] = {}
    for figure in result.outcome.figures:
        found.setdefault(contender(figure.name), []).append(figure)
    return {
        name: sorted(figures, key=readers)
        for name, figures in found.items()
        if len({readers(figure) for figure in figures}) > 1 and alike(figures[0], figures[-1])
    }


def _draw_load(plot: Plot, styles: dict[str, Look]) -> Canvas:
    (result,) = plot.results
    lines = _lines(result)
    kinds = list(dict.fromkeys((line[0].unit, line[0].work) for line in lines.values()))
    canvas, panels = _new(len(kinds), 3.2)
    for axes, (unit, work) in zip(panels, kinds, strict=True):
        counts: set[int] = set()
        for name, figures in lines.items():
            if (figures[0].unit, figures[0].work) != (unit, work):
                continue
            look, x = styles[name], [readers(figure) for figure in figures]
            counts |= set(x)
            axes.plot(
                x, [figure.median for figure in figures], color=look.colour, marker=look.marker,
                markersize=4, linestyle=look.dashes, linewidth=look.width, label=name,
            )  # fmt: skip
            low, high = [one.low for one in figures], [one.high for one in figures]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
        axes.minorticks_off()
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.set_xlabel("readers at once (threads × processes)")
        axes.set_ylabel(f"{unit}, {work}" if work else unit)
    _legend(canvas, panels)
    return canvas


# -- over time ----------------------------------------------------------------------------------


def _draw_time(plot: Plot, styles: dict[str, Look]) -> Canvas:
    (result,) = plot.results
    series = result.outcome.series
    units = list(dict.fromkeys(one.unit for one in series))
    canvas, panels = _new(len(units), 0.9 + 1.9 * len(units), stacked=True)
    others = iter(RIVALS)
    own: dict[str, Look] = {}
    for one in series:
        if one.name not in styles and one.name not in own:
            colour = OURS[0] if not own else next(others, INK)
            own[one.name] = Look(colour, "", "-", 1.8)
    for axes, unit in zip(panels, units, strict=True):
        for one in (some for some in series if some.unit == unit):
            look = styles.get(one.name) or own[one.name]
            x, y = _thinned(one.x, one.y)
            axes.plot(
                x, y, color=look.colour, linestyle=look.dashes, linewidth=look.width,
                label=one.name,
            )  # fmt: skip
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    _mark(panels, series)
    panels[-1].set_xlabel("seconds")
    _legend(canvas, panels)
    return canvas


def _mark(panels: Sequence[Axes], series: Sequence[Series]) -> None:
    """Draw each event once through all panels, its text above the first."""
    marks = sorted({mark for one in series for mark in one.marks})
    for place, (second, text) in enumerate(marks):
        for axes in panels:
            axes.axvline(second, color=INK, linewidth=1.0, linestyle=":")
        panels[0].annotate(
            text, (second, 1.0), xycoords=("data", "axes fraction"),
            xytext=(2, 3 + 10 * (place % 2)), textcoords="offset points", fontsize=8,
        )  # fmt: skip
