"""The mapping of leases: what agent and clients see of each other through it, byte for byte."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tiercache.errors import FormatError, NotFound
from tiercache.extents.lease_file import LeaseFileReader, LeaseFileWriter
from tiercache.policy import lease_words as words
from tiercache.ports import LeaseFile, LeaseFileView

pytestmark = pytest.mark.timeout(60)

FILE_BYTES = 266_240


def test_words_reach_the_other_side(tmp_path: Path) -> None:
    writer: LeaseFile = LeaseFileWriter(tmp_path / "leases.state")
    reader: LeaseFileView = LeaseFileReader(tmp_path / "leases.state")
    assert len(reader.slots) == len(writer.slots) == 2048 * 16
    assert writer.new_generation() == 1
    writer.turned(123)
    assert (reader.header[words.GENERATION_WORD], reader.header[words.TURN_WORD]) == (1, 123)
    mine = reader.slots[5 * words.SLOT_WORDS : 6 * words.SLOT_WORDS]
    mine[words.USED_READ] += 65536
    assert writer.slots[5 * words.SLOT_WORDS + words.USED_READ] == 65536
    writer.slots[5 * words.SLOT_WORDS + words.GRANT_READ] = words.UNLIMITED
    assert mine[words.GRANT_READ] == words.UNLIMITED
    with pytest.raises(TypeError):
        reader.header[words.GENERATION_WORD] = 9
    writer.clear(5)
    assert not any(mine)
    reader.close()
    writer.close()


def test_a_generation_never_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "leases.state"
    first = LeaseFileWriter(path)
    reader = LeaseFileReader(path)
    assert [first.new_generation(), first.new_generation()] == [1, 2]
    first.turn_off()
    assert first.generation == reader.header[words.GENERATION_WORD] == 0
    assert first.new_generation() == 3
    first.close()
    second = LeaseFileWriter(path)
    assert second.generation == 3
    second.begin()
    assert second.generation == reader.header[words.GENERATION_WORD] == 3  # never a moment without
    assert second.new_generation() == 4
    assert reader.header[words.GENERATION_WORD] == 4  # the same file, not a new one


def test_an_agent_that_starts_ends_all_leases(tmp_path: Path) -> None:
    path = tmp_path / "leases.state"
    first = LeaseFileWriter(path)
    reader = LeaseFileReader(path)
    first.turned(9)
    for word in range(len(first.slots)):
        first.slots[word] = 7
    first.close()
    second = LeaseFileWriter(path)
    assert all(reader.slots)  # until it is ready to answer who asks for a lease
    second.begin()
    assert not any(reader.slots)
    second.turn_off()
    assert reader.header[words.TURN_WORD] == 0


def test_golden_bytes(tmp_path: Path) -> None:
    path = tmp_path / "leases.state"
    writer = LeaseFileWriter(path)
    assert path.read_bytes() == b"TCLEASE1" + bytes(FILE_BYTES - 8)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 >= FILE_BYTES  # written in full, never sparse
    assert os.listdir(tmp_path) == ["leases.state"]
    for _ in range(258):
        writer.new_generation()
    writer.turned(0x0102030405)
    for number, value in enumerate(range(101, 115)):
        writer.slots[2047 * 16 + number] = value
    writer.close()
    raw = path.read_bytes()
    assert struct.unpack("<8s3Q", raw[:32]) == (b"TCLEASE1", 258, 0x0102030405, 258)
    assert not any(raw[32:-128])
    assert struct.unpack("<16Q", raw[-128:]) == (*range(101, 115), 0, 0)


def test_the_words_have_their_places() -> None:
    names = [
        "OWNER",
        "USED_READ",
        "USED_OPS",
        "WANT_READ",
        "WANT_OPS",
        "WAITING_NS",
        "GRANT_READ",
        "GRANT_OPS",
        "RATE_READ",
        "RATE_OPS",
        "SAFE_READ",
        "SAFE_OPS",
        "WAITED_NS",
        "WAITS",
    ]
    assert [getattr(words, name) for name in names] == list(range(14))
    assert (words.HEADER_BYTES, words.SLOT_WORDS, words.SLOTS_COUNT) == (4096, 16, 2048)
    assert (words.GENERATION_WORD, words.TURN_WORD, words.GREATEST_WORD) == (1, 2, 3)
    assert words.FILE_BYTES == FILE_BYTES


@pytest.mark.parametrize("content", [b"TCLEASE2".ljust(FILE_BYTES, b"\0"), b"x" * FILE_BYTES])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "leases.state"
    path.write_bytes(content)
    for side in (LeaseFileReader, LeaseFileWriter):
        with pytest.raises(FormatError, match="not a lease file"):
            side(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"TCLEASE1", b"TCL", b"\0" * FILE_BYTES])
def test_what_was_cut_short_or_is_of_zeros_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "leases.state"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a lease file"):
        LeaseFileReader(path)
    writer = LeaseFileWriter(path)
    writer.begin()
    assert writer.new_generation() == 1
    assert path.stat().st_blocks * 512 >= FILE_BYTES
    assert os.listdir(tmp_path) == ["leases.state"]
    LeaseFileReader(path).close()
    writer.close()


def test_a_generation_that_was_written_over_stops_no_policy(tmp_path: Path) -> None:
    writer = LeaseFileWriter(tmp_path / "leases.state")
    with open(tmp_path / "leases.state", "r+b") as file:
        file.seek(8 * words.GREATEST_WORD)
        file.write(b"\xff" * 8)
    assert [writer.new_generation(), writer.new_generation()] == [1, 2]
    writer.close()


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        LeaseFileReader(tmp_path / "leases.state")


def test_payments_cross_a_fork(tmp_path: Path) -> None:
    writer = LeaseFileWriter(tmp_path / "leases.state")
    reader = LeaseFileReader(tmp_path / "leases.state")
    child = os.fork()
    if child == 0:
        reader.slots[words.USED_OPS] += 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.slots[words.USED_OPS] == 1


def test_slices_outlive_close(tmp_path: Path) -> None:
    writer = LeaseFileWriter(tmp_path / "leases.state")
    reader = LeaseFileReader(tmp_path / "leases.state")
    mine = reader.slots[:16]
    reader.close()
    writer.slots[words.GRANT_OPS] = 5
    assert mine[words.GRANT_OPS] == 5
