"""Prefetching in an announced order: a window ahead of the reader is kept filled.

Where the reader stands is learnt from what there is already: a miss comes to the agent, and a hit
leaves its mark in the shared state. The marks of the window are looked at many times a second and
cleared, so a reader never waits, nor says a word more. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from tiercache.agent.mounts import Located
from tiercache.agent.plane import Plane
from tiercache.model import Entry
from tiercache.policy.order import IDLE_S, TAIL_IDLE_S, WINDOW_SHARE, Order
from tiercache.records import ObjectRecord

# Marks are looked at this often while the reader moves, and less often while it pauses: at 64 KiB
# an object and 1 GB/s it reads 300 objects meanwhile. A look costs ~2 µs an object.
LOOK_S = 0.02
LOOK_GAP_S = 0.005
PAUSED_LOOK_S = 0.25
# A look ends behind so many objects that nobody has read: readers that run beside each other.
LOOK_UNREAD = 64
# However small the cache, so many objects are fetched ahead, if they fit in a share of it.
OBJECTS_AHEAD = 4
OBJECTS_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What the job does for one object of its order. Neither raises: the job keeps errors.

    ``look_up`` returns the version to fetch, None where there is none; ``fetch`` fetches it;
    ``present`` counts one that is here already, ``left`` one that is too large to be fetched
    ahead; ``is_paused`` says that an endpoint is offline, when no reader can be expected.
    """

    look_up: Callable[[Located], Awaitable[Entry | None]]
    fetch: Callable[[Located, Entry], Awaitable[None]]
    present: Callable[[Entry], None]
    left: Callable[[], None]
    is_paused: Callable[[], bool]


