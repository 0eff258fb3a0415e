"""agent, status, mount; what doctor and fsck say of a whole and a broken cache."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import BIG, Cli

pytestmark = [pytest.mark.timeout(120), pytest.mark.emulator]


def test_nothing_starts_an_agent_just_to_look(cli: Cli, tmp_path: Path) -> None:
    assert cli("status", "--json").json == {
        "running": False,
        "cache_dir": str(tmp_path / "cache"),
    }
    assert "no agent runs" in cli("status").err
    assert cli("agent", "status").code == 3
    assert cli("prefetch", "--jobs", "--json").json == []
    assert cli("agent", "stop").code == 0
    assert not (tmp_path / "cache").exists()


def test_start_status_stop(cli: Cli) -> None:
    pid = int(cli("agent", "start").text)
    assert cli("agent", "start", "--json").json["pid"] == pid
    shown = cli("agent", "status", "--json")
    assert (shown.code, shown.json["running"], shown.json["pid"]) == (0, True, pid)
    cli("cat", "/m/s/001.bin")
    document = cli("status", "--json").json
    assert document["running"] is True
    for key in ("agent", "cache", "memory", "mounts", "reads", "origins", "jobs", "clients"):
        assert key in document
    text = cli("status").text
    for word in ("capacity", "256 MiB", "/m", "closed", "client"):
        assert word in text
    assert cli("agent", "stop").code == 0
    assert cli("agent", "status").code == 3


def test_run_serves_in_the_foreground_until_told(cli: Cli) -> None:
    process = cli.start("agent", "run", "--log-format", "json")
    try:
        deadline = time.monotonic() + 30
        while cli("agent", "status").code != 0:
            assert time.monotonic() < deadline and process.poll() is None
        second = cli("agent", "run")
        assert second.code == 1
        assert f"process {process.pid}" in second.err
        assert cli("cat", "/m/s/001.bin").code == 0
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == b""
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[0]["message"].startswith("serving ")
    assert {"time", "level", "logger", "pid", "message"} == set(lines[0])


def test_an_agent_that_is_stopped_is_told_within_seconds(cli: Cli) -> None:
    pid = int(cli("agent", "start").text)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        ended = cli("qos", "show")
        assert ended.code == 1 and "has not answered for 5 s" in ended.err, ended
        assert time.monotonic() - began < 30
        findings = cli("doctor", "--no-network", "--json")
        assert "has not answered" in findings.text
    finally:
        os.kill(pid, signal.SIGCONT)
    assert cli("agent", "stop").code == 0


def test_mounts(cli: Cli, bucket: str) -> None:
    (mount,) = cli("mount", "--json").json
    assert (mount["path"], mount["origin"]) == ("/m", f"s3://{bucket}/data")
    assert mount["reachable"] is True
    assert cli("mount", "--no-check").lines[1].endswith("not asked")


def test_doctor_on_a_healthy_machine(cli: Cli) -> None:
    ended = cli("doctor", "--json")
    assert ended.code == 0, ended.text
    levels = {finding["what"]: finding["level"] for finding in ended.json}
    for what in ("packages", "configuration", "space", "device", "agent", "origin of /m", "clock"):
        assert levels[what] == "ok"
    assert "tiercache-test" not in ended.text, "a key in the output"


def test_fsck_on_a_whole_and_a_broken_cache(cli: Cli, tmp_path: Path) -> None:
    cli("prefetch", "/m")
    busy = cli("fsck")
    assert busy.code == 1
    assert "tiercache agent stop" in busy.err
    online = cli("fsck", "--online", "--json")
    assert online.code == 0
    assert online.json["online"] is True and online.json["pages_checked"] == 20 + 48
    assert cli("fsck", "--online", "--repair").code == 2
    cli("agent", "stop")
    whole = cli("fsck", "--json").json
    assert whole["clean"] is True
    assert whole["pages_checked"] == 20 + 48
    assert whole["disk_bytes"] <= whole["ledger_bytes"]
    _flip_a_byte_of_big(tmp_path / "cache")
    broken = cli("fsck")
    assert broken.code == 7
    assert "bad-page" in broken.text and "data/big.bin" in broken.text
    assert cli("fsck", "--repair").code == 7
    assert cli("fsck").code == 0
    assert cli("cat", "/m/big.bin").out == BIG


def _flip_a_byte_of_big(cache: Path) -> None:
    for file in (cache / "extents").rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            at = data.find(BIG[70000:70100])
            if at >= 0:
                data[at] ^= 1
                file.write_bytes(data)
                return
    raise AssertionError("the object is not on the device")
