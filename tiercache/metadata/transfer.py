"""Bring the records of one store or dump into another store, and prove that they are there.

Source and target are walked side by side in key order, and only what differs is written. So a
transfer that was cut off is begun again and does what is left. Memory is bounded: one batch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import inf

from crc32c import crc32c

from tiercache import catalog
from tiercache.catalog import CatalogListing, CatalogRecord
from tiercache.errors import AlreadyExists, CorruptPage, FormatError
from tiercache.metadata.dump import Pair, records_of
from tiercache.ports import MetadataStore
from tiercache.units import MIB

Scan = Callable[[], AsyncIterator[Pair]]

# One commit: enough records to share its latency (5 ms against an object store), few enough bytes
# to be a request among others.
BATCH_RECORDS = 4096
BATCH_BYTES = 4 * MIB


class Mode(StrEnum):
    """``INTO_EMPTY``: the target holds nothing, or nothing but what the source holds too (it was
    begun before). ``MERGE``: what only the target holds stays; of a name or listing that both
    hold, the one validated later. ``REPLACE``: the target holds in the end what the source
    holds."""

    INTO_EMPTY = "into-empty"
    MERGE = "merge"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a transfer would do. Counts are records; ``unchanged`` ones are there already, ``kept``
    are the target's own. ``total_bytes`` are the keys and values of the source."""

    source_records: int
    written: int
    removed: int
    unchanged: int
    kept: int
    total_bytes: int

    @property
    def changes(self) -> int:
        return self.written + self.removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """How a transfer ended. ``records`` and ``crc32c`` are of all that the target holds, read back
    after the last commit (``Digest``)."""

    records: int
    crc32c: str
    sequence: int


@dataclass(slots=True)
class Digest:
    """CRC32C over the length-framed keys and values of a store, in key order."""

    records: int = 0
    record_bytes: int = 0
    crc: int = 0

    def add(self, key: bytes, value: bytes) -> None:
        self.records += 1
        self.record_bytes += len(key) + len(value)
        self.crc = crc32c(len(key).to_bytes(4, "big") + key, self.crc)
        self.crc = crc32c(value, crc32c(len(value).to_bytes(4, "big"), self.crc))

    @property
    def text(self) -> str:
        return f"{self.crc:08x}"


def validated_unix_s(key: bytes, value: bytes | None) -> float:
    """Return when a name or listing was confirmed; -inf where that cannot be told."""
    if value is None:
        return -inf
    try:
        record = catalog.decode(key, value)
    except FormatError:
        return -inf
    return record.validated_unix_s if isinstance(record, CatalogRecord | CatalogListing) else -inf


@dataclass(slots=True)
class Choice:
    """What the target shall hold, key after key. A listing is taken whole or not at all: its
    first part decides."""

    mode: Mode
    _listing: bytes = b""
    _source_wins: bool = True

    def wanted(self, key: bytes, given: bytes | None, there: bytes | None) -> bytes | None:
        if self.mode is Mode.REPLACE:
            return given
        if self.mode is Mode.MERGE and key[:1] == b"l":
            listing, _ = catalog.split_part_key(key)
            if listing != self._listing:
                self._listing = listing
                self._source_wins = _is_later(key, given, there)
            return given if self._source_wins else there
        if given is None or there is None:
            return there if given is None else given
        if self.mode is Mode.MERGE and key[:1] == b"o":
            return given if _is_later(key, given, there) else there
        return given


def _is_later(key: bytes, given: bytes | None, there: bytes | None) -> bool:
    if given is None or there is None:
        return given is not None
    return validated_unix_s(key, given) >= validated_unix_s(key, there)


