"""pin, unpin, evict, invalidate: what stays in the cache, and what is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON, PATHS
from tiercache.cli.output import out, out_json
from tiercache.errors import NotFound
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.namespace import Namespace


def pin(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Never evict what paths name, now or later. Fetches nothing: see prefetch --pin."""

    def act(namespace: Namespace, path: str) -> int:
        namespace.pin(path)
        return 1

    return _each(ctx, paths, as_document, act, "pinned", lambda _: "pinned")


def unpin(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Undo pin of these very paths; status lists them."""

    def act(namespace: Namespace, path: str) -> int:
        namespace.unpin(path)
        return 1

    return _each(ctx, paths, as_document, act, "unpinned", lambda _: "unpinned")


def evict(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Drop the cached bytes of paths and all below them, pinned or not. The origin keeps its
    objects."""

    def act(namespace: Namespace, path: str) -> int:
        return sum(namespace.evict(each) for each in mounts_for(namespace, path))

    return _each(
        ctx, paths, as_document, act, "evicted_bytes", lambda n: f"{format_bytes(n)} evicted"
    )


def invalidate(
    ctx: typer.Context,
    paths: Annotated[list[str], PATHS],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Forget how fresh names are, so that their next use asks the origin. Cached bytes of
    unchanged versions stay."""

    def act(namespace: Namespace, path: str) -> int:
        return sum(namespace.invalidate(each) for each in mounts_for(namespace, path))

    return _each(ctx, paths, as_document, act, "names", lambda n: f"{n} names invalidated")


def mounts_for(namespace: Namespace, path: str) -> list[str]:
    """Return the path and the mounts below it; for a directory above mounts only those. Raises
    NotFound where nothing is mounted."""
    bare = path.rstrip("/")
    points = [mount.path for mount in namespace.mounts()]
    below = [point for point in points if point.startswith(bare + "/")]
    inside = "://" in path or any(bare == point or bare.startswith(point + "/") for point in points)
    if not inside and not below:
        raise NotFound("nothing is mounted there", path=path)
    return [path, *below] if inside else below


def _each(
    ctx: typer.Context,
    paths: list[str],
    as_document: bool,
    act: Callable[[Namespace, str], int],
    field: str,
    shown: Callable[[int], str],
) -> int:
    tally = session.tally(ctx)
    done: list[tuple[str, int]] = []
    with session.namespace(ctx) as namespace:
        for path in session.checked_paths(paths):
            with tally.item():
                count = act(namespace, path)
                done.append((path, count))
                if not as_document:
                    out(f"{path}: {shown(count)}")
    if as_document:
        out_json([{"path": path, field: count} for path, count in done])
    return tally.code
