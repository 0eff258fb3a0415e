"""Origin URLs and the identities made of them."""

from __future__ import annotations

import pytest

from tiercache.errors import ConfigError
from tiercache.policy.urls import OriginUrl, endpoint_name, identity, parse_origin_url
from tiercache.settings import ProfileSettings

PLAIN = ProfileSettings()
AZURE = ProfileSettings(account="acct")


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "prefix"),
    [
        ("s3://bucket", "s3", "bucket", ""),
        ("s3://bucket/", "s3", "bucket", ""),
        ("s3a://bucket/a/b/", "s3", "bucket", "a/b"),
        ("S3://bucket/A", "s3", "bucket", "A"),
        ("s3://bucket/odd name/ü?#%2F", "s3", "bucket", "odd name/ü?#%2F"),
        ("s3://bucket//x//", "s3", "bucket", "/x/"),
        ("gs://bucket/p", "gs", "bucket", "p"),
        ("gcs://bucket/p", "gs", "bucket", "p"),
        ("az://container/p", "az", "container", "p"),
        ("azure://container", "az", "container", ""),
        ("abfs://container/p", "az", "container", "p"),
        ("abfss://fs@acct.dfs.core.windows.net/p/q", "az", "fs", "p/q"),
        ("oci://bucket@namespace/prefix", "oci", "bucket@namespace", "prefix"),
        ("file:///data/set", "file", "/data/set", ""),
        ("file:///data/set/", "file", "/data/set", ""),
        ("local:///data", "file", "/data", ""),
        ("memory://box/p", "memory", "box", "p"),
        ("hdfs://name:8020/warehouse", "hdfs", "name:8020", "warehouse"),
    ],
)
def test_parse(text: str, scheme: str, bucket: str, prefix: str) -> None:
    url = parse_origin_url(text)
    assert (url.scheme, url.bucket, url.prefix) == (scheme, bucket, prefix)
    assert parse_origin_url(str(url)) == url or url.account


def test_account_in_an_azure_url() -> None:
    assert parse_origin_url("abfss://fs@acct.dfs.core.windows.net/p").account == "acct"


def test_key_prefix() -> None:
    assert parse_origin_url("s3://b/a/b").key_prefix == "a/b/"
    assert parse_origin_url("s3://b").key_prefix == ""


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bucket/prefix", "scheme://bucket/prefix"),
        ("s3:/bucket", "scheme://bucket/prefix"),
        ("s4://bucket", "s3://"),
        ("xyzzy://bucket", "known are"),
        ("gss://bucket", "gs://"),
        ("s3://", "s3://bucket"),
        ("s3:///prefix", "s3://bucket"),
        ("s3://buc ket/x", "spelling"),
        ("file://relative/dir", "file:///relative/dir"),
        ("file:///a/../b", ".."),
        ("s3://bucket:9000/x", "profile"),
    ],
)
def test_refused_with_a_remedy(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_origin_url(text)
    assert hint in caught.value.remedy


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "sftp", "s9"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_origin_url(f"{scheme}://AKIAKEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_other_protocols_can_be_made_known() -> None:
    with pytest.raises(ConfigError):
        parse_origin_url("mystore://b")
    assert parse_origin_url("mystore://b/p", more_schemes={"mystore"}).scheme == "mystore"


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("s3://b/any/prefix", PLAIN, "s3://b"),
        ("s3a://b", ProfileSettings(region="eu-west-1", anonymous=True), "s3://b"),
        ("s3://b", ProfileSettings(endpoint="http://Host:9000/"), "s3://b@host:9000"),
        ("gcs://b/x", PLAIN, "gs://b"),
        ("az://c/x", AZURE, "az://c@acct"),
        ("abfss://c@other.dfs.core.windows.net", PLAIN, "az://c@other"),
        (
            "az://c",
            ProfileSettings(account="acct", endpoint="http://127.0.0.1:1/acct"),
            "az://c@acct@127.0.0.1:1/acct",
        ),
        ("file:///data", PLAIN, "file:///data"),
        ("oci://b@ns/p", PLAIN, "oci://b@ns"),
    ],
)
def test_identity(text: str, profile: ProfileSettings, expected: str) -> None:
    assert identity(parse_origin_url(text), profile) == expected


def test_azure_needs_one_account() -> None:
    url = parse_origin_url("az://c")
    assert identity(url, PLAIN, account="from-env") == "az://c@from-env"
    with pytest.raises(ConfigError, match="no storage account"):
        identity(url, PLAIN)
    with pytest.raises(ConfigError, match="other"):
        identity(OriginUrl(scheme="az", bucket="c", account="other"), AZURE)


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("s3://a/x", PLAIN, "s3"),
        ("s3://b", ProfileSettings(region="us-east-1"), "s3:us-east-1"),
        ("s3://b", ProfileSettings(endpoint="https://s3.example.com"), "s3.example.com"),
        ("az://c", AZURE, "az:acct"),
        ("file:///data", PLAIN, "file:/data"),
    ],
)
def test_endpoint_name(text: str, profile: ProfileSettings, expected: str) -> None:
    assert endpoint_name(parse_origin_url(text), profile) == expected
