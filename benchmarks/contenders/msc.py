"""NVIDIA's multi-storage-client with its cache, without checks of freshness.

Large objects are read through files that stay open, one a thread, which it downloads whole into
its cache; small ones by ``read`` of the whole. "ranges" reads parts of objects by ``read`` with a
range and keeps lines of 1 MiB, the least that it takes.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import page_cache
from benchmarks.contenders.contender import Contender, Object, Recipe, missing_package
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State, Workload
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY
from tiercache.units import MIB

if TYPE_CHECKING:
    from benchmarks.lab import Lab

SMALL_BYTES = MIB
OPEN_FILES = 64

Way = Literal["file", "whole", "ranges"]


def client(endpoint: str, bucket: str, location: str, *, line: str) -> Any:
    """Return a new client over a cache directory, which may hold things already."""
    from multistorageclient import StorageClient, StorageClientConfig

    config = StorageClientConfig.from_dict(
        {
            "profiles": {
                "bench": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": bucket,
                            "endpoint_url": endpoint,
                            "region_name": REGION,
                        },
                    },
                    "credentials_provider": {
                        "type": "S3Credentials",
                        "options": {"access_key": S3_ACCESS_KEY, "secret_key": S3_SECRET_KEY},
                    },
                    "caching_enabled": True,
                }
            },
            "cache": {
                "location": location,
                "size": "64G",
                "check_source_version": False,
                "cache_line_size": line,
            },
        },
        profile="bench",
    )
    return StorageClient(config)


@contender("multi-storage-client")
class Msc(Contender):
    name = "multi-storage-client"
    role: Role = "rival"
    line = "64M"  # its default

    def __init__(self, lab: Lab, url: str) -> None:
        self._endpoint = url or lab.server.endpoint
        self._bucket = lab.bucket
        self._location = lab.folder("msc")
        self._filled: tuple[str, ...] = ()
        self._way: Way = "file"

    def why_missing(self) -> str:
        return missing_package("multistorageclient", "multi-storage-client[boto3]")

    def why_not(self, workload: Workload) -> str:
        if workload.state == "half-warm" and workload.dataset.count == 1:
            return "keeps whole files: one file is never half there"
        return ""

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        self._way = self._way_to(objects)
        wanted = tuple(one.key for one in objects)
        match state:
            case "cold":
                self._empty()
            case "half-warm":
                self._empty()
                self._fill([one.key for one in objects[::2]])
            case "hot" | "nvme" if wanted != self._filled:
                self._fill(wanted)
                self._filled = wanted
        if state == "nvme":
            page_cache.drop_below(self._location)

    def _way_to(self, objects: Sequence[Object]) -> Way:
        small = max(one.length for one in objects) <= SMALL_BYTES
        return "whole" if small or len(objects) > OPEN_FILES else "file"

    def _empty(self) -> None:
        self._filled = ()
        shutil.rmtree(self._location)
        self._location.mkdir()

    def _fill(self, keys: Sequence[str]) -> None:
        filling = client(self._endpoint, self._bucket, str(self._location), line=self.line)
        for key in keys:
            filling.read(key)

    def recipe(self) -> Recipe:
        where = (self._endpoint, self._bucket, str(self._location), self.line)
        return Recipe(MscReader, (*where, self._way))

    def close(self) -> None:
        shutil.rmtree(self._location, ignore_errors=True)


@contender("multi-storage-client ranges")
class MscRanges(Msc):
    name = "multi-storage-client ranges"
    line = "1M"

    def _way_to(self, objects: Sequence[Object]) -> Way:
        return "ranges"


class MscReader:
    def __init__(self, endpoint: str, bucket: str, location: str, line: str, way: Way) -> None:
        from multistorageclient.types import Range

        self._range = Range
        self._client = client(endpoint, bucket, location, line=line)
        self._way = way
        self._local = threading.local()

    def read(self, key: str, offset: int, length: int) -> object:
        match self._way:
            case "file":
                file = self._file(key)
                file.seek(offset)
                return file.read(length)
            case "ranges":
                return self._client.read(key, byte_range=self._range(offset, length))
            case "whole":
                return self._client.read(key)[offset : offset + length]

    def _file(self, key: str) -> Any:
        files: dict[str, Any] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = {}
        if key not in files:
            files[key] = self._client.open(key, "rb")
        return files[key]

    def close(self) -> None:
        return
