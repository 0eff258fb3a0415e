"""prefetch: start a job in the agent, watch it, and end with what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode, exit_code_of_name
from tiercache.cli.names import JSON, PATHS
from tiercache.cli.output import fields, out, out_json, plain_table, say, table
from tiercache.cli.progress import State, Style, meter
from tiercache.cli.reading import PROGRESS
from tiercache.model import JobState
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiercache.client.job import Job
    from tiercache.model import JobProgress

# How often the bar moves. Each is one round trip to the agent, ~0.1 ms.
POLL_S = 0.25
SHOWN_ERRORS = 20

FROM_FILE = typer.Option(
    "--from-file", "-f", metavar="FILE|-", help="Read more paths from here, one a line."
)
INCLUDE = typer.Option(
    metavar="GLOB",
    help="Only what matches: base names, or with a slash paths below PATH. May be given many "
    "times.",
)
EXCLUDE = typer.Option(metavar="GLOB", help="But not these: exclude wins.")
PIN = typer.Option("--pin", help="Never evict what is fetched.")
CONCURRENCY = typer.Option(min=1, max=1024, metavar="N", help="Objects in flight.")
MAX_BYTES = typer.Option(metavar="SIZE", help="Fetch at most so much, such as 10GiB.")
ORDERED = typer.Option(
    "--ordered",
    help="The paths are objects in the order in which they will be read, repeats included: fetch "
    "ahead of the reader, and evict first what is read last.",
)
DRY_RUN = typer.Option("--dry-run", "-n", help="Only say what would be fetched.")
WAIT = typer.Option(
    "--wait/--background", help="Watch the job to its end, or print its id and return."
)
JOBS = typer.Option("--jobs", help="List the jobs of the agent and do nothing else.")
WATCH = typer.Option(metavar="JOB", help="Watch a background job to its end.")
CANCEL = typer.Option(metavar="JOB", help="Cancel a job; what was fetched stays.")


def prefetch(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, PATHS] = None,
    from_file: Annotated[str | None, FROM_FILE] = None,
    include: Annotated[list[str] | None, INCLUDE] = None,
    exclude: Annotated[list[str] | None, EXCLUDE] = None,
    pin: Annotated[bool, PIN] = False,
    concurrency: Annotated[int, CONCURRENCY] = 64,
    max_bytes: Annotated[str | None, MAX_BYTES] = None,
    ordered: Annotated[bool, ORDERED] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    wait: Annotated[bool, WAIT] = True,
    jobs: Annotated[bool, JOBS] = False,
    watch: Annotated[str | None, WATCH] = None,
    cancel: Annotated[str | None, CANCEL] = None,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Fetch everything below paths into the cache.

    Interrupted and started again, it fetches only what is missing. Ctrl-C cancels a job that is
    waited for; a background job goes on without this command, also over a restart of the agent.
    An ordered job ends when all was read, or with its agent.
    """
    named = [*(paths or ()), *_read_paths(from_file)]
    actions = [bool(named), jobs, watch is not None, cancel is not None]
    if sum(actions) != 1:
        raise typer.BadParameter("give paths, or one of --jobs, --watch JOB and --cancel JOB")
    limit = None if max_bytes is None else session.bytes_option(max_bytes, "--max-bytes")
    if ordered and (pin or dry_run or include or exclude or limit is not None):
        raise typer.BadParameter(
            "--ordered goes with neither --pin, --dry-run, --include, --exclude nor --max-bytes"
        )
    session.checked_paths(named)
    if jobs:
        return _list_jobs(ctx, as_document)
    with session.namespace(ctx) as namespace:
        if cancel is not None:
            return _report(namespace.job(cancel).cancel(), as_document, code=ExitCode.OK)
        if watch is not None:
            return _watch(namespace.job(watch), progress, as_document, cancels=False)
        job = namespace.prefetch(
            named,
            pin=pin,
            include=include or (),
            exclude=exclude or (),
            max_bytes=limit,
            concurrency=concurrency,
            dry_run=dry_run,
            ordered=ordered,
        )
        if not wait and not dry_run:
            _print_started(job, as_document)
            return ExitCode.OK
        style = Style.NONE if dry_run else progress
        return _watch(job, style, as_document, cancels=True)


def _read_paths(source: str | None) -> list[str]:
    """Return the paths of a list: one a line, without empty lines and "#" comments."""
    if source is None:
        return []
    lines: Iterable[str] = (
        sys.stdin if source == "-" else Path(source).read_text("utf-8").splitlines()
    )
    stripped = (line.rstrip("\r\n") for line in lines)
    return [line for line in stripped if line.strip() and not line.startswith("#")]


def _print_started(job: Job, as_document: bool) -> None:
    if as_document:
        out_json({"job": job.id, "state": str(JobState.RUNNING)})
    else:
        out(job.id)
        say(f"running in the agent; watch it: tiercache prefetch --watch {job.id}")


