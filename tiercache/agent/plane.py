"""The data plane: what fills, writes, names and jobs work on, handed around as one."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from tiercache.agent.chunks import Chunks
from tiercache.agent.contents import Contents
from tiercache.agent.device import Device
from tiercache.agent.index import Index
from tiercache.agent.memory import MemoryBudget
from tiercache.agent.packs import Packs
from tiercache.agent.pins import Pins
from tiercache.agent.space import Space
from tiercache.clock import Clock
from tiercache.ports import ExtentStore, IndexStore, SharedState
from tiercache.settings import CacheSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Owned by the event loop; ``executor`` runs what blocks on the device."""

    index: Index
    space: Space
    chunks: Chunks
    contents: Contents
    pins: Pins
    extents: ExtentStore
    state: SharedState
    memory: MemoryBudget
    device: Device
    clock: Clock
    executor: Executor


def build_plane(
    *,
    settings: CacheSettings,
    store: IndexStore,
    extents: ExtentStore,
    state: SharedState,
    clock: Clock,
    executor: Executor,
    committer: Executor,
) -> Plane:
    """Put the parts together over one cache directory's stores."""
    index = Index(store, committer)
    pins = Pins(index)
    chunks = Chunks(index)
    space = Space(index=index, extents=extents, state=state, limit=settings.limit)
    space.books.now = clock.now
    packs = Packs(space=space, index=index, extents=extents, executor=executor)
    contents = Contents(
        index=index,
        space=space,
        chunks=chunks,
        extents=extents,
        pins=pins,
        packs=packs,
    )
    return Plane(
        index=index,
        space=space,
        chunks=chunks,
        contents=contents,
        pins=pins,
        extents=extents,
        state=state,
        memory=MemoryBudget(settings.memory_bytes),
        device=Device(clock.now),
        clock=clock,
        executor=executor,
    )
