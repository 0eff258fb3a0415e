"""metadata export, import, copy, check: the store of what outlives the cache directory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.moving import (
    Moved,
    Order,
    Shown,
    alone,
    move,
    require_take_over,
    same_store,
)
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say, table
from tiercache.cli.progress import Style
from tiercache.cli.reading import PROGRESS, temporary
from tiercache.errors import ConfigError
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.metadata.checking import MetadataReport
    from tiercache.metadata.dump import DumpTotals, LinesIn, LinesOut
    from tiercache.metadata.transfer import Mode
    from tiercache.settings import MetadataSettings, Settings

SHOWN_PROBLEMS = 50

URL = "lmdb:/directory, s3://bucket/prefix, az://…, gs://…"
STORE = typer.Option(
    metavar="URL", help=f"The store: {URL}. Without it: metadata.url of the configuration."
)
PROFILE = typer.Option(
    metavar="NAME", help="The profile that says how to reach it. Without it: metadata.profile."
)
MERGE = typer.Option(
    "--merge",
    help="Keep what the target holds: of a name or listing that both have, the one validated "
    "later.",
)
REPLACE = typer.Option("--replace", help="Remove from the target what the source has not.")
DRY_RUN = typer.Option("--dry-run", "-n", help="Check everything and say what would be done.")
TAKE_OVER = typer.Option(
    "--take-over",
    help="Change a store on an object store that holds records already. An agent that serves it, "
    "on whatever node, is fenced: it fails loudly until it is restarted.",
)


def store_settings(settings: Settings, url: str | None, profile: str | None) -> MetadataSettings:
    """Return how to open a store, the configured one where none is named. Raises ConfigError."""
    import msgspec

    chosen = msgspec.structs.replace(
        settings.metadata,
        url=url or settings.metadata.url,
        profile=profile or settings.metadata.profile,
    )
    if not chosen.url:
        raise ConfigError(
            "no metadata store is configured",
            remedy=f'write url = "…" into [metadata], or name a store: {URL}',
        )
    return chosen


def mode_of(merge: bool, replace: bool) -> Mode:
    from tiercache.metadata.transfer import Mode

    if merge and replace:
        raise typer.BadParameter("--merge and --replace exclude each other")
    return Mode.MERGE if merge else Mode.REPLACE if replace else Mode.INTO_EMPTY


# -- export ---------------------------------------------------------------------------------


def export(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="Where to write; gzip'ed where it ends in .gz. - is standard output.",
        ),
    ],
    store: Annotated[str | None, STORE] = None,
    profile: Annotated[str | None, PROFILE] = None,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Write all that a metadata store holds to a file, one record a line.

    An agent may serve the store meanwhile: it is only read, as of one moment. The file appears
    whole or not at all.
    """  # fmt: skip
    if as_document and file == "-":
        raise typer.BadParameter("--json goes to standard output, and the records too: name a file")
    settings = session.settings(ctx)
    chosen = store_settings(settings, store, profile)
    with Shown("export", progress) as shown, _written(file) as target:
        identity, sequence, totals = asyncio.run(_export(settings, chosen, target, shown))
    if as_document:
        out_json(
            {
                "file": file,
                "store": chosen.url,
                "identity": identity,
                "sequence": sequence,
                **asdict(totals),
            }
        )
    else:
        say(
            f"exported {totals.records} records of {chosen.url}, as of commit {sequence}, "
            f"{format_bytes(totals.line_bytes)}"
        )
        if totals.verbatim:
            say(
                f"{totals.verbatim} of them cannot be read by this version, and are kept as they "
                "are (tiercache metadata check says more)"
            )
    return ExitCode.OK


async def _export(
    settings: Settings, chosen: MetadataSettings, file: LinesOut, shown: Shown
) -> tuple[str, int, DumpTotals]:
    from tiercache.compose import metadata_store
    from tiercache.metadata.dump import write_dump

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    async with metadata_store(settings, chosen, read_only=True) as store:
        totals = await write_dump(
            store,
            file,
            created=created,
            on_progress=lambda records, done: shown(done, None, f"{records} records"),
        )
        return store.identity, store.sequence, totals


@contextlib.contextmanager
def _written(name: str) -> Iterator[LinesOut]:
    """Open the target of an export: standard output, or a file that appears once it is synced. A
    pipe or a device is written to as it is."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(name))
    if target.exists() and not target.is_file():
        with open(target, "wb") as special:
            yield special
        return
    with temporary(target) as (raw, hidden):
        # It names every object: for its owner's eyes.
        os.fchmod(raw.fileno(), 0o600)
        if name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6) as packed:
                yield packed
        else:
            with open(os.dup(raw.fileno()), "wb") as buffered:
                yield buffered
        os.fsync(raw.fileno())
        os.rename(hidden, target)


# -- import and copy ------------------------------------------------------------------------


def import_(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="A dump; gzip'ed where it ends in .gz. - is standard input."
        ),
    ],
    store: Annotated[str | None, STORE] = None,
    profile: Annotated[str | None, PROFILE] = None,
    merge: Annotated[bool, MERGE] = False,
    replace: Annotated[bool, REPLACE] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    take_over: Annotated[bool, TAKE_OVER] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Bring the records of a dump into a metadata store that holds none, and check them there.

    The whole dump is checked before anything is written. Interrupted and started again, it writes
    what is missing. No agent may serve the store ("tiercache agent stop").
    """
    from tiercache.metadata.dump import Dump

    mode = mode_of(merge, replace)
    settings = session.settings(ctx)
    order = Order(
        target=store_settings(settings, store, profile),
        mode=mode,
        dry_run=dry_run,
        take_over=take_over,
    )
    with _readable(file) as opened, Shown("import", progress) as shown:
        dump = Dump(opened, "standard input" if file == "-" else file)
        moved = asyncio.run(move(settings, dump.scan, order, shown))
    return _report(moved, order, file, as_document)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[LinesIn]:
    """Open a dump so that it can be read twice: standard input goes into a file first."""
    if name == "-":
        with tempfile.TemporaryFile() as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            yield spooled
    elif name.endswith(".gz"):
        with gzip.open(name, "rb") as packed:
            yield packed
    else:
        with open(name, "rb") as file:
            yield file


