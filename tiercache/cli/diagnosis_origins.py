"""What doctor checks of origins: credentials, regions, reachability, clocks. No secret is read
further than to see that it is there, and none is printed.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tiercache.cli.diagnosis import Finding, Level
from tiercache.cli.exits import ExitCode, exit_code_of
from tiercache.errors import ConfigError
from tiercache.policy.urls import OriginUrl, account_of
from tiercache.units import format_duration

if TYPE_CHECKING:
    from tiercache.settings import ProfileSettings, Settings

# S3 refuses signatures that are 15 minutes off; a minute is a clock that nobody keeps.
SKEW_WARN_S = 60.0
SKEW_FAIL_S = 600.0
CLOCK_TIMEOUT_S = 5.0


def used_profiles(settings: Settings) -> dict[tuple[str, str], OriginUrl]:
    """Return one origin for each (profile, scheme) that the mounts use."""
    from tiercache.origins.open import origin_url

    found: dict[tuple[str, str], OriginUrl] = {}
    for mount in settings.mounts:
        url = origin_url(mount.origin)
        found.setdefault((mount.profile, url.scheme), url)
    return found


def credentials(settings: Settings) -> Iterator[Finding]:
    """Say for each profile in use where its credentials come from, and its region."""
    used = used_profiles(settings)
    if not used:
        text = 'no mounts; origin URLs use the profile "default"'
        yield Finding("mounts", Level.OK, text)
    for (name, scheme), url in used.items():
        profile = settings.profiles[name]
        what = f"profile {name} ({scheme})"
        if scheme not in ("s3", "gs", "az") or profile.driver == "fsspec":
            yield Finding(what, Level.OK, f"left to fsspec's {scheme} filesystem")
            continue
        source = credential_source(scheme, profile, os.environ)
        yield Finding(what, Level.OK if source[0] else Level.WARN, *source[1:])
        yield from _place(what, scheme, profile, url)


def credential_source(
    scheme: str, profile: ProfileSettings, environ: Mapping[str, str]
) -> tuple[bool, str, str]:
    """Return whether credentials were seen, from where they would come, and the remedy."""
    if profile.anonymous:
        return True, "anonymous, as configured", ""
    match scheme:
        case "s3":
            return _s3_source(profile, environ)
        case "gs":
            return _gcs_source(environ)
        case _:
            return _azure_source(environ)


def _first(environ: Mapping[str, str], *names: str) -> str:
    return next((name for name in names if environ.get(name)), "")


def _s3_source(profile: ProfileSettings, environ: Mapping[str, str]) -> tuple[bool, str, str]:
    if profile.credentials_profile:
        return True, f"profile {profile.credentials_profile!r} of the AWS configuration", ""
    named = _first(
        environ,
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_PROFILE",
    )
    if named:
        return True, f"environment ({named})", ""
    home = Path(environ.get("HOME", "~")).expanduser()
    for file in (
        environ.get("AWS_SHARED_CREDENTIALS_FILE") or str(home / ".aws/credentials"),
        environ.get("AWS_CONFIG_FILE") or str(home / ".aws/config"),
    ):
        if Path(file).is_file():
            return True, f"file {file}", ""
    remedy = "set AWS_ACCESS_KEY_ID …, run aws configure, or anonymous = true for public buckets"
    return False, "none seen: only an instance role is left", remedy


def _gcs_source(environ: Mapping[str, str]) -> tuple[bool, str, str]:
    named = _first(
        environ, "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST",
    )  # fmt: skip
    if named:
        return True, f"environment ({named})", ""
    home = Path(environ.get("HOME", "~")).expanduser()
    file = home / ".config/gcloud/application_default_credentials.json"
    if file.is_file():
        return True, f"file {file}", ""
    remedy = "gcloud auth application-default login, or anonymous = true for public buckets"
    return False, "none seen: only the metadata server is left", remedy


def _azure_source(environ: Mapping[str, str]) -> tuple[bool, str, str]:
    named = _first(
        environ, "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_TOKEN",
    )  # fmt: skip
    if named:
        return True, f"environment ({named})", ""
    remedy = "set AZURE_CLIENT_ID … or AZURE_STORAGE_ACCOUNT_KEY in the environment"
    return False, "none seen: only a managed identity is left", remedy


def _place(what: str, scheme: str, profile: ProfileSettings, url: OriginUrl) -> Iterator[Finding]:
    if scheme == "az":
        try:
            account = account_of(
                url, profile, account=os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
            )
        except ConfigError as error:
            yield Finding.of_error(what, error, ExitCode.CONFIG)
        else:
            yield Finding(what, Level.OK, f"account {account}")
    if scheme != "s3":
        return
    named = _first(os.environ, "AWS_REGION", "AWS_DEFAULT_REGION")
    if profile.region:
        yield Finding(what, Level.OK, f"region {profile.region}")
    elif named:
        yield Finding(what, Level.OK, f"region {os.environ[named]} ({named})")
    elif profile.endpoint:
        yield Finding(what, Level.OK, f"no region, endpoint {profile.endpoint}")
    else:
        remedy = f'set region = "…" in [profile.{profile.name}]'
        yield Finding(what, Level.WARN, "no region: us-east-1 is taken", remedy)


def origins(settings: Settings) -> Iterator[Finding]:
    """Say whether the origin of each mount answers, and how fast."""
    from tiercache.cli.reach import reach_all

    for reach in reach_all(settings, settings.mounts):
        what = f"origin of {reach.mount.path}"
        if reach.error is None:
            took = format_duration(reach.latency_s)
            yield Finding(what, Level.OK, f"{reach.mount.origin} answers in {took}")
            continue
        code = exit_code_of(type(reach.error))
        # A bucket that is not there is a mistake of the configuration.
        code = ExitCode.CONFIG if code is ExitCode.NOT_FOUND else code
        yield Finding.of_error(what, reach.error, code)


def clocks(settings: Settings) -> Iterator[Finding]:
    """Compare this machine's clock with each server's Date."""
    asked: set[str] = set()
    for (name, scheme), url in used_profiles(settings).items():
        address = server_address(scheme, settings.profiles[name], url)
        if not address or address in asked:
            continue
        asked.add(address)
        skew_s = clock_skew_s(address)
        if skew_s is None:
            continue  # whether it answers is said above
        text = f"{format_duration(abs(skew_s))} {'ahead of' if skew_s > 0 else 'behind'} {address}"
        if abs(skew_s) < SKEW_WARN_S:
            yield Finding("clock", Level.OK, text)
        else:
            level = Level.FAIL if abs(skew_s) > SKEW_FAIL_S else Level.WARN
            yield Finding("clock", level, text, "run an NTP client: signatures depend on it")


def server_address(scheme: str, profile: ProfileSettings, url: OriginUrl) -> str:
    """Return the address of the server behind an origin; empty for what is none of ours."""
    if profile.endpoint:
        return profile.endpoint
    match scheme:
        case "s3":
            region = profile.region or os.environ.get("AWS_REGION") or "us-east-1"
            return f"https://s3.{region}.amazonaws.com"
        case "gs":
            return "https://storage.googleapis.com"
        case "az":
            account = url.account or profile.account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
            return f"https://{account}.blob.core.windows.net" if account else ""
        case _:
            return ""


def clock_skew_s(address: str) -> float | None:
    """Return how far our clock is ahead of the server's, None where it does not say. The Date
    is cut to whole seconds, so half a second is added, and anything below one means nothing."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=CLOCK_TIMEOUT_S)
    try:
        before = time.time()
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date")
        middle = (before + time.time()) / 2
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    try:
        return middle - parsedate_to_datetime(date).timestamp() - 0.5 if date else None
    except ValueError:
        return None
