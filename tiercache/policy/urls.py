"""Origin URLs: what a user writes, as a value, and the identity under which data is kept."""

from __future__ import annotations

import difflib
import re
from collections.abc import Set
from dataclasses import dataclass

from tiercache.errors import ConfigError
from tiercache.settings import ProfileSettings

# Every spelling of the three clouds' schemes, and the one we keep.
CLOUD_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "azure": "az",
}
# Protocols of fsspec filesystems that make sense as an origin; others can be passed in.
FSSPEC_SCHEMES = frozenset(
    {
        "abfs", "adl", "box", "dropbox", "dvc", "file", "ftp", "gdrive", "git", "github", "hdfs",
        "hf", "http", "https", "lakefs", "local", "memory", "oci", "ocilake", "oss", "s3", "sftp",
        "smb", "ssh", "tos", "webdav", "webhdfs",
    }
)  # fmt: skip
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ABFS_HOST = re.compile(r"([^@/]+)@([a-z0-9]+)\.(?:dfs|blob)\.[a-z0-9.]+")
_ENDPOINT_SCHEME = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginUrl:
    """``scheme`` is canonical: "s3", "gs", "az", or an fsspec protocol.

    ``bucket`` is a bucket, a container, ``bucket@namespace`` for oci, or, for "file", the
    absolute root directory. ``prefix`` is a key prefix without a slash at its end, otherwise
    verbatim. ``account`` is the storage account where an Azure URL names it.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    account: str = ""

    @property
    def key_prefix(self) -> str:
        """The string that every key below starts with: ``prefix`` and a slash, or nothing."""
        return f"{self.prefix}/" if self.prefix else ""

    def __str__(self) -> str:
        base = f"{self.scheme}://{self.bucket}"
        # A slash at the end is the separator: a prefix that ends in one needs another.
        end = "/" if self.prefix.endswith("/") else ""
        return f"{base}/{self.prefix}{end}" if self.prefix else base


def parse_origin_url(text: str, *, more_schemes: Set[str] = frozenset()) -> OriginUrl:
    """Parse ``scheme://bucket/prefix``. Raises ConfigError, naming the nearest right spelling."""
    found = _SCHEME.match(text)
    if found is None:
        raise ConfigError(
            f"not an origin URL: {_cut(text)}",
            remedy="write scheme://bucket/prefix, such as s3://bucket/prefix",
        )
    spelled = found[1].lower()
    scheme = CLOUD_SCHEMES.get(spelled, spelled)
    if spelled not in CLOUD_SCHEMES and spelled not in FSSPEC_SCHEMES | more_schemes:
        known = sorted({*CLOUD_SCHEMES, *FSSPEC_SCHEMES, *more_schemes})
        near = difflib.get_close_matches(spelled, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}://?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"unknown origin scheme {spelled}://", remedy=hint)
    rest = text[found.end() :]
    if scheme in ("file", "local"):
        return _parse_file(rest, text)
    bucket, _, prefix = rest.partition("/")
    account = ""
    if scheme == "az" and (abfs := _ABFS_HOST.fullmatch(bucket)):
        bucket, account = abfs[1], abfs[2]
    _check_bucket(scheme, bucket, text)
    return OriginUrl(scheme=scheme, bucket=bucket, prefix=prefix.removesuffix("/"), account=account)


# What every object store and SlateDB spell alike.
_METADATA_PREFIX = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+(?:/(?=.)|$))+")


