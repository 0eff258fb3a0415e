"""The examples of docs/examples run, as a user would run them: a program and a configuration."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.consumers.conftest import profile_table, stop_agent
from tiercache.config.loading import load
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import GcsServer, ObjectServer, S3Server
from tiercache.units import KIB

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
LIMIT_S = 100

SHARDS, MEMBERS, MEMBER_BYTES = 6, 40, 5 * KIB + 3
FILES, FILE_BYTES = 300, 7 * KIB
TABLES, ROWS = 3, 1000


@pytest.fixture(scope="module")
def config(
    s3: S3Server, gcs: GcsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A configuration with data in two clouds: ``/s3`` and ``/gcs``."""
    directory = tmp_path_factory.mktemp("examples")
    lines = [f'[cache]\ndir = "{directory}/cache"\ncapacity = "1GiB"\nmemory = "128MiB"']
    for name, server in (("s3", s3), ("gcs", gcs)):
        bucket = server.make_bucket(f"test-{uuid.uuid4().hex[:16]}")
        (put_shards if name == "s3" else put_tables)(server, bucket)
        table = profile_table(server.profile(name))
        lines.append(f'[[mount]]\npath = "/{name}"\norigin = "{server.url(bucket)}"')
        lines.append(f'profile = "{name}"\n[profile.{name}]')
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    file = directory / "tiercache.toml"
    file.write_text("\n".join(lines) + "\n")
    yield file
    stop_agent(load(str(file)).settings)


def put_shards(server: ObjectServer, bucket: str) -> None:
    for shard in range(SHARDS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for member in range(MEMBERS):
                info = tarfile.TarInfo(f"{shard}-{member}.bin")
                info.size = MEMBER_BYTES
                tar.addfile(info, io.BytesIO(object_bytes(info.name, MEMBER_BYTES)))
        server.put(bucket, f"shards/{shard:04}.tar", buffer.getvalue())
    server.put_many(
        bucket, ((f"files/{n % 10}/{n}.bin", object_bytes(n, FILE_BYTES)) for n in range(FILES))
    )


def put_tables(server: ObjectServer, bucket: str) -> None:
    for number in range(TABLES):
        values = range(number * ROWS, (number + 1) * ROWS)
        table = pa.table(
            {"kind": ["even" if v % 2 == 0 else "odd" for v in values], "value": values}
        )
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, row_group_size=200)
        server.put(bucket, f"tables/{number}.parquet", buffer.getvalue())


def run(example: str, argument: str, config: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Run one example and return the JSON lines it prints."""
    environment = {
        **os.environ,
        "TIERCACHE_CONFIG": str(config),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / f"{example}.py"), argument],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def epochs(samples: int, sample_bytes: int) -> list[dict[str, int]]:
    return [
        {"epoch": epoch, "samples": samples, "bytes": samples * sample_bytes} for epoch in (0, 1)
    ]


def test_torch_shards(config: Path, tmp_path: Path) -> None:
    found = run("torch_shards", "tiercache://s3/shards", config, tmp_path)
    assert found == epochs(SHARDS * MEMBERS, MEMBER_BYTES)


def test_webdataset_shards(config: Path, tmp_path: Path) -> None:
    found = run("webdataset_shards", "tiercache://s3/shards", config, tmp_path)
    count = SHARDS * MEMBERS
    assert found == [{"samples": count, "bytes": count * MEMBER_BYTES}]


def test_torch_small_files(config: Path, tmp_path: Path) -> None:
    found = run("torch_small_files", "/s3/files", config, tmp_path)
    assert found == epochs(FILES, FILE_BYTES)


def test_torch_checkpoint(config: Path, tmp_path: Path) -> None:
    found = run("torch_checkpoint", "tiercache://s3/checkpoints/run-1", config, tmp_path)
    assert found == [{"step": 1, "same": True}]


def test_parquet_tables(config: Path, tmp_path: Path) -> None:
    values = range(TABLES * ROWS)
    assert run("parquet_tables", "tiercache://gcs/tables", config, tmp_path) == [
        {
            "rows": len(values),
            "arrow": sum(values),
            "pandas": sum(values),
            "duckdb": {"even": sum(values[::2]), "odd": sum(values[1::2])},
        }
    ]


def test_zarr_array(config: Path, tmp_path: Path) -> None:
    assert run("zarr_array", "tiercache://s3/arrays/a.zarr", config, tmp_path) == [
        {"shape": [200, 300], "same": True, "mean": pytest.approx((200 * 300 - 1) / 2)}
    ]


def test_hf_streaming(config: Path, tmp_path: Path) -> None:
    assert run("hf_streaming", "tiercache://gcs/tables", config, tmp_path) == [
        {"rows": TABLES * ROWS, "total": sum(range(TABLES * ROWS)), "taken": 5}
    ]


def test_every_example_is_run() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {name.removeprefix("test_") for name in globals() if name[5:] in names}
