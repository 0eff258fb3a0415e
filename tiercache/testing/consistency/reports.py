"""What a violation looks like to people, and the fewest operations that still show it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tiercache.testing.consistency.intervals import Violation
from tiercache.testing.consistency.operations import (
    ABSENT,
    History,
    Kind,
    Operation,
    Outcome,
)


def shrink(
    operations: Sequence[Operation], is_wrong: Callable[[Sequence[Operation]], bool]
) -> list[Operation]:
    """Return as few of the operations as can be that are still wrong: none of them can be left
    out alone. What others observed or required is left out only together with these."""
    left = list(operations)
    size = max(1, len(left) // 2)
    while True:
        for start in range(0, len(left), size):
            fewer = _closed(left[:start] + left[start + size :])
            if len(fewer) < len(left) and is_wrong(fewer):
                left = fewer
                break
        else:
            if size == 1:
                return left
            size //= 2


def _closed(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what speaks of values that nobody writes any more, and what speaks of that."""
    left = list(operations)
    while True:
        written = {found.value for found in left if found.kind.is_write} | {"", ABSENT}
        closed = [
            found
            for found in left
            if found.expected in written and (found.says is None or found.says in written)
        ]
        if len(closed) == len(left):
            return left
        left = closed


def render(history: History, violation: Violation, *, about: str = "") -> str:
    """Return a report: the rule, the operation that breaks it, the proof, and all that was done to
    the key. Times are milliseconds since the history began."""
    zero_s = min(found.invoked_s for found in history.operations)
    offender = violation.offender
    proof = [*violation.witnesses, offender]
    lines = [
        f"{violation.rule}",
        f"  {_line(offender, zero_s)}",
        f"in {history.directory}/{offender.key}, seed {history.seed}{about}; the proof:",
        *timeline(proof, zero_s=zero_s, marked=[offender]),
        "all that was done to the key:",
        *timeline(history.of_key(offender.key), zero_s=zero_s, marked=proof),
    ]
    return "\n".join(lines)


def timeline(
    operations: Iterable[Operation], *, zero_s: float, marked: Sequence[Operation] = ()
) -> list[str]:
    """Return one line an operation, in order of the calls."""
    ordered = sorted(operations, key=lambda found: found.invoked_s)
    return [f"{'>' if found in marked else ' '} {_line(found, zero_s)}" for found in ordered]


def _line(operation: Operation, zero_s: float) -> str:
    start, end = ((at - zero_s) * 1e3 for at in (operation.invoked_s, operation.returned_s))
    open_end = "…" if operation.ends_s > operation.returned_s else " "
    return (
        f"{start:9.1f} – {end:9.1f}{open_end} {operation.process:<4}{operation.kind:<8}"
        f"{_what(operation)}"
    )


def _what(operation: Operation) -> str:
    if operation.kind.is_change:
        condition = {Kind.CREATE: " if absent", Kind.REPLACE: f" over {operation.expected}"}
        text = f"{operation.value}{condition.get(operation.kind, '')}: {operation.outcome}"
    elif operation.outcome is Outcome.OK:
        text = f"saw {operation.observed}{' (stale)' if operation.stale else ''}"
    else:
        text = "no answer"
    detail = f"  [{operation.detail}]" if operation.detail else ""
    return text.lstrip() + detail
