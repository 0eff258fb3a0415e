"""The engines of the metadata store: commits, reads, and one agent taking over from another."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from benchmarks import metadata_terms as terms
from benchmarks import metadata_work as work
from benchmarks.harness import Figure, Measured, Outcome, Race, Role, Sampling
from benchmarks.lab import Lab, settle
from benchmarks.metadata_work import Store, Takeover, Task
from benchmarks.prices import prices
from benchmarks.registry import measure
from benchmarks.trainer import Trainer
from benchmarks.workload import Workload
from tiercache.settings import MetadataSettings
from tiercache.testing.network import PROFILES, FirstByteDelay
from tiercache.testing.proxy_process import ProxyProcess

# By name: the first bytes' delay in ms, for those that lie on the object store.
DELAYS_MS = {"SlateDB, 0 ms": 0, "SlateDB, 3 ms": 3, "SlateDB, 30 ms": 30}
LMDB, LOCAL, MEMORY = "LMDB, this disk", "SlateDB, local files", "the fake, memory"
CONTENDERS = (MEMORY, LMDB, LOCAL, *DELAYS_MS)
# Of a commit: what it is called, records, commits under way.
COMMITS = (
    (terms.ONE, 1, 1),
    (terms.HUNDRED, 100, 1),
    (terms.MANY, 2_000, 1),
    (terms.AT_ONCE, 1, 16),
)
JUST_COMMITTED = 100
# The old agent commits for so long before the new one comes, and so often.
OLD_AT_WORK_S = 0.2
PAUSE_S = MetadataSettings().commit_interval_s
PACES = (("", PAUSE_S), (terms.BUSY, 0.0))
HOUR_S, MONTH_S = 3600.0, 30 * 86_400.0
NETWORK = "premium"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A contender: an engine, and where it lies. ``floor`` is what does the least there that any
    engine must."""

    name: str
    where: str
    store: Store
    floor: Store | None = None
    proxy: ProxyProcess | None = None
    folder: str = ""

    @property
    def role(self) -> Role:
        return "bound" if self.store.kind == "memory" else "ours"

    @property
    def floor_name(self) -> str:
        return "write + fdatasync" if self.folder else "obstore, one object"


@contextmanager
def places(lab: Lab, workload: Workload, *, shared: bool) -> Iterator[list[Place]]:
    """Make a place for each contender. ``shared``: those on the object store are one store,
    reached over different networks."""
    with ExitStack() as stack:
        prefix = lab.folder("metadata").name
        yield [
            _place(lab, stack, name, f"{prefix}/store" if shared else f"{prefix}/{number}")
            for number, name in enumerate(workload.contenders)
        ]


def _place(lab: Lab, stack: ExitStack, name: str, prefix: str) -> Place:
    engine, _, where = name.partition(", ")
    if name == MEMORY:
        return Place(name=engine, where=where, store=Store("memory"))
    if name == LMDB:
        folder = lab.folder("lmdb")
        return Place(
            name=engine,
            where=where,
            store=Store("engine", f"lmdb:{folder}/store"),
            floor=Store("append", f"{folder}/appended"),
            folder=str(folder),
        )
    if name == LOCAL:
        folder = lab.folder("slatedb")
        return Place(
            name=engine,
            where=where,
            store=Store("engine", f"file://{folder}/store"),
        )
    if name not in DELAYS_MS:
        raise ValueError(f"no contender {name!r}; there are {', '.join(CONTENDERS)}")
    proxy = stack.enter_context(delayed(lab, DELAYS_MS[name]))
    return Place(
        name=engine,
        where=where,
        store=Store("engine", f"s3://{lab.bucket}/{prefix}", proxy.url),
        floor=Store("objects", f"s3://{lab.bucket}/{prefix}-objects", proxy.url),
        proxy=proxy,
    )


def delayed(lab: Lab, delay_ms: int) -> ProxyProcess:
    """Return a network in front of the run's server as the premium profile has it, but with
    first bytes that are all late by so much."""
    first_byte = FirstByteDelay(median_s=delay_ms / 1e3, p99_s=delay_ms / 1e3) if delay_ms else None
    network = replace(PROFILES[NETWORK], first_byte=first_byte)
    return ProxyProcess(lab.server.endpoint, network=network, seed=lab.seed)


