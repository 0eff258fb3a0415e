"""Programs that used libraries with threads of their own end without taking Python down."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_program_without_standard_streams_ends_as_well() -> None:
    script = "import obstore, sys; sys.stdout = sys.stderr = None\n"
    script += "from tiercache.ending import end; end(4)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 4
