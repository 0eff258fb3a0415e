"""The command line: exit statuses, what is kept of a run that fails or is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks import gate, registry, results, runner
from benchmarks.__main__ import main
from benchmarks.gate import Baseline, Baselines
from benchmarks.harness import Figure, Latency, Missing, Outcome, Result, Sample, Series
from benchmarks.lab import Lab
from benchmarks.results import Failed, Report, Surroundings
from benchmarks.workload import Workload
from tiercache.ending import INTERRUPTED
from tiercache.errors import ConfigError
from tiercache.testing.proxy_cost import ProxyCost

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
STEADY, BROKEN, STOPPED = "test-steady", "test-broken", "test-stopped"


def steady(lab: Lab, workload: Workload) -> Outcome:
    """Figures as the workload's options say."""
    cost = float(workload.options.get("cost", 1.0))
    return Outcome(
        figures=(
            Figure(name="bound", role="bound", unit="µs", values=(1.0, 1.0)),
            Figure(name="ours", role="ours", unit="µs", values=(cost, cost)),
        ),
        missing=(Missing(name="rival", why="not installed"),),
    )


def broken(lab: Lab, workload: Workload) -> Outcome:
    lab.folder("left-behind")
    raise OSError("the rival's server would not start")


def stopped(lab: Lab, workload: Workload) -> Outcome:
    lab.folder("left-behind")
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("unreachable")


@pytest.fixture(autouse=True)
def _measures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, run in ((STEADY, steady), (BROKEN, broken), (STOPPED, stopped)):
        monkeypatch.setitem(registry.MEASURES, name, run)


def written(folder: Path, name: str, *, measure: str = STEADY, more: str = "") -> None:
    folder.mkdir(exist_ok=True)
    text = f'name = "{name}"\ntitle = "{name}"\nmeasure = "{measure}"\n{more}'
    (folder / f"{name}.toml").write_text(text)


BAR = '[[bar]]\ntext = "ours"\nours = "ours"\nagainst = ["bound"]\nat_most = 2.0\n'


class Place:
    """Workloads, and a folder that every run must leave empty."""

    def __init__(self, root: Path) -> None:
        self.workloads = root / "workloads"
        self.room = root / "room"
        self.room.mkdir()
        self.workloads.mkdir()
        self.json = root / "results.json"

    def run(self, *arguments: str) -> int:
        status = main(
            [
                "run",
                *arguments,
                f"--workloads={self.workloads}",
                f"--dir={self.room}",
                f"--json={self.json}",
            ]
        )
        assert not list(self.room.iterdir())
        return status

    def report(self) -> Report:
        return results.load(self.json)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- exit statuses --------------------------------------------------------------------------


