"""The demo of QoS: a training job and its noisy neighbours on one node, without and with a policy.

``python -m tiercache.testing.demo_qos [--short] [--plot FILE]`` needs no Docker and no
configuration, takes less than a minute, and leaves nothing behind but the plot, also after Ctrl-C.
Exit status: 0 only if the policy held, 1 if not, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tiercache.config.loading import load
from tiercache.ending import INTERRUPTED, end
from tiercache.errors import TiercacheError
from tiercache.settings import Settings
from tiercache.testing import qos_tracks
from tiercache.testing.datasets import object_bytes
from tiercache.testing.demo import (
    DemoFailed,
    expect,
    interruptible,
    mount_lines,
    profile_lines,
    run_command,
    stop_agent,
    take_over_environment,
)
from tiercache.testing.demo_plot import Line, Plot, blocks, svg
from tiercache.testing.demo_screen import Screen
from tiercache.testing.emulators import (
    Azurite,
    Emulator,
    EmulatorFailed,
    EmulatorMissing,
    SeaweedS3,
)
from tiercache.testing.qos_load import LoadFailed, Play, Tenant, Tracks, bring_near
from tiercache.testing.qos_tracks import Track, Window
from tiercache.units import MIB

BUCKET, CONTAINER = "train-data", "warehouse"
DATASET, TABLE = "/data/shards.bin", "/warehouse/table.bin"
DATASET_BYTES, TABLE_BYTES = 64 * MIB, 64 * MIB
CORPUS_OBJECTS, CORPUS_BYTES = 24, 8 * MIB
# What the job's GPU takes in, of blocks of 64 KiB: 520 MB/s, a tenth of what two cores read of
# hits. A process that is late by milliseconds, for others have the processors, cannot keep up.
TRAINING_READS = 8000.0
TRAINING_PROCESSES = 2
NOTEBOOK_PROCESSES = 6
NOTEBOOK_BLOCK_BYTES = MIB
STEP_S = 0.5
# After a phase begins, until it is judged.
SETTLE_S = 1.5
TRAINING, PREFETCH, NOTEBOOK = "training", "prefetch", "interactive"
# In windows of a second or two, of operations of 1 and 8 MiB, a limit is met to so much.
TOLERANCE = 1.4
LIMITS = {"interactive": 100e6, "prefetch": 40e6}
POLICY = """\
version = 1
profile = "training-first"

[node]
read = "1200MB/s"
write = "400MB/s"
operations = "40k/s"

[[identity]]
name = "interactive"
read = { limit = "100MB/s" }

[[identity]]
name = "prefetch"
read = { limit = "40MB/s" }
write = { limit = "40MB/s" }
"""


class Times(NamedTuple):
    """When the phases of the show begin, in seconds of its play; and how long the last is."""

    neighbours_s: float
    policy_s: float
    governed_s: float


WHOLE = Times(5.0, 15.0, 10.0)
SHORT = Times(2.5, 5.5, 3.5)
# Until the command that applies the policy has done it, on a machine that is busy.
APPLY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the show: when it begins, all of it, and the window of it that is judged."""

    name: str
    begin_s: float
    whole: Window
    window: Window


