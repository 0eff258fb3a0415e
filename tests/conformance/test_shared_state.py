"""The shared mapping: what agent and clients see of each other through it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiercache.errors import FormatError, NotFound
from tiercache.extents.shared_state import (
    EPOCH_WORD,
    FILE_BYTES,
    GENERATION_WORD,
    SharedStateReader,
    SharedStateWriter,
)

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
ID = 0xAB00_0000_0000_0001
OTHER = 0x0100_0000_0000_0002


def test_shared_state_reaches_the_other_side(tmp_path: Path) -> None:
    writer = SharedStateWriter(tmp_path / "shared.state")
    reader = SharedStateReader(tmp_path / "shared.state")
    assert (writer.epoch, writer.generation) == (0, 0)
    writer.bump_epoch()
    writer.bump_generation()
    writer.bump_epoch()
    assert (writer.epoch, writer.generation) == (2, 1)
    assert reader.words[EPOCH_WORD] == 2
    assert reader.words[GENERATION_WORD] == 1
    reader.visited[77] = 1
    assert writer.visited_by(77)
    assert writer.take_visited(77)
    assert not writer.take_visited(77)
    assert not writer.visited_by(77)
    assert reader.visited[77] == 0
    assert len(reader.visited) == writer.slots_count == 1 << 20
    with pytest.raises(TypeError):
        reader.words[EPOCH_WORD] = 9
    reader.close()
    writer.close()


def test_shared_state_outlives_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "shared.state"
    first = SharedStateWriter(path)
    reader = SharedStateReader(path)
    first.bump_epoch()
    reader.visited[3] = 1
    first.close()
    second = SharedStateWriter(path)
    assert second.epoch == 1
    assert second.take_visited(3)
    second.bump_epoch()
    assert reader.words[EPOCH_WORD] == 2  # the same file, not a new one


def test_shared_state_has_golden_bytes(tmp_path: Path) -> None:
    path = tmp_path / "shared.state"
    writer = SharedStateWriter(path)
    for _ in range(258):
        writer.bump_epoch()
    writer.bump_generation()
    writer.visited[0] = 1
    writer.close()
    raw = path.read_bytes()
    assert raw[:32].hex() == (
        "5443535441544531" "0201000000000000" "0100000000000000" "0000000000000000"
    )  # fmt: skip
    assert raw[4096:4098] == b"\x01\x00"
    assert len(raw) == FILE_BYTES
    assert path.stat().st_mode & 0o777 == 0o600


def test_shared_state_has_no_holes(tmp_path: Path) -> None:
    SharedStateWriter(tmp_path / "shared.state").close()
    assert os.stat(tmp_path / "shared.state").st_blocks * 512 >= FILE_BYTES
    assert os.listdir(tmp_path) == ["shared.state"]


@pytest.mark.parametrize(
    "content", [b"", b"TCSTATE1", b"TCSTATE2".ljust(FILE_BYTES, b"\0"), b"x" * FILE_BYTES]
)
def test_foreign_shared_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shared.state"
    path.write_bytes(content)
    for side in (SharedStateReader, SharedStateWriter):
        with pytest.raises(FormatError):
            side(path)
    assert path.read_bytes() == content


def test_missing_shared_state_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SharedStateReader(tmp_path / "shared.state")


def test_slices_outlive_close(tmp_path: Path) -> None:
    writer = SharedStateWriter(tmp_path / "shared.state")
    reader = SharedStateReader(tmp_path / "shared.state")
    part = reader.visited[:10]
    reader.close()
    writer.visited[5] = 1
    assert part[5] == 1


def test_visits_cross_a_fork(tmp_path: Path) -> None:
    writer = SharedStateWriter(tmp_path / "shared.state")
    reader = SharedStateReader(tmp_path / "shared.state")
    child = os.fork()
    if child == 0:
        reader.visited[9] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.take_visited(9)
