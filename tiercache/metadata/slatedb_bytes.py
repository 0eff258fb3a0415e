"""A faster way for byte strings into SlateDB's library.

The binding of SlateDB 0.17 copies what it is given byte by byte in a Python loop: 0.3 µs a byte,
5 s for 16 MiB, in which nothing else of the process runs. Copied at once it takes 10 ms.
"""

from __future__ import annotations

import ctypes
from typing import Any

from slatedb.uniffi import slatedb as binding

_LENGTH_BYTES = 4


def _lower(value: bytes) -> Any:
    """Return a buffer of the library's with the length, big-endian, and the bytes."""
    framed = len(value).to_bytes(_LENGTH_BYTES, "big") + value
    buffer = binding._UniffiRustBuffer.alloc(len(framed))
    ctypes.memmove(buffer.data, framed, len(framed))
    buffer.len = len(framed)
    return buffer


def install() -> None:
    """Replace the loop. Idempotent."""
    binding._UniffiFfiConverterBytes.lower = staticmethod(_lower)
