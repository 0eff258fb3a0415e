"""Histories written by hand: one operation a call, times in whole milliseconds."""

from __future__ import annotations

from typing import Any

from tiercache.testing.consistency.operations import ABSENT, History, Kind, Operation, Outcome

OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


def operation(
    kind: Kind, from_ms: int, to_ms: int, *, outcome: Outcome = OK, **fields: Any
) -> Operation:
    fields = {"process": f"{fields.get('site', 'a')}1", "site": "a", "key": "k", **fields}
    return Operation(
        kind=kind,
        invoked_s=from_ms / 1e3,
        returned_s=to_ms / 1e3,
        outcome=outcome,
        **fields,
    )


def write(value: str, from_ms: int, to_ms: int, **fields: Any) -> Operation:
    return operation(Kind.WRITE, from_ms, to_ms, value=value, **fields)


def create(value: str, from_ms: int, to_ms: int, **fields: Any) -> Operation:
    return operation(Kind.CREATE, from_ms, to_ms, value=value, **fields)


def replace(value: str, expected: str, from_ms: int, to_ms: int, **fields: Any) -> Operation:
    return operation(Kind.REPLACE, from_ms, to_ms, value=value, expected=expected, **fields)


def delete(from_ms: int, to_ms: int, **fields: Any) -> Operation:
    return operation(Kind.DELETE, from_ms, to_ms, **fields)


def read(value: str, from_ms: int, to_ms: int, **fields: Any) -> Operation:
    return operation(
        fields.pop("kind", Kind.READ), from_ms, to_ms, observed=value or ABSENT, **fields
    )


def history(*operations: Operation) -> History:
    return History(seed=7, directory="h7", operations=operations)
