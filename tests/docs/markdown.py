"""The project's markdown, taken apart: fenced blocks with their lines, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^(\s*)(`{3,})(\w*)\s*$")
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.*?)\s*-->")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``line`` is that of its first line of code, counted from 1; ``not_run`` is
    the reason of a ``<!-- not run: … -->`` on the line above the fence, else empty."""

    document: str
    line: int
    language: str
    code: str
    not_run: str


def documents() -> list[Path]:
    """Return all markdown of the repository that is meant for people."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        above = lines[number - 1] if number else ""
        reason = _NOT_RUN.search(above)
        start = number + 1
        end = next(i for i in range(start, len(lines)) if lines[i].strip() == fence[2])
        code = "\n".join(lines[start:end]) + "\n"
        found.append(Block(name_of(path), start + 1, fence[3], code, reason[1] if reason else ""))
        number = end + 1
    return found


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of all lines outside fenced blocks."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


def links(path: Path) -> list[tuple[int, str]]:
    """Return (line number, target) of all links."""
    return [(number, target) for number, line in prose(path) for target in _LINK.findall(line)]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, made as GitHub makes them."""
    found = set()
    for _, line in prose(path):
        if line.startswith("#"):
            title = line.lstrip("#").strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found
