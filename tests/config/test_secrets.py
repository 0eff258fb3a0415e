"""Secrets are refused wherever they stand, and never printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.conftest import load_text
from tiercache.config.loading import load
from tiercache.config.secret_words import is_secret_value
from tiercache.errors import ConfigError

pytestmark = pytest.mark.timeout(60)


SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY",
    "-----BEGIN RSA PRIVATE KEY-----x",
    "?sv=2022&ss=b&sig=abcdefghijklmnopqrstuvwx%3D",
    "AccountName=a;AccountKey=abcd",
    "A" * 86 + "==",
    "ya29." + "a" * 30,
    "https://me:hunter22@host/x",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text",
    [
        '[profile.x]\nregion = "a"\naccount = "{}"',
        '[profile.x.options]\na = 1\nb = "{}"',
        '[profile.x]\noptions = {{ b = 1 }}\nwhatever = ["{}"]',
        '[cache]\nunknown = 1\ndir = "{}"',
        '[[mount]]\norigin = "s3://b"\npath = "{}"',
    ],
)
def test_values_that_look_like_secrets_are_refused_unprinted(
    tmp_path: Path, environ: dict[str, str], text: str, secret: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text.format(secret), tmp_path, environ)
    assert "looks like a credential" in caught.value.message
    assert "cloud's own chain" in caught.value.remedy
    assert caught.value.path == f"{tmp_path}/config.toml:3"
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "name",
    [
        "access_key_id", "secret_access_key", "account_key", "sas_token", "token", "password",
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "client_secret",
        "connection_string", "key", "secret", "private_key", "Access-Key-Id",
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["[profile.x]", "[profile.x.options]", "[cache]", "[elsewhere]"])
def test_names_of_secrets_are_refused_unprinted(
    tmp_path: Path, environ: dict[str, str], name: str, table: str
) -> None:
    with pytest.raises(ConfigError, match="is a credential") as caught:
        load_text(f'{table}\n{name} = "hunter2"', tmp_path, environ)
    assert "hunter2" not in str(caught.value)
    assert caught.value.path.endswith(":2")


def test_names_of_methods_are_no_secrets(tmp_path: Path, environ: dict[str, str]) -> None:
    text = '[profile.x]\ndriver = "fsspec"\noptions = { token = "anon" }'
    assert load_text(text, tmp_path, environ).settings.profiles["x"].options == {"token": "anon"}


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/a-rather-long-prefix/of/some/data/v1",
        "/mnt/nvme0/Some/Path/With40Chars/in/it12345",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "https://minio.example:9000",
        "us-east-1",
        "arn:aws:s3:us-west-2:123456789012:accesspoint/point",
    ],
)
def test_ordinary_values_are_no_secrets(value: str) -> None:
    assert not is_secret_value(value)


def test_secrets_in_environment_and_arguments_are_refused(environ: dict[str, str]) -> None:
    name = "TIERCACHE_PROFILE__X__SECRET_ACCESS_KEY"
    with pytest.raises(ConfigError, match="is a credential") as caught:
        load(environ=environ | {name: "hunter2"})
    assert caught.value.path == f"env {name}"
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="credential") as caught:
        load(environ=environ, overrides={"profile.x.options": {"key": "hunter2"}})
    assert "hunter2" not in str(caught.value)
