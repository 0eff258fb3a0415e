"""A report names the offence, its proof and the seed; a counterexample has nothing to spare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.consistency.made_histories import create, delete, history, read, replace, write
from tiercache.testing.consistency import linearizable
from tiercache.testing.consistency.linearizable import Verdict
from tiercache.testing.consistency.modes import MODES, judge
from tiercache.testing.consistency.operations import ORIGIN, History, Operation
from tiercache.testing.consistency.programs import Workload, faults_of, programs, weather
from tiercache.testing.consistency.reports import render, shrink

ROOT = Path(__file__).resolve().parents[2]
NOISE = [write(f"n{number}", 40 * number, 40 * number + 30, site="b") for number in range(8)]
LOST_UPDATE = [
    write("x", 400, 410),
    replace("y", "x", 420, 450),
    replace("z", "x", 420, 460, site="b"),
]


def is_wrong(operations: Sequence[Operation]) -> bool:
    return linearizable.check(operations).verdict is Verdict.VIOLATED


def test_a_counterexample_has_nothing_to_spare() -> None:
    looks = [read(f"n{number}", 40 * number + 31, 40 * number + 35) for number in range(8)]
    smallest = shrink([*NOISE, *looks, *LOST_UPDATE], is_wrong)
    assert set(smallest) == set(LOST_UPDATE)


def test_what_others_observed_is_not_left_out_alone() -> None:
    whole = [*NOISE, *LOST_UPDATE, read("z", 470, 480), read("y", 490, 500)]
    smallest = shrink(whole, is_wrong)
    written = {found.value for found in smallest if found.kind.is_write}
    assert is_wrong(smallest) and len(smallest) <= 4
    assert all(found.expected in written | {""} for found in smallest)
    assert all(found.observed in written | {None} for found in smallest)


def test_a_report_shows_offence_proof_and_timeline() -> None:
    told = history(*NOISE, *LOST_UPDATE, delete(600, 610), create("w", 700, 710))
    (found, *_) = judge(told, MODES["strong"]).violations
    text = render(told, found, about=" (--seed 7)")
    assert "no order of these operations" in text and "h7/k, seed 7 (--seed 7)" in text
    proof, timeline = text.split("all that was done to the key:")
    assert proof.count("replace") >= 2 and "n3" not in proof
    assert timeline.count("\n") == len(told.operations)
    assert "420.0 –     460.0  b1  replace z over x: ok" in timeline


@pytest.mark.parametrize("mode", MODES)
def test_only_strong_orders_what_sites_see(mode: str) -> None:
    """Old within every ttl is fine elsewhere; changes that exclude each other are fine nowhere."""
    old = history(
        write("x", 0, 10, site=ORIGIN),
        write("y", 20, 30, site=ORIGIN),
        read("y", 25, 29, site="a"),
        read("x", 26, 30, site="b"),
        read("y", 25, 40, site="a"),
        read("x", 30, 31, site="b"),
    )
    assert bool(judge(old, MODES[mode]).violations) is (mode == "strong")
    assert judge(history(*LOST_UPDATE), MODES[mode]).violations


def test_a_seed_repeats_programs_and_faults() -> None:
    workload = Workload(steps=6, faults=3)
    assert programs(5, workload) == programs(5, workload) != programs(6, workload)
    assert faults_of(5, "h5", workload) == faults_of(5, "h5", workload)
    assert weather(5, "a", seconds=60) == weather(5, "a", seconds=60) != weather(5, "b", seconds=60)
    made = [step for steps in programs(5, workload).values() for step in steps if step.value]
    assert len({step.size_bytes for step in made}) == len(made)


def test_a_history_survives_its_wire_form() -> None:
    told = history(*LOST_UPDATE)
    assert msgspec.json.decode(msgspec.json.encode(told), type=History) == told


def test_one_seed_by_hand() -> None:
    arguments = ["--mode", "eventual", "--seed", "11", "--copies", "3", "--calm"]
    done = subprocess.run(
        [sys.executable, "-m", "tiercache.testing.consistency", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("eventual: 3 histories")
