"""The rate that a server bears, found out from its answers: 429 and 503 say that it was too much.

Nothing bounds the rate until a server puts off. Then it falls to a share of what the server has
really taken lately, and grows along a cubic curve (Ha, Rhee, Xu, "CUBIC", 2008): soon back to where
it was cut, slowly past that, faster the longer nothing happens. One that demand has long been far
below is dropped. Where a server takes nothing at all, the rate is halved until it does, and comes
back by doubling. All rates are requests a second; ``now_s`` only moves forward.
"""

from __future__ import annotations

from collections import deque
from math import cbrt, exp2, inf, log2

# What is counted as "lately": a second, in tenths. A shorter one holds too few answers at the tens
# of requests a second that small accounts have, a longer one reacts late.
WINDOW_S = 1.0
BIN_S = 0.1
# The first cut waits for so much of a measurement: at 5 ms a request 50 answers of one connection.
MEASURE_S = 0.25
# A hundredth of the answers: S3 and GCS put off single requests for reasons of their own, at rates
# below 0.1 %. Cutting for each would hold 5,000 requests/s at some hundreds. Single ones are
# just retried.
SIGNIFICANT = 0.01
# Before anything is held back at all, a twentieth of a second's answers and so many of them; and so
# many in a row where nothing is accepted. A server's transient errors are a refusal or two, and say
# nothing of the rate: 500 random histories, with 1 % of such, took three times as long without.
SUSPICIOUS = 0.05
FEW = 5
# Once it is held back: so many of a second, or two that are a fifth of its answers. Each single one
# would take a fifth off, of what may be far below what the server bears.
SEVERAL = 3
LARGE = 0.2
# What is left after a cut. Far enough below for a server's empty bucket to fill again (a fifth of
# its rate), and a cut each 6 s, as follows from GROWTH, costs a twentieth of the throughput.
DECREASE = 0.8
# Where nothing was accepted there is no measurement.
COLLAPSE = 0.5
DOUBLING_S = 0.5
# A server that bears less than a request a second is out of order, and is asked so often.
FLOOR = 1.0
# Growth away from the point of the cut, requests/s a s³: at 200 requests/s back in (40/0.6)^(1/3) =
# 4 s, to 90 % in 0.8 s, 1 % above 1.5 s after that, doubled after 7 s; at 5,000 to 90 % in 2.4 s.
# The same for all, whatever their rate: of several clients at one server the slower ones gain.
GROWTH = 0.6
# Whoever is cut below the last cut has met somebody new, and leaves room (fast convergence).
ROOM = 0.9
# Where each cut costs a pause, time runs slower for the growth: by so much at the most.
SLOWEST = 2.0
# A cut shows after the answers to what was sent before it; servers' own windows are of this order.
REACTION_S = 0.25
# Dropped when nothing was put off for so long and it allows so many times what is asked for.
QUIET_S = 30.0
RELEASE = 10.0
# Nobody comes at the very end of the pause that all were told: spread over a quarter of it more.
SPREAD = 0.25
SPREAD_LEAST_S = 0.1
# A longer pause is not a throttled server's but an absent one's: a request a minute finds out.
PAUSE_MOST_S = 60.0


class _Lately:
    """Counts of sent, accepted and put off by tenths of a second."""

    __slots__ = ("_bins", "since_s")

    def __init__(self) -> None:
        self._bins: deque[list[float]] = deque(maxlen=round(WINDOW_S / BIN_S) + 1)
        self.since_s = -inf  # nothing before it counts

    def bin(self, now_s: float) -> list[float]:
        """Return the present bin: when it began, and the three counts."""
        bins = self._bins
        if not bins or now_s >= bins[-1][0] + BIN_S:
            if not bins or now_s - bins[-1][0] > WINDOW_S:
                self.since_s = max(self.since_s, now_s)
            bins.append([now_s, 0.0, 0.0, 0.0])
        return bins[-1]

    def rates(self, now_s: float) -> tuple[float, float, float]:
        """Return (sent, accepted, put off) a second, over a second or what is known of it."""
        begin_s = max(now_s - WINDOW_S, self.since_s)
        found = [one for one in self._bins if one[0] >= begin_s]
        if not found:
            return 0.0, 0.0, 0.0
        span_s = max(now_s - found[0][0], BIN_S)
        sums = [sum(column) / span_s for column in zip(*found, strict=True)]
        return sums[1], sums[2], sums[3]

    def refused(self, now_s: float) -> float:
        """Return how many were put off in the last second."""
        return sum(one[3] for one in self._bins if one[0] >= now_s - WINDOW_S)

    def begin(self, now_s: float) -> None:
        """Forget all before now."""
        self._bins.clear()
        self.since_s = now_s


