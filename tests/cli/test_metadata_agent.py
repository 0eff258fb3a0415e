"""What agents know moves with their metadata store: to the premium tier and back, by dumps, and
anew from the origins."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SMALL, Cli, Ended, configuration
from tests.integration.metadata_rig import pin_pair
from tiercache.metadata.dump import line_of
from tiercache.testing.object_servers import ObjectServer, S3Server

pytestmark = pytest.mark.timeout(120)

NAMES = len(SMALL) + 1
SETTLED_S = 20.0


@pytest.fixture
def node(
    s3: S3Server, bucket: str, tmp_path: Path, make_cli: Callable[[str], Cli]
) -> Callable[[str, str], Cli]:
    """Return a maker of nodes: the command line over a cache directory and a store."""

    def make(name: str, store: str) -> Cli:
        text = configuration(tmp_path / name, bucket, s3.endpoint)
        return make_cli(f'{text}\n[metadata]\nurl = "{store}"\n')

    return make


def settled(cli: Cli) -> dict[str, Any]:
    """Return the status once the agent is attached and nothing waits for the store."""
    deadline = time.monotonic() + SETTLED_S
    while True:
        told: dict[str, Any] = cli("metadata", "status", "--json").json["metadata"]
        if told["state"] == "attached" and not told["pending_keys"]:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def stopped(cli: Cli) -> None:
    settled(cli)
    assert cli("agent", "stop").code == 0


def right(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


def pins(cli: Cli) -> list[str]:
    found: list[str] = right(cli("status", "--json")).json["pins"]
    return sorted(found)


def test_from_a_volume_to_the_premium_tier_and_back(
    node: Callable[[str, str], Cli],
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
) -> None:
    volume, tier = f"lmdb:{tmp_path}/volume", f"s3://{new_bucket(s3)}/meta"
    first = node("cache1", volume)
    right(first("ls", "-R", "/m"))
    right(first("pin", "/m/s"))
    settled(first)
    right(first("snapshot", "create", "v1", "/m"))
    stopped(first)
    before = right(first("metadata", "check", "--json")).json
    types = before["by_type"]
    assert before["clean"] and types["listing"] >= 1
    assert [types[name] for name in ("pin", "snapshot", "snapshot-part")] == [1, 1, 1]

    right(first("metadata", "copy", volume, tier))
    second = node("cache2", tier)  # another node, with nothing on its device
    right(second("agent", "start"))
    told = settled(second)
    assert told["url"] == tier and told["imported_records"] >= before["records"]
    assert pins(second) == ["/m/s"]
    assert right(second("snapshot", "show", "v1", "--json")).json["objects"] == NAMES
    right(second("pin", "/m/big.bin"))
    right(second("unpin", "/m/s"))  # which the volume still has: a plain copy would lose that
    stopped(second)

    refused = second("metadata", "copy", tier, volume)
    assert refused.code == 1 and "not empty" in refused.err
    right(second("metadata", "copy", tier, volume, "--replace"))
    right(first("agent", "start"))
    settled(first)
    assert pins(first) == ["/m/big.bin"], "it knows that others wrote"
    stopped(first)
    assert right(first("metadata", "check", "--json")).json["clean"]


def test_an_agent_learns_what_was_imported_while_it_was_away(
    node: Callable[[str, str], Cli], tmp_path: Path
) -> None:
    cli = node("cache", f"lmdb:{tmp_path}/volume")
    right(cli("pin", "/m/s"))
    settled(cli)
    dump = tmp_path / "dump.jsonl"
    right(cli("metadata", "export", str(dump)))  # beside the agent
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    assert {line.get("type", "") for line in lines} >= {"pin"}
    assert not [line for line in lines if line.get("key", "").startswith("77")], "the writer's mark"
    stopped(cli)
    right(cli("metadata", "import", str(dump), "--merge"))
    pair = pin_pair("/m/other")
    other = tmp_path / "other.jsonl"
    write_dump_of(other, pair)
    right(cli("metadata", "import", str(other), "--merge"))
    right(cli("agent", "start"))
    settled(cli)
    assert pins(cli) == ["/m/other", "/m/s"]


def write_dump_of(file: Path, pairs: dict[bytes, bytes]) -> None:
    """As another program would, but for the lines of the records."""
    from crc32c import crc32c

    lines = [b'{"format":"tiercache-metadata","version":1,"made by":"hand"}']
    lines += [line_of(key, pairs[key]) for key in sorted(pairs)]
    text = b"".join(line + b"\n" for line in lines)
    file.write_bytes(text + b'{"records":%d,"crc32c":"%08x"}\n' % (len(pairs), crc32c(text)))


def test_rebuild_learns_names_anew(node: Callable[[str, str], Cli], tmp_path: Path) -> None:
    cli = node("cache", f"lmdb:{tmp_path}/lost")
    dry = right(cli("metadata", "rebuild", "--dry-run", "--json")).json
    assert dry["paths"] == [{"path": "/m", "known": None, "names": None, "requests": 1}]
    rebuilt = right(cli("metadata", "rebuild", "--json")).json
    assert rebuilt["pending_keys"] == 0
    (path,) = rebuilt["paths"]
    assert (path["known"], path["names"]) == (None, NAMES)
    assert 1 <= path["requests"] <= 4  # the probe of the origin lists too
    again = right(cli("metadata", "rebuild", "/m/s", "/m/big.bin", "--dry-run"))
    assert again.lines[0].split() == ["path", "known", "before", "names", "requests"]
    found = right(cli("metadata", "check", "--json")).json
    assert found["clean"] and found["by_type"]["name"] == NAMES, found
    assert found["by_type"]["listing"] >= 1
    some = cli("metadata", "rebuild", "/m/s", "/m/big.bin", "/m/none", "--json")
    assert some.code == 1 and "/m/none" in some.err
    assert [each["names"] for each in some.json["paths"]] == [len(SMALL), 0]


def test_rebuild_without_the_origin_says_so(
    node: Callable[[str, str], Cli], tmp_path: Path
) -> None:
    cli = node("cache", f"lmdb:{tmp_path}/volume")
    text = cli.config.read_text()
    endpoint = next(line for line in text.splitlines() if line.startswith("endpoint"))
    cli.config.write_text(text.replace(endpoint, 'endpoint = "http://127.0.0.1:9"'))
    ended = cli("metadata", "rebuild")
    assert ended.code == 5, ended.err


def test_status_is_for_people_too(node: Callable[[str, str], Cli], tmp_path: Path) -> None:
    store = f"lmdb:{tmp_path}/volume"
    cli = node("cache", store)
    without = right(cli("metadata", "status"))
    assert without.lines == [f"configured  {store}"] and "no agent runs" in without.err
    right(cli("agent", "start"))
    settled(cli)
    lines = right(cli("metadata", "status")).lines
    assert lines[0].split() == ["configured", store]
    assert ["state", "attached"] in [line.split() for line in lines]
