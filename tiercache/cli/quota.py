"""quota ls, set, check: what identities hold of the cache, and may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import fields, out, out_json, say, table
from tiercache.cli.qos_change import FOR, parsed_values, seconds_of
from tiercache.cli.qos_session import print_changed, running_qos
from tiercache.cli.qos_show import IDENTITY
from tiercache.cli.qos_text import bytes_or_nothing
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.qos_reports import QuotaNow

BOUNDS = ("min", "soft", "max", "pin_max")
VALUES = typer.Argument(metavar="BOUND=SIZE", help="min, soft, max or pin_max, like max=50GiB.")
REPAIR = typer.Option("--repair", help="Make the sums agree with what is on the device.")
HEADER = (
    "identity", "used", "reserved", "held", "pinned", "min", "soft", "max", "pin_max",
    "extents", "denied", "read through",
)  # fmt: skip


def ls(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Show what each identity holds of the cache, its bounds, and what they kept out. Starts no
    agent."""
    with running_qos(ctx) as qos:
        told = qos.quotas()
    if as_document:
        out_json(told)
        return ExitCode.OK
    table(HEADER, [_row(one) for one in told.quotas], right=range(1, len(HEADER)))
    for one in told.quotas:
        if one.unpinned_bytes:
            say(
                f"{one.identity}: {format_bytes(one.unpinned_bytes)} are covered by pins and not "
                "held, since pin_max is reached"
            )
    if not told.in_force:
        say("nobody's capacity is bounded: everything is charged to the default identity")
    return ExitCode.OK


def _row(one: QuotaNow) -> tuple[str, ...]:
    bounds = (one.min_bytes or None, one.soft_bytes, one.max_bytes, one.pin_max_bytes)
    return (
        one.identity,
        format_bytes(one.used_bytes),
        format_bytes(one.reserved_bytes),
        format_bytes(one.held_bytes),
        format_bytes(one.pinned_bytes),
        *map(bytes_or_nothing, bounds),
        str(one.extents),
        str(one.denied),
        format_bytes(one.denied_bytes),
    )


def set_(
    ctx: typer.Context,
    identity: Annotated[str, IDENTITY],
    values: Annotated[list[str], VALUES],
    for_: Annotated[str | None, FOR] = None,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Override bounds of an identity, until qos unset or for a while: qos set of capacity.max and
    the like."""
    found = parsed_values(values)
    for bound in found:
        if bound not in BOUNDS:
            raise typer.BadParameter(f"{bound}: there are {', '.join(BOUNDS)}")
    capacity = {f"capacity.{bound}": value for bound, value in found.items()}
    with session.namespace(ctx) as namespace:
        changed = namespace.qos.set(identity, capacity, for_s=seconds_of(for_))
    print_changed(changed, as_document=as_document)
    return ExitCode.OK


def check(
    ctx: typer.Context,
    repair: Annotated[bool, REPAIR] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Hold what identities are charged against index and device, beside the running agent; exit 7
    where they differ, repaired or not. Without an agent, fsck does the same."""
    with running_qos(ctx) as qos:
        found = qos.check_quotas()
        if repair and found.problems:
            qos.repair_quotas()
    if as_document:
        out_json(fields(found) | {"repaired": repair and bool(found.problems)})
    else:
        for one in found.problems:
            out(f"{one.identity}: {one.what}: {one.recorded} recorded, {one.found} found")
        if not found.problems:
            out("clean")
        elif repair:
            say("repaired")
    return ExitCode.CORRUPT if found.problems else ExitCode.OK
