"""cat and get: objects to standard output and to local files."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from tiercache.cli import session
from tiercache.cli.copying import BLOCK_BYTES, Copying
from tiercache.cli.names import PATHS
from tiercache.cli.output import Tally
from tiercache.cli.progress import Style
from tiercache.cli.walking import Named, base_name, listed
from tiercache.errors import ConfigError, IsADirectory

if TYPE_CHECKING:
    from tiercache.namespace import Namespace

PROGRESS = typer.Option(
    "--progress",
    metavar="auto|bar|plain|json|none",
    help="How progress is shown on standard error.",
)


def cat(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    offset: Annotated[int, typer.Option(min=0, metavar="BYTES", help="Begin here.")] = 0,
    length: Annotated[
        int | None, typer.Option(min=0, metavar="BYTES", help="At most so many bytes of each.")
    ] = None,
) -> int:
    """Write objects to standard output, one after the other, with bounded memory."""
    tally = session.tally(ctx)
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths):
            with tally.item():
                copy_out(namespace, path, sys.stdout.buffer, offset=offset, length=length)
    return tally.code


def copy_out(
    namespace: Namespace,
    path: str,
    target: BinaryIO,
    *,
    offset: int = 0,
    length: int | None = None,
    moved: Callable[[int], None] = lambda _: None,
) -> int:
    """Write (a part of) one version of an object; return how many bytes."""
    if length is None and not offset and namespace.stat(path).is_dir:
        raise IsADirectory("is a directory", path=path, remedy="get copies directories")
    buffer = memoryview(bytearray(BLOCK_BYTES))
    written = 0
    with namespace.open(path, "rb") as source:
        source.seek(offset)
        while length is None or written < length:
            room = BLOCK_BYTES if length is None else min(BLOCK_BYTES, length - written)
            count = source.readinto(buffer[:room])
            if not count:
                break
            target.write(buffer[:count])
            moved(count)
            written += count
    target.flush()
    return written


@dataclass(frozen=True, slots=True)
class Download:
    """One object and where it goes."""

    path: str
    target: Path
    size_bytes: int
    mtime_s: float


def get(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="An object or a directory.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="LOCAL",
            help='File or directory to write; "-" is standard output. Without it: the last name '
            "of PATH, here.",
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Copy also what has the same size and time.")
    ] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
) -> int:
    """Copy an object to a local file, or all below a directory into a local directory.

    Each file appears whole or not at all. Files of the same size and time are passed over, so
    that an interrupted copy goes on where it was.
    """
    tally = session.tally(ctx)
    session.checked_paths([path])
    with session.namespace(ctx) as namespace:
        if target == "-":
            copy_out(namespace, path, sys.stdout.buffer)
            return 0
        copying = Copying("get", progress, tally)
        copying.run(
            _downloads(namespace, path, target, force, copying, tally),
            lambda item: download(namespace, item, copying.moved),
        )
    return tally.code


def _downloads(
    namespace: Namespace, path: str, target: str, force: bool, copying: Copying, tally: Tally
) -> Iterator[Download]:
    is_file = namespace.stat(path).is_file
    found = [named for named in listed(namespace, path, recursive=True) if named.is_file]
    copying.total_bytes = sum(named.entry.size_bytes for named in found)
    local = Path(target or base_name(path))
    if is_file and (target.endswith("/") or local.is_dir()):
        local = local / base_name(path)
    if not is_file:
        local.mkdir(parents=True, exist_ok=True)
    for named in found:
        try:
            item = _download_of(named, local if is_file else None, local)
        except ConfigError as error:
            tally.fail(error)
            continue
        if not force and _is_there(item):
            copying.skip(item.size_bytes)
        else:
            yield item


def _download_of(named: Named, file: Path | None, directory: Path) -> Download:
    target = file if file is not None else directory / safe_name(named)
    return Download(named.path, target, named.entry.size_bytes, named.entry.mtime_s)


def safe_name(named: Named) -> str:
    """Return the local name of a key. Raises ConfigError for a key that no file below the target
    can have: a name must not lead out of it, nor two names to one file."""
    parts = named.relative.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ConfigError(
            "the key cannot be a local file's name", path=named.path, remedy="copy it alone"
        )
    return named.relative


def _is_there(item: Download) -> bool:
    try:
        status = item.target.stat()
    except OSError:
        return False
    same_time = abs(status.st_mtime - item.mtime_s) < 1e-3
    return status.st_size == item.size_bytes and same_time and bool(item.mtime_s)


def download(namespace: Namespace, item: Download, moved: Callable[[int], None]) -> None:
    """Copy one object to a file that appears whole, with the object's time."""
    item.target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(item.target) as (file, name):
        copy_out(namespace, item.path, file, moved=moved)
        if item.mtime_s:
            os.utime(file.fileno(), (item.mtime_s, item.mtime_s))
        file.close()
        os.rename(name, item.target)


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open a hidden file beside the target; it is gone after a failure."""
    fd, name = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(fd, 0o666 & ~mask)
    try:
        with open(fd, "wb", buffering=0) as file:
            yield file, name
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
