"""pyarrow, pandas and DuckDB over the same Parquet files.

    TIERCACHE_CONFIG=tiercache.toml python parquet_tables.py tiercache://tables/trips

Each fetches only the column chunks that its query needs; the next finds them on NVMe.
"""

from __future__ import annotations

import json
import sys

import duckdb
import fsspec
import pandas as pd
import pyarrow.dataset as ds
from pyarrow import fs as arrow_fs


def main() -> None:
    url = sys.argv[1].rstrip("/")
    fs, path = fsspec.url_to_fs(url)

    # pyarrow takes the URL with "fsspec+" before it, or the filesystem itself.
    arrow, arrow_path = arrow_fs.FileSystem.from_uri(f"fsspec+{url}")
    table = ds.dataset(arrow_path, filesystem=arrow).to_table(columns=["kind", "value"])
    by_arrow = sum(table["value"].to_pylist())

    by_pandas = sum(
        int(pd.read_parquet(f"tiercache:/{file}", columns=["value"])["value"].sum())
        for file in fs.glob(f"{path}/*.parquet")
    )

    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        rows = connection.execute(
            f"SELECT kind, sum(value) FROM read_parquet('{url}/*.parquet') GROUP BY kind"
        ).fetchall()
    print(
        json.dumps(
            {
                "rows": table.num_rows,
                "arrow": by_arrow,
                "pandas": by_pandas,
                "duckdb": {kind: int(total) for kind, total in sorted(rows)},
            }
        )
    )


if __name__ == "__main__":
    main()
