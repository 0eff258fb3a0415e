"""A cache of its own for the consumers' tests: SeaweedFS mounted at ``/m``, one agent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow.conftest import groups as pyarrow_marks

from tiercache.errors import AgentUnavailable
from tiercache.fs import TierCacheFileSystem
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.settings import ProfileSettings, Settings
from tiercache.testing.object_servers import ObjectServer, S3Server

STOP_S = 15.0


def pytest_configure(config: pytest.Config) -> None:
    for name in pyarrow_marks:
        config.addinivalue_line("markers", f"{name}: a mark of pyarrow's own tests")


@dataclass(frozen=True, slots=True)
class Tier:
    """A cache over one bucket. ``options`` are storage options; everything is below ``path``."""

    server: ObjectServer
    bucket: str
    options: dict[str, Any]
    path: str = "/m"

    def filesystem(self, **more: Any) -> TierCacheFileSystem:
        return TierCacheFileSystem(**self.options, **more)


def profile_table(profile: ProfileSettings) -> dict[str, Any]:
    """Return a profile as a table of the configuration file."""
    default = msgspec.structs.asdict(ProfileSettings())
    return {
        key: value
        for key, value in msgspec.structs.asdict(profile).items()
        if key != "name" and value != default[key]
    }


def tier_of(server: ObjectServer, bucket: str, cache_dir: Path) -> Tier:
    """``/fresh`` is the same bucket for tests that write behind the cache's back."""
    mount = {"origin": server.url(bucket), "profile": "p"}
    fresh = {**mount, "consistency": Consistency.CLOSE_TO_OPEN.value}
    return Tier(
        server,
        bucket,
        {
            "cache_dir": str(cache_dir),
            "cache": {"capacity": "1GiB", "memory": "128MiB"},
            "agent": {"idle_timeout": "30s"},
            "mounts": {"/m": mount, "/fresh": fresh},
            "profiles": {"p": profile_table(server.profile("p"))},
        },
    )


def stop_agent(settings: Settings) -> None:
    """Ask the agent of these settings to leave and wait until it has."""
    with Namespace(settings) as namespace, suppress(AgentUnavailable):
        namespace.shut_down_agent()
    deadline = time.monotonic() + STOP_S
    socket = Path(settings.cache.dir) / "agent.sock"
    while socket.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture(scope="session")
def tier(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    """One cache for all tests of this folder, each in a directory of its own."""
    bucket = s3.make_bucket(f"test-{uuid.uuid4().hex[:16]}")
    made = tier_of(s3, bucket, tmp_path_factory.mktemp("consumers") / "cache")
    yield made
    stop_agent(made.filesystem().namespace.settings)


@pytest.fixture(scope="session")
def flat_tier(moto_s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    """The same over moto, for suites that look at directories after their last object has gone:
    SeaweedFS keeps listing an emptied prefix for half a minute and more, S3 does not."""
    bucket = moto_s3.make_bucket(f"test-{uuid.uuid4().hex[:16]}")
    made = tier_of(moto_s3, bucket, tmp_path_factory.mktemp("consumers") / "flat")
    yield made
    stop_agent(made.filesystem().namespace.settings)


@pytest.fixture
def new_path() -> Callable[[], str]:
    """Return a function that names a directory nobody else uses."""
    return lambda: f"/m/{uuid.uuid4().hex[:12]}"
