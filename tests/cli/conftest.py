"""The command line against a real S3, each test with a cache directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tiercache.testing.object_servers import ObjectServer, S3Server

TIMEOUT_S = 60
SMALL = {f"data/s/{i:03}.bin": bytes([i]) * 3000 for i in range(20)}
BIG = os.urandom(3 << 20)


@dataclass
class Ended:
    """One finished command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Cli:
    """Runs ``python -m tiercache`` with one configuration file."""

    config: Path
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tiercache", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TIERCACHE_CONFIG": str(self.config), **self.env},
            **more,
        )

    def __call__(self, *arguments: str, given: bytes = b"", **more: Any) -> Ended:
        process = self.start(*arguments, **more)
        try:
            out, err = process.communicate(given, timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Ended(process.returncode, out, err.decode())


def configuration(cache: Path, bucket: str, endpoint: str, capacity: str = "256MiB") -> str:
    return f"""
[cache]
dir = "{cache}"
capacity = "{capacity}"
[[mount]]
path = "/m"
origin = "s3://{bucket}/data"
[profile.default]
region = "us-east-1"
endpoint = "{endpoint}"
addressing = "path"
connect_timeout = "2s"
deadline = "4s"
[agent]
idle_timeout = "30s"
"""


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    """Twenty small objects and a large one, which no test changes."""
    name = s3.make_bucket(f"cli-{os.getpid()}-{os.urandom(4).hex()}")
    s3.put_many(name, [*SMALL.items(), ("data/big.bin", BIG)])
    return name


@pytest.fixture
def make_cli(tmp_path: Path) -> Iterator[Callable[..., Cli]]:
    """Return a maker of command lines; their agents are gone in the end."""
    made: list[Cli] = []

    def make(text: str) -> Cli:
        config = tmp_path / f"config{len(made)}.toml"
        config.write_text(text)
        made.append(Cli(config))
        return made[-1]

    yield make
    for cli in made:
        ended = cli("agent", "stop")
        assert ended.code in (0, 4), ended.err


@pytest.fixture
def cli(s3: S3Server, bucket: str, tmp_path: Path, make_cli: Callable[[str], Cli]) -> Cli:
    return make_cli(configuration(tmp_path / "cache", bucket, s3.endpoint))


@pytest.fixture
def own_cli(
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
    make_cli: Callable[[str], Cli],
) -> Cli:
    """A command line over an empty bucket of the test's own."""
    return make_cli(configuration(tmp_path / "cache", new_bucket(s3), s3.endpoint))
