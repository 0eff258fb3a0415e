"""One bucket behind a faulty network, seen through a namespace: what the tests here start from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

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
from tiercache.testing.object_servers import ObjectServer
from tiercache.testing.proxy import FaultyProxy
from tiercache.units import MIB

# One request 0.7 s at most, one operation with its retries 2 s: outages end fast in a test.
QUICK = {"connect_timeout_s": 0.3, "request_timeout_s": 0.7, "deadline_s": 2.0}
MOUNT = "/m"


def eventually(
    check: Callable[[], Any], *, within_s: float = 10.0, every_s: float = 0.02, what: str = ""
) -> Any:
    """Poll until ``check`` returns something true, and return it."""
    deadline = time.monotonic() + within_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or check}"
        time.sleep(every_s)


@dataclass
class Rig:
    """A server's bucket; ``proxy`` is what the namespaces made here go through."""

    server: ObjectServer
    proxy: FaultyProxy
    bucket: str
    directory: Path
    limits: dict[str, float] = field(default_factory=lambda: dict(QUICK))
    opened: list[Namespace] = field(default_factory=list)

    def put(self, key: str, data: bytes) -> None:
        self.server.put(self.bucket, key, data)

    def get(self, key: str) -> bytes:
        return self.server.get(self.bucket, key)

    def delete(self, key: str) -> None:
        self.server.delete(self.bucket, key)

    def profile(self, **changes: Any) -> ProfileSettings:
        profile = self.server.profile("rig", endpoint=self.proxy.url)
        return msgspec.structs.replace(profile, **{**self.limits, **changes})

    def settings(
        self,
        consistency: Consistency = Consistency.EVENTUAL,
        *,
        capacity_bytes: int = 512 * MIB,
        profile: ProfileSettings | None = None,
        name: str = "cache",
        prefix: str = "",
        **mount: Any,
    ) -> Settings:
        origin = self.server.url(self.bucket, prefix)
        return Settings(
            cache=CacheSettings(dir=str(self.directory / name), limit=TotalBytes(capacity_bytes)),
            mounts=(
                MountSettings(
                    path=MOUNT, origin=origin, profile="rig", consistency=consistency, **mount
                ),
            ),
            profiles={"default": ProfileSettings(), "rig": profile or self.profile()},
            agent=AgentSettings(idle_timeout_s=5.0, log_level="info"),
        )

    def open(self, settings: Settings, *, embedded: bool = True) -> Namespace:
        namespace = Namespace(settings, embedded=embedded)
        namespace.client  # noqa: B018  # opens it
        self.opened.append(namespace)
        return namespace

    def namespace(self, *args: Any, embedded: bool = True, **kwargs: Any) -> Namespace:
        return self.open(self.settings(*args, **kwargs), embedded=embedded)

    def close(self, namespace: Namespace) -> None:
        self.opened.remove(namespace)
        namespace.close()

    def close_all(self) -> None:
        for namespace in self.opened:
            # The agents were started by this process: none may outlive the test.
            if not namespace._embedded and agent_pids(namespace.settings):
                namespace.shut_down_agent()
            namespace.close()
            settings = namespace.settings
            eventually(partial(no_agent, settings), what="the agents are gone")


@contextmanager
def rig_of(server: ObjectServer, bucket: str, directory: Path) -> Iterator[Rig]:
    with FaultyProxy(server.endpoint) as proxy:
        rig = Rig(server, proxy, bucket, directory)
        try:
            yield rig
        finally:
            proxy.heal()
            rig.close_all()


def config_file(rig: Rig, settings: Settings) -> Path:
    """Write settings of this rig as a configuration file for the command."""
    (mount,), profile = settings.mounts, settings.profiles["rig"]
    path = rig.directory / "config.toml"
    path.write_text(
        f'[cache]\ndir = "{settings.cache.dir}"\ncapacity = "512MiB"\n'
        f'[[mount]]\npath = "{mount.path}"\norigin = "{mount.origin}"\nprofile = "rig"\n'
        f'ttl = "{mount.ttl_s}s"\n[profile.rig]\nendpoint = "{profile.endpoint}"\n'
        f'region = "{profile.region}"\naddressing = "{profile.addressing}"\n'
        f'connect_timeout = "{profile.connect_timeout_s}s"\n'
        f'request_timeout = "{profile.request_timeout_s}s"\n'
        f'deadline = "{profile.deadline_s}s"\n[agent]\nidle_timeout = "5s"\n'
    )
    return path


def no_agent(settings: Settings) -> bool:
    return not agent_pids(settings)


def agent_pids(settings: Settings) -> list[int]:
    """Return the agents of this cache directory: the processes that hold its lock."""
    lock = Path(settings.cache.dir) / "agent.lock"
    if not lock.exists():
        return []
    found = lock.stat()
    # An inode's number alone may be that of a file on another device.
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    pids = {int(fields[4]) for fields in lines if fields[1] == "FLOCK" and fields[5] == place}
    return sorted(pids - {os.getpid()})


def kill_agent(namespace: Namespace) -> int:
    """Kill the agent of this namespace as a crash would, and wait until it is gone."""
    (pid,) = agent_pids(namespace.settings)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not agent_pids(namespace.settings), what="the agent is gone")
    return pid


def in_other_process(settings: Settings, body: str, *, timeout_s: float = 60.0) -> Any:
    """Run ``body`` with ``ns`` in a fresh Python; return what it leaves in ``result``."""
    program = (
        "import sys, msgspec\n"
        "from tiercache.errors import *\n"
        "from tiercache.namespace import Namespace\n"
        "from tiercache.settings import Settings\n"
        "ns = Namespace(msgspec.json.decode(sys.stdin.buffer.read(), type=Settings))\n"
        f"{body}\n"
        "print(msgspec.json.encode(result).decode())\n"
        "ns.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=msgspec.json.encode(settings),
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout)


def origin_status(namespace: Namespace) -> dict[str, Any]:
    """Return the status document's part on the one origin."""
    (found,) = namespace.status()["origins"]
    return dict(found)
