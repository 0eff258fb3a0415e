"""Every engine keeps the contract of the MetadataStore port, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.metadata_contract import (
    MetadataStoreContract,
    Open,
    Outage,
    OutageContract,
    RealEngineContract,
    TakeoverContract,
)
from tiercache.metadata.open import open_metadata
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings
from tiercache.testing.memory_metadata import MemoryMetadata, SharedMemory
from tiercache.testing.object_servers import AzureServer, ObjectServer, S3Server
from tiercache.testing.proxy import FaultyProxy

pytestmark = pytest.mark.timeout(120)
NewBucket = Callable[[ObjectServer], str]


class TestMemory(MetadataStoreContract, TakeoverContract, OutageContract):
    @pytest.fixture
    def shared(self) -> SharedMemory:
        return SharedMemory()

    @pytest.fixture
    def opener(self, shared: SharedMemory) -> Open:
        async def make() -> MetadataStore:
            return MemoryMetadata(shared)

        return make

    @pytest.fixture
    def around(self, opener: Open, shared: SharedMemory) -> Open:
        async def switched_on() -> MetadataStore:
            shared.available = True
            return await opener()

        return switched_on

    @pytest.fixture
    def outage(self, shared: SharedMemory) -> Outage:
        def switch(on: bool) -> None:
            shared.available = on

        return Outage(lambda how: switch(False), lambda: switch(True))


class TestLmdbVolume(MetadataStoreContract, RealEngineContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> MetadataSettings:
        return MetadataSettings(url=f"lmdb:{tmp_path}/volume")

    @pytest.fixture
    def profile(self) -> ProfileSettings:
        return ProfileSettings()


class TestSlateOnFiles(MetadataStoreContract, RealEngineContract, TakeoverContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> MetadataSettings:
        return MetadataSettings(url=f"file://{tmp_path}/store")

    @pytest.fixture
    def profile(self) -> ProfileSettings:
        return ProfileSettings()


@pytest.mark.emulator
class TestSlateOnSeaweed(MetadataStoreContract, RealEngineContract, TakeoverContract):
    @pytest.fixture
    def config(self, s3: S3Server, new_bucket: NewBucket) -> MetadataSettings:
        return MetadataSettings(url=f"s3://{new_bucket(s3)}/some/where", deadline_s=30.0)

    @pytest.fixture
    def profile(self, s3: S3Server) -> ProfileSettings:
        return s3.profile()


@pytest.mark.emulator
class TestSlateBehindABadNetwork(OutageContract):
    @pytest.fixture
    def config(self, s3: S3Server, new_bucket: NewBucket) -> MetadataSettings:
        return MetadataSettings(url=f"s3://{new_bucket(s3)}/some/where", deadline_s=2.0)

    @pytest.fixture
    def proxy(self, s3: S3Server) -> Iterator[FaultyProxy]:
        with FaultyProxy(s3.endpoint) as proxy:
            yield proxy

    @pytest.fixture
    def opener(self, config: MetadataSettings, s3: S3Server, proxy: FaultyProxy) -> Open:
        return lambda: open_metadata(config, {"default": s3.profile(endpoint=proxy.url)})

    @pytest.fixture
    def around(self, config: MetadataSettings, s3: S3Server) -> Open:
        return lambda: open_metadata(config, {"default": s3.profile()})

    @pytest.fixture
    def outage(self, proxy: FaultyProxy, config: MetadataSettings) -> Outage:
        return Outage(
            lambda how: getattr(proxy, how)(),
            proxy.heal,
            ways=("refuse", "black_hole"),
            deadline_s=config.deadline_s,
        )


@pytest.mark.emulator
class TestSlateOnAzurite(MetadataStoreContract, RealEngineContract, TakeoverContract):
    @pytest.fixture
    def config(self, azure: AzureServer, new_bucket: NewBucket) -> MetadataSettings:
        return MetadataSettings(url=f"az://{new_bucket(azure)}/some/where", deadline_s=30.0)

    @pytest.fixture
    def profile(self, azure: AzureServer) -> ProfileSettings:
        return azure.profile()
