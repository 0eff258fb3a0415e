"""Progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from tiercache.cli.output import say
from tiercache.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY_S = 10.0
# The rate is that of the last seconds: long enough to be calm, short enough to be now.
RATE_WINDOW_S = 15.0


class Style(StrEnum):
    AUTO = "auto"
    BAR = "bar"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``moved_bytes`` went over the network: the rate is theirs. ``total_bytes`` is None while it
    is not known. ``counts`` is free text."""

    done_bytes: int
    moved_bytes: int
    total_bytes: int | None
    counts: str = ""


class Meter(Protocol):
    """Owned by one thread."""

    def update(self, state: State) -> None: ...

    def close(self) -> None:
        """Leave the last state on the screen."""
        ...


class Rate:
    """Bytes a second over the last seconds, from (now, total) pairs."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, moved_bytes: int) -> float:
        self._seen.append((now, moved_bytes))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_WINDOW_S:
            self._seen.popleft()
        start, before = self._seen[0]
        return (moved_bytes - before) / (now - start) if now > start else 0.0


def text_of(state: State, rate: float) -> str:
    """Return "1.5 GiB of 3.0 GiB, 50 %, 210 MiB/s, 0:07 left, …" as far as it is known."""
    parts = [format_bytes(state.done_bytes)]
    if state.total_bytes is not None:
        parts[0] += f" of {format_bytes(state.total_bytes)}"
        if state.total_bytes:
            parts.append(f"{100 * state.done_bytes // state.total_bytes} %")
    if rate > 0:
        parts.append(f"{format_bytes(rate)}/s")
        if state.total_bytes is not None and state.total_bytes > state.done_bytes:
            parts.append(f"{format_duration((state.total_bytes - state.done_bytes) / rate)} left")
    if state.counts:
        parts.append(state.counts)
    return ", ".join(parts)


class Lines:
    """A line every ten seconds, as text or as JSON. The end is the command's to tell in text; as
    JSON it is a last line."""

    def __init__(self, title: str, *, as_json: bool) -> None:
        self._title = title
        self._as_json = as_json
        self._rate = Rate()
        self._next_s = time.monotonic() + LINE_EVERY_S
        self._last: State | None = None

    def update(self, state: State) -> None:
        self._last = state
        now = time.monotonic()
        rate = self._rate.note(now, state.moved_bytes)
        if now >= self._next_s:
            self._next_s = now + LINE_EVERY_S
            self._print(state, rate)

    def close(self) -> None:
        if self._last is not None and self._as_json:
            self._print(self._last, self._rate.note(time.monotonic(), self._last.moved_bytes))

    def _print(self, state: State, rate: float) -> None:
        if not self._as_json:
            say(f"{self._title}: {text_of(state, rate)}")
            return
        document = {
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "moved_bytes": state.moved_bytes,
            "bytes_per_s": round(rate),
            "counts": state.counts,
        }
        say(json.dumps(document))


class Bar:
    """One rich bar."""

    def __init__(self, title: str) -> None:
        self._rate = Rate()
        self._progress = _rich_progress()
        self._task = self._progress.add_task(title, total=None, text="")
        self._progress.start()

    def update(self, state: State) -> None:
        rate = self._rate.note(time.monotonic(), state.moved_bytes)
        done: dict[str, Any] = {"completed": state.done_bytes, "text": text_of(state, rate)}
        if state.total_bytes is not None:
            # A bar of nothing to do is a full one.
            done["total"] = max(state.total_bytes, 1)
            if not state.total_bytes:
                done["completed"] = 1
        self._progress.update(self._task, **done)

    def close(self) -> None:
        self._progress.stop()


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
    )


class Silent:
    def update(self, state: State) -> None:
        pass

    def close(self) -> None:
        pass


def meter(title: str, style: Style) -> Meter:
    """Return a meter on standard error, of the style that fits there unless one is asked for."""
    match style:
        case Style.NONE:
            return Silent()
        case Style.JSON:
            return Lines(title, as_json=True)
        case Style.PLAIN:
            return Lines(title, as_json=False)
        case Style.BAR:
            return Bar(title)
        case Style.AUTO:
            return Bar(title) if sys.stderr.isatty() else Lines(title, as_json=False)
