"""Run a command that never outlives whoever started it, not even after ``kill -9``.

Usage: ``python leash.py GRACE_S DIRECTORY -- COMMAND…``. Standard input is the leash: when it
closes, by intent or by the death of its owner, the command's process group gets SIGTERM and,
``GRACE_S`` later, SIGKILL; then DIRECTORY is removed, unless the owner wrote ``k`` (keep) first.
Standard output carries the group's id, one line, and closes when the command has ended. Imports
nothing but the standard library, so that it starts in some 20 ms.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time


def main(arguments: list[str]) -> int:
    """Run the command until it or standard input ends, and stay until the latter does."""
    grace_s, directory = float(arguments[0]), arguments[1]
    command = arguments[arguments.index("--") + 1 :]
    # The owner decides when this ends; a Ctrl-C in the terminal must not orphan the command.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    print(child.pid, flush=True)
    keep = _wait_for_owner(until_exit_of=child)
    status = _end_group(child, grace_s=grace_s)
    os.close(sys.stdout.fileno())  # tells the owner that the command is gone
    if keep is None:
        keep = _wait_for_owner()
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _wait_for_owner(*, until_exit_of: subprocess.Popen[bytes] | None = None) -> bool | None:
    """Return whether the owner, now gone, asked to keep the directory; None if the command
    ended first."""
    exited = [os.pidfd_open(until_exit_of.pid)] if until_exit_of else []
    keep = False
    while True:
        ready, _, _ = select.select([0, *exited], [], [])
        if 0 not in ready:
            return None
        said = os.read(0, 1)
        if not said:
            return keep
        keep = said == b"k"


def _end_group(child: subprocess.Popen[bytes], *, grace_s: float) -> int:
    for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process takes TERM when it runs
        _signal_group(child.pid, number)
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    _signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def _signal_group(group_id: int, number: signal.Signals) -> None:
    try:
        os.killpg(group_id, number)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