def _watch(job: Job, style: Style, as_document: bool, *, cancels: bool) -> int:
    """Follow a job to its end. Ctrl-C cancels it where ``cancels``, else only ends the watching."""
    shown = meter("prefetch", style)
    try:
        progress = job.progress()
        while not progress.ended:
            shown.update(_state(progress))
            progress = job.progress(POLL_S)
        shown.update(_state(progress))
    except KeyboardInterrupt:
        if not cancels:
            raise
        progress = job.cancel()
        shown.update(_state(progress))
    finally:
        shown.close()
    return _report(progress, as_document)


def _state(progress: JobProgress) -> State:
    counts = f"{progress.hit} hit, {progress.filled} filled, {progress.failed} failed"
    if progress.skipped:
        counts += f", {progress.skipped} skipped"
    if progress.ordered:
        counts += f", {progress.read} read"
    if progress.state is JobState.PAUSED:
        counts += f", paused: {progress.message}"
    return State(
        done_bytes=progress.hit_bytes + progress.filled_bytes,
        moved_bytes=progress.filled_bytes,
        total_bytes=progress.listed_bytes if progress.listing_done else None,
        counts=counts if progress.listing_done else f"{counts}, {progress.listed} listed so far",
    )


def exit_code_of_job(progress: JobProgress) -> ExitCode:
    """Return how a command ends that waited for this job."""
    match progress.state:
        case JobState.RUNNING | JobState.PAUSED | JobState.DONE:
            return ExitCode.OK
        case JobState.CANCELLED:
            return ExitCode.INTERRUPTED
        case JobState.LIMIT:
            return ExitCode.LIMIT
        case JobState.FAILED:
            # The whole job failed, or every object of it, and all for one reason.
            if progress.message or not (progress.hit or progress.filled):
                return exit_code_of_name(progress.error_class)
            return ExitCode.FAILED


def as_json(progress: JobProgress) -> dict[str, Any]:
    document: dict[str, Any] = fields(progress)
    document["errors"] = [{"path": path, "message": message} for path, message in progress.errors]
    return document


def _report(progress: JobProgress, as_document: bool, *, code: ExitCode | None = None) -> int:
    code = exit_code_of_job(progress) if code is None else code
    if as_document:
        out_json({**as_json(progress), "exit_code": int(code)})
    elif progress.dry_run:
        _print_plan(progress)
    else:
        _say_end(progress)
    for path, message in progress.errors[:SHOWN_ERRORS]:
        say(f"tiercache: {message if message.startswith(path) else f'{path}: {message}'}")
    if progress.failed > SHOWN_ERRORS:
        say(f"tiercache: and {progress.failed - SHOWN_ERRORS} failures more")
    if progress.message:
        say(f"tiercache: {progress.message}")
    return code


def _print_plan(progress: JobProgress) -> None:
    rows = [
        ("found", str(progress.listed), format_bytes(progress.listed_bytes)),
        ("there already", str(progress.hit), format_bytes(progress.hit_bytes)),
        ("to fetch", str(progress.filled), format_bytes(progress.filled_bytes)),
    ]
    if progress.skipped:
        rows.append(("beyond the limit", str(progress.skipped), ""))
    rows.append(("requests", str(progress.requests), ""))
    for line in plain_table(("", "objects", "bytes"), rows, right=(1, 2)):
        out(line)


def _say_end(progress: JobProgress) -> None:
    rate = ""
    if progress.filled_bytes and progress.elapsed_s:
        rate = f" ({format_bytes(progress.filled_bytes / progress.elapsed_s)}/s)"
    say(
        f"{progress.state}: {progress.hit} hit ({format_bytes(progress.hit_bytes)}), "
        f"{progress.filled} filled ({format_bytes(progress.filled_bytes)}), "
        f"{progress.failed} failed, {progress.skipped} skipped, "
        f"in {format_duration(progress.elapsed_s)}{rate}"
    )


def _list_jobs(ctx: typer.Context, as_document: bool) -> int:
    """List the jobs of the running agent; none where none runs."""
    from tiercache.cli.status import read_status

    document = read_status(session.settings(ctx))
    found: list[dict[str, Any]] = document["jobs"] if document else []
    if as_document:
        out_json(found)
    else:
        print_jobs(found)
    return ExitCode.OK


def print_jobs(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            job["id"],
            job["state"],
            str(job["hit"]),
            str(job["filled"]),
            str(job["failed"]),
            format_bytes(job["hit_bytes"] + job["filled_bytes"]),
            format_bytes(job["listed_bytes"]) + ("" if job["listing_done"] else " so far"),
            format_duration(job["elapsed_s"]),
            " ".join(job["paths"])[:60],
        )
        for job in found
    ]
    header = ("job", "state", "hit", "filled", "failed", "done", "of", "time", "paths")
    table(header, rows, right=(2, 3, 4, 5, 6, 7))
