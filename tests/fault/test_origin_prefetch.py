"""Prefetch jobs: what they count, where they end, and what is left of them after a crash."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault.origin_rig import Rig, eventually, kill_agent, rig_of
from tiercache.errors import NotFound
from tiercache.model import JobState
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.testing.proxy import Fault
from tiercache.units import KIB, MIB

SMALL = {f"d/small/{n:03}.bin": object_bytes(n, 20 * KIB + n) for n in range(40)}
LARGE = {f"d/large/{n}.tar": object_bytes(f"l{n}", 3 * MIB + n) for n in range(3)}
ALL = {**SMALL, **LARGE, "d/notes.txt": b"notes", "d/empty": b""}
ALL_BYTES = sum(map(len, ALL.values()))


@pytest.fixture
def rig(s3: S3Server, new_bucket: Callable[[ObjectServer], str], tmp_path: Path) -> Iterator[Rig]:
    with rig_of(s3, new_bucket(s3), tmp_path) as rig:
        rig.limits = {"connect_timeout_s": 2.0, "request_timeout_s": 10.0, "deadline_s": 15.0}
        rig.server.put_many(rig.bucket, ALL.items())
        yield rig


def gets(rig: Rig) -> int:
    return len([e for e in rig.proxy.exchanges("GET", "/d/") if "list-type" not in e.path])


def test_a_job_fetches_everything_once_and_counts_it(rig: Rig) -> None:
    ns = rig.namespace()
    job = ns.prefetch("/m/d").wait(30)
    assert (job.state, job.listing_done, job.failed, job.errors) == (JobState.DONE, True, 0, ())
    assert (job.listed, job.listed_bytes) == (len(ALL), ALL_BYTES)
    assert (job.filled_bytes, job.hit_bytes) == (ALL_BYTES, 0)
    assert job.filled + job.hit == len(ALL)
    assert rig.proxy.bytes_out("/d/") >= ALL_BYTES
    assert rig.proxy.peak_in_flight > 8
    rig.proxy.clear()
    again = ns.prefetch("/m/d").wait(30)
    assert (again.hit, again.hit_bytes, again.filled) == (len(ALL), ALL_BYTES, 0)
    assert gets(rig) == 0
    rig.proxy.refuse()
    for key, data in ALL.items():
        assert ns.read(f"/m/{key}") == data
    assert job.requests >= len(SMALL) + len(LARGE)


def test_include_and_exclude(rig: Rig) -> None:
    ns = rig.namespace()
    job = ns.prefetch("/m/d", include=["**/*.bin", "*.txt"], exclude=["**/01*.bin"]).wait(30)
    wanted = [key for key in SMALL if "/01" not in key] + ["d/notes.txt"]
    assert (job.state, job.listed, job.filled) == (JobState.DONE, len(wanted), len(wanted))
    for key, data in ALL.items():
        assert ns.cached_bytes(f"/m/{key}") == (len(data) if key in wanted else 0)


def test_a_dry_run_fetches_nothing_and_says_what_would_be(rig: Rig) -> None:
    ns = rig.namespace()
    assert ns.read("/m/d/large/0.tar") == ALL["d/large/0.tar"]
    rig.proxy.clear()
    job = ns.prefetch("/m/d", dry_run=True).wait(30)
    assert (job.state, job.dry_run, job.listed) == (JobState.DONE, True, len(ALL))
    there = len(LARGE["d/large/0.tar"])
    assert job.hit_bytes == there and job.filled_bytes == ALL_BYTES - there
    assert gets(rig) == 0
    real = ns.prefetch("/m/d").wait(30)
    assert (real.requests, real.filled) == (job.requests, job.filled)
    assert gets(rig) == job.requests


def test_max_bytes_ends_the_job_and_is_never_passed(rig: Rig) -> None:
    ns = rig.namespace()
    job = ns.prefetch("/m/d/small", max_bytes=300 * KIB).wait(30)
    assert (job.state, job.error_class) == (JobState.LIMIT, "CacheFull")
    assert 250 * KIB < job.filled_bytes <= 300 * KIB
    assert job.skipped == len(SMALL) - job.filled
    assert rig.proxy.bytes_out("/d/small/") <= 300 * KIB


def test_many_paths_files_urls_and_names_that_are_not_there(rig: Rig) -> None:
    ns = rig.namespace()
    url = f"s3://{rig.bucket}/d/large/1.tar"
    job = ns.prefetch(["/m/d/notes.txt", url, "/m/d/small"]).wait(30)
    assert (job.state, job.filled) == (JobState.DONE, len(SMALL) + 2)
    missing = ns.prefetch(["/m/never"]).wait(30)
    assert (missing.state, missing.error_class) == (JobState.FAILED, "NotFound")
    nowhere = ns.prefetch(["/nowhere/at/all"]).wait(30)
    assert (nowhere.state, nowhere.error_class) == (JobState.FAILED, "NotFound")
    with pytest.raises(NotFound):
        ns.job("no-such-job")


def test_a_killed_agent_s_job_goes_on_and_fetches_only_what_is_missing(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    # Slow enough to be caught in the middle.
    rig.proxy.inject(Fault(methods=("GET",), path_contains=".bin", first_byte_delay_s=0.15))
    job = ns.prefetch("/m/d", concurrency=4)
    eventually(lambda: job.progress().filled >= 12, every_s=0.005)
    kill_agent(ns)
    rig.proxy.heal()
    before = gets(rig)
    assert before < len(ALL)
    rig.proxy.clear()
    ended = job.wait(30)
    assert (ended.id, ended.state, ended.failed) == (job.id, JobState.DONE, 0)
    # The index may lag behind by one commit: what each of the four workers did last.
    assert ended.hit >= 12 - 2 * 4 and ended.hit + ended.filled == len(ALL)
    assert gets(rig) == ended.requests <= len(ALL)
    assert gets(rig) <= ended.filled + len(LARGE)
    rig.proxy.refuse()
    for key, data in ALL.items():
        assert ns.read(f"/m/{key}") == data


def test_a_foreground_job_ends_with_its_agent(rig: Rig) -> None:
    ns = rig.namespace(embedded=False)
    rig.proxy.inject(Fault(methods=("GET",), path_contains=".bin", first_byte_delay_s=0.3))
    job = ns.prefetch("/m/d", concurrency=2, background=False)
    eventually(lambda: job.progress().filled >= 2)
    kill_agent(ns)
    with pytest.raises(NotFound):
        job.wait(10)


def test_a_cancelled_job_keeps_what_it_has(rig: Rig) -> None:
    ns = rig.namespace()
    rig.proxy.inject(Fault(methods=("GET",), path_contains=".bin", first_byte_delay_s=0.1))
    job = ns.prefetch("/m/d/small", concurrency=2)
    eventually(lambda: job.progress().filled >= 4)
    ended = job.cancel()
    assert ended.state is JobState.CANCELLED and ended.ended and 4 <= ended.filled < len(SMALL)
    rig.proxy.heal()
    assert ns.prefetch("/m/d/small").wait(30).hit >= ended.filled


def test_a_listing_that_breaks_off_fails_the_job_and_is_not_kept(rig: Rig) -> None:
    rig.limits["deadline_s"] = 1.0
    rig.server.put_many(rig.bucket, ((f"many/{n:04}", b"x") for n in range(1200)))
    ns = rig.namespace()
    rig.proxy.inject(
        Fault(methods=("GET",), path_contains="continuation-token", respond_status=500)
    )
    job = ns.prefetch("/m/many").wait(30)
    assert (job.state, job.listing_done) == (JobState.FAILED, False)
    assert job.error_class == "OriginUnavailable" and job.message
    assert job.listed == 1000
    rig.proxy.heal()
    again = ns.prefetch("/m/many").wait(30)
    assert (again.state, again.listed) == (JobState.DONE, 1200)
    assert again.hit + again.filled == 1200


def test_objects_that_vanish_or_change_between_listing_and_fetch(rig: Rig) -> None:
    ns = rig.namespace(ttl_s=3600.0)
    ns.list("/m/d", recursive=True)
    rig.delete("d/small/003.bin")
    rig.put("d/small/004.bin", b"another version")
    rig.put("d/large/1.tar", ALL["d/large/2.tar"])
    job = ns.prefetch("/m/d").wait(30)
    assert (job.state, job.failed) == (JobState.FAILED, 1), job.errors
    ((path, message),) = job.errors
    assert path == "/m/d/small/003.bin" and message
    assert job.hit + job.filled == len(ALL) - 1
    assert ns.read("/m/d/small/004.bin") == b"another version"
    assert ns.read("/m/d/large/1.tar") == ALL["d/large/2.tar"]
    assert not ns.exists("/m/d/small/003.bin")


def test_an_outage_fails_the_items_it_meets_and_no_more(rig: Rig) -> None:
    rig.limits = {"connect_timeout_s": 0.3, "request_timeout_s": 0.7, "deadline_s": 1.0}
    ns = rig.namespace()
    rig.proxy.inject(Fault(methods=("GET",), path_contains="/small/01", respond_status=500))
    job = ns.prefetch("/m/d").wait(30)
    assert (job.state, job.failed, job.error_class) == (JobState.FAILED, 10, "OriginUnavailable")
    assert job.hit + job.filled == len(ALL) - 10
    rig.proxy.heal()
    assert ns.prefetch("/m/d").wait(30).state is JobState.DONE


def test_a_job_larger_than_the_cache_ends_at_its_limit_and_keeps_what_it_fetched(
    rig: Rig,
) -> None:
    items = {f"huge/{n:02}": object_bytes(f"h{n}", 3 * MIB) for n in range(40)}
    rig.server.put_many(rig.bucket, items.items())
    ns = rig.namespace(capacity_bytes=64 * MIB)
    job = ns.prefetch("/m/huge").wait(60)
    assert (job.state, job.error_class) == (JobState.LIMIT, "CacheFull")
    assert job.skipped and job.filled + job.skipped == len(items)
    kept = sum(ns.cached_bytes(f"/m/{key}") for key in items)
    assert kept == job.filled_bytes, "it has evicted nothing that it fetched itself"
    assert kept > 40 * MIB, "and it has used the room there is"
    assert ns.status()["cache"]["evicted_extents"] == 0


def test_pinned_prefetch_survives_pressure(rig: Rig) -> None:
    items = {f"other/{n:02}": object_bytes(f"o{n}", 4 * MIB) for n in range(20)}
    rig.server.put_many(rig.bucket, items.items())
    ns = rig.namespace(capacity_bytes=64 * MIB)
    assert ns.prefetch("/m/d", pin=True).wait(30).state is JobState.DONE
    for key, data in items.items():
        assert ns.read(f"/m/{key}") == data
    assert ns.status()["cache"]["evicted_extents"] > 0
    rig.proxy.refuse()
    time.sleep(0.01)
    for key, data in ALL.items():
        assert ns.read(f"/m/{key}") == data
