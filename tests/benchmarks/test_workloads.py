"""The workloads' files: all can be read, what they name is there, and no promise is missing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import registry, rivals, sources, workload
from benchmarks.harness import Figure, Outcome, judged
from benchmarks.measures import cold, epochs, hot, metadata, storms, streams, training
from benchmarks.qos_rig import plan_of
from benchmarks.workload import Workload
from tiercache.config.qos_policy import check_policy
from tiercache.errors import ConfigError
from tiercache.testing.network import PROFILES

registry.load()
ALL = workload.read_all()
GATED = {name: one.shortened() for name, one in ALL.items() if one.in_gate()}

# The bars of the issues that promised them: workload, the bar's text, the limit.
NODE_CACHE = [
    ("hot-read", "ns.read ÷ os.pread of the same file", 1.35),
    ("hot-cat-file", "cat_file ÷ os.pread", 1.5),
    ("hot-view", "a view", 1.5),
    ("hot-view", "views a second on one core", 600.0),
    ("hot-open", "open + read + close", 20.0),
    ("hot-small", "a first touch", 25.0),
    ("hot-small", "÷ open + pread + close of plain files", 2.0),
    ("hot-sequential", "read ÷ plain file", 0.95),
    ("hot-sequential", "readinto ÷ plain file", 0.95),
    ("hot-processes", "growth from 1 process ÷ that of os.pread", 0.9),
    ("cold-sequential", "÷ the better obstore to a file", 0.85),
    ("cold-sequential", "÷ s3fs, get_file", 2.0),
    ("cold-sequential", "÷ s3fs, open + read (kept nowhere)", 2.0),
    ("cold-random", "bytes asked ÷ bytes read", 2.0),
    ("prefetch-large", "÷ the better of s5cmd and rclone", 1.0),
    ("prefetch-small", "÷ the better of s5cmd, rclone and s3fs", 1.2),
    ("stat", "a second", 300.0),
    ("list", "the listing", 0.5),
    ("startup", "import tiercache", 60.0),
    ("startup", "connect() to a running agent", 20.0),
    ("startup", "agent start", 500.0),
]

BENCHMARKS = [
    ("random-64k-cold", "ns.read ÷ obstore asyncio, reads/s, 16 at once", 0.8),
    ("sequential-1g-8-readers-cold", "8 readers of ns.read ÷ the server's own maximum, MB/s", 0.9),
    ("working-set", "order announced ÷ the optimum", 1.25),
    ("working-set", "no order announced ÷ LRU", 1.0),
    (
        "random-64k-processes-hot",
        "4 processes of ns.read ÷ 4 processes of os.pread, reads/s",
        0.9,
    ),
    ("stampede", "bytes asked of the origin ÷ the object's", 1.02),
    ("random-64k-nvme", "ns.read ÷ O_DIRECT pread, reads at the same depth", 0.9),
]

OUTLIVES_THE_NODE = [
    ("revalidation", "requests a name", 1.0),
    ("revalidation", "bytes of data that unchanged objects cost", 0.0),
    ("revalidation-same-region", "requests a name", 1.0),
    ("metadata-attach", "until names and pins are there, the slowest engine", 2.0),
    ("metadata-attach", "LIST requests at the origin", 0.0),
    ("outage", "the longest stall of a loop over cached data", 1.0),
]

GOVERNED = [
    ("qos-hit-cost", "a hit without a policy, more than before", 0.05),
    ("qos-hit-cost", "a hit under a policy, uncontended, more than without", 0.6),
    ("qos-limit", "rate ÷ limit, or limit ÷ rate, over 5 s", 1.03),
    ("qos-reserve", "rate ÷ reservation", 0.97),
    ("qos-weights", "rates ÷ weights, the larger by the smaller", 1.1),
    ("qos-conservation", "rate ÷ the node's", 0.95),
    ("qos-priority", "training's p99 beside the prefetch ÷ alone", 1.5),
    ("qos-starvation", "longest time without progress, of any identity", 1.0),
    ("qos-many", "rate ÷ limit, or limit ÷ rate", 1.1),
    ("qos-many", "worst wait ÷ fair share", 2.0),
    ("qos-both", "rate ÷ limit, the larger of the two", 1.03),
    ("qos-both", "use of the limit that binds", 0.95),
    ("qos-backend", "from a limit's begin until requests come at less", 2.0),
    ("qos-backend", "from a limit's begin until 90 % of it is taken", 20.0),
    ("qos-backend", "errors that readers saw", 0.0),
]
POLICIES = {
    name: str(one.options["policy"]) for name, one in ALL.items() if "policy" in one.options
}

# What a measure makes contenders of; all others make registered ones, or sources.
CONTENDERS = {
    "reads": {*registry.CONTENDERS},
    "hot-cat-file": {*registry.CONTENDERS, *hot.FSSPEC_CACHES},
    "hot-open": {*hot.FSSPEC_CACHES},
    "cold-sequential": {*cold.S3FS},
    "prefetch": {*rivals.COPIERS},
    "dataloader-tar": {*sources.SOURCES, training.LITDATA},
    "working-set": {epochs.MSC},
    "open-storm": {*storms.RIVALS},
    "stat-storm": {*storms.RIVALS},
    "long-stream-memory": {streams.S3FS},
    "metadata-commit": {*metadata.CONTENDERS},
    "metadata-read": {*metadata.CONTENDERS},
    "metadata-takeover": {*metadata.CONTENDERS},
    "metadata-attach": {*metadata.CONTENDERS},
}


PROMISES = NODE_CACHE + BENCHMARKS + OUTLIVES_THE_NODE + GOVERNED


@pytest.mark.parametrize(("name", "text", "limit"), PROMISES)
def test_every_promise_has_its_bar(name: str, text: str, limit: float) -> None:
    (bar,) = [bar for bar in ALL[name].bar if bar.text == text]
    assert limit in (bar.at_most, bar.at_least)


@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_what_a_workload_names_is_there(one: Workload) -> None:
    for form in (one, GATED.get(one.name, one)):
        assert form.measure in registry.MEASURES
        assert not form.network or form.network in PROFILES
        assert form.title and form.why and form.bound
        known = CONTENDERS.get(form.measure, {*registry.CONTENDERS, *sources.SOURCES})
        assert set(form.contenders) <= known, set(form.contenders) - known
        texts = [bar.text for bar in form.bar]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_of_workloads_say_what_the_node_delivers(name: str) -> None:
    """Nothing of them is measured first: the same limits hold on every machine."""
    checked = check_policy(POLICIES[name], where=name)
    assert checked.policy is not None, checked.problems
    assert all(math.isfinite(rate) for rate in plan_of(POLICIES[name]).node)


def test_the_gate_is_small_and_guards_the_hit_path() -> None:
    assert len(GATED) <= 20
    for name, one in GATED.items():
        assert one.bar, f"{name} is in the gate and has nothing to fail by"
        if name.startswith("hot-"):
            # Or a slow-down to half the speed would pass.
            assert all(bar.slack < 2.0 for bar in one.bar)
    assert {"hot-read", "hot-cat-file", "hot-view", "hot-open"} <= set(GATED)


def test_bars_of_the_gate_are_ratios_and_need_no_rival() -> None:
    """Microseconds differ between machines; a rival may not be installed."""
    for name, one in GATED.items():
        for bar in one.bar:
            assert bar.number or bar.against, f"{name}: {bar.text}"
            assert bar.unit == "×", f"{name}: {bar.text}"
        for rival in one.contenders:
            copier = rivals.COPIERS.get(rival)
            assert copier is None or copier.role == "bound", f"{name}: {rival}"


# -- the files themselves ---------------------------------------------------------------------

WHOLE = """
name = "x"
title = "x"
measure = "hot-read"
[[bar]]
text = "it"
ours = "ours"
at_most = 1.0
"""


def read(folder: Path, text: str, *, name: str = "x") -> Workload:
    (folder / f"{name}.toml").write_text(text)
    return workload.read_all((folder,))[name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE.replace("measure", "mesure"), "mesure"),
        (WHOLE + "slak = 2.0\n", "slak"),
        (WHOLE + "[load]\nthreds = [1]\n", "threds"),
        (WHOLE + "[dataset]\nsize = 3\n", "size"),
        (WHOLE + "[short]\nlod.rounds = 3\n", "lod"),
        (WHOLE + "[short.load]\nround = 3\n", "round"),
        (WHOLE + '[dataset]\nbytes = "64 apples"\n', "64 apples"),
        (WHOLE + "[load]\nrounds = 0\n", "rounds"),
        (WHOLE + 'state = "warm"\n', "state"),
        (WHOLE + "at_least = 1.0\n", "either at_most or at_least"),
        (WHOLE + 'number = "n"\n', "either ours or number"),
        (WHOLE.replace("at_most = 1.0\n", ""), "either at_most or at_least"),
        ("name = ", "x.toml"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    assert said in str(raised.value)
    assert str(tmp_path / "x.toml") in str(raised.value)


def test_a_file_and_its_workload_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calls its workload 'x'"):
        read(tmp_path, WHOLE, name="y")


def test_the_short_form_overrides_values_and_whole_lists(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        'contenders = ["a"]\n' + WHOLE + '[dataset]\ncount = 7\nbytes = "1MiB"\n'
        '[short]\ncontenders = []\ndataset.bytes = "64KiB"\n'
        '[[short.bar]]\ntext = "other"\nnumber = "n"\nat_least = 2.0\nslack = 1.1\n',
    )
    short = found.shortened()
    assert (short.dataset.count, short.dataset.object_bytes) == (7, 65536)
    assert short.contenders == () and found.contenders == ("a",)
    assert [bar.text for bar in short.bar] == ["other"]
    assert not short.in_gate()


def test_a_workload_outside_the_gate_has_no_short_form(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert not found.in_gate()
    with pytest.raises(ValueError, match="has no"):
        found.shortened()


def test_a_bar_of_a_file_is_judged_as_it_says(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    outcome = Outcome(figures=(Figure(name="ours", role="ours", unit="µs", values=(0.5,)),))
    (bar,) = judged(found.bar, outcome)
    assert bar.passed()
