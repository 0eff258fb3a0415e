"""PyTorch: a DataLoader with four forked workers over tar shards.

    TIERCACHE_CONFIG=tiercache.toml python torch_shards.py tiercache://imagenet/shards

The first epoch fills the node's cache while it reads; later ones, and other jobs on the node, are
served from NVMe.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator

import fsspec
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

WORKERS = 4
BATCH = 16

Sample = tuple[str, bytes]


class Shards(IterableDataset[Sample]):
    """The members of all tar files below a URL; each worker reads every fourth shard."""

    def __init__(self, url: str) -> None:
        self.fs, path = fsspec.url_to_fs(url)
        self.shards = self.fs.glob(f"{path}/*.tar")

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for shard in self.shards[first::step]:
            with self.fs.open(shard) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None:
                        yield member.name, content.read()


def main() -> None:
    dataset = Shards(sys.argv[1])
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    for epoch in range(2):
        samples = total_bytes = 0
        for batch in loader:
            samples += len(batch)
            total_bytes += sum(len(data) for _, data in batch)
        print(json.dumps({"epoch": epoch, "samples": samples, "bytes": total_bytes}))


if __name__ == "__main__":
    main()
