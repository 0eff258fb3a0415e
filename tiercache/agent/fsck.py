"""Whether index, extent files and ledger agree, byte by byte; and making them agree again.

Offline (nobody serves the directory) every relation is checked. Online, beside a running agent
and read-only, objects and their bytes are; what changed while it was looked at is passed over.
``compose.fsck`` hands the parts in and holds the lock.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from tiercache import records
from tiercache.agent.chunks import checksums
from tiercache.agent.contents import without_data
from tiercache.agent.extent_state import PACK_SLOTS
from tiercache.agent.space import EXTENT_OVERHEAD_BYTES, FIXED_OVERHEAD_BYTES
from tiercache.model import PAGE_BYTES
from tiercache.policy import pages
from tiercache.policy.qos import DEFAULT_IDENTITY
from tiercache.ports import ExtentDirectory, ExtentReader, ExtentStore, IndexReader
from tiercache.ports import IndexStore as Store
from tiercache.records import BITMAP_BYTES, ExtentRecord, ObjectRecord, QuotaRecord

# One snapshot of the index is held for so many records: long-lived ones make LMDB grow.
SCAN_RECORDS = 512
# One read of the device; a multiple of the page.
READ_BYTES = 4 << 20
# Packs are visited in no order; this many stay open.
KEPT_OPEN = 64
# Of more problems than these only the counts are kept.
KEPT_PROBLEMS = 1000
COMMIT_RECORDS = 4096
# A text that is no UTF-8 is not among msgspec's own errors.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One disagreement. ``kind`` is a stable word, ``subject`` what it is about. Where not
    ``corruption`` it is a harmless leftover of a crash, which only costs space until the next
    agent or an eviction takes it back."""

    kind: str
    subject: str
    message: str
    corruption: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport:
    """``ledger_bytes`` is what an agent would charge for the directory, ``disk_bytes`` what it
    occupies; the first is never smaller but for a problem of kind "ledger". ``problems`` holds
    the first 1,000; ``corruptions`` and ``leftovers`` count all. ``repaired`` says that what was
    found has been taken out."""

    objects_checked: int
    pages_checked: int
    bytes_checked: int
    bad_pages: int
    orphan_files: int
    missing_files: int
    ledger_bytes: int
    disk_bytes: int
    corruptions: int
    leftovers: int
    problems: tuple[Problem, ...]
    repaired: bool = False
    online: bool = False

    @property
    def clean(self) -> bool:
        return not self.corruptions and not self.leftovers


