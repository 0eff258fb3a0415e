"""Tenants of one node, each in processes of its own: the load under which a QoS policy is judged.

A tenant's processes call themselves by its name (``qos.name``), read what is cached through the
public API or prefetch, and note when each operation began and ended (``qos_tracks.Track``).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_longlong
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from tiercache.errors import Throttled
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.testing.qos_tracks import Track, Window

BLOCK_BYTES = 64 * 1024
# Between the word and the first operation: every process is at its clock by then.
LEAD_S = 0.2
# Interpreter, imports and sixty-four first reads, on two cores that others use too.
START_TIMEOUT_S = 120.0
# A place for each of so many reads is worked out before; then they come again.
PLACES = 1 << 12
# An operation that has waited so long is given up: it has no end, and counts as waiting.
GIVEN_UP_S = 15.0


class LoadFailed(RuntimeError):
    """A tenant's process raised, died or was not ready in time; its traceback is on stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """``processes`` that read blocks at random of one cached object of ``length_bytes``, as fast as
    they get them or at ``rate`` a second each; with ``does`` "prefetch" they fetch ``paths`` whole,
    one after another, and evict all before it begins again. ``length_bytes`` is then each one's.
    They work from ``begin_s`` to ``end_s`` of the play's time."""

    name: str
    paths: tuple[str, ...]
    length_bytes: int
    block_bytes: int = BLOCK_BYTES
    processes: int = 1
    rate: float = inf
    does: Literal["read", "prefetch"] = "read"
    begin_s: float = 0.0
    end_s: float = inf

    @property
    def operation_bytes(self) -> int:
        return self.block_bytes if self.does == "read" else self.length_bytes


Tracks = dict[Tenant, list[Track]]


