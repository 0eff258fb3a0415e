"""One kind of request to one account, bucket or prefix: the configured limit, and what its server
bears. ``backend`` asks all that cover a request."""

from __future__ import annotations

from enum import StrEnum
from math import inf

from tiercache.model import BackendStatus
from tiercache.policy.adaptive import AdaptiveRate
from tiercache.policy.token_bucket import TokenBucket

# What may come at once of a configured limit, in seconds of it: within 5 s that is 1 %.
BURST_S = 0.05
# An adaptive rate is paced: servers' buckets are empty when they have just put off.
PACED_S = 0.02


class Kind(StrEnum):
    """What providers count apart. HEAD is a GET; DELETE, COPY and a part of a stream are PUTs."""

    GET = "get"
    PUT = "put"
    LIST = "list"
    BYTES = "bytes"


class Bucket:
    """One kind of one scope: its configured limit, and what its server bears."""

    def __init__(self, scope: str, kind: Kind, now_s: float) -> None:
        # Constant after construction
        self.scope = scope
        self.kind = kind
        # Owned by the event loop
        self.limit = inf
        self.adaptive = AdaptiveRate()
        self.answered_s = -inf  # when the server last took a request
        self.throttled = 0
        self.waiting = 0
        self._configured = TokenBucket(rate=inf, burst=inf, now_s=now_s)
        self._paced = TokenBucket(rate=inf, burst=inf, now_s=now_s)

    def configure(self, limit: float, now_s: float) -> None:
        """Keep to this limit from now on; debts stay."""
        if limit == self.limit:
            return
        if inf in (limit, self.limit):
            self._configured = TokenBucket(rate=limit, burst=limit * BURST_S, now_s=now_s)
        else:
            self._configured.change(rate=limit, burst=limit * BURST_S, now_s=now_s)
        self.limit = limit

    def delay_s(self, now_s: float) -> float:
        """Return how long nothing may be sent yet, 0.0 where something may."""
        delay_s = 0.0
        if self.limit != inf and self._configured.level <= 0.0:
            self._configured.refill(now_s)
            delay_s = self._configured.wait_s()
        rate = self.adaptive.rate(now_s)
        if rate == inf:
            return delay_s
        if rate == 0.0:
            return max(delay_s, self.adaptive.paused_until_s - now_s)
        self._paced.change(rate=rate, burst=rate * PACED_S, now_s=now_s)
        return max(delay_s, self._paced.wait_s())

    def charge(self, count: float, now_s: float) -> None:
        """Take so many requests or bytes, which leave now."""
        if self.limit != inf:
            self._configured.refill(now_s)
            self._configured.charge(count)
        self._paced.charge(count)
        if count > 0:
            self.adaptive.sent(now_s, count)

    def answered(self, now_s: float, *, sent_s: float) -> None:
        self.answered_s = now_s
        self.adaptive.answered(now_s, sent_s=sent_s)

    def put_off(self, now_s: float, *, sent_s: float, retry_after_s: float, draw: float) -> bool:
        """Note a 429 or 503; return whether the bucket keeps the next attempt back."""
        self.throttled += 1
        held = self.adaptive.throttled(now_s, sent_s=sent_s, retry_after_s=retry_after_s, draw=draw)
        if self.adaptive.rate(now_s) != inf:
            # Nothing has been saved up, and what was sent before there was a rate is not owed.
            paced = self._paced
            paced.level = max(min(paced.level, 0.0), -1.0)
            paced.at_s = max(now_s, self.adaptive.paused_until_s)
        return held

    def status(self, now_s: float) -> BackendStatus:
        rate = self.adaptive.rate(max(now_s, self.adaptive.paused_until_s))
        return BackendStatus(
            scope=self.scope,
            kind=str(self.kind),
            limit=None if self.limit == inf else self.limit,
            rate=None if rate == inf else rate,
            sent_per_s=self.adaptive.sent_per_s(now_s),
            throttled=self.throttled,
            waiting=self.waiting,
            paused_s=max(0.0, self.adaptive.paused_until_s - now_s),
        )
