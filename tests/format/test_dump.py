"""A dump of the metadata store, byte for byte as docs/format.md says (dump version 1)."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format.catalog_examples import EXAMPLES
from tiercache import catalog
from tiercache.errors import FormatError
from tiercache.metadata.dump import Dump, line_of, pair_of, write_dump
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory

GOLDEN = Path(__file__).with_name("golden_dump.jsonl")
DOCUMENT = Path(__file__).parents[2] / "docs/format.md"
CREATED = "2026-01-31T12:00:00Z"

EXAMPLE_PAIRS = {key: catalog.encode(record) for key, record in EXAMPLES.values()}
ODD_PAIRS = {
    b"o\xff\xfe": b"",
    b"j\xff no text": b"\x01\x90",
    b"p\n\"'\\": b"\x02of a later version",
    b"z\x00\x01": bytes(range(256)),
    b"s" + b"\xf0" * 510: b"\x01\x93\xa2\xff\xfe\xa1b\x01",
}


async def store_of(pairs: dict[bytes, bytes]) -> MemoryMetadata:
    shared = SharedMemory()
    shared.identity = "00112233445566778899aabbccddeeff"
    store = MemoryMetadata(shared)
    await store.commit(pairs)
    shared.sequence = 42
    return store


async def dump_of(pairs: dict[bytes, bytes]) -> bytes:
    file = io.BytesIO()
    totals = await write_dump(await store_of(pairs), file, created=CREATED)
    text = file.getvalue()
    assert totals.records == len(pairs)
    assert totals.line_bytes == len(text)
    return text


def read(text: bytes) -> dict[bytes, bytes]:
    return dict(Dump(io.BytesIO(text), "x").pairs())


async def test_the_golden_dump() -> None:
    pairs = EXAMPLE_PAIRS | {b"z\x01": b"\x00\xff"}
    assert await dump_of(pairs) == GOLDEN.read_bytes()
    with GOLDEN.open("rb") as file:
        dump = Dump(file, GOLDEN.name)
        assert dict(dump.pairs()) == pairs
        assert dict(dump.pairs()) == pairs, "it can be read twice"
    assert dump.header.identity == "00112233445566778899aabbccddeeff"
    assert (dump.header.version, dump.header.sequence, dump.header.created) == (1, 42, CREATED)


def test_the_dump_is_what_the_document_draws() -> None:
    """Read without our code, as another program would."""
    drawn = DOCUMENT.read_text().split("## A dump of the metadata store")[1]
    example = re.search(r"```text\n(.*?)```", drawn, re.S)
    assert example is not None
    shapes = [list(json.loads(line)) for line in example[1].splitlines()]
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    first, *inner, last = lines
    assert [list(first), list(last)] == [shapes[0], shapes[-1]]
    assert {tuple(line) for line in inner} == {tuple(shape) for shape in shapes[1:-1]}
    assert last["records"] == len(inner)
    fields = {
        row[0]: re.findall(r"`(\w+)`", row[1].partition(", each ")[0])
        for row in re.findall(r"^\| (\w+) \| (.*) \|$", DOCUMENT.read_text(), re.M)
    }
    for line in inner:
        if "record" in line:
            record = catalog.TYPES[bytes.fromhex(line["key"])[:1]]
            assert list(line["record"]) == fields[record.__name__]
            assert f"`{line['type']}`" in drawn


async def test_what_is_not_text_comes_back() -> None:
    text = await dump_of(EXAMPLE_PAIRS | ODD_PAIRS)
    assert read(text) == EXAMPLE_PAIRS | ODD_PAIRS
    text.decode("utf-8")


async def test_fields_of_a_later_version_come_back() -> None:
    key, record = EXAMPLES["pin"]
    values = msgspec.msgpack.decode(catalog.encode(record)[1:])
    later = {key: b"\x01" + msgspec.msgpack.encode([*values, "new"])}
    assert read(await dump_of(later)) == later


@given(key=st.binary(min_size=1, max_size=40), value=st.binary(max_size=100))
def test_any_pair_comes_back(key: bytes, value: bytes) -> None:
    assert pair_of(line_of(key, value)) == (key, value)
    assert pair_of(line_of(key, b"\x01" + value)) == (key, b"\x01" + value)
    assert b"\n" not in line_of(key, value)


@given(
    name=st.sampled_from(list(EXAMPLES)),
    at=st.integers(0, 200),
    byte=st.integers(0, 255),
)
def test_damaged_records_come_back(name: str, at: int, byte: int) -> None:
    key, record = EXAMPLES[name]
    value = bytearray(catalog.encode(record))
    value[at % len(value)] = byte
    assert pair_of(line_of(key, bytes(value))) == (key, bytes(value))


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), 0.1, 5e-324, -0.0, 1e308])
def test_every_number_comes_back(number: float) -> None:
    key, record = EXAMPLES["file"]
    value = catalog.encode(msgspec.structs.replace(record, mtime_s=number))
    assert pair_of(line_of(key, value)) == (key, value)


def lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda text: b"", "not a dump"),
    "other file": (lambda text: b"PK\x03\x04 something\n", "not a dump"),
    "gzip by another name": (gzip.compress, "not a dump|cut off"),
    "another format": (lambda text: text.replace(b"tiercache-metadata", b"x", 1), "format 'x'"),
    "another version": (
        lambda text: text.replace(b'"version":1', b'"version":2', 1),
        "version 2, this version reads 1",
    ),
    "a list": (lambda text: b"[1]\n" + text, "not a dump"),
    "no last line": (lambda text: b"".join(lines(text)[:-1]), "cut off.*missing"),
    "half a line": (lambda text: text[:-7], "cut off"),
    "no line end": (lambda text: text[:-1], "cut off"),
    "only a header": (lambda text: lines(text)[0], "cut off"),
    "something after": (lambda text: text + b"\n", "something follows"),
    "twice": (lambda text: text + text, "something follows"),
    "a record less": (lambda text: b"".join([*lines(text)[:3], *lines(text)[4:]]), "records, not"),
    "a record twice": (
        lambda text: b"".join([*lines(text)[:3], lines(text)[2], *lines(text)[3:]]),
        "not in order",
    ),
    "two exchanged": (
        lambda text: b"".join([lines(text)[0], *lines(text)[2:0:-1], *lines(text)[3:]]),
        "not in order",
    ),
    "a flipped bit": (lambda text: text.replace(b"big.bin", b"bif.bin", 1), "checksum"),
    "a bad record": (lambda text: text.replace(b'"kind":1', b'"kind":9', 1), "line .*damaged"),
    "a field less": (lambda text: text.replace(b'"tree":true', b'"wood":true', 1), "fields"),
    "a type less": (lambda text: text.replace(b'"type":"pin"', b'"type":"x"', 1), "no key"),
    "no hex": (lambda text: text.replace(b'{"key":"', b'{"key":"q', 1), "not a record"),
    "an engine's key": (
        lambda text: text.replace(b'{"key":"7a', b'{"key":"00', 1),
        "no store takes",
    ),
    "another checksum": (lambda text: text[:-6] + b'00"}\n'[-6:], "not a last line|checksum"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dump_is_refused(name: str) -> None:
    damage, message = DAMAGES[name]
    text = GOLDEN.read_bytes()
    assert damage(text) != text
    with pytest.raises(FormatError, match=message) as caught:
        read(damage(text))
    assert caught.value.path == "x" and caught.value.remedy


@given(cut=st.integers(0, 10_000))
def test_a_dump_that_was_cut_off_is_refused_wherever_it_was(cut: int) -> None:
    text = GOLDEN.read_bytes()
    with pytest.raises(FormatError):
        read(text[: cut % len(text)])


def test_a_gzip_file_that_was_cut_off_is_refused() -> None:
    packed = gzip.compress(GOLDEN.read_bytes())
    for cut in range(0, len(packed), 7):
        with pytest.raises(FormatError), gzip.open(io.BytesIO(packed[:cut])) as file:
            list(Dump(file, "x").pairs())
    damaged = packed[:100] + bytes([packed[100] ^ 0xFF]) + packed[101:]
    with pytest.raises(FormatError), gzip.open(io.BytesIO(damaged)) as file:
        list(Dump(file, "x").pairs())


def test_an_endless_line_takes_bounded_memory() -> None:
    class Endless:
        asked = 0

        def readline(self, size: int, /) -> bytes:
            self.asked = size
            return bytes(size)

        def seek(self, offset: int, /) -> int:
            return 0

    file = Endless()
    with pytest.raises(FormatError, match="too long"):
        Dump(file, "x")
    assert file.asked == 128 * 2**20 + 1
