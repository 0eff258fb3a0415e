"""ls, stat, cat, get, du, find against a real server."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.conftest import BIG, SMALL, Cli

pytestmark = [pytest.mark.timeout(120), pytest.mark.emulator]


def test_listings(cli: Cli) -> None:
    assert cli("ls").lines == ["m/"]
    assert cli("ls", "/m").lines == ["big.bin", "s/"]
    assert cli("ls", "-R", "/m/s").lines == [f"{i:03}.bin" for i in range(20)]
    long = cli("ls", "-l", "-h", "/m").lines
    assert long[0].split()[:2] == ["3.0", "MiB"]
    document = cli("ls", "--json", "/m").json
    assert [(d["path"], d["kind"], d["size_bytes"]) for d in document] == [
        ("/m/big.bin", "file", len(BIG)),
        ("/m/s", "directory", 0),
    ]
    assert document[0]["version"]
    one = cli("ls", "--json", "/m/s/001.bin").json
    assert [d["path"] for d in one] == ["/m/s/001.bin"]


def test_origin_urls_of_a_mount_and_beyond(cli: Cli, bucket: str) -> None:
    assert cli("ls", f"s3://{bucket}").lines == ["data/"]
    assert cli("cat", f"s3://{bucket}/data/s/001.bin").out == SMALL["data/s/001.bin"]


def test_stat_and_what_some_missing_paths_mean(cli: Cli) -> None:
    ended = cli("stat", "--json", "/m/big.bin", "/m/nope", "/m")
    assert ended.code == 1
    assert ended.err == "tiercache: /m/nope: no such object or directory\n"
    file, directory = ended.json
    assert file["size_bytes"] == len(BIG)
    assert file["cached_bytes"] == 0
    assert file["age_s"] >= 0 and file["stale"] is False
    assert file["consistency"] == "eventual"
    assert abs(time.time() - datetime.fromisoformat(file["validated_at"]).timestamp()) < 60
    assert directory["kind"] == "directory"
    assert cli("stat", "/m/nope").code == 3
    assert "size      3145728 (3.0 MiB)" in cli("stat", "/m/big.bin").text


def test_cat_parts_and_many(cli: Cli) -> None:
    assert cli("cat", "/m/big.bin").out == BIG
    part = cli("cat", "/m/big.bin", "--offset", "100", "--length", "200000")
    assert part.out == BIG[100:200100]
    both = cli("cat", "/m/s/001.bin", "/m/s/002.bin")
    assert both.out == SMALL["data/s/001.bin"] + SMALL["data/s/002.bin"]
    directory = cli("cat", "/m/s")
    assert directory.code == 2
    assert "is a directory" in directory.err


def test_a_reader_that_goes_away_ends_cat_quietly(cli: Cli) -> None:
    process = cli.start("cat", *["/m/big.bin"] * 20)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10) == BIG[:10]
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_get_one_and_all_and_only_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out"
    first = cli("get", "/m", str(target))
    assert first.code == 0, first.err
    assert (target / "big.bin").read_bytes() == BIG
    assert len(list((target / "s").iterdir())) == 20
    assert "21 copied" in first.err
    (target / "s/003.bin").unlink()
    os.utime(target / "s/004.bin", (1, 1))
    again = cli("get", "/m", str(target), "--progress", "plain")
    assert "2 copied, 19 there already" in again.err
    assert (target / "s/003.bin").read_bytes() == SMALL["data/s/003.bin"]
    assert cli("get", "/m/s/001.bin", "-").out == SMALL["data/s/001.bin"]
    assert cli("get", "/m/s/001.bin", str(target) + "/").code == 0
    assert (target / "001.bin").read_bytes() == SMALL["data/s/001.bin"]
    assert not list(target.rglob("*.part"))


def test_get_of_nothing(cli: Cli, tmp_path: Path) -> None:
    ended = cli("get", "/m/nope", str(tmp_path / "nope"))
    assert ended.code == 3
    assert not (tmp_path / "nope").exists()


def test_du_counts_bytes_objects_and_what_is_cached(cli: Cli) -> None:
    cli("cat", "/m/s/001.bin")
    rows = cli("du", "--json", "/m").json
    assert rows == [
        {"path": "/m/s", "size_bytes": 60000, "objects": 20, "cached_bytes": 3000},
        {"path": "/m", "size_bytes": 60000 + len(BIG), "objects": 21, "cached_bytes": 3000},
    ]
    summed = cli("du", "-s", "-h", "/m").lines
    assert len(summed) == 2
    assert summed[1].split() == ["3.1", "MiB", "21", "2.9", "KiB", "/m"]


def test_find(cli: Cli) -> None:
    found = cli("find", "/m", "--name", "00[12].bin", "--name", "big*").lines
    assert found == ["/m/big.bin", "/m/s/001.bin", "/m/s/002.bin"]
    assert cli("find", "/m", "--type", "d").lines == ["/m/s"]
    assert cli("find", "/m", "--size", "+1M").lines == ["/m/big.bin"]
    assert len(cli("find", "/m", "--size", "3000", "--exclude", "*0.bin").lines) == 18
    assert cli("find", "/m", "--size", "+1parsec").code == 2
    assert cli("find", "/m", "--type", "d", "--json").json[0]["kind"] == "directory"


def test_options_before_and_after_the_command(cli: Cli, tmp_path: Path) -> None:
    shown = [
        cli("--cache-dir", str(tmp_path / "other"), "config", "show").text,
        cli("config", "--cache-dir", str(tmp_path / "other"), "show").text,
        cli("config", "show", "--cache-dir", str(tmp_path / "other")).text,
    ]
    assert len(set(shown)) == 1
    assert f'dir = "{tmp_path / "other"}"' in shown[0]
    no_file = cli("--config", str(tmp_path / "no.toml"), "config", "check")
    assert no_file.code == 4
    assert no_file.err.count("\n") == 1


def test_an_origin_that_is_down(cli: Cli, make_cli: object, tmp_path: Path) -> None:
    text = cli.config.read_text()
    start = text.index('endpoint = "') + len('endpoint = "')
    down = text[:start] + "http://127.0.0.1:1" + text[text.index('"', start) :]
    assert callable(make_cli)
    lost: Cli = make_cli(down.replace(str(tmp_path / "cache"), str(tmp_path / "lost")))
    ended = lost("ls", "/m")
    assert ended.code == 5, ended.err
    assert ended.err.startswith("tiercache: ")
    assert ended.err.count("\n") == 1
    mounts = lost("mount", "--json")
    assert mounts.code == 5
    assert mounts.json[0]["reachable"] is False
    doctor = lost("doctor", "--json")
    assert doctor.code == 5
    assert [f["what"] for f in doctor.json if f["level"] == "fail"] == ["origin of /m"]


def test_help_is_fast(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    import sys
    import time

    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tiercache", "--help"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        times.append(time.perf_counter() - started)
    with capsys.disabled():
        print(f" tiercache --help: {min(times) * 1000:.0f} ms (bar: 150 ms) ", end="")


def test_help_imports_no_engine_and_no_rich() -> None:
    import sys

    script = (
        "import sys; from tiercache.cli.program import run; run(['--help']); "
        "print([m for m in ('rich', 'msgspec', 'asyncio', 'tiercache.namespace', "
        "'tiercache.cli.names') if m in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, timeout=60
    )
    assert ended.stderr.strip() == b"[]"
