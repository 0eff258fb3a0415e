"""put, rm, pin, unpin, evict, invalidate against a real server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = [pytest.mark.timeout(120), pytest.mark.emulator]


def test_put_files_directories_and_standard_input(own_cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.bin").write_bytes(os.urandom(5 << 20))
    (source / "deep" / "b.txt").write_bytes(b"deep")
    whole = own_cli("put", str(source), "/m/tree")
    assert whole.code == 0, whole.err
    assert own_cli("ls", "-R", "/m/tree").lines == ["a.bin", "deep/b.txt"]
    assert own_cli("cat", "/m/tree/a.bin").out == (source / "a.bin").read_bytes()
    assert own_cli("put", str(source / "a.bin"), "/m/dir/").code == 0
    assert own_cli("stat", "--json", "/m/dir/a.bin").json[0]["size_bytes"] == 5 << 20
    assert own_cli("put", "-", "/m/piped", given=b"piped" * 1000).code == 0
    assert own_cli("cat", "/m/piped").out == b"piped" * 1000
    assert own_cli("put", "-", "/m/dir/").code == 2
    assert own_cli("put", str(tmp_path / "no"), "/m/no").code == 3


def test_put_under_conditions(own_cli: Cli) -> None:
    assert own_cli("put", "--create", "-", "/m/x", given=b"one").code == 0
    refused = own_cli("put", "--create", "-", "/m/x", given=b"two")
    assert refused.code == 1
    assert "there already" in refused.err
    version = own_cli("stat", "--json", "/m/x").json[0]["version"]
    assert own_cli("put", "--if-version", version, "-", "/m/x", given=b"three").code == 0
    assert own_cli("put", "--if-version", version, "-", "/m/x", given=b"four").code == 1
    assert own_cli("cat", "/m/x").out == b"three"
    assert own_cli("put", "--create", "--if-version", "v", "-", "/m/x").code == 2


def test_rm(own_cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b", "c/d"):
        own_cli("put", "-", f"/m/{name}", given=b"x")
    refused = own_cli("rm", "/m/c")
    assert refused.code == 2
    assert "-r removes all below it" in refused.err
    planned = own_cli("rm", "-r", "-n", "/m/c", "/m/a")
    assert planned.lines == ["/m/c/d", "/m/a"]
    assert own_cli("cat", "/m/c/d").out == b"x"
    removed = own_cli("rm", "-r", "--json", "/m/c", "/m/a")
    assert [item["objects"] for item in removed.json] == [1, 1]
    assert own_cli("ls", "-R", "/m").lines == ["b"]
    mixed = own_cli("rm", "/m/b", "/m/nope")
    assert mixed.code == 1
    assert own_cli("rm", "/m/nope").code == 3


def test_residency(cli: Cli) -> None:
    cli("cat", "/m/big.bin", "/m/s/001.bin")
    assert cli("pin", "/m/s", "/m/big.bin", "--json").json == [
        {"path": "/m/s", "pinned": 1},
        {"path": "/m/big.bin", "pinned": 1},
    ]
    assert cli("status", "--json").json["pins"] == ["/m/big.bin", "/m/s"]
    assert cli("unpin", "/m/s").code == 0
    assert cli("unpin", "/m/s").code == 3
    assert cli("evict", "/m/big.bin", "--json").json == [
        {"path": "/m/big.bin", "evicted_bytes": 3 << 20}
    ]
    # Directories above mounts mean the mounts.
    assert cli("evict", "/", "--json").json == [{"path": "/", "evicted_bytes": 3000}]
    assert cli("invalidate", "/m", "--json").json[0]["names"] >= 2
    assert cli("evict", "/other").code == 3
