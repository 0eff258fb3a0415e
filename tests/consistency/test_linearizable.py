"""The search for an order: on histories whose answer is known, and against all permutations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.consistency.made_histories import (
    FAILED,
    UNKNOWN,
    create,
    delete,
    operation,
    read,
    replace,
    write,
)
from tiercache.testing.consistency.linearizable import Verdict, check
from tiercache.testing.consistency.operations import ABSENT, Kind, Operation, Outcome

ACCEPTED = {
    "nothing was done": [],
    "absent at first": [read("", 0, 1)],
    "one after the other": [write("x", 0, 1), read("x", 2, 3), delete(4, 5), read("", 6, 7)],
    "two writes at once, in either order": [
        write("x", 0, 5),
        write("y", 0, 5),
        read("x", 6, 7),
        read("x", 8, 9),
    ],
    "a read beside a write sees the old": [write("x", 0, 1), write("y", 2, 9), read("x", 3, 4)],
    "a read beside a write sees the new": [write("x", 0, 1), write("y", 2, 9), read("y", 3, 4)],
    "a lost write happened": [write("x", 0, 1), write("y", 2, 3, outcome=UNKNOWN), read("y", 8, 9)],
    "a lost write never happened": [
        write("x", 0, 1),
        write("y", 2, 3, outcome=UNKNOWN),
        read("x", 8, 9),
    ],
    "a lost write happened late": [
        write("y", 2, 3, outcome=UNKNOWN),
        read("", 4, 5),
        read("y", 6, 7),
    ],
    "a lost removal happened late": [
        write("x", 0, 1),
        delete(2, 3, outcome=UNKNOWN),
        read("x", 4, 5),
        read("", 6, 7),
    ],
    "one of two creators": [create("x", 0, 5), create("y", 0, 5, outcome=FAILED), read("x", 6, 7)],
    "a replacement": [write("x", 0, 1), replace("y", "x", 2, 3), read("y", 4, 5)],
    "a replacement met another": [
        write("x", 0, 1),
        write("y", 2, 3),
        replace("z", "x", 4, 5, outcome=FAILED),
    ],
    "a removal met nothing": [delete(0, 1, outcome=FAILED), write("x", 2, 3)],
    "a read that failed says nothing": [
        write("x", 0, 1),
        operation(Kind.READ, 2, 3, outcome=UNKNOWN),
    ],
    "a write that was refused": [write("x", 0, 1, outcome=FAILED), read("", 2, 3)],
}
REJECTED = {
    "a value from nowhere": [read("x", 0, 1)],
    "an old value": [write("x", 0, 1), write("y", 2, 3), read("x", 4, 5)],
    "a lost update": [
        write("x", 0, 1),
        replace("y", "x", 2, 5),
        replace("z", "x", 2, 5),
    ],
    "two creators": [create("x", 0, 5), create("y", 0, 5)],
    "back and forth": [
        write("x", 0, 9),
        write("y", 0, 9),
        read("x", 10, 11),
        read("y", 12, 13),
    ],
    "a new value, then the old one": [
        write("x", 0, 1),
        write("y", 2, 9),
        read("y", 3, 4),
        read("x", 5, 6),
    ],
    "absent after a write": [write("x", 0, 1), read("", 2, 3)],
    "there after its removal": [write("x", 0, 1), delete(2, 3), read("x", 4, 5)],
    "a write that was refused is seen": [
        create("w", 0, 1),
        create("x", 2, 3, outcome=FAILED),
        read("x", 4, 5),
    ],
    "own success told as a conflict": [create("x", 0, 1, outcome=FAILED), read("", 2, 3)],
    "a replacement refused for no reason": [
        write("x", 0, 1),
        replace("y", "x", 2, 3, outcome=FAILED),
    ],
    "a removal found nothing where something was": [
        write("x", 0, 1),
        delete(2, 3, outcome=FAILED),
    ],
    "a lost write happens once": [
        write("y", 0, 1, outcome=UNKNOWN),
        read("y", 2, 3),
        write("x", 4, 5),
        read("y", 6, 7),
    ],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    assert check(ACCEPTED[name]).verdict is Verdict.OK


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name: str) -> None:
    assert check(REJECTED[name]).verdict is Verdict.VIOLATED


def test_a_search_that_is_cut_off_is_undecided() -> None:
    many = [write(f"v{number}", 0, 100) for number in range(12)] + [read("other", 0, 200)]
    many.append(write("other", 300, 301))
    assert check(many, configurations=500).verdict is Verdict.UNDECIDED
    assert check(many[:6] + many[-2:]).verdict is Verdict.VIOLATED


def test_a_change_that_may_have_happened_twice() -> None:
    again = write("y", 0, 9)
    seen = [again, read("y", 1, 2), write("x", 3, 4), read("y", 5, 6)]
    assert check(seen).verdict is Verdict.VIOLATED
    assert check(seen, repeatable=[again]).verdict is Verdict.OK
    late = [*seen[:3], write("w", 10, 11), read("y", 12, 13)]  # it had returned by then
    assert check(late, repeatable=[again]).verdict is Verdict.VIOLATED


def test_sixty_operations_of_five_processes_are_decided_at_once() -> None:
    done = [
        found
        for number in range(30)
        for found in (
            write(f"v{number}", 10 * number, 10 * number + 25),
            read(f"v{number}", 10 * number + 20, 10 * number + 45),
        )
    ]
    search = check(done)
    assert search.verdict is not Verdict.UNDECIDED
    assert search.configurations < 5_000


# -- against all permutations ---------------------------------------------------------------


def brute_force(operations: Sequence[Operation]) -> bool:
    """Return whether some order of some subset, that holds all which certainly happened, is that
    of a register. Shares nothing with the search but the operations."""
    counted = [found for found in operations if is_evidence(found)]
    unknown = [found for found in counted if found.outcome is Outcome.UNKNOWN]
    certain = [found for found in counted if found.outcome is not Outcome.UNKNOWN]
    return any(
        respects_times(order) and is_register(order)
        for chosen in subsets(unknown)
        for order in permutations([*certain, *chosen])
    )


def is_evidence(operation: Operation) -> bool:
    if operation.outcome is Outcome.FAILED:
        return operation.kind in (Kind.CREATE, Kind.REPLACE, Kind.DELETE)
    return operation.outcome is Outcome.OK or operation.kind.is_change


def subsets(operations: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    sizes = range(len(operations) + 1)
    return chain.from_iterable(combinations(operations, size) for size in sizes)


def respects_times(order: Sequence[Operation]) -> bool:
    return not any(
        later.outcome is not Outcome.UNKNOWN and later.returned_s < earlier.invoked_s
        for place, earlier in enumerate(order)
        for later in order[place + 1 :]
    )


def is_register(order: Sequence[Operation]) -> bool:
    state: str | None = None
    for found in order:
        done = found.outcome is not Outcome.FAILED
        match found.kind:
            case Kind.CREATE if done is not (state is None):
                return False
            case Kind.REPLACE if done is not (state == found.expected):
                return False
            case Kind.DELETE if not done and state is not None:
                return False
            case Kind.READ if found.observed != (state or ABSENT):
                return False
        if done and found.kind.is_change:
            state = None if found.kind is Kind.DELETE else found.value
    return True


KINDS = [Kind.WRITE, Kind.CREATE, Kind.REPLACE, Kind.DELETE, Kind.READ]


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    count = draw(st.integers(1, 6))
    values = [f"v{number}" for number in range(count)]
    made = []
    for number in range(count):
        start = draw(st.integers(0, 10))
        end = start + draw(st.integers(0, 6))
        kind = draw(
            st.sampled_from([Kind.WRITE, Kind.CREATE, Kind.REPLACE, Kind.DELETE, Kind.READ])
        )
        outcome = draw(st.sampled_from(list(Outcome))) if kind.is_change else Outcome.OK
        made.append(
            operation(
                kind,
                start,
                end,
                outcome=outcome,
                value=values[number] if kind.is_write else "",
                expected=draw(st.sampled_from(values)) if kind is Kind.REPLACE else "",
                observed=draw(st.sampled_from([ABSENT, *values])) if kind is Kind.READ else None,
            )
        )
    return made


@settings(max_examples=600)
@example([write("v0", 0, 3), read("v0", 3, 4)])
@given(small_histories())
def test_the_search_agrees_with_all_permutations(operations: list[Operation]) -> None:
    expected = Verdict.OK if brute_force(operations) else Verdict.VIOLATED
    assert check(operations).verdict is expected
