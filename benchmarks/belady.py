"""What a cache of objects must fetch, by rule: LRU, SIEVE, and Belady's optimum. Pure.

A trace is a sequence of (object, its bytes), one element a read of the whole object. The
simulators hold whole objects and return the bytes fetched: those of every read that found its
object absent. All of them may pass an object through that does not fit or is not worth its room;
the bytes are fetched all the same.

With objects of one size ``belady`` is the optimum (MIN, Belady 1966). With mixed sizes the optimum
is NP-hard (Chrobak et al., 2012); farthest next use first is then what we measure ourselves by, and
a cache may beat it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from heapq import heappop, heappush
from typing import TypeVar

Object = TypeVar("Object", bound=Hashable)
Trace = Sequence[tuple[Object, int]]


def trace(
    objects: Sequence[tuple[Object, int]], *, epochs: int, seed: int
) -> list[tuple[Object, int]]:
    """Return reads of all objects once an epoch, each epoch in an order of its own."""
    rng = random.Random(seed)
    reads: list[tuple[Object, int]] = []
    for _ in range(epochs):
        order = list(objects)
        rng.shuffle(order)
        reads += order
    return reads


def lru(reads: Trace[Object], capacity_bytes: int) -> int:
    """Return the bytes fetched where the object goes that was read the longest time ago."""
    held: OrderedDict[Object, int] = OrderedDict()
    held_bytes = fetched = 0
    for name, size in reads:
        if name in held:
            held.move_to_end(name)
            continue
        fetched += size
        if size > capacity_bytes:
            continue
        held[name] = size
        held_bytes += size
        while held_bytes > capacity_bytes:
            held_bytes -= held.popitem(last=False)[1]
    return fetched


def sieve(reads: Trace[Object], capacity_bytes: int) -> int:
    """Return the bytes fetched under SIEVE (Zhang et al., NSDI '24), of whole objects: the rule of
    the product over another unit."""
    queue: list[Object] = []  # oldest first
    held: dict[Object, int] = {}
    visited: set[Object] = set()
    held_bytes = fetched = hand = 0
    for name, size in reads:
        if name in held:
            visited.add(name)
            continue
        fetched += size
        if size > capacity_bytes:
            continue
        while held_bytes + size > capacity_bytes:
            hand %= len(queue)
            if queue[hand] in visited:
                visited.remove(queue[hand])
                hand += 1
            else:
                held_bytes -= held.pop(queue.pop(hand))
        queue.append(name)
        held[name] = size
        held_bytes += size
    return fetched


def belady(reads: Trace[Object], capacity_bytes: int) -> int:
    """Return the bytes fetched where the object goes that is read again last, or never; the one
    just read too."""
    never = len(reads)
    following = [never] * len(reads)
    seen: dict[Object, int] = {}
    for place in range(len(reads) - 1, -1, -1):
        following[place] = seen.get(reads[place][0], never)
        seen[reads[place][0]] = place
    next_use: dict[Object, int] = {}  # of what is held
    farthest: list[tuple[int, int]] = []  # (-next use, place of the read that told it)
    held_bytes = fetched = 0
    for place, (name, size) in enumerate(reads):
        if name not in next_use:
            fetched += size
            held_bytes += size
        next_use[name] = following[place]
        heappush(farthest, (-following[place], place))
        while held_bytes > capacity_bytes:
            use, told = heappop(farthest)
            victim, victim_bytes = reads[told]
            if next_use.get(victim) == -use:  # else it was read since, or has gone
                del next_use[victim]
                held_bytes -= victim_bytes
    return fetched
