"""Small files in the cache directory: published whole, private, read back or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tiercache.errors import FormatError


def publish(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of the file, durably, mode 0600. Atomic. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    # Else a power cut could bring the old file back.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path, limit_bytes: int) -> bytes | None:
    """Return the file's bytes, None where there is none. Raises FormatError for one that is longer
    than ``limit_bytes``, OSError."""
    try:
        # A pipe in the file's place is empty, and does not keep its reader.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit_bytes:
        raise FormatError(f"the file is longer than {limit_bytes} bytes", path=str(path))
    return data
