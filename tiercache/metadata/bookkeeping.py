"""What every engine of the metadata store keeps beside the records, and what it refuses.

    \\0format    one byte, the number of the store's format, then its identity, 16 random bytes
    \\0seq       the number of the last commit, 8 bytes, big-endian

Both are engines' own: callers' keys begin with another byte. docs/format.md is the contract.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping

from tiercache.errors import FormatError, PreconditionFailed

FORMAT_VERSION = 1
FORMAT_KEY = b"\x00format"
SEQUENCE_KEY = b"\x00seq"
# The first key that is not an engine's own.
FIRST_KEY = b"\x01"
# LMDB's compiled-in limit, kept by every engine, so that each store can be copied to any other.
MAX_KEY_BYTES = 511
# A batch is held in memory several times on its way to an object store.
MAX_VALUE_BYTES = 16 * 1024 * 1024

_SEQUENCE = struct.Struct(">Q")
_IDENTITY_BYTES = 16


def new_identity() -> str:
    return secrets.token_hex(_IDENTITY_BYTES)


def encode_format(identity: str) -> bytes:
    return bytes([FORMAT_VERSION]) + bytes.fromhex(identity)


def decode_format(value: bytes | None, *, path: str) -> str:
    """Return the store's identity. Raises FormatError for what is no store of this version."""
    if value is None:
        raise FormatError(
            "no metadata store of tiercache, though it holds records",
            path=path,
            remedy="name another place",
        )
    if value[:1] != bytes([FORMAT_VERSION]) or len(value) != 1 + _IDENTITY_BYTES:
        raise FormatError(
            f"a metadata store of format {value[0] if value else 'none'}; this version reads "
            f"{FORMAT_VERSION}",
            path=path,
            remedy="use a newer tiercache",
        )
    return value[1:].hex()


def encode_sequence(sequence: int) -> bytes:
    return _SEQUENCE.pack(sequence)


def decode_sequence(value: bytes | None) -> int:
    """Return the number of the last commit, 0 before the first."""
    return 0 if value is None else int(_SEQUENCE.unpack(value)[0])


def check_commit(
    batch: Mapping[bytes, bytes | None], preconditions: Mapping[bytes, bytes | None]
) -> None:
    """Raise ValueError for a key or value that no engine takes."""
    for key in (*batch, *preconditions):
        if not 0 < len(key) <= MAX_KEY_BYTES or key[0] == 0:
            raise ValueError(
                f"not a metadata key: {key[:40]!r} ({len(key)} bytes); it has 1 to "
                f"{MAX_KEY_BYTES} bytes, the first of which is not zero"
            )
    for key, value in batch.items():
        if value is not None and len(value) > MAX_VALUE_BYTES:
            raise ValueError(
                f"a metadata value of {len(value)} bytes under {key!r}; "
                f"{MAX_VALUE_BYTES} are allowed"
            )


def is_key(key: bytes) -> bool:
    """Whether a caller can have stored it."""
    return 0 < len(key) <= MAX_KEY_BYTES and key[0] != 0


def unmet(key: bytes, *, path: str) -> PreconditionFailed:
    return PreconditionFailed(f"the key {key!r} holds something else", path=path)
