"""``qos-audit.jsonl``: who changed the QoS policy, and who was denied what. docs/format.md says
what its lines hold.

Two files of AUDIT_BYTES at most. Lines are written on a thread, in order; where the device fails
they are logged instead. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import Executor
from dataclasses import dataclass

import msgspec

from tiercache.clock import Clock

log = logging.getLogger("tiercache.agent")

AUDIT_BYTES = 64 * 1024
# A rule of a thousand paths, or what a client gave for a name, is cut to fit: a line that is longer
# than the file would not be there at all.
LINE_BYTES = AUDIT_BYTES // 4
# Of one identity's denials one line in this time is written, with the count of the others: a
# thousand refusals a second are one fact.
DENIALS_S = 10.0
# Of a change so many differences are told: another policy altogether has hundreds.
MOST_DIFFERENCES = 100


def told(differences: tuple[str, ...]) -> list[str]:
    """Return the differences that a line has room for."""
    more = len(differences) - MOST_DIFFERENCES
    return [*differences[:MOST_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])]


def _cut(fact: object, most: int) -> object:
    """Return a fact whose texts have so many characters at most."""
    if isinstance(fact, list):
        return [_cut(one, most) for one in fact]
    return f"{fact[:most]}…" if isinstance(fact, str) and len(fact) > most else fact


@dataclass(slots=True)
class _Denials:
    """Since the last line about an identity."""

    told_s: float
    suppressed: int = 0
    last: str = ""


class Audit:
    """Appends lines. ``note`` returns at once; ``flush`` when they are in the file."""

    def __init__(self, path: str, clock: Clock, executor: Executor) -> None:
        self._path = path
        self._clock = clock
        self._executor = executor
        self._lines: list[bytes] = []
        self._denials: dict[str, _Denials] = {}
        self._lock = asyncio.Lock()

    def note(self, what: str, **facts: str | int | float | list[str]) -> None:
        """Add a line: the time, what happened, and its facts. Synchronous and cheap."""
        line = {"unix_s": round(self._clock.unix(), 3), "what": what, **facts}
        data, most = msgspec.json.encode(line), LINE_BYTES // 8
        while len(data) > LINE_BYTES and most:
            data = msgspec.json.encode({key: _cut(fact, most) for key, fact in line.items()})
            most //= 2
        self._lines.append(data + b"\n")

    def denied(self, identity: str, reason: str) -> None:
        """Add a line about a request that was refused for its identity's limits."""
        now_s = self._clock.now()
        known = self._denials.get(identity)
        if known is not None and now_s - known.told_s < DENIALS_S:
            known.suppressed += 1
            known.last = reason
            return
        self._denials[identity] = _Denials(now_s)
        self.note("denied", identity=identity, reason=reason)

    async def flush(self) -> None:
        """Write what was noted, and counts of denials whose time is over. To be called every
        second, and after what must not be forgotten."""
        self._tell_suppressed()
        if not self._lines:
            return
        async with self._lock:
            lines, self._lines = b"".join(self._lines), []
            if not lines:
                return
            try:
                await asyncio.get_running_loop().run_in_executor(
                    self._executor, _append, self._path, lines
                )
            except OSError as error:
                log.error("%s: %s: not written: %s", self._path, error.strerror, lines.decode())

    def _tell_suppressed(self) -> None:
        now_s = self._clock.now()
        for identity, known in list(self._denials.items()):
            if now_s - known.told_s < DENIALS_S:
                continue
            if not known.suppressed:
                del self._denials[identity]
                continue
            self.note("denied", identity=identity, reason=known.last, suppressed=known.suppressed)
            self._denials[identity] = _Denials(now_s)


def _append(path: str, lines: bytes) -> None:
    if len(lines) > AUDIT_BYTES:  # the newest whole ones
        lines = lines[-AUDIT_BYTES:].partition(b"\n")[2]
    fd = _open(path)
    try:
        is_full = os.fstat(fd).st_size + len(lines) > AUDIT_BYTES
        if not is_full:
            os.write(fd, lines)
    finally:
        os.close(fd)
    if is_full:
        os.rename(path, path + ".1")
        _append(path, lines)


def _open(path: str) -> int:
    # A pipe in the file's place is refused, and does not keep its writer.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o600)
