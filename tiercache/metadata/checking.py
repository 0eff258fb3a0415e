"""Check that a metadata store holds what docs/format.md says, record by record, and repair it.

One pass in key order; memory is what one listing's part keys and all snapshots' heads take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tiercache import catalog
from tiercache.catalog import CatalogListing, CatalogRecord, Record, SnapshotPart, SnapshotRecord
from tiercache.errors import FormatError
from tiercache.metadata.dump import TYPE_NAMES, records_of
from tiercache.metadata.transfer import BATCH_RECORDS, Digest
from tiercache.ports import MetadataStore
from tiercache.records import JobRecord, PinRecord, QuotaRecord

# More are counted, not kept.
KEPT_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """``kind``: "record" (cannot be read), "key" (lies under the key of another), "listing" or
    "snapshot" (not whole), "leftover" (parts that nothing counts; harmless), "later" (of a
    version that we do not know: left alone)."""

    kind: str
    subject: str
    message: str


@dataclass(slots=True, kw_only=True)
class MetadataReport:
    """What a check found. ``by_type`` counts the records that can be read. ``crc32c`` is that of
    all that the store held when it was checked (transfer.Digest). ``dropped`` records were
    removed by the repair."""

    url: str
    identity: str
    sequence: int
    records: int = 0
    record_bytes: int = 0
    crc32c: str = ""
    by_type: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TYPE_NAMES.values(), 0))
    corruptions: int = 0
    leftovers: int = 0
    later: int = 0
    dropped: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.corruptions or self.leftovers)


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a listing or snapshot. ``first`` is the path it begins with."""

    key: bytes
    number: int
    objects: int = 0
    size_bytes: int = 0
    first: str = ""


@dataclass(slots=True)
class _Parts:
    """The parts of one listing or snapshot, as they pass by."""

    group: bytes = b""
    subject: str = ""
    seen: list[_Part] = field(default_factory=list)
    expected: int | None = None  # of a listing; None: nothing says


