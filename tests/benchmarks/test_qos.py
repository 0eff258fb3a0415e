"""The QoS workloads' own parts: what a hit would be without a policy, and windows over a node."""

from __future__ import annotations

import math

import pytest

from benchmarks.measures.qos_hit import without
from benchmarks.qos_rig import factor, plan_of
from tiercache.policy.qos import Resource

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
