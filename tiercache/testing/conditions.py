"""The state of a shaped network at this moment: its faults, its black hole, its profile."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from urllib.parse import unquote

from tiercache.testing.http_stream import BrokenStream
from tiercache.testing.network import NO_FAULT, Fault
from tiercache.testing.pacing import Shaper


@dataclass(slots=True, eq=False)
class Injected:
    """A fault that acts, and how often it did."""

    fault: Fault
    used: int = 0


class Conditions:
    """What a relay asks before it moves anything. The faults are thread safe; all else is owned
    by the event loop."""

    def __init__(self, shaper: Shaper) -> None:
        # Constant after construction.
        self.shaper = shaper
        # Owned by the event loop.
        self._flowing = asyncio.Event()  # cleared: a black hole
        self._flowing.set()
        self._healed = asyncio.Event()  # set and replaced by heal()
        # Guarded by self._lock.
        self._lock = threading.Lock()
        self._faults: list[Injected] = []

    # Any thread

    def inject(self, fault: Fault) -> Injected:
        """Let the fault act from now on, before all earlier ones."""
        injected = Injected(fault)
        with self._lock:
            self._faults.insert(0, injected)
        return injected

    def withdraw(self, injected: Injected) -> None:
        """End one fault; one already gone is no error."""
        with self._lock:
            if injected in self._faults:
                self._faults.remove(injected)

    def withdraw_all(self) -> None:
        with self._lock:
            self._faults.clear()

    def fault_for(self, method: str, path: str) -> Fault:
        """Return the latest fault that matches and count its use; else ``NO_FAULT``."""
        with self._lock:
            if not self._faults:
                return NO_FAULT
            decoded = unquote(path)
            for injected in self._faults:
                fault = injected.fault
                if fault.methods and method not in fault.methods:
                    continue
                if fault.path_contains not in decoded:
                    continue
                if fault.times is not None and injected.used >= fault.times:
                    continue
                injected.used += 1
                return fault
        return NO_FAULT

    # The event loop

    def open_black_hole(self) -> None:
        self._flowing.clear()

    def close_black_hole(self) -> None:
        """Let bytes flow again. What is caught in the hole is lost."""
        self._flowing.set()

    def release(self) -> None:
        """End the black hole and every stall."""
        self._healed.set()
        self._healed = asyncio.Event()
        self._flowing.set()

    async def pass_black_hole(self) -> None:
        """Return at once where there is none. Raises ``BrokenStream`` when it is over."""
        if not self._flowing.is_set():
            await self._flowing.wait()
            raise BrokenStream("lost in a black hole")

    async def until_healed(self) -> None:
        await self._healed.wait()
