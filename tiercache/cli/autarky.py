"""autarky check: whether a job would survive an outage, before there is one."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON, PATHS
from tiercache.cli.output import fields, out, out_json
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiercache.model import Autarky

SHOWN = 10
ALL = typer.Option("--all", help=f"Name everything that is missing, not the first {SHOWN}.")


def check(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    everything: Annotated[bool, ALL] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Say whether a job over paths would survive an outage that begins now.

    It would where everything below the paths is known and wholly cached, and the mounts serve
    what they cannot ask for. Asks no origin, so it also works in an outage. Ends with 0 where
    everything would survive, with 1 where not.
    """
    tally = session.tally(ctx)
    found: list[Autarky] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths):
            with tally.item():
                report = namespace.autarky(path, shown=None if everything else SHOWN)
                found.append(report)
                if not as_document:
                    print_report(report)
    if as_document:
        out_json([as_json(report) for report in found])
    if tally.code != ExitCode.OK:
        return tally.code
    return ExitCode.OK if all(report.survives for report in found) else ExitCode.FAILED


def as_json(report: Autarky) -> dict[str, Any]:
    return {**fields(report), "remedy": remedy(report)}


def remedy(report: Autarky) -> str:
    """Return the command that makes the job survive; nothing where it does, or no command can."""
    if report.missing or report.unlisted:
        return f"tiercache prefetch --pin {shlex.quote(report.path)}"
    return ""


def print_report(report: Autarky) -> None:
    verdict = "would survive" if report.survives else "would not survive"
    out(f"{report.path}: a job {verdict} an outage")
    out(f"  objects    {report.objects} known, {format_bytes(report.size_bytes)}")
    if report.missing:
        rate = f"{format_bytes(report.bytes_per_s)}/s"
        source = "measured lately" if report.is_measured else "assumed"
        out(
            f"  missing    {report.missing} objects, {format_bytes(report.missing_bytes)}: about "
            f"{format_duration(report.fetch_s)} to fetch at {rate} ({source})"
        )
        for one in report.missing_objects:
            cached, size = format_bytes(one.cached_bytes), format_bytes(one.size_bytes)
            out(f"             {one.path}  {cached} of {size} cached")
        _print_rest(report.missing - len(report.missing_objects))
    if report.unlisted:
        out(f"  unlisted   {report.unlisted} directories: what they hold is not known")
        for path in report.unlisted_paths:
            out(f"             {path}")
        _print_rest(report.unlisted - len(report.unlisted_paths))
    for line in report.refused:
        out(f"  refused    {line}")
    if report.evictable:
        out(
            f"  evictable  {report.evictable} objects, {format_bytes(report.evictable_bytes)}: "
            "cached and not pinned"
        )
    if command := remedy(report):
        out(f"  remedy     {command}")


def _print_rest(count: int) -> None:
    if count:
        out(f"             and {count} more: --all")
