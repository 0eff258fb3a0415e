"""A configuration of nothing but what a test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiercache.config.loading import LoadedConfig, load


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without any configuration."""
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}


def load_text(text: str, tmp_path: Path, environ: dict[str, str]) -> LoadedConfig:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load(file, environ=environ)