def sampling(lab: Lab, trainer: Trainer, place: Place) -> Callable[[], Sampling]:
    """The process that has the engine is the agent's part. Where the origin is no part of it, no
    request of another counts."""
    return lab.sampler(processes=lambda: {"agent": [trainer.pid]}, proxy=place.proxy)


def plain(figures: Iterable[Figure]) -> Iterator[Figure]:
    """Leave out whole distributions: the quantiles are told, and no plot can show thirty lines."""
    for figure in figures:
        sample = figure.sample
        if sample is not None and sample.latency is not None:
            latency = msgspec.structs.replace(sample.latency, histogram="")
            sample = msgspec.structs.replace(sample, latency=latency)
        yield msgspec.structs.replace(figure, sample=sample)


# -- commits --------------------------------------------------------------------------------


@measure("metadata-commit")
def commit(lab: Lab, workload: Workload) -> Outcome:
    """Durable commits to fresh stores, each beside the least that any engine must do: the same
    bytes appended and synced, or put as one object."""
    load = workload.load
    figures: list[Figure] = []
    with places(lab, workload, shared=False) as found, Trainer() as trainer:
        stores = [store for place in found for store in (place.store, place.floor) if store]
        for store in stores:
            trainer.run(work.open_store, store)
            trainer.run(work.commits, store, Task(0.0, 1))
        settle()
        rest = Rest(lab, found)
        for what, records, at_once in COMMITS:
            race = _by_rate("commits/s") if at_once > 1 else _by_time()
            task = Task(load.seconds, load.operations, records, at_once)
            for place in found:
                for store, name, role in _with_floor(place):
                    race.add(
                        name,
                        role,
                        partial(trainer.run, work.commits, store, task),
                        threads=at_once,
                        work=f"{what}, {place.where}",
                        sampler=sampling(lab, trainer, place),
                    )
            race.run(load.rounds, warm_up=0)
            figures += plain(race.figures)
        numbers = rest.numbers(figures)
        for store in stores:
            trainer.run(work.close_store, store)
    return Outcome(
        figures=tuple(figures),
        numbers=numbers,
        notes=(
            f"a round is {load.operations} commits, or as many as {load.seconds:g} s allow; each "
            "is of names that were not there before",
            "the floor of LMDB is an append of the same bytes with fdatasync, that of SlateDB one "
            "object of the same bytes by obstore, over the same proxy",
            "SlateDB on local files syncs nothing: it is here for what the engine itself takes",
            "requests at rest are those between the measured rounds, the tables that earlier "
            "commits had filled among them",
        ),
    )


def _by_time() -> Race:
    return Race(unit="µs", per="op")


def _by_rate(unit: str) -> Race:
    return Race(unit=unit, per="s")


def _with_floor(place: Place) -> Iterator[tuple[Store, str, Role]]:
    yield place.store, place.name, place.role
    if place.floor is not None:
        yield place.floor, place.floor_name, "bound"


class Rest:
    """What an open store asks for while nobody commits: all that passed its proxy since this was
    made, less what the measured rounds have seen."""

    def __init__(self, lab: Lab, places: Sequence[Place]) -> None:
        self._begun_s = time.monotonic()
        self._samplers = {
            place.where: lab.sampler(proxy=place.proxy)()
            for place in places
            if place.proxy is not None
        }
        for sampler in self._samplers.values():
            sampler.begin()

    def numbers(self, figures: Sequence[Figure]) -> dict[str, float]:
        elapsed_s = time.monotonic() - self._begun_s
        found = {}
        for where, sampler in self._samplers.items():
            sampler.end(Measured(seconds=elapsed_s))
            left = Counter(sampler.sample().tiers)
            left_s = elapsed_s
            for figure in figures:
                if figure.sample is not None and figure.work.endswith(f", {where}"):
                    left.subtract(figure.sample.tiers)
                    left_s -= figure.sample.seconds
            requests = sum(count for kind, count in left.items() if "_requests_" in kind)
            dollars = prices().dollars(left, NETWORK)
            found[terms.at_rest(where)] = requests / left_s * HOUR_S
            found[terms.dollars_at_rest(where)] = dollars / left_s * MONTH_S
        return found


