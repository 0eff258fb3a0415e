"""Programs that used libraries with threads of their own end without taking Python down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys
import {module}
from tiercache.ending import end
atexit.register(print, "taken down")
print("said", end="")
sys.exit(end(3))
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [("json", "saidtaken down\n"), ("obstore", "said"), ("slatedb", "said")],
)
def test_end(module: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (3, said)


def test_an_interrupt_in_the_making_of_a_class_is_one_like_others(tmp_path: Path) -> None:
    script = """
import sys
from tiercache.ending import end
try:
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")  # as a dataclass is made
    code = 1
except KeyboardInterrupt:
    code = 130
sys.exit({end}(code))
"""
    for ending, status in (("", -signal.SIGINT), ("end", 130)):
        (tmp_path / "program.py").write_text(script.replace("{end}", ending))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        command = [sys.executable, "-m", "program"]
        assert subprocess.run(command, env=env, timeout=60).returncode == status


def test_a_program_without_standard_streams_ends_as_well() -> None:
    script = "import obstore, sys; sys.stdout = sys.stderr = None\n"
    script += "from tiercache.ending import end; end(4)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 4
