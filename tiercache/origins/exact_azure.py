"""Azure blob names verbatim, through azure-storage-blob."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from azure.core import MatchConditions
from azure.core import exceptions as azure
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.storage.blob import BlobPrefix, BlobProperties, ContainerClient

from tiercache.cloud.obstore_stores import azure_account
from tiercache.cloud.statuses import (
    bucket_missing,
    from_status,
    require_version,
    retry_after_s,
    taken,
    truncated,
    version_gone,
)
from tiercache.errors import (
    NotFound,
    OriginUnavailable,
    PreconditionFailed,
    TiercacheError,
)
from tiercache.model import ObjectInfo
from tiercache.policy.urls import OriginUrl
from tiercache.ports import Buffer, Condition, Fetched, IfAbsent, IfVersion, ListPage
from tiercache.settings import ProfileSettings

_WRITE_ID = "tiercachewriteid"
# The variables that obstore reads, so that both see the same account.
_KEY_VARIABLES = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
)
_SAS_VARIABLES = ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")


class ExactAzure:
    """Thread safe, as the SDK's clients are for requests."""

    def __init__(self, url: OriginUrl, profile: ProfileSettings, *, identity: str) -> None:
        # Constant after construction
        self._url = identity
        account = azure_account(url, profile)
        self._client = ContainerClient(
            profile.endpoint or f"https://{account}.blob.core.windows.net",
            url.bucket,
            credential=_credential(account, profile),
            retry_total=0,
            connection_timeout=profile.connect_timeout_s,
            read_timeout=profile.request_timeout_s,
        )

    def head(self, key: str) -> ObjectInfo:
        try:
            return _info(self._client.get_blob_client(key).get_blob_properties())
        except azure.AzureError as error:
            raise self._failure(error, key) from error

    def get(self, key: str, start: int, end: int | None, token: str | None) -> Fetched:
        info = self.head(key)
        require_version(info, token, path=self._path(key))
        stop = info.size_bytes if end is None else min(end, info.size_bytes)
        if stop <= start:
            return Fetched(info, b"")
        try:
            data: bytes = self._client.download_blob(
                key,
                offset=start,
                length=stop - start,
                etag=info.token,
                match_condition=MatchConditions.IfNotModified,
            ).readall()
        except azure.AzureError as error:
            raise self._failure(error, key) from error
        if len(data) != stop - start:
            raise truncated(self._path(key), got_bytes=len(data), want_bytes=stop - start)
        return Fetched(info, data)

    def put(self, key: str, data: Buffer, condition: Condition, write_id: str) -> ObjectInfo:
        extra: dict[str, Any] = {"overwrite": not isinstance(condition, IfAbsent)}
        if isinstance(condition, IfVersion):
            extra |= {"etag": condition.token, "match_condition": MatchConditions.IfNotModified}
        metadata = {_WRITE_ID: write_id} if write_id else None
        try:
            self._client.upload_blob(key, bytes(data), metadata=metadata, **extra)
        except azure.AzureError as error:
            found = self._failure(error, key)
            if isinstance(found, PreconditionFailed) and isinstance(condition, IfAbsent):
                found = taken(self._path(key))
            elif isinstance(condition, IfVersion) and type(found) is NotFound:
                found = version_gone(self._path(key))
            raise found from error
        return self.head(key)

    def delete(self, key: str) -> None:
        try:
            self._client.delete_blob(key)
        except azure.ResourceNotFoundError:
            return
        except azure.AzureError as error:
            raise self._failure(error, key) from error

    def copy(self, source_key: str, target_key: str) -> None:
        source = self._client.get_blob_client(source_key).url
        try:
            self._client.get_blob_client(target_key).start_copy_from_url(source)
        except azure.AzureError as error:
            raise self._failure(error, source_key) from error

    def list(
        self, prefix: str, *, recursive: bool, after: str, limit: int | None, position: str
    ) -> Iterator[ListPage]:
        per_page = None if limit is None else min(limit, 1000)
        found = (
            self._client.list_blobs(name_starts_with=prefix, results_per_page=per_page)
            if recursive
            else self._client.walk_blobs(name_starts_with=prefix, results_per_page=per_page)
        )
        floor = after.encode()
        try:
            pages: Any = found.by_page(position or None)  # its stubs leave out the token
            for page in pages:
                objects, prefixes = [], []
                for item in page:
                    if isinstance(item, BlobPrefix):
                        prefixes.append(item.name)
                    elif not after or item.name.encode() > floor:
                        objects.append(_info(item))
                if objects or prefixes:
                    yield ListPage(objects, prefixes, pages.continuation_token or "")
        except azure.AzureError as error:
            raise self._failure(error, "") from error

    def _path(self, key: str) -> str:
        return f"{self._url}/{key}"

    def _failure(self, error: azure.AzureError, key: str) -> TiercacheError:
        status = getattr(error, "status_code", None)
        if status == 404 and getattr(error, "error_code", "") == "ContainerNotFound":
            return bucket_missing(self._url)
        if status is not None:
            advice_s = retry_after_s(getattr(getattr(error, "response", None), "headers", None))
            return from_status(status, path=self._path(key), retry_after_s=advice_s)
        return OriginUnavailable(type(error).__name__, path=self._path(key))


def _credential(account: str, profile: ProfileSettings) -> Any:
    if profile.anonymous:
        return None
    if key := _first(_KEY_VARIABLES):
        return AzureNamedKeyCredential(account, key)
    if sas := _first(_SAS_VARIABLES):
        return AzureSasCredential(sas)
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


def _first(names: tuple[str, ...]) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _info(blob: BlobProperties) -> ObjectInfo:
    e_tag = blob.etag or ""
    return ObjectInfo(
        blob.name,
        blob.size,
        e_tag if e_tag.startswith('"') else f'"{e_tag}"',
        blob.last_modified.timestamp(),
        (blob.metadata or {}).get(_WRITE_ID, ""),
    )
