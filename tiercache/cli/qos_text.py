"""What the qos commands print, as pure functions from what the agent told to lines and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiercache.cli.output import plain_table
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiercache.model import BackendStatus
    from tiercache.qos_reports import (
        BucketNow,
        CapacityNow,
        Claim,
        Explained,
        IdentityNow,
        IdentityUse,
        OverrideNow,
        RatesNow,
        ScheduleNow,
        ShareNow,
        SharesNow,
        Show,
        Top,
    )

NOTHING = "-"
RESOURCES = ("read", "write", "operations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table: ``right`` names the columns that hold numbers."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[int, ...] = ()

    def first(self, columns: int) -> Grid:
        """Return the leftmost columns."""
        right = tuple(number for number in self.right if number < columns)
        rows = [row[:columns] for row in self.rows]
        return Grid(header=self.header[:columns], rows=rows, right=right)

    def lines(self) -> list[str]:
        return plain_table(self.header, self.rows, right=self.right) if self.rows else []


# -- numbers --------------------------------------------------------------------------------


def si(count: float) -> str:
    """Return "950", "1.5 k", "400 M": powers of 1000, at most three digits that count."""
    units = iter(("", " k", " M", " G", " T"))
    unit = next(units)
    while abs(count) >= 999.5 and unit != " T":
        count, unit = count / 1000, next(units)
    text = f"{count:.0f}" if abs(count) >= 99.95 or count == int(count) else f"{count:.1f}"
    return text + unit


def rate(resource: str, value: float | None) -> str:
    """Return "400 MB/s" for bytes, "1.5 k/s" for operations and requests, "-" for no bound."""
    return NOTHING if value is None else f"{amount(resource, value)}/s"


def amount(resource: str, value: float | None) -> str:
    """Return tokens of a resource: "12 MB", or "1.5 k"."""
    if value is None:
        return NOTHING
    if resource not in ("read", "write", "bytes"):
        return si(value)
    text = si(value)
    return text + ("B" if text[-1:].isalpha() else " B")


def mb(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:.1f}"


def bytes_or_nothing(count: int | None) -> str:
    return NOTHING if count is None else format_bytes(count)


def rates(values: RatesNow) -> str:
    """Return "read 2.1 GB/s, operations 50 k/s": what is bounded of it."""
    said = [f"{name} {rate(name, getattr(values, name))}" for name in RESOURCES
            if getattr(values, name) is not None]  # fmt: skip
    return ", ".join(said)


# -- show -----------------------------------------------------------------------------------


def show_head(told: Show, shown_time: str) -> list[str]:
    """Return the lines above the tables; ``shown_time`` is when the node was measured."""
    if not told.generation and not told.error:
        return ["no policy is in force: everybody gets what there is"]
    # Several mistakes are several lines.
    refused = ("REFUSED", told.error.replace("\n", f"\n{'':<10}"))
    if not told.generation:
        return [f"{name:<9} {text}" for name, text in (("policy", "none is in force"), refused)]
    facts = [
        ("policy", f"generation {told.generation}, {source_text(told.source)}"),
        ("profile", told.profile),
        refused,
        ("node", rates(told.node) or "not known: calibrate it, or say [node] in the policy"),
        ("measured", f"{rates(told.measured)} ({shown_time})" if rates(told.measured) else ""),
    ]
    if told.next_change_s is not None:
        facts.append(("changes", f"in {format_duration(told.next_change_s)}"))
    return [f"{name:<9} {text}" for name, text in facts if text]


def source_text(source: str) -> str:
    """Return where a policy is from."""
    return source if source == "applied" else f"from {source}"


def show_grids(told: Show) -> Iterator[Grid]:
    """Yield the tables, leaving out those that would be empty."""
    grids = (
        _classes(told),
        _identities(told),
        _caches(told.identities),
        _rules(told.identities),
        overrides_grid(told.overrides),
        schedules_grid(told.schedules),
        backends_grid(told.backends),
    )
    yield from (grid for grid in grids if grid.rows)


def _share_rows(shares: SharesNow) -> list[tuple[str, ...]]:
    """Return (resource, reserve, limit, weight, burst) of what is said, or one row of nothing."""
    rows: list[tuple[str, ...]] = []
    for resource in RESOURCES:
        share: ShareNow = getattr(shares, resource)
        if share.reserve or share.limit is not None or share.weight != 1 or share.burst is not None:
            rows.append(
                (
                    resource,
                    rate(resource, share.reserve or None),
                    rate(resource, share.limit),
                    f"{share.weight:g}",
                    amount(resource, share.burst),
                )
            )
    return rows or [("all", NOTHING, NOTHING, "1", NOTHING)]


def _grouped(
    head: tuple[str, ...], shares: SharesNow, tail: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield a row for each share, the cells around it only in the first."""
    for number, row in enumerate(_share_rows(shares)):
        before, after = (head, tail) if not number else (("",) * len(head), ("",) * len(tail))
        yield (*before, *row, *after)


