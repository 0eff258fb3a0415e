"""Who asks: connections and jobs, and what the QoS policy may know of them.

The kernel says user and groups of a connection's process; the name is the client's own word, of
which the policy says who may use it.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from tiercache.agent.seats import Process
from tiercache.errors import ConfigError
from tiercache.policy.qos import PREFETCH_NAME, Claimant, SeatRule

# Room for "team/job/rank"; a name stands in logs, metrics and tables.
MAX_NAME_CHARACTERS = 128


def _never() -> bool:
    return False


@dataclass(slots=True, eq=False)
class Account:
    """One connection, or one job. ``process``: those of one process take turns as one.

    ``max_wait_s`` is the client's own bound. Bulk work waits as long as it takes, whatever the
    policy says: nobody would be there to try again.
    """

    process: Process
    pid: int
    uid: int
    gid: int
    name: str = ""
    max_wait_s: float | None = None
    is_bulk: bool = False
    # Whether nobody is there any more to take the answer.
    is_gone: Callable[[], bool] = _never
    # Looked up when a policy first asks.
    claimant: Claimant | None = None
    # Of the policy of ``generation``.
    seats: tuple[SeatRule, ...] = ()
    generation: int = 0

    def rename(self, name: str) -> None:
        """Go by another name from now on."""
        if name != self.name:
            self.name, self.claimant, self.seats = name, None, ()


# Of the connection's task, and of a job's; what they start inherits it. None is the agent itself.
asking: ContextVar[Account | None] = ContextVar("asking", default=None)


def check_name(name: str) -> str:
    """Raises ConfigError for a name that nobody could write into a policy or read in a table."""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise ConfigError(
            f"{name[:MAX_NAME_CHARACTERS]!r} is no name for the QoS policy",
            path="qos.name",
            remedy=f"use up to {MAX_NAME_CHARACTERS} printable characters",
        )
    return name


def check_wait(max_wait_s: float | None) -> float | None:
    """Raises ConfigError for what is no time to wait."""
    if max_wait_s is not None and not max_wait_s >= 0:
        raise ConfigError(f"{max_wait_s} s is no time to wait", path="qos.max_wait")
    return max_wait_s


def bulk_account(process: Process, *, name: str = "") -> Account:
    """Return the account of a job, for whoever asks for it now: without a name of its own it goes
    by PREFETCH_NAME. Of a job that nobody asks for, another agent left it, the user is this one's.
    """
    asker = asking.get()
    if asker is None:
        own = (os.getpid(), os.geteuid(), os.getegid())
        return Account(process, *own, name=name or PREFETCH_NAME, is_bulk=True)
    name = asker.name or PREFETCH_NAME
    account = Account(process, asker.pid, asker.uid, asker.gid, name=name, is_bulk=True)
    if asker.claimant is not None:  # its process may have gone when the job first pays
        account.claimant = replace(asker.claimant, name=name)
    return account


async def find_claimant(account: Account) -> Claimant:
    """Return who it is, asking the user database on a thread: it may be far away."""
    if account.claimant is None:
        loop = asyncio.get_running_loop()
        account.claimant = await loop.run_in_executor(
            None, claimant_of, account.pid, account.uid, account.gid, account.name
        )
    return account.claimant


def claimant_of(pid: int, uid: int, gid: int, name: str) -> Claimant:
    """Return names and numbers of a process's user and groups. Blocks."""
    groups = {gid, *_supplementary(pid, uid)}
    return Claimant(
        users=frozenset((str(uid), _user(uid))),
        groups=frozenset(text for group in groups for text in (str(group), _group(group))),
        name=name,
    )


def _supplementary(pid: int, uid: int) -> list[int]:
    """Return the further groups of a process; none where it has gone, or is another by now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    fields = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    if str(uid) not in fields.get("Uid", "").split():
        return []
    return [int(text) for text in fields.get("Groups", "").split()]


# Names are kept, their absence is not: a directory service that is away says "no such user".
@lru_cache(maxsize=1024)
def _user_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


@lru_cache(maxsize=1024)
def _group_name(gid: int) -> str:
    return grp.getgrgid(gid).gr_name


def _user(uid: int) -> str:
    try:
        return _user_name(uid)
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return _group_name(gid)
    except KeyError:
        return str(gid)
