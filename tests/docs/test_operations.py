"""docs/operations.md names every key of the status document and every metric, and no other."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import tiercache
from tests.docs.markdown import ROOT
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MetadataSettings,
    MountSettings,
    QosSettings,
    Settings,
    TotalBytes,
)
from tiercache.units import MIB

DOCUMENT = ROOT / "docs" / "operations.md"
POLICY = 'version = 1\n[[backend]]\norigin = "file://"\nget = 1000\n'
# Keys below which the names are the user's, not ours.
NAMED_BY_USERS = {"reads"}


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a document: lists as ``[]``, users' names as ``*``."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            part = "*" if path in NAMED_BY_USERS else str(name)
            yield from keys_of(inside, f"{path}.{part}" if path else part)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for inside in value:
            yield from keys_of(inside, f"{path}[]")
    elif isinstance(value, list) and "[]" not in path:
        yield f"{path}[]"
    else:
        yield path


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Return the keys of a real status document, and the names of its metrics."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "origin").mkdir()
    (folder / "origin" / "large.bin").write_bytes(b"x" * 3 * MIB)
    (folder / "origin" / "small.bin").write_bytes(b"x" * 3000)
    (folder / "qos.toml").write_text(POLICY)
    settings = Settings(
        cache=CacheSettings(dir=str(folder / "cache"), limit=TotalBytes(512 * MIB)),
        mounts=(MountSettings(path="/data", origin=f"file://{folder}/origin"),),
        agent=AgentSettings(metrics_address=free_address()),
        metadata=MetadataSettings(url=f"lmdb:{folder}/metadata"),
        qos=QosSettings(policy=str(folder / "qos.toml")),
    )
    with tiercache.connect(settings, embedded=True) as ns:
        ns.prefetch("/data", pin=True).wait(30)
        ns.read("/data/large.bin", 0, 1000)
        keys = set(keys_of(ns.status()))
        with urllib.request.urlopen(f"http://{settings.agent.metrics_address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    names = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    return keys, {name for name in names if not name.endswith("_created")}


def documented_keys() -> set[str]:
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## The status document")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def documented_metrics() -> set[str]:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.split("## Metrics")[1].split("Alerts worth having")[0]
    return set(re.findall(r"`(tiercache_\w+)`", table))


def test_every_status_key_is_documented(seen: tuple[set[str], set[str]]) -> None:
    assert seen[0] - documented_keys() == set()


def test_every_documented_status_key_exists(seen: tuple[set[str], set[str]]) -> None:
    assert documented_keys() - seen[0] == set()


def test_metrics_and_document_agree(seen: tuple[set[str], set[str]]) -> None:
    assert seen[1] == documented_metrics()