@dataclass(slots=True)
class _Counts:
    objects: int = 0
    pages: int = 0
    bytes: int = 0
    bad_pages: int = 0
    orphan_files: int = 0
    missing_files: int = 0
    corruptions: int = 0
    leftovers: int = 0
    problems: list[Problem] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Pages [first, end) of an object of ``size_bytes``, from ``offset`` of a file on, and the
    checksums of just these."""

    offset: int
    first: int
    end: int
    size_bytes: int
    crcs: bytes


class _Checker:
    """Finds problems and notes what would undo them. Not thread safe."""

    def __init__(
        self,
        reader: IndexReader,
        extents: ExtentDirectory,
        *,
        online: bool,
        on_progress: Callable[[int], None],
    ) -> None:
        self._reader = reader
        self._extents = extents
        self._online = online
        self._on_progress = on_progress
        self._open: OrderedDict[int, ExtentReader] = OrderedDict()
        self._data_ids: set[int] = set()
        self.counts = _Counts()
        # What a repair writes into the index and takes off the device.
        self.batch: dict[bytes, bytes | None] = {}
        self.discard: set[int] = set()

    # -- reporting --------------------------------------------------------------------------

    def note(self, kind: str, subject: str, message: str, *, corruption: bool = True) -> None:
        counts = self.counts
        if corruption:
            counts.corruptions += 1
        else:
            counts.leftovers += 1
        if len(counts.problems) < KEPT_PROBLEMS:
            counts.problems.append(
                Problem(kind=kind, subject=subject, message=message, corruption=corruption)
            )

    def _missing_file(self, extent_id: int) -> None:
        if extent_id not in self.counts.missing:
            self.counts.missing.add(extent_id)
            self.counts.missing_files += 1
            self.note("missing-file", f"extent {extent_id:016x}", "the index knows it, no file is")

    # -- reading ----------------------------------------------------------------------------

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield all pairs, holding no snapshot between batches."""
        start = prefix
        while batch := list(self._reader.scan(prefix, start=start, limit=SCAN_RECORDS)):
            yield from batch
            start = batch[-1][0] + b"\0"

    def _extent(self, extent_id: int) -> ExtentRecord | None:
        """Return an extent's record; None too where it cannot be read (``structure`` says so)."""
        raw = self._reader.get(records.extent_key(extent_id))
        try:
            return None if raw is None else records.decode_extent(raw)
        except UNREADABLE:
            return None

    def _opened(self, extent_id: int) -> ExtentReader | None:
        held = self._open.get(extent_id) or self._extents.open(extent_id)
        if held is None:
            return None
        self._open[extent_id] = held
        self._open.move_to_end(extent_id)
        if len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)
        return held

    def _bad_pages(self, held: ExtentReader, run: _Run) -> list[int]:
        """Return those pages of a run that fail their checksum."""
        bad = []
        step = READ_BYTES // PAGE_BYTES
        for start in range(run.first, run.end, step):
            stop = min(run.end, start + step)
            length = min(stop * PAGE_BYTES, run.size_bytes) - start * PAGE_BYTES
            offset = run.offset + (start - run.first) * PAGE_BYTES
            try:
                data = os.pread(held.fd, length, offset)
            except OSError:
                data = b""
            found = checksums(memoryview(data))
            short = len(data) < length
            for page in range(start, stop):
                at, expected = (page - start) * 4, (page - run.first) * 4
                good = found[at : at + 4] == run.crcs[expected : expected + 4] != b""
                whole = len(data) >= min(length, (page - start + 1) * PAGE_BYTES)
                if not good or (short and not whole):
                    bad.append(page)
            self.counts.pages += stop - start
            self.counts.bytes += length
        self._on_progress(self.counts.bytes)
        return bad

    # -- objects ----------------------------------------------------------------------------

    def objects(self) -> None:
        """Check every object's places, presence and bytes."""
        for key, raw in self.scan(b"o"):
            try:
                record = records.decode_object(raw)
            except UNREADABLE as error:
                self.note("record", f"object {key[1:].hex()}", f"cannot be read: {error}")
                self.batch[key] = None
                continue
            if key[1:] != records.name_hash(record.origin, record.key):
                self.note("record", _name(record), "stored under the hash of another name")
                self.batch[key] = None
                continue
            self.counts.objects += 1
            if record.data_id and record.packed:
                self._packed(key, raw, record)
            elif record.data_id:
                self._data_ids.add(record.data_id)
                self._large(key, raw, record)

    def _changed(self, key: bytes, raw: bytes) -> bool:
        """Online: whether the object moved while it was looked at."""
        return self._online and self._reader.get(key) != raw

    def _packed(self, key: bytes, raw: bytes, record: ObjectRecord) -> None:
        extent_id = record.extents[0][0]
        problem = self._pack_problem(key, extent_id, record)
        if problem:
            if not self._changed(key, raw):
                self.note("placement", _name(record), problem)
                self._forget_packed(key, extent_id, record)
            return
        held = self._opened(extent_id)
        if held is None:
            if not self._changed(key, raw):
                self._missing_file(extent_id)
                self._forget_packed(key, extent_id, record)
                self.batch[records.extent_key(extent_id)] = None
            return
        run = _Run(
            offset=record.pack_offset,
            first=0,
            end=pages.page_count(record.size_bytes),
            size_bytes=record.size_bytes,
            crcs=record.crcs,
        )
        bad = self._bad_pages(held, run)
        if bad and not self._changed(key, raw):
            self.counts.bad_pages += len(bad)
            self.note("bad-page", _name(record), f"pages {_shown(bad)} fail their checksum")
            self._forget_packed(key, extent_id, record)

    def _pack_problem(self, key: bytes, extent_id: int, record: ObjectRecord) -> str:
        extent = self._extent(extent_id)
        if extent is None or not extent.is_pack:
            return f"lies in extent {extent_id:016x}, which is not a pack"
        if record.pack_offset + record.size_bytes > extent.length_bytes:
            return f"reaches beyond the end of pack {extent_id:016x}"
        if self._reader.get(records.member_key(extent_id, record.pack_offset)) != key[1:]:
            return f"pack {extent_id:016x} does not know it as its member"
        return ""

    def _forget_packed(self, key: bytes, extent_id: int, record: ObjectRecord) -> None:
        self.batch[key] = records.encode(without_data(record))
        self.batch[records.member_key(extent_id, record.pack_offset)] = None

    def _large(self, key: bytes, raw: bytes, record: ObjectRecord) -> None:
        places = list(record.extents)
        for number, (extent_id, slot) in enumerate(places):
            first = number * record.extent_bytes // PAGE_BYTES
            end = min(
                pages.page_count(record.size_bytes), first + record.extent_bytes // PAGE_BYTES
            )
            expected = ExtentRecord(
                slot=slot,
                length_bytes=min(record.extent_bytes, record.size_bytes - first * PAGE_BYTES),
                owner=key[1:],
                data_id=record.data_id,
                first_page=first,
            )
            lost = self._place_problem(extent_id, expected, end)
            if lost and not self._changed(key, raw):
                if lost == "missing":
                    self._missing_file(extent_id)
                else:
                    self.note("placement", _name(record), lost)
                places[number] = (0, 0)
                self._drop_pages(record.data_id, range(first, end))
                self._forget_own_extent(extent_id, expected)
            elif not lost and extent_id:
                self._large_pages(key, raw, record, extent_id, range(first, end))
        if places != list(record.extents):
            self.batch[key] = records.encode(msgspec.structs.replace(record, extents=tuple(places)))

    def _place_problem(self, extent_id: int, expected: ExtentRecord, end: int) -> str:
        """Return what is wrong with one place of a large object, "missing" for a lost file."""
        if not extent_id:
            present = self._present(expected.data_id, range(expected.first_page, end))
            return "pages are present of a part that has no extent" if present else ""
        found = self._extent(extent_id)
        if found is None:
            return f"extent {extent_id:016x} is not in the index"
        if msgspec.structs.replace(found, identity=expected.identity) != expected:
            return f"extent {extent_id:016x} is of another object or part"
        return "" if self._opened(extent_id) is not None else "missing"

    def _forget_own_extent(self, extent_id: int, expected: ExtentRecord) -> None:
        found = self._extent(extent_id) if extent_id else None
        if found is not None and found.owner == expected.owner:
            self.batch[records.extent_key(extent_id)] = None
            self.discard.add(extent_id)

    def _present(self, data_id: int, wanted: range) -> list[int]:
        found = []
        for chunk, start, stop in pages.chunk_pages(wanted.start, wanted.stop):
            raw = self._reader.get(records.chunk_key(data_id, chunk))
            if raw is not None:
                bitmap, base = raw[:BITMAP_BYTES], chunk * (BITMAP_BYTES * 8)
                found += [base + p for p in range(start, stop) if pages.has_page(bitmap, p)]
        return found

    def _large_pages(
        self, key: bytes, raw: bytes, record: ObjectRecord, extent_id: int, wanted: range
    ) -> None:
        held = self._opened(extent_id)
        assert held is not None
        for chunk, start, stop in pages.chunk_pages(wanted.start, wanted.stop):
            chunk_key = records.chunk_key(record.data_id, chunk)
            stored = self._reader.get(chunk_key)
            if stored is None:
                continue
            base = chunk * (BITMAP_BYTES * 8)
            bad: list[int] = []
            for first, end in _runs(stored[:BITMAP_BYTES], start, stop):
                run = _Run(
                    offset=(base + first - wanted.start) * PAGE_BYTES,
                    first=base + first,
                    end=base + end,
                    size_bytes=record.size_bytes,
                    crcs=stored[BITMAP_BYTES + first * 4 : BITMAP_BYTES + end * 4],
                )
                bad += self._bad_pages(held, run)
            moved = self._online and self._reader.get(chunk_key) != stored
            if bad and not moved and not self._changed(key, raw):
                self.counts.bad_pages += len(bad)
                self.note("bad-page", _name(record), f"pages {_shown(bad)} fail their checksum")
                for page in bad:
                    self._drop_pages(record.data_id, range(page, page + 1))

    def _drop_pages(self, data_id: int, wanted: range) -> None:
        """Note the chunks without these pages for the repair."""
        for chunk, start, stop in pages.chunk_pages(wanted.start, wanted.stop):
            key = records.chunk_key(data_id, chunk)
            raw = self.batch[key] if key in self.batch else self._reader.get(key)
            if raw is None:
                continue
            bitmap = bytearray(raw[:BITMAP_BYTES])
            pages.clear_pages(bitmap, start, stop)
            self.batch[key] = bytes(bitmap) + raw[BITMAP_BYTES:] if any(bitmap) else None

    # -- what only a still directory can tell -----------------------------------------------

    def structure(self, files: dict[int, int]) -> int:
        """Check extents, chunks and members against the objects and against the ``files`` on
        disk (allocated bytes by id). Returns what a ledger charges for the extents."""
        slots: dict[int, int] = {}
        sums: dict[str, tuple[int, int]] = {}
        packs: set[int] = set()
        charged, orphans = 0, dict(files)
        for key, raw in self.scan(b"x"):
            extent_id = records.extent_id_of(key)
            try:
                record = records.decode_extent(raw)
            except UNREADABLE as error:
                self.note("record", f"extent {extent_id:016x}", f"cannot be read: {error}")
                self.batch[key] = None
                continue
            allocated = orphans.pop(extent_id, None)
            if record.is_pack:
                packs.add(extent_id)
            if allocated is None:
                self._missing_file(extent_id)
                self.batch[key] = None
            else:
                charged += allocated + EXTENT_OVERHEAD_BYTES
                whose = record.identity or DEFAULT_IDENTITY
                used, count = sums.get(whose, (0, 0))
                sums[whose] = used + allocated + EXTENT_OVERHEAD_BYTES, count + 1
            self._slots(slots, extent_id, record)
            if not record.is_pack and not self._is_wanted(extent_id, record):
                self._unreferenced(key, extent_id)
        for extent_id in sorted(orphans):
            self.counts.orphan_files += 1
            message = "no record in the index knows this file"
            self.note("orphan-file", f"extent {extent_id:016x}", message, corruption=False)
            self.discard.add(extent_id)
        self._chunks()
        self._members(packs)
        self._quotas(sums)
        return charged

    def _slots(self, slots: dict[int, int], extent_id: int, record: ExtentRecord) -> None:
        for slot in range(record.slot, record.slot + (PACK_SLOTS if record.is_pack else 1)):
            other = slots.setdefault(slot, extent_id)
            if other != extent_id:
                text = f"shares slot {slot} with extent {other:016x}"
                self.note("slot", f"extent {extent_id:016x}", text)
                return

    def _is_wanted(self, extent_id: int, record: ExtentRecord) -> bool:
        key = records.object_key(record.owner)
        raw = self._reader.get(key)
        if raw is None or self.batch.get(key, b"") is None:  # none, or one that cannot be read
            return False
        owner = records.decode_object(raw)
        return owner.data_id == record.data_id and any(
            place[0] == extent_id for place in owner.extents
        )

    def _unreferenced(self, key: bytes, extent_id: int) -> None:
        message = "no object uses this extent"
        self.note("unused-extent", f"extent {extent_id:016x}", message, corruption=False)
        self.batch[key] = None
        self.discard.add(extent_id)

    def _chunks(self) -> None:
        for key, _ in self.scan(b"c"):
            data_id = int.from_bytes(key[1:9], "big")
            if data_id not in self._data_ids:
                message = "no object has this data"
                self.note("unused-chunk", f"data {data_id}", message, corruption=False)
                self.batch[key] = None

    def _members(self, packs: set[int]) -> None:
        for key, _ in self.scan(b"m"):
            extent_id = records.extent_id_of(key)
            if extent_id in self.counts.missing:
                self.batch[key] = None
            elif extent_id not in packs:
                message = "there is no such pack"
                subject = f"member of extent {extent_id:016x}"
                self.note("unused-member", subject, message, corruption=False)
                self.batch[key] = None

    def _quotas(self, sums: Mapping[str, tuple[int, int]]) -> None:
        """Hold what is recorded of each identity against its extents. A killed agent leaves sums
        behind that the next one makes right."""
        recorded: dict[str, QuotaRecord] = {}
        for key, raw in self.scan(b"u"):
            try:
                record = records.decode_quota(raw)
            except UNREADABLE as error:
                self.note("record", f"quota {key[1:].hex()}", f"cannot be read: {error}")
                self.batch[key] = None
                continue
            recorded[record.identity] = record
        for identity in sorted(recorded.keys() | sums.keys()) if recorded else ():
            said = recorded.get(identity, QuotaRecord(identity, 0, 0, 0))
            used, count = sums.get(identity, (0, 0))
            if (said.used_bytes, said.extents) == (used, count):
                continue
            message = (
                f"recorded are {said.used_bytes} bytes in {said.extents} extents, there are "
                f"{used} in {count}"
            )
            self.note("quota", f"identity {identity}", message, corruption=False)
            right = QuotaRecord(identity, used, min(said.pinned_bytes, used), count)
            key = records.quota_key(identity)
            self.batch[key] = records.encode(right) if count else None

    def listings(self) -> None:
        """Check that every listing has all its parts."""
        seen: dict[bytes, set[int]] = {}
        counts: dict[bytes, int] = {}
        for key, raw in self.scan(b"l"):
            digest, number = key[1:17], int.from_bytes(key[17:], "big")
            seen.setdefault(digest, set()).add(number)
            try:
                part = records.decode_listing(raw)
            except UNREADABLE:
                counts[digest] = 0
                continue
            if number == 0:
                counts.setdefault(digest, part.parts)
        for digest, numbers in seen.items():
            if numbers != set(range(counts.get(digest, 0))):
                self.note("listing", digest.hex(), "its parts are not whole")
                self.batch.update({b"l" + digest + n.to_bytes(4, "big"): None for n in numbers})