async def joined(
    left: AsyncIterator[Pair], right: AsyncIterator[Pair]
) -> AsyncGenerator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield (key, value on the left, value on the right) for every key of two ordered scans."""
    a, b = await anext(left, None), await anext(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None
            yield a[0], a[1], None
            a = await anext(left, None)
        elif a is None or b[0] < a[0]:
            yield b[0], None, b[1]
            b = await anext(right, None)
        else:
            yield a[0], a[1], b[1]
            a, b = await anext(left, None), await anext(right, None)


@asynccontextmanager
async def _both(
    source: Scan, target: Scan
) -> AsyncIterator[AsyncGenerator[tuple[bytes, bytes | None, bytes | None]]]:
    """Join two scans, and end them where the caller stops early: they hold snapshots."""
    left, right = source(), target()
    pairs = joined(left, right)
    try:
        yield pairs
    finally:
        for scan in (pairs, left, right):
            if isinstance(scan, AsyncGenerator):
                await scan.aclose()


async def plan(
    source: Scan,
    target: Scan,
    *,
    mode: Mode,
    target_name: str,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Plan:
    """Read both to their ends and return what is to be done; nothing is written.

    Raises AlreadyExists where the target holds other records (INTO_EMPTY) or another snapshot of
    one name (MERGE); whatever the scans raise, for a dump FormatError.
    """
    choice = Choice(mode)
    source_records = written = removed = unchanged = kept = total_bytes = 0
    async with _both(source, target) as pairs:
        async for key, given, there in pairs:
            _refuse_conflict(mode, key, given, there, target_name)
            wanted = choice.wanted(key, given, there)
            if given is not None:
                source_records += 1
                total_bytes += len(key) + len(given)
                on_progress(total_bytes)
            if wanted is None:
                removed += there is not None
            elif wanted != there:
                written += 1
            elif wanted == given:
                unchanged += 1
            else:
                kept += 1
    return Plan(
        source_records=source_records,
        written=written,
        removed=removed,
        unchanged=unchanged,
        kept=kept,
        total_bytes=total_bytes,
    )


def _refuse_conflict(
    mode: Mode, key: bytes, given: bytes | None, there: bytes | None, target_name: str
) -> None:
    if there is None or there == given or mode is Mode.REPLACE:
        return
    if mode is Mode.INTO_EMPTY:
        raise AlreadyExists(
            "the store is not empty, and holds what the source does not",
            path=target_name,
            remedy="--merge keeps what is there, --replace makes it like the source",
        )
    if key[:1] == b"s" and given is not None:
        raise AlreadyExists(
            f"both have a snapshot {key[1:].decode(errors='backslashreplace')!r}, and not the same",
            path=target_name,
            remedy="remove one of them, or --replace all that is there",
        )


async def transfer(
    source: Scan,
    target: MetadataStore,
    *,
    mode: Mode,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Transferred:
    """Write what differs, in batches, flush, and read the target back.

    ``on_progress`` gets the bytes of the source that are done. Raises CorruptPage where the target
    does not hold what was written; otherwise as ``plan`` and ``commit``. Cut off, it has written
    some batches: the same transfer, begun again, goes on from there.
    """
    writer = _Writer(target)
    choice, expected = Choice(mode), Digest()
    done_bytes = 0
    async with _both(source, partial(records_of, target)) as pairs:
        async for key, given, there in pairs:
            wanted = choice.wanted(key, given, there)
            if wanted is not None:
                expected.add(key, wanted)
            if wanted != there:
                await writer.put(key, wanted)
            if given is not None:
                done_bytes += len(key) + len(given)
                on_progress(done_bytes)
    await writer.commit()
    await target.flush()
    return await verified(target, expected)


async def verified(store: MetadataStore, expected: Digest | None = None) -> Transferred:
    """Read all that ``store`` holds. Raises CorruptPage where it is not what was ``expected``."""
    found = await digest_of(store)
    if expected is not None and found != expected:
        raise CorruptPage(
            f"{found.records} records of checksum {found.text} are there, not "
            f"{expected.records} of {expected.text}",
            path=store.url,
            remedy="run it again; tiercache metadata check says more",
        )
    return Transferred(records=found.records, crc32c=found.text, sequence=store.sequence)


@dataclass(slots=True)
class _Writer:
    target: MetadataStore
    _batch: dict[bytes, bytes | None] = field(default_factory=dict)
    _bytes: int = 0

    async def put(self, key: bytes, value: bytes | None) -> None:
        self._batch[key] = value
        self._bytes += len(key) + len(value or b"")
        if len(self._batch) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES:
            await self.commit()

    async def commit(self) -> None:
        if self._batch:
            await self.target.commit(self._batch)
            self._batch, self._bytes = {}, 0


async def digest_of(store: MetadataStore) -> Digest:
    """Return count and checksum of all that ``store`` holds: the same for the same records, in
    whatever engine."""
    digest = Digest()
    async for key, value in records_of(store):
        digest.add(key, value)
    return digest
