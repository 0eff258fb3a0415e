"""Many copies at once, with bounded work in hand, and Ctrl-C that ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

# Small objects cost round trips, not bandwidth: sixteen in flight hide them.
WORKERS = 16
POLL_S = 0.2


class Stopped(Exception):
    """The command was interrupted; a copy notices it between two blocks."""


def for_all(
    items: Iterable[T],
    act: Callable[[T], None],
    *,
    ended: Callable[[T, BaseException | None], None],
    tick: Callable[[], None],
    stop: Callable[[], None],
    workers: int = WORKERS,
) -> None:
    """Call ``act`` for all items on threads; ``ended`` and ``tick`` (five times a second) run on
    this thread. On KeyboardInterrupt ``stop`` is called, and running items are waited for."""
    running: dict[Future[None], T] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="tiercache-copy") as pool:
        try:
            for item in items:
                running[pool.submit(act, item)] = item
                while len(running) >= 4 * workers:
                    _collect(running, ended, tick)
            while running:
                _collect(running, ended, tick)
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise


def _collect(
    running: dict[Future[None], T],
    ended: Callable[[T, BaseException | None], None],
    tick: Callable[[], None],
) -> None:
    done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
    for future in done:
        ended(running.pop(future), future.exception())
    tick()
