"""The demo's three clouds: real object store servers on this machine, each with one data set.

All that the cache asks passes a proxy, which counts it: the figures of the demo's last table are
the origins' own, not ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tiercache.settings import ProfileSettings
from tiercache.testing.datasets import object_bytes, parquet_files, small_files, tar_shards
from tiercache.testing.emulators import Azurite, Emulator, FakeGcs, SeaweedS3
from tiercache.testing.proxy import Exchange, FaultyProxy

SEED = "demo"
# 6 shards of 256 samples of 48 KiB: 76 MiB, a second or two of prefetch.
SHARDS = 6
SAMPLES_PER_SHARD = 256
PARQUET_FILES = 4
ROWS_PER_FILE = 60_000
# Azurite takes some 430 small objects a second: more would not fit into the minute.
SMALL_FILES = 2_000
SMALL_FILE_BYTES = 16 * 1024
UNREAD = "not-read.bin"  # listed and never read, to show what an outage costs
LISTING_MARKS = ("list-type=", "comp=list", "prefix=", "maxResults=")


@dataclass(slots=True, kw_only=True)
class Cloud:
    """One server, its proxy, and the data set in it. ``objects`` maps keys to the bytes written."""

    name: str
    mount: str
    bucket: str
    prefix: str
    what: str
    server: Emulator
    consistency: str
    proxy: FaultyProxy | None = None
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url(self.bucket, self.prefix)

    @property
    def paths(self) -> list[str]:
        """The namespace paths of all objects that the demo reads."""
        return [f"{self.mount}/{name}" for name in self.objects if name != UNREAD]

    @property
    def read_bytes(self) -> int:
        return sum(len(data) for name, data in self.objects.items() if name != UNREAD)

    def data_of(self, path: str) -> bytes:
        return self.objects[path.removeprefix(f"{self.mount}/")]

    def start(self) -> None:
        """Start the server and put the data set into it. Raises EmulatorMissing."""
        self.server.start()
        self.server.make_bucket(self.bucket)
        self.server.put_many(
            self.bucket, ((f"{self.prefix}/{name}", data) for name, data in self.objects.items())
        )

    def open_proxy(self) -> FaultyProxy:
        self.proxy = FaultyProxy(self.server.endpoint)
        return self.proxy

    def profile(self) -> ProfileSettings:
        assert self.proxy is not None
        return self.server.profile(self.name, endpoint=self.proxy.url)

    def data_gets(self) -> list[Exchange]:
        """Return the GETs of objects so far, without those of listings."""
        assert self.proxy is not None
        return [
            exchange
            for exchange in self.proxy.exchanges("GET")
            if not any(mark in exchange.path for mark in LISTING_MARKS)
        ]

    def listings(self) -> int:
        assert self.proxy is not None
        return len(self.proxy.exchanges("GET")) - len(self.data_gets())


class Clouds:
    """All three, as a context manager: started side by side, gone in the end."""

    def __init__(self) -> None:
        self.s3 = Cloud(
            name="s3",
            mount="/images",
            bucket="train-data",
            prefix="imagenet",
            what=f"{SHARDS} tar shards",
            server=SeaweedS3(),
            consistency="immutable",
            objects=dict(_images()),
        )
        self.gcs = Cloud(
            name="gcs",
            mount="/tables",
            bucket="warehouse",
            prefix="events",
            what=f"{PARQUET_FILES} Parquet files",
            server=FakeGcs(),
            consistency="eventual",
            objects=dict(_tables()),
        )
        self.azure = Cloud(
            name="azure",
            mount="/samples",
            bucket="features",
            prefix="v1",
            what=f"{SMALL_FILES:,} small files",
            server=Azurite(),
            consistency="immutable",
            objects=dict(small_files(SEED, SMALL_FILES, SMALL_FILE_BYTES)),
        )
        for cloud in self.all:
            cloud.objects[UNREAD] = object_bytes("unread", SMALL_FILE_BYTES)
        self._stack = ExitStack()

    @property
    def all(self) -> tuple[Cloud, ...]:
        return (self.s3, self.gcs, self.azure)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        for cloud in self.all:
            cloud.server.find()
            self._stack.callback(cloud.server.close)
        # Leaving the pool waits for what still starts, so that closing finds it.
        with ThreadPoolExecutor(len(self.all)) as pool:
            list(pool.map(Cloud.start, self.all))
        for cloud in self.all:
            self._stack.enter_context(cloud.open_proxy())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Take all origins away, servers and proxies."""
        for cloud in self.all:
            cloud.server.stop()
            assert cloud.proxy is not None
            cloud.proxy.refuse()

    @property
    def environment(self) -> dict[str, str]:
        """The credentials, where each cloud's own chain looks for them."""
        return {name: value for cloud in self.all for name, value in cloud.server.env.items()}


def _images() -> Iterable[tuple[str, bytes]]:
    shards = tar_shards(SEED, shard_count=SHARDS, samples_per_shard=SAMPLES_PER_SHARD)
    return ((f"train/{name}", data) for name, data in shards)


def _tables() -> Iterable[tuple[str, bytes]]:
    files = parquet_files(SEED, file_count=PARQUET_FILES, rows_per_file=ROWS_PER_FILE)
    return ((f"day={index}/{name}", data) for index, (name, data) in enumerate(files, start=1))
