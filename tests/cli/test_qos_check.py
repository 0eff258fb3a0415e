"""qos check and qos diff: what they say of policy files, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tiercache.cli.exits import ExitCode
from tiercache.cli.program import run
from tiercache.config.qos_json_schema import json_schema

pytestmark = pytest.mark.timeout(60)

GOOD = """\
version = 1
profile = "training-first"
[[identity]]
name = "training"
claim = "@ml"
[[identity]]
name = "interactive"
claim = "@users"
"""
BAD = """\
version = 1
[[identity]]
name = "a"
mach = { user = "u" }
[node]
read = "5GB"
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    return str(file)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(BAD)
    return str(file)


def test_a_valid_policy(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["qos", "check", good]) == ExitCode.OK
    shown = capsys.readouterr()
    assert shown.out.startswith("the policy is valid: 3 identities in 3 classes, 3 rules")
    assert shown.err == ""


def test_every_mistake_is_a_line_with_its_place(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["qos", "check", bad]) == ExitCode.CONFIG
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f"tiercache: {bad}:4: identity[a].mach: unknown key (did you mean 'match'?)",
        f"tiercache: {bad}:6: node.read: '5GB' is not a rate (write it like 500MB/s or 2GiB/s)",
        f"tiercache: {bad}:2: identity[a].match: no rule: nobody is ever this identity "
        '(give it one, such as match = { name = "a" })',
    ]


def test_as_json(bad: str, good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["qos", "check", bad, "--json"]) == ExitCode.CONFIG
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["valid"], told["policy"]) == (bad, False, None)
    assert [problem["key"] for problem in told["problems"]] == [
        "identity[a].mach",
        "node.read",
        "identity[a].match",
    ]
    assert told["problems"][0] == {
        "place": f"{bad}:4",
        "key": "identity[a].mach",
        "cause": "unknown key",
        "remedy": "did you mean 'match'?",
    }
    assert run(["qos", "check", good, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] and told["problems"] == told["warnings"] == []
    assert told["policy"]["identity"][0]["claim"] == ["@ml"]


def test_warnings_do_not_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "open.toml"
    file.write_text('version = 1\nprofile = "training-first"\n')
    assert run(["qos", "check", str(file)]) == ExitCode.OK
    assert capsys.readouterr().err == ""
    with file.open("a") as more:
        more.write('[[identity]]\nname = "training"\nread = { reserve = "1GB/s" }\n')
    assert run(["qos", "check", str(file)]) == ExitCode.OK
    shown = capsys.readouterr()
    assert f"warning: {file}:3: identity[training].claim: anybody may use" in shown.err
    assert "valid" in shown.out


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(BAD.encode())))
    assert run(["qos", "check", "-"]) == ExitCode.CONFIG
    assert "tiercache: -:4: " in capsys.readouterr().err


def test_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["qos", "check", "--schema"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize("command", ["check", "diff"])
def test_files_that_cannot_be_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["qos", command, str(tmp_path / "none")]) == ExitCode.NOT_FOUND
    assert run(["qos", command]) == ExitCode.USAGE
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    assert run(["qos", command, str(file)]) == ExitCode.CONFIG
    assert "not UTF-8" in capsys.readouterr().err


def test_differences(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.toml"
    other.write_text(GOOD.replace("@users", "@staff") + 'read = { limit = "1GB/s" }\n')
    assert run(["qos", "diff", good, good]) == ExitCode.OK
    assert capsys.readouterr().out == ""
    assert run(["qos", "diff", good, str(other)]) == ExitCode.FAILED
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        'identity[interactive].claim: ["@users"] → ["@staff"]',
        "identity[interactive].read.limit: unsaid → 1GB/s",
    ]
    assert shown.err == "2 changes\n"
    assert run(["qos", "diff", str(other), good, "--json"]) == ExitCode.FAILED
    assert json.loads(capsys.readouterr().out)[1] == {
        "key": "identity[interactive].read.limit",
        "old": "1GB/s",
        "new": None,
    }


def test_a_wrong_policy_is_not_compared(
    good: str, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for pair in ((good, bad), (bad, good)):
        assert run(["qos", "diff", *pair]) == ExitCode.CONFIG
        assert "3 mistakes" in capsys.readouterr().err


def test_against_the_policy_in_force_without_an_agent(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--cache-dir", str(tmp_path / "c"), "qos", "diff", good]) == ExitCode.NOT_FOUND
    assert "no agent runs" in capsys.readouterr().err


def test_against_the_policy_in_force(
    good: str, tmp_path: Path, make_cli: Callable[[str], Cli]
) -> None:
    cli = make_cli(
        f'[cache]\ndir = "{tmp_path}/cache"\ncapacity = "64MiB"\n'
        f'[agent]\nidle_timeout = "30s"\n[qos]\npolicy = "{good}"\n'
    )
    assert cli("agent", "start").code == ExitCode.OK
    assert cli("qos", "diff", good).code == ExitCode.OK
    other = tmp_path / "other.toml"
    other.write_text(GOOD.replace("@users", "@staff"))
    ended = cli("qos", "diff", str(other))
    assert ended.code == ExitCode.FAILED
    assert ended.lines == ['identity[interactive].claim: ["@users"] → ["@staff"]']
    assert ended.err == "1 change\n"
