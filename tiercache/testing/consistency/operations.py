"""What clients did and saw: the vocabulary of histories.

A *history* is a few keys that several processes of two sites, and a writer at the origin itself,
used for some seconds. Each *operation* has the time before it was called and the time after it had
returned, on one clock (CLOCK_BOOTTIME, which all processes of a machine share). Every value
written is unique and names its writer, so that a read tells which write it saw.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf

import msgspec

from tiercache.model import PAGE_BYTES

ABSENT = "nothing"
"""What a read observes where there is no object."""
ORIGIN = "origin"
"""The site of who talks to the origin itself, with nothing of ours between."""

LINE_BYTES = 64
LINES_A_BLOCK = 64  # blocks of 4 KiB: each says its number, so that misplaced pages show


class Kind(StrEnum):
    """What was asked. ``HANDLE`` is an open; what is read of it later, in pieces, is what it
    observed. A listing is one ``LIST`` for each key of the history."""

    READ = "read"
    HANDLE = "handle"
    STAT = "stat"
    LIST = "list"
    WRITE = "write"
    CREATE = "create"
    REPLACE = "replace"  # a write with if_version
    DELETE = "delete"

    @property
    def is_write(self) -> bool:
        return self in (Kind.WRITE, Kind.CREATE, Kind.REPLACE)

    @property
    def is_change(self) -> bool:
        return self.is_write or self is Kind.DELETE


class Outcome(StrEnum):
    """``FAILED``: it certainly did nothing, since what it required was not so. ``UNKNOWN``: a
    change may have happened, may yet happen, or never; a read says nothing."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call on one key. ``value`` is what it would write, ``expected`` the value that a REPLACE
    requires, ``observed`` what a read saw (None: nothing that says anything). ``token`` is the
    version token that came with it. ``stale``: marked as stale, or possibly so."""

    key: str
    process: str
    site: str
    kind: Kind
    invoked_s: float
    returned_s: float
    outcome: Outcome
    value: str = ""
    expected: str = ""
    observed: str | None = None
    token: str = ""
    stale: bool = False
    detail: str = ""

    @property
    def ends_s(self) -> float:
        """When it can no longer take effect."""
        unknown = self.kind.is_change and self.outcome is Outcome.UNKNOWN
        return inf if unknown else self.returned_s

    @property
    def is_success(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def says(self) -> str | None:
        """The value that it claims the key to have (ABSENT for none); None where it claims none."""
        if self.kind is Kind.DELETE and self.outcome is Outcome.FAILED:
            return ABSENT
        return None if self.kind.is_change or self.outcome is not Outcome.OK else self.observed


class History(msgspec.Struct, frozen=True, kw_only=True):
    """All that was done to the keys below one directory; ``seed`` repeats its programs."""

    seed: int
    directory: str
    operations: tuple[Operation, ...]

    @property
    def keys(self) -> list[str]:
        return sorted({operation.key for operation in self.operations})

    def of_key(self, key: str) -> list[Operation]:
        """Return what was done to one key, by the time of the call."""
        found = [operation for operation in self.operations if operation.key == key]
        return sorted(found, key=lambda operation: operation.invoked_s)


# -- bodies ---------------------------------------------------------------------------------


def body_of(directory: str, key: str, value: str, size_bytes: int) -> bytes:
    """Return the bytes that stand for a value; every 64 of them name it, and their place."""
    stamp = f"{directory} {key} {value} {size_bytes} ".encode()
    if len(stamp) > LINE_BYTES - 12:
        raise ValueError(f"too long a name for a line: {stamp!r}")
    blocks = range(-(-size_bytes // (LINE_BYTES * LINES_A_BLOCK)))
    lines = (b"%-52s%11d\n" % (stamp, number) for number in blocks)
    return b"".join(line * LINES_A_BLOCK for line in lines)[:size_bytes]


def value_in(directory: str, key: str, data: bytes, *, offset: int = 0, size_bytes: int) -> str:
    """Return the one value whose bytes at ``offset`` these are, of an object that was said to
    have ``size_bytes``; else a text that names what is wrong with them, which is no value.

    Pieces begin at a page and hold a whole line at least.
    """
    assert offset % PAGE_BYTES == 0
    line = bytes(data[: LINE_BYTES - 12]).decode("ascii", "replace").split()
    if len(line) != 4 or not line[3].isdigit():
        return f"rubbish: {bytes(data[:LINE_BYTES])!r}"
    said = f"{line[2]} of {line[3]} bytes"
    if [line[0], line[1]] != [directory, key]:
        return f"another object's bytes: {line[0]}/{line[1]} {said}"
    if int(line[3]) != size_bytes:
        return f"bytes of {said} under the size {size_bytes}"
    whole = body_of(directory, key, line[2], size_bytes)
    if bytes(data) != whole[offset : offset + len(data)]:
        return f"mixed bytes that begin as {said}"
    return line[2]
