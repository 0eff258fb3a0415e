"""snapshot create, ls, show, diff, rm, verify, export: datasets frozen under a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode, exit_code_of, exit_code_of_many, exit_code_of_name
from tiercache.cli.names import JSON
from tiercache.cli.output import error_line, out, out_json, plain_table, say, table
from tiercache.cli.prefetch import EXCLUDE, INCLUDE, POLL_S
from tiercache.cli.progress import State, Style, meter
from tiercache.cli.reading import PROGRESS
from tiercache.cli.walking import shown_time
from tiercache.errors import CorruptPage, StaleHandle, TiercacheError, Unsupported
from tiercache.model import JobState
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercache.catalog import SnapshotObject, SnapshotRecord
    from tiercache.client.job import Job
    from tiercache.model import JobProgress
    from tiercache.namespace import Namespace
    from tiercache.snapshots import Change, Snapshot, Verified

SHOWN_FAILURES = 100

NAME = typer.Argument(metavar="NAME", help="The snapshot: letters, digits, '.', '_' and '-'.")
PATHS = typer.Argument(metavar="PATH", help="Namespace paths or origin URLs to freeze.")
INSIDE = typer.Argument(metavar="PATH", help="Only what was frozen at and below this path.")
CHECKSUMS = typer.Option("--checksums", help="Read every object and keep its CRC32C.")
REPLACE = typer.Option("--replace", help="Take the place of a snapshot of this name.")
DRY_RUN = typer.Option("--dry-run", "-n", help="Only say what would be frozen.")
OBJECTS = typer.Option("--objects", help="Print every object instead of sums.")
BEFORE = typer.Argument(metavar="A", help="The snapshot to compare.")
AFTER = typer.Argument(metavar="B", help="The snapshot to compare it with, or 'live'.")
FILE = typer.Argument(metavar="FILE.parquet", help="The file to write.")


def create(
    ctx: typer.Context,
    name: Annotated[str, NAME],
    paths: Annotated[list[str], PATHS],
    include: Annotated[list[str] | None, INCLUDE] = None,
    exclude: Annotated[list[str] | None, EXCLUDE] = None,
    checksums: Annotated[bool, CHECKSUMS] = False,
    replace: Annotated[bool, REPLACE] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Freeze names, versions and sizes of everything below paths, as their origins list it now.

    The snapshot is there, whole, when this command ends well, and nothing of it otherwise; Ctrl-C
    ends it. Its objects are read as NAME@snapshot/PATH, and prefetched so.
    """
    session.checked_paths(paths)
    with session.namespace(ctx) as namespace:
        job = namespace.snapshots.create(
            name,
            paths,
            include=include or (),
            exclude=exclude or (),
            checksums=checksums,
            replace=replace,
            dry_run=dry_run,
        )
        ended = _watch(job, progress, checksums and not dry_run)
        return _report_created(namespace, name, ended, as_document)


def _watch(job: Job, style: Style, checksums: bool) -> JobProgress:
    shown = meter("snapshot", style)
    try:
        progress = job.progress()
        while not progress.ended:
            shown.update(_state(progress, checksums))
            progress = job.progress(POLL_S)
        shown.update(_state(progress, checksums))
    except KeyboardInterrupt:
        progress = job.cancel()
    finally:
        shown.close()
    return progress


def _state(progress: JobProgress, checksums: bool) -> State:
    counts = f"{progress.listed} listed"
    if checksums:
        counts += f", {progress.filled} read"
    return State(
        done_bytes=progress.filled_bytes if checksums else progress.listed_bytes,
        moved_bytes=progress.filled_bytes,
        total_bytes=None,
        counts=counts,
    )


