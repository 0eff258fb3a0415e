"""On whose behalf the agent works at the moment, for what must choose between those who wait.

Set where a request or a job begins; tasks started from there inherit it. Whoever queues for a
scarce thing (requests to an origin, memory) reads it when it joins the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """``identity`` as the QoS policy names it, "" where there is none; higher ``priority`` goes
    first."""

    identity: str = ""
    priority: int = 0


NOBODYS = Work()
current: ContextVar[Work] = ContextVar("work", default=NOBODYS)

# What more urgent work has joined a task, and how a task that queues is told. Owned by the event
# loop of the tasks.
_joined: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
_queued: WeakKeyDictionary[asyncio.Task[Any], Callable[[int], None]] = WeakKeyDictionary()


def priority() -> int:
    """Return the priority of the running task: its work's, or that of the most urgent work that
    waits for its outcome."""
    own = current.get().priority
    task = asyncio.current_task()
    return own if task is None else max(own, _joined.get(task, own))


def hurry(task: asyncio.Task[Any]) -> None:
    """Say that the running task will wait for this one: wherever that one queues, now or later, it
    goes by the higher priority of the two."""
    wanted = priority()
    if wanted > _joined.get(task, wanted - 1):
        _joined[task] = wanted
        tell = _queued.get(task)
        if tell is not None:
            tell(wanted)


@contextmanager
def queueing(tell: Callable[[int], None]) -> Iterator[None]:
    """Around a wait of the running task: ``tell`` is called with each higher priority that it is
    given meanwhile."""
    task = asyncio.current_task()
    if task is None:
        yield
        return
    _queued[task] = tell
    try:
        yield
    finally:
        del _queued[task]
