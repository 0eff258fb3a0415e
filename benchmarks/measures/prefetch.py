"""Prefetch: a whole dataset onto the node, against the tools people use for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import rivals
from benchmarks.harness import Bar, Race, Result
from benchmarks.lab import Lab, Meter, path_of, settle
from benchmarks.registry import benchmark
from tiercache.model import JobState
from tiercache.namespace import Namespace

TOOLS = ("s5cmd", "rclone")
OBSTORE_LARGE = "obstore, 6 × 8 MiB ranges to files"
OBSTORE_SMALL = "obstore, 64 GETs in flight to one file"


class Target:
    """A directory for each round, removed with its predecessor untimed."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab, self._name = lab, name
        self._current: Path | None = None

    def renew(self) -> None:
        self.remove()
        self._current = self._lab.folder(self._name)
        settle()

    def remove(self) -> None:
        if self._current is not None:
            shutil.rmtree(self._current)
            self._current = None

    def path(self) -> Path:
        assert self._current is not None
        return self._current


def _ours(namespace: Namespace, folder: str, count: int) -> tuple[Callable[[], None], ...]:
    """Return (run, prepare)."""

    def run() -> None:
        ended = namespace.prefetch(path_of(folder), background=False).wait()
        assert ended.state is JobState.DONE and ended.filled == count, ended

    def prepare() -> None:
        namespace.evict(path_of(folder))
        namespace.invalidate(path_of(folder))
        settle()

    return run, prepare


@benchmark("prefetch-large", "prefetch of objects of 64 MiB")
def prefetch_large(lab: Lab) -> Result:
    scale = lab.scale
    keys = lab.large()
    total = scale.large_count * scale.large_bytes
    race = Race("prefetch-large", amount=total / 1e6, unit="MB/s", per="s")
    target = Target(lab, "large")
    store = rivals.obstore_store(lab)
    with lab.namespace() as namespace:
        run, prepare = _ours(namespace, "large", len(keys))
        race.add("ns.prefetch", "ours", run, prepare=prepare)
        if not scale.short:
            _tools(lab, race, "large", target, rivals.RCLONE_TRANSFERS_LARGE)
        objects = [(key, scale.large_bytes) for key in keys]
        race.add(
            OBSTORE_LARGE,
            "bound",
            lambda: rivals.obstore_ranges(store, objects, target.path()),
            prepare=target.renew,
        )
        meter = Meter(namespace)
        race.run(scale.cold_rounds)
        tiers = meter.read()
        target.remove()
    figure = race.ratio_to_best("ns.prefetch", TOOLS)
    if figure is not None:
        text = "÷ the better of s5cmd and rclone"
        bar = Bar(text=text, figure=figure, limit=1.0, at_most=False)
    else:
        # The full form asks for 1.0 × s5cmd, which reaches some 0.8 of this bound or more.
        figure = race.ratio("ns.prefetch", OBSTORE_LARGE)
        bar = Bar(text="÷ obstore to files", figure=figure, limit=0.8, at_most=False, slack=1.6)
    return Result(
        name="prefetch-large",
        title=f"prefetch of {scale.large_count} objects of {scale.large_bytes >> 20} MiB",
        figures=race.figures,
        bars=(bar,),
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={"objects": scale.large_count, "object_bytes": scale.large_bytes},
    )


def _tools(lab: Lab, race: Race, folder: str, target: Target, transfers: int) -> None:
    if why := rivals.why_missing("s5cmd"):
        race.miss("s5cmd", why)
    else:
        run = rivals.s5cmd(lab, folder, target.path)
        race.add("s5cmd", "rival", run, prepare=target.renew)
    if why := rivals.why_missing("rclone"):
        race.miss("rclone", why)
    else:
        run = rivals.rclone(lab, folder, target.path, transfers=transfers)
        race.add("rclone", "rival", run, prepare=target.renew)


@benchmark("prefetch-small", "prefetch of objects of 64 KiB")
def prefetch_small(lab: Lab) -> Result:
    scale = lab.scale
    keys = lab.small()
    race = Race("prefetch-small", amount=len(keys), unit="objects/s", per="s")
    target = Target(lab, "small")
    store = rivals.obstore_store(lab)
    with lab.namespace() as namespace:
        run, prepare = _ours(namespace, "small", len(keys))
        race.add("ns.prefetch", "ours", run, prepare=prepare)
        if not scale.short:
            _tools(lab, race, "small", target, rivals.RCLONE_TRANSFERS_SMALL)
            _s3fs(lab, race, target)
        race.add(
            OBSTORE_SMALL,
            "bound",
            lambda: rivals.obstore_small(store, keys, target.path() / "all"),
            prepare=target.renew,
        )
        meter = Meter(namespace)
        race.run(3, warm_up=0)
        tiers = meter.read()
        target.remove()
    figure = race.ratio_to_best("ns.prefetch", (*TOOLS, "s3fs"))
    if figure is not None:
        text = "÷ the better of s5cmd, rclone and s3fs"
        bar = Bar(text=text, figure=figure, limit=1.2, at_most=False)
    else:
        figure = race.ratio("ns.prefetch", OBSTORE_SMALL)
        bar = Bar(text="÷ obstore to one file", figure=figure, limit=0.7, at_most=False, slack=1.6)
    return Result(
        name="prefetch-small",
        title=f"prefetch of {len(keys):,} objects of {scale.small_bytes >> 10} KiB",
        figures=race.figures,
        bars=(bar,),
        missing=tuple(race.missing),
        tiers=tiers,
        sizes={"objects": len(keys), "object_bytes": scale.small_bytes},
    )


def _s3fs(lab: Lab, race: Race, target: Target) -> None:
    if why := rivals.why_missing("s3fs"):
        race.miss("s3fs", why)
        return

    def run() -> None:
        rivals.s3fs(lab).get(f"{lab.bucket}/small/", f"{target.path()}/", recursive=True)

    race.add("s3fs", "rival", run, prepare=target.renew)
