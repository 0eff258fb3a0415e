"""The threads that wait for misses on behalf of event loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# A thread that waits for the agent costs a few KiB and no processor time; the agent's own limits
# bound what goes to an origin. 64 is its default concurrency for one endpoint.
THREADS = 64

P = ParamSpec("P")
T = TypeVar("T")

# By the identity that is charged: calls that wait for one's share, however many and for however
# long, leave the threads of the others alone.
_pools: dict[str, ThreadPoolExecutor] = {}


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Begin ``call`` on a thread. Cancelling the future does not stop a call that has begun."""
    return in_thread_of("", call, *args, **kwargs)


def in_thread_of(
    identity: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[T]:
    """The same on one of the threads of an identity, "" for nobody in particular."""
    pool = _pools.get(identity)
    if pool is None:
        # Two first calls at once leave one pool unused; it is collected.
        pool = _pools[identity] = ThreadPoolExecutor(THREADS, thread_name_prefix="tiercache-fs")
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(pool, lambda: call(*args, **kwargs))


def _after_fork_in_child() -> None:
    _pools.clear()  # their threads are the parent's


os.register_at_fork(after_in_child=_after_fork_in_child)
