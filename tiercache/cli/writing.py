"""put and rm: local files to objects, and objects away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from tiercache.cli import session
from tiercache.cli.copying import BLOCK_BYTES, Copying
from tiercache.cli.names import JSON, PATHS
from tiercache.cli.output import Tally, out, out_json, say
from tiercache.cli.progress import Style
from tiercache.cli.reading import PROGRESS
from tiercache.cli.walking import join, listed
from tiercache.errors import ConfigError, IsADirectory

if TYPE_CHECKING:
    from tiercache.client.file import WriteFile
    from tiercache.namespace import Namespace


@dataclass(frozen=True, slots=True)
class Upload:
    """One local file and the object it becomes."""

    source: Path
    path: str


def put(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="LOCAL", help='A file or directory; "-" is standard input.'),
    ],
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="The object; with a slash at its end, its directory."),
    ],
    create: Annotated[
        bool, typer.Option("--create", help="Fail where there is an object already.")
    ] = False,
    if_version: Annotated[
        str | None,
        typer.Option("--if-version", metavar="VERSION", help="Replace this version only."),
    ] = None,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
) -> int:
    """Copy a file, standard input, or all below a directory. An object appears whole or not at
    all, at its origin and in the cache."""
    session.checked_paths([path])
    local = Path(source)
    if create and if_version is not None:
        raise typer.BadParameter("--create and --if-version exclude each other")
    if if_version is not None and source != "-" and local.is_dir():
        raise typer.BadParameter("--if-version names the version of one object, not a directory's")
    tally = session.tally(ctx)
    with session.namespace(ctx) as namespace:

        def begin(target: str) -> WriteFile:
            mode: Any = "create" if create else "overwrite"
            return namespace.open_for_writing(target, mode=mode, if_version=if_version)

        if source == "-":
            if path.endswith("/"):
                raise IsADirectory("standard input has no name", path=path, remedy="name an object")
            _copy_in(sys.stdin.buffer, begin(path), lambda _: None)
            return 0
        copying = Copying("put", progress, tally)
        uploads = list(_uploads(local, path, tally))
        copying.total_bytes = sum(item.source.stat().st_size for item in uploads)

        def upload(item: Upload) -> None:
            with open(item.source, "rb", buffering=0) as file:
                _copy_in(file, begin(item.path), copying.moved)

        copying.run(uploads, upload)
    return tally.code


def _uploads(local: Path, path: str, tally: Tally) -> Iterator[Upload]:
    """Yield what is to be copied; links are followed to files, never to directories."""
    if not local.is_dir():
        local.stat()  # raises where there is none
        yield Upload(local, join(path, local.name) if path.endswith("/") else path)
        return

    def unreadable(error: OSError) -> None:
        tally.fail(error)

    for folder, directories, files in os.walk(local, onerror=unreadable):
        directories.sort()
        for name in sorted(files):
            source = Path(folder) / name
            if source.is_file():
                yield Upload(source, join(path, source.relative_to(local).as_posix()))
            else:
                tally.fail(ConfigError("not a regular file", path=str(source)))


def _copy_in(source: BinaryIO, target: WriteFile, moved: Callable[[int], None]) -> None:
    with target:
        while block := source.read(BLOCK_BYTES):
            target.write(block)
            moved(len(block))


def rm(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Remove directories with all below them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print what would be removed.")
    ] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Remove objects at their origin and from the cache. A directory needs -r."""
    tally = session.tally(ctx)
    removed: list[dict[str, Any]] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths):
            with tally.item():
                count = _remove(namespace, path, recursive, dry_run, quiet=as_document)
                removed.append({"path": path, "objects": count, "dry_run": dry_run})
    if as_document:
        out_json(removed)
    elif tally.succeeded:
        verb = "would be removed" if dry_run else "removed"
        say(f"{sum(item['objects'] for item in removed)} objects {verb}")
    return tally.code


def _remove(namespace: Namespace, path: str, recursive: bool, dry_run: bool, *, quiet: bool) -> int:
    is_directory = namespace.stat(path).is_dir
    if is_directory and not recursive:
        raise IsADirectory("is a directory", path=path, remedy="-r removes all below it")
    if not dry_run:
        return namespace.remove(path, recursive=is_directory)
    found = [named for named in listed(namespace, path, recursive=True) if named.is_file]
    if not quiet:
        for named in found:
            out(named.path)
    return len(found)
