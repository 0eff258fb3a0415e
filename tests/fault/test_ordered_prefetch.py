"""Announced orders, from the reader's side: what is there when it is read, what it costs, and what
becomes of orders that nobody reads."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.belady import belady, trace
from tests.fault.cache_rig import (
    FileOrigin,
    assert_ledger_agrees,
    cache_settings,
    namespace,
    occupied_bytes,
    wait_for,
)
from tiercache.agent import ordered
from tiercache.agent.engine import Engine
from tiercache.client.job import Job
from tiercache.errors import Unsupported
from tiercache.model import Consistency, JobState
from tiercache.namespace import Namespace
from tiercache.units import KIB, MIB

pytestmark = pytest.mark.timeout(180)
SMALL = [256 * KIB] * 240  # packed, four to a pack
LARGE = [3 * MIB] * 20  # several extents each
CAPACITY = 15 * MIB  # a quarter of either


class Scene:
    """A namespace with an embedded agent over an origin of files."""

    def __init__(self, ns: Namespace, origin: FileOrigin, cache: Path, objects: dict[str, bytes]):
        self.ns, self.origin, self.cache = ns, origin, cache
        self.objects = {f"/m/{key}": data for key, data in objects.items()}

    @property
    def engine(self) -> Engine:
        agent = self.ns.client.engine
        assert agent is not None and agent._agent is not None and agent._agent.engine is not None
        return agent._agent.engine

    def trace(self, epochs: int, seed: int = 1) -> list[tuple[str, int]]:
        return trace(
            [(path, len(data)) for path, data in self.objects.items()], epochs=epochs, seed=seed
        )

    def read(self, path: str) -> None:
        assert self.ns.read(path) == self.objects[path]

    def fetched_bytes(self) -> int:
        return int(self.ns.status()["origins"][0]["bytes_read"])


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    yield from scene_of(tmp_path, request.param)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Scene]:
    yield from scene_of(tmp_path, SMALL)


def scene_of(tmp_path: Path, sizes: list[int]) -> Iterator[Scene]:
    origin = FileOrigin(tmp_path / "origin")
    objects = origin.fill("ordered", sizes)
    settings = cache_settings(
        tmp_path / "cache",
        origin.url,
        capacity_bytes=CAPACITY,
        consistency=Consistency.IMMUTABLE,
    )
    with namespace(settings, embedded=True) as ns:
        yield Scene(ns, origin, tmp_path / "cache", objects)


def settled(job: Job) -> int:
    """Return how many objects a job has fetched once it fetches no more."""
    seen = -1

    def rests() -> bool:
        nonlocal seen
        before, seen = seen, job.progress(0.3).filled
        return before == seen > 0

    wait_for(rests, timeout_s=60)
    return seen


@pytest.mark.parametrize("at_once", [True, False], ids=["one order", "an order an epoch"])
def test_three_epochs_of_four_times_the_cache(scene: Scene, at_once: bool) -> None:
    reads = scene.trace(epochs=3)
    paths, per_epoch = [path for path, _ in reads], len(scene.objects)
    jobs = [scene.ns.prefetch(paths, ordered=True)] if at_once else []
    for start in range(0, len(paths), per_epoch):
        epoch = paths[start : start + per_epoch]
        if not at_once:
            jobs.append(scene.ns.prefetch(epoch, ordered=True))
        for path in epoch:
            scene.read(path)
        if not at_once:
            assert jobs[-1].wait(60).state is JobState.DONE
    for job in jobs:
        ended = job.wait(60)
        assert (ended.state, ended.failed, ended.ordered) == (JobState.DONE, 0, True)
        assert ended.read == ended.listed == len(paths) // len(jobs) and ended.listing_done
    assert scene.fetched_bytes() <= 1.25 * belady(reads, CAPACITY)
    assert not scene.engine.space.victims.orders
    assert_ledger_agrees(scene.ns, scene.cache)


def test_without_an_order_nothing_is_fetched_that_is_not_read(scene: Scene) -> None:
    reads = scene.trace(epochs=3)
    for path, _ in reads:
        scene.read(path)
    assert scene.fetched_bytes() <= sum(size for _, size in reads)


def test_what_comes_next_is_there_before_it_is_read_and_no_more_than_fits(scene: Scene) -> None:
    paths = [path for path, _ in scene.trace(epochs=2)]
    job = scene.ns.prefetch(paths, ordered=True)
    filled = settled(job)
    assert scene.ns.status()["cache"]["evicted_bytes"] == 0
    read_ahead = sum(len(scene.objects[path]) for path in paths[:filled])
    assert CAPACITY // 3 < read_ahead < CAPACITY
    for path in paths[:filled]:
        (scene.origin.root / path.removeprefix("/m/")).unlink()
        scene.read(path)  # from the cache: the origin has it no more
    assert job.cancel().state is JobState.CANCELLED


def test_an_order_takes_room_from_what_nobody_announced_and_not_from_pins(small: Scene) -> None:
    paths = list(small.objects)
    pinned, strangers, announced = paths[:8], paths[8:100], paths[100:]
    for path in pinned:
        small.ns.pin(path)
    for path in pinned + strangers:
        small.read(path)
    job = small.ns.prefetch(announced, ordered=True)
    for path in announced:
        small.read(path)
    assert job.wait(60).state is JobState.DONE
    for path in pinned:
        assert small.ns.cached_bytes(path) == len(small.objects[path])


def test_the_capacity_holds_with_many_orders_and_readers(scene: Scene) -> None:
    over: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            occupied = occupied_bytes(scene.cache)
            if occupied > CAPACITY:
                over.append(occupied)

    def rank(number: int) -> None:
        paths = [path for path, _ in scene.trace(epochs=1, seed=number)][number::3]
        job = scene.ns.prefetch(paths, ordered=True)
        for path in paths:
            scene.read(path)
        assert job.wait(60).state is JobState.DONE

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(rank, range(3)))
    finally:
        done.set()
        watcher.join()
    assert not over
    scene.engine.space.ledger.assert_invariants()


def test_a_reader_in_another_order_reads_the_right_bytes(scene: Scene) -> None:
    paths = [path for path, _ in scene.trace(epochs=1)]
    job = scene.ns.prefetch(paths, ordered=True)
    rng = random.Random(3)
    for path in rng.sample(paths, len(paths)):
        scene.read(path)
    assert job.cancel().failed == 0


def test_a_reader_that_begins_in_the_middle_is_found(small: Scene) -> None:
    paths = [path for path, _ in small.trace(epochs=1)]
    job = small.ns.prefetch(paths, ordered=True)
    settled(job)
    for path in paths[100:]:
        small.read(path)
    assert job.wait(60).state is JobState.DONE


def test_objects_too_large_for_a_window_are_left_to_their_readers(tmp_path: Path) -> None:
    for scene in scene_of(tmp_path, [6 * MIB, 100 * KIB, 6 * MIB, 0, 100 * KIB]):
        paths = list(scene.objects)
        job = scene.ns.prefetch(paths, ordered=True)
        wait_for(lambda job=job: job.progress().skipped == 2)  # type: ignore[misc]  # default binds the loop variable
        for path in paths:
            scene.read(path)
        ended = job.wait(60)
        assert (ended.state, ended.failed, ended.skipped) == (JobState.DONE, 0, 2)


def test_an_order_whose_reader_has_gone_is_forgotten(
    small: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "IDLE_S", 1.0)
    paths = list(small.objects)
    job = small.ns.prefetch(paths, ordered=True)
    for path in paths[:20]:
        small.read(path)
    ended = job.wait(60)
    assert (ended.state, ended.error_class) == (JobState.FAILED, "TiercacheError")
    assert "nobody has read on" in ended.message
    assert not small.engine.space.victims.orders
    for path in paths:
        small.read(path)


def test_the_last_reads_are_not_waited_for_for_ever(
    small: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "TAIL_IDLE_S", 0.5)
    paths = list(small.objects)[:20]
    job = small.ns.prefetch(paths, ordered=True)
    for path in paths[:15]:
        small.read(path)
    assert job.wait(60).state is JobState.DONE


def test_names_that_are_no_objects_fail_alone(small: Scene) -> None:
    paths = list(small.objects)[:10]
    small.origin.put("folder/inside", b"x")
    job = small.ns.prefetch([paths[0], "/m/none", "/m/folder", *paths[1:]], ordered=True)
    for path in paths:
        small.read(path)
    ended = job.wait(60)
    assert (ended.state, ended.failed, ended.read) == (JobState.FAILED, 2, 12)
    assert {path for path, _ in ended.errors} == {"/m/none", "/m/folder"}
    nowhere = small.ns.prefetch(["/nowhere/a", paths[0]], ordered=True)
    wait_for(lambda: nowhere.progress().hit == 1)
    small.read(paths[0])
    assert nowhere.wait(60).failed == 1


@pytest.mark.parametrize(
    "options",
    [
        {"pin": True},
        {"dry_run": True},
        {"include": ["*.a"]},
        {"exclude": ["*.a"]},
        {"max_bytes": 5},
    ],
)
def test_what_an_order_cannot_be_combined_with(small: Scene, options: dict[str, object]) -> None:
    with pytest.raises(Unsupported, match="an ordered prefetch takes"):
        small.ns.prefetch(list(small.objects), ordered=True, **options)  # type: ignore[arg-type]  # one of several


def test_an_order_of_nothing_and_of_what_is_here_already(small: Scene) -> None:
    assert small.ns.prefetch([], ordered=True).wait(60).state is JobState.DONE
    paths = list(small.objects)[:10]
    for path in paths:
        small.read(path)
    job = small.ns.prefetch(paths * 2, ordered=True)
    wait_for(lambda: job.progress().hit == 20)
    assert job.progress().read == 0  # what marked them were reads of before
    for number, path in enumerate(paths * 2, 1):
        small.read(path)
        wait_for(lambda number=number: job.progress().read >= number)  # type: ignore[misc]  # default binds the loop variable
    assert job.wait(60).state is JobState.DONE


# -- jobs of all kinds ------------------------------------------------------------------------


def test_a_job_that_dies_of_a_defect_says_so_and_ends(
    small: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(_: str) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(small.engine.mounts, "below", defect)
    ended = small.ns.prefetch("/m").wait(10)
    assert (ended.state, ended.ended, ended.error_class) == (
        JobState.FAILED,
        True,
        "TiercacheError",
    )
    assert "RuntimeError: a defect of ours" in ended.message
    assert small.ns.status()["agent"]["internal_errors"] == 1
    assert f"internal error in job {ended.id}" in caplog.text
    assert small.engine.jobs.table.running == 0


def test_a_listed_name_is_learnt_once(small: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, learnt = small.engine.names.learn, list[str]()

    def counted(located, *rest):  # type: ignore[no-untyped-def]  # passes all on
        learnt.append(located.path)
        return learn(located, *rest)

    monkeypatch.setattr(small.engine.names, "learn", counted)
    assert small.ns.prefetch("/m").wait(60).listed == len(SMALL)
    assert sorted(path for path in learnt if path in small.objects) == sorted(small.objects)
