"""``[metadata]`` that names no store is refused, naming the field and the remedy."""

from __future__ import annotations

import pytest

from tiercache.errors import ConfigError
from tiercache.metadata.open import open_metadata
from tiercache.policy.urls import OriginUrl, parse_metadata_url
from tiercache.settings import MetadataSettings, ProfileSettings


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "/plain/path",
        "lmdb",
        "lmdb:",
        "lmdb:/",
        "lmdb:relative",
        "lmdb:/a/../b",
        "lmdb:/a//b",
        "lmdb://host/a",
        "s3:/bucket/x",
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket/x",
        "s3://bucket/a//b",
        "s3://bucket/sp ace",
        "s3://bucket/../x",
        "file://relative",
        "http://host/x",
        "gcp://bucket/x",
        "memory://x",
    ],
)
async def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_metadata(MetadataSettings(url=url), {"default": ProfileSettings()})
    assert "metadata.url" in str(caught.value) and caught.value.remedy
    assert "secret" not in str(caught.value)


def test_good_urls() -> None:
    assert parse_metadata_url("lmdb:/mnt/ebs/tiercache/") == "/mnt/ebs/tiercache"
    for url, (scheme, bucket, prefix) in {
        "s3://bucket": ("s3", "bucket", ""),
        "s3://express--usw2-az1--x-s3/a/b-c_d.e": ("s3", "express--usw2-az1--x-s3", "a/b-c_d.e"),
        "gcs://bucket/x/": ("gs", "bucket", "x"),
        "abfs://box@account.dfs.core.windows.net/x": ("az", "box", "x"),
        "file:///srv/meta": ("file", "/srv/meta", ""),
    }.items():
        parsed = parse_metadata_url(url)
        assert isinstance(parsed, OriginUrl)
        assert (parsed.scheme, parsed.bucket, parsed.prefix) == (scheme, bucket, prefix)


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ({"default": ProfileSettings()}, "metadata.profile"),
        ({"meta": ProfileSettings(name="meta", driver="fsspec")}, 'driver = "fsspec"'),
        ({"meta": ProfileSettings(name="meta", endpoint="host:9000")}, "endpoint is no URL"),
    ],
)
async def test_bad_profiles(profiles: dict[str, ProfileSettings], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_metadata(MetadataSettings(url="s3://bucket/x", profile="meta"), profiles)
    assert said in str(caught.value) and caught.value.remedy


async def test_an_azure_store_needs_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="storage account"):
        await open_metadata(MetadataSettings(url="az://box/x"), {"default": ProfileSettings()})
