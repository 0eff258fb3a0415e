"""s3fs straight: ``cat_file`` from threads, and its coroutine on the reader's own loop."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.contender import Recipe, missing_package
from benchmarks.contenders.obstore_s3 import Straight
from benchmarks.registry import contender
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

CONNECTIONS = 64


def filesystem(endpoint: str, *, asynchronous: bool = False) -> Any:
    """Return a new s3fs on a benchmark's server or the proxy before it."""
    import s3fs

    return s3fs.S3FileSystem(
        key=S3_ACCESS_KEY,
        secret=S3_SECRET_KEY,
        endpoint_url=endpoint,
        client_kwargs={"region_name": REGION},
        config_kwargs={"max_pool_connections": CONNECTIONS},
        asynchronous=asynchronous,
        skip_instance_cache=True,
    )


class _S3fs(Straight):
    def why_missing(self) -> str:
        return missing_package("s3fs")


@contender("s3fs")
class S3fs(_S3fs):
    name = "s3fs"

    def recipe(self) -> Recipe:
        return Recipe(S3fsReader, self._arguments)


@contender("s3fs asyncio")
class S3fsAsyncio(_S3fs):
    name = "s3fs asyncio"

    def recipe(self) -> Recipe:
        return Recipe(S3fsAsyncReader, self._arguments)


class S3fsReader:
    def __init__(self, endpoint: str, bucket: str) -> None:
        self._cat_file = filesystem(endpoint).cat_file
        self._bucket = bucket

    def read(self, key: str, offset: int, length: int) -> object:
        return self._cat_file(f"{self._bucket}/{key}", start=offset, end=offset + length)

    def close(self) -> None:
        return


class S3fsAsyncReader:
    def __init__(self, endpoint: str, bucket: str) -> None:
        self._filesystem = filesystem(endpoint, asynchronous=True)
        self._bucket = bucket
        self._session: Any = None

    async def read_async(self, key: str, offset: int, length: int) -> object:
        return await self._filesystem._cat_file(
            f"{self._bucket}/{key}", start=offset, end=offset + length
        )

    async def close_async(self) -> None:
        session = await self._filesystem.set_session()
        await session.close()
