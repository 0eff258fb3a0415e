"""From ``[metadata]`` to a metadata store, of the engine that its URL names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tiercache.errors import ConfigError
from tiercache.metadata.lmdb_volume import LmdbVolume
from tiercache.policy.urls import OriginUrl, parse_origin_url
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings

SCHEMES = ("lmdb", "s3", "az", "gs", "file")
_SPELLING = (
    "write lmdb:/directory on a block volume, or s3://bucket/prefix, az://container/prefix, "
    "gs://bucket/prefix or file:///directory"
)
# What every object store and SlateDB spell alike.
_PREFIX = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+(?:/(?=.)|$))+")


async def open_metadata(
    settings: MetadataSettings, profiles: Mapping[str, ProfileSettings], *, read_only: bool = False
) -> MetadataStore:
    """Open the store, making it where there is none yet; one on an object store is taken over.

    With ``read_only`` it is neither made nor taken over, and another agent may go on writing:
    what that commits is seen (on an object store with about a second's delay), ``commit`` and
    ``check_owner`` raise Unsupported. The caller closes it, on the event loop that opened it.

    Raises ConfigError (the URL, the profile, a directory of other files), MetadataUnavailable
    (an agent has the volume; nothing answers), MetadataFenced (another agent opened it at the
    same moment), NotFound (no bucket; no store to read), AccessDenied, Unsupported (a store
    that ignores put-if-absent), FormatError.
    """
    if settings.url.startswith("lmdb:"):
        return await LmdbVolume.open(
            lmdb_directory(settings.url),
            url=settings.url,
            deadline_s=settings.deadline_s,
            read_only=read_only,
        )
    url = object_url(settings.url)
    profile = _profile(settings, profiles)
    # SlateDB's library takes 100 ms to import and starts threads.
    from tiercache.metadata.object_tier import ObjectTier
    from tiercache.metadata.slatedb_store import SlateStore

    tier = ObjectTier(url, profile, deadline_s=settings.deadline_s, read_only=read_only)
    return await SlateStore.open(
        tier, url=settings.url, deadline_s=settings.deadline_s, read_only=read_only
    )


def lmdb_directory(url: str) -> str:
    """Return the directory of an ``lmdb:`` URL, without a slash at its end. Raises ConfigError."""
    path = url.removeprefix("lmdb:").removesuffix("/")
    if path.startswith("//") or not os.path.isabs(path) or os.path.normpath(path) != path:
        raise ConfigError(
            f"metadata.url: not an absolute directory: {url}", remedy="write lmdb:/directory"
        )
    return path


def object_url(url: str) -> OriginUrl:
    """Parse the URL of a store on an object store. Raises ConfigError."""
    try:
        parsed = parse_origin_url(url)
    except ConfigError as error:
        raise ConfigError(f"metadata.url: {error.message}", remedy=_SPELLING) from error
    if parsed.scheme not in SCHEMES:
        raise ConfigError(f"metadata.url: {parsed.scheme}:// holds no metadata", remedy=_SPELLING)
    if parsed.prefix and not _PREFIX.fullmatch(parsed.prefix):
        raise ConfigError(
            f"metadata.url: the prefix {parsed.prefix!r} cannot be kept",
            remedy="letters, digits and ._~- between single slashes",
        )
    return parsed


def _profile(
    settings: MetadataSettings, profiles: Mapping[str, ProfileSettings]
) -> ProfileSettings:
    try:
        profile = profiles[settings.profile]
    except KeyError:
        raise ConfigError(
            f"metadata.profile: there is no profile {settings.profile!r}",
            remedy=f"add [profile.{settings.profile}], or name one of {', '.join(profiles)}",
        ) from None
    if profile.driver != "obstore":
        raise ConfigError(
            f'metadata.profile: profile {profile.name} has driver = "{profile.driver}"',
            remedy='name a profile with driver = "obstore": SlateDB knows no other way',
        )
    return profile
