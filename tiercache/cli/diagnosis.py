"""What doctor checks on this machine: versions, the cache directory, limits of the process."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import resource
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tiercache.cli.exits import ExitCode
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.settings import Settings

# A client keeps an extent open for each object it reads; a DataLoader with eight workers and a
# few thousand shards passes the usual soft limit of 1,024.
WANTED_DESCRIPTORS = 4096
# A million small files cost about a thousand inodes; below this something else will run out.
WANTED_INODES = 10_000
# Memory posing as a disk, layers that copy, and networks: each breaks an assumption of ours.
BAD_FILE_SYSTEMS = {
    "tmpfs": "it is memory: what is cached there is lost at reboot and counts as memory",
    "ramfs": "it is memory: what is cached there is lost at reboot and counts as memory",
    "overlay": "it is a container's layer: slow, and gone with the container",
    "nfs": "locks and shared mappings do not hold over a network",
    "nfs4": "locks and shared mappings do not hold over a network",
    "cifs": "locks and shared mappings do not hold over a network",
    "smb3": "locks and shared mappings do not hold over a network",
    "ceph": "locks and shared mappings do not hold over a network",
    "lustre": "locks and shared mappings do not hold over a network",
    "fuse": "locks and shared mappings are what its daemon makes of them",
}
REQUIRED = ("obstore", "fsspec", "lmdb", "msgspec", "uvloop", "crc32c", "typer", "rich")
OPTIONAL = {
    "s3fs": "s3", "boto3": "s3", "gcsfs": "gcs", "adlfs": "azure", "prometheus-client": "metrics",
}  # fmt: skip
PROBE_BYTES = 64 * 1024


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do. ``code`` counts for failures."""

    what: str
    level: Level
    text: str
    remedy: str = ""
    code: ExitCode = ExitCode.FAILED

    @classmethod
    def of_error(cls, what: str, error: BaseException, code: ExitCode) -> Finding:
        from tiercache.errors import TiercacheError

        if not isinstance(error, TiercacheError):
            return cls(what, Level.FAIL, str(error), "", code)
        text = f"{error.path}: {error.message}" if error.path else error.message
        return cls(what, Level.FAIL, text, error.remedy, code)

    def as_json(self) -> dict[str, str]:
        return {
            "what": self.what,
            "level": str(self.level),
            "text": self.text,
            "remedy": self.remedy,
        }


