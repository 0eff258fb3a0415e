"""qos apply, set, unset, calibrate: what changes the policy in force."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.names import JSON
from tiercache.cli.output import say
from tiercache.cli.qos import read_policy
from tiercache.cli.qos_session import print_changed
from tiercache.cli.qos_show import IDENTITY

FILE = typer.Argument(metavar="FILE", help="The policy; - is standard input.")
DRY_RUN = typer.Option("--dry-run", "-n", help="Only say what would change.")
YES = typer.Option("--yes", "-y", help="Do not ask.")
VALUES = typer.Argument(metavar="KEY=VALUE", help="Like read.limit=200MB/s or capacity.max=50GiB.")
FOR = typer.Option("--for", metavar="DURATION", help="End it by itself after so long, like 1h.")
KEYS = typer.Argument(metavar="KEY", help="Like read.limit. Without one: all that was set.")


def apply(
    ctx: typer.Context,
    file: Annotated[str, FILE],
    dry_run: Annotated[bool, DRY_RUN] = False,
    yes: Annotated[bool, YES] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Put a policy into force, whole or not at all: check it, show what changes, ask, and print the
    new generation. It is kept in the cache directory, also for the next agent."""
    text = read_policy(file)
    asks = not (dry_run or yes)
    if asks and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("there is no terminal to ask on: give --yes, or --dry-run")
    with session.namespace(ctx) as namespace:
        if dry_run or asks:
            changed = namespace.qos.apply(text, file=file, dry_run=True)
            print_changed(changed, as_document=as_document)
            if dry_run or not changed.differences:
                return ExitCode.OK
            if not typer.confirm("Put it into force?", err=True):
                return ExitCode.INTERRUPTED
        changed = namespace.qos.apply(text, file=file)
    if asks:
        say(f"generation {changed.generation} is in force")
    else:
        print_changed(changed, as_document=as_document)
    return ExitCode.OK


def set_(
    ctx: typer.Context,
    identity: Annotated[str, IDENTITY],
    values: Annotated[list[str], VALUES],
    for_: Annotated[str | None, FOR] = None,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Override values of an identity, all or none, until unset or for a while; the policy itself
    stays as it is. KEY is read.limit, operations.weight, in_flight, max_wait, capacity.max …"""
    with session.namespace(ctx) as namespace:
        changed = namespace.qos.set(identity, parsed_values(values), for_s=seconds_of(for_))
    print_changed(changed, as_document=as_document)
    return ExitCode.OK


def parsed_values(values: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        key, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not key or not value:
            raise typer.BadParameter(f"{text!r}: write KEY=VALUE, like read.limit=200MB/s")
        if key in found:
            raise typer.BadParameter(f"{key} is given twice")
        found[key] = value
    return found


def seconds_of(text: str | None) -> float | None:
    if text is None:
        return None
    seconds = session.duration_option(text, "--for")
    if not seconds:
        raise typer.BadParameter("it would end at once", param_hint="--for")
    return seconds


def unset(
    ctx: typer.Context,
    identity: Annotated[str, IDENTITY],
    keys: Annotated[list[str] | None, KEYS] = None,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """End overrides of an identity."""
    with session.namespace(ctx) as namespace:
        changed = namespace.qos.unset(identity, keys or ())
    print_changed(changed, as_document=as_document)
    return ExitCode.OK


def calibrate(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Measure what the node delivers, which "auto" stands for in a policy. Takes some seconds, and
    reads and writes in the cache directory as fast as it can."""
    say("measuring; the node is busy for some seconds")
    with session.namespace(ctx) as namespace:
        changed = namespace.qos.calibrate()
    print_changed(changed, as_document=as_document)
    return ExitCode.OK
