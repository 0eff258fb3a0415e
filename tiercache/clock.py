"""Time. CLOCK_BOOTTIME keeps counting through suspend and is shared by all processes of a boot.
Only the wall clock means something to another boot; it may be wrong or step, so it tells ages, and
no freshness is ever claimed on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

_BOOTTIME = time.CLOCK_BOOTTIME


class Clock(Protocol):
    """Seconds since boot, the identity of that boot, and seconds since 1970."""

    boot_id: str

    def now(self) -> float: ...

    def unix(self) -> float: ...


class BootClock:
    """The machine's clock. Thread safe; costs ~0.1 µs a call."""

    def __init__(self) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]

    def now(self) -> float:
        return time.clock_gettime(_BOOTTIME)

    def unix(self) -> float:
        return time.time()


class FakeClock:
    """A clock that a test moves. It was booted at ``UNIX_S``."""

    UNIX_S = 1_700_000_000.0

    def __init__(self, now: float = 1000.0, boot_id: str = "boot-1") -> None:
        self.boot_id = boot_id
        self._now = now

    def now(self) -> float:
        return self._now

    def unix(self) -> float:
        return self.UNIX_S + self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
