"""Small files of fixed length that agent and clients of a node share through a mapping.

Such a file begins with a magic of 8 bytes. It is written in full when it is made, never sparse: a
store into a hole of a full file system would kill the storing process (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress

from tiercache.errors import FormatError, NotFound

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("shared mappings are defined for little-endian machines")


def map_file(path: str, *, magic: bytes, file_bytes: int, what: str) -> mmap.mmap:
    """Map an existing file, readable and writable. Raises NotFound, FormatError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no {what} here yet", path=path) from None
    try:
        # The length comes first: a mapping beyond the end of the file kills its user (SIGBUS).
        right = os.fstat(fd).st_size == file_bytes and os.pread(fd, len(magic), 0) == magic
        if not right:
            remedy = "stop the agent and remove the file"
            raise FormatError(f"not a {what} of this version", path=path, remedy=remedy)
        return mmap.mmap(fd, file_bytes)
    finally:
        os.close(fd)


def make_file(path: str, *, magic: bytes, file_bytes: int) -> None:
    """Publish a file of zeros behind the magic, mode 0600. Raises OSError from the device."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        content = memoryview(magic.ljust(file_bytes, b"\0"))
        done = 0
        while done < file_bytes:
            done += os.write(fd, content[done:])
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def release(mapping: mmap.mmap, *views: memoryview) -> None:
    """Release the views; the mapping goes when the last slice of it does."""
    for view in views:
        view.release()
    with suppress(BufferError):  # a caller still holds a slice; it unmaps when that goes
        mapping.close()
