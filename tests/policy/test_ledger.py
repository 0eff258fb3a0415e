"""The ledger: what is reserved never exceeds the limit, and nothing is clamped."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tiercache.policy.ledger import Ledger

LIMIT = 1000


def test_reserve_charge_discharge() -> None:
    ledger = Ledger(LIMIT)
    ledger.overhead_bytes = 100
    assert ledger.room_bytes == 900
    assert ledger.reserve(900)
    assert not ledger.reserve(1)
    assert (ledger.used_bytes, ledger.room_bytes) == (1000, 0)
    ledger.release(900)
    ledger.charge(7, 640)
    assert (ledger.charge_of(7), ledger.charged_bytes) == (640, 640)
    ledger.charge(7, 512)  # what the device says now, not in addition
    assert ledger.used_bytes == 612
    assert ledger.discharge(7) == 512
    assert ledger.discharge(7) == 0
    assert ledger.used_bytes == 100
    ledger.assert_invariants()


def test_a_limit_that_fell_shows_as_negative_room() -> None:
    ledger = Ledger(LIMIT)
    ledger.charge(1, 900)
    ledger.limit_bytes = 500
    assert ledger.room_bytes == -400
    assert not ledger.reserve(0)


def test_what_was_never_reserved_cannot_be_released() -> None:
    ledger = Ledger(LIMIT)
    with pytest.raises(AssertionError, match="below zero"):
        ledger.release(1)
    with pytest.raises(AssertionError):
        ledger.assert_invariants()


def test_a_sum_that_drifts_is_found() -> None:
    ledger = Ledger(LIMIT)
    ledger.charge(1, 10)
    ledger.charged_bytes += 1
    with pytest.raises(AssertionError, match="add up"):
        ledger.assert_invariants()


class LedgerMachine(RuleBasedStateMachine):
    """Reservations in a list and charges in a dict say what the ledger must say."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(LIMIT)
        self.reserved: list[int] = []
        self.charges: dict[int, int] = {}

    @property
    def used(self) -> int:
        return sum(self.reserved) + sum(self.charges.values())

    @rule(count=st.integers(0, 400))
    def reserve(self, count: int) -> None:
        fits = self.used + count <= LIMIT
        assert self.ledger.reserve(count) is fits
        if fits:
            self.reserved.append(count)

    @precondition(lambda self: self.reserved)
    @rule(extent=st.integers(1, 5), share=st.floats(0, 1))
    def settle(self, extent: int, share: float) -> None:
        """A reservation becomes a charge of at most as many bytes."""
        count = self.reserved.pop()
        self.ledger.release(count)
        allocated = self.charges.get(extent, 0) + int(count * share)
        self.ledger.charge(extent, allocated)
        self.charges[extent] = allocated

    @precondition(lambda self: self.reserved)
    @rule()
    def release(self) -> None:
        self.ledger.release(self.reserved.pop(0))

    @rule(extent=st.integers(1, 6))
    def discharge(self, extent: int) -> None:
        assert self.ledger.discharge(extent) == self.charges.pop(extent, 0)

    @invariant()
    def agrees(self) -> None:
        self.ledger.assert_invariants()
        assert self.ledger.reserved_bytes == sum(self.reserved)
        assert self.ledger.charged_bytes == sum(self.charges.values())
        assert self.ledger.used_bytes == self.used <= LIMIT
        assert self.ledger.room_bytes == LIMIT - self.used


TestLedgerMachine = LedgerMachine.TestCase
