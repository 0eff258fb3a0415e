"""webdataset: shards read by four forked workers.

TIERCACHE_CONFIG=tiercache.toml python webdataset_shards.py tiercache://imagenet/shards
"""

from __future__ import annotations

import json
import sys

import fsspec
import webdataset
from torch.utils.data import DataLoader

from tiercache.fs.webdataset import register

WORKERS = 4


def main() -> None:
    register()
    fs, path = fsspec.url_to_fs(sys.argv[1])
    shards = [fs.unstrip_protocol(shard) for shard in fs.glob(f"{path}/*.tar")]
    dataset = webdataset.WebDataset(shards, shardshuffle=False)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=WORKERS, multiprocessing_context="fork"
    )
    sizes = [len(sample["bin"]) for sample in loader]
    print(json.dumps({"samples": len(sizes), "bytes": sum(sizes)}))


if __name__ == "__main__":
    main()
