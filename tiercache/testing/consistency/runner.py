"""Histories by the hundred: two sites with an agent each, over one origin, through bad networks.

Many histories run at once, each on keys of its own; agents, networks and client processes are
shared. So waiting overlaps, and what limits is the processor.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import msgspec

from tiercache.namespace import Namespace
from tiercache.settings import AgentSettings, CacheSettings, ProfileSettings, Settings, TotalBytes
from tiercache.testing.consistency.clients import Assignment, Begin, Player, Report
from tiercache.testing.consistency.modes import MOUNT, Judgement, Mode, judge
from tiercache.testing.consistency.operations import ORIGIN, History, Operation, Outcome
from tiercache.testing.consistency.programs import (
    PROCESSES,
    PlannedFault,
    Workload,
    faults_of,
    weather,
)
from tiercache.testing.consistency.reports import render
from tiercache.testing.network import FirstByteDelay, NetworkProfile
from tiercache.testing.object_servers import REGION, S3Server
from tiercache.testing.proxy_process import ProxyProcess
from tiercache.units import MIB

# A fault is over soon: one request 0.5 s at most, an operation with its repetitions 1.2 s.
LIMITS = {"connect_timeout_s": 0.3, "request_timeout_s": 0.5, "deadline_s": 1.2}
# Small, so that something is evicted too.
CAPACITY_BYTES = 192 * MIB
WAY = NetworkProfile(
    name="way",
    source="Made up: long enough a tail that operations overlap.",
    first_byte=FirstByteDelay(median_s=0.003, p99_s=0.060),
)
WEATHER_S = 600.0
HISTORY_TIMEOUT_S = 90.0
END_TIMEOUT_S = 20.0
POLL_S = 0.02
# Faults alone leave a tenth of the operations unanswered.
BUSY_SHARE = 0.3
LEAST_AT_ONCE = 4.0

Done = Callable[[str, Report | None], None]


class Players(Protocol):
    """The clients of one process of each history, wherever they run."""

    def begin(self, assignment: Assignment) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: so many seeds from ``first_seed`` on, each ``copies`` times, ``at_once`` at a
    time at most, fewer where the machine is too slow for so many. ``storms``: whether the sites'
    networks break for all histories now and then."""

    mode: Mode
    first_seed: int
    histories: int
    copies: int = 1
    at_once: int = 32
    storms: bool = True
    workload: Workload | None = None  # the mode's own

    def assignments(self) -> Iterator[Assignment]:
        for seed in range(self.first_seed, self.first_seed + self.histories):
            for copy in range(self.copies):
                yield Assignment(seed=seed, directory=f"h{seed}c{copy}")


@dataclass(slots=True)
class Outcomes:
    """How a run ended. Only what is not well is kept whole."""

    histories: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bad: list[Judgement] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, judgement: Judgement) -> None:
        self.histories += 1
        for operation in judgement.history.operations:
            self.operations[f"{operation.kind} {operation.outcome}"] += 1
            if operation.outcome is Outcome.UNKNOWN:
                self.errors[operation.detail.partition(":")[0]] += 1
        if judgement.violations or judgement.undecided:
            self.bad.append(judgement)


