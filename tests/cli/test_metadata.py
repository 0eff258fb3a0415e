"""tiercache metadata on real engines: moved there and back, checked, cut off, in use by others."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, configuration
from tests.integration.metadata_rig import (
    Pairs,
    held,
    job_pair,
    listing_pairs,
    name_pair,
    pin_pair,
    snapshot_pairs,
    some_pairs,
)
from tiercache.metadata.open import open_metadata
from tiercache.settings import MetadataSettings, ProfileSettings
from tiercache.testing.object_servers import ObjectServer, S3Server

pytestmark = pytest.mark.timeout(120)


@dataclass
class Stores:
    """Two stores of different engines, and the command line whose configuration names the first.
    Helpers go around the code under test."""

    cli: Cli
    lmdb: str
    slate: str
    profiles: dict[str, ProfileSettings]
    folder: Path

    def write(self, url: str, pairs: dict[bytes, bytes | None]) -> None:
        async def write() -> None:
            store = await open_metadata(MetadataSettings(url=url), self.profiles)
            try:
                await store.commit(pairs)
            finally:
                await store.close()

        asyncio.run(write())

    def read(self, url: str) -> Pairs:
        async def read() -> Pairs:
            settings = MetadataSettings(url=url)
            store = await open_metadata(settings, self.profiles, read_only=True)
            try:
                return await held(store)
            finally:
                await store.close()

        return asyncio.run(read())


@pytest.fixture
def stores(
    s3: S3Server,
    new_bucket: Callable[[ObjectServer], str],
    tmp_path: Path,
    make_cli: Callable[[str], Cli],
) -> Stores:
    bucket = new_bucket(s3)
    lmdb, slate = f"lmdb:{tmp_path}/volume", f"s3://{bucket}/meta"
    text = configuration(tmp_path / "cache", bucket, s3.endpoint)
    cli = make_cli(f'{text}\n[metadata]\nurl = "{lmdb}"\n')
    return Stores(cli, lmdb, slate, {"default": s3.profile()}, tmp_path)


def test_there_and_back_again(stores: Stores) -> None:
    """LMDB to SlateDB by copy, to a file by export, back into LMDB by import: byte for byte."""
    stores.write(stores.lmdb, dict(some_pairs()))
    copied = stores.cli("metadata", "copy", stores.lmdb, stores.slate, "--json")
    assert copied.code == 0, copied.err
    assert copied.json["verified"]["records"] == len(some_pairs())
    assert stores.read(stores.slate) == some_pairs()

    dump = stores.folder / "dump.jsonl.gz"
    exported = stores.cli("metadata", "export", str(dump), "--store", stores.slate, "--json")
    assert exported.code == 0, exported.err
    assert exported.json["records"] == len(some_pairs())
    assert json.loads(gzip.decompress(dump.read_bytes()).splitlines()[0])["version"] == 1
    assert dump.stat().st_mode & 0o777 == 0o600

    back = f"lmdb:{stores.folder}/back"
    imported = stores.cli("metadata", "import", str(dump), "--store", back)
    assert imported.code == 0, imported.err
    assert "read back and found right" in imported.err
    assert stores.read(back) == some_pairs()
    checks = [stores.cli("metadata", "check", url, "--json") for url in (stores.slate, back)]
    assert [check.code for check in checks] == [0, 0]
    assert len({check.json["crc32c"] for check in checks}) == 1
    assert len({check.json["identity"] for check in checks}) == 2


def test_a_hundred_thousand_names_there_and_back(stores: Stores) -> None:
    pairs = pin_pair("/m/train")
    names = [f"sample-{number:06}.jpg" for number in range(100_000)]
    for number, name in enumerate(names):
        pairs |= name_pair(f"train/{name}", size_bytes=number)
    parts = [tuple(names[start : start + 8192]) for start in range(0, len(names), 8192)]
    pairs |= listing_pairs("train/", *parts)
    stores.write(stores.lmdb, dict(pairs))
    back = f"lmdb:{stores.folder}/back"
    for source, target in ((stores.lmdb, stores.slate), (stores.slate, back)):
        copied = stores.cli("metadata", "copy", source, target, "--json")
        assert copied.code == 0, copied.err
        assert copied.json["verified"]["records"] == len(pairs) == 100_014
    assert stores.read(back) == pairs


def test_through_a_pipe(stores: Stores) -> None:
    stores.write(stores.lmdb, dict(some_pairs()))
    exported = stores.cli("metadata", "export", "-")
    assert exported.code == 0, exported.err
    assert f"exported {len(some_pairs())} records" in exported.err
    assert "1 of them cannot be read by this version" in exported.err
    target = f"lmdb:{stores.folder}/piped"
    imported = stores.cli("metadata", "import", "-", "--store", target, given=exported.out)
    assert imported.code == 0, imported.err
    assert stores.read(target) == some_pairs()
    cut_off = stores.cli("metadata", "import", "-", "--merge", given=exported.out[:-20])
    assert cut_off.code == 4
    assert "standard input: line" in cut_off.err and "cut off" in cut_off.err


def test_a_store_that_holds_something_is_refused_unless_told(stores: Stores) -> None:
    own = pin_pair("/own")
    stores.write(stores.lmdb, dict(some_pairs()))
    stores.write(stores.slate, dict(own))
    copy = ("metadata", "copy", stores.lmdb, stores.slate)
    refused = stores.cli(*copy)
    assert refused.code == 1
    assert "not empty" in refused.err and "--merge" in refused.err and "--replace" in refused.err
    dry = stores.cli(*copy, "--replace", "--dry-run", "--json")
    assert dry.code == 0 and dry.json["verified"] is None
    assert (dry.json["written"], dry.json["removed"]) == (len(some_pairs()), 1)
    # Its last owner may be alive somewhere.
    for option in ("--merge", "--replace"):
        careful = stores.cli(*copy, option)
        assert careful.code == 1 and "--take-over" in careful.err, careful.err
    assert stores.read(stores.slate) == own
    assert stores.cli(*copy, "--merge", "--take-over").code == 0
    assert stores.read(stores.slate) == some_pairs() | own
    assert stores.cli(*copy, "--replace", "--take-over").code == 0
    assert stores.read(stores.slate) == some_pairs()


def test_a_dry_run_makes_no_store(stores: Stores) -> None:
    stores.write(stores.lmdb, dict(some_pairs()))
    dry = stores.cli("metadata", "copy", stores.lmdb, stores.slate, "--dry-run")
    assert dry.code == 0 and f"would write {len(some_pairs())}" in dry.err
    assert stores.cli("metadata", "check", stores.slate).code == 3


def test_a_copy_that_was_killed_goes_on(stores: Stores) -> None:
    pairs: Pairs = {}
    for number in range(20_000):
        pairs |= name_pair(f"data/{number}")
    stores.write(stores.lmdb, dict(pairs))
    target = f"lmdb:{stores.folder}/target"
    copy = ("metadata", "copy", stores.lmdb, target)
    process = stores.cli.start(*copy)
    # Made by the copy; its batches follow.
    file = stores.folder / "target" / "metadata.lmdb"
    while process.poll() is None and not (file.exists() and file.stat().st_size > 1 << 20):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    again = stores.cli(*copy, "--json")
    assert again.code == 0, again.err
    assert again.json["unchanged"] + again.json["written"] == len(pairs)
    assert stores.read(target) == pairs


def test_an_agent_of_another_node_is_fenced_and_told(stores: Stores) -> None:
    from tiercache.errors import MetadataFenced

    stores.write(stores.lmdb, dict(some_pairs()))

    async def beside_an_agent() -> None:
        agent = await open_metadata(MetadataSettings(url=stores.slate), stores.profiles)
        try:
            await agent.commit(pin_pair("/own"))
            copy = ("metadata", "copy", stores.lmdb, stores.slate, "--merge")
            assert (await asyncio.to_thread(stores.cli, *copy)).code == 1
            await agent.commit(job_pair("11111111"))
            exported = await asyncio.to_thread(
                stores.cli, "metadata", "export", "-", "--store", stores.slate
            )
            assert exported.code == 0 and exported.out.count(b'{"key":') == 2, exported.err
            await agent.check_owner()
            assert (await asyncio.to_thread(stores.cli, *copy, "--take-over")).code == 0
            with pytest.raises(MetadataFenced):
                await agent.commit(pin_pair("/late"))
        finally:
            await agent.close()

    asyncio.run(beside_an_agent())
    assert stores.read(stores.slate) == some_pairs() | pin_pair("/own") | job_pair("11111111")


def test_a_volume_in_use_is_read_and_not_written(stores: Stores) -> None:
    other = f"lmdb:{stores.folder}/other"
    stores.write(other, dict(pin_pair("/o")))

    async def beside_an_agent() -> None:
        agent = await open_metadata(MetadataSettings(url=stores.lmdb), stores.profiles)
        try:
            await agent.commit(some_pairs())
            for arguments in (("export", "-"), ("check",)):
                done = await asyncio.to_thread(stores.cli, "metadata", *arguments)
                assert done.code == 0, done.err
            copy = ("metadata", "copy", other, stores.lmdb, "--merge")
            refused = await asyncio.to_thread(stores.cli, *copy)
            assert refused.code == 5 and "another agent has the store" in refused.err
            await agent.commit(job_pair("11111111"))
        finally:
            await agent.close()

    asyncio.run(beside_an_agent())
    assert stores.read(stores.lmdb) == some_pairs() | job_pair("11111111")


def test_while_the_agent_of_this_directory_runs(stores: Stores) -> None:
    stores.write(stores.lmdb, dict(snapshot_pairs("v1", ("a",))))
    dump = stores.folder / "dump"
    assert stores.cli("metadata", "export", str(dump)).code == 0
    assert stores.cli("agent", "start").code == 0
    for arguments in (("import", str(dump), "--replace"), ("check", "--repair")):
        refused = stores.cli("metadata", *arguments)
        assert refused.code == 1, refused.err
        assert "an agent serves" in refused.err and "tiercache agent stop" in refused.err
    assert stores.cli("metadata", "check").code == 0
    assert stores.cli("metadata", "import", str(dump), "--merge", "--dry-run").code == 0
    assert stores.cli("agent", "stop").code == 0
    again = stores.cli("metadata", "import", str(dump), "--replace")
    assert again.code == 0, again.err


def test_check_names_damage_and_repairs_it(stores: Stores) -> None:
    pairs = listing_pairs("d/", ("x",), ("y",)) | pin_pair("/m") | name_pair("k")
    damaged: dict[bytes, bytes | None] = dict(pairs)
    missing = max(key for key in pairs if key[:1] == b"l")
    damaged[next(iter(name_pair("k")))] = b"\x01nonsense"
    del damaged[missing]
    stores.write(stores.slate, damaged)
    check = ("metadata", "check", stores.slate)
    found = stores.cli(*check)
    assert found.code == 7
    assert "listing: listing s3://bucket/d/: 1 of 2 parts" in found.lines
    assert any(line.startswith("record: name ") for line in found.lines)
    assert "2 corruptions, 0 harmless leftovers" in found.lines
    assert stores.cli(*check, "--repair").code == 1  # whose store is it?
    repaired = stores.cli(*check, "--repair", "--take-over", "--json")
    assert (repaired.code, repaired.json["dropped"]) == (7, 2)
    clean = stores.cli(*check, "--json")
    assert clean.code == 0 and clean.json["clean"] and clean.json["by_type"]["pin"] == 1
    assert stores.read(stores.slate) == pin_pair("/m")
    assert stores.cli(*check, "--repair").code == 0  # nothing to take over for


def test_what_cannot_be_done_is_said(stores: Stores) -> None:
    run = stores.cli
    nothing = Cli(stores.folder / "nothing.toml")
    nothing.config.write_text(f'[cache]\ndir = "{stores.folder}/none"\n')
    for arguments, code, text in (
        (("check",), 4, "no metadata store is configured"),
        (("rebuild",), 4, "no metadata store is configured"),
        (("check", "ftp://x/y"), 4, "metadata.url"),
        (("check", f"lmdb:{stores.folder}/none"), 3, "no metadata store is here"),
        (("export", "-", "--store", "s3://x/y", "--profile", "q"), 4, "no profile 'q'"),
        (("copy", "lmdb:/a", "lmdb:/a/"), 2, "one store"),
        (("import", "-", "--merge", "--replace"), 2, "exclude"),
        (("export", "-", "--json"), 2, "name a file"),
    ):
        ended = nothing("metadata", *arguments)
        assert ended.code == code and text in ended.err, (arguments, ended)
    status = nothing("metadata", "status", "--json")
    assert status.json == {"configured_url": "", "running": False, "metadata": None}
    missing = run("metadata", "import", str(stores.folder / "missing.jsonl"))
    assert missing.code == 3 and "missing.jsonl" in missing.err
    foreign = stores.folder / "foreign.gz"
    foreign.write_bytes(b"not gzip")
    refused = run("metadata", "import", str(foreign))
    assert refused.code == 4 and "foreign.gz" in refused.err
    unwritable = run("metadata", "export", str(stores.folder / "no/such/dir/x"))
    assert unwritable.code == 3, unwritable.err


def test_a_failed_export_leaves_no_file(stores: Stores) -> None:
    target = stores.folder / "dump"
    assert stores.cli("metadata", "export", str(target)).code == 3
    assert list(stores.folder.glob("*dump*")) == []


def test_a_store_that_does_not_answer(stores: Stores) -> None:
    text = stores.cli.config.read_text()
    endpoint = next(line for line in text.splitlines() if line.startswith("endpoint"))
    stores.cli.config.write_text(
        text.replace(endpoint, 'endpoint = "http://127.0.0.1:9"') + 'deadline = "2s"\n'
    )
    ended = stores.cli("metadata", "check", stores.slate)
    assert ended.code == 5 and stores.slate in ended.err, ended


def test_nothing_to_do_fences_nobody(stores: Stores) -> None:
    stores.write(stores.lmdb, dict(some_pairs()))
    assert stores.cli("metadata", "copy", stores.lmdb, stores.slate).code == 0

    async def beside_an_agent() -> None:
        agent = await open_metadata(MetadataSettings(url=stores.slate), stores.profiles)
        try:
            for option in ("--merge", "--replace"):
                copy = ("metadata", "copy", stores.lmdb, stores.slate, option, "--json")
                again = await asyncio.to_thread(stores.cli, *copy)
                assert again.code == 0 and again.json["written"] == 0, again.err
                assert again.json["verified"]["records"] == len(some_pairs())
            await agent.commit(job_pair("11111111"))
        finally:
            await agent.close()

    asyncio.run(beside_an_agent())


def test_an_export_is_of_one_moment(stores: Stores) -> None:
    """A listing of many parts is replaced, each time in one commit, while it is exported."""
    parts = [tuple(f"{number:04}-{name:04}" for name in range(500)) for number in range(20)]
    dumps = []

    async def beside_an_agent() -> None:
        agent = await open_metadata(MetadataSettings(url=stores.lmdb), stores.profiles)
        try:
            await agent.commit(listing_pairs("d/", *parts))
            export = asyncio.create_task(asyncio.to_thread(export_four_times))
            time_s = 1000.0
            while not export.done():
                time_s += 1
                await agent.commit(listing_pairs("d/", *parts, validated_unix_s=time_s))
            await export
        finally:
            await agent.close()

    def export_four_times() -> None:
        for number in range(4):
            file = stores.folder / f"{number}.jsonl"
            assert stores.cli("metadata", "export", str(file)).code == 0
            dumps.append([json.loads(line) for line in file.read_text().splitlines()[1:-1]])

    asyncio.run(beside_an_agent())
    moments = [{line["record"]["validated_unix_s"] for line in dump} for dump in dumps]
    assert [len(dump) for dump in dumps] == [20] * 4
    assert all(len(times) == 1 for times in moments)
    assert len(set.union(*moments)) > 1, "nothing was written meanwhile"


def test_the_largest_values_go_everywhere(stores: Stores) -> None:
    pairs = {
        b"z" + bytes([number]): bytes([number]) * (16 * 2**20) for number in range(1, 2)
    } | listing_pairs("d/", *([("\x01" * 1000 + str(number),) * 10 for number in range(300)]))
    stores.write(stores.lmdb, dict(pairs))
    assert stores.cli("metadata", "copy", stores.lmdb, stores.slate).code == 0
    exported = stores.cli("metadata", "export", "-", "--store", stores.slate)
    back = f"lmdb:{stores.folder}/back"
    imported = stores.cli("metadata", "import", "-", "--store", back, given=exported.out)
    assert imported.code == 0, imported.err
    assert stores.read(back) == pairs


def test_interrupted(stores: Stores) -> None:
    pairs: Pairs = {}
    for number in range(20_000):
        pairs |= name_pair(f"data/{number}")
    stores.write(stores.lmdb, dict(pairs))
    process = stores.cli.start("metadata", "copy", stores.lmdb, stores.slate, "--progress", "json")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, 0), err
    again = stores.cli("metadata", "copy", stores.lmdb, stores.slate)
    assert again.code == 0, again.err
    assert stores.read(stores.slate) == pairs


def test_a_pipe_is_written_to_and_stays(stores: Stores) -> None:
    stores.write(stores.lmdb, dict(some_pairs()))
    pipe = stores.folder / "pipe"
    os.mkfifo(pipe)
    process = stores.cli.start("metadata", "export", str(pipe))
    text = pipe.read_bytes()
    process.communicate(timeout=30)
    assert process.returncode == 0 and text.endswith(b'"}\n')
    assert pipe.is_fifo()
    assert stores.cli("metadata", "export", "/dev/full").code == 1
    assert Path("/dev/full").is_char_device()
    assert stores.cli("metadata", "export", str(stores.folder)).code == 1
