"""Prefetch: a whole data set onto the node, against the tools people use for it."""

from __future__ import annotations

import msgspec

from benchmarks import rivals
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, path_of, raced, settle
from benchmarks.registry import measure
from benchmarks.rivals import COPIERS, Target
from benchmarks.workload import Workload
from tiercache.model import JobState

UNITS = ("MB/s", "objects/s")


@measure("prefetch")
def prefetch(lab: Lab, workload: Workload) -> Outcome:
    """ns.prefetch of a data set, against what copies it into plain files.

    Options: ``unit``, one of ``UNITS``; ``transfers``, of rclone; ``s3fs_objects``, as many as
    s3fs is asked for (0: all), whose rate in the table is of those.
    """
    objects = lab.objects(workload.dataset)
    unit = str(workload.options.get("unit", UNITS[0]))
    assert unit in UNITS, f"{workload.name}: unit is one of {UNITS}"

    def amount(of: rivals.Objects) -> float:
        return len(of) if unit == "objects/s" else sum(one.length for one in of) / 1e6

    folder = path_of(workload.dataset.folder)
    target = Target(lab)
    with lab.namespace() as namespace:

        def run() -> None:
            ended = namespace.prefetch(folder, background=False).wait()
            assert ended.state is JobState.DONE and ended.filled == len(objects), ended

        def prepare() -> None:
            namespace.evict(folder)
            namespace.invalidate(folder)
            settle()

        race = Race(
            amount=amount(objects),
            unit=unit,
            per="s",
            sampler=lab.sampler(namespace=namespace),
        )
        race.add("ns.prefetch", "ours", run, prepare=prepare)
        notes = []
        for name in workload.contenders:
            copier = COPIERS[name]
            if why := copier.why_missing():
                race.miss(name, why)
                continue
            some = objects
            if name == "s3fs" and (few := workload.option("s3fs_objects", 0)):
                some = objects[:few]
                notes.append(f"s3fs, for its slowness, copies {len(some):,} of the objects")
            race.add(
                name,
                copier.role,
                copier.make(lab, workload, some, target),
                prepare=target.renew,
                amount=amount(some),
            )
        outcome = raced(race, workload, namespace)
        target.remove()
    return msgspec.structs.replace(outcome, notes=tuple(notes))
