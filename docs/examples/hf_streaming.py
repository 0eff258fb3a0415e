"""Hugging Face datasets: streaming Parquet without a download step.

TIERCACHE_CONFIG=tiercache.toml python hf_streaming.py tiercache://tables/trips
"""

from __future__ import annotations

import json
import sys

from datasets import load_dataset


def main() -> None:
    url = sys.argv[1].rstrip("/")
    stream = load_dataset(
        "parquet", data_files={"train": f"{url}/*.parquet"}, split="train", streaming=True
    )
    rows = total = 0
    for row in stream:
        rows += 1
        total += row["value"]
    shuffled = stream.shuffle(seed=1, buffer_size=100).take(5)
    print(json.dumps({"rows": rows, "total": total, "taken": len(list(shuffled))}))


if __name__ == "__main__":
    main()
