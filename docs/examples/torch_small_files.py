"""PyTorch: a DataLoader with four forked workers over thousands of small files.

    TIERCACHE_CONFIG=tiercache.toml python torch_small_files.py /images

A batch is one call: what is cached is read from NVMe, and all misses of the batch travel together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from torch.utils.data import DataLoader, Dataset

import tiercache

WORKERS = 4
BATCH = 64


class Files(Dataset[bytes]):
    """Every object below a namespace path; pickles, and works on in forked workers."""

    def __init__(self, directory: str) -> None:
        self.namespace = tiercache.connect()
        entries = self.namespace.list(directory, recursive=True)
        self.paths = [f"{directory}/{entry.name}" for entry in entries]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        return self.namespace.read(self.paths[index])

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        return self.namespace.read_many([(self.paths[index], 0, None) for index in indices])


def main() -> None:
    dataset = Files(sys.argv[1].rstrip("/"))
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    for epoch in range(2):
        samples = total_bytes = 0
        for batch in loader:
            samples += len(batch)
            total_bytes += sum(map(len, batch))
        print(json.dumps({"epoch": epoch, "samples": samples, "bytes": total_bytes}))


if __name__ == "__main__":
    main()
