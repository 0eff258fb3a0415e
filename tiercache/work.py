"""On whose behalf the agent works at the moment, for what must choose between those who wait.

Set where a request or a job begins; tasks started from there inherit it. Whoever queues for a
scarce thing (requests to an origin, memory) reads it when it joins the queue.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """``identity`` as the QoS policy names it, "" where there is none; higher ``priority`` goes
    first."""

    identity: str = ""
    priority: int = 0


NOBODYS = Work()
current: ContextVar[Work] = ContextVar("work", default=NOBODYS)
