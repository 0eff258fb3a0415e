"""The cache directory: its lock, its format, its private modes. One agent a directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tiercache.agent import kept
from tiercache.errors import AccessDenied, ConfigError, FormatError
from tiercache.records import FORMAT_VERSION

SUPERBLOCK = "superblock.json"
LOCK = "agent.lock"
SOCKET = "agent.sock"
INDEX = "index.lmdb"
STATE = "shared.state"
LEASES = "leases.state"
LOG = "agent.log"
AUDIT = "qos-audit.jsonl"
QOS_POLICY = "qos-policy.toml"
QOS_LAST_GOOD = "qos-last-good.toml"
QOS_OVERRIDES = "qos-overrides.json"
QOS_CALIBRATION = "qos-calibration.json"
EXTENTS = "extents"

# Whoever starts an agent opens its log first; superblocks are written under another name.
_OURS_AT_FIRST = re.compile(rf"{re.escape(LOG)}|superblock\..*").fullmatch


@dataclass(frozen=True, slots=True)
class CacheDirectory:
    """Where everything lies. Making one touches nothing."""

    root: Path

    @property
    def index(self) -> str:
        return str(self.root / INDEX)

    @property
    def state(self) -> str:
        return str(self.root / STATE)

    @property
    def leases(self) -> str:
        return str(self.root / LEASES)

    @property
    def qos_policy(self) -> Path:
        return self.root / QOS_POLICY

    @property
    def qos_last_good(self) -> Path:
        return self.root / QOS_LAST_GOOD

    @property
    def qos_overrides(self) -> Path:
        return self.root / QOS_OVERRIDES

    @property
    def qos_calibration(self) -> Path:
        return self.root / QOS_CALIBRATION

    @property
    def extents(self) -> str:
        return str(self.root / EXTENTS)

    @property
    def log(self) -> str:
        return str(self.root / LOG)

    @property
    def audit(self) -> str:
        """The log of policy changes and denials; the one before it ends in ".1"."""
        return str(self.root / AUDIT)

    @property
    def socket(self) -> str:
        """The socket's path; it may be longer than the kernel takes (``connect``, ``bind``)."""
        return str(self.root / SOCKET)

    def prepare(self) -> None:
        """Make the directory with private modes and write or check its superblock.

        Raises FormatError for a directory of another format, AccessDenied for another user's,
        ConfigError where it cannot be made or holds other files.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the cache directory: {error.strerror}",
                path=str(self.root),
                remedy="name a writable place with --cache-dir or cache.dir",
            ) from error
        self._check_ours()
        self._check_format()

    def _check_ours(self) -> None:
        status = self.root.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise AccessDenied(
                "the cache directory belongs to another user",
                path=str(self.root),
                remedy="name one of your own with --cache-dir or cache.dir",
            )
        # What agents make comes after the superblock, so its absence is looked at last.
        foreign = [file.name for file in self.root.iterdir() if not _OURS_AT_FIRST(file.name)]
        if foreign and not (self.root / SUPERBLOCK).exists():
            raise ConfigError(
                "the directory holds other files and is not a cache",
                path=str(self.root),
                remedy="name an empty or new directory",
            )
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            self.root.chmod(0o700)

    def _check_format(self) -> None:
        path = self.root / SUPERBLOCK
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            self._write_superblock(path)
            return
        except ValueError as error:
            raise FormatError(
                "the superblock is damaged", path=str(path), remedy="remove the cache directory"
            ) from error
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise FormatError(
                f"the cache directory has format {version}, this version reads {FORMAT_VERSION}",
                path=str(self.root),
                remedy="use the tiercache that made it, or name another --cache-dir",
            )

    def _write_superblock(self, path: Path) -> None:
        content = {
            "magic": "tiercache",
            "format_version": FORMAT_VERSION,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        kept.publish(path, json.dumps(content).encode())

    def lock(self) -> int | None:
        """Return a descriptor that holds the agent's lock, None where another agent has it."""
        fd = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd
