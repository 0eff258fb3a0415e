"""A governor, its shell and thousands of client processes on a clock of their own. Deterministic.

Processes follow the protocol of the lease file: they operate while they have used less than was
granted, charge in full, and else wait, looking again every millisecond or two. The shell reads what
they used at each turn, and publishes what the governor grants. Between two turns each process is
worked out at once, not operation by operation, so that a simulated second costs ~10 ms for each
ten processes that are at it, and hours of silence cost nothing.

``Simulation.seen`` is what happened; ``qos_claims`` says whether it should have.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf

from tiercache.policy.governor import Governor
from tiercache.policy.qos import DEFAULT_IDENTITY, Plan, Rates, Shares
from tiercache.policy.token_bucket import TokenBucket

# What happened is counted in bins of so long.
BIN_S = 0.5
NOTHING: Rates = (0.0, 0.0, 0.0)
UNITS = ("read", "operations")


def limits_of(shares: Shares) -> Rates:
    """Return the limits of an identity or a class."""
    read, write, operations = (share.limit for share in shares)
    return read, write, operations


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How one process asks for operations of ``operation_bytes``, each of which takes
    ``service_s`` once it is admitted.

    ``gap_s`` 0: a closed loop, the next when one has ended; else they arrive by themselves, so far
    apart on average (Poisson). ``on_s`` and ``off_s``: it asks for so long and is silent for so
    long, on average; inf: always. ``begins_s``: when it joins; ``dies_s``: when it is killed, and
    ``lapses_s`` later its slot is free. ``poll_s``: how long it looks away at most while it waits.
    """

    identity: str
    operation_bytes: int = 65536
    service_s: float = 20e-6
    gap_s: float = 0.0
    on_s: float = inf
    off_s: float = 0.0
    begins_s: float = 0.0
    dies_s: float = inf
    lapses_s: float = 0.5
    poll_s: float = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How often the shell turns: every ``every_s`` and up to ``jitter_s`` more; a ``late_share`` of
    turns comes up to ``late_s`` after that. ``lag``: it learns what was used and wanted one turn
    late."""

    every_s: float = 0.01
    jitter_s: float = 0.001
    late_share: float = 0.0
    late_s: float = 0.09
    lag: bool = False

    @property
    def longest_s(self) -> float:
        return self.every_s + self.jitter_s + (self.late_s if self.late_share else 0.0)


@dataclass(slots=True)
class Bin:
    """What the node, one identity or one process did in ``BIN_S``. ``waits`` is how many operations
    waited, ``waiting_turns`` at how many turns somebody did."""

    read_bytes: float = 0.0
    operations: float = 0.0
    waiting_turns: int = 0
    waits: int = 0


@dataclass(slots=True)
class Seen:
    """What happened. Bins by number since the beginning, absent where nobody did anything.
    ``turns``: how many there were in each.

    ``excess``: by bucket, how far use went at most above ``rate * t + burst`` over any time t.
    ``longest_gap_s``: how long an identity waited without any progress; ``longest_wait_s``: the
    same of processes, by number. ``over``: an operation of each payer that it had at once, at most.
    """

    identities: dict[str, dict[int, Bin]] = field(default_factory=dict)
    processes: dict[int, dict[int, Bin]] = field(default_factory=dict)
    node: dict[int, Bin] = field(default_factory=dict)
    excess: dict[str, float] = field(default_factory=dict)
    longest_gap_s: dict[str, float] = field(default_factory=dict)
    longest_wait_s: dict[int, float] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)
    operations: int = 0


class Process:
    """A client and its slot."""

    __slots__ = (
        "arrivals", "cursor_s", "granted", "is_on", "lagging", "load", "next_s", "number",
        "payer", "phase_end_s", "since_s", "told", "used",
    )  # fmt: skip

    def __init__(self, number: int, load: Load) -> None:
        self.number = number
        self.load = load
        self.payer = 0
        # Bytes and operations: counting up; as the shell was told last; up to where it may.
        self.used = [0.0, 0.0]
        self.told = [0.0, 0.0]
        self.granted = [0.0, 0.0]
        # What it will tell the shell at the next turn, where reports lag.
        self.lagging: tuple[float, float, float | None] = (0.0, 0.0, None)
        # Waiting since, or None.
        self.since_s: float | None = None
        # When it can do something next; when the next operation arrives; when on or off ends.
        self.cursor_s = load.begins_s
        self.next_s = load.begins_s
        self.arrivals: deque[float] = deque()
        self.is_on = True
        self.phase_end_s = inf

    def admitted(self) -> int:
        """Return how many operations its grants admit."""
        read = self.granted[0] - self.used[0]
        operations = self.granted[1] - self.used[1]
        if read <= 0 or operations <= 0:
            return 0
        size = self.load.operation_bytes
        most = min(ceil(read / size) if size and read < inf else 1 << 40, operations)
        return int(min(ceil(most) if most < inf else 1 << 40, 1 << 40))


class Simulation:
    """``run_to`` lets time pass. ``at`` has something done in between."""

    def __init__(
        self, plan: Plan, loads: list[Load], *, seed: int, turns: Turns | None = None
    ) -> None:
        self.seed = seed
        self.now_s = 0.0
        self.plan = plan
        self.turns = turns or Turns()
        self.governor = Governor(plan, 0.0)
        self.processes: dict[int, Process] = {}
        # Bytes of the largest operation of an identity.
        self.largest: dict[str, float] = {}
        self.seen = Seen()
        self._rng = random.Random(seed)
        self._by_payer: dict[int, Process] = {}
        self._awake: dict[int, Process] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._numbers = count()
        self._meters: dict[str, tuple[TokenBucket | None, ...]] = {}
        self._labels: dict[str, tuple[str, str, str]] = {}
        self._payers: dict[str, float] = {}
        self._done: list[tuple[float, str, float, float]] = []
        self._progress_s: dict[str, float] = {}
        self._watch_limits()
        for load in loads:
            self.add(load)

    # What is to happen.

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Have ``act`` called at the first turn from ``when_s`` on."""
        heappush(self._agenda, (when_s, next(self._order), act))

    def add(self, load: Load) -> int:
        """Start a process now or when its load says so; return its number."""
        process = Process(next(self._numbers), load)
        self.at(max(self.now_s, load.begins_s), lambda: self._join(process))
        return process.number

    def kill(self, number: int) -> None:
        """Kill a process: it does nothing more, and its slot is free some time later."""
        process = self.processes.pop(number, None)
        if process is not None:
            self._awake.pop(number, None)
            self._charge(process)  # and if it was waiting, its slot goes on saying so
            self.at(self.now_s + process.load.lapses_s, lambda: self._leave(process))

    def replace(self, plan: Plan) -> None:
        """Put another plan in force. What was measured against limits begins anew."""
        self.plan = plan
        self.governor.replace(plan, self.now_s)
        self._publish_changed()
        self.seen.excess.clear()
        self._watch_limits()

    def _join(self, process: Process) -> None:
        load = process.load
        self.processes[process.number] = process
        process.payer = self.governor.join(load.identity)
        process.cursor_s = process.next_s = self.now_s
        if load.on_s < inf:
            process.phase_end_s = self.now_s + self._rng.expovariate(1 / load.on_s)
        if load.gap_s:
            process.next_s += self._rng.expovariate(1 / load.gap_s)
        if load.dies_s < inf:
            self.at(max(load.dies_s, self.now_s), lambda: self.kill(process.number))
        name = load.identity if load.identity in self._labels else DEFAULT_IDENTITY
        self.largest[name] = max(self.largest.get(name, 0.0), load.operation_bytes)
        self.seen.identities.setdefault(load.identity, {})
        self.seen.processes.setdefault(process.number, {})
        self._by_payer[process.payer] = process
        self._count_payer(process, 1)
        self._awake[process.number] = process
        self._publish(process)

    def _leave(self, process: Process) -> None:
        self._count_payer(process, -1)
        self._by_payer.pop(process.payer)
        self.governor.leave(process.payer)

    # Time.

    def run_to(self, end_s: float) -> None:
        """Let time pass until ``end_s``."""
        while self.now_s < end_s:
            while self._agenda and self._agenda[0][0] <= self.now_s:
                heappop(self._agenda)[2]()
            turns = self.turns
            length_s = turns.every_s + self._rng.random() * turns.jitter_s
            if self._rng.random() < turns.late_share:
                length_s += self._rng.random() * turns.late_s
            until_s = self.now_s + length_s
            for process in list(self._awake.values()):
                self._work(process, until_s)
            self._meter()
            self.now_s = until_s
            self._turn()
            if not self._awake and self.governor.is_idle():
                next_s = self._agenda[0][0] if self._agenda else end_s
                self.now_s = max(self.now_s, min(next_s, end_s))

    def _turn(self) -> None:
        governor = self.governor
        for process in self._awake.values():
            self._charge(process)
        for process in [p for p in self._awake.values() if self._can_sleep(p)]:
            self._sleep(process)
        governor.turn(self.now_s)
        self._publish_changed()
        self._watch_waiting()

    def _charge(self, process: Process) -> None:
        """Do what the shell does before a turn."""
        now = (process.used[0], process.used[1], process.since_s)
        said = process.lagging if self.turns.lag else now
        process.lagging = now
        read, operations = said[0] - process.told[0], said[1] - process.told[1]
        if read or operations:
            self.governor.used(process.payer, (read, 0.0, operations))
            process.told = [said[0], said[1]]
        if said[2] is None:
            self.governor.wants(process.payer, NOTHING, 0.0)
        else:
            wants = (float(process.load.operation_bytes), 0.0, 1.0)
            self.governor.wants(process.payer, wants, said[2])

    def _publish_changed(self) -> None:
        for payer in self.governor.changed():
            self._publish(self._by_payer[payer])

    def _publish(self, process: Process) -> None:
        read, _, operations = self.governor.grant(process.payer)
        process.granted = [process.told[0] + read, process.told[1] + operations]

    def _can_sleep(self, process: Process) -> bool:
        if process.since_s is not None or process.arrivals:
            return False
        if self.turns.lag and process.lagging[:2] != (process.told[0], process.told[1]):
            return False
        return self._wakes_s(process) > self.now_s + self.turns.longest_s

    def _wakes_s(self, process: Process) -> float:
        """Return when a process that does not wait does something next."""
        if not process.is_on:
            return max(process.cursor_s, process.phase_end_s)
        return max(process.cursor_s, process.next_s) if process.load.gap_s else process.cursor_s

    def _sleep(self, process: Process) -> None:
        del self._awake[process.number]
        # At the turn before, which lasts until then.
        self.at(self._wakes_s(process) - self.turns.longest_s, lambda: self._rouse(process))

    def _rouse(self, process: Process) -> None:
        if process.number in self.processes:
            self._awake[process.number] = process

    # What processes do.

    def _work(self, process: Process, until_s: float) -> None:
        """Let a process operate until the end of this turn."""
        if process.since_s is not None:
            if process.admitted() == 0:
                return
            if process.cursor_s < self.now_s:
                process.cursor_s = self.now_s + self._rng.random() * process.load.poll_s
        process.cursor_s = max(process.cursor_s, self.now_s)
        while process.cursor_s < until_s:
            if process.cursor_s >= process.phase_end_s and process.since_s is None:
                load = process.load
                process.is_on = not process.is_on
                mean_s = load.on_s if process.is_on else load.off_s
                process.phase_end_s = process.cursor_s + self._rng.expovariate(1 / mean_s)
            if not process.is_on:
                if process.phase_end_s >= until_s:
                    return
                process.cursor_s = process.next_s = process.phase_end_s
                continue
            step_s = min(until_s, process.phase_end_s)
            if process.load.gap_s:
                if not self._serve_arrivals(process, step_s):
                    return
            elif not self._loop(process, step_s):
                return

    def _loop(self, process: Process, until_s: float) -> bool:
        """A closed loop; False when it has to wait."""
        admitted = process.admitted()
        service_s = process.load.service_s
        room = max(1, ceil((until_s - process.cursor_s) / service_s))
        n = min(admitted, room)
        if n:
            self._operate(process, n, process.cursor_s)
            process.cursor_s += n * service_s
        if n < room:
            self._wait(process, process.cursor_s)
            return False
        return True

    def _serve_arrivals(self, process: Process, until_s: float) -> bool:
        """Operations that arrive by themselves; False when they have to wait, or none is left."""
        load = process.load
        while process.next_s < until_s:
            process.arrivals.append(process.next_s)
            process.next_s += self._rng.expovariate(1 / load.gap_s)
        admitted = process.admitted()
        while process.arrivals:
            at_s = max(process.cursor_s, process.arrivals[0])
            if at_s >= until_s:
                break
            if not admitted:
                self._wait(process, at_s)
                return False
            admitted -= 1
            process.arrivals.popleft()
            self._operate(process, 1, at_s)
            process.cursor_s = at_s + load.service_s
        process.cursor_s = max(process.cursor_s, until_s)
        return True

    def _wait(self, process: Process, since_s: float) -> None:
        if process.since_s is None:
            process.since_s = since_s

    def _operate(self, process: Process, n: int, at_s: float) -> None:
        seen, name, waits = self.seen, process.load.identity, 0
        if process.since_s is not None:
            waited_s = at_s - process.since_s
            longest = seen.longest_wait_s
            longest[process.number] = max(longest.get(process.number, 0.0), waited_s)
            process.since_s = None
            waits = 1
        read = float(n * process.load.operation_bytes)
        process.used[0] += read
        process.used[1] += n
        seen.operations += n
        self._progress_s[name] = max(at_s, self._progress_s.get(name, 0.0))
        number = int(at_s / BIN_S)
        for bins in (
            seen.identities[name],
            seen.processes[process.number],
            seen.node,
        ):
            of = bins.setdefault(number, Bin())
            of.read_bytes += read
            of.operations += n
            of.waits += waits
        # Its last operation is when most has been admitted at once.
        last_s = at_s + (n - 1) * process.load.service_s
        self._done.append((last_s, name, read, float(n)))

    # What is watched.

    def _watch_limits(self) -> None:
        """Keep a bucket, without a bound below, for each rate that must hold."""
        plan = self.plan
        self._meters = {}
        self._labels = {}
        for identity in plan.identities:
            labels = ("node", f"class {identity.class_name}", f"identity {identity.name}")
            self._labels[identity.name] = labels
        bounds = {"node": plan.node}
        for one in plan.classes:
            bounds[f"class {one.name}"] = limits_of(one.shares)
        for identity in plan.identities:
            bounds[f"identity {identity.name}"] = limits_of(identity.shares)
        for label, (read, _, operations) in bounds.items():
            self._meters[label] = tuple(
                None if rate == inf else TokenBucket(rate=rate, burst=0.0, now_s=self.now_s)
                for rate in (read, operations)
            )

    def _labels_of(self, name: str) -> tuple[str, str, str]:
        return self._labels.get(name) or self._labels[DEFAULT_IDENTITY]

    def _meter(self) -> None:
        """Charge what was done in this turn, in the order of time."""
        self._done.sort()
        for at_s, name, read, operations in self._done:
            for label in self._labels_of(name):
                for unit, meter, n in zip(
                    UNITS, self._meters[label], (read, operations), strict=True
                ):
                    if meter is not None:
                        meter.refill(at_s)
                        meter.charge(n)
                        key = f"{label} {unit}"
                        self.seen.excess[key] = max(self.seen.excess.get(key, 0.0), -meter.level)
        self._done.clear()

    def _count_payer(self, process: Process, sign: int) -> None:
        """Know how many payers there are at most at once, and the sum of their operations."""
        for label in self._labels_of(process.load.identity):
            for unit, n in zip(UNITS, (process.load.operation_bytes, 1), strict=True):
                key = f"{label} {unit}"
                self._payers[key] = self._payers.get(key, 0.0) + sign * n
                self.seen.over[key] = max(self.seen.over.get(key, 0.0), self._payers[key])

    def _watch_waiting(self) -> None:
        """Note, at a turn, who waits and for how long nothing has moved."""
        number = int(self.now_s / BIN_S)
        self.seen.turns[number] = self.seen.turns.get(number, 0) + 1
        waiting: dict[str, float] = {}
        for process in self._awake.values():
            if process.since_s is not None:
                name = process.load.identity
                self.seen.processes[process.number].setdefault(number, Bin()).waiting_turns += 1
                waiting[name] = min(process.since_s, waiting.get(name, inf))
        for name in waiting:
            self.seen.identities[name].setdefault(number, Bin()).waiting_turns += 1
        for name, since_s in waiting.items():
            gap_s = self.now_s - max(since_s, self._progress_s.get(name, 0.0))
            longest = self.seen.longest_gap_s
            longest[name] = max(longest.get(name, 0.0), gap_s)