class QosDemo:
    """The show, part by part. ``directory`` holds configuration, policy and cache."""

    def __init__(
        self, screen: Screen, directory: Path, s3: Emulator, azure: Emulator, times: Times
    ) -> None:
        # Constant after construction
        self.screen = screen
        self.times = times
        self.s3 = s3
        self.azure = azure
        self.config = directory / "tiercache.toml"
        self.policy = directory / "policy.toml"
        self.cache_dir = directory / "cache"

    def run(self, stack: ExitStack, plot: Path | None) -> None:
        """Raises DemoFailed, LoadFailed, TiercacheError."""
        self.write_config()
        # Registered first: an agent is stopped even if connecting to it fails.
        stack.callback(stop_agent, self.config)
        settings = load(self.config).settings
        tenants = self.tenants(settings)
        tracks, phases = self.play(settings, tenants)
        self.show_table(tenants, tracks, phases)
        self.show_plot(tenants, tracks, phases, plot)
        self.judge(tenants, tracks, phases[-1])

    def write_config(self) -> None:
        lines = ["[cache]", f'dir = "{self.cache_dir}"', 'capacity = "1GiB"']
        for mount, url, profile in (
            ("/data", self.s3.url(BUCKET, "data"), self.s3.profile("s3")),
            ("/warehouse", self.azure.url(CONTAINER, "tables"), self.azure.profile("azure")),
        ):
            lines += mount_lines(mount, url, profile.name, "immutable")
            lines += profile_lines(profile)
        self.config.write_text("\n".join(lines) + "\n")
        self.policy.write_text(POLICY)

    def tenants(self, settings: Settings) -> tuple[Tenant, Tenant, Tenant]:
        """Bring near what is read there, and say who does what."""
        self.screen.step(2, "Three tenants of one node")
        for path in (DATASET, TABLE):
            bring_near(settings, path)
        begin_s = self.times.neighbours_s
        training = Tenant(
            name=TRAINING,
            paths=(DATASET,),
            length_bytes=DATASET_BYTES,
            processes=TRAINING_PROCESSES,
            rate=TRAINING_READS / TRAINING_PROCESSES,
        )
        prefetch = Tenant(
            name=PREFETCH,
            paths=tuple(f"/data/corpus/{number:02}" for number in range(CORPUS_OBJECTS)),
            length_bytes=CORPUS_BYTES,
            does="prefetch",
            begin_s=begin_s,
        )
        notebook = Tenant(
            name=NOTEBOOK,
            paths=(TABLE,),
            length_bytes=TABLE_BYTES,
            block_bytes=NOTEBOOK_BLOCK_BYTES,
            processes=NOTEBOOK_PROCESSES,
            begin_s=begin_s,
        )
        self.screen.note(
            f"training: {TRAINING_PROCESSES} processes that want {TRAINING_READS:,.0f} cached "
            "blocks of 64 KiB a second together"
        )
        self.screen.note("prefetch: everything below /data/corpus, from S3, as fast as it comes")
        self.screen.note(
            f"notebook: {NOTEBOOK_PROCESSES} processes that scan a cached table, as fast as they "
            "can"
        )
        return training, prefetch, notebook

    # -- the play ---------------------------------------------------------------------------

    def play(self, settings: Settings, tenants: Sequence[Tenant]) -> tuple[Tracks, list[Phase]]:
        """Let all work, apply the policy while they do, and cut the phases."""
        times = self.times
        self.screen.step(3, f"Training alone, then all at once: {times.policy_s:.0f} s")
        with Play(settings, tenants, seconds=times.policy_s + APPLY_TIMEOUT_S) as play:
            begin_ns = play.start()
            until(begin_ns, times.policy_s)
            self.screen.step(4, "The policy, while all go on: this is the whole of it")
            self.screen.code(POLICY, "toml")
            asked_s = (time.monotonic_ns() - begin_ns) / 1e9
            command = ["qos", "apply", "--yes", str(self.policy), "--config", str(self.config)]
            self.screen.code("$ tiercache " + " ".join(command), "console")
            status = run_command(command)
            expect(status == 0, f"tiercache qos apply ended with status {status}")
            applied_s = (time.monotonic_ns() - begin_ns) / 1e9
            end_s = applied_s + times.governed_s
            play.end_at(end_s)
            tracks = play.tracks()
            phases = [
                Phase(
                    name=name,
                    begin_s=begin_s,
                    whole=play.window(begin_s, until_s),
                    window=play.window(begin_s + SETTLE_S, until_s),
                )
                for name, begin_s, until_s in (
                    ("alone", 0.0, times.neighbours_s),
                    ("all, no policy", times.neighbours_s, asked_s),
                    ("all, policy", applied_s, end_s),
                )
            ]
            return tracks, phases

    # -- what it shows ----------------------------------------------------------------------

    def show_table(
        self, tenants: Sequence[Tenant], tracks: Tracks, phases: Sequence[Phase]
    ) -> None:
        training, prefetch, notebook = tenants
        rows = []
        for phase in phases:
            own = tracks[training]
            rows.append(
                [
                    phase.name,
                    f"{reads(own, phase):,.0f} of {TRAINING_READS:,.0f}",
                    f"{slowest_ms(own, phase):.1f}",
                    f"{megabytes(tracks[prefetch], phase):,.0f}",
                    f"{megabytes(tracks[notebook], phase):,.0f}",
                ]
            )
        header = ["", "training, reads/s", "its slowest 1 %, ms", "prefetch, MB/s"]
        self.screen.table("What each got", [*header, "notebook, MB/s"], rows)

    def show_plot(
        self, tenants: Sequence[Tenant], tracks: Tracks, phases: Sequence[Phase], file: Path | None
    ) -> None:
        """Draw everybody's share over time on the terminal, and into ``file``."""
        whole = Window(phases[0].whole.begin_ns, phases[-1].whole.end_ns)
        _, neighbours, policy = phases
        training, prefetch, notebook = (
            qos_tracks.binned(tracks[one], whole, STEP_S) for one in tenants
        )
        per_read = tenants[0].operation_bytes
        plot = Plot(
            title="One node: a training job, and the neighbours that it has from "
            f"{self.times.neighbours_s:g} s on",
            step_s=STEP_S,
            lines=(
                Line(name="training", unit="reads/s", values=[v / per_read for v in training]),
                Line(name="prefetch", unit="MB/s", values=[v / 1e6 for v in prefetch]),
                Line(name="notebook", unit="MB/s", values=[v / 1e6 for v in notebook]),
            ),
            marks=(
                (neighbours.begin_s, "neighbours begin"),
                (policy.begin_s, "policy applied"),
            ),
        )
        self.screen.note("")
        marks = [" "] * len(plot.lines[0].values)
        for at_s, sign in ((neighbours.begin_s, "n"), (policy.begin_s, "p")):
            marks[int(at_s / STEP_S)] = sign
        for line in plot.lines:
            most = max(line.values, default=0.0)
            self.screen.note(f"{line.name:9} {blocks(line.values)}  up to {most:,.0f} {line.unit}")
        self.screen.note(f"{'':9} {''.join(marks).rstrip()}  n: neighbours begin, p: the policy")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(svg(plot), encoding="utf-8")
            self.screen.note(f"plot: {file}")

    def judge(self, tenants: Sequence[Tenant], tracks: Tracks, phase: Phase) -> None:
        """Raises DemoFailed where the policy did not hold, as far as a busy machine can tell."""
        for tenant in tenants:
            got, limit = qos_tracks.byte_rate(tracks[tenant], phase.window), LIMITS.get(tenant.name)
            expect(
                limit is None or got <= TOLERANCE * limit,
                f"under the policy {tenant.name} got {got / 1e6:.0f} MB/s",
            )
        expect(
            all(qos_tracks.operations(tracks[tenant], phase.window) for tenant in tenants),
            "under the policy somebody got nothing",
        )