def versions() -> Iterator[Finding]:
    """Python, the kernel, and the packages we stand on."""
    from tiercache.version import __version__

    yield Finding(
        "version",
        Level.OK,
        f"tiercache {__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}",
    )
    found = {name: _version(name) for name in REQUIRED}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        yield Finding("packages", Level.FAIL, f"missing: {', '.join(missing)}", remedy)
    extra = {name: _version(name) for name in OPTIONAL}
    present = {name: version for name, version in (found | extra).items() if version}
    yield Finding("packages", Level.OK, ", ".join(f"{n} {v}" for n, v in present.items()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cache_directory(settings: Settings) -> Iterator[Finding]:
    """The directory: that it can be made and locked, its file system, its space and modes."""
    directory = Path(settings.cache.dir).absolute()
    base = directory
    while not base.exists():
        base = base.parent
    yield _file_system(base)
    yield from _space(settings, base)
    if base == directory:
        yield from _modes(directory)
    yield from _works(base, directory)


def _file_system(directory: Path) -> Finding:
    kind = file_system_of(directory)
    reason = BAD_FILE_SYSTEMS.get("fuse" if kind.startswith("fuse") else kind)
    if reason is None:
        return Finding("file system", Level.OK, f"{directory} is on {kind}")
    return Finding(
        "file system",
        Level.WARN,
        f"{directory} is on {kind}: {reason}",
        "set cache.dir to a local disk, best an NVMe device of its own",
    )


def file_system_of(directory: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system that holds a directory, "unknown" where it is not told.
    The last of the longest mount points that cover it counts: it lies on top."""
    resolved = str(directory.resolve())
    best, kind = "", "unknown"
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        covers = point == "/" or resolved == point or resolved.startswith(point + "/")
        if covers and len(point) >= len(best):
            best, kind = point, found
    return kind


def _space(settings: Settings, base: Path) -> Iterator[Finding]:
    from tiercache.settings import TotalBytes

    status = os.statvfs(base)
    available = status.f_bavail * status.f_frsize
    total = status.f_blocks * status.f_frsize
    used = _used_by_cache(Path(settings.cache.dir))
    limit = settings.cache.limit
    if isinstance(limit, TotalBytes):
        text = (
            f"capacity {format_bytes(limit.capacity_bytes)}, used {format_bytes(used)}, "
            f"free {format_bytes(available)}"
        )
        short = limit.capacity_bytes > used + available
        remedy = "lower cache.capacity, or make room: the cache evicts earlier than it says"
    else:
        text = f"fills {format_bytes(total)} until {limit.ratio:.0%} are free, "
        text += f"free {format_bytes(available)}, used {format_bytes(used)}"
        short = available < total * limit.ratio and not used
        remedy = "make room, lower cache.free_space, or set cache.capacity"
    level = Level.WARN if short else Level.OK
    yield Finding("space", level, text, remedy if short else "")
    if status.f_files and status.f_favail < WANTED_INODES:
        yield Finding(
            "inodes", Level.WARN, f"{status.f_favail} free", "make room: small files need inodes"
        )


def _used_by_cache(directory: Path) -> int:
    from tiercache.agent.fsck import disk_usage

    return disk_usage(str(directory)) if directory.exists() else 0


def _modes(directory: Path) -> Iterator[Finding]:
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        yield Finding(
            "owner", Level.FAIL, f"{directory} belongs to user {status.st_uid}",
            "use a directory of your own", ExitCode.CONFIG,
        )  # fmt: skip
    elif mode & 0o077 and (directory / "superblock.json").exists():
        remedy = f"chmod 700 {directory}"
        yield Finding("modes", Level.WARN, f"others may enter {directory} ({mode:o})", remedy)


def _works(base: Path, directory: Path) -> Iterator[Finding]:
    """Try what the cache will do there, in a folder that is gone afterwards."""
    where = directory if directory.exists() else base
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=where) as folder:
            _try_lock_and_map(Path(folder))
            _try_index(Path(folder))
    except (OSError, ValueError) as error:
        yield Finding(
            "device", Level.FAIL, f"{where}: {error}",
            "set cache.dir to a writable local file system", ExitCode.CONFIG,
        )  # fmt: skip
    else:
        yield Finding("device", Level.OK, "writes, locks, mappings and the index work")


def _try_lock_and_map(folder: Path) -> None:
    """Raises OSError where writing, flock or shared mappings do not do what they say."""
    with open(folder / "probe", "w+b") as file:
        file.write(os.urandom(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(folder / "probe", "rb") as other:
            try:
                fcntl.flock(other.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise OSError("a lock does not keep others out")
        with mmap.mmap(file.fileno(), PROBE_BYTES) as mapped:
            mapped[:4] = b"test"
            if os.pread(file.fileno(), 4, 0) != b"test":
                raise OSError("a shared mapping and the file differ")


def _try_index(folder: Path) -> None:
    """Raises OSError or FormatError (a ValueError) where LMDB does not work."""
    from tiercache.metadata.lmdb_store import LmdbStore

    store = LmdbStore(folder / "index.lmdb", map_bytes=16 << 20)
    try:
        store.commit({b"key": b"value"})
        if store.get(b"key") != b"value":
            raise OSError("the index does not return what was written")
    finally:
        store.close()


def limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= WANTED_DESCRIPTORS:
        yield Finding("descriptors", Level.OK, f"{soft} may be open")
    else:
        yield Finding(
            "descriptors",
            Level.WARN,
            f"only {soft} may be open (hard limit {hard})",
            f"ulimit -n {WANTED_DESCRIPTORS}, or LimitNOFILE= in the unit file",
        )
