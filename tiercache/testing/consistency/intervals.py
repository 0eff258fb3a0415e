"""How old may a value be that is read? The checkers of the modes that promise an interval. Pure.

Each works on what the operations' times prove: a change that returned before another was called
came before it at the origin. So what is reported is wrong for certain, in every order of things.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from tiercache.testing.consistency.operations import (
    ABSENT,
    ORIGIN,
    History,
    Kind,
    Operation,
    Outcome,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """How long ago, before the call, what is read must still have been true.

    ``ttl_s`` is of values and listings, ``negative_ttl_s`` of absences. ``binds``: what a site's
    first successful open found is what it reads for good; the age of values is not bounded then.
    ``resends_s``: a site's change that took as long as this may have been sent twice, and what was
    sent first, and held up on its way, may arrive at any time after (docs/semantics.md).
    """

    ttl_s: float
    negative_ttl_s: float
    binds: bool = False
    resends_s: float = inf


CLOSE_TO_OPEN = Promise(ttl_s=0.0, negative_ttl_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """``offender`` breaks ``rule``; ``witnesses`` are the other operations that prove it."""

    rule: str
    offender: Operation
    witnesses: tuple[Operation, ...] = ()


def check(history: History, promise: Promise) -> list[Violation]:
    """Return what the promise does not allow, in order of the calls."""
    found = list(identity(history))
    for key in history.keys:
        operations = history.of_key(key)
        for look in operations:
            if look.says is not None:
                found += _age(look, operations, promise)
        if promise.binds:
            found += _binding(operations)
    return sorted(found, key=lambda violation: violation.offender.invoked_s)


# -- bodies and tokens ----------------------------------------------------------------------


def identity(history: History) -> Iterator[Violation]:
    """Yield reads of what nobody wrote, mixtures, and version tokens that name two values."""
    for key in history.keys:
        operations = history.of_key(key)
        writes = {found.value: found for found in operations if found.kind.is_write}
        named: dict[str, tuple[str, Operation]] = {}
        for operation in operations:
            says = operation.says
            if says is not None and says != ABSENT and says not in writes:
                yield Violation(rule="this is no value that was written", offender=operation)
                continue
            value = operation.value if operation.kind.is_write else says
            if not value or value == ABSENT or not operation.token:
                continue
            first = named.setdefault(operation.token, (value, operation))
            if first[0] != value:
                rule = "one version token names two values"
                yield Violation(rule=rule, offender=operation, witnesses=(first[1],))


# -- age ------------------------------------------------------------------------------------


def _age(look: Operation, operations: Sequence[Operation], promise: Promise) -> Iterator[Violation]:
    """Yield a violation unless some change that left what was seen may still have been the last
    one within the time allowed."""
    replaced: list[tuple[Operation, Operation]] = []
    says = look.says
    assert says is not None
    allowed_s = _allowed_s(look, promise)
    if says == ABSENT:
        sources: list[Operation | None] = [None]  # before anything was written
        sources += [found for found in operations if _may_remove(found)]
    else:
        sources = [found for found in operations if found.kind.is_write and found.value == says]
    for source in sources:
        if source is not None and source.outcome is Outcome.FAILED:
            yield Violation(
                rule="its write was reported as failed", offender=look, witnesses=(source,)
            )
            return
        if source is not None and source.invoked_s > look.returned_s:
            continue  # it cannot have been seen yet
        if source is not None and _may_come_late(source, promise):
            return
        later = _replaced_by(source, look, operations, allowed_s)
        if later is None:
            return
        if source is not None:
            replaced.append((source, later))
    if says == ABSENT and not replaced:
        later = _replaced_by(None, look, operations, allowed_s)
        assert later is not None
        yield Violation(rule=_too_old(look, later, allowed_s), offender=look, witnesses=(later,))
    elif replaced:
        source, later = max(replaced, key=lambda pair: pair[1].returned_s)
        rule = _too_old(look, later, allowed_s)
        yield Violation(rule=rule, offender=look, witnesses=(source, later))
    elif sources:
        first = sources[0]
        assert first is not None
        yield Violation(rule="it was read before it was written", offender=look, witnesses=(first,))


def _allowed_s(look: Operation, promise: Promise) -> float:
    """Return how many seconds before the call it may have been true for the last time."""
    if look.site == ORIGIN:
        return 0.0
    if look.says == ABSENT and look.kind is not Kind.LIST:
        return promise.negative_ttl_s  # an outage never excuses an absence
    if look.stale:
        return inf
    if promise.binds and look.kind is not Kind.LIST:
        return inf
    return promise.ttl_s


def _may_remove(operation: Operation) -> bool:
    return operation.kind is Kind.DELETE and operation.outcome is not Outcome.FAILED


def _may_come_late(change: Operation, promise: Promise) -> bool:
    took_s = change.returned_s - change.invoked_s
    return change.site != ORIGIN and took_s >= promise.resends_s


def _replaced_by(
    source: Operation | None, look: Operation, operations: Iterable[Operation], allowed_s: float
) -> Operation | None:
    """Return a change that certainly came after ``source`` and so early that ``look`` had to see
    it, or what followed: one of its own node at once, another's within the time allowed."""
    source_ends_s = -inf if source is None else source.ends_s
    for other in operations:
        if not other.kind.is_change or not other.is_success or other is source:
            continue
        leaves = other.value if other.kind.is_write else ABSENT
        if leaves == look.says or other.invoked_s <= source_ends_s:
            continue
        own = other.site == look.site
        if other.returned_s < look.invoked_s - (0.0 if own else allowed_s):
            return other
    return None


def _too_old(look: Operation, later: Operation, allowed_s: float) -> str:
    age_ms = (look.invoked_s - later.returned_s) * 1e3
    what = "the absence" if look.says == ABSENT else "the value"
    if later.site == look.site:
        return f"{what} had been changed by its own node {age_ms:.1f} ms before the call"
    return (
        f"{what} had been changed {age_ms:.1f} ms before the call; "
        f"{allowed_s * 1e3:.0f} ms are allowed"
    )


# -- binding --------------------------------------------------------------------------------


def _binding(operations: Sequence[Operation]) -> Iterator[Violation]:
    """Yield looks of a site at another version than one that it had bound, with no change of its
    own to unbind it. Listings show the truth and bind nothing that was bound."""
    looks = [
        found
        for found in operations
        if found.says is not None and found.kind is not Kind.LIST and found.site != ORIGIN
    ]
    for number, later in enumerate(looks):
        for earlier in looks[:number]:
            if earlier.site != later.site or earlier.says in (ABSENT, later.says):
                continue
            if earlier.stale:
                continue  # what an outage makes do with binds nothing
            unbound = later.says == ABSENT or later.stale
            if unbound and later.invoked_s <= earlier.returned_s:
                continue  # it may have looked before the other bound the name
            if not _changed_between(operations, earlier, later):
                yield Violation(
                    rule="another version had been bound", offender=later, witnesses=(earlier,)
                )
                break


def _changed_between(operations: Iterable[Operation], earlier: Operation, later: Operation) -> bool:
    return any(
        found.kind.is_change
        and found.site == earlier.site
        and found.invoked_s <= max(earlier.returned_s, later.returned_s)
        and found.ends_s >= min(earlier.invoked_s, later.invoked_s)
        for found in operations
    )
