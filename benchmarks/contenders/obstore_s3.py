"""obstore straight: what the network and the server give to whoever keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.contender import Contender, Object, Recipe
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.workload import State, Workload
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

if TYPE_CHECKING:
    from benchmarks.lab import Lab

KEEPS_NOTHING = "keeps nothing: each read goes to the origin"


def store(endpoint: str, bucket: str) -> Any:
    """Return an obstore store on a benchmark's server or the proxy before it."""
    from obstore.store import S3Store

    return S3Store(
        bucket,
        endpoint=endpoint,
        region=REGION,
        access_key_id=S3_ACCESS_KEY,
        secret_access_key=S3_SECRET_KEY,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


class Straight(Contender):
    """A client without a cache, which can only be cold."""

    role: Role = "rival"

    def __init__(self, lab: Lab, url: str) -> None:
        self._arguments = (url or lab.server.endpoint, lab.bucket)

    def why_not(self, workload: Workload) -> str:
        return "" if workload.state == "cold" else KEEPS_NOTHING

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        return


@contender("obstore")
class Obstore(Straight):
    """``get_range``, from threads."""

    name = "obstore"

    def recipe(self) -> Recipe:
        return Recipe(ObstoreReader, self._arguments)


@contender("obstore asyncio")
class ObstoreAsyncio(Straight):
    """``get_range_async``, as tasks."""

    name = "obstore asyncio"

    def recipe(self) -> Recipe:
        return Recipe(ObstoreAsyncReader, self._arguments)


@contender("obstore asyncio, one process")
class ObstoreOneProcess(ObstoreAsyncio):
    """The same with all readers as tasks of one process."""

    name = "obstore asyncio, one process"
    one_process = True


class ObstoreReader:
    def __init__(self, endpoint: str, bucket: str) -> None:
        self._get_range = store(endpoint, bucket).get_range

    def read(self, key: str, offset: int, length: int) -> object:
        return self._get_range(key, start=offset, length=length)

    def close(self) -> None:
        return


class ObstoreAsyncReader:
    def __init__(self, endpoint: str, bucket: str) -> None:
        self._get_range = store(endpoint, bucket).get_range_async

    async def read_async(self, key: str, offset: int, length: int) -> object:
        return await self._get_range(key, start=offset, length=length)

    async def close_async(self) -> None:
        return
