"""Time in small portions: bytes at a rate, requests at a rate, and a loop that wakes in time.

Everything here is owned by one event loop; times are those of ``time.monotonic``.
"""

from __future__ import annotations

import asyncio
import math
import random
import select
import selectors
import time

from tiercache.testing.network import NetworkProfile

BLOCK_S = 0.005
"""A block is what passes in this time: short enough to look like a stream, and at 90 MB/s
(450 kB) long enough that the pace costs 200 wake-ups a second and not 5,000."""

MIN_BLOCK_BYTES = 1024

CATCH_UP_S = 0.020
"""A wake-up that comes late is made good by this much at most. Whoever paused for longer was
idle, and saved nothing up. A busy machine of two cores is late by some milliseconds."""

SHORTEST_SLEEP_S = 0.0001
"""A shorter wait is left for the next one: timers are late by the kernel's slack of 50 µs. It is
owed and not forgotten, so the rate stays the same."""

REQUEST_BURST_S = 0.1
"""What of a second's requests may come at once."""

_SELECT_DESCRIPTORS = 1024  # select(2) takes no higher number


class PromptSelector(selectors.EpollSelector):
    """Wakes for timers within some 60 µs, where epoll rounds a time-out up to a whole
    millisecond: a third of the premium profile's delay."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and self.fileno() < _SELECT_DESCRIPTORS:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Pacer:
    """A queue before a wire: each reservation ends when the wire has carried it."""

    __slots__ = ("_free_at_s",)

    def __init__(self) -> None:
        self._free_at_s = 0.0

    def settle(self, now_s: float) -> None:
        """Give up what could be caught up: a new message begins."""
        self._free_at_s = max(self._free_at_s, now_s)

    def reserve(self, count: int, bytes_per_s: float | None, now_s: float) -> float:
        """Return when ``count`` bytes more have passed. None: now."""
        if bytes_per_s is None:
            return now_s
        if self._free_at_s < now_s - CATCH_UP_S:
            self._free_at_s = now_s
        self._free_at_s += count / bytes_per_s
        return self._free_at_s


class RequestBudget:
    """A token bucket of requests, full at first."""

    def __init__(self, requests_per_s: float) -> None:
        self._requests_per_s = requests_per_s
        self._burst = max(1.0, requests_per_s * REQUEST_BURST_S)
        self._left = self._burst
        self._counted_at_s = time.monotonic()

    def admit(self, now_s: float) -> bool:
        """Count one request; return False, counting nothing, where it is one too many."""
        gained = (now_s - self._counted_at_s) * self._requests_per_s
        self._counted_at_s = now_s
        self._left = min(self._burst, self._left + gained)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Lane:
    """One direction of one connection, beside the other connections' lanes."""

    __slots__ = ("_connection", "_together")

    def __init__(self, together: Pacer) -> None:
        self._connection = Pacer()
        self._together = together

    def begin(self) -> None:
        """A message begins."""
        self._connection.settle(time.monotonic())

    async def pass_some(self, count: int, limit_bytes_per_s: float, network: NetworkProfile) -> int:
        """Wait until some of ``count`` bytes have had their time; return how many.

        ``limit_bytes_per_s`` bounds this connection besides the network (0: it does not).
        """
        total_bytes_per_s = network.total_bytes_per_s
        bytes_per_s = network.connection_bytes_per_s
        if limit_bytes_per_s:
            bytes_per_s = min(bytes_per_s or math.inf, limit_bytes_per_s)
        if bytes_per_s is None and total_bytes_per_s is None:
            return count
        slowest = min(bytes_per_s or math.inf, total_bytes_per_s or math.inf)
        count = min(count, max(MIN_BLOCK_BYTES, int(slowest * BLOCK_S)))
        now_s = time.monotonic()
        passed_s = max(
            self._connection.reserve(count, bytes_per_s, now_s),
            self._together.reserve(count, total_bytes_per_s, now_s),
        )
        await sleep_until(passed_s)
        return count


class Shaper:
    """A network's profile at work, for all connections; another profile may take its place."""

    def __init__(self, network: NetworkProfile, *, seed: int) -> None:
        self._rng = random.Random(seed)
        self._down = Pacer()
        self._up = Pacer()
        self.use(network)

    def use(self, network: NetworkProfile) -> None:
        """Be this network from now on, for bodies under way too."""
        self.network = network
        rate = network.requests_per_s
        self._requests = None if rate is None else RequestBudget(rate)

    def lanes(self) -> tuple[Lane, Lane]:
        """Return a new connection's way down to the client and its way up to the server."""
        return Lane(self._down), Lane(self._up)

    def admit_request(self) -> bool:
        return self._requests is None or self._requests.admit(time.monotonic())

    def first_byte_delay_s(self) -> float:
        """Draw the next delay: the seed and the number of draws decide it."""
        delay = self.network.first_byte
        return 0.0 if delay is None else delay.draw(self._rng)


async def sleep_until(deadline_s: float) -> None:
    """Return at ``deadline_s``; at once where that is past or less than a nap away."""
    left_s = deadline_s - time.monotonic()
    if left_s >= SHORTEST_SLEEP_S:
        await asyncio.sleep(left_s)
