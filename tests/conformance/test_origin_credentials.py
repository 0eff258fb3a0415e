"""Credentials come from the clouds' own chains, and never show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tiercache.clock import BootClock
from tiercache.cloud.obstore_errors import scrubbed
from tiercache.cloud.obstore_stores import BotoCredentials, uses_boto3
from tiercache.errors import AccessDenied, ConfigError
from tiercache.origins.open import open_origin
from tiercache.settings import ProfileSettings
from tiercache.testing.object_servers import (
    S3_ACCESS_KEY,
    S3_SECRET_KEY,
    AzureServer,
    ObjectServer,
    S3Server,
)

CLOCK = BootClock()
ENV_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture
def no_env_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENV_KEYS:
        monkeypatch.delenv(name, raising=False)


def write_credentials(path: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    path.write_text(
        f"[work]\naws_access_key_id = {S3_ACCESS_KEY}\naws_secret_access_key = {secret}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))


@pytest.mark.emulator
async def test_a_named_profile_of_the_credentials_file(
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_env_keys: None,
) -> None:
    write_credentials(tmp_path / "credentials", monkeypatch, S3_SECRET_KEY)
    bucket = new_bucket(s3)
    profile = msgspec.structs.replace(s3.profile(), credentials_profile="work")
    origin = open_origin(s3.url(bucket), profile, clock=CLOCK)
    await origin.put("k", b"1")  # through obstore
    await origin.put("odd//k", b"2")  # through botocore
    assert bytes((await origin.get("k")).data) == b"1"
    await origin.close()


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["work", ""])
async def test_none_found(
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    monkeypatch: pytest.MonkeyPatch,
    no_env_keys: None,
    name: str,
) -> None:
    profile = msgspec.structs.replace(s3.profile(), credentials_profile=name)
    origin = open_origin(s3.url(new_bucket(s3)), profile, clock=CLOCK)
    calls = (origin.head("k"), origin.head("odd//k"), origin.put("k", b"1"))
    for call in calls:
        with pytest.raises(AccessDenied, match="credentials") as caught:
            await call
        assert caught.value.remedy
    await origin.close()


@pytest.mark.emulator
async def test_a_wrong_azure_key_does_not_show(
    azure: AzureServer,
    new_bucket: Callable[[ObjectServer], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = new_bucket(azure)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LW9mLW5vYm9keQ==")
    origin = open_origin(azure.url(bucket), azure.profile(), clock=CLOCK)
    for call in (origin.head("k"), origin.put("k", b"1"), origin.get("odd//k")):
        with pytest.raises(AccessDenied) as caught:
            await call
        shown = f"{caught.value} {caught.value!r} {origin!r}"
        assert "c2VjcmV0" not in shown and "ignature" not in shown
    await origin.close()


def test_a_credential_is_asked_for_again_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_env_keys: None
) -> None:
    write_credentials(tmp_path / "credentials", monkeypatch, "one")
    provider = BotoCredentials(ProfileSettings(credentials_profile="work"))
    found = provider()
    assert (found["access_key_id"], found["secret_access_key"]) == (S3_ACCESS_KEY, "one")
    # botocore hands out nothing with less than ten minutes to live: five are safe.
    assert found["expires_at"] is not None
    assert found["expires_at"] <= datetime.now(UTC) + timedelta(minutes=5)


def test_who_asks_boto3(monkeypatch: pytest.MonkeyPatch, no_env_keys: None) -> None:
    assert uses_boto3(ProfileSettings())
    assert not uses_boto3(ProfileSettings(anonymous=True))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    assert not uses_boto3(ProfileSettings())
    assert uses_boto3(ProfileSettings(credentials_profile="work"))


def test_what_is_shown_of_an_error() -> None:
    text = (
        "Generic S3 error: Error performing GET https://host/b/k?sig=SECRET&x=1 in 4ms - Server "
        "returned non-2xx status code: 403 Forbidden: <Error><StringToSign>SECRET</StringToSign>"
        "</Error>\n\nDebug source:\nGeneric { SECRET }"
    )
    shown = scrubbed(Exception(text))
    assert "SECRET" not in shown and shown.endswith("403 Forbidden")
    shown = scrubbed(
        Exception("HTTP error: error sending https://h/k?sig=SECRET now\n\nDebug source:\nSECRET")
    )
    assert shown == "HTTP error: error sending https://h/k now"


@pytest.mark.parametrize(
    ("url", "profile"),
    [
        ("s3://b", ProfileSettings(driver="boto")),
        ("s3://b", ProfileSettings(options={"anon": True})),
        ("az://c", ProfileSettings(account="a", endpoint="not a url")),
        ("nope://b", ProfileSettings()),
        ("file:///data", ProfileSettings(endpoint="https://host")),
        ("az://c", ProfileSettings(account="a", endpoint="https://host", driver="fsspec")),
    ],
)
def test_profiles_that_do_not_fit(url: str, profile: ProfileSettings) -> None:
    with pytest.raises(ConfigError) as caught:
        open_origin(url, profile, clock=CLOCK)
    assert caught.value.remedy
