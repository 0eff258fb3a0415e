"""What a metadata store keeps beside its records, byte for byte as docs/format.md says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiercache.errors import FormatError
from tiercache.metadata import bookkeeping, lmdb_volume
from tiercache.metadata.lmdb_store import LmdbStore
from tiercache.metadata.object_tier import OWNER
from tiercache.metadata.open import open_metadata
from tiercache.settings import MetadataSettings, ProfileSettings

IDENTITY = "000102030405060708090a0b0c0d0e0f"
FORMAT = bytes.fromhex("01" + IDENTITY)


def test_golden_bytes() -> None:
    assert bookkeeping.FORMAT_VERSION == 1
    assert bookkeeping.FORMAT_KEY == b"\0format" and bookkeeping.SEQUENCE_KEY == b"\0seq"
    assert bookkeeping.encode_format(IDENTITY) == FORMAT
    assert bookkeeping.decode_format(FORMAT, path="here") == IDENTITY
    assert bookkeeping.encode_sequence(258) == bytes.fromhex("0000000000000102")
    assert bookkeeping.decode_sequence(bytes.fromhex("0000000000000102")) == 258


@pytest.mark.parametrize("value", [None, b"", b"\x02" + bytes(16), FORMAT[:-1], FORMAT + b"\0"])
def test_other_formats_are_refused(value: bytes | None) -> None:
    with pytest.raises(FormatError) as caught:
        bookkeeping.decode_format(value, path="here")
    assert caught.value.path == "here" and caught.value.remedy


async def test_a_store_written_by_hand(tmp_path: Path) -> None:
    """As the document has it, so that another program can make one."""
    (tmp_path / "store").mkdir()
    made = LmdbStore(tmp_path / "store" / "metadata.lmdb")
    made.commit({b"\0format": FORMAT, b"sname": b"a record"})
    made.close()
    store = await open_metadata(MetadataSettings(url=f"lmdb:{tmp_path}/store"), {})
    assert (store.identity, store.sequence) == (IDENTITY, 1)
    assert await store.get(b"sname") == b"a record"
    await store.close()
    assert {file.name for file in (tmp_path / "store").iterdir()} == lmdb_volume.OURS


async def test_the_owner_in_a_bucket(tmp_path: Path) -> None:
    settings = MetadataSettings(url=f"file://{tmp_path}/store")
    await (await open_metadata(settings, {"default": ProfileSettings()})).close()
    owner = json.loads((tmp_path / "store" / OWNER).read_text())
    assert owner.keys() == {"token", "host", "pid", "since_unix_s"}
    assert len(owner["token"]) == 32
