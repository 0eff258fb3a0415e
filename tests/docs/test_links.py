"""No link of the documents leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, anchors, documents, links, name_of

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:")


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_relative_links_resolve(path: Path) -> None:
    broken = []
    for number, target in links(path):
        if _REMOTE.match(target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or not there.is_relative_to(ROOT):
            broken.append(f"line {number}: {target}")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            broken.append(f"line {number}: {target} (no such heading)")
    assert broken == []


def test_decision_records_are_numbered_and_whole() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [int(record.name[:4]) for record in records]
    assert numbers == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text(encoding="utf-8")
        for part in ("Status:", "## Context", "## Options", "## Decision", "## Consequences"):
            assert part in text, f"{record.name} lacks {part}"