def _report_created(
    namespace: Namespace, name: str, ended: JobProgress, as_document: bool
) -> ExitCode:
    code = ExitCode.OK
    if ended.state is JobState.CANCELLED:
        code = ExitCode.INTERRUPTED
    elif ended.state is not JobState.DONE:
        code = exit_code_of_name(ended.error_class)
    if as_document:
        document: dict[str, Any] = {
            "name": name,
            "state": str(ended.state),
            "objects": ended.listed,
            "size_bytes": ended.listed_bytes,
            "elapsed_s": ended.elapsed_s,
            "message": ended.message,
            "dry_run": ended.dry_run,
            "exit_code": int(code),
        }
        if code is ExitCode.OK and not ended.dry_run:
            document |= _record_json(namespace.snapshot(name).record)
        out_json(document)
    elif ended.dry_run and code is ExitCode.OK:
        rows = [("to freeze", str(ended.listed), format_bytes(ended.listed_bytes))]
        for line in plain_table(("", "objects", "bytes"), rows, right=(1, 2)):
            out(line)
    elif code is ExitCode.OK:
        record = namespace.snapshot(name).record
        say(
            f"{name}: {record.objects} objects, {format_bytes(record.size_bytes)} frozen in "
            f"{format_duration(ended.elapsed_s)}"
        )
    if ended.message:
        say(f"tiercache: {ended.message}")
    return code


