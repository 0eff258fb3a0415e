"""Reading parts of many names in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiercache.client.batch import Answered, Item
from tiercache.client.paying import Settled
from tiercache.errors import StaleHandle, TiercacheError

if TYPE_CHECKING:
    from tiercache.client.reader import Reader


def read_many(reader: Reader, items: Sequence[Item], on_error: str) -> list[bytes | TiercacheError]:
    """See ``Reader.read_many``."""
    missing = [item for item in items if not reader.is_hit(*item)]
    outcomes = reader.fill_many(missing) if len(missing) > 1 else {}
    results: list[bytes | TiercacheError] = []
    for item in items:
        try:
            outcome = outcomes.get(item) if outcomes else None
            results.append(reader.read(*item) if outcome is None else _read(reader, item, outcome))
        except TiercacheError as error:
            if on_error == "raise":
                raise
            results.append(error)
    return results


def _read(reader: Reader, item: Item, outcome: TiercacheError | Answered) -> bytes:
    path, offset, length = item
    if isinstance(outcome, TiercacheError):
        raise outcome
    try:
        entry = reader.names.answered(path, outcome)
        with Settled(entry.pays):  # by the agent, who was asked to fill it
            return reader.read_entry(entry, offset, length)[1]
    except StaleHandle:
        return reader.again(path, lambda entry: reader.read_entry(entry, offset, length)[1])
