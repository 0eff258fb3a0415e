"""The generators repeat, and make what their readers expect."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib

import pyarrow.parquet
import pytest

from tiercache.testing.datasets import (
    object_bytes,
    parquet_files,
    parquet_table,
    small_files,
    tar_shards,
)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 65_537, 1024 * 1024, 1024 * 1024 + 7])
def test_object_bytes_repeat_and_are_prefixes(length: int) -> None:
    data = object_bytes(7, length)
    assert len(data) == length
    assert data == object_bytes(7, length)
    assert object_bytes(7, length + 9)[:length] == data
    if length > 8:
        assert object_bytes(8, length) != data
        assert len(zlib.compress(data)) > length


def test_object_bytes_are_the_same_everywhere() -> None:
    digest = hashlib.sha256(object_bytes("golden", 100_001)).hexdigest()
    assert digest == "e8842644b934dbf16a4f37c4a67e6dfc7ea47a93123a69694023a0399721ffec"


def test_small_files() -> None:
    files = list(small_files(1, 1001, 100))
    assert files[0][0] == "000/000000.bin"
    assert files[1000][0] == "001/001000.bin"
    assert len({data for _, data in files}) == 1001
    assert files == list(small_files(1, 1001, 100))


def test_tar_shards() -> None:
    shards = list(tar_shards(1, shard_count=2, samples_per_shard=3, image_bytes=1000))
    assert [name for name, _ in shards] == ["train-000000.tar", "train-000001.tar"]
    assert shards == list(tar_shards(1, shard_count=2, samples_per_shard=3, image_bytes=1000))
    with tarfile.open(fileobj=io.BytesIO(shards[1][1])) as archive:
        names = archive.getnames()
    assert names[:3] == ["000003.jpg", "000003.cls", "000003.json"]
    assert len(names) == 9


def test_parquet() -> None:
    assert parquet_table(1, 50).equals(parquet_table(1, 50))
    ((name, data),) = parquet_files(1, file_count=1, rows_per_file=25_000)
    found = pyarrow.parquet.ParquetFile(io.BytesIO(data))
    assert name == "part-00000.parquet"
    assert (found.metadata.num_rows, found.metadata.num_row_groups) == (25_000, 3)
