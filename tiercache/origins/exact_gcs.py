"""Google Cloud Storage names verbatim, through google-cloud-storage.

Its JSON API names an object's MD5 and generation, where obstore's XML API names an ETag, which
is the MD5 in hexadecimal for all but composed objects. Tokens are built to agree with it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import google.auth.exceptions
import requests.exceptions
from google.api_core import exceptions as google_errors
from google.cloud import storage  # type: ignore[import-untyped]  # ships no types

from tiercache.cloud.statuses import (
    CREDENTIALS_REMEDY,
    another_version,
    bucket_missing,
    from_status,
    require_version,
    retry_after_s,
    taken,
    truncated,
    version_gone,
)
from tiercache.errors import (
    AccessDenied,
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
_ERRORS = (
    google_errors.GoogleAPIError,
    google.auth.exceptions.GoogleAuthError,
    requests.exceptions.RequestException,
)


class ExactGcs:
    """Thread safe for the calls made here."""

    def __init__(self, url: OriginUrl, profile: ProfileSettings, *, identity: str) -> None:
        # Constant after construction
        self._url = identity
        options = {"api_endpoint": profile.endpoint} if profile.endpoint else None
        if profile.anonymous:
            from google.auth.credentials import AnonymousCredentials

            nobody: Any = AnonymousCredentials
            client = storage.Client(project="none", credentials=nobody(), client_options=options)
        else:
            client = storage.Client(client_options=options)
        self._bucket: Any = client.bucket(url.bucket)
        self._client: Any = client
        timeouts = (profile.connect_timeout_s, profile.request_timeout_s)
        self._once: dict[str, Any] = {"retry": None, "timeout": timeouts}

    def head(self, key: str) -> ObjectInfo:
        return _info(self._blob(key))

    def get(self, key: str, start: int, end: int | None, token: str | None) -> Fetched:
        blob = self._blob(key)
        info = _info(blob)
        require_version(info, token, path=self._path(key))
        stop = info.size_bytes if end is None else min(end, info.size_bytes)
        if stop <= start:
            return Fetched(info, b"")
        try:
            data: bytes = blob.download_as_bytes(
                start=start,
                end=stop - 1,
                raw_download=True,
                if_generation_match=blob.generation,
                **self._once,
            )
        except _ERRORS as error:
            raise self._failure(error, key) from error
        if len(data) != stop - start:
            raise truncated(self._path(key), got_bytes=len(data), want_bytes=stop - start)
        return Fetched(info, data)

    def put(self, key: str, data: Buffer, condition: Condition, write_id: str) -> ObjectInfo:
        generation: int | None = None
        if isinstance(condition, IfAbsent):
            generation = 0
        elif isinstance(condition, IfVersion):
            try:
                current = self._blob(key)
            except NotFound as error:
                raise version_gone(self._path(key)) from error
            if _info(current).token != condition.token:
                raise another_version(self._path(key))
            generation = current.generation
        blob = self._bucket.blob(key)
        if write_id:
            blob.metadata = {_WRITE_ID: write_id}
        try:
            blob.upload_from_string(bytes(data), if_generation_match=generation, **self._once)
        except _ERRORS as error:
            found = self._failure(error, key)
            if isinstance(found, PreconditionFailed) and generation == 0:
                found = taken(self._path(key))
            raise found from error
        return _info(blob)

    def delete(self, key: str) -> None:
        try:
            self._bucket.delete_blob(key, **self._once)
        except google_errors.NotFound:
            return
        except _ERRORS as error:
            raise self._failure(error, key) from error

    def copy(self, source_key: str, target_key: str) -> None:
        try:
            self._bucket.copy_blob(
                self._bucket.blob(source_key), self._bucket, target_key, **self._once
            )
        except _ERRORS as error:
            raise self._failure(error, source_key) from error

    def list(
        self, prefix: str, *, recursive: bool, after: str, limit: int | None, position: str
    ) -> Iterator[ListPage]:
        found = self._client.list_blobs(
            self._bucket,
            prefix=prefix,
            delimiter=None if recursive else "/",
            max_results=limit,
            page_size=1000,  # as GCS has it; emulators would send all
            page_token=position or None,
            **self._once,
        )
        floor = after.encode()
        seen: set[str] = set()
        try:
            for page in found.pages:
                blobs = [blob for blob in page if not after or blob.name.encode() > floor]
                prefixes = sorted(set(page.prefixes) - seen)
                seen.update(prefixes)
                if blobs or prefixes:
                    # A prefix may come on two pages: who goes on must know the first.
                    told = (found.next_page_token or "") if recursive else ""
                    yield ListPage([_info(blob) for blob in blobs], prefixes, told)
        except google_errors.NotFound as error:
            raise bucket_missing(self._url) from error
        except _ERRORS as error:
            raise self._failure(error, "") from error

    def _blob(self, key: str) -> Any:
        blob = self._bucket.blob(key)
        try:
            blob.reload(**self._once)
        except _ERRORS as error:
            raise self._failure(error, key) from error
        return blob

    def _path(self, key: str) -> str:
        return f"{self._url}/{key}"

    def _failure(self, error: Exception, key: str) -> TiercacheError:
        status = getattr(error, "code", None)
        if isinstance(error, google_errors.GoogleAPICallError) and status is not None:
            advice_s = retry_after_s(getattr(getattr(error, "response", None), "headers", None))
            return from_status(int(status), path=self._path(key), retry_after_s=advice_s)
        if isinstance(error, google.auth.exceptions.GoogleAuthError):
            return AccessDenied("no GCS credentials", path=self._url, remedy=CREDENTIALS_REMEDY)
        return OriginUnavailable(type(error).__name__, path=self._path(key))


def _info(blob: Any) -> ObjectInfo:
    metadata = blob.metadata or {}
    return ObjectInfo(
        blob.name,
        blob.size or 0,
        _token(blob),
        blob.updated.timestamp() if blob.updated else 0.0,
        metadata.get(_WRITE_ID, ""),
    )


def _token(blob: Any) -> str:
    if blob.md5_hash and not blob.component_count:
        return f'"{base64.b64decode(blob.md5_hash).hex()}"'
    return f'"{blob.etag}"'
