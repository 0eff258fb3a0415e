"""What doctor checks of the metadata store: its place, who may read it, whether it answers and
keeps the one condition on which taking it over rests."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tiercache.cli.diagnosis import BAD_FILE_SYSTEMS, Finding, Level, file_system_of
from tiercache.cli.exits import ExitCode, exit_code_of
from tiercache.cli.reach import DEADLINE_S, hurried
from tiercache.errors import NotFound, TiercacheError
from tiercache.policy.urls import OriginUrl, parse_metadata_url
from tiercache.units import format_duration

if TYPE_CHECKING:
    from tiercache.settings import Settings

WHAT = "metadata store"


def metadata_store(settings: Settings, *, network: bool) -> Iterator[Finding]:
    """Look at the place, then ask. Nothing is made, and no agent loses the store by it."""
    if not settings.metadata.url:
        yield Finding(WHAT, Level.OK, "none: what is known goes with the cache directory")
        return
    place = parse_metadata_url(settings.metadata.url)
    if isinstance(place, str):
        yield from _volume(Path(place), Path(settings.cache.dir))
    elif not network:
        return
    else:
        yield from _conditions(settings, place)
    yield _answer(settings)


def _volume(directory: Path, cache: Path) -> Iterator[Finding]:
    base, cache_base = _existing(directory), _existing(cache)
    kind = file_system_of(base)
    reason = BAD_FILE_SYSTEMS.get("fuse" if kind.startswith("fuse") else kind)
    if reason is not None:
        remedy = "name a directory of a block volume, or a bucket"
        yield Finding(WHAT, Level.WARN, f"{directory} is on {kind}: {reason}", remedy)
    elif base.stat().st_dev == cache_base.stat().st_dev:
        yield Finding(
            WHAT,
            Level.WARN,
            f"{directory} is on the device of the cache, and lost with it",
            "name a directory of another volume, or a bucket",
        )
    mode = stat.S_IMODE(base.stat().st_mode)
    if base == directory and mode & 0o077:
        yield Finding(
            WHAT,
            Level.WARN,
            f"others may enter {directory} ({mode:o})",
            f"chmod 700 {directory}",
        )
    if not os.access(base, os.W_OK | os.X_OK):
        yield Finding(
            WHAT, Level.FAIL, f"{base} cannot be written", f"chown it to user {os.geteuid()}",
            ExitCode.CONFIG,
        )  # fmt: skip


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory


def _conditions(settings: Settings, url: OriginUrl) -> Iterator[Finding]:
    """Write one small object beside the store, with a condition that must fail, and remove it."""
    if url.scheme == "file":
        return
    try:
        honoured = asyncio.run(_honours_put_if_absent(settings, url))
    except TiercacheError as error:
        yield Finding.of_error(WHAT, error, exit_code_of(type(error)))
        return
    if not honoured:
        yield Finding(
            WHAT,
            Level.FAIL,
            f"{url} accepts put-if-absent and ignores it: two agents could both own the store",
            "name another object store, or a block volume",
            ExitCode.CONFIG,
        )


async def _honours_put_if_absent(settings: Settings, url: OriginUrl) -> bool:
    from tiercache.clock import BootClock
    from tiercache.compose import open_wrapped, probe_writes
    from tiercache.origins.endpoint import Endpoints

    clock = BootClock()
    profile = hurried(settings.profiles[settings.metadata.profile])
    origin = open_wrapped(url, profile, clock, Endpoints(clock=clock))
    try:
        return (await probe_writes(origin, f"{url.prefix}.doctor/")).conditional_put
    finally:
        await origin.close()


def _answer(settings: Settings) -> Finding:
    url = settings.metadata.url
    started = time.monotonic()
    try:
        identity, sequence = asyncio.run(_read(settings))
    except NotFound:
        return Finding(WHAT, Level.OK, f"{url} is empty: the first agent makes the store")
    except TiercacheError as error:
        return Finding.of_error(WHAT, error, exit_code_of(type(error)))
    took = format_duration(time.monotonic() - started)
    return Finding(WHAT, Level.OK, f"{url} answers in {took}: {identity}, commit {sequence}")


async def _read(settings: Settings) -> tuple[str, int]:
    from tiercache.metadata.open import open_metadata

    metadata = msgspec.structs.replace(
        settings.metadata, deadline_s=min(settings.metadata.deadline_s, DEADLINE_S)
    )
    store = await open_metadata(metadata, settings.profiles, read_only=True)
    try:
        return store.identity, store.sequence
    finally:
        await store.close()
