"""docs/semantics.md: every promise names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}


def test_every_named_test_exists() -> None:
    named = set(NAMED.findall((ROOT / "docs" / "semantics.md").read_text()))
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if name not in known(file)]
    assert not missing


def known(file: str) -> set[str]:
    path = ROOT / "tests" / file
    return functions(path) if path.is_file() else set()


def test_every_row_of_a_promise_names_a_test() -> None:
    table = ""
    for line in (ROOT / "docs" / "semantics.md").read_text().splitlines():
        if line.startswith("|") and not table:
            table = line
        elif not line.startswith("|"):
            table = ""
        elif "shown by" in table and not line.startswith("|---"):
            assert NAMED.search(line), line
