"""When to try again: exponential backoff with full jitter inside a deadline.

Full jitter (a uniform draw between zero and the ceiling) spreads the herd best; see "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """``deadline_s`` bounds one operation with all its attempts and waits.

    The ceiling of the n-th wait is ``base_s`` times 2^(n-1), at most ``cap_s``; the mean wait is
    half of it. With 0.1 s and 5 s a request that fails at once is tried five times in the first
    0.8 s and about 27 times in 60 s.
    """

    deadline_s: float
    base_s: float = 0.1
    cap_s: float = 5.0


def delay_s(
    attempt: int, rng_value: float, *, policy: RetryPolicy, retry_after_s: float = 0.0
) -> float:
    """Return how long to wait after the ``attempt``-th failure (counted from 1).

    ``rng_value`` is a draw from [0, 1). The origin's own advice is a floor, never shortened.
    """
    # 2^30 times the base is past any cap: the exponent is bounded so that the power stays a float.
    ceiling_s = min(policy.cap_s, policy.base_s * 2.0 ** min(attempt - 1, 30))
    return max(retry_after_s, rng_value * ceiling_s)


def next_delay_s(
    attempt: int,
    rng_value: float,
    *,
    elapsed_s: float,
    policy: RetryPolicy,
    retry_after_s: float = 0.0,
) -> float | None:
    """Return the wait before the next attempt, or None where it would start past the deadline."""
    wait_s = delay_s(attempt, rng_value, policy=policy, retry_after_s=retry_after_s)
    return wait_s if elapsed_s + wait_s < policy.deadline_s else None


def remaining_s(elapsed_s: float, *, policy: RetryPolicy) -> float:
    """Return what is left of the deadline; negative where it has passed."""
    return policy.deadline_s - elapsed_s
