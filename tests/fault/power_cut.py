"""A power cut: what a file system held back in memory is gone, what it wrote through is there.

An ext4 file system lives in a file, behind a loop device. What a process writes there stays in
the page cache of the mounted file system until somebody syncs it, so the file itself is what the
device would hold if the power failed now. A copy of it, taken while the writer stands still, is
mounted like a disk after the cut: its journal is replayed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGE_BYTES = 48 * 1024 * 1024
STOP_TIMEOUT_S = 20.0
COPY_ATTEMPTS = 20


def new_image(path: Path) -> Path:
    """Make an empty ext4 file system in a sparse file."""
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    # A user's PATH need not hold what only root uses.
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mkfs is None:
        pytest.skip("there is no mkfs.ext4")
    options = ["-q", "-F", "-E", "lazy_itable_init=0,nodiscard"]
    subprocess.run([mkfs, *options, str(path)], check=True, capture_output=True)
    return path


@contextmanager
def mounted(image: Path, directory: Path) -> Iterator[Path]:
    """Mount it; leaving unmounts it and frees the loop device, whatever happened inside."""
    directory.mkdir()
    # Nothing but a sync writes before the test is over.
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", "loop,commit=600", str(image), str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a loop device: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", "--detach-loop", str(directory)], check=True)


@contextmanager
def standing_still(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop all threads of a process, each at the end of the system call that it is in."""
    process.send_signal(signal.SIGSTOP)
    try:
        until = time.monotonic() + STOP_TIMEOUT_S
        while not _all_stopped(process.pid):
            assert time.monotonic() < until, "a thread does not stop"
            time.sleep(0.001)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _all_stopped(pid: int) -> bool:
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def copy_of(image: Path, target: Path) -> Path:
    """Copy what the device holds at one moment: until two copies in a row are the same."""
    before = b""
    for _ in range(COPY_ATTEMPTS):
        subprocess.run(["cp", "--sparse=always", str(image), str(target)], check=True)
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "blake2b").digest()
        if found == before:
            return target
        before = found
    raise AssertionError("the device does not come to rest")
