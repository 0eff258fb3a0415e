"""Is there an order of one key's operations that a single register would have shown?

The search of Wing and Gong (1993) with the memory of Lowe (2017): a configuration is the set of
operations that have taken effect and the value they left, and none is visited twice. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tiercache.testing.consistency.operations import ABSENT, Kind, Operation, Outcome

CONFIGURATIONS = 200_000
"""Ends a search that would not end: ~2 s of one core. Histories of ours need some hundred."""


class Verdict(StrEnum):
    OK = "ok"
    VIOLATED = "violated"
    UNDECIDED = "undecided"  # never a pass: the search was cut off


@dataclass(frozen=True, slots=True)
class Search:
    """How it ended. ``longest`` is the longest order found, ``state`` the value that it left."""

    verdict: Verdict
    longest: tuple[Operation, ...] = ()
    state: str = ABSENT
    configurations: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    """One operation of the search. It requires the state to be one of some, or not to be one, and
    leaves another. What is not ``required`` may take effect or not."""

    operation: Operation
    bit: int
    required: bool
    before: int  # what must have taken effect
    missed: int  # what, not being required, can no longer take effect once this has

    @property
    def is_change(self) -> bool:
        return self.operation.kind.is_change and self.operation.outcome is not Outcome.FAILED

    def allows(self, state: str) -> bool:
        operation = self.operation
        failed = operation.outcome is Outcome.FAILED
        match operation.kind:
            case Kind.WRITE:
                return True
            case Kind.DELETE:
                return not failed or state == ABSENT
            case Kind.CREATE:
                return failed is not (state == ABSENT)
            case Kind.REPLACE:
                return failed is not (state == operation.expected)
            case _:
                return state == operation.observed

    def leaves(self, state: str) -> str:
        if not self.is_change:
            return state
        return ABSENT if self.operation.kind is Kind.DELETE else self.operation.value


def check(
    operations: Iterable[Operation],
    *,
    initial: str = ABSENT,
    repeatable: Sequence[Operation] = (),
    configurations: int = CONFIGURATIONS,
) -> Search:
    """Search an order of one key's operations that respects their times.

    A change of unknown outcome takes effect at any time after its call, or never. A failed one is
    a look at the key: the condition it names did not hold. ``repeatable`` are successful changes
    that may have taken effect once more between call and return.
    """
    calls = _calls(list(operations), list(repeatable))
    required = sum(call.bit for call in calls if call.required)
    best: tuple[int, tuple[Operation, ...], str] = (-1, (), initial)
    seen: set[tuple[int, str]] = set()
    stack: list[tuple[int, str, tuple[Operation, ...]]] = [(0, initial, ())]
    while stack:
        done, state, order = stack.pop()
        done, order = _absorb(calls, done, state, order)
        if (done & required) == required:
            return Search(Verdict.OK, order, state, len(seen))
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > configurations:
            return Search(Verdict.UNDECIDED, best[1], best[2], len(seen))
        depth = (done & required).bit_count()
        if depth > best[0]:
            best = (depth, order, state)
        for call in reversed(calls):
            if _is_next(call, done) and call.allows(state):
                after = done | call.bit | call.missed
                stack.append((after, call.leaves(state), (*order, call.operation)))
    return Search(Verdict.VIOLATED, best[1], best[2], len(seen))


def _is_next(call: _Call, done: int) -> bool:
    return not done & call.bit and not call.before & ~done


def _absorb(
    calls: list[_Call], done: int, state: str, order: tuple[Operation, ...]
) -> tuple[int, tuple[Operation, ...]]:
    """Let all looks take effect that may do so now and see this state. They change nothing, so no
    order is lost by it, unless one bars a change that may still be needed."""
    again = True
    while again:
        again = False
        for call in calls:
            if call.is_change or not _is_next(call, done) or call.missed & ~done:
                continue
            if call.allows(state):
                done |= call.bit
                order = (*order, call.operation)
                again = True
    return done, order


def _calls(operations: list[Operation], repeatable: list[Operation]) -> list[_Call]:
    found = [(operation, _is_required(operation)) for operation in operations if _counts(operation)]
    found += [(operation, False) for operation in repeatable]
    found.sort(key=lambda pair: pair[0].ends_s)
    calls = []
    for number, (operation, required) in enumerate(found):
        before = missed = 0
        for other, (earlier, is_required) in enumerate(found):
            if earlier.ends_s < operation.invoked_s:
                before |= is_required << other
                missed |= (not is_required) << other
        calls.append(_Call(operation, 1 << number, required, before, missed))
    return calls


def _is_required(operation: Operation) -> bool:
    return operation.outcome is not Outcome.UNKNOWN


def _counts(operation: Operation) -> bool:
    """Return whether it says anything: reads that failed do not, nor writes without a condition
    that were refused."""
    if operation.kind.is_change:
        return operation.kind is not Kind.WRITE or operation.outcome is not Outcome.FAILED
    return operation.says is not None
