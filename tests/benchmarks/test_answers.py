"""What the report answers follows from the figures: made-up ones here, that no store reached."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks import answers
from benchmarks import metadata_terms as terms
from benchmarks.harness import Figure, Latency, Outcome, Result, Sample
from tests.benchmarks.synthetic import figure, result

LMDB, NEAR, FAR = ("LMDB", "this disk"), ("SlateDB", "3 ms"), ("SlateDB", "30 ms")
COMMITS = 50


def timed(engine: tuple[str, str], what: str, p50_ms: float, p99_ms: float) -> Figure:
    """A figure of single operations, each of which put 1,000 bytes by one PUT where it could."""
    name, where = engine
    remote = where.endswith(" ms")
    sample = Sample(
        operations=COMMITS,
        seconds=COMMITS * p50_ms / 1e3,
        latency=Latency(
            count=COMMITS,
            p50_us=p50_ms * 1e3,
            p90_us=p50_ms * 1e3,
            p99_us=p99_ms * 1e3,
            p999_us=p99_ms * 1e3,
            max_us=p99_ms * 1e3,
        ),
        tiers={"origin_requests_put": COMMITS} if remote else {},
    )
    work = f"{what}, {where}"
    return figure(name, "ours", p50_ms * 1e3, work=work, sample=sample)


def commits(*, near_ms: float = 20.0, far_ms: float = 60.0) -> Result:
    """Commits of all sizes; ``near_ms`` and ``far_ms`` are the p99 of a hundred records."""
    figures = []
    for engine, one, p99_ms in ((LMDB, 1.0, 10.0), (NEAR, 5.0, near_ms), (FAR, 40.0, far_ms)):
        figures += [
            timed(engine, terms.ONE, one, 2 * one),
            timed(engine, terms.HUNDRED, one, p99_ms),
            timed(engine, terms.MANY, 2 * one, 4 * one),
        ]
    outcome = Outcome(
        figures=tuple(figures),
        numbers={terms.at_rest("3 ms"): 4000.0, terms.dollars_at_rest("3 ms"): 0.5},
    )
    return msgspec.structs.replace(result("metadata-commit"), outcome=outcome)


def attached(far_ms: float, *, block_ms: float = 800.0) -> Result:
    return result(
        "metadata-attach",
        *(
            figure(engine[0], "ours", ms, unit="ms", work=f"{terms.PINS}, {engine[1]}")
            for engine, ms in ((LMDB, block_ms), (NEAR, 900.0), (FAR, far_ms))
        ),
    )


def reads() -> Result:
    scan = Sample(operations=200_000, seconds=2.0)
    return result(
        "metadata-read",
        *(timed(engine, terms.COLD, 10.0, 20.0) for engine in (LMDB, NEAR, FAR)),
        figure(
            "SlateDB", "ours", 50_000.0, 50_000.0, unit="records/s", higher_is_better=True,
            work=f"{terms.SCAN}, 3 ms", sample=scan,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "verdict", "why"),
    [
        ([commits()], "at every delay that was measured (3 ms, 30 ms)", ""),
        (
            [commits(far_ms=150.0)],
            "Good enough at 3 ms to the first byte",
            "At 30 ms the p99 of a commit of 100 records was 150 ms.",
        ),
        (
            [commits(), attached(2500.0)],
            "Good enough at 3 ms to the first byte",
            "At 30 ms a fresh node took 2.50 s.",
        ),
        (
            [commits(), attached(2500.0, block_ms=2100.0)],
            "at every delay that was measured",
            "With block it took 2.10 s in this run, so that did not decide.",
        ),
        ([commits(near_ms=101.0, far_ms=150.0)], "it has to be block", "At 3 ms the p99"),
    ],
)
def test_the_verdict_is_what_the_figures_say(results: list[Result], verdict: str, why: str) -> None:
    text = answers.metadata(results)
    assert text.startswith(f"### {answers.QUESTION}\n\n**")
    assert verdict in text.split("**")[1] and why in text
    if not why:
        assert "\nAt " not in text and " At 3" not in text.split("\n\n")[1]


def test_where_the_store_was_not_measured_nothing_is_said() -> None:
    assert answers.metadata([]) == ""
    assert answers.metadata([result("random-64k-hot", figure("ns.read", "ours", 1.0))]) == ""


def row(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_table_has_each_engine_s_figures() -> None:
    text = answers.metadata([commits(), reads()])
    assert row(text, "commit of 1 record, p50 · p99, ms") == [
        "1.00 · 2.00",
        "5.00 · 10.0",
        "40.0 · 80.0",
    ]
    assert row(text, "records/s in groups of 2,000") == ["1,000,000", "200,000", "25,000"]
    assert row(text, "scan of all names after an opening, s") == ["", "2.00", ""]
    assert row(text, "PUTs a commit of 1 record") == ["", "1.00", "1.00"]
    assert row(text, "requests an hour at rest") == ["", "4,000", ""]
    assert "opening, ms" not in text
    assert "8.00 times as slowly, a record in a group 8.00 times" in text
    assert "5.00 times as long at 3 ms, 40.0 times as long at 30 ms" in text


def test_costs_are_requests_by_each_store_s_prices() -> None:
    text = answers.metadata([commits(), reads()])
    assert row(text, "express")[0] == "$1.13"
    assert row(text, "standard")[0] == "$5.00"
    # 26 million commits a month at $1.13 a million.
    assert "pays $29.29 for it on S3 Express, and $0.50 for what the engine asks for" in text
    assert "prices.toml" not in answers.metadata([commits()])
