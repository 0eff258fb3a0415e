"""Calls that ask the agent for more than one thing: many names at once, one span in frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tiercache import wire
from tiercache.client.entry import Entry
from tiercache.client.link import Link
from tiercache.errors import TiercacheError

# Path, offset, length (None: to the end)
Item = tuple[str, int, int | None]


class Answered(NamedTuple):
    """What the agent said of a name, and the epoch from before it was asked."""

    found: wire.Found
    epoch: int


# What the agent says of an item: a failure, what the name was found to be, or that it was filled,
# as the index says by now (None). What it does not speak of is read as if it had not been asked.
Outcomes = dict[Item, TiercacheError | Answered | None]


def fill_plain(
    link: Link, items: Sequence[Item], epoch: int, meanwhile: Callable[[], None]
) -> Outcomes:
    """Have names of mounts looked up and parts of them fetched, in one trip. Returns what failed
    and what was found: the call reads what it was told, however soon that is out of date. All
    else the index says by now."""
    answer = link.request(wire.FillMany(tuple(items)), wire.FilledMany, meanwhile=meanwhile)
    outcomes: Outcomes = {}
    for number, (item, failed) in enumerate(zip(items, answer.data, strict=True)):
        found = answer.found[number] if answer.found else None  # none from an older agent
        if failed is not None:
            outcomes[item] = wire.error_of(failed)
        elif found is not None:
            outcomes[item] = Answered(found, epoch)
    return outcomes


def read_through(link: Link, entry: Entry, start: int, end: int) -> bytes:
    """Return bytes [start, end) of this version, past the cache device."""
    parts = []
    for begin in range(start, end, wire.MAX_SPAN_BYTES):
        stop = min(end, begin + wire.MAX_SPAN_BYTES)
        request = wire.ReadThrough(entry.path, entry.record.token, begin, stop - begin)
        parts.append(link.request(request, wire.Filled).data[0] or b"")
    return b"".join(parts)