def until(begin_ns: int, at_s: float) -> None:
    time.sleep(max(0.0, at_s - (time.monotonic_ns() - begin_ns) / 1e9))


def reads(tracks: Sequence[Track], phase: Phase) -> float:
    return qos_tracks.operation_rate(tracks, phase.window)


def slowest_ms(tracks: Sequence[Track], phase: Phase) -> float:
    """Return the time between two reads of a process that 1 % of them exceed: what the job waits
    for, be it for bytes or for the processor."""
    gaps: list[float] = []
    for track in tracks:
        ends = [track.ended_ns[number] for number in track.ended_in(phase.window)]
        gaps += [(late - early) / 1e6 for early, late in pairwise(ends)]
    return qos_tracks.quantile(gaps, 0.99)


def megabytes(tracks: Sequence[Track], phase: Phase) -> float:
    return qos_tracks.byte_rate(tracks, phase.window) / 1e6


def s3_objects() -> Iterator[tuple[str, bytes]]:
    yield "data/shards.bin", object_bytes("shards", DATASET_BYTES)
    for number in range(CORPUS_OBJECTS):
        yield f"data/corpus/{number:02}", object_bytes(f"corpus {number}", CORPUS_BYTES)


def azure_objects() -> Iterator[tuple[str, bytes]]:
    yield "tables/table.bin", object_bytes("table", TABLE_BYTES)


def fill(server: Emulator, bucket: str, objects: Callable[[], Iterator[tuple[str, bytes]]]) -> None:
    server.start()
    server.make_bucket(bucket)
    server.put_many(bucket, objects())


def play(screen: Screen, plot: Path | None, times: Times) -> None:
    """Raises DemoFailed, LoadFailed, EmulatorMissing, EmulatorFailed, TiercacheError."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="tiercache-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        screen.step(1, "Start an S3 server and an Azure Blob server, and fill them")
        started = time.perf_counter()
        s3, azure = SeaweedS3(), Azurite()
        for server in (s3, azure):
            server.find()
            stack.callback(server.close)
        # Leaving the pool waits for what still starts, so that closing finds it.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, (s3, azure), (BUCKET, CONTAINER), (s3_objects, azure_objects)))
        for server in (s3, azure):
            os.environ.update(server.env)
        screen.note(f"took {time.perf_counter() - started:.1f} s")
        QosDemo(screen, directory, s3, azure, times).run(stack, plot)


def main(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tiercache.testing.demo_qos")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what happened, as SVG")
    parser.add_argument("--short", action="store_true", help="in a third of the time")
    options = parser.parse_args(arguments)
    screen = Screen()
    take_over_environment()
    screen.title("tiercache: QoS", "a training job and its noisy neighbours on one node")
    started = time.perf_counter()
    try:
        with interruptible():
            play(screen, options.plot, SHORT if options.short else WHOLE)
    except KeyboardInterrupt:
        screen.ending("Interrupted; everything is stopped and removed.", good=False)
        return INTERRUPTED
    except (DemoFailed, LoadFailed, EmulatorMissing, EmulatorFailed, TiercacheError) as error:
        screen.ending(f"The demo failed: {error}", good=False)
        return 1
    elapsed_s = time.perf_counter() - started
    screen.ending(
        f"The limits held, and everybody got on. Nothing is left running. {elapsed_s:.0f} s.",
        good=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(end(main(sys.argv[1:])))
