"""Runs workloads one after the other and keeps what they gave, whatever becomes of the next."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from benchmarks import gate, registry
from benchmarks.gate import Baselines
from benchmarks.harness import Result, judged
from benchmarks.lab import Lab
from benchmarks.results import Failed, Report, Surroundings
from benchmarks.texts import bar_text, figure_text, number, verdict
from benchmarks.workload import Workload
from tiercache.ending import INTERRUPTED
from tiercache.errors import ConfigError
from tiercache.testing.proxy_cost import ProxyCost

# A workload that was never measured here is expected to take the mean of those that were; the
# first of all so long.
UNKNOWN_S = 15.0

OK = 0
SHORT_OF_A_BAR = 1
FAILED = 2


def measured(lab: Lab, workload: Workload) -> Result:
    """Run one workload in the form it has, and judge it. Raises what its measure raises, and
    ConfigError for a measure that is not there."""
    try:
        run = registry.MEASURES[workload.measure]
    except KeyError:
        there = ", ".join(sorted(registry.MEASURES))
        raise ConfigError(
            f"{workload.name}: no measure {workload.measure!r}; there are {there}"
        ) from None
    started = time.monotonic()
    outcome = run(lab, workload)
    return Result(
        name=workload.name,
        title=workload.title,
        outcome=outcome,
        bars=judged(workload.bar, outcome),
        why=workload.why,
        bound=workload.bound,
        bound_by=workload.bound_by,
        state=workload.state,
        network=workload.network,
        took_s=time.monotonic() - started,
        load=os.getloadavg()[0],
    )


@dataclass(slots=True, kw_only=True)
class Run:
    """One pass over some workloads. Its report may be asked for at any time, so that what an
    interrupt leaves is not lost. ``expected_s``: what workloads took before, by name. With
    ``baselines`` each runs in its short form and is held to them. ``kept`` is handed the report
    after each workload. Not thread safe.
    """

    lab: Lab
    workloads: Sequence[Workload]
    surroundings: Surroundings
    baselines: Baselines | None = None
    proxy_cost: ProxyCost | None = None
    expected_s: Mapping[str, float] = field(default_factory=dict)
    kept: Callable[[Report], None] = lambda report: None
    results: list[Result] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    interrupted: bool = False

    def go(self) -> int:
        """Run them all; return the exit status. An interrupt ends it in good order."""
        started = time.monotonic()
        try:
            for place, workload in enumerate(self.workloads):
                say(self._progress(place, time.monotonic() - started))
                self._one(workload)
                self.kept(self.report())
        except KeyboardInterrupt:
            self.interrupted = True
            say(f"interrupted after {len(self.results)} of {len(self.workloads)} workloads")
            self.kept(self.report())
        return self.status()

    def report(self) -> Report:
        return Report(
            surroundings=self.surroundings,
            results=tuple(self.results),
            failed=tuple(self.failed),
            interrupted=self.interrupted,
            proxy_cost=self.proxy_cost,
        )

    def status(self) -> int:
        """Name every workload that failed and every bar that was missed; return the status."""
        for failure in self.failed:
            say(f"FAILED {failure.name}: {failure.error}")
        for line in self._missed():
            say(line)
        if self.interrupted:
            return INTERRUPTED
        if self.failed:
            return FAILED
        return SHORT_OF_A_BAR if self._missed() else OK

    def _missed(self) -> list[str]:
        if self.baselines is not None:
            return gate.regressions(self.results)
        short = self.surroundings.short
        return [
            f"SHORT OF IT {result.name}: {bar.text} is {number(bar.figure)} {bar.unit}, "
            f"the bar is {bar_text(bar, short=short)}"
            for result in self.results
            for bar in result.failures(short=short)
        ]

    def _one(self, workload: Workload) -> None:
        try:
            result = self._measured(workload)
        except Exception as error:
            # One workload's fault, or its rival's, must not cost the others' results.
            traceback.print_exc(file=sys.stderr)
            text = traceback.format_exception_only(error)[-1].strip()
            failure = Failed(name=workload.name, title=workload.title, error=text)
            self.failed.append(failure)
            say(f"   FAILED: {text}")
            return
        self.results.append(msgspec.structs.replace(result, commit=self.surroundings.commit))
        self._tell(result)

    def _measured(self, workload: Workload) -> Result:
        if self.baselines is not None:
            return gate.gated(lambda form: measured(self.lab, form), workload, self.baselines)
        return measured(self.lab, workload.shortened() if self.surroundings.short else workload)

    # -- what it says -----------------------------------------------------------------------

    def _progress(self, place: int, elapsed_s: float) -> str:
        workload = self.workloads[place]
        left_s = sum(self._expected_s(one) for one in self.workloads[place:])
        return (
            f"[{place + 1}/{len(self.workloads)}] {workload.name}: {workload.title} "
            f"({_clock(elapsed_s)} gone, about {_clock(left_s)} left)"
        )

    def _expected_s(self, workload: Workload) -> float:
        done = [result.took_s for result in self.results]
        mean = sum(done) / len(done) if done else UNKNOWN_S
        return self.expected_s.get(workload.name, mean)

    def _tell(self, result: Result) -> None:
        short = self.surroundings.short
        for figure in result.outcome.figures:
            say(f"     {figure_text(figure)}")
        for missing in result.outcome.missing:
            say(f"     {missing.name}: missing: {missing.why}")
        for note in result.outcome.notes:
            say(f"     {note}")
        for bar in result.bars:
            said = f"{number(bar.figure)} {bar.unit} (bar {bar_text(bar, short=short)})"
            say(f"   {bar.text}: {said} {verdict(bar, short=short)}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def say(line: str) -> None:
    """Tell the one who waits; results go to files and standard output."""
    print(line, file=sys.stderr, flush=True)