class OrderedRun:
    """One announced order, from its first read to its last."""

    def __init__(
        self, plane: Plane, names: list[Located], steps: Steps, *, concurrency: int
    ) -> None:
        # Constant after construction
        self._index = plane.index
        self._space = plane.space
        self._contents = plane.contents
        self._state = plane.state
        self._clock = plane.clock
        self._names = names
        self._steps = steps
        self._concurrency = concurrency
        self.order = Order([name.digest for name in names])
        # Owned by the event loop
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._entries: dict[int, Entry | None] = {}  # looked up, from the reader's place on
        self._asked = 0  # places below this were looked up, or are being
        self._settled = 0  # places below this no longer count as ahead
        self._counted: dict[int, int] = {}  # bytes ahead by place, and their sum
        self._ahead_bytes = 0
        self._usable_bytes = 0
        self._measured_s = 0.0
        self._looked_s = 0.0
        self._failure: BaseException | None = None
        self._fetching_bytes = 0
        self._fetching = 0
        self._watched: set[int] = set()  # here, and not read yet
        # Names missed since the last look, and before it: the marks that their reads leave.
        self._missed: list[bytes] = []
        self._missed_before: list[bytes] = []
        self._moved_s = plane.clock.now()

    async def run(self) -> bool:
        """Return when the order was read to its end: False where its reader was given up."""
        order = self.order
        self._space.victims.orders.open(order)
        try:
            while not order.is_over:
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                self._measure()
                self._look()
                self._settle()
                self._admit()
                if self._steps.is_paused():
                    self._moved_s = self._clock.now()
                idle_s = self._clock.now() - self._moved_s
                if order.low and order.reach >= len(order) and not self._fetching:
                    if idle_s > TAIL_IDLE_S:
                        return True
                if idle_s > IDLE_S:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(PAUSED_LOOK_S, max(LOOK_S, idle_s / 8))):
                        await self._wake.wait()
            return True
        finally:
            self._space.victims.orders.close(order)
            self._space.victims.forget_orders()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _measure(self) -> None:
        """Learn once a second how much of the cache is not pinned."""
        now_s = self._clock.now()
        if not self._usable_bytes or now_s - self._measured_s > 1.0:
            self._measured_s = now_s
            space = self._space
            unpinned_bytes = space.capacity_bytes - self._contents.pinned_bytes()
            self._usable_bytes = min(unpinned_bytes, space.most_bytes())

    # -- where the reader stands ------------------------------------------------------------

    def missed(self, digest: bytes) -> None:
        """Note a read that came to the agent."""
        record = self._index.get_object(digest)
        begins = record is not None and not self._is_one_piece(record)
        if self.order.touch(digest, begins=begins):
            self._missed.append(digest)
            self._moved_s = self._clock.now()
            self._wake.set()

    def _is_one_piece(self, record: ObjectRecord) -> bool:
        return record.size_bytes <= self._space.placement.extent_bytes or len(record.extents) == 1

    def _look(self) -> None:
        """Note the hits since the last look, and clear their marks."""
        order = self.order
        if self._clock.now() - self._looked_s < LOOK_GAP_S:
            return
        self._looked_s = self._clock.now()
        looked: dict[int, bool] = {}

        def was_read(slot: int) -> bool:
            """Small objects share a mark; all of them in the window may have been read."""
            if slot not in looked:
                looked[slot] = bool(slot) and bool(self._state.take_visited(slot))
            return looked[slot]

        low, unread, place = order.low, 0, order.low
        seen: set[bytes] = set()  # one mark is one read, also of a name that stands here twice
        while place < order.reach and unread < LOOK_UNREAD:
            name = order.names[place]
            if place in self._watched and not order.is_read(place):
                first, last = self._marks(name)
                if name not in seen and (was_read(first) or was_read(last)):
                    seen.add(name)
                    self._watched.discard(place)
                    if first == last:
                        order.read(place)
                    else:
                        order.begin(place)
                    self._moved_s = self._clock.now()
                else:
                    unread += 1
            place = max(place + 1, order.low)
        for name in order.current:
            if was_read(self._marks(name)[1]):
                order.end(name)
        for name in self._missed_before:
            was_read(self._marks(name)[0])
        self._missed_before, self._missed = self._missed, []
        if order.low != low:
            self._moved_s = self._clock.now()

    def _marks(self, digest: bytes) -> tuple[int, int]:
        """Return the slots that the first and the last byte of an object mark; 0 for none."""
        record = self._index.get_object(digest)
        if record is None or not record.extents:
            return 0, 0
        return record.extents[0][1], record.extents[-1][1]

    def _settle(self) -> None:
        """Forget what lies behind the reader."""
        while self._settled < self.order.low:
            self._entries.pop(self._settled, None)
            self._watched.discard(self._settled)
            self._ahead_bytes -= self._counted.pop(self._settled, 0)
            self._settled += 1

    # -- fetching ---------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin fetching what the window has room for."""
        order = self.order
        while order.reach < len(order):
            place = order.reach
            self._look_up_ahead(place)
            if place not in self._entries:
                return  # its look-up wakes us
            entry = self._entries[place]
            if entry is None or not entry.size_bytes or order.is_read(place):
                self._pass(place, entry)
                continue
            record = self._index.get_object(order.names[place])
            if record is not None and record.token == entry.token:
                if self._contents.is_whole(record):
                    self._greet(place, entry, record)
                    continue
            if self._is_too_large(entry):
                order.reach += 1
                self._watched.add(place)
                self._steps.left()
                continue
            if self._fetching >= self._concurrency or not self._fits(place, entry.size_bytes):
                return
            self._count(place, entry)
            self._fetching += 1
            self._fetching_bytes += entry.size_bytes
            self._spawn(self._fetch(place, entry))

    def _look_up_ahead(self, place: int) -> None:
        """See that the next places are looked up, as many at a time as may be fetched."""
        self._asked = max(self._asked, place)
        while self._asked < min(place + self._concurrency, len(self.order)):
            self._spawn(self._look_up(self._asked))
            self._asked += 1

    async def _look_up(self, place: int) -> None:
        entry = await self._steps.look_up(self._names[place])
        if place >= self._settled:
            self._entries[place] = entry
        self._wake.set()

    def _pass(self, place: int, entry: Entry | None) -> None:
        """Go by what is not there, is empty, or was read already."""
        self.order.reach += 1
        if entry is not None:
            self._steps.present(entry)
        self.order.read(place)

    def _greet(self, place: int, entry: Entry, record: ObjectRecord) -> None:
        """Take an object into the window that is here; what marked it was an earlier read."""
        self._count(place, entry)
        self._steps.present(entry)
        for slot in self._marks(self.order.names[place]):
            self._state.take_visited(slot)
        self._watched.add(place)

    def _count(self, place: int, entry: Entry) -> None:
        self.order.reach += 1
        self._counted[place] = entry.size_bytes
        self._ahead_bytes += entry.size_bytes

    def _is_too_large(self, entry: Entry) -> bool:
        return entry.size_bytes > self._usable_bytes // OBJECTS_SHARE

    def _fits(self, place: int, size_bytes: int) -> bool:
        """Return whether the object may be fetched now: into free room always, into others' room
        within the window."""
        space = self._space
        free_bytes = space.free_bytes() - self._fetching_bytes
        # What evictions for the window leave over must not draw in what is read late: it would be
        # the next to go, and so on through the whole order.
        if size_bytes <= free_bytes - self._usable_bytes // WINDOW_SHARE:
            return True
        ahead_bytes = self._ahead_bytes + size_bytes
        if ahead_bytes <= self._usable_bytes // WINDOW_SHARE:
            return True
        is_next = place < self.order.low + OBJECTS_AHEAD
        return is_next and ahead_bytes <= self._usable_bytes // OBJECTS_SHARE

    async def _fetch(self, place: int, entry: Entry) -> None:
        try:
            await self._steps.fetch(self._names[place], entry)
        finally:
            self._fetching -= 1
            self._fetching_bytes -= entry.size_bytes
            if not self.order.is_read(place):
                self._watched.add(place)
            self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()  # a defect of ours: the job ends with it
            self._wake.set()
