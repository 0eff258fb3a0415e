"""What a request costs its identity at the agent. docs/qos.md has the table.

Hits are no requests: clients pay for them by themselves. Reading parts of many names, binding to a
snapshot and ``local_path`` are charged by object where the engine finds out what is asked of each;
jobs by what they fetch. Read-ahead is charged to nobody: its bytes are, when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiercache import wire
from tiercache.agent.seats import MOST_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """``path`` as the client gives it, "" where ``number`` of a write stands for it."""

    path: str = ""
    number: int = 0
    read: int = 0
    write: int = 0
    operations: int = 1


def _bytes_of(length: int) -> int:
    """Return what a length is charged, which a client gives as it likes: one below 0 would pay for
    others, one beyond all sense be a debt for ever."""
    return min(max(length, 0), MOST_TOKENS)


def charge_of(request: wire.Request) -> Charge | None:
    """Return what a request is charged before it is carried out, None for nothing."""
    match request:
        case wire.Fill():
            asked = sum(_bytes_of(length) for _, length in request.spans)
            return Charge(path=request.path, read=asked)
        case wire.ReadThrough():
            return Charge(path=request.path, read=_bytes_of(request.length))
        case wire.WriteData():
            return Charge(number=request.write, write=len(request.data), operations=0)
        case wire.WriteFinish():  # what is written stands in the cache, charged to somebody
            return Charge(number=request.write, operations=0)
        case wire.CopyObject():
            return Charge(path=request.target)
        case wire.Lookup() | wire.ListNames() | wire.WriteBegin() | wire.Remove():
            return Charge(path=request.path)
        case _:
            return None
