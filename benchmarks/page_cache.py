"""What the kernel keeps of files, dropped: the only way to make the device answer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def drop(files: Iterable[Path], *, written: bool = False) -> None:
    """Write back what is dirty (``written``: nothing is) and drop the files' pages. Pages that a
    process maps stay, and a file system in memory keeps them all: count device reads, to know.
    Vanished files are fine."""
    for file in files:
        try:
            fd = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if not written:
                os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def drop_below(folder: Path) -> None:
    """Drop the pages of all files below a folder."""
    drop(path for path in folder.rglob("*") if path.is_file())
