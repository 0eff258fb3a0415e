"""Nodes with a metadata store: cache directories that can be lost, over one bucket behind a faulty
network and a store behind another."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.fault.origin_rig import Rig, eventually, rig_of
from tiercache.agent.projection import WRITER_KEY
from tiercache.metadata.open import open_metadata
from tiercache.model import Consistency
from tiercache.namespace import Namespace
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, Settings
from tiercache.testing.object_servers import ObjectServer
from tiercache.testing.proxy import FaultyProxy

ENGINES = ("lmdb", "slatedb")
# An outage of the store is found out, and its end, in a test's time.
DEADLINE_S = 1.5

T = TypeVar("T")


@dataclass
class MetadataRig:
    """``rig`` is the origin; ``store_proxy`` lies in front of the store's bucket, where it has
    one."""

    rig: Rig
    engine: str
    store_proxy: FaultyProxy
    folder: Path
    store_name: str = "meta"

    @property
    def metadata(self) -> MetadataSettings:
        if self.engine == "lmdb":
            url = f"lmdb:{self.folder / self.store_name}"
        else:
            url = self.rig.server.url(self.rig.bucket, self.store_name)
        return MetadataSettings(
            url=url, profile="store", commit_interval_s=0.02, deadline_s=DEADLINE_S
        )

    def settings(
        self, name: str, consistency: Consistency = Consistency.EVENTUAL, **mount: Any
    ) -> Settings:
        """Settings of the node ``name``."""
        found = self.rig.settings(consistency, name=name, prefix="data", **mount)
        store = self.rig.server.profile("store", endpoint=self.store_proxy.url)
        store = msgspec.structs.replace(
            store, connect_timeout_s=0.5, request_timeout_s=1.0, deadline_s=DEADLINE_S
        )
        return msgspec.structs.replace(
            found, metadata=self.metadata, profiles={**found.profiles, "store": store}
        )

    def node(self, name: str, *args: Any, embedded: bool = True, **mount: Any) -> Namespace:
        return self.rig.open(self.settings(name, *args, **mount), embedded=embedded)

    def lose(self, ns: Namespace) -> None:
        """Stop a node and wipe its NVMe."""
        self.rig.close(ns)
        shutil.rmtree(ns.settings.cache.dir)

    def lose_directory(self, name: str) -> None:
        shutil.rmtree(self.settings(name).cache.dir)

    def cut_off(self) -> None:
        """Make the origin, and nothing else, unreachable."""
        self.rig.proxy.clear()
        self.rig.proxy.refuse()

    def put(self, key: str, data: bytes) -> None:
        self.rig.put(f"data/{key}", data)

    # -- the store itself, past any agent ---------------------------------------------------

    def ask(self, work: Callable[[MetadataStore], Awaitable[T]], *, read_only: bool = True) -> T:
        settings = self.settings("nobody")

        async def asked() -> T:
            store = await open_metadata(settings.metadata, settings.profiles, read_only=read_only)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(asked())

    def records(self) -> dict[bytes, bytes]:
        """Return all that the store knows, less who said it."""

        async def work(store: MetadataStore) -> dict[bytes, bytes]:
            return {key: raw async for key, raw in store.scan(b"") if key != WRITER_KEY}

        return self.ask(work)

    def overwrite(self, batch: dict[bytes, bytes | None]) -> None:
        """Commit to the store as somebody else, taking it over."""
        self.ask(lambda store: store.commit(batch), read_only=False)


def metadata(ns: Namespace) -> dict[str, Any]:
    return dict(ns.status()["metadata"])


def attached(ns: Namespace, *, within_s: float = 20.0) -> dict[str, Any]:
    """Return the status of the store once the node is attached and all is committed."""

    def check() -> dict[str, Any] | None:
        found = metadata(ns)
        done = found["state"] == "attached" and not found["pending_keys"]
        return found if done else None

    found: dict[str, Any] = eventually(check, within_s=within_s, what=f"attached: {metadata(ns)}")
    return found


def in_state(ns: Namespace, state: str, *, within_s: float = 20.0) -> None:
    eventually(lambda: metadata(ns)["state"] == state, within_s=within_s, what=state)


@contextmanager
def metadata_rig_of(
    server: ObjectServer, bucket: str, folder: Path, engine: str
) -> Iterator[MetadataRig]:
    with FaultyProxy(server.endpoint) as store_proxy, rig_of(server, bucket, folder) as rig:
        try:
            yield MetadataRig(rig, engine, store_proxy, folder)
        finally:
            store_proxy.heal()
            rig.close_all()