def ls(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """List the snapshots."""
    with session.namespace(ctx) as namespace:
        records = namespace.snapshots.list()
    if as_document:
        out_json([_record_json(record) for record in records])
        return ExitCode.OK
    rows = [
        (
            record.name,
            shown_time(record.created_unix_s),
            str(record.objects),
            format_bytes(record.size_bytes),
            "yes" if record.checksums else "no",
            " ".join(record.paths)[:60],
        )
        for record in records
    ]
    table(("snapshot", "created", "objects", "bytes", "checksums", "paths"), rows, right=(2, 3))
    return ExitCode.OK


def show(
    ctx: typer.Context,
    name: Annotated[str, NAME],
    objects: Annotated[bool, OBJECTS] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show what a snapshot holds: its sums, by topmost directory below its paths, or all."""
    with session.namespace(ctx) as namespace:
        snapshot = namespace.snapshot(name)
        if objects:
            return _print_objects(snapshot, as_document)
        directories = _by_directory(snapshot)
    record = snapshot.record
    if as_document:
        out_json(
            {
                **_record_json(record),
                "directories": [
                    {"path": path, "objects": count, "size_bytes": size}
                    for path, (count, size) in directories.items()
                ],
            }
        )
        return ExitCode.OK
    facts = [
        ("snapshot", record.name),
        ("created", shown_time(record.created_unix_s)),
        ("paths", " ".join(record.paths)),
        ("include", " ".join(record.include)),
        ("exclude", " ".join(record.exclude)),
        ("objects", str(record.objects)),
        ("bytes", format_bytes(record.size_bytes)),
        ("checksums", "yes" if record.checksums else "no"),
    ]
    for key, value in facts:
        if value:
            out(f"{key:<10} {value}")
    out("")
    rows = [(path, str(count), format_bytes(size)) for path, (count, size) in directories.items()]
    table(("directory", "objects", "bytes"), rows, right=(1, 2))
    return ExitCode.OK


def _print_objects(snapshot: Snapshot, as_document: bool) -> int:
    if as_document:
        out_json([_object_json(one) for one in snapshot.objects()])
        return ExitCode.OK
    for one in snapshot.objects():
        crc = "-" if one.crc32c is None else f"{one.crc32c:08x}"
        out(f"{one.size_bytes:>12}  {shown_time(one.mtime_s)}  {one.token}  {crc}  {one.path}")
    return ExitCode.OK


def _by_directory(snapshot: Snapshot) -> dict[str, tuple[int, int]]:
    """Return (objects, bytes) of each directory or object just below the snapshot's paths."""
    above = [path.rstrip("/") + "/" for path in snapshot.record.paths]
    sums: dict[str, tuple[int, int]] = {}
    for one in snapshot.objects():
        parent = next((path for path in above if one.path.startswith(path)), "")
        name, slash, _ = one.path[len(parent) :].partition("/")
        top = f"{parent}{name}/" if slash and parent else parent or one.path
        count, size = sums.get(top, (0, 0))
        sums[top] = (count + 1, size + one.size_bytes)
    return sums


def diff(
    ctx: typer.Context,
    before: Annotated[str, BEFORE],
    after: Annotated[str, AFTER],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show what was added, removed and changed from A to B; B may be "live", what the origins
    list now. An object has changed where its version has. Ends with 1 where they differ."""
    with session.namespace(ctx) as namespace:
        changes = namespace.snapshots.diff(before, after)
        if as_document:
            documents = [_change_json(change) for change in changes]
            out_json(documents)
            return ExitCode.FAILED if documents else ExitCode.OK
        return _print_changes(changes)


def _print_changes(changes: Iterator[Change]) -> int:
    counts = {"added": 0, "removed": 0, "changed": 0}
    for change in changes:
        counts[change.kind] += 1
        sizes = [str(side.size_bytes) for side in (change.before, change.after) if side is not None]
        out(f"{change.kind:<8} {' → '.join(sizes):>20}  {change.path}")
    say(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return ExitCode.FAILED if any(counts.values()) else ExitCode.OK


def rm(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The snapshots.")],
) -> int:
    """Forget snapshots. Objects stay, and so do cached bytes and pins."""
    tally = session.tally(ctx)
    with session.namespace(ctx) as namespace:
        for name in names:
            with tally.item():
                namespace.snapshots.remove(name)
    return tally.code


def verify(
    ctx: typer.Context,
    name: Annotated[str, NAME],
    path: Annotated[str, INSIDE] = "/",
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Read what was frozen with a checksum, and compare. Ends with 7 where bytes are wrong or are
    those of another version."""
    with session.namespace(ctx) as namespace:
        snapshot = namespace.snapshot(name)
        shown = meter("verify", progress)
        total = snapshot.record.size_bytes

        def on_progress(done: int) -> None:
            shown.update(State(done_bytes=done, moved_bytes=done, total_bytes=total))

        try:
            found = snapshot.verify(path, on_progress=on_progress)
        finally:
            shown.close()
    if not found.checked:
        raise Unsupported("no checksum was frozen", path=name, remedy="make it with --checksums")
    code = _code_of(found)
    if as_document:
        out_json(
            {
                "checked": found.checked,
                "checked_bytes": found.checked_bytes,
                "unchecked": found.unchecked,
                "failed": len(found.failures),
                "failures": [_failure_json(error) for error in found.failures],
                "exit_code": int(code),
            }
        )
    else:
        say(
            f"{found.checked} objects of {format_bytes(found.checked_bytes)} read, "
            f"{len(found.failures)} failed, {found.unchecked} without a checksum"
        )
    for error in found.failures[:SHOWN_FAILURES]:
        say(error_line(error))
    if len(found.failures) > SHOWN_FAILURES:
        say(f"tiercache: and {len(found.failures) - SHOWN_FAILURES} failures more")
    return code


def _code_of(found: Verified) -> ExitCode:
    if any(isinstance(error, CorruptPage | StaleHandle) for error in found.failures):
        return ExitCode.CORRUPT
    codes = [exit_code_of(type(error)) for error in found.failures]
    return exit_code_of_many(codes, succeeded=found.checked - len(codes))


def export(
    ctx: typer.Context,
    name: Annotated[str, NAME],
    file: Annotated[str, FILE],
) -> int:
    """Write the objects as a Parquet file: path, origin, key, version, size, mtime and crc32c.
    Needs pyarrow (the extra "parquet")."""
    with session.namespace(ctx) as namespace:
        count = namespace.snapshot(name).export(file)
    say(f"{file}: {count} objects")
    return ExitCode.OK


# -- as JSON --------------------------------------------------------------------------------


def _record_json(record: SnapshotRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "created_unix_s": record.created_unix_s,
        "paths": list(record.paths),
        "include": list(record.include),
        "exclude": list(record.exclude),
        "objects": record.objects,
        "size_bytes": record.size_bytes,
        "checksums": record.checksums,
    }


def _object_json(one: SnapshotObject) -> dict[str, Any]:
    return {
        "path": one.path,
        "origin": one.origin,
        "key": one.key,
        "version": one.token,
        "size_bytes": one.size_bytes,
        "mtime_s": one.mtime_s,
        "crc32c": one.crc32c,
    }


def _change_json(change: Change) -> dict[str, Any]:
    sides = {"before": change.before, "after": change.after}
    return {
        "path": change.path,
        "change": change.kind,
        **{
            key: None if side is None else {"version": side.token, "size_bytes": side.size_bytes}
            for key, side in sides.items()
        },
    }


def _failure_json(error: TiercacheError) -> dict[str, str]:
    return {"path": error.path, "error": type(error).__name__, "message": error.message}
