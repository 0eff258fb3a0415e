"""qos show, qos explain: what the policy in force says, and why somebody gets what they get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, table
from tiercache.cli.qos_session import identities, running_qos
from tiercache.cli.qos_text import explain_lines, show_grids, show_head
from tiercache.cli.walking import shown_time

if TYPE_CHECKING:
    from tiercache.qos_reports import Show

IDENTITY = typer.Argument(
    metavar="IDENTITY", help="An identity of the policy.", autocompletion=identities
)
TEXT = typer.Option("--text", help="Print the policy's own text, which apply takes again.")


def show(
    ctx: typer.Context,
    text: Annotated[bool, TEXT] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show the policy in force: where it is from, shares with schedules and overrides applied,
    rules, and the limits of backends. Starts no agent."""
    with running_qos(ctx) as qos:
        told = qos.show()
    if as_document:
        out_json(told)
    elif text and told.generation:
        out(told.text.rstrip("\n"))
    else:
        _print(told)
    return 0


def _print(told: Show) -> None:
    for line in show_head(told, shown_time(told.measured_unix_s or 0.0)):
        out(line)
    for grid in show_grids(told):
        out("")
        table(grid.header, grid.rows, right=grid.right)


def explain(
    ctx: typer.Context,
    identity: Annotated[str, IDENTITY],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A namespace path or origin URL.")],
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Say why an identity gets what it gets of a path: which rules lead to it and which lost, its
    shares, the buckets it pays into, what a miss pays at the backend, and what it waits for."""
    session.checked_paths([path])
    with running_qos(ctx) as qos:
        told = qos.explain(identity, path)
    if as_document:
        out_json(told)
        return 0
    for line in explain_lines(told):
        out(line)
    return 0
