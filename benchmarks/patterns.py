"""Access patterns: which bytes a worker reads, in which order. Values only, no I/O.

The same arguments give the same places in every process, so workers share work without talking.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.workload import Access
from tiercache.model import PAGE_BYTES


class Place(NamedTuple):
    """One read. ``number`` counts the objects from 0; ``offset`` and ``length`` are bytes."""

    number: int
    offset: int
    length: int


class Share(NamedTuple):
    """Which worker this is: ``worker`` of ``workers``, counted from 0."""

    worker: int
    workers: int


def places(
    access: Access, lengths: Sequence[int], share: Share, *, seed: int, again: bool
) -> Iterator[Place]:
    """Yield what one worker reads of objects of these lengths.

    With ``again`` the pattern goes on for ever (random blocks come again, epochs follow each
    other); without it all workers together read each block at most once, and the iterator ends.

    * random: blocks of all objects; aligned ones start at multiples of the block (of a page, for
      larger blocks that come again), others anywhere. Objects shorter than a block are read whole.
    * sequential: with at least as many objects as workers, every ``workers``-th object from its
      start; with fewer, this worker's part of each object. Parts are disjoint.
    * shuffled: each object once an epoch, in an order that differs from epoch to epoch.
    * in-order: every ``workers``-th object in order of name.
    """
    block = access.block_bytes
    match access.pattern:
        case "random" if again:
            return _random_for_ever(access, lengths, random.Random(f"{seed}-{share.worker}"))
        case "random":
            return _random_once(access, lengths, share, seed)
        case "sequential":
            once = list(_sequential(lengths, block, share))
            return itertools.cycle(once) if again else iter(once)
        case "shuffled":
            return _epochs(lengths, block, share, seed=seed, shuffled=True, again=again)
        case "in-order":
            return _epochs(lengths, block, share, seed=seed, shuffled=False, again=again)


def blocks_of(lengths: Sequence[int], block: int) -> int:
    """Return how many blocks the objects have; the last of each may be short."""
    return sum(-(-length // block) for length in lengths)


def _random_for_ever(access: Access, lengths: Sequence[int], rng: random.Random) -> Iterator[Place]:
    block = access.block_bytes
    step = min(block, PAGE_BYTES) if access.aligned else 1
    # Places where a whole block fits, summed up, so that all bytes are equally likely.
    sums = list(itertools.accumulate(max(0, n - block) // step + 1 for n in lengths))
    while True:
        number = rng.randrange(sums[-1])
        index = bisect.bisect_right(sums, number)
        offset = (number - (sums[index - 1] if index else 0)) * step
        yield Place(index, offset, min(block, lengths[index] - offset))


def _random_once(
    access: Access, lengths: Sequence[int], share: Share, seed: int
) -> Iterator[Place]:
    block = access.block_bytes
    # Unaligned blocks are the aligned ones, moved by one distance: so none is read twice.
    shift = 0 if access.aligned or block == 1 else random.Random(seed).randrange(1, block)
    counts = [max(1, -(-(length - shift) // block)) for length in lengths]
    sums = list(itertools.accumulate(counts))
    for number in _order(seed, sums[-1])[share.worker :: share.workers]:
        index = bisect.bisect_right(sums, number)
        offset = (number - (sums[index - 1] if index else 0)) * block
        if lengths[index] > shift:
            offset += shift
        yield Place(index, offset, min(block, lengths[index] - offset))


def _sequential(lengths: Sequence[int], block: int, share: Share) -> Iterator[Place]:
    if len(lengths) >= share.workers:
        for index in range(share.worker, len(lengths), share.workers):
            yield from _pieces(index, 0, lengths[index], block)
        return
    for index, length in enumerate(lengths):
        count = -(-length // block)
        first, end = (count * n // share.workers for n in (share.worker, share.worker + 1))
        yield from _pieces(index, first * block, min(length, end * block), block)


def _epochs(
    lengths: Sequence[int], block: int, share: Share, *, seed: int, shuffled: bool, again: bool
) -> Iterator[Place]:
    if share.worker >= len(lengths):
        return
    for epoch in itertools.count() if again else range(1):
        count = len(lengths)
        order = _order(f"{seed}-{epoch}", count) if shuffled else range(count)
        for index in order[share.worker :: share.workers]:
            yield from _pieces(index, 0, lengths[index], block)


@functools.lru_cache(maxsize=4)  # the threads of a process share them
def _order(seed: int | str, count: int) -> tuple[int, ...]:
    """Return 0 … count - 1 in the order that the seed stands for."""
    return tuple(random.Random(seed).sample(range(count), count))


def _pieces(index: int, start: int, end: int, block: int) -> Iterator[Place]:
    for offset in range(start, end, block):
        yield Place(index, offset, min(block, end - offset))
