"""What a process grants itself while no governor does: the last share heard, then a safe one.

The agent may die, be stopped, or have had no slot to give. Reading from the cache goes on all the
same, at a rate that keeps the node within its limits: for ``HOLD_S`` at what the governor granted
last, since an agent is back within seconds as a rule, and then at the safe share, since nobody
knows any more who else reads.
"""

from __future__ import annotations

from math import inf

from tiercache.policy.lease_words import UNLIMITED
from tiercache.policy.token_bucket import TokenBucket

# An agent that was killed is started again by the next miss, and serves within a second.
HOLD_S = 10.0
# Saved up at most, in seconds of the rate: a lease from the governor is as large.
BURST_S = 0.02
# Granted at once at most, whatever the rate: so often it is looked whether there is an agent again.
LOOK_OPERATIONS = 256
# Whatever was heard, nobody is stopped: a page and a few operations a second.
LEAST_READ = 65536.0
LEAST_OPERATIONS = 4.0

Pair = tuple[float, float]


class Alone:
    """Grants of bytes and operations, from ``now_s`` on. Not thread safe.

    ``rates`` and ``safe`` are tokens a second, ``inf`` for no bound. Whoever was given less than
    the safe share when the governor fell silent was idle, or had taken its turn: it has that too.
    """

    def __init__(self, rates: Pair, safe: Pair, now_s: float) -> None:
        self.began_s = now_s
        self._safe = (max(safe[0], LEAST_READ), max(safe[1], LEAST_OPERATIONS))
        self._used = (0, 0)
        self._is_held = True
        self.rates = (max(rates[0], self._safe[0]), max(rates[1], self._safe[1]))
        read, operations = self.rates
        self._buckets = (
            TokenBucket(rate=read, burst=_burst(read), now_s=now_s),
            TokenBucket(rate=operations, burst=_burst(operations), now_s=now_s),
        )

    def grants(self, used: tuple[int, int], now_s: float) -> tuple[int, int]:
        """Return up to where the counters may go, given how far they are: words as of a slot."""
        if self._is_held and now_s - self.began_s >= HOLD_S:
            self._is_held, self.rates = False, self._safe
            for bucket, rate in zip(self._buckets, self._safe, strict=True):
                bucket.change(rate=rate, burst=_burst(rate), now_s=now_s)
        words = []
        for bucket, count, before in zip(self._buckets, used, self._used, strict=True):
            bucket.refill(now_s)
            bucket.charge(count - before)
            words.append(UNLIMITED if bucket.rate == inf else count + max(0, int(bucket.level)))
        self._used = used
        return words[0], min(words[1], used[1] + LOOK_OPERATIONS)

    def wait_s(self, operations: int) -> float:
        """Return how long after the last ``grants`` what counts so many operations is admitted."""
        read, counted = self._buckets
        wait_s = read.wait_s()
        return max(wait_s, counted.wait_s()) if operations else wait_s


def _burst(rate: float) -> float:
    return max(1.0, rate * BURST_S)
