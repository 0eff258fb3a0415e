"""Bringing records into a metadata store: who may be in the way, the plan, writing, the proof."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tiercache.cli.progress import State, Style, meter
from tiercache.errors import AgentUnavailable, NotFound

if TYPE_CHECKING:
    from tiercache.metadata.transfer import Mode, Plan, Scan, Transferred
    from tiercache.settings import MetadataSettings, Settings

# Often enough for the eye; drawing costs more than a record does.
SHOWN_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Where records go, and how."""

    target: MetadataSettings
    mode: Mode
    dry_run: bool
    take_over: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """``done`` is None of a dry run."""

    plan: Plan
    done: Transferred | None


class Shown:
    """A meter that is told of every record."""

    def __init__(self, title: str, style: Style) -> None:
        self._meter = meter(title, style)
        self._next_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int | None = None, counts: str = "") -> None:
        now = time.monotonic()
        if now >= self._next_s or done_bytes == total_bytes:
            self._next_s = now + SHOWN_EVERY_S
            self._meter.update(
                State(
                    done_bytes=done_bytes,
                    moved_bytes=done_bytes,
                    total_bytes=total_bytes,
                    counts=counts,
                )
            )

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._meter.close()


def same_store(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")


@contextlib.contextmanager
def alone(settings: Settings, store: MetadataSettings) -> Iterator[None]:
    """Keep the agent of this cache directory out while its store is changed. Raises
    AgentUnavailable where it runs. (A volume has a lock of its own against other agents, a
    store on an object store fences them.)"""
    from tiercache.compose import agent_kept_out

    if not same_store(store.url, settings.metadata.url):
        yield
        return
    with agent_kept_out(settings):
        yield


def require_take_over(store: MetadataSettings, take_over: bool) -> None:
    """Raise AgentUnavailable where an agent that we cannot see may be serving the store."""
    if not take_over and not store.url.startswith("lmdb:"):
        raise AgentUnavailable(
            "an agent on some node may be serving the store, and would be fenced",
            path=store.url,
            remedy="tiercache agent stop there, then give --take-over; so too where the node is "
            "lost",
        )


async def move(settings: Settings, source: Scan, order: Order, shown: Shown) -> Moved:
    """Plan without touching the target, then write, and read back. Raises as plan, transfer and
    the opening of stores."""
    from tiercache.compose import metadata_store
    from tiercache.metadata.transfer import Mode, transfer, verified

    if order.dry_run:
        return Moved((await _planned(settings, source, order, shown))[0], None)
    with alone(settings, order.target):
        plan, is_there = await _planned(settings, source, order, shown)
        if is_there and not plan.changes:
            # Whoever serves it need not be fenced for this.
            async with metadata_store(settings, order.target, read_only=True) as store:
                return Moved(plan, await verified(store))
        # One that holds nothing of anybody's is nobody's loss.
        if is_there and order.mode is not Mode.INTO_EMPTY:
            require_take_over(order.target, order.take_over)
        async with metadata_store(settings, order.target, read_only=False) as store:
            done = await transfer(
                source,
                store,
                mode=order.mode,
                on_progress=lambda done: shown(done, plan.total_bytes),
            )
    return Moved(plan, done)


async def _planned(
    settings: Settings, source: Scan, order: Order, shown: Shown
) -> tuple[Plan, bool]:
    """Return the plan, and whether the target is there at all."""
    from tiercache.compose import metadata_store
    from tiercache.metadata.dump import records_of
    from tiercache.metadata.transfer import plan

    async with contextlib.AsyncExitStack() as opened:
        try:
            store = await opened.enter_async_context(
                metadata_store(settings, order.target, read_only=True)
            )
        except NotFound:
            target: Scan = _nothing
        else:
            target = partial(records_of, store)
        made = await plan(
            source,
            target,
            mode=order.mode,
            target_name=order.target.url,
            on_progress=lambda done: shown(done, None, "checked"),
        )
        return made, target is not _nothing


async def _nothing() -> AsyncIterator[tuple[bytes, bytes]]:
    """Scan a store that is not there."""
    nothing: tuple[tuple[bytes, bytes], ...] = ()
    for pair in nothing:
        yield pair
