"""fsck: check the cache directory byte by byte, and repair it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json
from tiercache.cli.progress import State, Style, meter
from tiercache.cli.reading import PROGRESS
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.agent.fsck import FsckReport

SHOWN_PROBLEMS = 50


def fsck(
    ctx: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop bad pages, lost records and leftover files.")
    ] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Check beside a running agent, read-only.")
    ] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Check that index, files, checksums and ledger agree. Exit 7 where bytes or records were
    found wrong, repaired or not; leftovers of a crash are only told.

    No agent may run ("tiercache agent stop"), but with --online.
    """
    from tiercache import compose

    if repair and online:
        raise typer.BadParameter("--repair needs the directory to itself: not with --online")
    shown = meter("fsck", progress)

    def on_progress(checked: int) -> None:
        shown.update(State(done_bytes=checked, moved_bytes=checked, total_bytes=None))

    try:
        report = compose.fsck(
            session.settings(ctx), repair=repair, online=online, on_progress=on_progress
        )
    finally:
        shown.close()
    if as_document:
        out_json(as_json(report))
    else:
        _print(report)
    return ExitCode.CORRUPT if report.corruptions else ExitCode.OK


def as_json(report: FsckReport) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(report), "clean": report.clean}


def _print(report: FsckReport) -> None:
    for problem in report.problems[:SHOWN_PROBLEMS]:
        out(f"{problem.kind}: {problem.subject}: {problem.message}")
    more = report.corruptions + report.leftovers - SHOWN_PROBLEMS
    if more > 0:
        out(f"and {more} more")
    out(
        f"{report.objects_checked} objects, {report.pages_checked} pages, "
        f"{format_bytes(report.bytes_checked)} checked: {report.bad_pages} bad pages, "
        f"{report.missing_files} missing files, {report.orphan_files} orphan files"
    )
    ledger = "" if report.online else f", the ledger says {format_bytes(report.ledger_bytes)}"
    out(f"the directory occupies {format_bytes(report.disk_bytes)}{ledger}")
    if report.clean:
        out("clean")
    elif report.repaired:
        out("repaired: what was found is gone, and is fetched again when it is read")
    else:
        out(f"{report.corruptions} corruptions, {report.leftovers} harmless leftovers")
