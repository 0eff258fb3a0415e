"""snapshot create, ls, show, diff, verify, rm, export and prefetch of one, as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import BIG, SMALL, Cli
from tiercache.cli.program import run

pytestmark = [pytest.mark.timeout(180), pytest.mark.emulator]


def test_make_show_read_and_forget(cli: Cli) -> None:
    plan = cli("snapshot", "create", "v1", "/m", "--dry-run")
    assert plan.code == 0 and "21" in plan.text
    assert cli("snapshot", "ls", "--json").json == []
    made = cli("snapshot", "create", "v1", "/m", "--checksums", "--json")
    assert made.code == 0, made.err
    assert (made.json["objects"], made.json["size_bytes"]) == (21, 60_000 + len(BIG))
    assert made.json["checksums"] is True
    again = cli("snapshot", "create", "v1", "/m")
    assert again.code == 1 and "--replace" in again.err
    assert cli("snapshot", "create", "v1", "/m/s", "--replace", "--checksums").code == 0
    (listed,) = cli("snapshot", "ls", "--json").json
    assert (listed["name"], listed["objects"], listed["paths"]) == ("v1", 20, ["/m/s"])
    assert "v1" in cli("snapshot", "ls").text
    shown = cli("snapshot", "show", "v1")
    assert shown.code == 0 and "objects    20" in shown.text
    objects = cli("snapshot", "show", "v1", "--objects", "--json").json
    assert [one["path"] for one in objects] == [f"/m/s/{i:03}.bin" for i in range(20)]
    assert all(one["crc32c"] is not None and one["version"] for one in objects)
    assert len(cli("snapshot", "show", "v1", "--objects").lines) == 20
    verified = cli("snapshot", "verify", "v1", "--json")
    assert (verified.code, verified.json["checked"], verified.json["failed"]) == (0, 20, 0)
    assert cli("cat", "/v1@snapshot/m/s/003.bin").out == SMALL["data/s/003.bin"]
    assert cli("ls", "v1@snapshot/m/s").lines == [f"{i:03}.bin" for i in range(20)]
    assert cli("du", "-s", "--json", "/v1@snapshot").json[0]["size_bytes"] == 60_000
    assert cli("rm", "/v1@snapshot/m/s/003.bin").code != 0
    fetched = cli("prefetch", "v1@snapshot", "--pin", "--json").json
    assert (fetched["state"], fetched["hit"]) == ("done", 20)
    assert cli("status", "--json").json["pins"] == ["/m/s"]
    assert cli("snapshot", "rm", "v1").code == 0
    for command in (("rm", "v1"), ("show", "v1"), ("verify", "v1"), ("diff", "v1", "live")):
        assert cli("snapshot", *command).code == 3, command


def test_show_sums_by_directory(own_cli: Cli) -> None:
    for key in ("a/1", "a/b/2", "c/3", "d"):
        assert own_cli("put", "-", f"/m/{key}", given=key.encode()).code == 0
    assert own_cli("snapshot", "create", "v1", "/m").code == 0
    found = own_cli("snapshot", "show", "v1", "--json").json["directories"]
    assert [(one["path"], one["objects"], one["size_bytes"]) for one in found] == [
        ("/m/a/", 2, 8),
        ("/m/c/", 1, 3),
        ("/m/", 1, 1),
    ]


def test_differences_and_failures_have_their_codes(own_cli: Cli, tmp_path: Path) -> None:
    for key in ("x", "y"):
        assert own_cli("put", "-", f"/m/{key}", given=b"first").code == 0
    assert own_cli("snapshot", "create", "a", "/m", "--checksums").code == 0
    assert own_cli("snapshot", "create", "plain", "/m").code == 0
    assert own_cli("snapshot", "diff", "a", "live").code == 0
    assert own_cli("put", "-", "/m/y", given=b"second").code == 0
    assert own_cli("put", "-", "/m/z", given=b"third").code == 0
    differ = own_cli("snapshot", "diff", "a", "live", "--json")
    assert differ.code == 1
    assert [(one["change"], one["path"]) for one in differ.json] == [
        ("changed", "/m/y"),
        ("added", "/m/z"),
    ]
    assert (differ.json[0]["before"]["size_bytes"], differ.json[1]["before"]) == (5, None)
    text = own_cli("snapshot", "diff", "a", "live")
    assert "changed" in text.text and "1 added, 0 removed, 1 changed" in text.err
    failed = own_cli("snapshot", "verify", "a", "--json")
    assert (failed.code, failed.json["checked"], failed.json["failed"]) == (7, 2, 1)
    assert failed.json["failures"][0]["error"] == "StaleHandle" and "/m/y" in failed.err
    assert own_cli("snapshot", "verify", "a", "/m/x").code == 0
    unchecked = own_cli("snapshot", "verify", "plain")
    assert unchecked.code == 1 and "--checksums" in unchecked.err
    partly = own_cli("prefetch", "a@snapshot", "--json")
    assert (partly.code, partly.json["failed"]) == (1, 1) and "froze" in partly.err
    for bad in (("create", "a/b", "/m"), ("create", "live", "/m"), ("create", "n", "/m", "/m/x")):
        assert own_cli("snapshot", *bad).code == 4, bad
    assert own_cli("snapshot", "create", "n", "relative").code == 2
    assert own_cli("snapshot", "create", "n", "/m/none").code == 3


def test_export_as_parquet(cli: Cli, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert cli("snapshot", "create", "v1", "/m/s", "--checksums").code == 0
    file = tmp_path / "v1.parquet"
    assert cli("snapshot", "export", "v1", str(file)).code == 0
    table = parquet.read_table(file)
    names = ["path", "origin", "key", "version", "size", "mtime", "crc32c"]
    assert table.column_names == names
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [f"/m/s/{i:03}.bin" for i in range(20)]
    assert {row["size"] for row in rows} == {3000} and rows[0]["key"] == "data/s/000.bin"
    assert list(tmp_path.glob("*.tiercache-part")) == []
    assert cli("snapshot", "export", "v1", str(tmp_path / "no" / "x.parquet")).code != 0


def test_export_without_pyarrow_names_the_extra(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("snapshot", "create", "v1", "/m/s").code == 0
    hidden = tmp_path / "hidden" / "pyarrow"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    cli.env["PYTHONPATH"] = f"{hidden.parent}:{Path.cwd()}"
    ended = cli("snapshot", "export", "v1", str(tmp_path / "x.parquet"))
    assert ended.code == 1 and "tiercache[parquet]" in ended.err
    assert not (tmp_path / "x.parquet").exists()


def test_an_origin_that_is_away_gives_no_snapshot(own_cli: Cli, tmp_path: Path) -> None:
    text = own_cli.config.read_text()
    own_cli.config.write_text(text.replace("http://127.0.0.1:", "http://127.0.0.1:1"))
    ended = own_cli("snapshot", "create", "v1", "/m", "--json")
    assert ended.code == 5 and ended.json["state"] == "failed", ended.err
    assert own_cli("snapshot", "ls", "--json").json == []


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["snapshot", "--help"]) == 0
    assert "verify" in capsys.readouterr().out