class _Checker:
    def __init__(self, report: MetadataReport) -> None:
        self._report = report
        self._digest = Digest()
        self._parts = _Parts()
        self._snapshots: dict[bytes, SnapshotRecord] = {}
        # What a repair removes.
        self.drop: list[bytes] = []

    def note(self, kind: str, subject: str, message: str) -> None:
        match kind:
            case "later":
                self._report.later += 1
            case "leftover":
                self._report.leftovers += 1
            case _:
                self._report.corruptions += 1
        if len(self._report.problems) < KEPT_PROBLEMS:
            self._report.problems.append(Problem(kind, subject, message))

    def add(self, key: bytes, value: bytes) -> int:
        """Look at one record; return the bytes that were looked at so far."""
        self._digest.add(key, value)
        if catalog.is_later(key, value):
            self.note("later", f"key {key[:40].hex()}", "of a later version; left alone")
            return self._digest.record_bytes
        try:
            record = catalog.decode(key, value)
        except FormatError as error:
            self.note("record", f"{TYPE_NAMES[key[:1]]} {key[1:41].hex()}", error.message)
            self.drop.append(key)
            return self._digest.record_bytes
        if not catalog.key_fits(key, record):
            self.note("key", name_of(key, record), "lies under the key of another record")
            self.drop.append(key)
        else:
            self._report.by_type[TYPE_NAMES[key[:1]]] += 1
            self._group(key, record)
        return self._digest.record_bytes

    def _group(self, key: bytes, record: Record) -> None:
        match record:
            case SnapshotRecord():
                self._snapshots[catalog.snapshot_part_prefix(record.name)] = record
            case CatalogListing() | SnapshotPart():
                group, number = catalog.split_part_key(key)
                if group != self._parts.group:
                    self._end_group()
                    self._parts = _Parts(group, name_of(key, record))
                if isinstance(record, CatalogListing):
                    self._parts.seen.append(_Part(key, number))
                    if number == 0:
                        self._parts.expected = record.parts
                else:
                    self._parts.seen.append(
                        _Part(
                            key,
                            number,
                            len(record.objects),
                            sum(each.size_bytes for each in record.objects),
                            record.objects[0].path if record.objects else "",
                        )
                    )

    def _end_group(self) -> None:
        parts, self._parts = self._parts, _Parts()
        if parts.group[:1] == b"l":
            self._end_listing(parts)
        elif parts.group:
            self._end_snapshot(parts)

    def _end_listing(self, parts: _Parts) -> None:
        if parts.expected is None:
            self._leftover(parts, parts.seen, "parts of a listing that was never finished")
            return
        wanted, beyond = _split(parts.seen, range(parts.expected))
        if len(wanted) == parts.expected:
            self._leftover(parts, beyond, "parts beyond its end")
        else:
            self.note("listing", parts.subject, f"{len(wanted)} of {parts.expected} parts")
            self.drop += [part.key for part in parts.seen]

    def _end_snapshot(self, parts: _Parts) -> None:
        record = self._snapshots.pop(parts.group, None)
        if record is None:
            self._leftover(parts, parts.seen, "parts of a snapshot that is not there")
            return
        wanted, beyond = _split(
            parts.seen, range(record.first_part, record.first_part + record.parts)
        )
        if self._is_whole(record, wanted):
            self._leftover(parts, beyond, "parts that it does not count")
        else:
            self.drop += [catalog.snapshot_key(record.name), *(part.key for part in parts.seen)]

    def _is_whole(self, record: SnapshotRecord, parts: list[_Part]) -> bool:
        objects = sum(part.objects for part in parts)
        size_bytes = sum(part.size_bytes for part in parts)
        if (len(parts), objects, size_bytes) != (record.parts, record.objects, record.size_bytes):
            message = (
                f"{len(parts)} of {record.parts} parts, {objects} of {record.objects} objects, "
                f"{size_bytes} of {record.size_bytes} bytes"
            )
        elif tuple(part.first for part in parts) != record.firsts:
            message = "its parts do not begin with the paths that it says"
        else:
            return True
        self.note("snapshot", f"snapshot {record.name}", message)
        return False

    def _leftover(self, parts: _Parts, beyond: list[_Part], message: str) -> None:
        if beyond:
            self.note("leftover", parts.subject, message)
            self.drop += [part.key for part in beyond]

    def end(self) -> None:
        self._end_group()
        for record in self._snapshots.values():
            if not self._is_whole(record, []):
                self.drop.append(catalog.snapshot_key(record.name))
        self._report.records = self._digest.records
        self._report.record_bytes = self._digest.record_bytes
        self._report.crc32c = self._digest.text


def _split(seen: list[_Part], numbers: range) -> tuple[list[_Part], list[_Part]]:
    return (
        [part for part in seen if part.number in numbers],
        [part for part in seen if part.number not in numbers],
    )


def name_of(key: bytes, record: Record) -> str:
    """Return what people call a record."""
    match record:
        case CatalogRecord():
            return f"name {record.origin}/{record.key}"
        case CatalogListing():
            below = " and all below" if record.recursive else ""
            return f"listing {record.origin}/{record.prefix}{below}"
        case SnapshotPart():
            name = catalog.split_part_key(key)[0][1:-1]
            return f"snapshot {name.decode(errors='backslashreplace')}"
        case SnapshotRecord():
            return f"snapshot {record.name}"
        case PinRecord():
            return f"pin {record.path}"
        case JobRecord():
            return f"job {record.id}"
        case QuotaRecord():
            return f"quota {record.identity}"


async def check(
    store: MetadataStore,
    *,
    repair: bool,
    on_progress: Callable[[int], None] = lambda _: None,
) -> MetadataReport:
    """Check everything; with ``repair`` remove what was found, but for records of later versions.

    ``on_progress`` gets the bytes checked so far. Raises as ``scan`` and ``commit``.
    """
    report = MetadataReport(url=store.url, identity=store.identity, sequence=store.sequence)
    checker = _Checker(report)
    async for key, value in records_of(store):
        on_progress(checker.add(key, value))
    checker.end()
    if repair:
        for start in range(0, len(checker.drop), BATCH_RECORDS):
            batch = checker.drop[start : start + BATCH_RECORDS]
            await store.commit(dict.fromkeys(batch))
            report.dropped += len(batch)
        await store.flush()
    return report