# -- reads ----------------------------------------------------------------------------------


class Session:
    """The one store of a trainer that is open at a time. Floors and the fake stay open."""

    def __init__(self, trainer: Trainer, places: Sequence[Place]) -> None:
        self.trainer = trainer
        self._open: Store | None = None
        for place in places:
            if place.store.kind == "memory":
                trainer.run(work.open_store, place.store)
            if place.floor is not None:
                trainer.run(work.open_store, place.floor)

    def close(self) -> None:
        if self._open is not None:
            self.trainer.run(work.close_store, self._open)
            self._open = None

    def open(self, place: Place) -> Measured:
        """Open it, after closing what is open; return how long that took."""
        self.close()
        opened: Measured = self.trainer.run(work.open_store, place.store)
        self._open = place.store
        return opened

    def open_warm(self, place: Place) -> None:
        """See that it is open."""
        if place.store.kind != "memory" and place.store != self._open:
            self.open(place)

    def open_cold(self, place: Place) -> None:
        """Open it anew, with nothing in the engine's cache nor of a volume in the kernel's."""
        self.forget(place)
        if place.store.kind != "memory":
            self.open(place)

    def forget(self, place: Place) -> None:
        self.close()
        if place.folder:
            self.trainer.run(work.drop_pages, place.folder)


@measure("metadata-read")
def read(lab: Lab, workload: Workload) -> Outcome:
    """Open a store of many names, read some of them, read all of them."""
    names, load = workload.dataset.count, workload.load
    task = Task(load.seconds, load.operations)
    figures: list[Figure] = []
    with places(lab, workload, shared=True) as found, Trainer() as trainer:
        session = Session(trainer, found)
        record_bytes = _fill(lab, session, found, names)
        settle()

        def hot(place: Place) -> None:
            session.open_warm(place)
            trainer.run(work.remember, place.store, JUST_COMMITTED)

        def reads(store: Store, count: int) -> Callable[[], Measured]:
            return partial(trainer.run, work.reads, store, task, count, lab.seed)

        for what, prepare, count in ((terms.COLD, session.open_cold, names), (terms.HOT, hot, 0)):
            race = _by_time()
            for place in found:
                floored = place if what == terms.COLD else replace(place, floor=None)
                for store, name, role in _with_floor(floored):
                    race.add(
                        name,
                        role,
                        reads(store, count),
                        prepare=partial(prepare, place),
                        work=f"{what}, {place.where}",
                        sampler=sampling(lab, trainer, place),
                    )
            race.run(load.rounds, warm_up=0)
            figures += plain(race.figures)
        figures += _scans(lab, workload, session, found)
        session.close()
    return Outcome(
        figures=tuple(figures),
        sizes={"names": names, "record_bytes": record_bytes},
        notes=(
            f"a round is {load.operations} reads, or as many as {load.seconds:g} s allow, one "
            "after the other; after an opening nothing is in the engine's own cache, and the "
            "volume's pages are dropped",
            "the floor of LMDB is a page of a file, that of SlateDB a block of an object by "
            "obstore, over the same proxy",
        ),
    )


def _fill(lab: Lab, session: Session, found: Sequence[Place], names: int) -> int:
    """Put the names into every store, those of the object store once and straight; return the
    records' bytes."""
    total = 0
    done: set[str] = set()
    for place in found:
        run = session.trainer.run
        if place.floor is not None:
            run(work.fill, place.floor, names)
        if place.store.url in done:
            continue
        done.add(place.store.url)
        store = place.store
        if place.proxy is not None:
            store = store._replace(endpoint=lab.server.endpoint)
        if store.kind != "memory":
            run(work.open_store, store)
        total = run(work.fill, store, names)
        if store.kind != "memory":
            run(work.close_store, store)
    return total


