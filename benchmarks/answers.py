"""What the results answer: is a premium object tier good enough for metadata, or must it be block?

Pure functions of results and prices. Every figure in the text is one of the results', and what the
text says of them follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks import metadata_terms as terms
from benchmarks.harness import Figure, Result, Sample
from benchmarks.prices import prices
from benchmarks.texts import dollars, number
from tiercache.settings import MetadataSettings

QUESTION = "Is a premium object tier good enough for metadata, or does it have to be block?"
WORKLOADS = ("metadata-commit", "metadata-read", "metadata-takeover", "metadata-attach")
BLOCK, TIER = ("LMDB", "this disk"), "SlateDB"
# What an agent asks of its store: what it learnt is committed together, so often at the most.
INTERVAL_S = MetadataSettings().commit_interval_s
# The promise for a fresh node, in ms.
ATTACH_MS = 2000.0
MONTH_S = 30 * 86_400.0
# Some thirty million records of ~150 B, in half-full pages.
VOLUME_GB = 10


class Engine(NamedTuple):
    """A column: an engine, and where it lies."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name}, {self.where}"


Cell = Callable[[Figure], str]


class Findings:
    """The figures of the store's workloads by work and engine."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._figures: dict[tuple[str, Engine], Figure] = {}
        self.numbers: dict[str, float] = {}
        for result in results:
            if result.name in WORKLOADS:
                self.numbers |= result.outcome.numbers
                for figure in result.outcome.figures:
                    what, _, where = figure.work.rpartition(", ")
                    if figure.role == "ours":
                        self._figures[what, Engine(figure.name, where)] = figure

    @property
    def engines(self) -> list[Engine]:
        return list(dict.fromkeys(engine for _, engine in self._figures))

    @property
    def tiers(self) -> list[Engine]:
        """Those on an object store behind a network, the nearest first."""
        return [one for one in self.engines if one.name == TIER and one.where.endswith(" ms")]

    def get(self, what: str, engine: Engine) -> Figure | None:
        return self._figures.get((what, engine))

    def sample(self, what: str, engine: Engine) -> Sample | None:
        found = self.get(what, engine)
        return None if found is None else found.sample

    def p99_s(self, what: str, engine: Engine) -> float | None:
        sample = self.sample(what, engine)
        return None if sample is None or sample.latency is None else sample.latency.p99_us / 1e6

    def median_ms(self, what: str, engine: Engine) -> float | None:
        figure = self.get(what, engine)
        if figure is None:
            return None
        return figure.median / 1e3 if figure.unit == "µs" else figure.median


def metadata(results: Sequence[Result]) -> str:
    """Return the answer as Markdown; empty where the store was not measured."""
    found = Findings(results)
    if Engine(*BLOCK) not in found.engines or not found.tiers:
        return ""
    parts = [f"### {QUESTION}", _verdict(found), _rules(found), _table(found), _costs(found)]
    return "\n\n".join(part for part in parts if part)


# -- words --------------------------------------------------------------------------------------


def _verdict(found: Findings) -> str:
    """Return the short answer, by what an agent asks of its store: a group of commits within its
    interval, and a fresh node within its bar."""
    tests = {tier: _short_of(found, tier) for tier in found.tiers}
    good = [tier.where for tier, short in tests.items() if not short]
    interval = f"{INTERVAL_S * 1e3:g} ms"
    asked = (
        f"The agent asks its store for one commit every {interval} at the most, with all that it "
        "learnt meanwhile, and no reader waits for it; a fresh node is to know what the lost one "
        f"knew within {number(ATTACH_MS / 1e3)} s."
    )
    if not good:
        verdict = "In this run it has to be block."
    elif len(good) == len(tests):
        verdict = f"Good enough, at every delay that was measured ({', '.join(good)})."
    else:
        verdict = f"Good enough at {' and '.join(good)} to the first byte."
    why = [f"At {tier.where} {short}." for tier, short in tests.items() if short]
    if slow_s := _slow_machine_s(found):
        why.append(f"With block it took {number(slow_s)} s in this run, so that did not decide.")
    return " ".join([f"**{verdict}**", asked, *why])


def _short_of(found: Findings, tier: Engine) -> str:
    """Return what a tier does not reach; empty for nothing."""
    short = []
    p99_s = found.p99_s(terms.HUNDRED, tier)
    if p99_s is not None and p99_s > INTERVAL_S:
        short.append(f"the p99 of a commit of 100 records was {number(p99_s * 1e3)} ms")
    attach_ms = found.median_ms(terms.PINS, tier)
    if attach_ms is not None and attach_ms > ATTACH_MS and not _slow_machine_s(found):
        short.append(f"a fresh node took {number(attach_ms / 1e3)} s")
    return " and ".join(short)


def _slow_machine_s(found: Findings) -> float:
    """Return the seconds of a fresh node with block where that misses the bar too: then the
    machine, or the agent, is too slow for it, and it says nothing of the tier. Else 0."""
    block_ms = found.median_ms(terms.PINS, Engine(*BLOCK)) or 0.0
    return block_ms / 1e3 if block_ms > ATTACH_MS else 0.0


def _rules(found: Findings) -> str:
    """Return rules of thumb, each with what it stands on."""
    lines = [_rule_of_grouping(found), _rule_of_block(found), _rule_of_takeover(found)]
    return "\n".join(f"* {line}" for line in lines if line)


def _rule_of_grouping(found: Findings) -> str:
    rates = [
        (tier, 1e3 / one, 2e6 / many)
        for tier in found.tiers
        if (one := found.median_ms(terms.ONE, tier)) and (many := found.median_ms(terms.MANY, tier))
    ]
    if not rates:
        return ""
    told = "; ".join(
        f"at {tier.where} {number(alone)} commits/s one after the other, {number(grouped)} "
        "records/s in groups of 2,000"
        for tier, alone, grouped in rates
    )
    (near, alone, grouped), (far, far_alone, far_grouped) = rates[0], rates[-1]
    return (
        f"**Group.** A commit is one PUT whatever it holds: {told}. From {near.where} to "
        f"{far.where} a commit alone came {number(alone / far_alone)} times as slowly, a record "
        f"in a group {number(grouped / far_grouped)} times. Groups of g records with c ms a commit "
        "make g ÷ c records a ms: where more is learnt than that, make the group larger before "
        "you bring the tier nearer."
    )


def _rule_of_block(found: Findings) -> str:
    block = found.median_ms(terms.ONE, Engine(*BLOCK))
    told = [
        f"{number(one / block)} times as long at {tier.where}"
        for tier in found.tiers
        if block and (one := found.median_ms(terms.ONE, tier))
    ]
    if not block or not told:
        return ""
    return (
        "**Block where somebody waits for single commits**, one after the other: LMDB took "
        f"{number(block)} ms for one on this disk, SlateDB {', '.join(told)}. It is also what "
        "opens and scans soonest, on a node that will come back with its volume."
    )


def _rule_of_takeover(found: Findings) -> str:
    told = [
        f"{number(ms / 1e3)} s at {tier.where}"
        for tier in found.tiers
        if (ms := found.median_ms(terms.FIRST_COMMIT, tier))
    ]
    if not told:
        return ""
    busy = [
        f"{number(ms / 1e3)} s at {tier.where}"
        for tier in found.tiers
        if (ms := found.median_ms(terms.FIRST_COMMIT + terms.BUSY, tier))
    ]
    return (
        "**The object tier where the node may be lost**: another agent took over, with the old "
        f"one alive and committing every {INTERVAL_S * 1e3:g} ms, and had committed after "
        + ", ".join(told)
        + (f" ({', '.join(busy)} where the old one commits without a pause)" if busy else "")
        + "; the old one was told, and its commits fail. A volume knows one host: it must be "
        "moved first, which a cloud does in minutes, and only once the old host is out."
    )


# -- tables -------------------------------------------------------------------------------------


def _milliseconds(figure: Figure) -> str:
    """Return p50 · p99 where every operation was timed, else the median."""
    if figure.sample is not None and figure.sample.latency is not None:
        latency = figure.sample.latency
        return f"{number(latency.p50_us / 1e3)} · {number(latency.p99_us / 1e3)}"
    return number(figure.median / 1e3 if figure.unit == "µs" else figure.median)


def _median_ms(figure: Figure) -> str:
    return number(figure.median / 1e3 if figure.unit == "µs" else figure.median)


def _rate(figure: Figure) -> str:
    return number(figure.median)


def _seconds_of_all(figure: Figure) -> str:
    """Return the time of a whole scan, of which the figure is records a second."""
    assert figure.sample is not None
    return number(figure.sample.operations / len(figure.values) / figure.median)


def _rate_of(records: int) -> Cell:
    return lambda figure: number(records * 1e6 / figure.median)


ROWS: tuple[tuple[str, str, Cell], ...] = (
    ("commit of 1 record, p50 · p99, ms", terms.ONE, _milliseconds),
    ("commit of 100 records, p50 · p99, ms", terms.HUNDRED, _milliseconds),
    ("commit of 2,000 records, p50 · p99, ms", terms.MANY, _milliseconds),
    ("commits/s, one after the other", terms.ONE, _rate_of(1)),
    ("commits/s, 16 at once", terms.AT_ONCE, _rate),
    ("records/s in groups of 100", terms.HUNDRED, _rate_of(100)),
    ("records/s in groups of 2,000", terms.MANY, _rate_of(2000)),
    ("read of a record just committed, p50 · p99, ms", terms.HOT, _milliseconds),
    ("read after an opening, p50 · p99, ms", terms.COLD, _milliseconds),
    ("scan of all names after an opening, s", terms.SCAN, _seconds_of_all),
    ("opening, ms", terms.OPEN, _median_ms),
    ("takeover until the first commit, ms", terms.FIRST_COMMIT, _median_ms),
    ("takeover until the old agent is told, ms", terms.OLD_TOLD, _median_ms),
    ("takeover from a busy agent until the first commit, ms", terms.FIRST_COMMIT + terms.BUSY,
     _median_ms),
    ("fresh node until all names are listed, ms", terms.NAMES, _median_ms),
    ("fresh node until the pins are back, ms", terms.PINS, _median_ms),
)  # fmt: skip


def _table(found: Findings) -> str:
    engines, tiers = found.engines, found.tiers
    rows = [
        [title, *(cell(figure) if (figure := found.get(what, one)) else "" for one in engines)]
        for title, what, cell in ROWS
    ]
    rows += [
        [title, *(_each(found.sample(what, one), kinds) if one in tiers else "" for one in engines)]
        for title, what, kinds in (
            ("PUTs a commit of 1 record", terms.ONE, ("put",)),
            ("GETs a read after an opening", terms.COLD, ("get",)),
            ("requests an opening", terms.OPEN, ("get", "head", "list", "put")),
        )
    ]
    rest = [found.numbers.get(terms.at_rest(one.where)) for one in engines]
    rows.append(["requests an hour at rest", *("" if one is None else number(one) for one in rest)])
    return _markdown(["", *map(str, engines)], [row for row in rows if any(row[1:])])


def _each(sample: Sample | None, kinds: Sequence[str]) -> str:
    if sample is None:
        return ""
    count = sum(sample.tiers.get(f"origin_requests_{kind}", 0) for kind in kinds)
    return number(count / sample.operations)


def _costs(found: Findings) -> str:
    """Return what a million operations cost by each store's prices, as counted at the smallest
    delay, and what a volume costs that does them for nothing."""
    tier = found.tiers[0]
    works = (terms.ONE, terms.HUNDRED, terms.MANY, terms.COLD)
    samples = [sample for what in works if (sample := found.sample(what, tier)) is not None]
    if len(samples) < len(works):
        return ""
    rows = [
        [name, *(dollars(_million(sample, name)) for sample in samples), dollars(store.gb_month)]
        for name, store in prices().stores.items()
    ]
    head = ["$", *(f"10⁶ × {what}" for what in works), "a GB and month"]
    volume_name, volume = next(iter(prices().volumes.items()))
    rest = found.numbers.get(terms.dollars_at_rest(tier.where))
    steady = _million(samples[0], "express") * MONTH_S / INTERVAL_S / 1e6
    text = (
        f"What SlateDB asked for at {tier.where}, by the prices of {prices().date} (their sources, "
        "and which are from memory, stand in "
        "[prices.toml](../benchmarks/prices.toml)):"
    )
    below = (
        f"An agent that has something to commit every {INTERVAL_S * 1e3:g} ms of a month, which is "
        f"more than any does, pays {dollars(steady)} for it on S3 Express"
        + (f", and {dollars(rest)} for what the engine asks for by itself" if rest else "")
        + f". On a volume operations cost nothing up to {volume.iops:,} a second; "
        f"{VOLUME_GB} GB of {volume_name} cost {dollars(VOLUME_GB * volume.gb_month)} a month."
    )
    return f"{text}\n\n{_markdown(head, rows)}\n\n{below}"


def _million(sample: Sample, store: str) -> float:
    return prices().store_dollars(sample.tiers, store) / sample.operations * 1e6


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
