"""ls, stat, du, find: names and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.output import out, out_json, plain_table
from tiercache.cli.walking import (
    Named,
    as_json,
    kind_name,
    listed,
    shown_bytes,
    shown_time,
    with_directories,
)
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from tiercache.model import Stat
    from tiercache.namespace import Namespace

PATHS = typer.Argument(metavar="PATH", help="Namespace paths or origin URLs.")
JSON = typer.Option("--json", help="Print one JSON document.")
HUMAN = typer.Option("--human", "-h", help="Print sizes like 1.5 MiB.")


def ls(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, PATHS] = None,
    long: Annotated[bool, typer.Option("-l", help="Show size, time and version too.")] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="List everything below.")
    ] = False,
    human: Annotated[bool, HUMAN] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """List directories; the mounts where no path is given. Directories end in "/".

    While an origin is offline a directory that was never listed whole shows the names that are
    known, and standard error says so."""
    tally = session.tally(ctx)
    documents: list[dict[str, Any]] = []
    wanted = session.checked_paths(paths or ["/"])
    with session.namespace(ctx) as namespace:
        for path in wanted:
            with tally.item():
                found = listed(namespace, path, recursive=recursive, may_be_partial=True)
                if as_document:
                    documents += [as_json(named) | {"partial": found.partial} for named in found]
                else:
                    _print_listing(path if len(wanted) > 1 else "", found, long, human)
    if as_document:
        out_json(documents)
    return tally.code


def _print_listing(title: str, found: list[Named], long: bool, human: bool) -> None:
    if title:
        out(f"{title}:")
    shown = [named.relative if named.is_file else named.relative + "/" for named in found]
    if not long:
        for name in shown:
            out(name)
        return
    rows = [
        (
            shown_bytes(named.entry.size_bytes, human) if named.is_file else "-",
            shown_time(named.entry.mtime_s),
            named.entry.token or "-",
            name,
        )
        for named, name in zip(found, shown, strict=True)
    ]
    if rows:
        for line in plain_table(rows[0], rows[1:], right=(0,)):
            out(line)


def stat(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show kind, size, version, times and how much of it is cached."""
    tally = session.tally(ctx)
    documents: list[dict[str, Any]] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths):
            with tally.item():
                found = namespace.stat(path)
                cached = namespace.cached_bytes(path) if found.is_file else 0
                if as_document:
                    documents.append(_stat_json(found, cached))
                else:
                    _print_stat(found, cached)
    if as_document:
        out_json(documents)
    return tally.code


def _stat_json(found: Stat, cached_bytes: int) -> dict[str, Any]:
    return {
        "path": found.path,
        "kind": kind_name(found.kind),
        "size_bytes": found.size_bytes,
        "version": found.version,
        "mtime_s": found.mtime_s,
        "age_s": found.age_s,
        "stale": found.stale,
        "validated_at": found.validated_at.isoformat() if found.validated_at else None,
        "consistency": found.consistency,
        "cached_bytes": cached_bytes,
    }


def _print_stat(found: Stat, cached_bytes: int) -> None:
    out(f"path      {found.path}")
    out(f"kind      {kind_name(found.kind)}")
    if not found.is_file:
        return
    share = f", {100 * cached_bytes // found.size_bytes} %" if found.size_bytes else ""
    out(f"size      {found.size_bytes} ({format_bytes(found.size_bytes)})")
    out(f"version   {found.version}")
    out(f"modified  {shown_time(found.mtime_s)}")
    out(f"cached    {cached_bytes} ({format_bytes(cached_bytes)}{share})")
    stale = ", stale: the origin cannot be asked" if found.stale else ""
    at = f" ({shown_time(found.validated_unix_s)})" if found.validated_at else ""
    out(f"checked   {format_duration(found.age_s)} ago{at}{stale}")
    out(f"mode      {found.consistency}")


@dataclass(slots=True)
class Usage:
    """Sums over a directory. ``cached_bytes`` counts each object's last known version."""

    size_bytes: int = 0
    objects: int = 0
    cached_bytes: int = 0

    def add(self, size_bytes: int, cached_bytes: int) -> None:
        self.size_bytes += size_bytes
        self.objects += 1
        self.cached_bytes += cached_bytes


