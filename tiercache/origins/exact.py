"""Keys that obstore cannot name, through each cloud's own SDK.

obstore parses keys as paths: it refuses empty, ``.`` and ``..`` segments and control characters,
and silently strips a slash at either end. Object stores know none of these rules. An ExactNames
speaks of keys verbatim; it is slower, and each needs an optional package.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from tiercache.errors import TiercacheError, Unsupported
from tiercache.model import ObjectInfo
from tiercache.ports import Buffer, Condition, Fetched, ListPage

_T = TypeVar("_T")
# Odd keys are rare; a listing holds one thread while it waits for a page.
_THREADS = 8
_ODD_KEY = re.compile(r"//|(?:^|/)\.{1,2}(?:/|$)|[\x00-\x1f\x7f]")


def obstore_can_list(prefix: str) -> bool:
    """Whether obstore lists exactly what starts with ``prefix``: it matches whole segments."""
    if not prefix:
        return True
    return prefix[-1] == "/" and prefix[0] != "/" and not _ODD_KEY.search(prefix)


def obstore_can_name(key: str) -> bool:
    """Whether obstore reads ``key`` as it stands."""
    return bool(key) and key[-1] != "/" and key[0] != "/" and not _ODD_KEY.search(key)


class ExactNames(Protocol):
    """Blocking calls on one bucket, thread safe. Errors are ours, as of the Origin port."""

    def head(self, key: str) -> ObjectInfo: ...

    def get(self, key: str, start: int, end: int | None, token: str | None) -> Fetched: ...

    def put(self, key: str, data: Buffer, condition: Condition, write_id: str) -> ObjectInfo: ...

    def delete(self, key: str) -> None: ...

    def copy(self, source_key: str, target_key: str) -> None: ...

    def list(
        self, prefix: str, *, recursive: bool, after: str, limit: int | None, position: str
    ) -> Iterator[ListPage]:
        """Yield pages in key order, of keys past ``after`` (in UTF-8 order), from a ``position``
        that a page told; pages tell theirs."""
        ...


class ExactThreads:
    """Runs an ExactNames beside the event loop. Owned by the event loop.

    ``build`` makes it at first use: importing a vendor's SDK costs up to 0.3 s and 40 MB.
    A cancelled call returns at once; its one request ends by its own time-out.
    """

    def __init__(self, build: Callable[[], ExactNames], *, url: str) -> None:
        # Constant after construction
        self._build = build
        self._url = url
        # Owned by the event loop
        self._building: asyncio.Future[ExactNames] | None = None
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[ExactNames], _T], *, key: str) -> _T:
        names = await self._names(key)
        return await asyncio.get_running_loop().run_in_executor(self._executor(), call, names)

    async def list(
        self,
        prefix: str,
        *,
        recursive: bool,
        after: str = "",
        limit: int | None = None,
        position: str = "",
    ) -> AsyncIterator[ListPage]:
        pages = await self.run(
            lambda names: names.list(
                prefix, recursive=recursive, after=after, limit=limit, position=position
            ),
            key=prefix,
        )
        loop = asyncio.get_running_loop()
        while (page := await loop.run_in_executor(self._executor(), next, pages, None)) is not None:
            yield page

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tiercache-exact")
        return self._pool

    async def _names(self, key: str) -> ExactNames:
        if self._building is None:
            loop = asyncio.get_running_loop()
            self._building = loop.run_in_executor(self._executor(), self._build)
        building = self._building
        try:
            return await asyncio.shield(building)
        except TiercacheError:
            self._building = None  # credentials may be there next time
            raise
        except ImportError as error:
            raise Unsupported(
                f"the name {key!r} needs the cloud's own client, which is not installed",
                path=self._url,
                remedy=f"pip install 'tiercache[{_EXTRAS[self._url.partition(':')[0]]}]'",
            ) from error


_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
