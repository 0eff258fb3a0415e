"""The data that workloads read: the same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.workload import Dataset
from tiercache.testing.datasets import IMAGE_BYTES, object_bytes, parquet_files, tar_shards

FOLDER_OBJECTS = 1000
# A row of ``parquet_table`` takes about so much in its file.
PARQUET_ROW_BYTES = 40


def made(dataset: Dataset, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) below the data set's folder. ``tar`` and ``parquet`` files come near
    the size that was asked for; ``names`` are empty."""
    match dataset.kind:
        case "objects":
            yield from _objects(dataset, seed)
        case "names":
            for number in range(dataset.count):
                yield _key(dataset, number), b""
        case "tar":
            samples = max(1, dataset.object_bytes // (IMAGE_BYTES + 5 * 512))
            for name, data in tar_shards(
                seed, shard_count=dataset.count, samples_per_shard=samples
            ):
                yield f"{dataset.folder}/{name}", data
        case "parquet":
            rows = max(1, dataset.object_bytes // PARQUET_ROW_BYTES)
            for name, data in parquet_files(seed, file_count=dataset.count, rows_per_file=rows):
                yield f"{dataset.folder}/{name}", data


def _objects(dataset: Dataset, seed: int) -> Iterator[tuple[str, bytes]]:
    # Incompressible, and cheap: one block of noise, stamped with its number.
    noise = bytearray(object_bytes(seed, dataset.object_bytes))
    for number in range(dataset.count):
        noise[:8] = number.to_bytes(8, "big")
        yield _key(dataset, number), bytes(noise)


def _key(dataset: Dataset, number: int) -> str:
    return f"{dataset.folder}/{number // FOLDER_OBJECTS:03}/{number:06}.bin"
