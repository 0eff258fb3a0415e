"""What a node is believed to deliver."""

from __future__ import annotations

from math import inf

import pytest

from tiercache.policy.node_rate import grown


@pytest.mark.parametrize(
    ("rate", "delivered", "after"),
    [
        (100.0, 0.0, 100.0),
        (100.0, 96.0, 100.0),
        (100.0, 97.0, 110.0),
        (100.0, 100.0, 110.0),
        (100.0, 200.0, 220.0),  # more than was granted: what a burst or a debt let through
        (inf, 1e9, inf),
    ],
)
def test_only_what_is_used_to_its_end_grows(rate: float, delivered: float, after: float) -> None:
    assert grown(rate, delivered=delivered) == pytest.approx(after)


def test_the_belief_ends_a_tenth_above_the_truth() -> None:
    rate, truth = 10.0, 600.0
    for _ in range(100):
        rate = grown(rate, delivered=min(rate, truth))
    assert truth <= rate <= 1.15 * truth
