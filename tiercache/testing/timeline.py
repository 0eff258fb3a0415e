"""What a network goes through, by the clock: "outage from 10 s to 20 s". Values only.

A line is ``WHAT from TIME to TIME``. TIME is a number of ``s`` or ``ms`` after the start. WHAT is

* ``outage``: a black hole; connections open, and no byte moves
* ``refuse``: connections are reset, new ones refused
* a profile's name: the network is that one for a while
* a status such as ``503``, or ``503 retry after 2 s``: the answer to every request
* ``lost answers``: the server carries requests out, their answers never come
* ``reset after 1000 bytes``, ``truncate after 1000 bytes``: of each answer's body
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from tiercache.testing.network import PROFILES, Fault, NetworkProfile

_LINE = re.compile(r"(.+?)\s+from\s+([\d.]+)\s*(m?s)\s+to\s+([\d.]+)\s*(m?s)")
_STATUS = re.compile(r"([1-5]\d\d)(?:\s+retry\s+after\s+(\d+)\s*s)?")
_CUT = re.compile(r"(reset|truncate)\s+after\s+(\d+)\s+bytes?")


class Condition(enum.Enum):
    """A state of the whole network."""

    OUTAGE = "outage"
    REFUSE = "refuse"


What = Condition | NetworkProfile | Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """``what`` holds from ``from_s`` (inclusive) to ``to_s``, in seconds after the start.

    ``text`` says it to people. Raises ``ValueError`` unless 0 ≤ from < to.
    """

    from_s: float
    to_s: float
    what: What
    text: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.from_s < self.to_s:
            raise ValueError(f"not 0 ≤ from < to: {self.from_s} s, {self.to_s} s")
        if not self.text:
            object.__setattr__(self, "text", _described(self.what))

    def excludes(self, other: Period) -> bool:
        """Return whether both cannot be: the network is in one state, and of one profile."""
        if isinstance(self.what, Fault) or type(self.what) is not type(other.what):
            return False
        return self.from_s < other.to_s and other.from_s < self.to_s


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """A period began or ended, at ``at_s`` of ``time.monotonic``."""

    at_s: float
    begins: bool
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Periods in any order. Faults may overlap with everything; outages and refusals not with
    each other, nor profiles with profiles: that raises ``ValueError``."""

    periods: tuple[Period, ...]

    def __post_init__(self) -> None:
        for number, period in enumerate(self.periods):
            for other in self.periods[:number]:
                if period.excludes(other):
                    raise ValueError(f"{other.text!r} and {period.text!r} overlap")

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Timeline:
        """Read one period a line. Raises ``ValueError`` naming the line that has no meaning."""
        if isinstance(lines, str):
            lines = lines.splitlines()
        return cls(tuple(_parsed(line.strip()) for line in lines if line.strip()))

    def steps(self) -> list[tuple[float, bool, Period]]:
        """Return (seconds after the start, begins, period) in order; at one moment the ends come
        first."""
        begins = [(period.from_s, True, period) for period in self.periods]
        ends = [(period.to_s, False, period) for period in self.periods]
        return sorted(begins + ends, key=lambda step: step[:2])


def _parsed(line: str) -> Period:
    found = _LINE.fullmatch(line)
    what = _what(found[1]) if found else None
    if found is None or what is None:
        known = ", ".join(["outage", "refuse", *PROFILES, "503", "lost answers"])
        raise ValueError(f"not 'WHAT from N s to N s' with WHAT one of {known} …: {line!r}")
    from_s, to_s = _seconds(found[2], found[3]), _seconds(found[4], found[5])
    return Period(from_s=from_s, to_s=to_s, what=what, text=found[1])


def _seconds(number: str, unit: str) -> float:
    return float(number) / (1000.0 if unit == "ms" else 1.0)


def _what(text: str) -> What | None:
    if text in PROFILES:
        return PROFILES[text]
    if text in [condition.value for condition in Condition]:
        return Condition(text)
    if text == "lost answers":
        return Fault(lose_answer=True)
    if status := _STATUS.fullmatch(text):
        retry_after_s = int(status[2]) if status[2] else None
        return Fault(respond_status=int(status[1]), retry_after_s=retry_after_s)
    if cut := _CUT.fullmatch(text):
        if cut[1] == "reset":
            return Fault(reset_after_bytes=int(cut[2]))
        return Fault(truncate_after_bytes=int(cut[2]))
    return None


def _described(what: What) -> str:
    match what:
        case Condition():
            return what.value
        case NetworkProfile():
            return what.name
        case Fault():
            return str(what.respond_status or what)
        case _:
            assert_never(what)
