"""The laboratory: an origin with known data, namespaces over it, and what was asked of whom.

One SeaweedFS serves a whole run; each benchmark takes a cache directory of its own, so that none
finds what another has cached.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tiercache
from benchmarks import datasets
from benchmarks.contenders.contender import Object
from benchmarks.harness import Outcome, Race
from benchmarks.processes import agent_pid, alive, device_read_bytes
from benchmarks.sampler import Sampler
from benchmarks.workload import Dataset, Workload
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    MountSettings,
    ProfileSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing.emulators import SeaweedS3
from tiercache.testing.network import PROFILES
from tiercache.testing.proxy_process import ProxyProcess

BUCKET = "bench"
MOUNT = "/bench"
# An extent is at most 1/128 of the capacity: with 256 GiB, an object of 1 GiB lies in one, as
# it does on the NVMe of a GPU node. The limit is a number; nothing of it is taken up.
CAPACITY_BYTES = 256 << 30
READ_BLOCK = 64 * 1024


class Lab:
    """One run's servers, data sets and directories. Close it; not thread safe."""

    def __init__(self, *, seed: int, short: bool = False, directory: str | None = None) -> None:
        # Constant after construction
        self.short = short
        self.seed = seed
        self.root = Path(tempfile.mkdtemp(prefix="tiercache-bench-", dir=directory))
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self._datasets: dict[str, list[Object]] = {}
        self._folders = 0

    def close(self) -> None:
        self._stack.close()

    @property
    def bucket(self) -> str:
        return BUCKET

    def random(self) -> random.Random:
        return random.Random(self.seed)

    # -- the origin -------------------------------------------------------------------------

    @cached_property
    def server(self) -> SeaweedS3:
        server = self._stack.enter_context(SeaweedS3(metrics=True))
        os.environ.update(server.env)
        server.make_bucket(BUCKET)
        return server

    @property
    def running_server(self) -> SeaweedS3 | None:
        """The server if anything has needed it yet."""
        found: SeaweedS3 | None = vars(self).get("server")
        return found

    def objects(self, dataset: Dataset) -> list[Object]:
        """Put a data set below its folder, once a run; return its objects in order of name."""
        if dataset.folder not in self._datasets:
            made = datasets.made(dataset, seed=self.seed)
            found: list[Object] = []

            def items() -> Iterator[tuple[str, bytes]]:
                for key, data in made:
                    found.append(Object(key, len(data)))
                    yield key, data

            self.server.put_many(BUCKET, items())
            self._datasets[dataset.folder] = sorted(found)
        return self._datasets[dataset.folder]

    # -- directories and namespaces ---------------------------------------------------------

    def folder(self, name: str) -> Path:
        """Return a new empty directory on the device that also holds the cache."""
        self._folders += 1
        path = self.root / f"{self._folders:03}-{name}"
        path.mkdir()
        return path

    def settings(
        self,
        *,
        origin: str = "",
        profile: ProfileSettings | None = None,
        endpoint: str = "",
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> Settings:
        """Return settings over a cache directory of their own. ``endpoint`` is where a proxy
        stands in front of the run's server."""
        profile = profile or self.server.profile("bench", endpoint=endpoint)
        return Settings(
            cache=CacheSettings(
                dir=str(self.folder("cache")), limit=TotalBytes(capacity_bytes=capacity_bytes)
            ),
            mounts=(
                MountSettings(
                    path=MOUNT,
                    origin=origin or f"s3://{BUCKET}",
                    profile=profile.name,
                    consistency=Consistency.EVENTUAL,
                    ttl_s=3600.0,
                ),
            ),
            profiles={"default": ProfileSettings(), profile.name: profile},
            agent=AgentSettings(idle_timeout_s=10.0),
        )

    @contextlib.contextmanager
    def namespace(self, settings: Settings | None = None) -> Iterator[Namespace]:
        """Connect, with an agent that is gone afterwards, as is its cache directory."""
        settings = settings or self.settings()
        namespace = tiercache.connect(settings)
        try:
            yield namespace
        finally:
            stop_agent(namespace)
            shutil.rmtree(settings.cache.dir, ignore_errors=True)

    @contextlib.contextmanager
    def network(self, name: str) -> Iterator[ProxyProcess | None]:
        """Put a shaped network in front of the run's server; None for no name, no proxy."""
        if not name:
            yield None
            return
        with ProxyProcess(self.server.endpoint, network=PROFILES[name], seed=self.seed) as proxy:
            yield proxy

    def sampler(
        self,
        *,
        namespace: Namespace | None = None,
        processes: Callable[[], dict[str, list[int]]] | None = None,
        proxy: ProxyProcess | None = None,
    ) -> Callable[[], Sampler]:
        """Return what makes a sampler for each contender of a race."""
        return lambda: Sampler(self, namespace=namespace, processes=processes, proxy=proxy)

    def filesystem(self, namespace: Namespace) -> Any:
        """Return the fsspec filesystem over the namespace's directory, configured as users do."""
        from tiercache.fs import TierCacheFileSystem

        settings = namespace.settings
        mount = settings.mounts[0]
        profile = settings.profiles[mount.profile]
        return TierCacheFileSystem(
            cache={"dir": settings.cache.dir, "capacity": CAPACITY_BYTES},
            mounts={
                mount.path: {
                    "origin": mount.origin,
                    "profile": mount.profile,
                    "consistency": mount.consistency.value,
                    "ttl": f"{mount.ttl_s:g}s",
                }
            },
            profiles={
                profile.name: {
                    "endpoint": profile.endpoint,
                    "region": profile.region,
                    "addressing": profile.addressing,
                }
            },
        )


def path_of(key: str) -> str:
    return f"{MOUNT}/{key}"


def stop_agent(namespace: Namespace) -> None:
    """End the agent and wait until it has left."""
    pid = agent_pid(namespace)
    namespace.shut_down_agent()
    namespace.close()
    deadline = time.monotonic() + 20.0
    while pid and alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def settle() -> None:
    """Write back what earlier contenders left dirty, so that nobody pays for another's bytes."""
    os.sync()


class Meter:
    """Which tier served the bytes: the agent's counters, and device reads of both processes."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        status: Mapping[str, Any] = self._namespace.status()
        counts = dict.fromkeys(("hit_bytes", "filled_bytes", "read_through_bytes"), 0)
        for reads in status["reads"].values():
            for name in counts:
                counts[name] += reads[name]
        for origin in status["origins"]:
            for name in ("requests_get", "requests_head", "requests_list", "bytes_read"):
                counts[f"origin_{name}"] = counts.get(f"origin_{name}", 0) + origin.get(name, 0)
        pids = (os.getpid(), agent_pid(self._namespace))
        counts["device_read_bytes"] = sum(device_read_bytes(pid) or 0 for pid in pids)
        return counts

    def read(self) -> dict[str, int]:
        """Return what has happened since the meter was made."""
        now = self._now()
        return {name: now[name] - self._before.get(name, 0) for name in now}


def raced(race: Race, workload: Workload, namespace: Namespace, *, read_bytes: int = 0) -> Outcome:
    """Run a race as the workload's load says. The tiers are those of all its rounds;
    ``read_bytes`` is how much one read asks for."""
    dataset = workload.dataset
    sizes = {"objects": dataset.count, "object_bytes": dataset.object_bytes}
    sizes |= {"read_bytes": read_bytes} if read_bytes else {}
    meter = Meter(namespace)
    race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    return Outcome(
        figures=race.figures,
        missing=tuple(race.missing),
        tiers=meter.read(),
        sizes={"names": dataset.count} if dataset.kind == "names" else sizes,
    )
