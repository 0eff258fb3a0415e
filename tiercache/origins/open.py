"""From an origin URL and a profile to an origin, raw: no retries, no breaker, no limits.

``compose`` wraps what this returns. Nothing here asks the network.
"""

from __future__ import annotations

import importlib.util

from fsspec import available_protocols

from tiercache.clock import Clock
from tiercache.cloud.obstore_stores import build_store, environment_account
from tiercache.errors import (
    ConfigError,
)
from tiercache.origins.exact import ExactNames
from tiercache.origins.fsspec_origin import FsspecOrigin
from tiercache.origins.local_origin import LocalOrigin
from tiercache.origins.obstore_origin import ObstoreOrigin
from tiercache.policy.urls import CLOUD_SCHEMES, OriginUrl, identity, parse_origin_url
from tiercache.ports import Origin, OriginCapabilities
from tiercache.settings import ProfileSettings

# What each cloud itself documents; a server behind an endpoint of its own is to be probed.
_CLOUD = OriginCapabilities(
    conditional_get=True,
    conditional_put=True,
    conditional_replace=True,
    write_id=True,
    copy=True,
)


def origin_url(url: OriginUrl | str) -> OriginUrl:
    """Parse, knowing every protocol that fsspec knows here. Raises ConfigError."""
    if isinstance(url, OriginUrl):
        return url
    return parse_origin_url(url, more_schemes=frozenset(available_protocols()))


def origin_identity(url: OriginUrl | str, profile: ProfileSettings) -> str:
    """Return the identity under which this origin's data is cached, without opening it."""
    return identity(origin_url(url), profile, account=environment_account(profile))


def open_origin(url: OriginUrl | str, profile: ProfileSettings, *, clock: Clock) -> Origin:
    """Return the origin of one bucket; the URL's prefix is the caller's to add to keys.

    Each call of the origin is bounded by the profile's time-outs and made once. Raises
    ConfigError where URL and profile do not fit, Unsupported where a package is missing.
    """
    parsed = origin_url(url)
    name = origin_identity(parsed, profile)
    if profile.driver == "fsspec" or parsed.scheme not in CLOUD_SCHEMES:
        kind = LocalOrigin if parsed.scheme == "file" else FsspecOrigin
        return kind(parsed, profile, identity=name)
    if profile.driver != "obstore":
        raise ConfigError(
            f'profile {profile.name}: driver = "{profile.driver}" is unknown',
            remedy='driver is "obstore" or "fsspec"',
        )
    if profile.options:
        raise ConfigError(
            f"profile {profile.name}: options go to an fsspec filesystem",
            remedy='set driver = "fsspec", or remove them',
        )

    def exact() -> ExactNames:
        return _exact_names(parsed, profile, name)

    has_botocore = parsed.scheme == "s3" and _installed("botocore")
    return ObstoreOrigin(
        build_store(parsed, profile),
        url=name,
        capabilities=_CLOUD,
        exact=exact,
        exact_lists=has_botocore,
        exact_uploads=has_botocore,
    )


def _exact_names(url: OriginUrl, profile: ProfileSettings, name: str) -> ExactNames:
    """Import the cloud's own SDK. Raises ImportError where it is missing."""
    match url.scheme:
        case "s3":
            from tiercache.origins.exact_s3 import ExactS3

            return ExactS3(url, profile, identity=name)
        case "gs":
            from tiercache.origins.exact_gcs import ExactGcs

            return ExactGcs(url, profile, identity=name)
        case _:
            from tiercache.origins.exact_azure import ExactAzure

            return ExactAzure(url, profile, identity=name)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