class Lab:
    """Two sites and a way to the origin, for histories of one mode. A context manager; leaves no
    process, and nothing but its directory and bucket."""

    def __init__(
        self, server: S3Server, bucket: str, directory: Path, plan: Plan, *, embedded: bool = False
    ) -> None:
        """``embedded`` runs engines and clients in this process, so that a test can break them."""
        self._server, self._bucket, self._directory = server, bucket, directory
        self._plan, self._embedded = plan, embedded
        self._workload = plan.workload or plan.mode.workload
        self._exits = contextlib.ExitStack()
        self._proxies: dict[str, ProxyProcess] = {}
        self._players: dict[str, Players] = {}
        # From the players' threads to run()
        self._reports: queue.SimpleQueue[tuple[str, Report | None]] = queue.SimpleQueue()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as exits:
            self._open(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    # -- the parts --------------------------------------------------------------------------

    def _open(self, exits: contextlib.ExitStack) -> None:
        for site in ("a", "b"):
            seed = self._plan.first_seed
            proxy = ProxyProcess(self._server.endpoint, network=WAY, seed=seed)
            self._proxies[site] = exits.enter_context(proxy)
            owner = Namespace(self._settings(site), embedded=self._embedded)
            exits.callback(_end_agent, owner, embedded=self._embedded)
            owner.client  # noqa: B018  # starts the agent
        for process, site in PROCESSES.items():
            player = self._player(self._begin(process, site))
            self._players[process] = player
            exits.callback(player.close)

    def _player(self, begin: Begin) -> Players:
        if self._embedded:
            return ThreadPlayers(begin, self._note)
        return ProcessPlayers(begin, self._note, self._server.env)

    def _note(self, process: str, report: Report | None) -> None:
        self._reports.put((process, report))

    def _settings(self, site: str) -> Settings:
        profile = self._server.profile("site", endpoint=self._proxies[site].url)
        return Settings(
            cache=CacheSettings(
                dir=str(self._directory / f"site-{site}"), limit=TotalBytes(CAPACITY_BYTES)
            ),
            mounts=(self._plan.mode.mount(self._server.url(self._bucket)),),
            profiles={
                "default": ProfileSettings(),
                "site": msgspec.structs.replace(profile, **LIMITS),
            },
            agent=AgentSettings(idle_timeout_s=10.0),
        )

    def _begin(self, process: str, site: str) -> Begin:
        if site != ORIGIN:
            return Begin(
                process=process,
                site=site,
                workload=self._workload,
                mount=MOUNT,
                settings=self._settings(site),
            )
        return Begin(
            process=process,
            site=site,
            workload=self._workload,
            endpoint=self._server.endpoint,
            region=REGION,
            bucket=self._bucket,
        )

    # -- the run ----------------------------------------------------------------------------

    def run(self) -> Outcomes:
        """Run the plan's histories and judge them. Raises RuntimeError where a client dies or a
        history does not end."""
        started_s = time.monotonic()
        outcomes = Outcomes()
        if self._plan.storms:
            for site, proxy in self._proxies.items():
                proxy.play(weather(self._plan.first_seed, site, seconds=WEATHER_S))
        for history in self._histories():
            outcomes.add(judge(history, self._plan.mode))
        for proxy in self._proxies.values():
            proxy.heal()
        outcomes.seconds = time.monotonic() - started_s
        return outcomes

    def _histories(self) -> Iterator[History]:
        waiting = self._plan.assignments()
        under_way: dict[str, _UnderWay] = {}
        at_once = float(self._plan.at_once)
        while True:
            while len(under_way) < at_once:
                assignment = next(waiting, None)
                if assignment is None:
                    break
                faults = faults_of(assignment.seed, assignment.directory, self._workload)
                under_way[assignment.directory] = _UnderWay(assignment, faults)
                for player in self._players.values():
                    player.begin(assignment)
            if not under_way:
                return
            self._break_what_is_due(under_way.values())
            process, report = self._next_report()
            if report is None:
                self._check_times(process, under_way.values())
                continue
            entry = under_way[report.directory]
            entry.reports[process] = report.operations
            if len(entry.reports) == len(self._players):
                del under_way[report.directory]
                history = entry.history()
                at_once = _next_at_once(at_once, history, most=self._plan.at_once)
                yield history

    def _next_report(self) -> tuple[str, Report | None]:
        try:
            return self._reports.get(timeout=POLL_S)
        except queue.Empty:
            return "", None

    def _break_what_is_due(self, under_way: Iterable[_UnderWay]) -> None:
        now_s = time.monotonic()
        for entry in under_way:
            while entry.faults and entry.started_s + entry.faults[-1].after_s <= now_s:
                planned = entry.faults.pop()
                self._proxies[planned.site].inject(planned.fault)

    def _check_times(self, died: str, under_way: Iterable[_UnderWay]) -> None:
        if died:
            raise RuntimeError(f"the client process {died} has died")
        for entry in under_way:
            if time.monotonic() - entry.started_s > HISTORY_TIMEOUT_S:
                missing = sorted(set(self._players) - set(entry.reports))
                raise RuntimeError(f"{entry.assignment} does not end: {', '.join(missing)}")


def _next_at_once(at_once: float, history: History, *, most: int) -> float:
    """Return how many histories a machine can take that left so much of one unanswered: on a busy
    one everything times out, and histories of errors prove nothing."""
    unknown = sum(found.outcome is Outcome.UNKNOWN for found in history.operations)
    if unknown > BUSY_SHARE * len(history.operations):
        return max(LEAST_AT_ONCE, at_once * 0.9)
    return min(most, at_once + 0.25)


class _UnderWay:
    """A history that runs."""

    def __init__(self, assignment: Assignment, faults: Sequence[PlannedFault]) -> None:
        self.assignment = assignment
        self.started_s = time.monotonic()
        self.faults = sorted(faults, key=lambda planned: -planned.after_s)  # the next one last
        self.reports: dict[str, tuple[Operation, ...]] = {}

    def history(self) -> History:
        return History(
            seed=self.assignment.seed,
            directory=self.assignment.directory,
            operations=tuple(found for report in self.reports.values() for found in report),
        )


class ProcessPlayers:
    """Clients in a process of their own, which ends with this one."""

    def __init__(self, begin: Begin, done: Done, env: Mapping[str, str]) -> None:
        self._process_name = begin.process
        self._done = done
        self._closing = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tiercache.testing.consistency.clients"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._send(begin)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _send(self, message: Begin | Assignment) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, as its reader will say
            self._input.write(msgspec.json.encode(message) + b"\n")
            self._input.flush()

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            self._done(self._process_name, msgspec.json.decode(line, type=Report))
        output.close()
        if not self._closing:
            self._done(self._process_name, None)

    def begin(self, assignment: Assignment) -> None:
        self._send(assignment)

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()


class ThreadPlayers:
    """Clients on threads of this process."""

    def __init__(self, begin: Begin, done: Done) -> None:
        self._player = Player(begin)
        self._done = done
        self._threads: list[threading.Thread] = []

    def begin(self, assignment: Assignment) -> None:
        thread = threading.Thread(target=self._play, args=(assignment,))
        thread.start()
        self._threads.append(thread)

    def _play(self, assignment: Assignment) -> None:
        self._done(self._player.begin.process, self._player.play(assignment))

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        self._player.close()


def _end_agent(ns: Namespace, *, embedded: bool) -> None:
    socket = Path(ns.settings.cache.dir) / "agent.sock"
    if not embedded:
        ns.shut_down_agent()
    ns.close()
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while socket.exists():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the agent of {ns.settings.cache.dir} does not leave")
        time.sleep(POLL_S)


def summary(name: str, outcomes: Outcomes) -> str:
    """Return what a run did, and the reports of all that was wrong."""
    lines = [
        f"{name}: {outcomes.histories} histories, {outcomes.operations.total()} operations in "
        f"{outcomes.seconds:.1f} s; {len(outcomes.bad)} histories are not well",
        "  " + ", ".join(f"{what} {count}" for what, count in sorted(outcomes.operations.items())),
        "  unanswered: "
        + (", ".join(f"{what} {count}" for what, count in outcomes.errors.most_common()) or "none"),
    ]
    for judgement in outcomes.bad:
        lines += [f"undecided: {judgement.history.directory}/{key}" for key in judgement.undecided]
        about = f" (python -m tiercache.testing.consistency --mode {name} --seed "
        about += f"{judgement.history.seed} --copies 50)"
        lines += [render(judgement.history, found, about=about) for found in judgement.violations]
    return "\n".join(lines)
