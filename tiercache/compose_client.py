"""Composition of a process's client. See ``compose``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from tiercache.client.agreement import accept
from tiercache.client.frozen import Frozen, FrozenNames
from tiercache.client.launch import start_agent
from tiercache.client.link import Link
from tiercache.client.names import Names
from tiercache.client.reader import Reader
from tiercache.client.resolver import Resolver
from tiercache.client.seats import Seats
from tiercache.clock import BootClock, Clock
from tiercache.compose import EmbeddedAgent, cache_directory, with_environment
from tiercache.errors import NotFound
from tiercache.extents.files import ExtentReaders
from tiercache.extents.lease_file import LeaseFileReader
from tiercache.extents.shared_state import SharedStateReader
from tiercache.metadata.lmdb_store import LmdbReader
from tiercache.settings import Settings


@dataclass(slots=True, kw_only=True)
class Client:
    """One process's client."""

    link: Link
    index: LmdbReader
    extents: ExtentReaders
    state: SharedStateReader
    leases: LeaseFileReader | None
    resolver: Resolver
    reader: Reader
    clock: Clock
    engine: EmbeddedAgent | None = None

    def bind_snapshot(self, name: str) -> Frozen:
        """Bind this process to the snapshot that has the name now. Raises NotFound."""
        frozen = self.resolver.frozen
        before = frozen.bound(name)
        now = frozen.renew(name)
        if before is not None and before is not now:
            self.resolver.forget_snapshot(name)
            self.reader.names.forget_snapshot(name)
        return now

    def close(self) -> None:
        self.reader.close()
        self.link.close()
        self.index.close()
        if self.engine is not None:
            self.engine.stop()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's things without touching what is shared."""
        self.link.abandon()
        self.reader.abandon()
        if self.engine is not None:
            self.engine.abandon()


def open_client(settings: Settings, *, embedded: bool = False) -> Client:
    """Open a client, starting an agent where the directory has none. Raises ConfigError where the
    agent that serves it was started with other limits."""
    directory = cache_directory(settings)
    engine: EmbeddedAgent | None = None
    if embedded:
        engine = EmbeddedAgent(settings)
        engine.start()
    settings = with_environment(settings)
    link = Link(
        socket_path=directory.socket,
        mounts=settings.mounts,
        profiles=tuple(settings.profiles.values()),
        start_agent=lambda: start_agent(settings, directory.log),
        accept=lambda welcome: accept(settings, welcome),
        qos=settings.qos,
    )
    try:
        link.ensure()
        clock = BootClock()
        index = LmdbReader(directory.index)
        extents = ExtentReaders(directory.extents)
        state = SharedStateReader(directory.state)
        leases = None
        with contextlib.suppress(NotFound):  # an agent from before there was QoS
            leases = LeaseFileReader(directory.leases)
        resolver = Resolver(settings.mounts, settings.profiles, FrozenNames(index))
        reader = Reader(
            index=index,
            extents=extents,
            state=state,
            link=link,
            resolver=resolver,
            names=Names(
                index=index,
                state=state,
                link=link,
                resolver=resolver,
                seats=Seats(file=leases, link=link, settings=settings.qos),
                boot_id=clock.boot_id,
            ),
        )
    except BaseException:
        link.close()
        if engine is not None:
            engine.stop()
        raise
    return Client(
        link=link,
        index=index,
        extents=extents,
        state=state,
        leases=leases,
        resolver=resolver,
        reader=reader,
        clock=clock,
        engine=engine,
    )
