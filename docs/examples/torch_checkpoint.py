"""PyTorch: a distributed checkpoint saved and loaded through tiercache.

    TIERCACHE_CONFIG=tiercache.toml python torch_checkpoint.py tiercache://checkpoints/run-1

What is saved is at the origin when ``save`` returns, and on the node's NVMe for a quick restart.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

# PyTorch keeps them in a private module; ``save(state, checkpoint_id=url)`` finds them by itself.
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def main() -> None:
    url = sys.argv[1]
    torch.manual_seed(0)
    model = torch.nn.Linear(512, 512)
    for step in range(2):  # the second replaces the first
        torch.nn.init.constant_(model.bias, float(step))
        state: dict[str, Any] = {"model": model.state_dict(), "step": step}
        save(state, storage_writer=FsspecWriter(url, thread_count=2), no_dist=True)

    restored = torch.nn.Linear(512, 512)
    state = {"model": restored.state_dict(), "step": -1}
    load(state, storage_reader=FsspecReader(url), no_dist=True)
    restored.load_state_dict(state["model"])
    same = all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.parameters(), restored.parameters(), strict=True)
    )
    print(json.dumps({"step": state["step"], "same": same}))


if __name__ == "__main__":
    main()