class AdaptiveRate:
    """One limit that a server keeps and does not tell. Not thread safe.

    ``paused_until_s`` is until when the server asked to be left alone.
    """

    __slots__ = (
        "_ceiling", "_collapsed", "_cut_s", "_in_a_row", "_lately", "_latency_s", "_peak",
        "_rate", "_slowness", "_start_s", "paused_until_s", "throttled_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.paused_until_s = -inf
        self.throttled_s = -inf  # when a request was last put off
        self._lately = _Lately()
        self._in_a_row = 0  # put off since the last answer
        self._latency_s = 0.0
        self._rate = inf  # after the last cut
        self._ceiling = inf  # where it was cut, or the last that was seen to be taken
        self._start_s = -inf  # from here it grows
        self._slowness = 1.0
        self._cut_s = -inf
        self._collapsed = False
        self._peak = 0.0  # the most sent in a second since the cut

    def rate(self, now_s: float) -> float:
        """Return what may be sent now, inf where nothing is known; 0.0 during a pause."""
        if self._rate == inf:
            return 0.0 if now_s < self.paused_until_s else inf
        if now_s < self.paused_until_s:
            return 0.0
        if self._collapsed:
            return self._rate
        return self._grown(max(0.0, now_s - self._start_s) / self._slowness)

    def _grown(self, elapsed_s: float) -> float:
        rate, ceiling = self._rate, self._ceiling
        target = DECREASE * ceiling
        if rate < target:  # it comes from a collapse
            arrives_s = DOUBLING_S * log2(target / rate)
            if elapsed_s < arrives_s:
                return rate * exp2(elapsed_s / DOUBLING_S)
            rate, elapsed_s = target, elapsed_s - arrives_s  # from there on as after a cut
        past_s = elapsed_s - cbrt((ceiling - rate) / GROWTH)
        return ceiling + GROWTH * past_s * past_s * past_s

    def sent(self, now_s: float, count: float = 1.0) -> None:
        """Note a request that leaves now, or so many bytes of one."""
        present = self._lately.bin(now_s)
        if present[1] == 0.0 and self._rate != inf:
            self._observe(now_s)
        present[1] += count

    def answered(self, now_s: float, *, sent_s: float) -> None:
        """Note an answer that was one, to a request that left at ``sent_s``."""
        self._lately.bin(now_s)[2] += 1
        self._in_a_row = 0
        took_s = now_s - sent_s
        self._latency_s += 0.1 * (took_s - self._latency_s) if self._latency_s else took_s
        if self._collapsed and sent_s >= self._cut_s:
            self._collapsed = False
            self._start_s = now_s

    def throttled(
        self, now_s: float, *, sent_s: float, retry_after_s: float = 0.0, draw: float = 0.0
    ) -> bool:
        """Note an answer that put the request off; return whether the rate now keeps the next
        attempt back. Where it does not (one of many), the caller waits as after any failure.

        ``retry_after_s`` is the server's advice, 0.0 for none; ``draw`` from [0, 1) spreads the
        clients that were given the same.
        """
        self._lately.bin(now_s)[3] += 1
        self._in_a_row += 1
        self.throttled_s = now_s
        sent, accepted, off = self._lately.rates(now_s)
        if off < SIGNIFICANT * (accepted + off):
            return False
        if not retry_after_s and self._is_transient(now_s, accepted, off):
            return self._rate != inf
        if retry_after_s > 0.0:
            pause_s = min(retry_after_s, PAUSE_MOST_S)
            pause_s += draw * max(SPREAD * pause_s, SPREAD_LEAST_S)
            self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        if sent_s < self._start_s or not (retry_after_s or self._has_measured(now_s, sent_s)):
            self._start_s = max(self._start_s, self.paused_until_s)
            return self._rate != inf
        self._cut(now_s, sent, accepted, is_measured=self._has_measured(now_s, sent_s))
        return True

    def _is_transient(self, now_s: float, accepted: float, off: float) -> bool:
        """Whether too little was put off to say that it is the rate."""
        if accepted == 0.0 and self._in_a_row < FEW:
            return True
        refused, share = self._lately.refused(now_s), off / (accepted + off)
        if self._rate == inf:
            return refused < FEW or share < SUSPICIOUS
        return refused < SEVERAL and (refused < 2 or share < LARGE)

    def _has_measured(self, now_s: float, sent_s: float) -> bool:
        """Whether what was sent since the last cut has shown what it led to."""
        if self._rate == inf:
            return now_s - self._lately.since_s >= MEASURE_S
        return sent_s >= self._start_s + max(REACTION_S, 2 * self._latency_s)

    def _cut(self, now_s: float, sent: float, accepted: float, *, is_measured: bool) -> None:
        allowed = min(self.rate(max(now_s, self.paused_until_s)), sent)
        self._collapsed = accepted == 0.0
        if self._collapsed:
            if self._ceiling == inf:
                self._ceiling = max(sent, FLOOR)
            self._rate = min(max(COLLAPSE * allowed, FLOOR), DECREASE * self._ceiling)
        else:
            taken = max(min(accepted, allowed), FLOOR)
            self._rate = DECREASE * taken
            if not is_measured:
                self._ceiling = max(allowed, FLOOR)  # what it bears is found out by doubling
            else:
                self._ceiling = ROOM * taken if taken < self._ceiling < inf else taken
        self._slowness = min(SLOWEST, 1.0 + max(0.0, self.paused_until_s - now_s))
        self._cut_s = now_s
        self._start_s = max(now_s, self.paused_until_s)
        self._peak = 0.0
        self._lately.begin(now_s)

    def _observe(self, now_s: float) -> None:
        """Once in each tenth of a second: is there still anything to keep back?"""
        self._peak = max(self._peak, self._lately.rates(now_s)[0])
        if now_s - max(self.throttled_s, self._start_s) < QUIET_S:
            return
        if self.rate(now_s) > RELEASE * max(self._peak, FLOOR):
            self._rate = self._ceiling = inf
            self._collapsed = False

    def sent_per_s(self, now_s: float) -> float:
        """Return what was sent lately."""
        return self._lately.rates(now_s)[0]
