"""Build obstore stores from profiles: endpoints, time-outs and each cloud's own credentials."""

from __future__ import annotations

import importlib.util
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.store import AzureStore, GCSStore, S3Store

from tiercache.cloud.statuses import CREDENTIALS_REMEDY
from tiercache.errors import AccessDenied, ConfigError
from tiercache.policy.urls import OriginUrl, account_of
from tiercache.settings import ProfileSettings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

# botocore renews a credential 15 minutes before its end; asked every 5 minutes it never hands
# out one with less than 10 minutes to live.
CREDENTIAL_TTL = timedelta(minutes=5)
# Retries are ours (resilient.py): obstore's would hide a lost answer and report our own success
# as a conflict.
NO_RETRIES: RetryConfig = {"max_retries": 0}
USER_AGENT = "tiercache"

# Where one of these is set, obstore's own chain finds the credentials without boto3.
_S3_NATIVE_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

ObjectStore = S3Store | GCSStore | AzureStore


def build_store(url: OriginUrl, profile: ProfileSettings) -> ObjectStore:
    """Return the store of one bucket. Asks nobody. Raises ConfigError."""
    if profile.endpoint and not profile.endpoint.lower().startswith(("http://", "https://")):
        raise ConfigError(
            f"profile {profile.name}: endpoint is no URL", remedy="write https://host[:port]"
        )
    try:
        match url.scheme:
            case "s3":
                return _s3(url, profile)
            case "gs":
                return _gcs(url, profile)
            case "az":
                return _azure(url, profile)
            case _:
                raise ConfigError(
                    f"obstore has no store for {url.scheme}://",
                    remedy=f'set driver = "fsspec" in [profile.{profile.name}]',
                )
    except ConfigError:
        raise
    except (obstore.exceptions.BaseError, ValueError):
        # The text may quote a credential from the environment.
        raise ConfigError(
            f"profile {profile.name} cannot reach {url.scheme}://{url.bucket}",
            remedy="check endpoint, region and account",
        ) from None


def uses_boto3(profile: ProfileSettings) -> bool:
    """Whether an S3 profile takes its credentials from boto3's chain: named profiles, SSO and
    ~/.aws, which obstore does not read. Without boto3 the instance metadata remains."""
    if profile.anonymous:
        return False
    if profile.credentials_profile:
        if importlib.util.find_spec("boto3") is None:
            raise ConfigError(
                f"profile {profile.name} names credentials_profile, which needs boto3",
                remedy="pip install 'tiercache[s3]'",
            )
        return True
    if any(os.environ.get(name) for name in _S3_NATIVE_VARIABLES):
        return False
    return importlib.util.find_spec("boto3") is not None


class BotoCredentials:
    """obstore's credential callback over boto3's chain, resolved at the first request and
    renewed as botocore renews it. Thread safe."""

    def __init__(self, profile: ProfileSettings) -> None:
        # Constant after construction
        self._profile = profile.credentials_profile or None
        self._lock = threading.Lock()
        # Guarded by self._lock
        self._credentials: Any = None

    def __call__(self) -> S3Credential:
        import botocore.exceptions
        import botocore.session

        try:
            with self._lock:
                if self._credentials is None:
                    session = botocore.session.Session(profile=self._profile)
                    self._credentials = session.get_credentials()
                found = self._credentials and self._credentials.get_frozen_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise AccessDenied(
                f"no S3 credentials: {type(error).__name__}", remedy=CREDENTIALS_REMEDY
            ) from None
        if not found:
            raise AccessDenied(
                "no S3 credentials in the environment, ~/.aws or the instance metadata",
                remedy="set them, or anonymous = true in the profile for a public bucket",
            )
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_TTL,
        }


def s3_region(profile: ProfileSettings) -> str:
    """Return the profile's region, the environment's, or us-east-1 (AWS's own default)."""
    environment = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return profile.region or environment or "us-east-1"


def azure_account(url: OriginUrl, profile: ProfileSettings) -> str:
    return account_of(url, profile, account=environment_account(profile))


def environment_account(profile: ProfileSettings) -> str:
    """Return the account that the environment names: as the client saw it, else as we do."""
    return profile.environment_account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")


def account_config(url: OriginUrl, profile: ProfileSettings) -> dict[str, Any]:
    """Return the options of an account by the names that the object_store crate gives them:
    obstore and SlateDB both stand on it. No credentials: those come from the environment, or
    from BotoCredentials. Raises ConfigError."""
    config: dict[str, Any] = {}
    match url.scheme:
        case "s3":
            config["region"] = s3_region(profile)
            config["virtual_hosted_style_request"] = profile.addressing == "virtual" or (
                profile.addressing == "auto" and not profile.endpoint
            )
            endpoint = "endpoint"
        case "gs":
            endpoint = "base_url"
        case _:
            config["account_name"] = azure_account(url, profile)
            endpoint = "endpoint"
    if profile.endpoint:
        config[endpoint] = profile.endpoint
    if profile.anonymous:
        config["skip_signature"] = True
    return config


def allows_http(profile: ProfileSettings) -> bool:
    return profile.endpoint.lower().startswith("http://")


def _client_options(profile: ProfileSettings) -> ClientConfig:
    return {
        "connect_timeout": timedelta(seconds=profile.connect_timeout_s),
        "timeout": timedelta(seconds=profile.request_timeout_s),
        "allow_http": allows_http(profile),
        "user_agent": USER_AGENT,
    }


def _s3(url: OriginUrl, profile: ProfileSettings) -> S3Store:
    # One DELETE an object: the bulk request is a body that some stores do not know.
    config = account_config(url, profile) | {"disable_bulk_delete": True}
    return S3Store(
        url.bucket,
        config=config,  # type: ignore[arg-type]  # keys are S3Config's
        client_options=_client_options(profile),
        retry_config=NO_RETRIES,
        credential_provider=BotoCredentials(profile) if uses_boto3(profile) else None,
    )


def _gcs(url: OriginUrl, profile: ProfileSettings) -> GCSStore:
    return GCSStore(
        url.bucket,
        config=account_config(url, profile),  # type: ignore[arg-type]  # keys are GCSConfig's
        client_options=_client_options(profile),
        retry_config=NO_RETRIES,
    )


def _azure(url: OriginUrl, profile: ProfileSettings) -> AzureStore:
    return AzureStore(
        url.bucket,
        config=account_config(url, profile),  # type: ignore[arg-type]  # keys are AzureConfig's
        client_options=_client_options(profile),
        retry_config=NO_RETRIES,
    )
