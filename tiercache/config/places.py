"""Find the lines of a TOML text on which keys stand; ``tomllib`` does not tell them."""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")


def line_numbers(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every key and table header. Elements of arrays of
    tables are numbered from 0. Keys inside inline tables are not told apart."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    closing = ""  # the quotes that end the multi-line string we are in
    for number, line in enumerate(text.split("\n"), start=1):
        if closing:
            if closing in line:
                closing = ""
            continue
        opening, parts = _header(line)
        if parts:
            table = _inside(parts, counts)
            if opening == "[[":
                found.setdefault(table, number)
                index = counts.get(table, -1) + 1
                counts[table] = index
                table = (*table, index)
            found.setdefault(table, number)
            continue
        parts, end = _dotted(line, 0)
        if parts and line[end : end + 1] == "=":
            for depth in range(1, len(parts) + 1):
                found.setdefault((*table, *parts[:depth]), number)
            closing = _opened(line[end + 1 :])
    return found


def _header(line: str) -> tuple[str, tuple[str, ...]]:
    """Return how a table's header opens and the parts of its name; no parts where it is none."""
    text = line.strip()
    opening = "[[" if text.startswith("[[") else "["
    if not text.startswith("["):
        return opening, ()
    parts, end = _dotted(text, len(opening))
    closed = text.startswith("]" * len(opening), end)
    rest = text[end + len(opening) :].lstrip()
    return opening, parts if closed and (not rest or rest.startswith("#")) else ()


def _dotted(text: str, start: int) -> tuple[tuple[str, ...], int]:
    """Return the parts of a key that begins there, and where it ends; no parts where it is none."""
    parts: list[str] = []
    position = start
    while part := _PART.match(text, position):
        parts.append(next(group for group in part.groups() if group is not None))
        position = part.end()
        if text[position : position + 1] != ".":
            return tuple(parts), position
        position += 1
    return (), start


def _inside(parts: tuple[str, ...], counts: dict[Path, int]) -> Path:
    """Return the table a header names: below an array of tables it is the last one's."""
    table: Path = ()
    for position, part in enumerate(parts):
        table = (*table, part)
        if table in counts and position < len(parts) - 1:
            table = (*table, counts[table])
    return table


def _opened(value: str) -> str:
    for quotes in ('"""', "'''"):
        if value.count(quotes) % 2:
            return quotes
    return ""


def line_of(found: dict[Path, int], path: Path) -> int:
    """Return the line of a key, or of the nearest thing around it that has one; 1 at worst."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in found:
            return found[path[:depth]]
    return 1
