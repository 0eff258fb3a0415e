"""What the qos commands share: the way to the agent, the names of identities, what changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from tiercache.cli import session
from tiercache.cli.output import out, out_json, say
from tiercache.errors import NotFound, TiercacheError

if TYPE_CHECKING:
    from tiercache.qos import Qos
    from tiercache.qos_reports import Changed

# A shell waits for its completions: an agent that is slower than this offers none.
COMPLETION_S = 0.3


@contextmanager
def running_qos(ctx: typer.Context) -> Iterator[Qos]:
    """Open the policy of the running agent. Starts none: raises NotFound where none runs."""
    from tiercache.qos import Qos

    settings = session.settings(ctx)
    link = session.running_agent(settings)
    if link is None:
        raise NotFound(
            "no agent runs, so nothing is shared out",
            path=settings.cache.dir,
            remedy="the first use of the cache starts one, or tiercache agent start",
        )
    try:
        yield Qos(lambda: link)
    finally:
        link.close()


def identities(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the identities of the running agent that begin so; none where it does not answer."""
    found: list[str] = []

    def ask() -> None:
        try:
            with running_qos(ctx) as qos:
                found.extend(identity.name for identity in qos.show().identities)
        except (TiercacheError, OSError):
            pass  # a completion that cannot be made is none

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(COMPLETION_S)
    return [name for name in found if name.startswith(incomplete)]


def print_changed(changed: Changed, *, as_document: bool) -> None:
    """Print what is different now, and the generation in force."""
    if as_document:
        out_json(changed)
        return
    for difference in changed.differences:
        out(difference)
    if not changed.differences:
        out("nothing changes")
    if changed.generation:
        say(f"generation {changed.generation} {'stays' if changed.dry_run else 'is'} in force")
    else:
        say("no policy is in force")
