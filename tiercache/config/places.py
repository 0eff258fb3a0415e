"""Find the lines of a TOML text on which keys stand; ``tomllib`` does not tell them."""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*(.*?)\s*\]\]?\s*(?:#.*)?$")
_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")


def line_numbers(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every key and table header. Elements of arrays of
    tables are numbered from 0. Keys inside inline tables are not told apart."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    closing = ""  # the quotes that end the multi-line string we are in
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            if closing in line:
                closing = ""
            continue
        header = _HEADER.match(line)
        parts = _dotted(header[2] if header else line.partition("=")[0])
        if header and parts:
            table = _inside(parts, counts)
            if header[1] == "[[":
                index = counts.get(table, -1) + 1
                counts[table] = index
                table = (*table, index)
            found.setdefault(table, number)
        elif parts and "=" in line:
            for depth in range(1, len(parts) + 1):
                found.setdefault((*table, *parts[:depth]), number)
            closing = _opened(line.partition("=")[2])
    return found


def _dotted(text: str) -> tuple[str, ...]:
    """Return the parts of a key, or nothing where the text is not one."""
    parts: list[str] = []
    position = 0
    while True:
        part = _PART.match(text, position)
        if part is None:
            return ()
        parts.append(next(group for group in part.groups() if group is not None))
        position = part.end()
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            return ()
        position += 1


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
