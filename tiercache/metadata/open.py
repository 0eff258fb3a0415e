"""From ``[metadata]`` to a metadata store, of the engine that its URL names."""

from __future__ import annotations

from collections.abc import Mapping

from tiercache.errors import ConfigError
from tiercache.metadata.lmdb_volume import LmdbVolume
from tiercache.policy.urls import OriginUrl, parse_metadata_url
from tiercache.ports import MetadataStore
from tiercache.settings import MetadataSettings, ProfileSettings


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
    place = _place(settings.url)
    if isinstance(place, str):
        return await LmdbVolume.open(
            place,
            url=settings.url,
            deadline_s=settings.deadline_s,
            read_only=read_only,
        )
    profile = _profile(settings, profiles)
    # SlateDB's library takes 100 ms to import and starts threads.
    from tiercache.metadata.object_tier import ObjectTier
    from tiercache.metadata.slatedb_store import SlateStore

    tier = ObjectTier(place, profile, deadline_s=settings.deadline_s, read_only=read_only)
    return await SlateStore.open(
        tier, url=settings.url, deadline_s=settings.deadline_s, read_only=read_only
    )


def _place(url: str) -> str | OriginUrl:
    try:
        return parse_metadata_url(url)
    except ConfigError as error:
        raise ConfigError(f"metadata.url: {error.message}", remedy=error.remedy) from error


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
