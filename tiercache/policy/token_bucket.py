"""A token bucket that admits on its level and charges in full: the debt model.

To ask for ``tokens >= n`` starves whoever asks for more than a burst: 4 MiB reads at 5 MB/s with a
burst of 0.5 MB would never be admitted. Here an operation is admitted while the level is above
zero and is charged whole; the level goes negative, and the next one waits until the debt is paid.
So the sum admitted in any time t stays below ``rate * t + burst`` and one operation.
"""

from __future__ import annotations

from math import inf


class TokenBucket:
    """``rate`` tokens a second, ``burst`` of them kept at most, full at first.

    Not thread safe: its owner charges and refills it. ``level`` is negative while in debt.
    """

    __slots__ = ("at_s", "burst", "level", "rate")

    def __init__(self, *, rate: float, burst: float, now_s: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.at_s = now_s

    def refill(self, now_s: float) -> None:
        """Add what has come in since the last call. A time before that adds nothing."""
        passed_s = now_s - self.at_s
        if passed_s <= 0:
            return
        self.at_s = now_s
        level = self.level + self.rate * passed_s
        self.level = level if level < self.burst else self.burst

    def is_open(self) -> bool:
        """Say whether an operation, of whatever size, is admitted now."""
        return self.level > 0

    def charge(self, n: float) -> None:
        """Take ``n`` tokens, whether they are there or not."""
        self.level -= n

    def wait_s(self, n: float = 0.0) -> float:
        """Return how long after the last refill the level passes ``n``: what stands in the queue
        before whoever asks. 0 when it has; inf when it never will."""
        lacking = n - self.level
        if lacking < 0:
            return 0.0
        return lacking / self.rate if self.rate > 0 else inf

    def change(self, *, rate: float, burst: float, now_s: float) -> None:
        """Give other terms from now on: debts stay, and what exceeds the new burst goes."""
        self.refill(now_s)
        self.rate = rate
        self.burst = burst
        self.level = min(self.level, burst)