def test_all_well(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    written(place.workloads, "one", more=BAR)
    written(place.workloads, "two")
    assert place.run() == runner.OK
    report = place.report()
    assert [result.name for result in report.results] == ["one", "two"]
    assert report.results[0].bars[0].figure == 1.0
    assert not report.failed and not report.interrupted
    said = capfd.readouterr().err
    assert "[1/2] one: one (0:00 gone, about 0:30 left)" in said
    assert "[2/2] two" in said
    assert "rival: missing: not installed" in said


def test_an_update_keeps_what_else_there_is(place: Place) -> None:
    for name in ("one", "two", "three"):
        written(place.workloads, name)
    assert place.run("two") == runner.OK
    (first,) = place.report().results
    assert place.run("--update", "--missing") == runner.OK
    assert [result.name for result in place.report().results] == ["one", "three", "two"]
    assert place.report().results[2] == first
    assert place.run("--update", "two") == runner.OK
    assert [result.name for result in place.report().results] == ["one", "three", "two"]
    assert place.report().results[2] != first
    assert place.report().results[0].commit


def test_an_update_of_another_runs_results_is_refused(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    written(place.workloads, "one")
    assert place.run("--seed=1") == runner.OK
    before = place.json.read_bytes()
    assert place.run("--seed=2", "--update") == runner.FAILED
    assert "another seed: 1, here 2" in capfd.readouterr().err
    assert place.json.read_bytes() == before


def test_a_missed_bar(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    written(place.workloads, "slow", more=f"options.cost = 3.0\n{BAR}")
    assert place.run() == runner.SHORT_OF_A_BAR
    assert "SHORT OF IT slow: ours is 3.00 ×, the bar is ≤ 2.00 ×" in capfd.readouterr().err


def test_a_workload_that_fails_costs_no_other(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    written(place.workloads, "a-broken", measure=BROKEN)
    written(place.workloads, "b-slow", more=f"options.cost = 3.0\n{BAR}")
    assert place.run() == runner.FAILED
    report = place.report()
    assert [result.name for result in report.results] == ["b-slow"]
    assert [one.name for one in report.failed] == ["a-broken"]
    assert "would not start" in report.failed[0].error
    said = capfd.readouterr().err
    assert "Traceback" in said and "FAILED a-broken" in said and "SHORT OF IT b-slow" in said


def test_an_unknown_measure_is_a_failure(place: Place) -> None:
    written(place.workloads, "odd", measure="no-such")
    assert place.run() == runner.FAILED
    assert "no measure 'no-such'" in place.report().failed[0].error


def test_an_unknown_name_is_told_the_nearest(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    written(place.workloads, "random-cold")
    assert place.run("radnom-cold") == runner.FAILED
    assert "did you mean random-cold?" in capfd.readouterr().err
    assert not place.json.exists()


def test_names_choose_and_the_order_is_the_reports(place: Place) -> None:
    written(place.workloads, "first", more="order = 2\n")
    written(place.workloads, "second", more="order = 1\n")
    written(place.workloads, "third", more="order = 3\n")
    assert place.run("third", "second") == runner.OK
    assert [result.name for result in place.report().results] == ["second", "third"]


def test_the_list(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    written(place.workloads, "long-one")
    written(place.workloads, "gated", more="[short]\norder = 500\n")
    assert place.run("--list") == runner.OK
    out = capfd.readouterr().out
    assert "gated     short  gated" in out and "long-one         long-one" in out


def test_a_file_of_workloads_that_is_wrong_is_named(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    written(place.workloads, "wrong", more='statee = "hot"\n')
    assert place.run() == runner.FAILED
    said = capfd.readouterr().err
    assert "wrong.toml" in said and "statee" in said


def test_no_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_compare_and_report_are_handed_their_arguments(place: Place, tmp_path: Path) -> None:
    written(place.workloads, "one", more=BAR)
    assert place.run() == runner.OK
    assert main(["compare", str(place.json), str(place.json)]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])


# -- the short form -------------------------------------------------------------------------


def test_short_runs_what_has_a_short_form_with_slack(place: Place) -> None:
    written(place.workloads, "long-one", measure=BROKEN)
    # 2.4 is within 2.0 with the slack of 1.25.
    written(place.workloads, "gated", more=f"{BAR}[short]\noptions.cost = 2.4\n")
    assert place.run("--short") == runner.OK
    assert [result.name for result in place.report().results] == ["gated"]
    assert place.run("gated") == runner.OK  # the full form, whose cost is 1
    assert place.report().results[0].bars[0].figure == 1.0


def test_short_by_name_needs_a_short_form(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    written(place.workloads, "long-one")
    assert place.run("--short", "long-one") == runner.FAILED
    assert "has no short form" in capfd.readouterr().err


@pytest.mark.parametrize(("baseline", "status"), [(2.0, runner.OK), (1.2, runner.SHORT_OF_A_BAR)])
def test_baselines_hold_the_short_form(
    place: Place, capfd: pytest.CaptureFixture[str], baseline: float, status: int
) -> None:
    written(place.workloads, "gated", more=f"{BAR}[short]\noptions.cost = 1.9\n")
    before = {"gated": {"ours": Baseline(figure=baseline, runs=(baseline,))}}
    assert go(place, Baselines(workloads=before)) == status
    assert ("REGRESSION gated: ours" in capfd.readouterr().err) is bool(status)


def test_a_gated_bar_without_a_baseline_is_a_failure(place: Place) -> None:
    written(place.workloads, "gated", more=f"{BAR}[short]\noptions.cost = 1.0\n")
    assert go(place, Baselines()) == runner.FAILED


def go(place: Place, baselines: gate.Baselines) -> int:
    from benchmarks.workload import read_all

    lab = Lab(seed=1, short=True, directory=str(place.room))
    try:
        return runner.Run(
            lab=lab,
            workloads=list(read_all((place.workloads,)).values()),
            surroundings=AROUND,
            baselines=baselines,
        ).go()
    finally:
        lab.close()


# -- interrupts -----------------------------------------------------------------------------


def test_an_interrupt_keeps_what_there_is(place: Place) -> None:
    written(place.workloads, "a-done")
    written(place.workloads, "b-stopped", measure=STOPPED)
    written(place.workloads, "c-never", measure=BROKEN)
    before = signal.getsignal(signal.SIGINT)
    assert place.run() == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is before
    report = place.report()
    assert [result.name for result in report.results] == ["a-done"]
    assert report.interrupted and not report.failed


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


HOT = """\
[dataset]
bytes = "1MiB"
[load]
operations = {operations}
rounds = 1
warm_up = 0
"""


@pytest.mark.emulator
def test_an_interrupted_run_leaves_no_server_and_no_cache(short_path: Path) -> None:
    place = Place(short_path)
    written(place.workloads, "a-done", measure="hot-read", more=HOT.format(operations=100))
    endless = HOT.format(operations=5_000_000)
    written(place.workloads, "b-endless", measure="hot-read", more=endless)
    command = [sys.executable, "-m", "benchmarks", "run", f"--workloads={place.workloads}"]
    running = subprocess.Popen(
        [*command, f"--dir={place.room}", f"--json={place.json}"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place.room)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr is not None
        seen = []
        for line in running.stderr:
            seen.append(line)
            if line.startswith("[2/2]"):
                break
        # An agent's directory is there as soon as the second workload is under way.
        until(lambda: any(place.room.rglob("*-cache/*")), "".join(seen))
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=DEADLINE_S)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert running.returncode == INTERRUPTED, said
    assert "interrupted after 1 of 2 workloads" in said
    report = place.report()
    assert report.interrupted and [result.name for result in report.results] == ["a-done"]
    assert not list(place.room.iterdir())
    until(lambda: not processes_over(place.room), f"left behind: {processes_over(place.room)}")


def until(condition: Callable[[], bool], else_say: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, else_say
        time.sleep(0.02)


def processes_over(folder: Path) -> list[str]:
    """Return the command lines that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


# -- results --------------------------------------------------------------------------------

AROUND = Surroundings(
    when="2026-01-01 00:00 UTC",
    commit="0123456789ab",
    seed=1,
    short=True,
    python="3.11.0",
    kernel="6.1",
    processor="some",
    cores=2,
    memory_bytes=1 << 30,
    file_system="ext4",
    packages={"obstore": "0.12"},
)


def whole() -> Report:
    """A report with something in every field."""
    latency = Latency(count=1, p50_us=1.0, p90_us=2.0, p99_us=3.0, p999_us=4.0, max_us=5.0)
    sample = Sample(
        operations=1,
        bytes=2,
        seconds=3.0,
        latency=latency,
        cpu_s={"reader": 1.5},
        rss_bytes={"agent": 5},
        tiers={"nvme_bytes": 1},
        cost_dollars=0.25,
    )
    outcome = Outcome(
        figures=(Figure(name="x", role="ours", unit="µs", values=(1.0,), sample=sample),),
        series=(Series(name="s", unit="MB/s", x=(0.0,), y=(1.0,), marks=((0.0, "out"),)),),
    )
    found = Result(name="r", title="t", outcome=outcome, bars=())
    cost = ProxyCost(
        added_s=1.0,
        added_cpu_s=2.0,
        cpu_s_per_gb=3.0,
        max_bytes_per_s=4.0,
        straight_bytes_per_s=5.0,
    )
    return Report(
        surroundings=AROUND,
        results=(found,),
        failed=(Failed(name="f", title="t", error="OSError: no"),),
        interrupted=True,
        proxy_cost=cost,
    )


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    results.save(whole(), path)
    assert results.load(path) == whole()
    assert list(path.parent.iterdir()) == [path]


def test_the_published_schema_is_current() -> None:
    published = results.SCHEMA.read_bytes()
    assert published == results.schema(), "make it anew: python -m benchmarks.results"
    fields = json.loads(published)["$defs"]["Report"]["properties"]
    assert set(fields) == set(msgspec.to_builtins(whole()))


@pytest.mark.parametrize("version", [1, results.SCHEMA_VERSION + 1, None])
def test_another_schema_version_is_refused(tmp_path: Path, version: int | None) -> None:
    path = tmp_path / "results.json"
    fields = msgspec.to_builtins(whole())
    del fields["schema_version"]
    path.write_text(
        json.dumps(fields if version is None else {**fields, "schema_version": version})
    )
    with pytest.raises(
        ConfigError, match=f"results.json: .*schema version {version or 1};"
    ) as raised:
        results.load(path)
    assert str(results.SCHEMA_VERSION) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{}x", '{"schema_version": 2}', "[]"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no results"):
        results.load(path)


def test_surroundings_are_this_machines(tmp_path: Path) -> None:
    found = results.surroundings(seed=1, short=False, when="now", directory=tmp_path)
    assert found.cores == os.cpu_count()
    assert found.file_system and found.commit and found.kernel
    assert found.packages["msgspec"]
    assert found.prices_date
