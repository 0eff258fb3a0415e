"""What the documents say can be done is done here, block by block, against a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, Block, blocks, documents, name_of
from tiercache.config.loading import load
from tiercache.config.qos_policy import parse_policy
from tiercache.testing.datasets import parquet_files, small_files, tar_shards
from tiercache.testing.emulators import EmulatorMissing, SeaweedS3

RUNNER = Path(__file__).with_name("block_runner.py")
BUCKET = "training-data"
RUN_TIMEOUT_S = 100.0
LANGUAGES_RUN = ("python", "bash")

# How many blocks of a document are marked "not run": one more is a decision, not an accident.
NOT_RUN = {
    "README.md": 2,
    "docs/operations.md": 3,
    "docs/qos.md": 1,
}


def runnable(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.language in LANGUAGES_RUN]


DOCUMENTS = [path for path in documents() if runnable(path)]


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedS3]:
    """A server with the data that the documents speak of."""
    try:
        started = SeaweedS3().start()
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with started:
        started.make_bucket(BUCKET)
        images = tar_shards("docs", shard_count=2, samples_per_shard=24)
        started.put_many(BUCKET, ((f"imagenet/{name}", data) for name, data in images))
        samples = small_files("docs", 20, 4096)
        started.put_many(BUCKET, ((f"samples/{name}", data) for name, data in samples))
        tables = parquet_files("docs", file_count=1, rows_per_file=1000)
        started.put_many(BUCKET, ((f"events/{name}", data) for name, data in tables))
        yield started


def config_text(server: SeaweedS3, directory: Path) -> str:
    mounts = [
        f'[[mount]]\npath = "/{name}"\norigin = "s3://{BUCKET}/{name}"\n'
        for name in ("imagenet", "samples", "events")
    ]
    profile = server.profile()
    return "\n".join(
        [
            f'[cache]\ndir = "{directory}/cache"\ncapacity = "1GiB"\n',
            *mounts,
            f'[profile.default]\nendpoint = "{profile.endpoint}"\nregion = "{profile.region}"\n'
            f'addressing = "{profile.addressing}"\n',
            '[agent]\nidle_timeout = "5s"\n',
        ]
    )


def environment(server: SeaweedS3, directory: Path) -> dict[str, str]:
    config = directory / "config.toml"
    config.write_text(config_text(server, directory))
    # The installed command of this interpreter, whatever environment it lies in.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        **server.env,
        "HOME": str(directory),
        "PATH": path,
        "TIERCACHE_CONFIG": str(config),
        "XDG_CACHE_HOME": str(directory / "xdg-cache"),
        "XDG_CONFIG_HOME": str(directory / "xdg-config"),
    }


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_blocks_run(path: Path, server: SeaweedS3, tmp_path: Path) -> None:
    todo = [block for block in runnable(path) if not block.not_run]
    if not todo:
        pytest.skip("all blocks are marked as not run")
    listing = tmp_path / "blocks.json"
    listing.write_text(json.dumps([[b.language, b.code, b.document, b.line] for b in todo]))
    env = environment(server, tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(listing)],
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
    finally:
        stop = [sys.executable, "-m", "tiercache", "agent", "stop"]
        subprocess.run(stop, cwd=work, env=env, check=True, timeout=30, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_blocks_not_run_are_counted() -> None:
    marked = {
        name_of(path): [f"{b.line}: {b.not_run}" for b in runnable(path) if b.not_run]
        for path in documents()
    }
    found = {name: len(reasons) for name, reasons in marked.items() if reasons}
    assert found == NOT_RUN, marked


TOML = [b for path in documents() for b in blocks(path) if b.language == "toml"]


@pytest.mark.parametrize("block", TOML, ids=lambda b: f"{b.document}:{b.line}")
def test_toml_parses(block: Block, tmp_path: Path) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    if block.code.startswith("version = "):  # a QoS policy
        parse_policy(block.code, where=f"{block.document}:{block.line}")
        return
    file = tmp_path / "config.toml"
    file.write_text(block.code)
    loaded = load(str(file), environ={"HOME": str(tmp_path)})
    assert loaded.files == (str(file),)


def test_the_documents_are_there() -> None:
    assert (ROOT / "README.md") in DOCUMENTS
    assert (ROOT / "docs" / "quickstart.md") in DOCUMENTS
