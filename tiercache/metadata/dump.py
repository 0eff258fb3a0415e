"""A dump of a metadata store: text, one record a line. docs/format.md is the contract.

Whatever the store holds comes back byte for byte. A record is written by the names of its fields
where these give its bytes again, and in base64 where they do not (records of later versions,
damaged ones).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec
from crc32c import crc32c

from tiercache import catalog
from tiercache.errors import FormatError
from tiercache.metadata.bookkeeping import MAX_VALUE_BYTES, is_key
from tiercache.ports import MetadataStore
from tiercache.units import MIB

DUMP_FORMAT = "tiercache-metadata"
DUMP_VERSION = 1
# A value of 16 MiB that holds nothing but control characters is 96 MiB of JSON.
MAX_LINE_BYTES = 128 * MIB

TYPE_NAMES: dict[bytes, str] = {
    b"o": "name",
    b"l": "listing",
    b"p": "pin",
    b"j": "job",
    b"s": "snapshot",
    b"t": "snapshot-part",
    b"u": "quota",
}

Pair = tuple[bytes, bytes]


class LinesOut(Protocol):
    """What a dump is written to: a binary file."""

    def write(self, data: bytes, /) -> object: ...


class LinesIn(Protocol):
    """What a dump is read from: a binary file that can be read again from its beginning."""

    def readline(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line. ``sequence`` is the last commit that the dump is known to hold,
    ``created`` an RFC 3339 time in UTC."""

    format: str
    version: int
    identity: str = ""
    sequence: int = 0
    created: str = ""


class Trailer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line. ``crc32c`` is that of all bytes before it, in hex."""

    records: int
    crc32c: str


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    key: str
    type: str = ""
    record: dict[str, Any] | None = None
    value: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpTotals:
    """What was written; ``verbatim`` of the ``records`` in base64. ``line_bytes`` is text, before
    any compression."""

    records: int
    verbatim: int
    line_bytes: int
    crc32c: str


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Line).decode
_pack = msgspec.msgpack.Encoder().encode
_FIELDS = {letter: kind.__struct_fields__ for letter, kind in catalog.TYPES.items()}
_VERSION = bytes([catalog.FORMAT_VERSION])


def line_of(key: bytes, value: bytes) -> bytes:
    """Return the line of one record, without its end."""
    return _readable_line(key, value) or _verbatim_line(key, value)


def _verbatim_line(key: bytes, value: bytes) -> bytes:
    return _encode(_Line(key.hex(), value=value))


def _readable_line(key: bytes, value: bytes) -> bytes | None:
    try:
        catalog.decode(key, value)
        values = msgspec.msgpack.decode(memoryview(value)[1:])
        fields = _FIELDS[key[:1]]
        line = _encode(
            _Line(key.hex(), TYPE_NAMES[key[:1]], dict(zip(fields, values, strict=False)))
        )
        return line if pair_of(line) == (key, value) else None
    except (FormatError, TypeError, UnicodeEncodeError):
        return None  # not ours to read, or nothing that JSON can say


def pair_of(line: bytes) -> Pair:
    """Return key and value of a record's line. Raises FormatError."""
    try:
        parsed = _decode_line(line)
        key = bytes.fromhex(parsed.key)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"not a record: {error}") from error
    if parsed.value is not None and parsed.record is None:
        return key, parsed.value
    fields = _FIELDS.get(key[:1], ())
    if parsed.record is None or parsed.type != TYPE_NAMES.get(key[:1]):
        raise FormatError(f"a record of the type {parsed.type!r} has no key {parsed.key[:40]!r}")
    if tuple(parsed.record) != fields[: len(parsed.record)]:
        raise FormatError(
            f"the fields of the {parsed.type} {parsed.key[:40]!r} are not those of this version",
            remedy="use the tiercache that made the dump",
        )
    value = _VERSION + _pack(list(parsed.record.values()))
    catalog.decode(key, value)
    return key, value


async def records_of(store: MetadataStore) -> AsyncIterator[Pair]:
    """Yield all that is worth keeping elsewhere, in key order: everything but the writer's mark."""
    async for pair in store.scan(b""):
        if pair[0] != catalog.WRITER_KEY:
            yield pair