def du(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, PATHS] = None,
    summarize: Annotated[
        bool, typer.Option("--summarize", "-s", help="One line a path, none for what is below.")
    ] = False,
    human: Annotated[bool, HUMAN] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Sum up bytes, objects and cached bytes of directories and all directories below."""
    tally = session.tally(ctx)
    rows: list[tuple[str, Usage]] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths or ["/"]):
            with tally.item():
                rows += _usage(namespace, path, summarize).items()
    if as_document:
        out_json(
            [
                {
                    "path": path,
                    "size_bytes": usage.size_bytes,
                    "objects": usage.objects,
                    "cached_bytes": usage.cached_bytes,
                }
                for path, usage in rows
            ]
        )
    elif rows:
        shown = [
            (
                shown_bytes(usage.size_bytes, human),
                str(usage.objects),
                shown_bytes(usage.cached_bytes, human),
                path,
            )
            for path, usage in rows
        ]
        for line in plain_table(("bytes", "objects", "cached", "path"), shown, right=(0, 1, 2)):
            out(line)
    return tally.code


def _usage(namespace: Namespace, path: str, summarize: bool) -> dict[str, Usage]:
    """Return sums by directory, the deepest first and the path itself last."""
    top = Usage()
    below: dict[str, Usage] = {}
    for named in listed(namespace, path, recursive=True, may_be_partial=True):
        if not named.is_file:
            continue
        cached = namespace.cached_bytes(named.path)
        top.add(named.entry.size_bytes, cached)
        parent = named.relative
        while not summarize and "/" in parent:
            parent = parent.rpartition("/")[0]
            full = f"{path.rstrip('/')}/{parent}"
            below.setdefault(full, Usage()).add(named.entry.size_bytes, cached)
    deepest_first = sorted(below, key=lambda name: (-name.count("/"), name))
    return {name: below[name] for name in deepest_first} | {path: top}


class FindKind(StrEnum):
    FILE = "f"
    DIRECTORY = "d"


def find(
    ctx: typer.Context,
    paths: Annotated[list[str] | None, PATHS] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Names that match; with a slash, paths below PATH. May be given many times.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="But not these: exclude wins.")
    ] = None,
    kind: Annotated[
        FindKind | None,
        typer.Option("--type", metavar="f|d", help="Only files (f) or directories (d)."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[+-]SIZE",
            help="Files larger (+1MiB) or smaller (-64KiB) than, or exactly of, a size.",
        ),
    ] = None,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Find names below directories; print their paths."""
    from tiercache.policy.globs import GlobFilter

    tally = session.tally(ctx)
    names = GlobFilter(name or (), exclude or ())
    sizes = [size_range(text) for text in size or ()]
    everything: list[Named] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths or ["/"]):
            with tally.item():
                names_below = listed(namespace, path, recursive=True, may_be_partial=True)
                found = with_directories(names_below, path)
                matching = (n for n in found if names.matches(n.relative))
                everything += _of_kind_and_size(matching, kind, sizes)
    if as_document:
        out_json([as_json(named) for named in everything])
    else:
        for named in everything:
            out(named.path)
    return tally.code


def _of_kind_and_size(
    found: Iterable[Named], kind: FindKind | None, sizes: list[tuple[int, int]]
) -> Iterable[Named]:
    for named in found:
        if kind is not None and named.is_file is not (kind is FindKind.FILE):
            continue
        if sizes and not named.is_file:
            continue
        if all(low <= named.entry.size_bytes <= high for low, high in sizes):
            yield named


def size_range(text: str) -> tuple[int, int]:
    """Return the sizes [low, high] that "+1M", "-64KiB" or "4096" stands for. K, M, G and T alone
    are powers of 1024, as find's."""
    sign, number = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    if number[-1:] in tuple("kKMGT"):
        number += "iB"
    count = session.bytes_option(number, "--size")
    match sign:
        case "+":
            return count + 1, 1 << 62
        case "-":
            return 0, count - 1
        case _:
            return count, count
