"""qos top: who gets how much at the moment, who waits, and on what."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON
from tiercache.cli.output import fields, on_terminal, out, out_json
from tiercache.cli.qos_session import running_qos
from tiercache.cli.qos_text import NARROW, Grid, backends_grid, top_grid, top_head, top_lines

if TYPE_CHECKING:
    from tiercache.qos_reports import Top

# What the agent tells are rates of about the last second.
SHORTEST_S = 0.1

INTERVAL = typer.Option(metavar="DURATION", help="How often, like 500ms or 2s.")
ONCE = typer.Option("--once", help="Show it once and end.")


def top(
    ctx: typer.Context,
    interval: Annotated[str, INTERVAL] = "1s",
    once: Annotated[bool, ONCE] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Show who gets how much, who waits, for how long and on what; on a terminal live, elsewhere a
    table each time, with --json one document a line. Ctrl-C ends it. Starts no agent."""
    interval_s = _interval(interval)
    with running_qos(ctx) as qos:
        told = qos.top()
        if as_document and once:
            out_json(told)
        elif once:
            _print(told)
        else:
            try:
                _go_on(_each(told, qos.top, interval_s), as_document)
            except KeyboardInterrupt:
                pass  # how it is meant to end
    return 0


def _interval(text: str) -> float:
    seconds = session.duration_option(text, "--interval")
    if seconds < SHORTEST_S:
        raise typer.BadParameter(f"{text} is too short: 100ms at least", param_hint="--interval")
    return seconds


def _each(told: Top, ask: Callable[[], Top], interval_s: float) -> Iterator[Top]:
    while True:
        yield told
        time.sleep(interval_s)
        told = ask()


def _go_on(tellings: Iterator[Top], as_document: bool) -> None:
    if on_terminal() and not as_document:
        _draw(tellings)
        return
    for told in tellings:
        if as_document:
            out(json.dumps(fields(told)))
        else:
            out(time.strftime("%H:%M:%S"))
            _print(told)
        sys.stdout.flush()


def _print(told: Top) -> None:
    for line in top_lines(told):
        out(line)


def _draw(tellings: Iterator[Top]) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        for told in tellings:
            uses = top_grid(told)
            if max(map(len, uses.lines()), default=0) > live.console.width:
                uses = uses.first(NARROW)
            grids = [grid for grid in (uses, backends_grid(told.backends)) if grid.rows]
            live.update(Group(top_head(told), *map(_drawn, grids)), refresh=True)


def _drawn(grid: Grid) -> Any:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(grid.header):
        drawn.add_column(name, justify="right" if number in grid.right else "left")
    for row in grid.rows:
        drawn.add_row(*map(Text, row))
    return drawn
