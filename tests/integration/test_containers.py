"""Processes of several containers share a cache directory only where they share process numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiercache.metadata.lmdb_store import LmdbStore

# Each is process 1 of a PID namespace of its own, as the main process of a container is.
UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
READ = """
import sys
from tiercache.metadata.lmdb_store import LmdbReader
from tiercache.errors import Unsupported
try:
    reader = LmdbReader(sys.argv[1])
    print("read", reader.get(b"k"), flush=True)
except Unsupported as error:
    print("refused", error, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Path]:
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=10)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("PID namespaces cannot be made here")
    path = tmp_path / "index.lmdb"
    store = LmdbStore(path)
    store.commit({b"k": b"v"})
    yield path
    store.close()


def start(index: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*UNSHARE, sys.executable, "-c", READ, str(index)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_processes_of_one_number_are_told_so(index: Path) -> None:
    with start(index) as first, start(index) as second:
        said = sorted([first_line(first), first_line(second)])
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.close()
    assert said[0].startswith("read b'v'")
    assert "hostPID" in said[1], said
