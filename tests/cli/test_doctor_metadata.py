"""What doctor says of the metadata store, and the short form in a real configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, configuration
from tests.fault.origin_rig import eventually
from tiercache.testing.object_servers import S3Server

pytestmark = pytest.mark.timeout(90)
MakeCli = Callable[[str], Cli]


def findings(cli: Cli, *options: str) -> list[tuple[str, str]]:
    """Return (level, text) of what doctor says of the store."""
    said = cli("doctor", "--json", *options).json
    return [(found["level"], found["text"]) for found in said if found["what"] == "metadata store"]


def test_none_is_said(make_cli: MakeCli, tmp_path: Path, bucket: str, s3: S3Server) -> None:
    cli = make_cli(configuration(tmp_path / "cache", bucket, s3.endpoint))
    assert findings(cli) == [("ok", "none: what is known goes with the cache directory")]


def test_a_volume(make_cli: MakeCli, tmp_path: Path, bucket: str, s3: S3Server) -> None:
    place = tmp_path / "volume"
    text = f'metadata = "lmdb:{place}"\n'
    cli = make_cli(text + configuration(tmp_path / "cache", bucket, s3.endpoint))
    warned, empty = findings(cli)
    assert warned[0] == "warn" and "on the device of the cache" in warned[1]
    assert empty == ("ok", f"lmdb:{place} is empty: the first agent makes the store")
    assert cli("ls", "/m").code == 0
    status = cli("status", "--json").json["metadata"]
    eventually(lambda: cli("status", "--json").json["metadata"]["state"] == "attached")
    identity = cli("status", "--json").json["metadata"]["identity"]
    assert status["url"] == f"lmdb:{place}"
    assert f"metadata       lmdb:{place}, attached" in cli("status").text
    place.chmod(0o755)
    said = findings(cli, "--no-network")
    assert any(level == "warn" and "others may enter" in text for level, text in said)
    assert any(level == "ok" and identity in text for level, text in said)
    assert f'url = "lmdb:{place}"' in cli("config", "show").text


def test_a_bucket(make_cli: MakeCli, tmp_path: Path, bucket: str, s3: S3Server) -> None:
    prefix = f"meta-{os.urandom(4).hex()}"
    text = f'metadata = "s3://{bucket}/{prefix}"\n'
    cli = make_cli(text + configuration(tmp_path / "cache", bucket, s3.endpoint))
    (empty,) = findings(cli)
    assert empty == ("ok", f"s3://{bucket}/{prefix} is empty: the first agent makes the store")
    assert not s3.keys(bucket, prefix)  # what was tried is removed again
    assert findings(cli, "--no-network") == []
    assert cli("ls", "/m").code == 0
    eventually(lambda: cli("status", "--json").json["metadata"]["state"] == "attached")
    ((level, said),) = findings(cli)
    assert level == "ok" and "answers in" in said
    assert cli("status", "--json").json["metadata"]["state"] == "attached"  # it fenced nobody
    down = (
        f'[metadata]\nurl = "s3://{bucket}/{prefix}"\nprofile = "down"\ndeadline = "2s"\n'
        '[profile.down]\nendpoint = "http://127.0.0.1:1"\ndeadline = "1s"\n'
    )
    lost = make_cli(configuration(tmp_path / "other", bucket, s3.endpoint) + down)
    ended = lost("doctor", "--json")
    assert ended.code == 5, ended.text
    assert {f["level"] for f in ended.json if f["what"] == "metadata store"} == {"fail"}
    assert "tiercache-test" not in ended.text, "a key in the output"
