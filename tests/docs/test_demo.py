"""The demo runs, checks what it shows, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tiercache.testing.emulators import Azurite, EmulatorMissing, FakeGcs, SeaweedS3

COMMAND = [sys.executable, "-m", "tiercache.testing.demo"]
QOS_COMMAND = [sys.executable, "-m", "tiercache.testing.demo_qos", "--short"]
DEMO_TIMEOUT_S = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.emulator, pytest.mark.timeout(200)]


@pytest.fixture(autouse=True)
def _emulators() -> None:
    for kind in (SeaweedS3, Azurite, FakeGcs):
        try:
            kind.find()
        except EmulatorMissing as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))


@contextmanager
def started_demo(folder: Path, command: list[str] = COMMAND) -> Iterator[subprocess.Popen[str]]:
    """Run the demo in a process group of its own, with ``folder`` for all temporary files."""
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder), "AWS_PROFILE": "of-the-user"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of processes whose files lie in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command or f"TMPDIR={folder}\0" in environment:
                found.append(command)
    return found


def assert_nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + 15.0
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(folder) == []
    assert list(folder.iterdir()) == []


def test_demo_succeeds_without_a_terminal(tmp_path: Path) -> None:
    with started_demo(tmp_path) as process:
        text, _ = process.communicate(timeout=DEMO_TIMEOUT_S)
    assert process.returncode == 0, text
    assert "\x1b" not in text, "control sequences without a terminal"
    # Every data set: GETs when cold, none when hot.
    for mount, gets in (("/images", 24), ("/tables", 4), ("/samples", 2000)):
        found = re.search(rf"^{mount}\s.* ([\d,]+)\s+0\s", text, re.MULTILINE)
        assert found, text
        # On a busy machine one or the other is sent again.
        assert gets <= int(found[1].replace(",", "")) <= 1.1 * gets + 2, text
    assert "never FileNotFoundError" in text
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        pytest.param(signal.SIGINT, "[1]", id="ctrl-c-while-servers-start"),
        pytest.param(signal.SIGINT, "$ tiercache prefetch", id="ctrl-c-during-prefetch"),
        pytest.param(signal.SIGTERM, "[5]", id="term-during-reads"),
    ],
)
def test_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals, after: str) -> None:
    with started_demo(tmp_path) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if after in line:
                # A terminal sends Ctrl-C to the whole foreground group.
                send = os.killpg if number is signal.SIGINT else os.kill
                send(process.pid, number)
                break
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + text
    assert_nothing_is_left(tmp_path)


def test_qos_demo_ends_in_a_table_and_a_plot(tmp_path: Path) -> None:
    plot, folder = tmp_path / "plots" / "qos.svg", tmp_path / "temporary"
    folder.mkdir()
    with started_demo(folder, [*QOS_COMMAND, "--plot", str(plot)]) as process:
        text, _ = process.communicate(timeout=DEMO_TIMEOUT_S)
    assert process.returncode == 0, text
    assert "\x1b" not in text, "control sequences without a terminal"
    for phase in ("alone", "all, no policy", "all, policy"):
        assert re.search(rf"^{phase}\s+[\d,]+ of 8,000\s", text, re.MULTILINE), text
    assert re.search(r"^ *training +[▁▂▃▄▅▆▇█]{17,} +up to ", text, re.MULTILINE), text
    drawn = ElementTree.parse(plot).getroot()
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 3
    assert_nothing_is_left(folder)


def test_interrupted_qos_demo_cleans_up(tmp_path: Path) -> None:
    with started_demo(tmp_path, QOS_COMMAND) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "[3]" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + text
    assert_nothing_is_left(tmp_path)
