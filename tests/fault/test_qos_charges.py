"""What a request is charged, whatever lengths its client gives."""

from __future__ import annotations

import pytest

from tiercache import wire
from tiercache.agent.charges import charge_of


@pytest.mark.parametrize(
    ("lengths", "charged"),
    [
        ([100, 50], 150),
        ([8 << 20, -(8 << 20)], 8 << 20),  # nothing is read for nothing
        ([-(1 << 62)], 0),
        ([1 << 63], 1 << 40),  # nor pays anybody for a year what cannot have been read
    ],
)
def test_lengths_are_taken_with_care(lengths: list[int], charged: int) -> None:
    fill = charge_of(wire.Fill("/m/x", "t", tuple((0, length) for length in lengths)))
    assert fill is not None and fill.read == charged
    through = [charge_of(wire.ReadThrough("/m/x", "t", 0, length)) for length in lengths]
    assert sum(one.read for one in through if one is not None) == charged
