"""Epochs of a PyTorch DataLoader with forked workers. Imported in a trainer's process only.

A worker hands on the sizes of its samples instead of their bytes: a job decodes in the worker and
hands tensors on in shared memory, which costs the same whatever has read them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks.harness import Measured
from benchmarks.sources import Way
from benchmarks.trainer import Stopwatch

TAR_BATCH = 16

Sizes = list[int]


class Shards(IterableDataset[int]):
    """The samples of tar shards in webdataset's form, as its reader takes them: one pass over a
    stream. Each worker reads every n-th shard. A sample is all members of one stem."""

    def __init__(self, way: Way, keys: Sequence[str]) -> None:
        self._way = way
        self._keys = keys

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        files = self._way.opened()
        for key in self._keys[first::step]:
            with files.open(key) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                yield from _samples(tar)
        files.close()


def _samples(tar: tarfile.TarFile) -> Iterator[int]:
    stem, size = "", 0
    for member in tar:
        content = tar.extractfile(member)
        if content is None:
            continue
        now = member.name.partition(".")[0]
        if now != stem and stem:
            yield size
            size = 0
        stem = now
        size += len(content.read())
    if stem:
        yield size


class Names(Dataset[int]):
    """Whole objects by name, a batch at once."""

    def __init__(self, way: Way, keys: Sequence[str]) -> None:
        self._way = way
        self._keys = keys
        self._files: Any = None  # opened in the worker

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> int:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Sizes:
        if self._files is None:
            self._files = self._way.opened()
        return [len(data) for data in self._files.read_many([self._keys[i] for i in indices])]


def tar_epoch(way: Way, keys: Sequence[str], workers: int) -> Measured:
    return _epoch(Shards(way, keys), workers, TAR_BATCH)


def names_epoch(way: Way, keys: Sequence[str], workers: int, batch: int) -> Measured:
    """Read in the order of ``keys``, which the caller has shuffled: so every contender reads in
    the same one."""
    return _epoch(Names(way, keys), workers, batch)


def _epoch(dataset: Any, workers: int, batch: int) -> Measured:
    watch = Stopwatch()
    loader = DataLoader(
        dataset,
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    return _counted(loader, watch)


def _counted(loader: Iterable[Sizes], watch: Stopwatch) -> Measured:
    samples = total = 0
    for sizes in loader:
        samples += len(sizes)
        total += sum(sizes)
    return watch.measured(operations=samples, total_bytes=total)


# -- litdata --------------------------------------------------------------------------------


def optimize_for_litdata(shards: Sequence[bytes], folder: str, chunk_bytes: int) -> None:
    from litdata import optimize

    samples = [sample for shard in shards for sample in _members(shard)]
    optimize(
        fn=_same,
        inputs=samples,
        output_dir=folder,
        chunk_bytes=chunk_bytes,
        num_workers=1,
        verbose=False,
    )


def _members(shard: bytes) -> Iterator[dict[str, bytes]]:
    sample: dict[str, bytes] = {}
    stem = ""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            now, _, kind = member.name.partition(".")
            if now != stem and sample:
                yield sample
                sample = {}
            stem = now
            sample[kind] = content.read() if content is not None else b""
    if sample:
        yield sample


def _same(sample: dict[str, bytes]) -> dict[str, bytes]:
    return sample


def litdata_epoch(url: str, cache: Path, storage: dict[str, str], workers: int) -> Measured:
    """``storage`` is what its documentation calls storage_options."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # It fetches by obstore where that is installed, faster than by boto3, and offers no option
    # for a server without TLS. What it passes on to obstore cannot be set in another way.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    watch = Stopwatch()
    dataset = StreamingDataset(url, cache_dir=str(cache), storage_options=storage)
    loader = StreamingDataLoader(
        dataset,
        batch_size=TAR_BATCH,
        num_workers=workers,
        collate_fn=_sizes,
        multiprocessing_context="fork",  # else what spawned the trainer is inherited
    )
    return _counted(loader, watch)


def _sizes(samples: Sequence[dict[str, bytes]]) -> Sizes:
    return [sum(map(len, sample.values())) for sample in samples]