async def write_dump(
    store: MetadataStore,
    file: LinesOut,
    *,
    created: str,
    on_progress: Callable[[int, int], None] = lambda records, line_bytes: None,
) -> DumpTotals:
    """Write all that ``store`` holds, as of now; the caller opens, syncs and closes ``file``.

    Memory: one record and the scan's own. Raises as ``scan``, and OSError of the file.
    """
    records = verbatim = line_bytes = crc = 0

    def write(line: bytes) -> None:
        nonlocal line_bytes, crc
        line += b"\n"
        crc = crc32c(line, crc)
        line_bytes += len(line)
        file.write(line)

    header = Header(
        format=DUMP_FORMAT,
        version=DUMP_VERSION,
        identity=store.identity,
        sequence=store.sequence,
        created=created,
    )
    write(_encode(header))
    async for key, value in records_of(store):
        readable = _readable_line(key, value)
        verbatim += readable is None
        write(readable or _verbatim_line(key, value))
        records += 1
        on_progress(records, line_bytes)
    trailer = Trailer(records=records, crc32c=f"{crc:08x}")
    write(_encode(trailer))
    return DumpTotals(
        records=records, verbatim=verbatim, line_bytes=line_bytes, crc32c=trailer.crc32c
    )


class Dump:
    """A dump in a file, read from its beginning as often as ``pairs`` is called.

    ``name`` stands in errors. Making one reads the header: raises FormatError.
    """

    def __init__(self, file: LinesIn, name: str) -> None:
        self._file = file
        self._name = name
        self._line_number = 0
        self.header = self._begin()

    def _begin(self) -> Header:
        self._file.seek(0)
        self._line_number = 0
        self._first_line = self._next_line()
        remedy = "name a file that tiercache metadata export wrote; gzip'ed ones end in .gz"
        try:
            header = msgspec.json.decode(self._first_line, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError("not a dump", path=self._name, remedy=remedy) from error
        if header.format != DUMP_FORMAT:
            raise FormatError(f"of the format {header.format!r}", path=self._name, remedy=remedy)
        if header.version != DUMP_VERSION:
            raise FormatError(
                f"a dump of version {header.version}, this version reads {DUMP_VERSION}",
                path=self._name,
                remedy="use the tiercache that made the dump",
            )
        return header

    def _next_line(self) -> bytes:
        """Return the next line without its end, or b"" after the last."""
        self._line_number += 1
        try:
            line = self._file.readline(MAX_LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._refuse(f"damaged or cut off: {error}", error)
        if line and not line.endswith(b"\n"):
            self._refuse("too long" if len(line) > MAX_LINE_BYTES else "cut off")
        return line

    def _refuse(self, message: str, cause: BaseException | None = None) -> NoReturn:
        raise FormatError(
            f"line {self._line_number}: {message}",
            path=self._name,
            remedy="nothing of it is used; take another dump",
        ) from cause

    def pairs(self) -> Iterator[Pair]:
        """Yield all pairs in key order. The end verifies count and checksum, so what was yielded
        is known to be whole only then. Raises FormatError, OSError."""
        self._begin()
        crc = crc32c(self._first_line)
        records, before = 0, b""
        while True:
            line = self._next_line()
            if not line:
                self._refuse("cut off: the last line, which counts the records, is missing")
            if line.startswith(b'{"records"'):
                self._check_end(line, records, crc)
                return
            crc = crc32c(line, crc)
            try:
                key, value = pair_of(line)
            except FormatError as error:
                self._refuse(error.message, error)
            if not is_key(key) or len(value) > MAX_VALUE_BYTES:
                self._refuse("a key or value that no store takes")
            if key <= before:
                self._refuse("the keys are not in order")
            records, before = records + 1, key
            yield key, value

    def _check_end(self, line: bytes, records: int, crc: int) -> None:
        try:
            trailer = msgspec.json.decode(line, type=Trailer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._refuse(f"not a last line: {error}", error)
        if trailer.records != records:
            self._refuse(f"there are {records} records, not {trailer.records}")
        if trailer.crc32c != f"{crc:08x}":
            self._refuse(f"the checksum is {crc:08x}, not {trailer.crc32c}")
        if self._next_line():
            self._refuse("something follows the last line")

    async def scan(self) -> AsyncIterator[Pair]:
        """The same for who reads stores."""
        for pair in self.pairs():
            yield pair