def copy(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=f"A store: {URL}.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Another store.")],
    source_profile: Annotated[str | None, PROFILE] = None,
    target_profile: Annotated[str | None, PROFILE] = None,
    merge: Annotated[bool, MERGE] = False,
    replace: Annotated[bool, REPLACE] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    take_over: Annotated[bool, TAKE_OVER] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Copy all records of one metadata store into another that holds none, and check them there.

    The source is only read; stop its agent first, or copy again afterwards what it has learnt
    meanwhile. Interrupted and started again, it writes what is missing.
    """
    settings = session.settings(ctx)
    origin = store_settings(settings, source, source_profile)
    order = Order(
        target=store_settings(settings, target, target_profile),
        mode=mode_of(merge, replace),
        dry_run=dry_run,
        take_over=take_over,
    )
    if same_store(origin.url, order.target.url):
        raise typer.BadParameter("SOURCE and TARGET are one store")
    with Shown("copy", progress) as shown:
        moved = asyncio.run(_copy(settings, origin, order, shown))
    return _report(moved, order, source, as_document)


async def _copy(settings: Settings, origin: MetadataSettings, order: Order, shown: Shown) -> Moved:
    from tiercache.compose import metadata_store
    from tiercache.metadata.dump import records_of

    async with metadata_store(settings, origin, read_only=True) as store:
        return await move(settings, partial(records_of, store), order, shown)


def _report(moved: Moved, order: Order, source: str, as_document: bool) -> int:
    if as_document:
        out_json(
            {
                "source": source,
                "target": order.target.url,
                "mode": str(order.mode),
                "dry_run": order.dry_run,
                **asdict(moved.plan),
                "verified": None if moved.done is None else asdict(moved.done),
            }
        )
        return ExitCode.OK
    plan = moved.plan
    verb = "would write" if order.dry_run else "wrote"
    say(
        f"{plan.source_records} records of {source}: {verb} {plan.written}, "
        f"{plan.unchanged} there already, {plan.kept} kept, {plan.removed} removed"
    )
    if moved.done is not None:
        say(
            f"{order.target.url} holds {moved.done.records} records, checksum "
            f"{moved.done.crc32c}: read back and found right"
        )
    return ExitCode.OK


# -- check ----------------------------------------------------------------------------------


def check(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help=f"The store: {URL}. Without it: metadata.url."),
    ] = None,
    profile: Annotated[str | None, PROFILE] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Name and then drop what cannot be read and what is not whole. No agent may "
            "serve the store.",
        ),
    ] = False,
    take_over: Annotated[bool, TAKE_OVER] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Read every record of a metadata store and check that listings and snapshots are whole.

    Exit 7 where records were found wrong, repaired or not. An agent may serve the store
    meanwhile, but with --repair.
    """
    settings = session.settings(ctx)
    chosen = store_settings(settings, url, profile)
    with Shown("check", progress) as shown:
        report = asyncio.run(_check(settings, chosen, repair, take_over, shown))
    if as_document:
        out_json({**asdict(report), "clean": report.clean})
    else:
        _print_report(report, repair)
    return ExitCode.CORRUPT if report.corruptions else ExitCode.OK


async def _check(
    settings: Settings, chosen: MetadataSettings, repair: bool, take_over: bool, shown: Shown
) -> MetadataReport:
    from tiercache.compose import metadata_store
    from tiercache.metadata.checking import check as check_store

    with contextlib.ExitStack() as kept_out:
        if repair:
            kept_out.enter_context(alone(settings, chosen))
        async with metadata_store(settings, chosen, read_only=True) as store:
            report = await check_store(store, repair=False, on_progress=shown)
        if not repair or report.clean:
            return report
        require_take_over(chosen, take_over)
        async with metadata_store(settings, chosen, read_only=False) as store:
            return await check_store(store, repair=True, on_progress=shown)


def _print_report(report: MetadataReport, repair: bool) -> None:
    for problem in report.problems[:SHOWN_PROBLEMS]:
        out(f"{problem.kind}: {problem.subject}: {problem.message}")
    more = report.corruptions + report.leftovers + report.later - SHOWN_PROBLEMS
    if more > 0:
        out(f"and {more} more")
    out(f"{report.url}: store {report.identity}, commit {report.sequence}")
    rows = [(name, str(count)) for name, count in report.by_type.items() if count]
    table(("type", "records"), rows, right=(1,))
    out(f"{report.records} records, {format_bytes(report.record_bytes)}, checksum {report.crc32c}")
    if report.later:
        out(f"{report.later} records are of a later version, and are left alone")
    if report.clean:
        out("clean")
    elif repair:
        out(f"repaired: {report.dropped} records are gone; what origins know is learnt again")
    else:
        out(f"{report.corruptions} corruptions, {report.leftovers} harmless leftovers")
