"""The demo: three clouds on this machine, one namespace, and what is left when they go away.

``python -m tiercache.testing.demo`` needs no Docker and no configuration, takes less than a
minute, checks every byte it reads, and leaves nothing behind, also after Ctrl-C. Exit status: 0
only if everything was as it should be, 1 if not, 130 when interrupted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import tiercache
from tiercache.cli.session import running_agent
from tiercache.config.loading import load
from tiercache.ending import INTERRUPTED, end
from tiercache.errors import AgentUnavailable, NotFound, OriginUnavailable, TiercacheError
from tiercache.namespace import Namespace
from tiercache.settings import ProfileSettings
from tiercache.testing.demo_clouds import UNREAD, Cloud, Clouds
from tiercache.testing.demo_screen import Screen
from tiercache.testing.emulators import EmulatorFailed, EmulatorMissing
from tiercache.units import format_bytes
from tiercache.wire import Done, Shutdown

CAPACITY = "512MiB"  # three times the data
TTL_S = 2.0  # of the mount that is not immutable: so short that the outage outlives it
DEADLINE_S = 10.0  # until a request is given up; the default is a minute
STOP_TIMEOUT_S = 15.0
PREFETCH_TIMEOUT_S = 120.0
NAMES_SHOWN = 3
HOT_READS = 5  # the last note of the show says so
OWN_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "TIERCACHE_")
KEPT_VARIABLE = "TIERCACHE_AZURITE_DIR"


class DemoFailed(Exception):
    """Something was not as it should be; the message says what."""


@dataclass(slots=True, kw_only=True)
class Reading:
    """One data set, read for the first time and again."""

    cloud: Cloud
    cold: str
    cold_s: float
    hot: str
    hot_s: float
    cold_gets: int
    hot_gets: int
    origin_bytes: int
    offline_s: float = 0.0


def expect(condition: bool, what: str) -> None:
    """Raises DemoFailed."""
    if not condition:
        raise DemoFailed(what)


class Demo:
    """The show, part by part. ``directory`` holds configuration and cache."""

    def __init__(self, screen: Screen, clouds: Clouds, directory: Path) -> None:
        # Constant after construction
        self.screen = screen
        self.clouds = clouds
        self.config = directory / "tiercache.toml"
        self.cache_dir = directory / "cache"
        self.readings: list[Reading] = []

    def run(self, stack: ExitStack) -> None:
        """Raises DemoFailed, TiercacheError."""
        self.write_config()
        # Registered first: an agent is stopped even if connecting to it fails.
        stack.callback(stop_agent, self.config)
        with tiercache.connect(self.config) as ns:
            self.show_tree(ns)
            self.prefetch(ns)
            self.read_tables(ns)
            self.read_samples(ns)
            self.outage(ns)
            self.summary(ns)

    # -- 2: the namespace -------------------------------------------------------------------

    def write_config(self) -> None:
        self.screen.step(2, "One namespace over all three: this is the whole configuration")
        lines = ["[cache]", f'dir = "{self.cache_dir}"', f'capacity = "{CAPACITY}"']
        for cloud in self.clouds.all:
            lines += mount_lines(cloud.mount, cloud.url, cloud.name, cloud.consistency)
            if cloud.consistency == "eventual":
                lines.append(f'ttl = "{TTL_S:g}s"')
        for cloud in self.clouds.all:
            lines += [*profile_lines(cloud.profile()), f'deadline = "{DEADLINE_S:g}s"']
        text = "\n".join(lines)
        self.config.write_text(text + "\n")
        self.screen.code(text, "toml")

    def show_tree(self, ns: Namespace) -> None:
        started = time.perf_counter()
        lines: list[tuple[int, str]] = []
        for cloud in self.clouds.all:
            names = [entry for entry in ns.list(cloud.mount, recursive=True) if entry.size_bytes]
            expect(
                {entry.name: entry.size_bytes for entry in names}
                == {name: len(data) for name, data in cloud.objects.items()},
                f"the listing of {cloud.mount} is not what was written to {cloud.url}",
            )
            lines.append((0, f"{cloud.mount.lstrip('/')}/   ({cloud.url}, {cloud.what})"))
            shown = [entry for entry in names if entry.name != UNREAD][:NAMES_SHOWN]
            lines += [(1, f"{e.name}  {format_bytes(e.size_bytes)}") for e in shown]
            lines.append((1, f"… {len(names) - len(shown):,} more"))
        self.screen.note("")
        self.screen.tree("/", lines)
        self.screen.note(f"listed from three clouds in {time.perf_counter() - started:.2f} s")

    # -- 3 to 5: reading --------------------------------------------------------------------

    def prefetch(self, ns: Namespace) -> None:
        cloud = self.clouds.s3
        self.screen.step(3, "Prefetch the tar shards from S3 with the command, then read them")
        command = ["prefetch", f"{cloud.mount}/train", "--config", str(self.config)]
        self.screen.code("$ tiercache " + " ".join(command), "console")
        started = time.perf_counter()
        status = run_command(command)
        cold_s = time.perf_counter() - started
        expect(status == 0, f"tiercache prefetch ended with status {status}")
        gets, moved = self.seen(cloud)
        expect(moved == cloud.read_bytes, f"S3 sent {moved} bytes for {cloud.read_bytes}")
        hot_s = self.hot(cloud, lambda: [ns.read(path) for path in cloud.paths])
        self.note_reading(
            Reading(
                cloud=cloud,
                cold="prefetch",
                cold_s=cold_s,
                hot="read",
                hot_s=hot_s,
                cold_gets=gets,
                hot_gets=self.seen(cloud)[0] - gets,
                origin_bytes=moved,
            )
        )

    def read_tables(self, ns: Namespace) -> None:
        cloud = self.clouds.gcs
        self.screen.step(4, "Read Parquet files from GCS as they come: cold, then hot")
        self.cold_and_hot("read", cloud, lambda: [ns.read(path) for path in cloud.paths])

    def read_samples(self, ns: Namespace) -> None:
        cloud = self.clouds.azure
        self.screen.step(5, f"Read {cloud.what} from Azure in one call: cold, then hot")
        self.cold_and_hot("read_many", cloud, partial(read_whole, ns, cloud.paths))
        extents = ns.status()["cache"]["extents"]
        self.screen.note(f"all that is cached so far lies in {extents} files on the device")

    def cold_and_hot(self, how: str, cloud: Cloud, read: Callable[[], list[bytes]]) -> None:
        cold_s = self.timed(cloud, read)
        gets, moved = self.seen(cloud)
        hot_s = self.hot(cloud, read)
        self.note_reading(
            Reading(
                cloud=cloud,
                cold=how,
                cold_s=cold_s,
                hot=how,
                hot_s=hot_s,
                cold_gets=gets,
                hot_gets=self.seen(cloud)[0] - gets,
                origin_bytes=moved,
            )
        )

    def timed(self, cloud: Cloud, read: Callable[[], list[bytes]]) -> float:
        """Return the seconds of a read of ``cloud.paths``, whose bytes are then compared."""
        started = time.perf_counter()
        data = read()
        elapsed_s = time.perf_counter() - started
        for path, found in zip(cloud.paths, data, strict=True):
            expect(found == cloud.data_of(path), f"{path} has other bytes than were written")
        return elapsed_s

    def hot(self, cloud: Cloud, read: Callable[[], list[bytes]]) -> float:
        """Return the median of some reads. The first after a fetch also checks every page."""
        return median(self.timed(cloud, read) for _ in range(HOT_READS))

    def seen(self, cloud: Cloud) -> tuple[int, int]:
        """Return the GETs of objects at the origin so far, and the bytes of their answers."""
        gets = cloud.data_gets()
        return len(gets), sum(get.body_bytes for get in gets)

    def note_reading(self, reading: Reading) -> None:
        cloud = reading.cloud
        expect(reading.hot_gets == 0, f"reading {cloud.mount} again sent {reading.hot_gets} GETs")
        self.readings.append(reading)
        self.screen.note(
            f"cold {speed(cloud, reading.cold_s)}, {reading.cold_gets} GETs; hot "
            f"{speed(cloud, reading.hot_s)}, no GET; {format_bytes(cloud.read_bytes)} compared"
        )

    # -- 6: the outage ----------------------------------------------------------------------

    def outage(self, ns: Namespace) -> None:
        self.screen.step(6, "Stop all three clouds and go on")
        self.clouds.stop()
        wait_until_stale(ns, self.clouds.gcs)
        stale_s = self.timed(self.clouds.gcs, partial(read_whole, ns, self.clouds.gcs.paths))
        stat = ns.stat(self.clouds.gcs.paths[0])
        expect(stat.stale, "a name older than its ttl was not marked stale")
        self.screen.note(
            f"{stat.path}: its ttl has passed and nobody can be asked; served after "
            f"{stale_s:.1f} s, marked stale, {stat.age_s:.1f} s old"
        )
        for reading in self.readings:
            cloud = reading.cloud
            reading.offline_s = self.hot(cloud, partial(read_whole, ns, cloud.paths))
            names = [e.name for e in ns.list(cloud.mount, recursive=True) if e.size_bytes]
            expect(set(names) == set(cloud.objects), f"{cloud.mount} lists other names now")
            self.screen.note(
                f"{cloud.mount}: {len(names):,} names listed, {len(cloud.paths):,} objects read "
                f"and compared, {speed(cloud, reading.offline_s)}"
            )
        self.read_what_is_not_cached(ns)

    def read_what_is_not_cached(self, ns: Namespace) -> None:
        path = f"{self.clouds.azure.mount}/{UNREAD}"
        try:
            ns.read(path)
        except OriginUnavailable as error:
            name = type(error).__name__
            self.screen.note(f"{path}, never read before: {name}, never FileNotFoundError")
        except NotFound as error:
            raise DemoFailed(f"an outage was reported as {error!r}") from error
        else:
            raise DemoFailed(f"{path} was read without its origin")

    # -- 7: the figures ---------------------------------------------------------------------

    def summary(self, ns: Namespace) -> None:
        self.screen.table(
            "What the origins saw, and how fast it was",
            ["mount", "from", "data", "GETs", "again", "cold", "hot", "origins down"],
            [
                [
                    reading.cloud.mount,
                    reading.cloud.server.name,
                    format_bytes(reading.cloud.read_bytes),
                    f"{reading.cold_gets:,}",
                    f"{reading.hot_gets:,}",
                    rate(reading.cloud, reading.cold_s),
                    rate(reading.cloud, reading.hot_s),
                    rate(reading.cloud, reading.offline_s),
                ]
                for reading in self.readings
            ],
        )
        status = ns.status()
        reads = status["reads"]
        rows = []
        for reading in self.readings:
            counts = reads[reading.cloud.mount]
            expect(
                counts["filled_bytes"] == reading.origin_bytes,
                f"{reading.cloud.mount}: the agent counts {counts['filled_bytes']} bytes filled, "
                f"its origin sent {reading.origin_bytes}",
            )
            rows.append(
                [
                    reading.cloud.mount,
                    format_bytes(reading.origin_bytes),
                    format_bytes(counts["filled_bytes"]),
                    format_bytes(counts["hit_bytes"]),
                    f"{counts['hits']:,}",
                ]
            )
        header = ["mount", "sent by the origin", "filled into NVMe", "read from NVMe", "reads"]
        self.screen.table("Bytes by tier", header, rows)
        cache = status["cache"]
        expect(cache["used_bytes"] <= cache["capacity_bytes"], "the limit was overshot")
        self.screen.note("")
        self.screen.note(
            f"cache: {format_bytes(cache['used_bytes'])} of {format_bytes(cache['capacity_bytes'])}"
            f" in {cache['extents']} files; corrupt pages: {cache['corrupt_pages']}"
        )
        self.screen.note(
            "cold: local servers behind a counting proxy (a WAN is slower), start of the command "
            "included"
        )
        self.screen.note("hot: the median of five; so little data lies in the kernel's page cache")


def mount_lines(path: str, url: str, profile: str, consistency: str) -> list[str]:
    return [
        "",
        "[[mount]]",
        f'path = "{path}"',
        f'origin = "{url}"',
        f'profile = "{profile}"',
        f'consistency = "{consistency}"',
    ]


def profile_lines(profile: ProfileSettings) -> list[str]:
    lines = ["", f"[profile.{profile.name}]", f'endpoint = "{profile.endpoint}"']
    for key in ("region", "account"):
        if value := getattr(profile, key):
            lines.append(f'{key} = "{value}"')
    if profile.addressing != "auto":
        lines.append(f'addressing = "{profile.addressing}"')
    if profile.anonymous:
        lines.append("anonymous = true")
    return lines


def rate(cloud: Cloud, elapsed_s: float) -> str:
    """Return bytes a second."""
    return f"{format_bytes(round(cloud.read_bytes / elapsed_s))}/s"


def speed(cloud: Cloud, elapsed_s: float) -> str:
    """Return bytes a second, and objects a second where there are many."""
    text, count = rate(cloud, elapsed_s), len(cloud.paths)
    return f"{text}, {count / elapsed_s:,.0f} objects/s" if count >= 1000 else text


def read_whole(ns: Namespace, paths: list[str]) -> list[bytes]:
    """Read many objects in one call."""
    return ns.read_many([(path, 0, None) for path in paths])


def run_command(arguments: list[str]) -> int:
    """Run ``tiercache`` on our terminal and return its exit status; it never outlives us."""
    with subprocess.Popen([sys.executable, "-m", "tiercache", *arguments]) as process:
        try:
            return process.wait(PREFETCH_TIMEOUT_S)
        except BaseException:
            process.terminate()
            raise


def wait_until_stale(ns: Namespace, cloud: Cloud) -> None:
    """Let the ttl of what is known of this cloud pass."""
    left_s = TTL_S - ns.stat(cloud.paths[-1]).age_s
    if left_s > 0:
        time.sleep(left_s)


def stop_agent(config: Path) -> None:
    """Ask the agent to leave, and return when it has. Raises DemoFailed."""
    try:
        link = running_agent(load(config).settings)
    except TiercacheError:
        return
    if link is None:
        return
    assert link.welcome is not None
    gone = os.pidfd_open(link.welcome.agent_pid)
    try:
        link.request(Shutdown(), Done)
        link.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not has_ended(gone):
            expect(time.monotonic() < deadline, "the agent does not leave")
            time.sleep(0.02)
    except AgentUnavailable:
        pass  # it left by itself
    finally:
        os.close(gone)


def has_ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 0)[0])


@contextmanager
def interruptible() -> Iterator[None]:
    """Make every polite way to end a program end it through its clean-up, which nothing
    interrupts again."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_over_environment() -> None:
    """Hide the user's own credentials and settings from the demo's processes."""
    for name in list(os.environ):
        if name.startswith(OWN_VARIABLES) and name != KEPT_VARIABLE:
            del os.environ[name]
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), "127.0.0.1"]))


