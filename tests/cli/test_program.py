"""What needs no server: exit codes, errors, tables, progress, help, the generated page."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tiercache import errors
from tiercache.cli import document, output, program
from tiercache.cli.diagnosis import file_system_of
from tiercache.cli.diagnosis_origins import credential_source
from tiercache.cli.exits import (
    BY_CLASS,
    MEANINGS,
    ExitCode,
    exit_code_of,
    exit_code_of_many,
    exit_code_of_name,
)
from tiercache.cli.json_logs import JsonFormatter
from tiercache.cli.names import size_range
from tiercache.cli.prefetch import exit_code_of_job
from tiercache.cli.progress import Rate, State, text_of
from tiercache.cli.reading import safe_name
from tiercache.cli.walking import Named, with_directories
from tiercache.errors import ConfigError, NotFound, OriginUnavailable
from tiercache.model import Entry, JobProgress, JobState, Kind
from tiercache.settings import ProfileSettings
from tiercache.version import __version__

pytestmark = pytest.mark.timeout(60)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotFound", 3),
        ("IsADirectory", 2),
        ("AccessDenied", 4),
        ("OriginUnavailable", 5),
        ("OriginThrottled", 5),
        ("Throttled", 6),
        ("PreconditionFailed", 1),
        ("AlreadyExists", 1),
        ("StaleHandle", 1),
        ("CorruptPage", 7),
        ("CacheFull", 6),
        ("ConfigError", 4),
        ("Unsupported", 1),
        ("FormatError", 4),
        ("AgentUnavailable", 1),
        ("MetadataUnavailable", 5),
        ("MetadataFenced", 1),
        ("Interrupted", 130),
        ("TiercacheError", 1),
        ("SomethingOfALaterVersion", 1),
    ],
)
def test_errors_and_their_codes(name: str, code: int) -> None:
    assert exit_code_of_name(name) == code


def test_the_codes_of_all_errors_are_tested() -> None:
    (mark,) = test_errors_and_their_codes.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} >= set(errors.BY_NAME)


def test_codes_of_other_errors() -> None:
    assert exit_code_of(KeyboardInterrupt) == 130
    assert exit_code_of(FileNotFoundError) == 3
    assert exit_code_of(ZeroDivisionError) == 1
    assert set(BY_CLASS.values()) <= set(MEANINGS) == set(ExitCode)


def test_codes_of_many_items() -> None:
    assert exit_code_of_many([], succeeded=0) == 0
    assert exit_code_of_many([ExitCode.NOT_FOUND] * 2, succeeded=0) == 3
    assert exit_code_of_many([ExitCode.NOT_FOUND], succeeded=1) == 1
    assert exit_code_of_many([ExitCode.NOT_FOUND, ExitCode.CORRUPT], succeeded=0) == 1


def job(state: JobState, **more: object) -> JobProgress:
    return JobProgress(id="1", state=state, paths=(), ended=True, **more)  # type: ignore[arg-type]


def test_codes_of_jobs() -> None:
    down = "OriginUnavailable"
    assert exit_code_of_job(job(JobState.DONE)) == 0
    assert exit_code_of_job(job(JobState.CANCELLED)) == 130
    assert exit_code_of_job(job(JobState.LIMIT)) == 6
    assert exit_code_of_job(job(JobState.FAILED, failed=1, filled=1, error_class=down)) == 1
    assert exit_code_of_job(job(JobState.FAILED, failed=2, error_class=down)) == 5
    assert exit_code_of_job(job(JobState.FAILED, message="no", error_class="NotFound")) == 3


def test_errors_are_one_line() -> None:
    error = ConfigError("wrong\nindeed", path="/m", remedy="do better")
    assert output.error_line(error) == "tiercache: /m: wrong indeed (do better)"
    local = FileNotFoundError(2, "No such file or directory", "here")
    assert output.error_line(local) == "tiercache: here: No such file or directory"
    assert output.error_line(ValueError()) == "tiercache: ValueError"


def test_a_tally_goes_on_and_remembers(capsys: pytest.CaptureFixture[str]) -> None:
    tally = output.Tally(debug=True)
    for error in (None, NotFound("no", path="/x"), OriginUnavailable("down")):
        with tally.item():
            if error is not None:
                raise error
    assert (tally.succeeded, tally.failed, tally.code) == (1, 2, ExitCode.FAILED)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("tiercache: down\n")
    with pytest.raises(BrokenPipeError), tally.item():
        raise BrokenPipeError


def test_wrong_usage_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nope"], ["ls", "--nope"], ["cat"], ["ls", "relative"], ["cat", "--offset"]):
        assert program.run(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("tiercache: ")
        assert len(said.err.splitlines()) <= 2
    assert program.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_a_bug_of_ours_is_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(program, "program", lambda: lambda *_, **__: broken())
    assert program.run(["ls"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and "this is a bug (ZeroDivisionError)" in err
    assert program.run(["ls", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_table_of_commands_is_true() -> None:
    """Every entry leads to a function, whose own first line says what the table says or more."""
    for entry in program.COMMANDS.values():
        for command in entry[1].values() if isinstance(entry, tuple) else [entry]:
            module, function = command.where.split(":")
            found = getattr(import_module(f"tiercache.cli.{module}"), function)
            assert inspect.getdoc(found)
            assert command.summary.endswith(".")


def test_completion_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TIERCACHE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tiercache pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit) as ended:
        program.run([])
    assert not ended.value.code
    assert capsys.readouterr().out.split() == ["prefetch"]


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == document.document(), (
        "run python -m tiercache.cli.document docs/cli.md"
    )


def test_config_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[cache]\ndir = "/x"\ncapacity = "1GiB"\n')
    monkeypatch.setenv("TIERCACHE_CONFIG", str(file))
    assert program.run(["config", "show", "--origin"]) == 0
    assert 'dir = "/x"' in (text := capsys.readouterr().out) and f"{file}:2" in text
    assert program.run(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["capacity"] == "1GiB"
    assert program.run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert program.run(["config", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(file)], "mounts": 0}
    assert program.run(["config", "schema", "--json"]) == 0
    keys = {(key["section"], key["key"]) for key in json.loads(capsys.readouterr().out)}
    assert ("cache", "capacity") in keys and ("mount", "origin") in keys
    file.write_text("[cache]\ncapasity = 1\n")
    assert program.run(["config", "check"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{file}:2" in said and "capacity" in said


def test_sizes_of_find() -> None:
    assert size_range("+1M") == ((1 << 20) + 1, 1 << 62)
    assert size_range("-64KiB") == (0, (64 << 10) - 1)
    assert size_range("4096") == (4096, 4096)


def test_directories_that_a_recursive_listing_implies() -> None:
    names = ["a/b/c", "a/d", "e", "//x"]
    found = [Named(f"/m/{name}", name, Entry(name, Kind.FILE)) for name in names]
    shown = [(named.relative, named.is_file) for named in with_directories(found, "/m")]
    assert ("a", False) in shown and ("a/b", False) in shown
    assert [name for name, is_file in shown if is_file] == sorted(names)
    assert ("", False) not in shown


@pytest.mark.parametrize("name", ["../x", "a/../x", "/etc/passwd", "a//b", "./a", "a/", "a\0b"])
def test_a_key_never_leads_out_of_the_target(name: str) -> None:
    with pytest.raises(ConfigError):
        safe_name(Named("/m/" + name, name, Entry(name, Kind.FILE)))


def test_progress_texts() -> None:
    state = State(done_bytes=1 << 20, moved_bytes=0, total_bytes=2 << 20, counts="1 hit")
    assert text_of(state, 1 << 20) == "1.0 MiB of 2.0 MiB, 50 %, 1.0 MiB/s, 1.0 s left, 1 hit"
    unknown = State(done_bytes=10, moved_bytes=10, total_bytes=None)
    assert text_of(unknown, 0) == "10 B"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.note(0.0, 0) == 0
    assert rate.note(10.0, 1000) == 100
    for second in range(20, 60, 5):
        last = rate.note(float(second), 1000 + (second - 10) * 10)
    assert last == pytest.approx(10)


def test_tables_align() -> None:
    assert output.plain_table(("n", "name"), [("1", "a"), ("100", "b")], right=(0,)) == [
        "  n  name",
        "  1  a",
        "100  b",
    ]


def test_log_lines_are_json() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord(
            "tiercache.agent", logging.ERROR, "", 0, "%d pages", (3,), sys.exc_info()
        )
    document = json.loads(JsonFormatter().format(record))
    assert (document["message"], document["level"]) == ("3 pages", "error")
    assert "ValueError: no" in document["error"]


def test_file_systems_by_the_longest_mount_point(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    table = tmp_path / "mounts"
    where = str(tmp_path.resolve())
    escaped = f"{where}/a b".replace(" ", "\\040")
    table.write_text(f"/dev/a / ext4 rw 0 0\nx {where} tmpfs rw 0 0\ny {escaped} nfs4 rw 0 0\n")
    assert file_system_of(tmp_path / "a b", str(table)) == "nfs4"
    assert file_system_of(tmp_path, str(table)) == "tmpfs"
    assert file_system_of(Path("/"), str(table)) == "ext4"
    assert file_system_of(Path("/"), str(tmp_path / "none")) == "unknown"


def test_where_credentials_would_come_from(tmp_path: Path) -> None:
    profile = ProfileSettings()
    home = {"HOME": str(tmp_path)}
    seen, text, remedy = credential_source("s3", profile, home)
    assert not seen and remedy
    seen, text, _ = credential_source("s3", profile, {**home, "AWS_ACCESS_KEY_ID": "AKIASECRET"})
    assert seen and text == "environment (AWS_ACCESS_KEY_ID)"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\n")
    assert "file" in credential_source("s3", profile, home)[1]
    assert not credential_source("gs", profile, home)[0]
    assert credential_source("az", profile, {"AZURE_STORAGE_ACCOUNT_KEY": "k"})[0]
    assert credential_source("az", ProfileSettings(anonymous=True), {})[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["--version"]) == 0
    assert capsys.readouterr().out == f"tiercache {__version__}\n"
