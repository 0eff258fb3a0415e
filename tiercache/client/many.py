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
            known = item in outcomes
            results.append(_read(reader, item, outcomes[item]) if known else reader.read(*item))
        except TiercacheError as error:
            if on_error == "raise":
                raise
            results.append(error)
    return results


def _read(reader: Reader, item: Item, outcome: TiercacheError | Answered | None) -> bytes:
    """Read what the agent was asked to fill, and has charged."""
    path, offset, length = item
    if isinstance(outcome, TiercacheError):
        raise outcome
    try:
        names = reader.names
        entry = names.entry(path) if outcome is None else names.answered(path, outcome)
        with Settled(entry.pays):
            return reader.read_entry(entry, offset, length)[1]
    except StaleHandle:
        return reader.again(path, lambda entry: reader.read_entry(entry, offset, length)[1])
