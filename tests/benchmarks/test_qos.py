"""The QoS workloads' own parts: what a hit would be without a policy, and windows over a node."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from benchmarks import registry, workload
from benchmarks.harness import judged
from benchmarks.lab import Lab
from benchmarks.measures.qos_hit import without
from benchmarks.qos_rig import factor, plan_of
from tiercache.policy.qos import Resource
from tiercache.testing.emulators import EmulatorMissing, SeaweedS3

LOG: list[str] = []


class Entry:
    pays: str | None = "somebody"
    mark = 7


def hit(entry: Entry, length: int) -> tuple[int, int]:
    pays = entry.pays
    if pays is not None:
        LOG.append(pays)
    if length > 0 and (entry.pays is None or len(LOG) < 100):
        return entry.mark, length
    return 0, 0


def test_a_function_without_what_a_policy_added_to_it() -> None:
    before = without(hit, {"pays": None, "mark": 1})
    assert before(Entry(), 5) == (1, 5)
    assert before(Entry(), 0) == (0, 0)
    assert LOG == []
    copy = without(hit, {})
    assert copy(Entry(), 5) == (7, 5)
    assert LOG == ["somebody"]


def test_a_function_that_reads_no_such_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="reads no generation"):
        without(hit, {"pays": None, "generation": None})


def test_a_factor_is_at_least_one() -> None:
    assert factor(3.0, 2.0) == factor(2.0, 3.0) == 1.5
    assert factor(0.0, 2.0) == math.inf


def test_a_plan_comes_from_the_policy_in_the_file() -> None:
    plan = plan_of('version = 1\n[node]\nread = "5MB/s"\nwrite = "1MB/s"\noperations = "1k/s"\n')
    assert plan.node[Resource.READ] == 5e6


ALL = workload.read_all()
# The gate runs the others on every change; the backend's has tests of its own.
UNGATED = [
    one.name
    for one in ALL.values()
    if one.name.startswith("qos-") and not one.in_gate() and one.name != "qos-backend"
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    try:
        SeaweedS3.find()
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    before = dict(os.environ)
    made = Lab(seed=7, directory=str(tmp_path_factory.mktemp("lab")))
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.emulator
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", UNGATED)
def test_each_measure_returns_what_its_bars_name(lab: Lab, name: str) -> None:
    """In small: what they measure then is nothing to judge by."""
    whole = ALL[name]
    nice = os.getpriority(os.PRIO_PGRP, lab.server.pid)
    small: dict[str, Any] = {
        "dataset": {"bytes": "2MiB"},
        "load": {
            "seconds": 0.5,
            "rounds": 1,
            "operations": 500,
            "processes": [min(count, 3) for count in whole.load.processes],
        },
        "options": {"settle_s": 0.2},
    }
    if name == "qos-priority":
        small["options"] |= {"prefetch_objects": 2, "prefetch_bytes": "1MiB"}
    found = msgspec.structs.replace(whole, short=small).shortened()
    registry.load()
    outcome = registry.MEASURES[found.measure](lab, found)
    bars = judged(found.bar, outcome)
    assert len(bars) == len(found.bar) and all(bar.figure >= 0 for bar in bars)
    assert all(figure.values for figure in outcome.figures)
    assert os.getpriority(os.PRIO_PGRP, lab.server.pid) == nice
