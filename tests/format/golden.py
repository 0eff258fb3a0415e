"""Golden bytes: lines of a name and hex. A change of one of them is a new format version."""

from __future__ import annotations

from pathlib import Path


def golden(name: str) -> dict[str, bytes]:
    """Return the bytes by name of ``golden_<name>.txt`` beside this file."""
    text = (Path(__file__).parent / f"golden_{name}.txt").read_text(encoding="ascii")
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {key: bytes.fromhex(value) for key, value in lines}