def _scans(
    lab: Lab, workload: Workload, session: Session, found: Sequence[Place]
) -> tuple[Figure, ...]:
    """Return the figures of openings and of scans, each after an opening."""
    trainer, names = session.trainer, workload.dataset.count
    opening, scanning = _by_time(), _by_rate("records/s")
    for place in found:
        sampler = sampling(lab, trainer, place)
        if place.store.kind != "memory":
            opening.add(
                place.name,
                place.role,
                partial(session.open, place),
                prepare=partial(session.forget, place),
                work=f"{terms.OPEN}, {place.where}",
                sampler=sampler,
            )
        scanning.add(
            place.name,
            place.role,
            partial(trainer.run, work.scan, place.store, b"o", names),
            prepare=partial(session.open_cold, place),
            work=f"{terms.SCAN}, {place.where}",
            sampler=sampler,
        )
    for race in (opening, scanning):
        race.run(workload.load.rounds, warm_up=0)
    return (*opening.figures, *scanning.figures)


# -- takeovers ------------------------------------------------------------------------------


@measure("metadata-takeover")
def takeover(lab: Lab, workload: Workload) -> Outcome:
    """An agent commits all the time; another opens its store. A volume's first agent is killed
    instead: it cannot be fenced, and while it lives nobody else can open."""
    names = workload.dataset.count
    taken: dict[tuple[str, Place], list[float]] = {}
    with ExitStack() as stack:
        found = [
            replace(place, floor=None)
            for place in stack.enter_context(places(lab, workload, shared=True))
        ]
        old, new = stack.enter_context(Trainer()), stack.enter_context(Trainer())
        _fill(lab, Session(new, found), found, names)
        settle()
        for _ in range(workload.load.rounds):
            for place in found:
                if place.folder:
                    taken.setdefault((terms.FIRST_COMMIT, place), []).append(
                        _after_a_kill(new, place)
                    )
                    continue
                busy = place.where == workload.options.get("busy")
                for pace, pause_s in PACES if busy else PACES[:1]:
                    committed_ms, told_ms = _from_the_living(old, new, place, pause_s)
                    taken.setdefault((terms.FIRST_COMMIT + pace, place), []).append(committed_ms)
                    taken.setdefault((terms.OLD_TOLD + pace, place), []).append(told_ms)
    return Outcome(
        figures=tuple(
            Figure(
                name=place.name,
                role="ours",
                unit="ms",
                values=tuple(values),
                work=f"{what}, {place.where}",
            )
            for (what, place), values in sorted(taken.items(), key=lambda one: one[0][0])
        ),
        sizes={"names": names},
        notes=(
            "the clock starts when the new agent begins to open; the old one commits every "
            f"{PAUSE_S * 1e3:g} ms, as an agent that learns all the time does, or, where it is "
            "busy, without a pause",
            "LMDB: the clock starts when the old agent is killed, which frees the volume's lock; "
            "on a node that is gone a cloud must first move the volume, which takes it minutes "
            "and is no part of this",
        ),
    )


def _after_a_kill(new: Trainer, place: Place) -> float:
    """Return the ms from the old agent's death to the new one's first commit."""
    with Trainer() as old:
        old.run(work.open_store, place.store)
        os.kill(old.pid, signal.SIGKILL)
        begun_s = time.monotonic()
        done: Takeover = new.run(work.take_over, place.store)
    new.run(work.close_store, place.store)
    return 1e3 * (done.committed_s - begun_s)


def _from_the_living(
    old: Trainer, new: Trainer, place: Place, pause_s: float
) -> tuple[float, float]:
    """Return the ms from the start of the new one's opening to its first commit, and to the old
    one's knowledge."""
    old.run(work.open_store, place.store)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(old.run, work.commit_until_fenced, place.store, pause_s)
        time.sleep(OLD_AT_WORK_S)
        done: Takeover = new.run(work.take_over, place.store)
        told_s = told.result()
    old.run(work.abandon, place.store)
    new.run(work.close_store, place.store)
    return 1e3 * (done.committed_s - done.begun_s), 1e3 * (told_s - done.begun_s)
