"""Composition of the agent, and of the tools beside it: with ``compose_client`` the only place that
turns settings into components. An agent never needs the client, and starts faster without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tiercache.agent.directory import CacheDirectory
from tiercache.client.launch import Announcement
from tiercache.clock import BootClock, Clock
from tiercache.errors import AgentUnavailable, NotFound, TiercacheError
from tiercache.extents.files import ExtentFiles, ExtentReaders
from tiercache.extents.lease_file import LeaseFileWriter
from tiercache.extents.shared_state import SharedStateWriter
from tiercache.metadata.lmdb_store import LmdbReader, LmdbStore
from tiercache.policy.retry import RetryPolicy
from tiercache.policy.urls import OriginUrl, endpoint_name
from tiercache.ports import MetadataStore, Origin, OriginCapabilities
from tiercache.settings import MetadataSettings, ProfileSettings, Settings

if TYPE_CHECKING:
    from tiercache.agent.engine import Engine
    from tiercache.agent.fsck import FsckReport
    from tiercache.agent.server import Server
    from tiercache.origins.endpoint import Endpoints
    from tiercache.origins.resilient import ResilientOrigin

log = logging.getLogger("tiercache.agent")
# Two files of this size and the shared mapping are what Space sets aside as fixed overhead.
LOG_BYTES = 256 * 1024


def cache_directory(settings: Settings) -> CacheDirectory:
    return CacheDirectory(Path(settings.cache.dir).absolute())


def with_environment(settings: Settings) -> Settings:
    """Note in the profiles what the environment adds to them, so that agent and clients name
    origins alike, or find out that they differ."""
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    profiles = {
        name: msgspec.structs.replace(profile, environment_account=account)
        for name, profile in settings.profiles.items()
    }
    return msgspec.structs.replace(settings, profiles=profiles)


@dataclass(slots=True)
class Agent:
    """Engine and server on the running loop. ``run`` returns when it is to leave."""

    settings: Settings
    lock_fd: int
    ready: threading.Event = field(default_factory=threading.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    descriptors: Callable[[], list[int]] = list
    engine: Engine | None = None

    async def run(self, announce: bool) -> None:
        # Imported here: a client never needs the engine, and starts faster without it.
        from tiercache.agent.engine import Engine, Parts
        from tiercache.agent.metrics import MetricsServer
        from tiercache.agent.policing import Places
        from tiercache.agent.qos_plane import QosParts
        from tiercache.agent.server import Server
        from tiercache.config import qos_language
        from tiercache.metadata.open import open_metadata
        from tiercache.origins.endpoint import Endpoints

        settings = with_environment(self.settings)
        directory = cache_directory(settings)
        clock = BootClock()
        endpoints = Endpoints(clock=clock)
        engine = Engine(
            settings,
            Parts(
                store=LmdbStore(directory.index),
                extents=ExtentFiles(directory.extents),
                state=SharedStateWriter(directory.state),
                qos=QosParts(
                    leases=LeaseFileWriter(directory.leases),
                    language=qos_language,
                    places=Places(
                        configured=settings.qos.policy,
                        applied=directory.qos_policy,
                        last_good=directory.qos_last_good,
                        overrides=directory.qos_overrides,
                        calibration=directory.qos_calibration,
                        audit=Path(directory.audit),
                    ),
                ),
                open_origin=lambda url, profile: open_wrapped(url, profile, clock, endpoints),
                probe_writes=probe_writes,
                open_metadata=lambda: open_metadata(settings.metadata, settings.profiles),
                endpoints=endpoints,
                clock=clock,
            ),
        )
        self.engine = engine
        server = Server(engine, directory, clock)
        metrics = MetricsServer(settings.agent.metrics_address, engine)
        # Ended in the opposite order, also where one of them cannot start.
        async with contextlib.AsyncExitStack() as running:
            running.push_async_callback(engine.stop)
            await engine.start()
            running.callback(metrics.stop)
            metrics.start()
            running.push_async_callback(server.stop)
            await server.start()
            self.descriptors = server.descriptors
            log.info("serving %s", directory.root)
            self.ready.set()
            if announce:
                say(Announcement("ready"))
            await self._until_done(server, settings.agent.idle_timeout_s)
        log.info("left %s", directory.root)

    async def _until_done(self, server: Server, idle_timeout_s: float) -> None:
        while True:
            waits = [
                asyncio.create_task(self.stopping.wait()),
                asyncio.create_task(server.stopping.wait()),
            ]
            done, pending = await asyncio.wait(
                waits, timeout=0.5, return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending:
                task.cancel()
            if done or (idle_timeout_s and server.idle_s > idle_timeout_s):
                return


def open_wrapped(
    url: OriginUrl, profile: ProfileSettings, clock: Clock, endpoints: Endpoints
) -> ResilientOrigin:
    """Open an origin with retries, limit and breaker; origins of one endpoint share the latter."""
    from tiercache.origins.open import open_origin
    from tiercache.origins.resilient import ResilientOrigin

    name = endpoint_name(url, profile, account=profile.environment_account)
    return ResilientOrigin(
        open_origin(url, profile, clock=clock),
        endpoint=endpoints.of(name, concurrency=profile.concurrency),
        backends=endpoints.backends,
        clock=clock,
        policy=RetryPolicy(deadline_s=profile.deadline_s),
        attempt_timeout_s=profile.connect_timeout_s + profile.request_timeout_s,
    )


async def probe_writes(origin: Origin, prefix: str) -> OriginCapabilities:
    """Find out what an origin behind an endpoint of its own honours, by writing one small object
    below ``prefix`` and removing it; the clouds themselves document theirs."""
    from tiercache.origins.probe import probe
    from tiercache.origins.resilient import ResilientOrigin

    assert isinstance(origin, ResilientOrigin)
    if not origin.has_own_endpoint:
        return origin.capabilities
    return await probe(origin, prefix=prefix, probe_writes=True)


def fsck(
    settings: Settings,
    *,
    repair: bool = False,
    online: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FsckReport:
    """Check the cache directory, as its only user or, ``online``, beside an agent and read-only.

    ``on_progress`` gets the bytes checked so far. Raises NotFound where there is no cache,
    AgentUnavailable where an agent serves it (not ``online``), FormatError, OSError.
    """
    from tiercache.agent.fsck import check, check_online, disk_usage

    directory = cache_directory(settings)
    if not os.path.exists(directory.index):
        raise NotFound("there is no cache", path=str(directory.root))
    disk_bytes = disk_usage(str(directory.root))
    if online:
        reader = LmdbReader(directory.index)
        with contextlib.closing(reader):
            return check_online(
                reader,
                ExtentReaders(directory.extents),
                disk_bytes=disk_bytes,
                on_progress=on_progress,
            )
    remedy = "tiercache agent stop, or check beside it with --online"
    with (
        agent_kept_out(settings, remedy=remedy),
        contextlib.closing(LmdbStore(directory.index)) as store,
    ):
        return check(
            store,
            ExtentFiles(directory.extents),
            disk_bytes=disk_bytes,
            repair=repair,
            on_progress=on_progress,
        )


@contextlib.contextmanager
def agent_kept_out(settings: Settings, *, remedy: str = "tiercache agent stop") -> Iterator[None]:
    """Hold the agent's place in the cache directory, where there is one: no agent starts
    meanwhile. Raises AgentUnavailable where one serves it already, FormatError, ConfigError."""
    directory = cache_directory(settings)
    if not directory.root.exists():
        yield
        return
    directory.prepare()
    lock_fd = directory.lock()
    if lock_fd is None:
        raise AgentUnavailable(
            "an agent serves the directory", path=str(directory.root), remedy=remedy
        )
    try:
        yield
    finally:
        os.close(lock_fd)


@contextlib.asynccontextmanager
async def metadata_store(
    settings: Settings, metadata: MetadataSettings, *, read_only: bool
) -> AsyncIterator[MetadataStore]:
    """Open a metadata store and close it in the end. Read-only it is neither made nor taken over,
    and an agent may serve it; otherwise the caller sees to it that none does. Raises as
    ``open_metadata``."""
    from tiercache.metadata.open import open_metadata

    store = await open_metadata(metadata, with_environment(settings).profiles, read_only=read_only)
    try:
        yield store
    finally:
        await store.close()


def run_agent(settings: Settings, *, announce: bool = True) -> int:
    """Run an agent until it is idle or told to stop; return an exit status.

    Exactly one agent serves a directory: where another does, this one says so and leaves.
    """
    try:
        directory = cache_directory(settings)
        directory.prepare()
        start_logging(settings.agent.log_level, directory.log if announce else None)
        lock_fd = directory.lock()
        if lock_fd is None:
            log.info("another agent serves %s", directory.root)
            if announce:
                say(Announcement("busy"))
            return 0
        _run_loop(Agent(settings, lock_fd), announce)
        return 0
    except TiercacheError as error:
        log.error("%s", error)
        if announce:
            say(
                Announcement(
                    "failed", type(error).__name__, error.message, error.path, error.remedy
                )
            )
        return 4


def start_logging(level: str, path: str | None) -> None:
    """Log to standard error, or to a file that is kept short: it counts towards the limit."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if path is not None:
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s pid=%(process)d %(message)s",
        handlers=[handler],
    )


