"""The modes under test: how they are mounted, and which checkers decide on their histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tiercache.model import Consistency
from tiercache.settings import MountSettings
from tiercache.testing.consistency import intervals, linearizable, reports
from tiercache.testing.consistency.intervals import CLOSE_TO_OPEN, Promise, Violation
from tiercache.testing.consistency.linearizable import Search, Verdict
from tiercache.testing.consistency.operations import (
    ORIGIN,
    History,
    Kind,
    Operation,
    Outcome,
)
from tiercache.testing.consistency.programs import READER_MIX, SITE_MIX, Workload

# Short, so that a history of some seconds sees several: a request's way is some milliseconds.
TTL_S = 0.3
NEGATIVE_TTL_S = 0.2
MOUNT = "/m"
# Shorter than any time after which a site gives a request up and sends it again (``runner``).
RESENDS_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One mode, mounted. ``linearizable``: every look counts in the order; else only changes, and
    looks at the origin itself, must fit into one."""

    consistency: Consistency
    promise: Promise
    workload: Workload
    linearizable: bool = False

    def mount(self, origin: str) -> MountSettings:
        return MountSettings(
            path=MOUNT,
            origin=origin,
            profile="site",
            consistency=self.consistency,
            ttl_s=TTL_S,
            negative_ttl_s=NEGATIVE_TTL_S,
        )


MODES: dict[str, Mode] = {
    "immutable": Mode(
        consistency=Consistency.IMMUTABLE,
        promise=Promise(ttl_s=TTL_S, negative_ttl_s=NEGATIVE_TTL_S, binds=True),
        workload=Workload(site_mix=READER_MIX),
    ),
    "eventual": Mode(
        consistency=Consistency.EVENTUAL,
        promise=Promise(ttl_s=TTL_S, negative_ttl_s=NEGATIVE_TTL_S, resends_s=RESENDS_S),
        workload=Workload(site_mix=SITE_MIX),
    ),
    "close-to-open": Mode(
        consistency=Consistency.CLOSE_TO_OPEN,
        promise=replace(CLOSE_TO_OPEN, resends_s=RESENDS_S),
        workload=Workload(site_mix=SITE_MIX),
    ),
    # The intervals say less than the order does, but of listings too.
    "strong": Mode(
        consistency=Consistency.STRONG,
        promise=CLOSE_TO_OPEN,
        workload=Workload(site_mix=SITE_MIX),
        linearizable=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the checkers say of one history. ``undecided`` names keys whose search was cut off:
    that is no pass."""

    history: History
    violations: tuple[Violation, ...] = ()
    undecided: tuple[str, ...] = ()


def judge(history: History, mode: Mode) -> Judgement:
    violations = intervals.check(history, mode.promise)
    undecided: list[str] = []
    for key in history.keys:
        violations += _unorderable(history.of_key(key), mode, undecided)
    return Judgement(history, tuple(violations), tuple(undecided))


def _unorderable(
    operations: list[Operation], mode: Mode, undecided: list[str]
) -> Iterator[Violation]:
    """Yield a violation where no order explains the operations."""
    counted = [found for found in operations if _counts(found, mode)]
    search = _search(counted, mode)
    if search.verdict is Verdict.UNDECIDED:
        undecided.append(operations[0].key)
    if search.verdict is not Verdict.VIOLATED:
        return

    def is_wrong(fewer: Sequence[Operation]) -> bool:
        return _search(fewer, mode).verdict is Verdict.VIOLATED

    smallest = reports.shrink(counted, is_wrong)
    smallest.sort(key=lambda found: found.returned_s)
    yield Violation(
        rule="no order of these operations explains what they saw",
        offender=smallest[-1],
        witnesses=tuple(smallest[:-1]),
    )


def _counts(operation: Operation, mode: Mode) -> bool:
    if operation.kind is Kind.LIST:
        return False  # of many keys, each as the intervals' checker has it
    return mode.linearizable or operation.kind.is_change or operation.site == ORIGIN


def _search(operations: Sequence[Operation], mode: Mode) -> Search:
    search = linearizable.check(operations)
    if mode.linearizable or search.verdict is not Verdict.VIOLATED:
        return search
    # A change whose answer was lost is sent again where another's change, or nothing, is found in
    # its place (docs/semantics.md): it may then have happened twice.
    repeatable = [
        found
        for found in operations
        if found.site != ORIGIN
        and found.kind in (Kind.WRITE, Kind.CREATE, Kind.DELETE)
        and found.outcome is not Outcome.FAILED
    ]
    return linearizable.check(operations, repeatable=repeatable)