class Play:
    """A load, once. ``start`` lets it begin for ``seconds``; ``tracks`` waits for its end. Once it
    is closed no process of it is left. Not thread safe."""

    def __init__(self, settings: Settings, tenants: Sequence[Tenant], *, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        # Constant after construction
        self._tenants = tuple(tenants)
        self._seconds = seconds
        self._pipe, theirs = context.Pipe()
        # Mapped by all; one aligned word, which only we store to.
        self._end_ns = context.RawValue("q", 0)
        # Forked from one process that has imported everything: sixty-four that import the same
        # would take a minute of two cores.
        self._house = context.Process(
            target=_house, args=(theirs, settings, self._tenants, self._end_ns)
        )
        self._house.start()
        theirs.close()
        # Set by start
        self._begin_ns = 0

    @property
    def group_id(self) -> int:
        """The process group of all its processes."""
        assert self._house.pid is not None
        return self._house.pid

    def start(self) -> int:
        """Return when it begins, by CLOCK_MONOTONIC in ns, which is about now: every process has
        opened its client and read. Raises LoadFailed."""
        self._receive(START_TIMEOUT_S)
        self._begin_ns = time.monotonic_ns() + round(LEAD_S * 1e9)
        self._end_ns.value = self._begin_ns + round(self._seconds * 1e9)
        self._pipe.send(self._begin_ns)
        return self._begin_ns

    def end_at(self, end_s: float) -> None:
        """Let it end at another time of the play, which is to come."""
        self._end_ns.value = self._begin_ns + round(end_s * 1e9)

    def window(self, begin_s: float, end_s: float) -> Window:
        """Return a window in seconds of the play's time."""
        return Window(self._begin_ns + round(begin_s * 1e9), self._begin_ns + round(end_s * 1e9))

    def tracks(self) -> Tracks:
        """Return what each tenant's processes did, when all is done. Raises LoadFailed."""
        over_s = (self._end_ns.value - time.monotonic_ns()) / 1e9
        found: list[list[Track]] = self._receive(max(0.0, over_s) + 2 * GIVEN_UP_S)
        return dict(zip(self._tenants, found, strict=True))

    def _receive(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise LoadFailed(f"the tenants' processes did not answer within {timeout_s:.0f} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise LoadFailed("a tenant's process failed; its traceback is above") from None

    def close(self) -> None:
        self._pipe.close()
        self._house.join(0.5)
        if self._house.is_alive():
            os.killpg(self.group_id, signal.SIGKILL)
            self._house.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def played(
    settings: Settings, tenants: Sequence[Tenant], *, seconds: float
) -> tuple[Callable[[float, float], Window], Tracks]:
    """Play a load to its end; return what cuts windows of its time, and its tracks. Raises
    LoadFailed."""
    with Play(settings, tenants, seconds=seconds) as play:
        play.start()
        return play.window, play.tracks()


# -- in the house: one process, which the tenants' are forked from --------------------------------


def _house(
    pipe: Connection, settings: Settings, tenants: Sequence[Tenant], end_ns: c_longlong
) -> None:
    # Not interrupted by a Ctrl-C at the terminal, which its owner hears and passes on.
    os.setpgid(0, 0)
    context = multiprocessing.get_context("fork")
    rooms: list[list[tuple[Connection, ForkProcess]]] = []
    for tenant in tenants:
        rooms.append([])
        for number in range(tenant.processes):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_live, args=(theirs, settings, tenant, number, end_ns), daemon=True
            )
            process.start()
            theirs.close()
            rooms[-1].append((mine, process))
    pipes = [mine for room in rooms for mine, _ in room]
    try:
        for one in pipes:
            one.recv()
        pipe.send("ready")
        begin_ns = pipe.recv()
        for one in pipes:
            one.send(begin_ns)
        pipe.send([[mine.recv() for mine, _ in room] for room in rooms])
    except (EOFError, BrokenPipeError):
        return  # one of them failed and has said so, or our owner is gone


def _live(
    pipe: Connection, settings: Settings, tenant: Tenant, number: int, end_ns: c_longlong
) -> None:
    qos = msgspec.structs.replace(settings.qos, name=tenant.name, max_wait_s=GIVEN_UP_S)
    with Namespace(msgspec.structs.replace(settings, qos=qos)) as namespace:
        if tenant.does == "read":
            steps = _reads(namespace, tenant, random.Random(f"{tenant.name} {number}"))
            next(steps)  # the client's first, with all that it opens
        else:
            steps = _prefetches(namespace, tenant)
            namespace.reader()
        pipe.send("ready")
        pipe.send(_timed(steps, tenant, pipe.recv(), end_ns))


def _reads(namespace: Namespace, tenant: Tenant, rng: random.Random) -> Iterator[None]:
    (path,) = tenant.paths
    blocks, length = tenant.length_bytes // tenant.block_bytes, tenant.block_bytes
    places = [rng.randrange(blocks) * length for _ in range(PLACES)]
    read = namespace.read
    for place in itertools.cycle(places):
        read(path, place, length)
        yield


def _prefetches(namespace: Namespace, tenant: Tenant) -> Iterator[None]:
    while True:
        for path in tenant.paths:
            namespace.evict(path)
        for path in tenant.paths:
            namespace.prefetch(path, background=False).wait()
            yield


def _timed(
    steps: Iterator[None], tenant: Tenant, play_begin_ns: int, play_end_ns: c_longlong
) -> Track:
    now, step = time.monotonic_ns, steps.__next__
    began, ended = array("q"), array("q")
    period_ns = 0 if tenant.rate == inf else round(1e9 / tenant.rate)
    due_ns = play_begin_ns + round(tenant.begin_s * 1e9)
    end_ns = play_begin_ns + round(min(tenant.end_s, 1e6) * 1e9)
    while True:
        at = now()
        if due_ns > at:
            time.sleep((due_ns - at) / 1e9)
            at = now()
        # What was missed while it waited is not made up for: a batch that came late is late.
        due_ns = max(due_ns + period_ns, at - period_ns)
        if at >= end_ns or at >= play_end_ns.value:
            break
        began.append(at)
        try:
            step()
        except Throttled:
            break
        ended.append(now())
    return Track(operation_bytes=tenant.operation_bytes, began_ns=began, ended_ns=ended)


def bring_near(settings: Settings, path: str) -> int:
    """Prefetch an object and return its length. Raises LoadFailed where it is not cached whole."""
    with Namespace(settings) as namespace:
        namespace.prefetch(path, background=False).wait()
        length = namespace.stat(path).size_bytes
        if not namespace.is_hit(path, 0, length):
            raise LoadFailed(f"{path} was prefetched and is not cached whole")
        return length
