"""Ways of a training job to its files: ours, the rivals', and plain files as the bound.

A source is made in the benchmark's process and brings its cache into a state there. What reads is
opened by its way in the job's own process, or in each of its workers.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import page_cache
from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Missing, Role
from benchmarks.lab import BUCKET, MOUNT, Lab, path_of
from benchmarks.workload import State
from tiercache.namespace import Namespace
from tiercache.settings import Settings
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

COPIES_IN_FLIGHT = 8
GETS_IN_FLIGHT = 64  # of obstore in one worker: what works best of 16, 64 and 256 here


class Way(NamedTuple):
    """How a job's process opens the files: a module's function and picklable arguments. What it
    makes has of these methods what the workload asks for:

    ``open(key)`` for reading from front to end; ``read_many(keys)``, whole objects in order;
    ``arrow(folder)``, a pyarrow filesystem and the folder's path or files there; ``close()``.
    """

    make: Callable[..., Any]
    arguments: tuple[Any, ...]

    def opened(self) -> Any:
        return self.make(*self.arguments)


class PlainFiles:
    """Local files, as if the data set had been copied to the node beforehand."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def open(self, key: str) -> Any:
        return open(f"{self._folder}/{key}", "rb")

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        return [Path(f"{self._folder}/{key}").read_bytes() for key in keys]

    def arrow(self, folder: str) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), f"{self._folder}/{folder}"

    def close(self) -> None:
        return


class NamespaceFiles:
    """Our own API."""

    def __init__(self, settings: Settings) -> None:
        self.namespace = Namespace(settings)

    def open(self, key: str) -> Any:
        return self.namespace.open(path_of(key))

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        return self.namespace.read_many([(path_of(key), 0, None) for key in keys])

    def arrow(self, folder: str) -> tuple[Any, list[str]]:
        """Real files: each object is fetched whole, then pyarrow maps it itself."""
        from pyarrow.fs import LocalFileSystem

        names = [entry.name for entry in self.namespace.list(path_of(folder))]
        paths = [f"{path_of(folder)}/{name}" for name in names]
        return LocalFileSystem(), [self.namespace.local_path(path, pin=False) for path in paths]

    def close(self) -> None:
        self.namespace.close()


class FsspecFiles:
    """Any fsspec filesystem. ``root`` is what stands before a key."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self.filesystem = filesystem
        self._root = root

    def open(self, key: str) -> Any:
        return self.filesystem.open(f"{self._root}/{key}", "rb")

    def read_many(self, keys: Sequence[str]) -> list[bytes]:
        found = self.filesystem.cat([f"{self._root}/{key}" for key in keys])
        return list(found.values())

    def arrow(self, folder: str) -> tuple[Any, str]:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.filesystem)), f"{self._root}/{folder}"

    def close(self) -> None:
        return


def s3fs_files(endpoint: str) -> FsspecFiles:
    return FsspecFiles(_s3fs(endpoint), BUCKET)


def cached_files(endpoint: str, folder: str) -> FsspecFiles:
    """filecache over s3fs, without a check of freshness, which costs a request an open."""
    import fsspec

    cached = fsspec.filesystem(
        "filecache",
        fs=_s3fs(endpoint),
        cache_storage=folder,
        check_files=False,
        skip_instance_cache=True,
    )
    return FsspecFiles(cached, BUCKET)


def _s3fs(endpoint: str) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        key=S3_ACCESS_KEY,
        secret=S3_SECRET_KEY,
        endpoint_url=endpoint,
        client_kwargs={"region_name": REGION},
        skip_instance_cache=True,
    )


class ObstoreFiles:
    """obstore on an event loop."""

    def __init__(self, endpoint: str) -> None:
        from obstore.store import S3Store

        self._loop = asyncio.new_event_loop()
        self._store: Any = S3Store(
            BUCKET,
            endpoint=endpoint,
            region=REGION,
            access_key_id=S3_ACCESS_KEY,
            secret_access_key=S3_SECRET_KEY,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def read_many(self, keys: Sequence[str]) -> list[Any]:
        return self._loop.run_until_complete(self._read_many(keys))

    async def _read_many(self, keys: Sequence[str]) -> list[Any]:
        gate = asyncio.Semaphore(GETS_IN_FLIGHT)

        async def one(key: str) -> Any:
            async with gate:
                return await (await self._store.get_async(key)).bytes_async()

        return await asyncio.gather(*(one(key) for key in keys))

    def close(self) -> None:
        self._loop.close()


class ArrowFiles:
    """pyarrow's own S3 filesystem, in C++."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def arrow(self, folder: str) -> tuple[Any, str]:
        from pyarrow.fs import S3FileSystem

        filesystem = S3FileSystem(
            access_key=S3_ACCESS_KEY,
            secret_key=S3_SECRET_KEY,
            endpoint_override=self._endpoint,
            region=REGION,
        )
        return filesystem, f"{BUCKET}/{folder}"

    def close(self) -> None:
        return


