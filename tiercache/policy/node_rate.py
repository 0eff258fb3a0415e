"""What a node is believed to deliver: measured once, and corrected by what it is seen to deliver.

A measurement on a busy node is too low and would hold everybody back for ever. But a node that
delivers, two seconds on end, all that it is believed to deliver, can evidently do so, and perhaps
more: then a little more is believed. Where the processors or the device are at their end, what is
delivered stays behind the belief, and the belief stands.
"""

from __future__ import annotations

from math import inf

# A window's use is cut short by turns and bursts at both of its ends; the governor itself keeps a
# limit within 3 %.
EVIDENCE = 0.97
# From a tenth of the truth in 25 windows of a second; and at most so much too high at the end,
# which is by how much reservations may fall short where the hardware decides.
GROWTH = 1.1


def grown(rate: float, *, delivered: float) -> float:
    """Return the rate to go on with, in tokens a second, after ``delivered`` tokens a second."""
    if rate == inf or delivered < EVIDENCE * rate:
        return rate
    return max(rate, delivered) * GROWTH