def _or_nothing(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _classes(told: Show) -> Grid:
    rows = [
        row
        for one in told.classes
        for row in _grouped(
            (one.name, str(one.priority)), one.shares, (_or_nothing(one.in_flight),)
        )
    ]
    header = ("class", "priority", "of", "reserve", "limit", "weight", "burst", "in flight")
    return Grid(header=header, rows=rows, right=(1, 3, 4, 5, 6, 7))


def _identities(told: Show) -> Grid:
    rows = [
        row
        for one in told.identities
        for row in _grouped(
            (one.name, one.class_name),
            one.shares,
            (
                _or_nothing(one.in_flight),
                NOTHING if one.max_wait_s is None else format_duration(one.max_wait_s),
            ),
        )
    ]
    header = (
        "identity", "class", "of", "reserve", "limit", "weight", "burst", "in flight", "max wait",
    )  # fmt: skip
    return Grid(header=header, rows=rows, right=(3, 4, 5, 6, 7, 8))


def _is_bounded(capacity: CapacityNow) -> bool:
    bounds = (capacity.soft_bytes, capacity.max_bytes, capacity.pin_max_bytes)
    return bool(capacity.min_bytes) or any(bound is not None for bound in bounds)


def _caches(identities: Iterable[IdentityNow]) -> Grid:
    rows = [
        (one.name, *_capacity_cells(one.capacity))
        for one in identities
        if _is_bounded(one.capacity) or one.capacity.used_bytes
    ]
    header = ("cache of", "used", "pinned", "min", "soft", "max", "pin max")
    return Grid(header=header, rows=rows, right=(1, 2, 3, 4, 5, 6))


def _capacity_cells(capacity: CapacityNow) -> tuple[str, ...]:
    return (
        format_bytes(capacity.used_bytes),
        format_bytes(capacity.pinned_bytes),
        bytes_or_nothing(capacity.min_bytes or None),
        bytes_or_nothing(capacity.soft_bytes),
        bytes_or_nothing(capacity.max_bytes),
        bytes_or_nothing(capacity.pin_max_bytes),
    )


def _rules(identities: Iterable[IdentityNow]) -> Grid:
    rows = [(rule, one.name) for one in identities for rule in one.rules]
    return Grid(header=("rule", "leads to"), rows=rows)


def overrides_grid(overrides: Iterable[OverrideNow]) -> Grid:
    rows = [(one.identity, one.key, one.value, _left(one)) for one in overrides]
    return Grid(header=("override of", "key", "value", "left"), rows=rows, right=(3,))


def _left(override: OverrideNow) -> str:
    return "until unset" if override.left_s is None else format_duration(override.left_s)


def schedules_grid(schedules: Iterable[ScheduleNow]) -> Grid:
    rows = [(f"{one.kind} {one.name}", one.when) for one in schedules]
    return Grid(header=("schedule in force of", "when"), rows=rows)


def backends_grid(backends: Iterable[BackendStatus]) -> Grid:
    rows = [
        (
            one.scope,
            one.kind,
            rate(one.kind, one.limit),
            rate(one.kind, one.rate),
            rate(one.kind, one.sent_per_s),
            str(one.waiting),
            str(one.throttled),
            format_duration(one.paused_s) if one.paused_s else NOTHING,
        )
        for one in backends
    ]
    header = ("backend", "of", "limit", "bears", "sent", "wait", "put off", "pause")
    return Grid(header=header, rows=rows, right=(2, 3, 4, 5, 6, 7))


# -- top ------------------------------------------------------------------------------------


def top_head(told: Top) -> str:
    """Return one line: the generation, and how much of the node is used."""
    if not told.generation:
        return "no policy is in force: everybody gets what there is"
    used = []
    for resource in RESOURCES:
        now, node = getattr(told.used, resource), getattr(told.node, resource)
        text = f"{resource} {rate(resource, now or 0.0)}"
        used.append(f"{text} of {rate(resource, node)}" if node is not None else text)
    return f"generation {told.generation}, node: {', '.join(used)}"


# The first columns of ``top_grid``, which fit a terminal of 80 characters.
NARROW = 9


def top_grid(told: Top) -> Grid:
    """Return a row for each identity."""
    header = (
        "identity", "procs", "rd MB/s", "wr MB/s", "op/s", "share", "wait", "for", "on",
        "class", "waits", "waited", "throttled",
    )  # fmt: skip
    return Grid(
        header=header,
        rows=[_use_row(one) for one in told.identities],
        right=(1, 2, 3, 4, 5, 6, 7, 10, 11, 12),
    )


def _use_row(one: IdentityUse) -> tuple[str, ...]:
    return (
        one.identity,
        str(one.processes),
        mb(one.rates.read or 0.0),
        mb(one.rates.write or 0.0),
        f"{one.rates.operations or 0.0:.0f}",
        f"{one.share:.0%}",
        str(one.waiting) if one.waiting else NOTHING,
        format_duration(one.waiting_s) if one.waiting else NOTHING,
        one.bound_by or NOTHING,
        one.class_name,
        str(one.waits),
        format_duration(one.waited_s),
        str(one.throttled),
    )


def top_lines(told: Top) -> list[str]:
    """Return all of it as plain lines."""
    return [top_head(told), *top_grid(told).lines(), *backends_grid(told.backends).lines()]


# -- explain --------------------------------------------------------------------------------


def explain_lines(told: Explained) -> list[str]:
    """Return paragraphs, an empty line between them."""
    who = told.identity
    paragraphs = [
        [f"{who.name} at {told.path}: class {told.of_class.name}, priority "
         f"{told.of_class.priority}, generation {told.generation}"],
        [line for claim in told.claims for line in _claim_lines(claim)],
        _now_lines(told),
        _shares_lines(told),
        _buckets_lines(told.buckets),
        backends_grid(told.backends).lines(),
        _cache_lines(who.capacity),
    ]  # fmt: skip
    shown = [paragraph for paragraph in paragraphs if paragraph]
    return [line for number, paragraph in enumerate(shown)
            for line in ([""] if number else []) + paragraph]  # fmt: skip


def _claim_lines(claim: Claim) -> Iterator[str]:
    pids = f" (processes {', '.join(map(str, claim.pids))})" if claim.pids else ""
    yield f"{claim.claimant}{pids} is charged to {claim.identity}: {claim.reason}"
    for rule in claim.rules:
        if rule.reason:
            verb = "refused" if rule.refused else "lost"
            yield f"  {verb}: {rule.rule} → {rule.identity}: {rule.reason}"


def _shares_lines(told: Explained) -> list[str]:
    rows = [
        *_grouped((f"identity {told.identity.name}",), told.identity.shares),
        *_grouped((f"class {told.of_class.name}",), told.of_class.shares),
    ]
    header = ("share now", "of", "reserve", "limit", "weight", "burst")
    lines = Grid(header=header, rows=rows, right=(2, 3, 4, 5)).lines()
    lines += [f"by schedule of {one.kind} {one.name}: {one.when}" for one in told.schedules]
    lines += [f"by override: {one.key} = {one.value}, {_left_text(one)}" for one in told.overrides]
    in_flight = (("identity", told.identity.in_flight), ("class", told.of_class.in_flight))
    lines += [f"at most {cap} requests of the {of} in flight" for of, cap in in_flight
              if cap is not None]  # fmt: skip
    return lines


def _left_text(override: OverrideNow) -> str:
    left = _left(override)
    return left if override.left_s is None else f"{left} left"


def _buckets_lines(buckets: Iterable[BucketNow]) -> list[str]:
    rows = [
        (
            one.of,
            one.resource,
            rate(one.resource, one.rate),
            amount(one.resource, one.burst),
            amount(one.resource, one.level),
            _debt(one),
        )
        for one in buckets
    ]
    header = ("bucket", "of", "rate", "burst", "level", "")
    return Grid(header=header, rows=rows, right=(2, 3, 4)).lines()


def _debt(bucket: BucketNow) -> str:
    if bucket.level is None or bucket.level >= 0:
        return ""
    if not bucket.rate:
        return "in debt"
    return f"in debt: paid in {format_duration(-bucket.level / bucket.rate)}"


def _cache_lines(capacity: CapacityNow) -> list[str]:
    header = ("cache: used", "pinned", "min", "soft", "max", "pin max")
    if not (_is_bounded(capacity) or capacity.used_bytes):
        return []
    return plain_table(header, [_capacity_cells(capacity)], right=range(6))


def _now_lines(told: Explained) -> list[str]:
    use = told.use
    reads, writes = rate("read", use.rates.read or 0.0), rate("write", use.rates.write or 0.0)
    operations = rate("operations", use.rates.operations or 0.0)
    text = f"now: {reads} read, {writes} written, {operations} operations"
    text += f" by {use.processes} process{'es' if use.processes != 1 else ''}"
    if not use.waiting:
        return [f"{text}; nobody waits"]
    waiting = "1 waits" if use.waiting == 1 else f"{use.waiting} wait, the longest"
    on = use.bound_by or "the next turn"
    return [text, f"{waiting} for {format_duration(use.waiting_s)}, on: {on}"]
