"""A node is lost and another takes its metadata store: how soon the new one knows what the old
one knew, while nobody can ask the origin."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

import tiercache
from benchmarks import metadata_terms as terms
from benchmarks.harness import Figure, Outcome
from benchmarks.lab import Lab, path_of, settle
from benchmarks.measures.metadata import Place, places
from benchmarks.processes import agent_pid, alive
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.errors import OriginUnavailable
from tiercache.model import Entry, Listing
from tiercache.namespace import Namespace
from tiercache.settings import MetadataSettings, Settings
from tiercache.testing.proxy_process import ProxyProcess

SLOWEST, LISTS = "seconds until names and pins are there", "LIST requests of a fresh node"
LIMIT_S = 60.0
POLL_S = 0.005


class Known(NamedTuple):
    """What the lost node knew: all paths below a directory, and which of them were pinned."""

    folder: str
    paths: list[str]
    pins: list[str]

    def check(self, listing: Sequence[Entry]) -> None:
        if [f"{self.folder}/{entry.name}" for entry in listing] != self.paths:
            raise RuntimeError(f"{len(listing)} of {len(self.paths)} names, or other ones")


@measure("metadata-attach")
def attach(lab: Lab, workload: Workload) -> Outcome:
    """A node lists a bucket and pins some of it, its agent is killed, and each round a node with
    an empty cache attaches to its store. Returns the slowest engine's median, in seconds."""
    paths = [path_of(one.key) for one in lab.objects(workload.dataset)]
    known = Known(path_of(workload.dataset.folder), paths, paths[: workload.option("pins", 1000)])
    figures: list[Figure] = []
    lists = 0
    with places(lab, workload, shared=True) as found, ProxyProcess(lab.server.endpoint) as origin:
        filled: set[str] = set()
        for place in found:
            if place.store.url not in filled:
                filled.add(place.store.url)
                origin.heal()
                _lose_a_node(_settings(lab, place, origin), known)
        origin.refuse()
        settle()
        times: dict[Place, list[tuple[float, float]]] = {place: [] for place in found}
        for _ in range(workload.load.rounds):
            for place in found:
                listed_s, pinned_s, asked = _attached(_settings(lab, place, origin), known)
                times[place].append((listed_s, pinned_s))
                lists += asked
    for place in found:
        for number, what in enumerate((terms.NAMES, terms.PINS)):
            values = tuple(1e3 * took[number] for took in times[place])
            figures.append(
                Figure(
                    name=place.name,
                    role="ours",
                    unit="ms",
                    values=values,
                    work=f"{what}, {place.where}",
                )
            )
    return Outcome(
        figures=tuple(figures),
        numbers={SLOWEST: max(one.median for one in figures) / 1e3, LISTS: float(lists)},
        sizes={"names": len(paths), "pins": len(known.pins)},
        notes=(
            "the clock starts before the client connects to a node with an empty cache, whose "
            "agent it starts, interpreter and all; every connection to the origin is refused",
            "what an agent lists as partial, because its store is late, does not count",
            "the lost node's agent is killed as soon as its store has all it knew",
        ),
    )


def _settings(lab: Lab, place: Place, origin: ProxyProcess) -> Settings:
    """Return the settings of a node of its own."""
    settings = lab.settings(endpoint=origin.url)
    profile = lab.server.profile("metadata", endpoint=place.store.endpoint)
    return msgspec.structs.replace(
        settings,
        profiles={**settings.profiles, profile.name: profile},
        metadata=MetadataSettings(url=place.store.url, profile=profile.name),
    )


@contextmanager
def _node(settings: Settings) -> Iterator[Namespace]:
    """Connect; at the end the node is lost, with its cache and whatever its agent was at."""
    namespace = tiercache.connect(settings)
    try:
        yield namespace
    finally:
        pid = agent_pid(namespace)
        namespace.close()
        if pid:
            os.kill(pid, signal.SIGKILL)
            _until(lambda: not alive(pid), "the agent ends")
        shutil.rmtree(settings.cache.dir, ignore_errors=True)


def _lose_a_node(settings: Settings, known: Known) -> None:
    with _node(settings) as namespace:
        known.check(namespace.list(known.folder, recursive=True))
        for path in known.pins:
            namespace.pin(path)
        _until(lambda: _kept(namespace), "the store has all that the node knows")


def _kept(namespace: Namespace) -> bool:
    status: Any = namespace.status()["metadata"]
    return bool(status["commits"]) and not status["pending_keys"]


def _attached(settings: Settings, known: Known) -> tuple[float, float, int]:
    """Return the seconds until the names, and the pins, were there, and the LISTs tried."""
    begun_s = time.monotonic()
    with _node(settings) as namespace:
        found: list[Listing] = []
        _until(lambda: _listed_whole(namespace, known.folder, found), "the names are back")
        listed_s = time.monotonic() - begun_s
        _until(lambda: len(namespace.status()["pins"]) == len(known.pins), "the pins are back")
        pinned_s = time.monotonic() - begun_s
        known.check(found[0])
        origins = namespace.status()["origins"]
        return listed_s, pinned_s, sum(one.get("requests_list", 0) for one in origins)


def _listed_whole(namespace: Namespace, folder: str, into: list[Listing]) -> bool:
    """List it. An agent whose store is late says what it knows so far, as partial, or nothing."""
    try:
        listing = namespace.list(folder, recursive=True)
    except OriginUnavailable:
        return False
    if listing.partial:
        return False
    into.append(listing)
    return True


def _until(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(POLL_S)