def check_online(
    reader: IndexReader,
    extents: ExtentDirectory,
    *,
    disk_bytes: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FsckReport:
    """Check objects and their bytes beside a running agent, changing nothing.

    ``ledger_bytes`` of the report is 0: the agent's own status has it.
    """
    checker = _Checker(reader, extents, online=True, on_progress=on_progress)
    checker.objects()
    return _report(checker.counts, 0, disk_bytes, repaired=False, online=True)


def check(
    store: Store,
    extents: ExtentStore,
    *,
    disk_bytes: int,
    repair: bool,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FsckReport:
    """Check everything; with ``repair`` take out of index and directory what was found. The
    caller holds the agent's lock. Raises OSError from the device, FormatError for an index that
    cannot be read at all."""
    checker = _Checker(store, extents, online=False, on_progress=on_progress)
    files = extents.scan()
    held = extents.discarded()
    checker.objects()
    charged = checker.structure(files)
    checker.listings()
    overhead = FIXED_OVERHEAD_BYTES + store.size_bytes()
    charged += sum(allocated + EXTENT_OVERHEAD_BYTES for allocated in held.values())
    uncharged = sum(files[extent_id] for extent_id in checker.discard if extent_id in files)
    if disk_bytes - uncharged > charged + overhead:
        checker.note(
            "ledger",
            "directory",
            f"occupies {disk_bytes - uncharged} bytes, the ledger says {charged + overhead}",
            corruption=False,
        )
    if repair:
        _repair(checker, store, extents)
    return _report(checker.counts, charged + overhead, disk_bytes, repaired=repair, online=False)


def _repair(checker: _Checker, store: Store, extents: ExtentStore) -> None:
    """Index first, as an eviction does: a crash in between leaves only files to be found."""
    changes = list(checker.batch.items())
    for start in range(0, len(changes), COMMIT_RECORDS):
        store.commit(dict(changes[start : start + COMMIT_RECORDS]))
    for extent_id in checker.discard:
        extents.discard(extent_id)
    extents.reap()


def _report(
    counts: _Counts, ledger_bytes: int, disk_bytes: int, *, repaired: bool, online: bool
) -> FsckReport:
    return FsckReport(
        objects_checked=counts.objects,
        pages_checked=counts.pages,
        bytes_checked=counts.bytes,
        bad_pages=counts.bad_pages,
        orphan_files=counts.orphan_files,
        missing_files=counts.missing_files,
        ledger_bytes=ledger_bytes,
        disk_bytes=disk_bytes,
        corruptions=counts.corruptions,
        leftovers=counts.leftovers,
        problems=tuple(counts.problems),
        repaired=repaired,
        online=online,
    )


def _name(record: ObjectRecord) -> str:
    return f"{record.origin}/{record.key}"


def _shown(numbers: list[int]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return text if len(numbers) <= 8 else f"{text} and {len(numbers) - 8} more"


def _runs(bitmap: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [first, end) of present pages of a chunk."""
    yield from pages.missing_runs(
        start, stop, lambda page: pages.has_page(bitmap, page), run_pages=READ_BYTES // PAGE_BYTES
    )


def disk_usage(root: str) -> int:
    """Return the bytes that a directory occupies, as ``du`` counts; files that vanish meanwhile
    count nothing."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder, _, files in os.walk(root):
        for name in [".", *files]:
            try:
                status = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
