"""What the tests of the agent's side of QoS share: a cache with a policy file, and its clients."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tests.fault.cache_rig import FileOrigin, cache_settings, end_agents
from tiercache import wire
from tiercache.compose_client import Client, open_client
from tiercache.extents.lease_file import LeaseFileReader
from tiercache.policy import lease_words as words
from tiercache.qos import Qos
from tiercache.qos_reports import IdentityUse
from tiercache.settings import QosSettings, Settings

SLOW = """
[node]
read = "1GB/s"
write = "1GB/s"

[[identity]]
name = "slow"
match = [{ name = "slow" }]
read.limit = "2MB/s"
operations.limit = 50

[[identity]]
name = "scratch"
match = [{ path = "/m/scratch" }]
"""


class Rig:
    """One cache directory with a policy file, and clients of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.origin = FileOrigin(root / "origin")
        self.policy = root / "policy.toml"
        self.cache = root / "cache"
        self._clients: list[Client] = []

    def settings(
        self, *, name: str = "", policy: bool = True, max_wait_s: float | None = None
    ) -> Settings:
        found = cache_settings(self.cache, self.origin.url)
        file = str(self.policy) if policy else ""
        qos = QosSettings(policy=file, name=name, max_wait_s=max_wait_s)
        return msgspec.structs.replace(found, qos=qos)

    def write_policy(self, text: str) -> None:
        """Put a policy in the file's place, as an editor does."""
        new = self.policy.with_suffix(".new")
        new.write_text(with_version(text))
        os.rename(new, self.policy)

    def client(
        self, *, name: str = "", policy: bool = True, max_wait_s: float | None = None
    ) -> Client:
        client = open_client(self.settings(name=name, policy=policy, max_wait_s=max_wait_s))
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        end_agents(self.cache)


def with_version(text: str) -> str:
    return f"version = 1\n{text}"


def qos_of(client: Client) -> Qos:
    return Qos(lambda: client.link)


def use_of(client: Client, identity: str) -> IdentityUse:
    return next(one for one in qos_of(client).top().identities if one.identity == identity)


def enlist(client: Client, name: str = "") -> wire.Enlisted:
    return client.link.request(wire.Enlist(name), wire.Enlisted)


def leases_of(client: Client) -> LeaseFileReader:
    assert client.leases is not None
    return client.leases


def slot_of(client: Client, seat: wire.Seat) -> memoryview:
    first = seat.slot * words.SLOT_WORDS
    return leases_of(client).slots[first : first + words.SLOT_WORDS]


def generation(client: Client) -> int:
    return int(leases_of(client).header[words.GENERATION_WORD])


def owners(client: Client) -> set[int]:
    """Return the stamps of all slots that are taken."""
    slots = leases_of(client).slots
    return {slots[n * words.SLOT_WORDS] for n in range(words.SLOTS_COUNT)} - {0}
