"""qos audit: who changed the policy, and who was denied what."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tiercache.cli import session
from tiercache.cli.names import JSON
from tiercache.cli.output import out, say
from tiercache.cli.walking import shown_time

# How often a followed log is looked at.
POLL_S = 0.25
# A whole policy is dozens of differences.
SHOWN_DIFFERENCES = 10

COUNT = typer.Option("-n", "--lines", min=0, metavar="N", help="How many lines, the last ones.")
FOLLOW = typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C.")


def audit(
    ctx: typer.Context,
    lines: Annotated[int, COUNT] = 20,
    follow: Annotated[bool, FOLLOW] = False,
    as_document: Annotated[bool, JSON] = False,
) -> int:
    """Print the audit log of the QoS policy: its changes, and who was denied what. With --json one
    document a line, as the log has it. Needs no agent."""
    from tiercache.compose import cache_directory

    log = Path(cache_directory(session.settings(ctx)).audit)
    followed = Followed(log)
    last = deque(Followed(followed.before).more(), maxlen=lines)
    last.extend(followed.more())
    for line in last:
        _print(line, as_document)
    if not last and not follow:
        say(f"{log}: nothing was changed or denied yet")
    try:
        while follow:
            sys.stdout.flush()
            time.sleep(POLL_S)
            for line in followed.more():
                _print(line, as_document)
    except KeyboardInterrupt:
        pass  # how it is meant to end
    return 0


class Followed:
    """A log that others append to, and now and then rename to ``before``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    @property
    def before(self) -> Path:
        return self._path.with_name(self._path.name + ".1")

    def more(self) -> Iterator[str]:
        """Yield the whole lines that were added since the last call."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return
        if self._inode not in (0, inode):
            yield from self._rest(self.before)
            self._offset = 0
        self._inode = inode
        yield from self._rest(self._path)

    def _rest(self, path: Path) -> list[str]:
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode:
                    return []  # it went on meanwhile: the next call has it
                if status.st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        return [line for line in whole.decode(errors="replace").split("\n") if line]


def _print(line: str, as_document: bool) -> None:
    for text in [line] if as_document else lines_of(line):
        out(text)


def lines_of(line: str) -> list[str]:
    """Return a line of the log for people: what happened, and below it what became different. One
    that is no document of ours is told as it stands."""
    try:
        document: Any = json.loads(line)
    except ValueError:
        return [line]
    if not isinstance(document, dict):
        return [line]
    when, what = document.pop("unix_s", None), document.pop("what", "?")
    parts = [shown_time(when) if isinstance(when, int | float) else "?", f" {what:<9}"]
    if "before" in document:
        parts.append(f"generation {document.pop('before')} → {document.pop('generation', '?')}")
    if "user" in document:
        parts.append(f"by {document.pop('user')}")
    differences = document.pop("differences", [])
    parts += [f"{key} {_value(value)}" for key, value in document.items()]
    more = [f"    {difference}" for difference in differences[:SHOWN_DIFFERENCES]]
    if len(differences) > SHOWN_DIFFERENCES:
        more.append(f"    and {len(differences) - SHOWN_DIFFERENCES} more, see --json")
    return [" ".join(parts).rstrip(), *more]


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
