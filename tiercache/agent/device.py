"""Health of the cache device: full, failing, read-only. Reads go on from the origin meanwhile.

After a refusal nothing is written for RETRY_S; the next attempt then decides. A device that was
once full or slow does not stay "down".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tiercache.errors import CacheFull

# Long enough that a broken device is not hammered, short enough that a freed one is used soon.
RETRY_S = 2.0


class NotCached(Exception):
    """The bytes cannot be put on the device now; they are to be read through."""


class Device:
    """Owned by the event loop. ``problem`` is empty while all is well."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._retry_at_s = 0.0
        self.problem = ""
        self.failures = 0

    @property
    def usable(self) -> bool:
        return not self.problem or self._now() >= self._retry_at_s

    def refused(self, error: OSError | CacheFull) -> NotCached:
        """Note what the device (or its limit) said; return the exception to raise instead."""
        if not isinstance(error, CacheFull):
            self.failures += 1
            self.problem = f"{type(error).__name__}: {error.strerror or error}"
            self._retry_at_s = self._now() + RETRY_S
        return NotCached(str(error))

    async def durable(self, flush: Awaitable[None]) -> None:
        """Await a flush of the index; its failure is the device's."""
        try:
            await flush
        except OSError as error:
            raise self.refused(error) from error
        self.problem = ""
