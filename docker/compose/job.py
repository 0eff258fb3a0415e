"""A job: prefetch one data set, read all three twice, and say how fast and from where."""

from __future__ import annotations

import sys
import time

import tiercache
from tiercache.units import format_bytes


def main() -> int:
    with tiercache.connect() as ns:
        progress = ns.prefetch("/images").wait()
        print(f"prefetch: {progress.filled} objects, {format_bytes(progress.filled_bytes)}")
        for mount in ("/images", "/tables", "/samples"):
            names = [e.name for e in ns.list(mount, recursive=True) if e.size_bytes]
            items = [(f"{mount}/{name}", 0, None) for name in names]
            for turn in ("first", "again"):
                started = time.perf_counter()
                count = sum(len(data) for data in ns.read_many(items))
                rate = format_bytes(round(count / (time.perf_counter() - started)))
                print(f"{mount}: {len(names)} objects, {format_bytes(count)}, {turn}: {rate}/s")
        reads = ns.status()["reads"]
        for mount, counts in reads.items():
            print(f"{mount}: {format_bytes(counts['filled_bytes'])} were fetched by the agent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
