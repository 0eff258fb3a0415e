"""The reading workloads: patterns, workers that count right, contenders that read right bytes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import datasets, patterns, registry, sampler, workers, workload
from benchmarks.contenders import plain
from benchmarks.contenders.contender import AsyncReader, Contender, Object, Reader, Recipe
from benchmarks.harness import Role
from benchmarks.lab import Lab
from benchmarks.measures import reads
from benchmarks.patterns import Place, Share
from benchmarks.workload import Access, Dataset, Load, State, Workload

ROOT = Path(__file__).resolve().parents[2]
TINY = Dataset(count=4, bytes=200_000)
SEED = 7
registry.load()

lengths_st = st.lists(st.integers(1, 300), min_size=1, max_size=6)


# -- patterns ---------------------------------------------------------------------------------


def _all(access: Access, lengths: list[int], count: int, *, again: bool = False) -> list[Place]:
    return [
        place
        for worker in range(count)
        for place in patterns.places(access, lengths, Share(worker, count), seed=SEED, again=again)
    ]


def _covered(found: list[Place]) -> list[tuple[int, int]]:
    return [(number, byte) for number, start, size in found for byte in range(start, start + size)]


@pytest.mark.parametrize("pattern", ["random", "sequential", "shuffled", "in-order"])
@given(lengths=lengths_st, block=st.integers(1, 64), count=st.integers(1, 5))
def test_all_workers_together_read_each_byte_once(
    pattern: Any, lengths: list[int], block: int, count: int
) -> None:
    found = _all(Access(pattern=pattern, block=block), lengths, count)
    every = [(number, byte) for number, size in enumerate(lengths) for byte in range(size)]
    assert sorted(_covered(found)) == every
    assert max(place.length for place in found) <= block


@given(lengths=lengths_st, block=st.integers(1, 64), count=st.integers(1, 5))
def test_unaligned_blocks_never_meet(lengths: list[int], block: int, count: int) -> None:
    found = _all(Access(block=block, aligned=False), lengths, count)
    covered = _covered(found)
    assert len(set(covered)) == len(covered)
    assert all(0 <= byte < lengths[number] for number, byte in covered)
    assert {place.number for place in found} == set(range(len(lengths)))


@given(lengths=lengths_st, block=st.integers(1, 400), aligned=st.booleans())
def test_random_places_that_come_again_lie_within_their_objects(
    lengths: list[int], block: int, aligned: bool
) -> None:
    found = patterns.places(
        Access(block=block, aligned=aligned), lengths, Share(0, 1), seed=SEED, again=True
    )
    for _, place in zip(range(200), found, strict=False):
        assert place.length == min(block, lengths[place.number] - place.offset) > 0
        if max(lengths) >= block and lengths[place.number] >= block:
            assert place.length == block or place.offset == 0
        if aligned:
            assert place.offset % min(block, 64 * 1024) == 0


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    access = Access(pattern="shuffled", block=10)

    def three(seed: int) -> list[list[int]]:
        found = patterns.places(access, [10] * 20, Share(0, 1), seed=seed, again=True)
        order = [next(found).number for _ in range(60)]
        return [order[:20], order[20:40], order[40:]]

    epochs = three(1)
    assert all(sorted(one) == list(range(20)) for one in epochs)
    assert len({tuple(one) for one in epochs}) == 3
    assert three(1) == epochs != three(2)


def test_sequential_readers_of_one_object_share_it_in_parts() -> None:
    access = Access(pattern="sequential", block=10)
    parts = [
        [place.offset for place in patterns.places(
            access, [45], Share(worker, 2), seed=0, again=False
        )]
        for worker in (0, 1)
    ]  # fmt: skip
    assert parts == [[0, 10], [20, 30, 40]]


@pytest.mark.parametrize("pattern", ["shuffled", "in-order", "sequential"])
def test_a_worker_for_whom_nothing_is_left_ends(pattern: Any) -> None:
    assert len(_all(Access(pattern=pattern, block=100), [100], 3)) == 1
    idle = Share(0 if pattern == "sequential" else 2, 3)
    access = Access(pattern=pattern, block=100)
    assert not list(patterns.places(access, [100], idle, seed=SEED, again=True))


# -- workers ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Object, ...]:
    for name in "ab":
        (tmp_path / name).write_bytes(os.urandom(100_000))
    return Object("a", 100_000), Object("b", 100_000)


def _task(folder: Path, objects: tuple[Object, ...], **changes: Any) -> workers.Task:
    options: dict[str, Any] = {
        "recipe": Recipe(plain.BufferedReader, (str(folder), True)),
        "objects": objects,
        "access": Access(block=10_000),
        "threads": 1,
        "processes": 1,
        "operations": 0,
        "seconds": 60.0,
        "again": False,
        "seed": SEED,
        "warm": workers.WARM_FIRSTS,
    }
    return workers.Task(**{**options, **changes})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("threads", "processes"), [(1, 1), (3, 2)])
def test_workers_count_what_they_read(
    tmp_path: Path, files: tuple[Object, ...], threads: int, processes: int
) -> None:
    done = workers.read(_task(tmp_path, files, threads=threads, processes=processes))
    assert (done.operations, done.bytes) == (20, 200_000)
    histogram = sampler.histogram()
    histogram.decode_and_add(done.histogram)
    assert histogram.get_total_count() == 20
    assert done.cpu_s["reader"] > 0 and done.rss_bytes["reader"] > 1 << 20
    some = workers.read(_task(tmp_path, files, operations=7, again=True, threads=threads))
    assert (some.operations, some.bytes) == (7, 70_000)


@pytest.mark.timeout(60)
def test_time_ends_what_would_go_on_for_ever(tmp_path: Path, files: tuple[Object, ...]) -> None:
    done = workers.read(
        _task(tmp_path, files, seconds=0.05, again=True, warm=workers.WARM_ALL, threads=2)
    )
    assert done.operations > 20 and done.bytes == 10_000 * done.operations
    assert 0.05 <= done.seconds < 30


@pytest.mark.timeout(60)
def test_what_a_worker_said_last_is_told_and_none_stays(
    tmp_path: Path, files: tuple[Object, ...]
) -> None:
    gone = (*files, Object("gone", 100_000))
    with pytest.raises(workers.WorkerFailed, match=r"FileNotFoundError.*gone"):
        workers.read(_task(tmp_path, gone, processes=2))
    assert not multiprocessing.active_children()


# -- contenders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = dict(os.environ)
    made = Lab(seed=SEED, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def data() -> dict[str, bytes]:
    return dict(datasets.made(TINY, seed=SEED))


def _workload(state: State, **changes: Any) -> Workload:
    return Workload(name="t", title="t", measure="reads", state=state, dataset=TINY, **changes)


def _answers(reader: Reader | AsyncReader, items: list[tuple[str, int, int]]) -> list[bytes]:
    if not hasattr(reader, "read_async"):
        try:
            return [bytes(cast(Any, reader.read(*item))) for item in items]
        finally:
            reader.close()
    reader = cast(AsyncReader, reader)

    async def work() -> list[bytes]:
        try:
            return [bytes(cast(Any, await reader.read_async(*item))) for item in items]
        finally:
            await reader.close_async()

    return asyncio.run(work())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(registry.CONTENDERS))
def test_a_contender_reads_the_right_bytes_in_every_state_it_claims(
    lab: Lab, data: dict[str, bytes], name: str
) -> None:
    objects = lab.objects(TINY)
    contender = registry.CONTENDERS[name](lab, "")
    try:
        if why := contender.why_missing():
            pytest.skip(why)
        assert contender.name == name
        claimed = [one for one in get_args(State) if not contender.why_not(_workload(one))]
        assert claimed
        for state in claimed:
            contender.prepare(objects, state)
            recipe = contender.recipe()
            items = [
                (key, offset, length)
                for key, _ in objects
                for offset, length in ((0, 65_536), (70_001, 30_000), (199_999, 1), (0, 200_000))
            ]
            expected = [data[key][offset : offset + length] for key, offset, length in items]
            assert _answers(recipe.make(*recipe.arguments), items) == expected, state
        if contender.namespace is not None:
            _check_states_of_ours(contender, objects)
        own = [pid for pids in contender.processes().values() for pid in pids]
        assert all(_alive(pid) for pid in own)
    finally:
        contender.close()
    assert not any(_alive(pid) for pid in own)


def _check_states_of_ours(contender: Contender, objects: list[Object]) -> None:
    assert contender.namespace is not None
    cached: Callable[[str], int] = contender.namespace.cached_bytes
    for state, expected in (
        ("cold", [0, 0, 0, 0]),
        ("half-warm", [200_000, 0, 200_000, 0]),
        ("nvme", [200_000] * 4),
    ):
        contender.prepare(objects, cast(State, state))
        assert [cached(f"/bench/{one.key}") for one in objects] == expected, state


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(120)
def test_a_mount_goes_with_its_owner_however_that_ends(lab: Lab) -> None:
    objects = lab.objects(TINY)
    contender = registry.CONTENDERS["rclone mount"](lab, "")
    why = contender.why_missing()
    contender.close()
    if why:
        pytest.skip(why)
    code = (
        "import sys; from types import SimpleNamespace as Lab; from pathlib import Path\n"
        "from benchmarks.contenders.rclone_mount import RcloneMount\n"
        "from benchmarks.contenders.contender import Object\n"
        "lab = Lab(bucket=sys.argv[1], folder=lambda name: Path(sys.argv[2]))\n"
        "mount = RcloneMount(lab, sys.argv[3])\n"
        "mount.prepare([Object(sys.argv[4], 200_000)], 'hot')\n"
        "print(mount.recipe().arguments[0], flush=True); sys.stdin.read()"
    )
    folder = lab.folder("killed")
    arguments = [lab.bucket, str(folder), lab.server.endpoint, objects[0].key]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        mount = owner.stdout.readline().strip()
        assert f" {mount} " in Path("/proc/self/mounts").read_text()
        # A file that is open keeps the mount busy.
        held = os.open(f"{mount}/{objects[0].key}", os.O_RDONLY)
        owner.send_signal(signal.SIGKILL)
    try:
        deadline = time.monotonic() + 30
        while f" {mount} " in Path("/proc/self/mounts").read_text():
            assert time.monotonic() < deadline, "the mount stayed"
            threading.Event().wait(0.05)
    finally:
        with contextlib.suppress(OSError):  # the file's server is gone
            os.close(held)


# -- the measure and its workloads ----------------------------------------------------------------


@pytest.mark.timeout(120)
def test_the_measure_tells_each_point_and_where_the_bytes_came_from(lab: Lab) -> None:
    names = ("ns.read", "obstore asyncio", "os.pread")
    load = Load(threads=(1, 2), operations=4, rounds=2, warm_up=0)
    outcome = reads.reads(
        lab, _workload("cold", contenders=names, load=load, access=Access(block="64KiB"))
    )
    assert [(one.name, one.threads) for one in outcome.figures] == [
        ("ns.read × 1", 1),
        ("obstore asyncio × 1", 1),
        ("ns.read × 2", 2),
        ("obstore asyncio × 2", 2),
    ]
    assert [one.name for one in outcome.missing] == ["os.pread"]
    for figure in outcome.figures:
        assert figure.unit == "reads/s" and len(figure.values) == 2
        sample = figure.sample
        assert sample is not None and sample.latency is not None
        assert sample.operations == sample.latency.count == 8
        # The places read, and what each thread read before, to have its connection.
        assert sample.tiers["origin_bytes"] >= sample.bytes
    assert "from the origin" in outcome.notes[-1]


@pytest.mark.timeout(120)
def test_large_blocks_are_told_in_megabytes(lab: Lab) -> None:
    outcome = reads.reads(
        lab,
        _workload(
            "hot",
            contenders=("os.pread", "ns.read"),
            load=Load(processes=(2,), seconds=0.05, rounds=1, warm_up=0),
            access=Access(pattern="sequential", block="64KiB"),
        ),
    )
    (plain_figure, ours) = outcome.figures
    assert (plain_figure.name, ours.name, ours.unit) == ("os.pread", "ns.read", "MB/s")
    sample = ours.sample
    assert sample is not None
    assert ours.median == pytest.approx(sample.bytes / 1e6 / sample.seconds)
    assert sample.tiers["origin_bytes"] == 0


@pytest.mark.timeout(60)
def test_a_rivals_failure_is_a_line_in_the_table_and_ours_ends_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Contender):
        name = "broken"
        role: Role = "rival"

        def prepare(self, objects: Any, state: State) -> None:
            return

        def recipe(self) -> Recipe:
            return Recipe(_broken, ())

    monkeypatch.setitem(registry.CONTENDERS, "broken", lambda lab, url: Broken())
    load = Load(operations=1, rounds=1, warm_up=0)
    outcome = reads.reads(lab, _workload("hot", contenders=("broken", "os.pread"), load=load))
    assert [one.name for one in outcome.figures] == ["os.pread"]
    assert "no such luck" in outcome.missing[0].why
    Broken.role = "ours"
    with pytest.raises(workers.WorkerFailed, match="no such luck"):
        reads.reads(lab, _workload("hot", contenders=("broken",), load=load))


def _broken() -> Reader:
    raise ValueError("no such luck")


def test_workloads_name_contenders_that_can_do_what_they_ask() -> None:
    for one in workload.read_all().values():
        if one.measure != "reads":
            continue
        for name in one.contenders:
            maker = cast(Any, registry.CONTENDERS[name])
            assert not maker.why_not(maker.__new__(maker), one), (one.name, name)
        figures = {
            reads.figure_name(one, name, threads, processes)
            for name in one.contenders
            for threads, processes in reads.points(one)
        }
        for bar in one.bar:
            assert {bar.ours, *bar.against} <= figures, one.name
