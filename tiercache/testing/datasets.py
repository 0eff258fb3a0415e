"""Small data sets with known bytes: the same seed gives the same bytes, on every machine."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from typing import Any

EPOCH_S = 1_700_000_000  # every member's time, so that archives repeat byte for byte
IMAGE_BYTES = 48 * 1024  # a small JPEG's
ROW_GROUP_ROWS = 10_000


def object_bytes(seed: int | str, length: int) -> bytes:
    """Return ``length`` incompressible bytes. Shorter ones are prefixes of longer ones.

    SHAKE's output, at some 400 MB/s: twice what ``random`` gives, and it repeats everywhere.
    """
    return hashlib.shake_128(f"tiercache object {seed}".encode()).digest(length)


def _generator(*words: object) -> random.Random:
    digest = hashlib.sha256(repr(words).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def small_files(seed: int | str, count: int, length: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` keys, 1,000 a folder, each with ``length`` bytes of its own."""
    for index in range(count):
        yield f"{index // 1000:03}/{index:06}.bin", object_bytes(f"{seed}/{index}", length)


def tar_shards(
    seed: int | str, *, shard_count: int, samples_per_shard: int, image_bytes: int = IMAGE_BYTES
) -> Iterator[tuple[str, bytes]]:
    """Yield webdataset shards: each sample is ``NNNNNN.jpg``, ``.cls`` and ``.json``."""
    for shard in range(shard_count):
        first = shard * samples_per_shard
        samples = range(first, first + samples_per_shard)
        yield f"train-{shard:06}.tar", _shard(seed, samples, image_bytes)


def _shard(seed: int | str, samples: range, image_bytes: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index in samples:
            label = _generator("label", seed, index).randrange(1000)
            _add(archive, f"{index:06}.jpg", object_bytes(f"{seed}/{index}", image_bytes))
            _add(archive, f"{index:06}.cls", str(label).encode())
            _add(archive, f"{index:06}.json", json.dumps({"index": index}).encode())
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mtime = EPOCH_S
    archive.addfile(member, io.BytesIO(data))


def parquet_table(seed: int | str, row_count: int) -> Any:
    """Return a pyarrow Table of ``id`` (0…), ``user`` (int), ``score`` (float), ``text``."""
    import pyarrow

    generator = _generator("parquet", seed)
    words = ["cache", "tier", "page", "chunk", "extent", "mount", "lease", "journal"]
    return pyarrow.table(
        {
            "id": pyarrow.array(range(row_count), pyarrow.int64()),
            "user": pyarrow.array(
                [generator.randrange(10_000) for _ in range(row_count)], pyarrow.int32()
            ),
            "score": pyarrow.array([generator.random() for _ in range(row_count)]),
            "text": pyarrow.array(
                [" ".join(generator.choices(words, k=6)) for _ in range(row_count)]
            ),
        }
    )


def parquet_files(
    seed: int | str, *, file_count: int, rows_per_file: int
) -> Iterator[tuple[str, bytes]]:
    """Yield Parquet files of ``parquet_table`` with row groups of 10,000 rows."""
    import pyarrow.parquet

    for index in range(file_count):
        sink = io.BytesIO()
        table = parquet_table(f"{seed}/{index}", rows_per_file)
        pyarrow.parquet.write_table(table, sink, row_group_size=ROW_GROUP_ROWS)
        yield f"part-{index:05}.parquet", sink.getvalue()
