"""The place of a SlateDB store: one prefix of a bucket, reached by a profile, and who owns it.

    <prefix>/owner       which agent took the store over last (JSON)
    <prefix>/manifest/ wal/ compacted/ compactions/ gc/      SlateDB's own

SlateDB sees to it that of two writers only the later one can commit. Which of them *should* be
the later one it cannot know: an agent that opens the store again after an outage would fence the
one that has replaced it meanwhile. So an agent that takes over writes its name into ``owner``
first, and opens after; whoever opens again looks there before and after.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from typing import Any

import msgspec
import obstore
from obstore.store import LocalStore
from slatedb import uniffi as slate

from tiercache.cloud.obstore_errors import OBSTORE_ERRORS, translate
from tiercache.cloud.obstore_stores import (
    CREDENTIAL_TTL,
    USER_AGENT,
    BotoCredentials,
    ObjectStore,
    account_config,
    allows_http,
    build_store,
    uses_boto3,
)
from tiercache.cloud.statuses import bucket_missing
from tiercache.errors import (
    AccessDenied,
    ConfigError,
    FormatError,
    MetadataUnavailable,
    NotFound,
    OriginUnavailable,
    TiercacheError,
    Unsupported,
)
from tiercache.policy.urls import OriginUrl
from tiercache.settings import ProfileSettings

OWNER = "owner"
# Between two attempts to read the owner. The deadline of the call bounds them.
RETRY_PAUSES_S = (0.1, 0.4, 1.6)
NEVER_S = float("inf")
LOOK = "look at the object store and the way to it"

_KINDS = {
    "s3": (slate.ObjectStoreType.S3, "bucket"),
    "gs": (slate.ObjectStoreType.GCS, "bucket"),
    "az": (slate.ObjectStoreType.AZURE, "container_name"),
}


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """``token`` is drawn anew by each agent that takes over."""

    token: str
    host: str
    pid: int
    since_unix_s: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(self.since_unix_s))
        return f"process {self.pid} on {self.host}, since {since}"


class ObjectTier:
    """Asks the bucket by obstore. One event loop."""

    def __init__(
        self, url: OriginUrl, profile: ProfileSettings, *, deadline_s: float, read_only: bool
    ) -> None:
        """A directory is made where it is missing, but not for ``read_only``. Raises ConfigError,
        NotFound, AccessDenied."""
        # Constant after construction
        self._url = url
        self._profile = profile
        self._deadline_s = deadline_s
        self._objects = self._build(read_only)
        self._boto = (
            BotoCredentials(profile) if url.scheme == "s3" and uses_boto3(profile) else None
        )
        # Owned by the event loop: of the credentials that SlateDB has
        self._key_id = ""
        self._look_again_s = NEVER_S

    @property
    def path(self) -> str:
        """Where SlateDB's objects begin in the bucket."""
        return self._url.prefix

    def _build(self, read_only: bool) -> ObjectStore | LocalStore:
        if self._url.scheme != "file":
            return build_store(self._url, self._profile)
        if read_only and not os.path.isdir(self._url.bucket):
            raise no_store_here(str(self._url))
        try:
            if not read_only:
                os.makedirs(self._url.bucket, mode=0o700, exist_ok=True)
            return LocalStore(self._url.bucket)
        except OBSTORE_ERRORS as error:
            raise self._translated(error) from None

    # Who owns it

    async def claim(self, token: str) -> Owner:
        """Write this process down as the owner.

        Raises Unsupported where the store ignores put-if-absent (two agents would both believe
        that they alone write), FormatError where a SlateDB of another program lies, NotFound for
        a missing bucket, AccessDenied, MetadataUnavailable.
        """
        owner = Owner(
            token=token, host=socket.gethostname(), pid=os.getpid(), since_unix_s=time.time()
        )
        data = json.dumps(msgspec.to_builtins(owner)).encode()
        if await self._put_if_absent(data):
            try:
                await self._refuse_foreign()
                if await self._put_if_absent(data):
                    raise Unsupported(
                        "the object store ignores put-if-absent (If-None-Match), on which the "
                        "fencing of a second agent stands",
                        path=str(self._url),
                        remedy="use a store that honours it, or lmdb: on a block volume",
                    )
            except (FormatError, Unsupported):
                await self._ask(obstore.delete_async(self._objects, self._key(OWNER)))
                raise
        else:
            await self._ask(obstore.put_async(self._objects, self._key(OWNER), data))
        return owner

    async def owner(self) -> Owner:
        """Read who took it over last. Raises MetadataUnavailable, FormatError, AccessDenied."""
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self._decoded(await self._ask(self._read_owner()))
            except NotFound:
                raise MetadataUnavailable(
                    f"{self._key(OWNER)} is gone",
                    path=str(self._url),
                    remedy="restart the agent: it takes over what is left",
                ) from None
            except MetadataUnavailable:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _read_owner(self) -> bytes:
        found = await obstore.get_async(self._objects, self._key(OWNER))
        return bytes(await found.bytes_async())

    def _decoded(self, data: bytes) -> Owner:
        try:
            return msgspec.json.decode(data, type=Owner)
        except msgspec.DecodeError as error:
            raise FormatError(f"{self._key(OWNER)} is damaged", path=str(self._url)) from error

    async def _put_if_absent(self, data: bytes) -> bool:
        """Return whether it was written."""
        try:
            await obstore.put_async(self._objects, self._key(OWNER), data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        except OBSTORE_ERRORS as error:
            raise self._translated(error) from None
        return True

    async def _refuse_foreign(self) -> None:
        """A store without an owner must be none at all: opening it would fence its writer."""
        if await self.holds_database():
            raise FormatError(
                "a SlateDB of another program lies here",
                path=str(self._url),
                remedy="name another prefix",
            )

    async def holds_database(self) -> bool:
        listing = obstore.list_with_delimiter_async(self._objects, self._key("manifest") + "/")
        return bool((await self._ask(listing))["objects"])

    def _key(self, name: str) -> str:
        return f"{self._url.key_prefix}{name}"

    async def _ask(self, call: Any) -> Any:
        try:
            return await call
        except OBSTORE_ERRORS as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> TiercacheError:
        found = translate(error, path=str(self._url))
        match found:
            case NotFound():
                return bucket_missing(str(self._url))
            case OriginUnavailable():
                return MetadataUnavailable(found.message, path=str(self._url), remedy=LOOK)
            case _:
                return found

    # SlateDB's own way to it

    async def access(self) -> Any:
        """Return a new object store of SlateDB's, with the credentials of now. Raises
        ConfigError, AccessDenied."""
        if self._url.scheme == "file":
            return _built(slate.ObjectStoreType.LOCAL, {"local_path": self._url.bucket}, self._url)
        kind, bucket_key = _KINDS[self._url.scheme]
        profile = self._profile
        options = {
            **account_config(self._url, profile),
            bucket_key: self._url.bucket,
            "allow_http": allows_http(profile),
            "user_agent": USER_AGENT,
            # Two requests of full length fit into a call.
            "timeout": f"{min(profile.request_timeout_s, self._deadline_s / 2)}s",
            "connect_timeout": f"{min(profile.connect_timeout_s, self._deadline_s / 2)}s",
        }
        if self._boto is not None:
            options |= await self._frozen_credentials(self._boto)
        return _built(kind, options, self._url)

    async def _frozen_credentials(self, boto: BotoCredentials) -> dict[str, str]:
        """SlateDB takes no callback: it has these until it is opened again (see ``renewed``)."""
        found = await asyncio.to_thread(boto)
        self._key_id = found["access_key_id"]
        self._look_again_s = _now_s() + CREDENTIAL_TTL.total_seconds()
        options = {"access_key_id": self._key_id, "secret_access_key": found["secret_access_key"]}
        if token := found.get("token"):
            options["token"] = token
        return options

    async def renewed(self) -> bool:
        """Whether the chain hands out other credentials than ``access`` got. While it does not,
        it is asked seldom."""
        if self._boto is None or _now_s() < self._look_again_s:
            return False
        try:
            if (await asyncio.to_thread(self._boto))["access_key_id"] != self._key_id:
                return True
        except AccessDenied:
            pass  # those that SlateDB has may hold for minutes yet
        self._look_again_s = _now_s() + CREDENTIAL_TTL.total_seconds()
        return False


def no_store_here(path: str) -> NotFound:
    return NotFound(
        "no metadata store is here", path=path, remedy="an agent makes it when it starts"
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _built(kind: Any, options: dict[str, Any], url: OriginUrl) -> Any:
    try:
        builder = slate.ObjectStoreBuilder.from_env(kind)
        for name, value in options.items():
            builder.with_config(name, str(value).lower() if isinstance(value, bool) else str(value))
        return builder.build()
    except slate.Error:
        # The text may quote a credential.
        raise ConfigError(
            "the profile and the environment give no way to it",
            path=str(url),
            remedy="check endpoint, region, account and the credentials chain",
        ) from None
