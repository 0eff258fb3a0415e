"""zarr: an array written once, then read in slices.

TIERCACHE_CONFIG=tiercache.toml python zarr_array.py tiercache://climate/temperature.zarr
"""

from __future__ import annotations

import json
import sys

import numpy as np
import zarr


def main() -> None:
    url = sys.argv[1]
    values = np.arange(200 * 300, dtype="f4").reshape(200, 300)
    array = zarr.create_array(url, shape=values.shape, chunks=(50, 100), dtype="f4", overwrite=True)
    array[:] = values

    again = zarr.open_array(url, mode="r")
    window = np.asarray(again[40:160, 90:210])
    print(
        json.dumps(
            {
                "shape": list(again.shape),
                "same": bool(np.array_equal(window, values[40:160, 90:210])),
                "mean": float(np.asarray(again[:]).mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
