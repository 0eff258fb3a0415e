"""Reach an object store from a test, bypassing the code under test.

An ``ObjectServer`` knows an endpoint and how to talk to it with the vendors' own clients; whose
process serves it is not its concern (see ``emulators``). ``put`` and ``get`` take keys verbatim.
All methods are thread safe and raise what the vendor's client raises.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from obstore.store import AzureStore, S3Store

from tiercache.settings import ProfileSettings

REGION = "us-east-1"
S3_ACCESS_KEY = "tiercache-test"
S3_SECRET_KEY = "tiercache-test-secret"
# The account that every Azurite has, published in its documentation.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
PUTS_IN_FLIGHT = 32  # more gains nothing on two cores
PUT_BYTES_IN_FLIGHT = 128 * 1024 * 1024  # two 64 MiB objects keep a server busy


class ObjectServer(ABC):
    """One endpoint of one kind of store. ``scheme`` is that of its origin URLs."""

    scheme: ClassVar[str]

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    @property
    def endpoint(self) -> str:
        """The URL of the server, without a slash at its end."""
        return self._endpoint

    @property
    @abstractmethod
    def env(self) -> dict[str, str]:
        """Environment variables that hand our clients the credentials."""

    @abstractmethod
    def profile(self, name: str = "default", *, endpoint: str = "") -> ProfileSettings:
        """Return the profile to reach this server, or the same server behind ``endpoint``."""

    def url(self, bucket: str, prefix: str = "") -> str:
        """Return the origin URL of a bucket and prefix."""
        return f"{self.scheme}://{bucket}/{prefix}".rstrip("/")

    @abstractmethod
    def make_bucket(self, bucket: str) -> str:
        """Make the bucket (three characters at least) unless it exists; return its name."""

    @abstractmethod
    def put(self, bucket: str, key: str, data: bytes) -> None: ...

    @abstractmethod
    def put_many(self, bucket: str, items: Iterable[tuple[str, bytes]]) -> int:
        """Write many objects at once, taking items as they are needed; return their count."""

    @abstractmethod
    def get(self, bucket: str, key: str) -> bytes: ...

    @abstractmethod
    def delete(self, bucket: str, key: str) -> None: ...

    @abstractmethod
    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return all keys below the prefix, in order."""


class S3Server(ObjectServer):
    """Any S3 endpoint that takes the kit's credentials."""

    scheme = "s3"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def profile(self, name: str = "default", *, endpoint: str = "") -> ProfileSettings:
        return ProfileSettings(
            name=name, region=REGION, endpoint=endpoint or self.endpoint, addressing="path"
        )

    @cached_property
    def client(self) -> Any:
        """A boto3 client of this server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=S3_ACCESS_KEY,
            aws_secret_access_key=S3_SECRET_KEY,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"total_max_attempts": 3},
                s3={"addressing_style": "path"},
                max_pool_connections=PUTS_IN_FLIGHT,
            ),
        )

    def make_bucket(self, bucket: str) -> str:
        try:
            self.client.create_bucket(Bucket=bucket)
        except (
            self.client.exceptions.BucketAlreadyOwnedByYou,
            self.client.exceptions.BucketAlreadyExists,
        ):
            pass
        return bucket

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def put_many(self, bucket: str, items: Iterable[tuple[str, bytes]]) -> int:
        store = S3Store(
            bucket,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=S3_ACCESS_KEY,
            secret_access_key=S3_SECRET_KEY,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        return _put_all(store, items)

    def get(self, bucket: str, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))


class AzureServer(ObjectServer):
    """An Azurite; ``endpoint`` includes the account, as its URLs do."""

    scheme = "az"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_CONNECTION_STRING": self.connection_string,
        }

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
            f"BlobEndpoint={self.endpoint};"
        )

    def profile(self, name: str = "default", *, endpoint: str = "") -> ProfileSettings:
        return ProfileSettings(name=name, account=AZURE_ACCOUNT, endpoint=endpoint or self.endpoint)

    @cached_property
    def client(self) -> Any:
        """A BlobServiceClient of this server."""
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(
            self.connection_string, connection_timeout=5, read_timeout=30, retry_total=2
        )

    def make_bucket(self, bucket: str) -> str:
        from azure.core.exceptions import ResourceExistsError

        try:
            self.client.create_container(bucket)
        except ResourceExistsError:
            pass
        return bucket

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.get_blob_client(bucket, key).upload_blob(data, overwrite=True)

    def put_many(self, bucket: str, items: Iterable[tuple[str, bytes]]) -> int:
        store = AzureStore(
            bucket,
            endpoint=self.endpoint,
            account_name=AZURE_ACCOUNT,
            account_key=AZURE_KEY,
            client_options={"allow_http": True},
        )
        return _put_all(store, items)

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_blob_client(bucket, key).download_blob().readall()
        return data

    def delete(self, bucket: str, key: str) -> None:
        self.client.get_blob_client(bucket, key).delete_blob()

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        container = self.client.get_container_client(bucket)
        return sorted(container.list_blob_names(name_starts_with=prefix or None))


class GcsServer(ObjectServer):
    """A fake-gcs-server, spoken to through its JSON API."""

    scheme = "gs"

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()

    @property
    def env(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            # gcsfs would ask the real service whether the bucket is hierarchical, for 60 s.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def profile(self, name: str = "default", *, endpoint: str = "") -> ProfileSettings:
        return ProfileSettings(name=name, endpoint=endpoint or self.endpoint, anonymous=True)

    def make_bucket(self, bucket: str) -> str:
        body = json.dumps({"name": bucket}).encode()
        self._ask("POST", "/storage/v1/b", body, allowed=(200, 409))
        return bucket

    def put(self, bucket: str, key: str, data: bytes) -> None:
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
        self._ask("POST", path, data)

    def put_many(self, bucket: str, items: Iterable[tuple[str, bytes]]) -> int:
        with ThreadPoolExecutor(4) as pool:
            return sum(1 for _ in pool.map(lambda item: self.put(bucket, *item), items))

    def get(self, bucket: str, key: str) -> bytes:
        return self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media")

    def delete(self, bucket: str, key: str) -> None:
        path = f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}"
        self._ask("DELETE", path, allowed=(200, 204))

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        found: list[str] = []
        page_token = ""
        while True:
            query = f"prefix={quote(prefix, safe='')}&pageToken={quote(page_token, safe='')}"
            answer = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o?{query}"))
            found += [item["name"] for item in answer.get("items", ())]
            page_token = answer.get("nextPageToken", "")
            if not page_token:
                return sorted(found)

    def _ask(
        self, method: str, path: str, body: bytes = b"", *, allowed: tuple[int, ...] = (200,)
    ) -> bytes:
        with self._connection() as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read()
        if answer.status not in allowed:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        try:
            yield connection
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        self._idle.put(connection)


def _put_all(store: S3Store | AzureStore, items: Iterable[tuple[str, bytes]]) -> int:
    """Put with a bounded number in flight, on a loop and thread of its own."""

    async def feed() -> int:
        count = 0
        pending: dict[asyncio.Future[Any], int] = {}
        for key, data in items:
            while len(pending) >= PUTS_IN_FLIGHT or sum(pending.values()) > PUT_BYTES_IN_FLIGHT:
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for put in done:
                    del pending[put]
                    put.result()
            started = asyncio.ensure_future(store.put_async(key, data, use_multipart=False))
            pending[started] = len(data)
            count += 1
        await asyncio.gather(*pending)
        return count

    # A caller may be inside a running loop of its own (an async test).
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(feed())).result()
