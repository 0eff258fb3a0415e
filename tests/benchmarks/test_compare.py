"""Two runs compared: what counts as worse, what excuses it, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import compare, results
from benchmarks.compare import Change, compared
from benchmarks.harness import Bar, Result
from benchmarks.results import Failed
from tests.benchmarks.synthetic import figure, report, result, surroundings, whole


def _run(
    ours: tuple[float, ...], bound: tuple[float, ...], *, bars: tuple[Bar, ...] = ()
) -> Result:
    return result(
        "reads", figure("ns.read", "ours", *ours), figure("pread", "bound", *bound), bars=bars
    )


def _change(before: Result, after: Result, *, threshold: float = 1.1) -> Change:
    (change,) = compared(report([before]), report([after]), threshold=threshold).changes
    return change


def test_a_slower_machine_is_no_regression() -> None:
    change = _change(
        _run((10.0, 10.2, 9.9), (9.0, 9.1, 9.0)), _run((30.0, 30.1, 31.0), (27.0, 27.5, 27.0))
    )
    assert change.verdict == "same"
    assert change.factor == pytest.approx(1.0, abs=0.03)


def test_a_share_of_the_bound_that_fell_beyond_the_spread_is_worse() -> None:
    change = _change(_run((10.0, 10.2, 9.9), (9.0,) * 3), _run((15.0, 15.3, 14.9), (9.0,) * 3))
    assert change.verdict == "worse"
    assert change.factor == pytest.approx(1.5)
    assert change.before.share == pytest.approx(0.9)
    assert change.after.share == pytest.approx(0.6)


def test_the_same_fall_within_the_spread_is_told_and_not_failed() -> None:
    change = _change(_run((10.0, 16.0, 9.9), (9.0,) * 3), _run((15.0, 15.3, 14.9), (9.0,) * 3))
    assert change.verdict == "within the spread"


def test_what_became_faster_is_better() -> None:
    change = _change(_run((10.0, 10.2, 9.9), (9.0,) * 3), _run((5.0, 5.1, 4.9), (9.0,) * 3))
    assert change.verdict == "better"


def test_the_threshold_is_the_caller_s() -> None:
    before, after = _run((10.0,) * 3, (9.0,) * 3), _run((12.0,) * 3, (9.0,) * 3)
    assert _change(before, after).verdict == "worse"
    assert _change(before, after, threshold=1.25).verdict == "same"


@pytest.mark.parametrize(
    ("higher_is_better", "before", "after", "verdict"),
    [(True, 100.0, 50.0, "worse"), (True, 50.0, 100.0, "better"), (False, 50.0, 100.0, "worse")],
)
def test_without_a_bound_the_figures_themselves_are_compared(
    higher_is_better: bool, before: float, after: float, verdict: str
) -> None:
    old, new = (
        result("x", figure("ours", "ours", value, higher_is_better=higher_is_better))
        for value in (before, after)
    )
    change = _change(old, new)
    assert change.verdict == verdict and change.before.share is None


@pytest.mark.parametrize(
    ("before", "after", "at_most", "verdict"),
    [
        (1.2, 1.5, True, "worse"),
        (1.2, 1.5, False, "better"),
        (1.5, 1.2, False, "worse"),
        (1.2, 1.21, True, "same"),
        (0.0, 3.0, True, "worse"),
        (0.0, 0.0, True, "same"),
        (3.0, 0.0, True, "better"),
    ],
)
def test_numbers_that_were_counted_have_no_spread(
    before: float, after: float, at_most: bool, verdict: str
) -> None:
    old, new = (
        result("x", bars=[Bar(text="fetched", figure=value, limit=2.0, at_most=at_most)])
        for value in (before, after)
    )
    assert _change(old, new).verdict == verdict


def test_what_is_gone_is_told_and_what_broke_is_a_regression() -> None:
    kept = _run((10.0,), (9.0,))
    before = report([kept, result("gone"), result("broken")])
    after = msgspec.structs.replace(
        report([result("reads", figure("pread", "bound", 9.0))]),
        failed=(Failed(name="broken", title="", error="OSError"),),
    )
    found = compared(before, after)
    assert found.gone == ("reads: ns.read", "gone")
    assert found.broken == ("broken",)
    assert "REGRESSION broken" in compare.text(found)


def test_another_machine_seed_form_or_version_is_warned_of() -> None:
    here = surroundings()
    there = msgspec.structs.replace(
        surroundings(seed=8, short=True, processor="another"),
        packages={"tiercache": "0.2.0", "obstore": "0.13.0"},
    )
    before, after = whole(), msgspec.structs.replace(whole(), surroundings=there)
    assert compared(before, msgspec.structs.replace(whole(), surroundings=here)).warnings == ()
    warnings = "\n".join(compared(before, after).warnings)
    for word in ("short form", "seeds differ (7, 8)", "processor a CPU, then another", "obstore"):
        assert word in warnings
    assert "tiercache" not in warnings


def _files(tmp_path: Path, before: Result, after: Result) -> list[str]:
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, one in zip(files, (before, after), strict=True):
        results.save(report([one]), file)
    return [str(file) for file in files]


def test_the_command_fails_for_a_regression_with_the_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = _run((10.0,) * 3, (9.0,) * 3), _run((20.0,) * 3, (9.0,) * 3)
    files = _files(tmp_path, good, bad)
    assert compare.main(files) == 1
    out = capsys.readouterr().out
    assert "REGRESSION reads: ns.read was 0.90 × the bound's speed, is 0.45 ×" in out
    assert compare.main(files[::-1]) == 0
    assert "Nothing became worse" in capsys.readouterr().out
    assert compare.main([*files, "--threshold", "3"]) == 0


def test_the_command_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _files(tmp_path, _run((10.0,) * 3, (9.0,) * 3), _run((20.0,) * 3, (9.0,) * 3))
    assert compare.main([*files, "--json"]) == 1
    found = msgspec.json.decode(capsys.readouterr().out, type=compare.Comparison)
    assert [change.verdict for change in found.changes] == ["worse"]


def test_other_schemas_and_no_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, _) = _files(tmp_path, _run((1.0,), (1.0,)), _run((1.0,), (1.0,)))
    old = tmp_path / "old.json"
    old.write_text('{"schema_version": 1, "results": []}')
    assert compare.main([file, str(old)]) == 2
    assert "schema version 1" in capsys.readouterr().err
    assert compare.main([str(tmp_path / "nothing.json"), file]) == 2
    assert "cannot compare" in capsys.readouterr().err


def test_a_run_compared_with_itself_is_the_same() -> None:
    found = compared(whole(), whole())
    assert {change.verdict for change in found.changes} == {"same"}
    assert found.changes and not found.gone and not found.warnings
