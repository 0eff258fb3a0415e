"""Measure, compare and report: see docs/benchmarks.md.

``run`` measures the workloads of benchmarks/workloads, each with its bounds and rivals. With
--short: the gate, a dozen of them, small, each bar held to its recorded baseline.
Exit status: 0; 1 where a bar is missed; 2 where a workload failed; 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks import compare, gate, record, registry, report, results, runner, workload
from benchmarks.lab import Lab
from benchmarks.results import Report
from benchmarks.workload import Workload
from tiercache.ending import INTERRUPTED, end
from tiercache.errors import ConfigError
from tiercache.testing.proxy_cost import measure_own_cost

SEED = 20260101


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure")
    run.add_argument("names", nargs="*", metavar="NAME", help="workloads; default: all")
    run.add_argument("--list", action="store_true", help="show the workloads and leave")
    run.add_argument("--short", action="store_true", help="the gate: small, against baselines")
    run.add_argument("--json", type=Path, metavar="FILE", help="keep the results there")
    run.add_argument(
        "--update", action="store_true",
        help="keep what --json FILE has of other workloads: measures some anew, or goes on",
    )  # fmt: skip
    run.add_argument(
        "--missing", action="store_true",
        help="with --update: only the workloads that FILE does not have yet",
    )  # fmt: skip
    run.add_argument("--out", type=Path, metavar="DIR", help="make tables, plots and page there")
    run.add_argument("--dir", metavar="DIR", help="where caches and files lie (default: temp)")
    run.add_argument("--seed", type=int, default=SEED, help="of data and patterns (%(default)s)")
    run.add_argument(
        "--workloads", type=Path, default=workload.FOLDER, metavar="DIR",
        help="read workloads from there instead; --short then holds them to their own bars",
    )  # fmt: skip
    # These read their own arguments.
    commands.add_parser("compare", help="say what differs between two results", add_help=False)
    commands.add_parser("report", help="make tables, plots and page of results", add_help=False)
    commands.add_parser("baselines", help="record what the gate compares with", add_help=False)
    options = parser.parse_args(arguments)
    if options.command == "run" and (
        options.missing > options.update or options.update > bool(options.json)
    ):
        run.error("--missing goes with --update, and --update with --json FILE")
    if options.out and importlib.util.find_spec("matplotlib") is None:
        run.error("--out draws plots: pip install 'tiercache[bench]'")
    return options


def chosen(options: argparse.Namespace) -> list[Workload]:
    """Return the workloads to run, in the report's order. Raises ConfigError for a name that
    there is not."""
    there = workload.read_all((options.workloads,))
    for name in options.names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.0)
            raise ConfigError(
                f"no workload {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
                remedy="python -m benchmarks run --list",
            )
    named = [one for one in there.values() if not options.names or one.name in options.names]
    if not options.short:
        return named
    for one in named:
        if options.names and not one.in_gate():
            raise ConfigError(f"{one.name} has no short form", remedy="run it without --short")
    return [one for one in named if one.in_gate()]


def before(options: argparse.Namespace) -> Report | None:
    """Return the results to go on from. Raises ConfigError where they are no such results."""
    if not options.update or not options.json.exists():
        return None
    return results.load(options.json)


def listed(workloads: Sequence[Workload]) -> str:
    width = max((len(one.name) for one in workloads), default=0)
    return "\n".join(
        f"{one.name:{width}}  {'short' if one.in_gate() else '     '}  {one.title}"
        for one in workloads
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore more of them: a second
    one would end the removal of servers and caches half way."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def once(number: int, frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(options: argparse.Namespace) -> int:
    registry.load()
    workloads = chosen(options)
    if options.list:
        print(listed(workloads))
        return runner.OK
    own = options.workloads == workload.FOLDER
    baselines = gate.load() if options.short and own else None
    if baselines is not None and (gaps := gate.gaps(workload.read_all(), baselines)):
        raise ConfigError("; ".join(gaps), path=str(gate.BASELINES))
    earlier = before(options)
    order = list(workload.read_all((options.workloads,)))
    if options.missing and earlier is not None:
        there = {one.name for one in earlier.results}
        workloads = [one for one in workloads if one.name not in there]

    def whole(found: Report) -> Report:
        return found if earlier is None else results.merged(earlier, found, order)

    lab = Lab(seed=options.seed, short=options.short, directory=options.dir)
    try:
        passed = runner.Run(
            lab=lab,
            workloads=workloads,
            surroundings=results.surroundings(
                seed=options.seed,
                short=options.short,
                when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                directory=lab.root,
            ),
            baselines=baselines,
            expected_s=_expected_s() if own and not options.short else {},
            kept=lambda found: results.save(whole(found), options.json) if options.json else None,
        )
        whole(passed.report())  # of another machine's results, say so before measuring
        if any(one.network for one in workloads):
            passed.proxy_cost = measure_own_cost()
            runner.say(str(passed.proxy_cost))
        status = passed.go()
    finally:
        lab.close()
    _publish(whole(passed.report()), options)
    return status


def _expected_s() -> dict[str, float]:
    """Return what the workloads took when the docs' results were measured."""
    try:
        return {result.name: result.took_s for result in results.load(report.RESULTS).results}
    except (OSError, ConfigError):
        return {}


def _publish(found: Report, options: argparse.Namespace) -> None:
    if options.out:
        report.write(found, options.out)
    elif not options.json:
        print(report.markdown(found))


def recording(arguments: Sequence[str]) -> int:
    try:
        with interruptible():
            return record.main(arguments, seed=SEED)
    except ConfigError as error:
        runner.say(f"python -m benchmarks baselines: {error}")
        return runner.FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def main(arguments: Sequence[str]) -> int:
    match list(arguments):
        case ["compare", *rest]:
            return compare.main(rest)
        case ["report", *rest]:
            return report.main(rest)
        case ["baselines", *rest]:
            return recording(rest)
    options = parsed(arguments)
    try:
        with interruptible():
            return run(options)
    except ConfigError as error:
        runner.say(f"python -m benchmarks: {error}")
        return runner.FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(end(main(sys.argv[1:])))
