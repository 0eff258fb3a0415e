"""``python -m benchmarks [NAME …] [--short] [--json FILE] [--list]``.

Without --short: the whole measurement, with rivals; exit status 1 where a bar is missed. With
it: smaller sizes, no rivals that need an installation, bars with slack: the gate of CI.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import cold, hot, names, prefetch, shared, startup
from benchmarks.harness import FULL, SHORT, Result
from benchmarks.lab import Lab, stamped
from benchmarks.registry import ALL, Benchmark
from benchmarks.report import (
    Report,
    bar_text,
    figure_text,
    markdown,
    number,
    save,
    surroundings,
)

# Importing a family registers its benchmarks.
FAMILIES = (hot, shared, cold, prefetch, names, startup)
SEED = 20260101


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--short", action="store_true", help="the gate: small, with slack")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--list", action="store_true", help="show the names and leave")
    parser.add_argument("--dir", metavar="DIR", help="where caches and files lie (default: temp)")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ALL]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    return options


def in_order(names: list[str]) -> list[Benchmark]:
    """Return the named benchmarks, or all, as the families order them."""
    families = [family.__name__ for family in FAMILIES]
    ordered = sorted(ALL.values(), key=lambda one: families.index(one.run.__module__))
    return [one for one in ordered if not names or one.name in names]


def run_one(lab: Lab, chosen: Benchmark, *, short: bool) -> Result:
    print(f"-- {chosen.name}: {chosen.title}", file=sys.stderr, flush=True)
    started = time.monotonic()
    result = stamped(chosen.run(lab), took_s=time.monotonic() - started)
    for figure in result.figures:
        print(f"     {figure_text(figure)}", file=sys.stderr)
    for missing in result.missing:
        print(f"     {missing.name}: {missing.why}", file=sys.stderr)
    for bar in result.bars:
        verdict = "pass" if bar.passed(short=short) else "SHORT OF IT"
        print(
            f"   {bar.text}: {number(bar.figure)} {bar.unit} "
            f"(bar {bar_text(bar, short=short)}) {verdict}",
            file=sys.stderr,
            flush=True,
        )
    return result


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    if options.list:
        for one in in_order([]):
            print(f"{one.name:16} {one.title}")
        return 0
    lab = Lab(SHORT if options.short else FULL, seed=options.seed, directory=options.dir)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    around = surroundings(seed=options.seed, short=options.short, when=when, directory=lab.root)
    try:
        chosen = in_order(options.names)
        results = tuple(run_one(lab, one, short=options.short) for one in chosen)
    finally:
        lab.close()
    report = Report(surroundings=around, results=results)
    if options.json:
        save(report, Path(options.json))
    print(markdown(report))
    return verdict_of(results, short=options.short)


def verdict_of(results: tuple[Result, ...], *, short: bool) -> int:
    """Name every bar that was missed; return the exit status."""
    status = 0
    for result in results:
        for bar in result.failures(short=short):
            status = 1
            print(
                f"REGRESSION {result.name}: {bar.text} is {number(bar.figure)} {bar.unit}, "
                f"the bar is {bar_text(bar, short=short)}",
                file=sys.stderr,
            )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