def play(screen: Screen) -> None:
    """Raises DemoFailed, EmulatorMissing, EmulatorFailed, TiercacheError."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="tiercache-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        screen.step(1, "Start S3, Google Cloud Storage and Azure Blob servers, and fill them")
        started = time.perf_counter()
        clouds = stack.enter_context(Clouds())
        for cloud in clouds.all:
            size = format_bytes(sum(map(len, cloud.objects.values())))
            screen.note(f"{cloud.server.name}: {cloud.what}, {size}, in {cloud.url}")
        screen.note(f"took {time.perf_counter() - started:.1f} s")
        os.environ.update(clouds.environment)
        Demo(screen, clouds, directory).run(stack)


def main() -> int:
    """Run the demo and return its exit status."""
    screen = Screen()
    take_over_environment()
    screen.title("tiercache", "NVMe as the near tier of three clouds, on this machine")
    started = time.perf_counter()
    try:
        with interruptible():
            play(screen)
    except KeyboardInterrupt:
        screen.ending("Interrupted; everything is stopped and removed.", good=False)
        return INTERRUPTED
    except (DemoFailed, EmulatorMissing, EmulatorFailed, TiercacheError) as error:
        screen.ending(f"The demo failed: {error}", good=False)
        return 1
    elapsed_s = time.perf_counter() - started
    screen.ending(
        f"All bytes were as written. Nothing is left running. {elapsed_s:.0f} s.", good=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(end(main()))
