"""prefetch: plans, bars, limits, interruption, background, URLs without a configuration."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import BIG, Cli, configuration
from tiercache.testing.object_servers import S3Server
from tiercache.testing.proxy import Fault, FaultyProxy

pytestmark = [pytest.mark.timeout(180), pytest.mark.emulator]


def test_plan_then_fetch_then_nothing_to_do(cli: Cli) -> None:
    plan = cli("prefetch", "/m", "--dry-run", "--json")
    assert plan.code == 0, plan.err
    document = plan.json
    assert (document["listed"], document["hit"], document["filled"]) == (21, 0, 21)
    assert document["filled_bytes"] == 60000 + len(BIG)
    assert document["requests"] >= 21
    assert "to fetch" in cli("prefetch", "/m", "-n").text
    done = cli("prefetch", "/m", "--json")
    assert (done.code, done.json["state"], done.json["filled"]) == (0, "done", 21)
    again = cli("prefetch", "/m", "--json", "--progress", "json").json
    assert (again["hit"], again["filled"], again["exit_code"]) == (21, 0, 0)
    assert cli("du", "-s", "--json", "/m").json[0]["cached_bytes"] == 60000 + len(BIG)


def test_globs_lists_of_paths_pin_and_limits(cli: Cli, tmp_path: Path) -> None:
    picked = cli("prefetch", "/m", "--include", "00*.bin", "--exclude", "*5.bin", "--json").json
    assert (picked["listed"], picked["filled"]) == (9, 9)
    paths = tmp_path / "paths"
    paths.write_text("# the last two\n/m/s/018.bin\n\n/m/s/019.bin\n")
    assert cli("prefetch", "-f", str(paths), "--json", "--pin").json["filled"] == 2
    assert cli("status", "--json").json["pins"] == ["/m/s/018.bin", "/m/s/019.bin"]
    piped = cli("prefetch", "-f", "-", "--json", given=b"/m/s/017.bin\n").json
    assert piped["filled"] == 1
    limited = cli("prefetch", "/m", "--max-bytes", "10kB", "--json")
    assert limited.code == 6
    assert limited.json["state"] == "limit-reached"
    assert limited.json["filled_bytes"] <= 10000


def test_an_announced_order_ends_when_it_was_read(cli: Cli) -> None:
    order = [f"/m/s/{number:03}.bin" for number in (4, 2, 9, 2)]
    listed = "".join(f"{path}\n" for path in order).encode()
    started = cli("prefetch", "--ordered", "-f", "-", "--background", "--json", given=listed)
    job = started.json["job"]
    assert started.code == 0
    for path in order:
        assert cli("cat", path).code == 0
    watched = cli("prefetch", "--watch", job, "--json", "--progress", "json")
    assert (watched.code, watched.json["state"], watched.json["ordered"]) == (0, "done", True)
    assert watched.json["read"] == watched.json["listed"] == len(order)
    for option in ("--pin", "--dry-run", "--include=*", "--exclude=*", "--max-bytes=1kB"):
        refused = cli("prefetch", "--ordered", option, "/m/s/004.bin")
        assert refused.code == 2 and "--ordered" in refused.err


def test_mistakes(cli: Cli) -> None:
    assert cli("prefetch").code == 2
    assert cli("prefetch", "m").code == 2
    assert cli("prefetch", "/m", "--jobs").code == 2
    assert cli("prefetch", "/m", "--max-bytes", "much").code == 2
    missing = cli("prefetch", "/m/nope")
    assert missing.code == 3
    assert "no such object" in missing.err
    assert cli("prefetch", "--watch", "12345678").code == 3
    assert cli("prefetch", "-f", "/no/such/list").code == 3


def test_background_jobs_are_listed_watched_and_cancelled(cli: Cli) -> None:
    started = cli("prefetch", "/m", "--background")
    assert started.code == 0
    job = started.text.strip()
    watched = cli("prefetch", "--watch", job, "--json")
    assert (watched.code, watched.json["id"], watched.json["filled"]) == (0, job, 21)
    assert [found["id"] for found in cli("prefetch", "--jobs", "--json").json] == [job]
    assert job in cli("status").text
    assert cli("prefetch", "--cancel", job).code == 0


def test_urls_need_no_configuration_file(
    s3: S3Server, bucket: str, tmp_path: Path, make_cli: Callable[[str], Cli]
) -> None:
    bare = make_cli("")
    bare.env = {
        "TIERCACHE_CONFIG": "",
        "TIERCACHE_CACHE__DIR": str(tmp_path / "bare"),
        "TIERCACHE_PROFILE__DEFAULT__ENDPOINT": s3.endpoint,
        "TIERCACHE_PROFILE__DEFAULT__ADDRESSING": "path",
        "TIERCACHE_AGENT__IDLE_TIMEOUT": "30s",
    }
    assert bare("config", "path").text == ""
    done = bare("prefetch", f"s3://{bucket}/data/s", "--json")
    assert done.code == 0, done.err
    assert done.json["filled"] == 20
    summed = bare("du", "-s", "--json", f"s3://{bucket}/data/s").json
    assert summed[0]["cached_bytes"] == 60000


def test_interrupted_and_started_again_it_fetches_what_is_missing(
    s3: S3Server, bucket: str, tmp_path: Path, make_cli: Callable[[str], Cli]
) -> None:
    with FaultyProxy(s3.endpoint) as proxy:
        cli = make_cli(configuration(tmp_path / "cache", bucket, proxy.url))
        # A file at a time, each after a third of a second.
        proxy.inject(Fault(methods=("GET",), path_contains=".bin", first_byte_delay_s=0.3))
        process = cli.start(
            "prefetch", "/m/s", "--concurrency", "1", "--json", start_new_session=True
        )
        deadline = time.monotonic() + 60
        while True:
            jobs = cli("prefetch", "--jobs", "--json").json
            if jobs and jobs[0]["filled"] >= 3:
                break
            assert time.monotonic() < deadline
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert b'"state": "cancelled"' in out
        before = cli("prefetch", "--jobs", "--json").json[0]
        assert before["state"] == "cancelled"
        assert 3 <= before["filled"] < 20
        proxy.heal()
        proxy.clear()
        again = cli("prefetch", "/m/s", "--json")
        assert again.code == 0, again.err
        # One more may have been on its way when the job was cancelled.
        assert before["filled"] <= again.json["hit"] <= before["filled"] + 1
        assert again.json["hit"] + again.json["filled"] == 20
        gets = proxy.exchanges("GET", ".bin")
        assert len(gets) == again.json["filled"]
