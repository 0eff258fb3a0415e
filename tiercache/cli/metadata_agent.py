"""metadata rebuild, status: what the agent does with its metadata store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.exits import ExitCode
from tiercache.cli.metadata import store_settings
from tiercache.cli.moving import Shown
from tiercache.cli.names import JSON
from tiercache.cli.output import out, out_json, say, table
from tiercache.cli.progress import Style
from tiercache.cli.reading import PROGRESS
from tiercache.errors import NotFound, OriginUnavailable, TiercacheError

if TYPE_CHECKING:
    from tiercache.namespace import Namespace

# Names in one answer to a LIST: S3 and Google Cloud Storage give 1,000, Azure up to 5,000.
NAMES_A_REQUEST = 1000
POLL_S = 0.25
# What was learnt is committed within the commit interval, a million names within some seconds;
# in an outage later, and without this command.
DRAIN_S = 60.0
# States of the agent's store (metadata.state) in which it takes what was learnt.
SERVED = ("opening", "importing", "attached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """One path. ``known`` names were in its last listing, None where there was none; ``names``
    are in the new one, None of a dry run. ``requests`` are LISTs, of a dry run an estimate: at
    least that many where nothing is known."""

    path: str
    known: int | None
    names: int | None
    requests: int


def rebuild(
    ctx: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Namespace paths or origin URLs. Without one: all mounts."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say how many requests it would take.")
    ] = False,
    progress: Annotated[Style, PROGRESS] = Style.AUTO,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Learn names anew from the origins: list everything below the paths, whatever is known, and
    have the agent keep it in the metadata store.

    One LIST for each thousand names. Pins, jobs and snapshots are not at the origins: only an
    export brings them back.
    """
    settings = session.settings(ctx)
    store_settings(settings, None, None)
    wanted = session.checked_paths(paths or [mount.path for mount in settings.mounts])
    tally = session.tally(ctx)
    done: list[Rebuilt] = []
    pending = 0
    with session.namespace(ctx) as namespace:
        with Shown("rebuild", progress) as shown:
            for path in wanted:
                with tally.item():
                    done.append(_rebuilt(namespace, path, dry_run, shown))
        if not dry_run:
            pending = _pending_after_drain(namespace)
    if as_document:
        out_json({"dry_run": dry_run, "paths": list(map(asdict, done)), "pending_keys": pending})
    else:
        _print(done, dry_run)
    if pending:
        say(f"{pending} records wait for the metadata store: tiercache metadata status")
    return tally.code


def _rebuilt(namespace: Namespace, path: str, dry_run: bool, shown: Shown) -> Rebuilt:
    known = _names_known(namespace, path)
    if dry_run:
        requests = max(1, -(-(known or 0) // NAMES_A_REQUEST))
        return Rebuilt(path=path, known=known, names=None, requests=requests)
    before = _lists_sent(namespace)

    def show() -> None:
        sent = _lists_sent(namespace) - before
        shown(0, None, f"{path}: {sent} requests, up to {sent * NAMES_A_REQUEST} names")

    _in_thread(lambda: _refresh(namespace, path), meanwhile=show)
    sent = _lists_sent(namespace) - before
    return Rebuilt(path=path, known=known, names=_names_known(namespace, path), requests=sent)


def _refresh(namespace: Namespace, path: str) -> None:
    """List at the origin all below a path; ask for the name itself where that is nothing.

    Raises NotFound, OriginUnavailable (also where the mount would serve what is known).
    """
    from tiercache import wire
    from tiercache.model import Kind

    link = namespace.client.link
    listed = link.request(wire.ListNames(path, True, True), wire.Listed)
    if listed.stale:
        raise OriginUnavailable("the origin cannot be asked; what was known stays", path=path)
    if not _names_known(namespace, path):
        found = link.request(wire.Lookup(path, True), wire.Found)
        if found.kind is Kind.ABSENT:
            raise NotFound("no such object or directory", path=path)


def _names_known(namespace: Namespace, path: str) -> int | None:
    """Return how many names the index's listing of all below a path has, of whatever age; None
    where there is none."""
    from tiercache import records

    client = namespace.client
    name = client.resolver.locate(path)
    prefix = name.directory_prefix
    raw = client.index.get(records.listing_key(name.origin, prefix, True, 0))
    if raw is None:
        return None
    first = records.decode_listing(raw)
    if first.parts == 1:
        return len(first.entries)
    last = client.index.get(records.listing_key(name.origin, prefix, True, first.parts - 1))
    full = (first.parts - 1) * records.PART_ENTRIES
    return full + (0 if last is None else len(records.decode_listing(last).entries))


def _lists_sent(namespace: Namespace) -> int:
    """Return how many LISTs the agent has sent to all origins so far."""
    return sum(origin["requests"].get("list", 0) for origin in namespace.status()["origins"])


def _in_thread(act: Callable[[], None], *, meanwhile: Callable[[], None]) -> None:
    """Run ``act`` on a thread of its own and raise what it raises; call ``meanwhile`` now and
    then. An interrupt ends the waiting, and the process with it the thread."""
    failures: list[TiercacheError | OSError] = []

    def run() -> None:
        try:
            act()
        except (TiercacheError, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="rebuild", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        meanwhile()
    for error in failures:
        raise error


def _pending_after_drain(namespace: Namespace) -> int:
    """Wait until the store has got what was learnt; return how much it has not."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        document: Mapping[str, Any] = namespace.status().get("metadata") or {}
        pending = int(document.get("pending_keys", 0))
        is_served = document.get("state") in SERVED
        if not (pending and is_served) or time.monotonic() > deadline:
            return pending
        time.sleep(POLL_S)


def _print(done: list[Rebuilt], dry_run: bool) -> None:
    rows = [
        (
            each.path,
            "-" if each.known is None else str(each.known),
            "-" if each.names is None else str(each.names),
            f"at least {each.requests}" if dry_run and each.known is None else str(each.requests),
        )
        for each in done
    ]
    if rows:
        table(("path", "known before", "names", "requests"), rows, right=(1, 2, 3))


def status(ctx: typer.Context, as_document: Annotated[bool, JSON] = False) -> int:
    """Show the configured metadata store and how the running agent gets along with it. Starts no
    agent, and does not ask the store."""
    from tiercache.cli.status import read_status

    settings = session.settings(ctx)
    document = read_status(settings)
    told: Mapping[str, Any] | None = document.get("metadata") if document else None
    if as_document:
        out_json(
            {
                "configured_url": settings.metadata.url,
                "running": document is not None,
                "metadata": told,
            }
        )
        return ExitCode.OK
    rows = [("configured", settings.metadata.url or "(none)")]
    if document is None:
        say(f"no agent runs in {settings.cache.dir}: tiercache metadata check asks the store")
    elif told is None:
        say("the running agent says nothing of a metadata store: it is of an older version")
    else:
        rows += [(key.replace("_", " "), _shown(value)) for key, value in told.items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out(f"{name:<{width}}  {value}")
    return ExitCode.OK


def _shown(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case float():
            return f"{value:.1f}"
        case _:
            return str(value)