def parse_metadata_url(text: str) -> str | OriginUrl:
    """Parse the place of a metadata store: the absolute directory of ``lmdb:/path``, without a
    slash at its end, or bucket and prefix of an object store. Raises ConfigError."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "lmdb":
        folder = rest.removesuffix("/")
        root, *names = folder.split("/")
        if root or not names or "\0" in folder or not {"", ".", ".."}.isdisjoint(names):
            raise ConfigError(
                f"{_cut(text)} names no directory", remedy="write lmdb:/path, absolute and plain"
            )
        return folder
    url = parse_origin_url(text)
    if url.scheme not in ("s3", "gs", "az", "file"):
        raise ConfigError(
            f"no metadata store on {url.scheme}://",
            remedy="write lmdb:/path, or s3://, az://, gs:// or file:// with bucket and prefix",
        )
    if url.prefix and not _METADATA_PREFIX.fullmatch(url.prefix):
        raise ConfigError(
            f"the prefix {url.prefix!r} cannot be kept",
            remedy="letters, digits and ._~- between single slashes",
        )
    return url


def _parse_file(rest: str, text: str) -> OriginUrl:
    root = rest.removesuffix("/") or "/"
    if not root.startswith("/"):
        raise ConfigError(
            f"a file origin needs an absolute path: {_cut(text)}", remedy=f"write file:///{rest}"
        )
    if any(part in (".", "..", "") for part in root.split("/")[1:]) and root != "/":
        raise ConfigError(
            f"a file origin's path must be plain: {_cut(text)}",
            remedy="write it without '.', '..' and '//'",
        )
    return OriginUrl(scheme="file", bucket=root)


def _check_bucket(scheme: str, bucket: str, text: str) -> None:
    if not bucket:
        raise ConfigError(
            f"no bucket in {_cut(text)}",
            remedy=f"write {scheme}://bucket or {scheme}://bucket/prefix",
        )
    if scheme in ("s3", "gs", "az") and ("@" in bucket or ":" in bucket):
        # The URL may carry a key and its secret: do not print it back.
        raise ConfigError(
            f"a bucket name cannot hold '@' or ':' ({scheme}://…)",
            remedy="credentials never stand in a URL: they come from the cloud's own chain; "
            "an endpoint or account stands in the profile",
        )
    if ":" in bucket and "@" in bucket:
        raise ConfigError(
            f"user name and password in a {scheme}:// URL",
            remedy="credentials never stand in a URL or in the configuration",
        )
    if any(char.isspace() or char in "?#*" for char in bucket):
        raise ConfigError(f"not a bucket name: {_cut(bucket)}", remedy="check the URL's spelling")


def identity(url: OriginUrl, profile: ProfileSettings, *, account: str = "") -> str:
    """Return the identity under which cached data of this origin is kept.

    ``scheme://bucket``, followed by ``@account`` for Azure and by ``@endpoint`` where the server
    is not the cloud's own. Prefix, region and credentials are no part of it. ``account`` is what
    the environment names, used where neither URL nor profile does.
    """
    text = f"{url.scheme}://{url.bucket}"
    if url.scheme == "az":
        text += f"@{account_of(url, profile, account=account)}"
    if profile.endpoint:
        text += f"@{_ENDPOINT_SCHEME.sub('', profile.endpoint).rstrip('/').lower()}"
    return text


def endpoint_name(url: OriginUrl, profile: ProfileSettings, *, account: str = "") -> str:
    """Return the name of the server behind an origin: what breaker and limits are kept by.

    The endpoint where the profile names one; else the cloud with region or account.
    """
    if profile.endpoint:
        return _ENDPOINT_SCHEME.sub("", profile.endpoint).rstrip("/").lower()
    match url.scheme:
        case "az":
            return f"az:{account_of(url, profile, account=account)}"
        case "s3" | "gs":
            return f"{url.scheme}:{profile.region}" if profile.region else url.scheme
        case _:
            return f"{url.scheme}:{url.bucket}"


def account_of(url: OriginUrl, profile: ProfileSettings, *, account: str = "") -> str:
    """Return the Azure storage account: the URL's, the profile's or the environment's.

    Raises ConfigError where none is named or URL and profile disagree.
    """
    if url.account and profile.account and url.account != profile.account:
        raise ConfigError(
            f"{url} is of account {url.account}, but profile {profile.name} says {profile.account}"
        )
    found = url.account or profile.account or account
    if not found:
        raise ConfigError(
            f"no storage account for {url}",
            remedy=f'set account = "…" in [profile.{profile.name}] or AZURE_STORAGE_ACCOUNT_NAME',
        )
    return found


def _cut(text: str) -> str:
    """Shorten what is quoted in an error; a user name and password are left out."""
    if "@" in text and ":" in text.partition("://")[2].partition("@")[0]:
        return "(a URL with a password)"
    return repr(text if len(text) <= 200 else text[:200] + "…")