# -- sources --------------------------------------------------------------------------------


def _nothing(_objects: Sequence[Object], _state: State) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``prepare`` brings it into a state, before each round but in ``hot``, as far as it can
    without a job: a cache that only reading fills is warm after a run that does not count."""

    name: str
    role: Role
    way: Way
    prepare: Callable[[Sequence[Object], State], None] = _nothing
    namespace: Namespace | None = None


Maker = Callable[[Lab, str, Namespace, str], Source]


def chosen(
    lab: Lab, names: Sequence[str], namespace: Namespace, *, endpoint: str = ""
) -> tuple[list[Source], list[Missing]]:
    """Return the sources of these names in order, and those that cannot run here. ``endpoint`` is
    where a proxy stands in front of the server; the namespace's settings name it too. Raises
    ValueError for a name that is none."""
    sources, missing = [], []
    for name in names:
        if name not in SOURCES:
            raise ValueError(f"no source {name!r} among {sorted(SOURCES)}")
        module, make = SOURCES[name]
        why = missing_package(module) if module else ""
        if why:
            missing.append(Missing(name=name, why=why))
        else:
            sources.append(make(lab, name, namespace, endpoint or lab.server.endpoint))
    return sources, missing


def _plain(lab: Lab, name: str, _namespace: Namespace, _endpoint: str) -> Source:
    folder = lab.folder("plain")

    def prepare(objects: Sequence[Object], state: State) -> None:
        left = [found for found in objects if not (folder / found.key).exists()]
        for directory in {(folder / found.key).parent for found in left}:
            directory.mkdir(parents=True, exist_ok=True)
        client = lab.server.client

        def copy(found: Object) -> None:
            body = client.get_object(Bucket=BUCKET, Key=found.key)["Body"]
            (folder / found.key).write_bytes(body.read())

        with ThreadPoolExecutor(COPIES_IN_FLIGHT) as pool:
            list(pool.map(copy, left))
        if state == "nvme":
            page_cache.drop(folder / found.key for found in objects)

    return Source(name=name, role="bound", way=Way(PlainFiles, (str(folder),)),
                  prepare=prepare)  # fmt: skip


def _prepared(namespace: Namespace) -> Callable[[Sequence[Object], State], None]:
    def prepare(objects: Sequence[Object], state: State) -> None:
        folder = f"{MOUNT}/{objects[0].key.partition('/')[0]}"
        match state:
            case "cold" | "half-warm":
                namespace.evict(folder)
                namespace.invalidate(folder)
            case "hot" | "nvme":
                namespace.prefetch(folder, background=False).wait()
        if state == "half-warm":
            half = [f"{MOUNT}/{found.key}" for found in objects[::2]]
            namespace.prefetch(half, background=False).wait()
        if state == "nvme":
            page_cache.drop_below(Path(namespace.settings.cache.dir) / "extents")

    return prepare


def _ours(lab: Lab, name: str, namespace: Namespace, _endpoint: str) -> Source:
    if name == "fsspec tiercache":
        way = Way(FsspecFiles, (lab.filesystem(namespace), MOUNT))
    else:
        way = Way(NamespaceFiles, (namespace.settings,))
    return Source(name=name, role="ours", way=way, prepare=_prepared(namespace),
                  namespace=namespace)  # fmt: skip


def _filecache(lab: Lab, name: str, _namespace: Namespace, endpoint: str) -> Source:
    folder = lab.folder("filecache")

    def prepare(_objects: Sequence[Object], state: State) -> None:
        if state == "cold":
            shutil.rmtree(folder)
            folder.mkdir()
        if state == "nvme":
            page_cache.drop_below(folder)

    way = Way(cached_files, (endpoint, str(folder)))
    return Source(name=name, role="rival", way=way, prepare=prepare)


def _straight(make: Callable[[str], Any]) -> Maker:
    """Those that keep nothing: every epoch is a first one."""

    def source(_lab: Lab, name: str, _namespace: Namespace, endpoint: str) -> Source:
        return Source(name=name, role="rival", way=Way(make, (endpoint,)))

    return source


# By name: the module without which it cannot run, and what makes it.
SOURCES: dict[str, tuple[str, Maker]] = {
    "plain files": ("", _plain),
    "ns.open": ("", _ours),
    "ns.read_many": ("", _ours),
    "ns.local_path": ("", _ours),
    "fsspec tiercache": ("", _ours),
    "s3fs": ("s3fs", _straight(s3fs_files)),
    "fsspec filecache over s3fs": ("s3fs", _filecache),
    "obstore asyncio": ("", _straight(ObstoreFiles)),
    "pyarrow S3FileSystem": ("pyarrow", _straight(ArrowFiles)),
}
