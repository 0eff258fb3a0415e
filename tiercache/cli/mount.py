"""mount: what the namespace is made of."""

from __future__ import annotations

from typing import Annotated

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode, exit_code_of
from tiercache.cli.names import JSON
from tiercache.cli.output import out_json, say, table
from tiercache.errors import TiercacheError
from tiercache.units import format_duration


def mount(
    ctx: typer.Context,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask each origin whether it answers.")
    ] = True,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show the mounts of the configuration and whether their origins answer.

    Mounts are configuration, not state: to add one, write a [[mount]] with path and origin into
    the configuration file ("config path" names it). Origin URLs need no mount.
    """
    settings = session.settings(ctx)
    answers: dict[str, tuple[float, TiercacheError | None]] = {}
    if check and settings.mounts:
        from tiercache.cli.reach import reach_all

        answers = {
            reach.mount.path: (reach.latency_s, reach.error)
            for reach in reach_all(settings, settings.mounts)
        }
    rows, documents = [], []
    for mounted in settings.mounts:
        latency_s, error = answers.get(mounted.path, (0.0, None))
        reachable = None if mounted.path not in answers else error is None
        shown = {None: "not asked", True: f"yes, {format_duration(latency_s)}", False: "no"}
        rows.append(
            (
                mounted.path,
                mounted.origin,
                mounted.profile,
                str(mounted.consistency),
                "read-only" if mounted.read_only else "read-write",
                shown[reachable],
            )
        )
        documents.append(
            {
                "path": mounted.path,
                "origin": mounted.origin,
                "profile": mounted.profile,
                "consistency": str(mounted.consistency),
                "read_only": mounted.read_only,
                "reachable": reachable,
                "latency_s": latency_s if reachable else None,
                "error": str(error) if error else None,
            }
        )
    if as_document:
        out_json(documents)
    elif rows:
        table(("path", "origin", "profile", "consistency", "access", "reachable"), rows)
    else:
        say("nothing is mounted: write a [[mount]] into the configuration, or use origin URLs")
    failures = [(path, error) for path, (_, error) in answers.items() if error is not None]
    for path, error in failures:
        say(f"tiercache: {path}: {error}")
    codes = {exit_code_of(type(error)) for _, error in failures}
    if len(failures) == len(rows) and len(codes) == 1:
        return codes.pop()
    return ExitCode.FAILED if failures else ExitCode.OK
