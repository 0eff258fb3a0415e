"""How values are written for people: numbers, bytes, bars."""

from __future__ import annotations

import math

from benchmarks.findings import MB
from benchmarks.harness import Bar, Figure


def number(value: float) -> str:
    """Return three significant digits, without an exponent."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if size >= 0.1:
        return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
    return _small(value)


def _small(value: float) -> str:
    """Return two significant digits of what is near zero."""
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"


def megabytes(count_bytes: float) -> str:
    return number(count_bytes / MB)


def dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${_small(value)}"


def sentence(text: str) -> str:
    """Return a note as a sentence: its first letter large, a full stop at its end."""
    whole = text[:1].upper() + text[1:]
    return whole if whole.endswith((".", "!", "?")) else f"{whole}."


def plain(title: str) -> str:
    """Return a title without its Markdown."""
    return title.replace("`", "")


def bar_text(bar: Bar, *, short: bool) -> str:
    sign = "≤" if bar.at_most else "≥"
    return f"{sign} {number(bar.limit_now(short=short))} {bar.unit}".rstrip()


def verdict(bar: Bar, *, short: bool) -> str:
    return "pass" if bar.passed(short=short) else "short of it"


def figure_text(figure: Figure) -> str:
    spread = f"{number(figure.low)}–{number(figure.high)}"
    return f"{figure.label}: {number(figure.median)} {figure.unit} ({spread})"
