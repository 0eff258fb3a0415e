"""``python -m benchmarks baselines``: record anew what the gate compares with.

On a quiet machine, and with a reason in the commit: a baseline that moved is a change that made
something faster or slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import gate, registry, results, workload
from benchmarks.gate import Baselines
from benchmarks.harness import Result
from benchmarks.lab import Lab
from benchmarks.runner import OK, measured, say
from tiercache.errors import ConfigError

RUNS = 3


def main(arguments: Sequence[str], *, seed: int) -> int:
    """Record, and say which baselines moved; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks baselines", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="of the short form (%(default)s)")
    parser.add_argument("--file", type=Path, default=gate.BASELINES, help="(%(default)s)")
    parser.add_argument("--dir", metavar="DIR", help="where caches and files lie (default: temp)")
    parser.add_argument("--seed", type=int, default=seed, help="of data and patterns")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs is at least 1")
    registry.load()
    fresh = recorded(runs=options.runs, seed=options.seed, directory=options.dir)
    for line in moved(_before(options.file), fresh):
        say(line)
    gate.save(fresh, options.file)
    return OK


def recorded(*, runs: int, seed: int, directory: str | None) -> Baselines:
    """Run all short forms so often, each run with servers and caches of its own."""
    chosen = [one.shortened() for one in workload.read_all().values() if one.in_gate()]
    found: list[list[Result]] = []
    for number in range(runs):
        lab = Lab(seed=seed, short=True, directory=directory)
        try:
            around = results.surroundings(
                seed=seed,
                short=True,
                when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                directory=lab.root,
            )
            found.append([])
            for one in chosen:
                say(f"run {number + 1} of {runs}: {one.name}")
                found[-1].append(measured(lab, one))
        finally:
            lab.close()
    return gate.recorded(
        found,
        when=around.when,
        commit=around.commit,
        machine=f"{around.processor}, {around.cores} cores, Linux {around.kernel}",
    )


def _before(file: Path) -> Baselines:
    try:
        return gate.load(file)
    except ConfigError as error:
        say(str(error))
        return Baselines()


def moved(before: Baselines, now: Baselines) -> list[str]:
    """Return a line for each baseline, with what it was."""
    lines = []
    for name, bars in now.workloads.items():
        for text, baseline in bars.items():
            old = before.workloads.get(name, {}).get(text)
            was = f"was {old.figure:.3g}" if old is not None else "is new"
            spread = f"{min(baseline.runs):.3g}–{max(baseline.runs):.3g}"
            lines.append(f"{name}: {text}: {baseline.figure:.3g} ({spread}), {was}")
    return lines