def _run_loop(agent: Agent, announce: bool) -> None:
    import uvloop

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stopping.set)
        await agent.run(announce)

    uvloop.run(serve())


def say(announcement: Announcement) -> None:
    """Print the one line, and let go of standard output: nobody reads more."""
    with contextlib.suppress(OSError):  # whoever started us is gone; we serve others
        os.write(1, msgspec.json.encode(announcement) + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class EmbeddedAgent:
    """The same agent on a thread of this process, for notebooks and tests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Return when it serves. Another agent in the directory is fine: that one serves."""
        directory = cache_directory(self._settings)
        directory.prepare()
        lock_fd = directory.lock()
        if lock_fd is None:
            return
        settings = msgspec.structs.replace(
            self._settings, agent=msgspec.structs.replace(self._settings.agent, idle_timeout_s=0)
        )
        self._agent = Agent(settings, lock_fd)
        self._thread = threading.Thread(
            target=self._run, args=(self._agent,), name="tiercache-agent", daemon=True
        )
        self._thread.start()
        self._agent.ready.wait()
        if self._failure is not None:
            self._thread.join()
            os.close(lock_fd)
            raise self._failure

    def _run(self, agent: Agent) -> None:
        import uvloop

        loop = self._loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(agent.run(announce=False))
        except BaseException as error:  # the thread's top: handed to whoever starts or stops it
            self._failure = error
        finally:
            agent.ready.set()
            loop.close()

    def abandon(self) -> None:
        """In a forked child: close the copies of lock and sockets, which would otherwise outlive
        the parent and keep the directory from its next agent."""
        if self._agent is not None:
            for fd in (self._agent.lock_fd, *self._agent.descriptors()):
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._agent = None

    def stop(self) -> None:
        """Stop serving and give the directory up."""
        if self._agent is None or self._thread is None or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: it failed by itself
            self._loop.call_soon_threadsafe(self._agent.stopping.set)
        self._thread.join(timeout=30)
        if self._thread.is_alive():
            raise AgentUnavailable("the embedded agent does not stop")
        os.close(self._agent.lock_fd)
        self._agent = None
