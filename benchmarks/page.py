"""The page: one HTML file with every table and plot, which needs nothing from elsewhere.

Its colours follow the reader's light or dark setting; a click on a column's head sorts by it. All
text passes through ``tag``, which escapes it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import findings, plots, report
from benchmarks.findings import Per
from benchmarks.harness import Figure, Missing, Result, Sample
from benchmarks.results import Report
from benchmarks.texts import bar_text, dollars, megabytes, number, verdict

LONG_HEAD = 14  # characters; a longer one would be broken over many lines
VOID = frozenset({"meta", "br", "img"})
_CODE = re.compile(r"`([^`]+)`")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str) -> Html:
    """Return an element. Content that is not Html is escaped, as are all attributes; a trailing
    underscore keeps an attribute's name from being a keyword."""
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    ]
    opening = f"<{name}{''.join(words)}>"
    return Html(opening if name in VOID else f"{opening}{joined(content)}</{name}>")


def joined(content: Iterable[str]) -> Html:
    return Html(
        "".join(one if isinstance(one, Html) else html.escape(one, quote=False) for one in content)
    )


def inline(text: str) -> Html:
    """Return text with `code` marked as such."""
    parts = _CODE.split(text)
    return joined(tag("code", part) if place % 2 else part for place, part in enumerate(parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table that can be scrolled sideways and sorted. A cell is a ``td``, made by
    ``numeric`` for example, or text."""
    cells = [[one if isinstance(one, Html) else tag("td", one) for one in row] for row in rows]
    heads = [
        tag("th", name, scope="col", class_=_head_class(name, [row[place] for row in cells]))
        for place, name in enumerate(head)
    ]
    lines = (tag("tr", *row) for row in cells)
    whole = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    return tag("div", whole, class_="wide")


def _head_class(name: str, column: Sequence[Html]) -> str:
    numbers = any(' class="number"' in cell for cell in column)
    return " ".join(["number"] * numbers + ["long"] * (len(name) > LONG_HEAD))


def numeric(value: float | None, text: str | None = None) -> Html:
    """Return a cell with a number, sorted by its value; empty for None."""
    if value is None:
        return tag("td", class_="number")
    return tag("td", text or number(value), class_="number", data_value=repr(float(value)))


# -- the parts ----------------------------------------------------------------------------------


def bars(whole: Report) -> Html:
    short = whole.surroundings.short
    rows = [
        (
            tag("td", tag("a", inline(result.title), href=f"#{result.name}"), ": ", bar.text),
            tag("td", bar_text(bar, short=short), class_="number"),
            numeric(bar.figure, report.measured(bar, result)),
            tag("td", report.bound(bar, result)),
            tag("td", report.rival(bar, result)),
            tag(
                "td",
                verdict(bar, short=short),
                class_="pass" if bar.passed(short=short) else "missed",
            ),
        )
        for result in whole.results
        for bar in result.bars
    ]
    return table(("what", "bar", "measured", "bound", "best rival", "verdict"), rows)


def beats(whole: Report) -> Html:
    found = findings.beats(whole.results)
    if not found:
        return tag("p", report.beats_text(found))
    lines = (
        tag(
            "li",
            inline(report.beat_text(beat)),
            " ",
            tag("a", "its table", href=f"#{beat.result.name}"),
        )
        for beat in found
    )
    return tag("ul", *lines, class_="beats")


HEAD = (
    "contender", "role", "threads", "processes", "median", "unit", "lowest", "highest", "÷ bound",
    "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "max µs", "operations", "MB",
)  # fmt: skip


def contenders(result: Result, styles: dict[str, plots.Look]) -> Html:
    """Return the wide table: all that is known of each contender. Columns that would be empty
    are left out."""
    samples = [one.sample or Sample() for one in result.outcome.figures]
    unit = findings.per(result)
    tiers = _keys(sample.tiers for sample in samples)
    kinds = _keys(sample.cpu_s for sample in samples)
    memory = _keys(sample.rss_bytes for sample in samples)
    head = [
        *HEAD,
        *(report.tier_head(name) for name in tiers),
        *(f"CPU s per {unit.text}: {kind}" for kind in kinds),
        *(f"peak MB: {kind}" for kind in memory),
        f"$ per {unit.text}",
    ]
    rows = [
        [
            _name(figure, styles),
            *_speeds(figure, result),
            *_latencies(sample),
            numeric(sample.operations or None, f"{sample.operations:,}"),
            numeric(sample.bytes / 1e6 or None),
            *(_tier(name, sample.tiers.get(name)) for name in tiers),
            *(_cpu(sample, unit, kind) for kind in kinds),
            *(_megabytes(sample.rss_bytes.get(kind)) for kind in memory),
            _dollars(sample, unit),
        ]
        for figure, sample in zip(result.outcome.figures, samples, strict=True)
    ]
    filled = [place for place in range(len(head)) if any(row[place] != _EMPTY for row in rows)]
    body = [[row[place] for place in filled] for row in rows]
    return table([head[place] for place in filled], body)


_EMPTY = numeric(None)


def _keys(mappings: Iterable[dict[str, Any]]) -> list[str]:
    """Return the keys that some mapping has a count for, in order of appearance."""
    return list(dict.fromkeys(key for found in mappings for key, value in found.items() if value))


def _name(figure: Figure, styles: dict[str, plots.Look]) -> Html:
    colour = styles[findings.contender(figure.name)].colour
    spot = tag("span", class_="spot", style=f"background:{colour}")
    return tag("td", spot, figure.label, class_=figure.role)


def _speeds(figure: Figure, result: Result) -> list[Html]:
    bound = findings.bound_of(figure, result)
    return [
        tag("td", figure.role),
        _count(figure.threads, [one.threads for one in result.outcome.figures]),
        _count(figure.processes, [one.processes for one in result.outcome.figures]),
        numeric(figure.median),
        tag("td", figure.unit),
        numeric(figure.low),
        numeric(figure.high),
        numeric(None if bound is None else findings.ratio(figure, bound)),
    ]


def _count(count: int, all_counts: Sequence[int]) -> Html:
    """Return how many read at once; empty where nobody varies it."""
    return numeric(count, str(count)) if max(all_counts) > 1 else _EMPTY


def _latencies(sample: Sample) -> list[Html]:
    found = sample.latency
    if found is None:
        return [_EMPTY] * 5
    values = (found.p50_us, found.p90_us, found.p99_us, found.p999_us, found.max_us)
    return [numeric(value) for value in values]


def _tier(name: str, count: int | None) -> Html:
    if count is None:
        return _EMPTY
    return _megabytes(count) if report.is_bytes(name) else numeric(count, f"{count:,}")


def _megabytes(count: int | None) -> Html:
    return _EMPTY if count is None else numeric(count / 1e6, megabytes(count))


def _cpu(sample: Sample, unit: Per, kind: str) -> Html:
    amount = unit.amount(sample.operations, sample.bytes)
    return numeric(sample.cpu_s[kind] / amount if amount and kind in sample.cpu_s else None)


def _dollars(sample: Sample, unit: Per) -> Html:
    amount = unit.amount(sample.operations, sample.bytes)
    if sample.cost_dollars is None or not amount:
        return _EMPTY
    value = sample.cost_dollars / amount
    return numeric(value, dollars(value))


def _missing(missing: Sequence[Missing]) -> Html:
    lines = (tag("li", tag("strong", one.name), ": ", inline(one.why)) for one in missing)
    return joined([tag("p", "Not in this table:"), tag("ul", *lines)] if missing else [])


def section(
    result: Result, *, short: bool, styles: dict[str, plots.Look], drawn: Sequence[Html]
) -> Html:
    """Return one workload."""
    marks = [
        tag(
            "li",
            f"{bar.text}: {number(bar.figure)} {bar.unit}, bar {bar_text(bar, short=short)}: ",
            tag("strong", verdict(bar, short=short)),
            class_="pass" if bar.passed(short=short) else "missed",
        )
        for bar in result.bars
    ]
    return tag(
        "section",
        tag("h2", inline(result.title)),
        tag("p", tag("code", result.name), class_="quiet"),
        *(tag("p", inline(text)) for text in report.intro(result)),
        tag("ul", *marks, class_="bars") if marks else Html(),
        contenders(result, styles) if result.outcome.figures else Html(),
        _missing(result.outcome.missing),
        tag("div", *(tag("figure", one) for one in drawn), class_="plots") if drawn else Html(),
        *(tag("p", inline(text), class_="quiet") for text in report.facts(result)),
        id=result.name,
    )


def navigation(whole: Report) -> Html:
    short = whole.surroundings.short
    lines = []
    for result in whole.results:
        missed = bool(result.failures(short=short))
        state = "none" if not result.bars else "missed" if missed else "pass"
        link = tag("a", result.name, href=f"#{result.name}", class_=state)
        lines.append(tag("li", link))
    top = tag("li", tag("a", "overview", href="#overview"))
    return tag("nav", tag("ul", top, *lines), aria_label="workloads")


def page(whole: Report, drawn: dict[str, str]) -> str:
    """Return the page. ``drawn``: the plots' SVG elements by name; those left out are not shown."""
    short = whole.surroundings.short
    styles = plots.looks(whole.results)
    by_workload: dict[str, list[Html]] = {}
    for plot in plots.wanted(whole.results):
        if plot.name in drawn:
            by_workload.setdefault(plot.workload, []).append(Html(drawn[plot.name]))
    held = [bar.passed(short=short) for result in whole.results for bar in result.bars]
    overview = tag(
        "section",
        tag("h1", "tiercache, measured"),
        tag("p", inline(report.head(whole)), class_="quiet"),
        tag("p", f"{sum(held)} of {len(held)} bars hold."),
        *(tag("p", inline(text), class_="missed") for text in report.unfinished(whole)),
        tag("p", report.proxy(whole)),
        tag("h2", "Where a rival beats us"),
        beats(whole),
        tag("h2", "All bars"),
        bars(whole),
        *(tag("figure", one) for one in by_workload.get("", [])),
        id="overview",
    )
    sections = [
        section(one, short=short, styles=styles, drawn=by_workload.get(one.name, []))
        for one in whole.results
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "tiercache, measured"),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body", navigation(whole), tag("main", overview, *sections), tag("script", Html(SCRIPT))
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #5c6670; --ground: #fff;
  --raised: #f4f6f8; --line: #d8dee4; --good: #1a7f4b; --bad: #b3261e; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --quiet: #98a2ad; --ground: #12161b; --raised: #1b2128;
    --line: #303841; --good: #4cc38a; --bad: #ff8a80; --link: #7ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--ground); display: grid;
  grid-template-columns: 15rem minmax(0, 1fr);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1rem .5rem;
  background: var(--raised); border-right: 1px solid var(--line); font-size: 13px; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: .15rem .5rem; border-radius: 4px; color: var(--ink); }
nav a:hover { background: var(--line); text-decoration: none; }
nav a.pass::after { content: " ✓"; color: var(--good); }
nav a.missed::after { content: " ✗"; color: var(--bad); font-weight: bold; }
main { padding: 1rem 2rem 4rem; min-width: 0; }
section { max-width: 84rem; margin-bottom: 3.5rem; scroll-margin-top: 1rem; }
h1 { font-size: 1.7rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 1.6rem 0 .4rem; }
section + section { border-top: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
.quiet { color: var(--quiet); font-size: 13px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td { min-width: 4rem; }
th.long { min-width: 8.5rem; }
th.number { text-align: right; }
tbody tr:last-child td { border-bottom: 0; }
th { background: var(--raised); font-weight: 600; cursor: pointer; vertical-align: bottom; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.ours { font-weight: 600; }
td.ours, td.bound, td.rival { white-space: nowrap; position: sticky; left: 0;
  background: var(--ground); }
td.pass, li.pass strong { color: var(--good); }
td.missed, p.missed, li.missed strong { color: var(--bad); font-weight: 700; }
td.pass, td.missed { white-space: nowrap; }
.spot { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .5em; }
.bars, .beats { padding-left: 1.2rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: .8rem 0; width: 46rem; max-width: 100%; }
.plots figure { flex: 1 1 38rem; width: auto; max-width: 46rem; }
svg { width: 100%; height: auto; display: block; }
@media (max-width: 50rem) {
  body { display: block; }
  nav { position: static; height: auto; max-height: 11rem; border: 0; }
  main { padding: 1rem; } }
"""

# Sorts a table's rows by the column whose head was clicked, numbers by their value.
SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const numbers = typeof x === "number" && typeof y === "number";
      const order = numbers ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
"""
