"""zarr's own suite for stores, unmodified, over an ``FsspecStore`` on ``tiercache://``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.storage import FsspecStore
from zarr.testing.store import StoreTests

from tests.consumers.conftest import Tier


class TestZarrStore(StoreTests[FsspecStore, cpu.Buffer]):
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, flat_tier: Tier, new_path: Callable[[], str]) -> dict[str, Any]:
        return {
            "fs": flat_tier.filesystem(asynchronous=True),
            "path": new_path().replace("/m/", "/fresh/"),
        }

    @pytest.fixture(autouse=True)
    def _server(self, flat_tier: Tier) -> None:
        self.tier = flat_tier

    def _key(self, store: FsspecStore, key: str) -> str:
        return f"{store.path.removeprefix('/fresh/')}/{key}"

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        self.tier.server.put(self.tier.bucket, self._key(store, key), value.to_bytes())

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        data = self.tier.server.get(self.tier.bucket, self._key(store, key))
        return self.buffer_cls.from_bytes(data)

    def test_store_repr(self, store: FsspecStore) -> None:
        assert str(store) == f"<FsspecStore(TierCacheFileSystem, {store.path})>"

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing


def test_an_array_by_url(tier: Tier, new_path: Callable[[], str]) -> None:
    url = f"tiercache:/{new_path()}"
    written = zarr.create_array(
        url, shape=(100, 100), chunks=(10, 100), dtype="f8", storage_options=tier.options
    )
    values = np.random.default_rng(0).random((100, 100))
    written[:] = values
    read = zarr.open_array(url, mode="r", storage_options=tier.options)
    assert np.array_equal(np.asarray(read[:]), values)
    assert np.array_equal(np.asarray(read[15:25]), values[15:25])
