"""The socket: frames in, engine calls, frames out. A peer that talks nonsense is dropped alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tiercache import wire
from tiercache.agent.accounts import Account, asking, check_name, check_wait, find_claimant
from tiercache.agent.answers import found
from tiercache.agent.charges import charge_of
from tiercache.agent.directory import CacheDirectory
from tiercache.agent.engine import Engine
from tiercache.agent.job_table import JobTable
from tiercache.agent.memory import Answer
from tiercache.agent.seats import Process
from tiercache.agent.status import status_body
from tiercache.agent.writes import check_writable
from tiercache.clock import Clock
from tiercache.errors import FormatError, TiercacheError, Unsupported
from tiercache.version import __version__

log = logging.getLogger("tiercache.agent")

_UCRED = struct.Struct("3i")
# Whole runs pass through the stream's buffer; a small one would stop the peer every 64 KiB.
STREAM_BYTES = 1 << 20
# A request is one frame; a peer that stops in the middle of one is dropped after this.
HALF_FRAME_S = 10.0
# A peer that does not take its answer is dropped after this, for it keeps memory from others. One
# that was stopped asks again when it goes on.
TAKE_ANSWER_S = 5.0
# A whole node's workers may come in the same moment; the kernel refuses who finds the queue full.
BACKLOG = 1024
# A long poll of a job ends at the latest after this, so that a dead peer is noticed.
MAX_WAIT_S = 30.0


@dataclass(slots=True)
class Peer:
    """One connection."""

    account: Account
    fd: int
    version: str = ""
    requests: int = 0

    @property
    def pid(self) -> int:
        return self.account.pid


class _Frames:
    """Whole frames from one connection. A request mostly comes in one piece, and is then taken
    with one call and no timer."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._ahead = b""

    async def next(self) -> memoryview | None:
        """Return the next frame's body, None at the end of the stream.

        Raises TimeoutError for a peer that stops in the middle of one, IncompleteReadError for
        one that leaves there, FormatError for what is no frame.
        """
        data = self._ahead or await self._reader.read(STREAM_BYTES)
        if not data:
            return None
        size = wire.HEADER.size
        if len(data) < size or len(data) < size + wire.parse_header(data[:size]):
            async with asyncio.timeout(HALF_FRAME_S):
                data += await self._reader.readexactly(max(0, size - len(data)))
                missing = size + wire.parse_header(data[:size]) - len(data)
                data += await self._reader.readexactly(max(0, missing))
        end = size + wire.parse_header(data[:size])
        self._ahead = data[end:]
        return memoryview(data)[size:end]


class Server:
    """Serves one engine on one socket. Owned by the event loop."""

    def __init__(self, engine: Engine, directory: CacheDirectory, clock: Clock) -> None:
        self._engine = engine
        self._directory = directory
        self._clock = clock
        self._server: asyncio.AbstractServer | None = None
        self._listener_fd = -1
        # Numbers of the writes that each process has begun; ended ones are no trouble to abort.
        self._writers: dict[Process, set[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: dict[int, Peer] = {}
        self._next_peer = 0
        self.stopping = asyncio.Event()
        self._stopped = False
        self.dropped_peers = 0
        self.internal_errors = 0
        self._idle_since_s = clock.now()
        engine.qos.accounts = lambda: [peer.account for peer in self.peers.values()]
        self._handlers: dict[type, Callable[..., Awaitable[wire.Response]]] = {
            wire.Lookup: engine.lookup,
            wire.Fill: engine.fill,
            wire.FillMany: engine.fill_many,
            wire.ReadThrough: engine.read_through,
            wire.ListNames: engine.list_names,
            wire.Remove: engine.remove,
            wire.CopyObject: engine.copy,
            wire.Pin: engine.pin,
            wire.Unpin: engine.unpin,
            wire.Evict: engine.evict,
            wire.Invalidate: engine.invalidate,
            wire.ReportCorrupt: engine.report_corrupt,
            wire.WriteData: self._write_data,
            wire.WriteFinish: self._write_finish,
            wire.WriteAbort: self._write_abort,
            wire.Prefetch: self._prefetch,
            wire.JobQuery: self._job_query,
            wire.JobCancel: self._job_cancel,
            wire.StatusQuery: self._status,
            wire.LocalPath: engine.local_path,
            wire.Bind: engine.snapshots.bind,
            wire.SnapshotCreate: self._snapshot_create,
            wire.SnapshotRemove: self._snapshot_remove,
            wire.MountList: self._mounts,
            wire.QosQuery: lambda request: engine.qos.desk.query(request),
            wire.Shutdown: self._shutdown,
        }

    async def start(self) -> None:
        """Bind the socket, replacing one that a dead agent left. The caller holds the lock."""
        listener = bind(self._directory.socket)
        self._listener_fd = listener.fileno()
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=STREAM_BYTES, backlog=BACKLOG
        )

    async def stop(self) -> None:
        """Stop accepting, end the connections, remove the socket."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._directory.socket)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def descriptors(self) -> list[int]:
        """Return the descriptors of the listener and of all connections."""
        return [self._listener_fd, *(peer.fd for peer in self.peers.values())]

    @property
    def idle_s(self) -> float:
        """How long there has been neither a client nor a job."""
        if self.peers or self._engine.jobs.table.running or self._engine.snapshots.table.running:
            self._idle_since_s = self._clock.now()
        return self._clock.now() - self._idle_since_s

    # -- connections ------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._stopped:  # accepted before, begun after: its peer finds the next agent
            writer.close()
            return
        self._tasks.add(task)
        number, self._next_peer = self._next_peer, self._next_peer + 1
        try:
            peer = self._peer(reader, writer)
            if peer.account.uid not in (os.geteuid(), 0):
                log.warning("refused a peer of user %d", peer.account.uid)
                return
            asking.set(peer.account)
            self.peers[number] = peer
            await self._serve(peer, reader, writer)
        except (FormatError, msgspec.DecodeError, UnicodeDecodeError, TimeoutError) as error:
            self.dropped_peers += 1
            log.warning("dropped a peer that talks nonsense: %s", error)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the peer has gone, or we are going
        finally:
            gone = self.peers.pop(number, None)
            self._tasks.discard(task)
            writer.close()
            if gone is not None:
                await self._process_may_be_gone(gone)

    def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Peer:
        sock = writer.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        account = Account(pid, pid, uid, gid, is_gone=reader.at_eof)
        return Peer(account=account, fd=sock.fileno())

    async def _serve(
        self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        frames = _Frames(reader)
        while (body := await frames.next()) is not None:
            request = wire.decode_request(body)
            peer.requests += 1
            if isinstance(request, wire.Advise):
                self._engine.advise(request)
                continue
            if isinstance(request, wire.ReportUse):
                self._engine.report_use(request)
                continue
            if isinstance(request, wire.Wake):
                self._engine.governing.wake()
                continue
            with Answer() as answer:
                frame = wire.frame(await self._answer(peer, request))
                answer.built()
                writer.write(frame)
                frame = b""
                if writer.transport.get_write_buffer_size():
                    async with asyncio.timeout(TAKE_ANSWER_S):
                        await writer.drain()

    async def _answer(self, peer: Peer, request: wire.Request) -> wire.Response:
        path = getattr(request, "path", "")
        try:
            if isinstance(request, wire.Hello):
                return self._hello(peer, request)
            if isinstance(request, wire.Enlist):
                return await self._engine.governing.enlist(peer.account, request.name)
            if isinstance(request, wire.QosChange):
                return await self._engine.qos.desk.change(peer.account, request)
            if not self._engine.governing.is_on:
                return await self._handled(peer, request)
            return await self._admitted(peer, request)
        except (TiercacheError, OSError) as error:
            return wire.failure_of(error, path)
        except Exception as error:  # the request handler's top: one request fails, and is logged
            self.internal_errors += 1
            log.exception("internal error in %s", type(request).__name__)
            return wire.failure_of(error, path)

    async def _admitted(self, peer: Peer, request: wire.Request) -> wire.Response:
        """Carry out what the policy lets its identity do now, or wait until it does."""
        charge = charge_of(request)
        if charge is None:
            if isinstance(request, wire.Prefetch | wire.SnapshotCreate):
                # A job asks on when its client has gone, and cannot be asked who that was.
                await find_claimant(peer.account)
            return await self._handled(peer, request)
        engine = self._engine
        if charge.number:
            path = engine.writes.path_of(charge.number)
        else:
            path = engine.mounts.locate(charge.path).path
        async with engine.governing.admitted(
            path, read=charge.read, write=charge.write, operations=charge.operations
        ):
            return await self._handled(peer, request)

    async def _handled(self, peer: Peer, request: wire.Request) -> wire.Response:
        if isinstance(request, wire.WriteBegin):
            return await self._write_begin(peer, request)
        return await self._handlers[type(request)](request)

    # -- requests that are not the engine's alone -------------------------------------------

    def _hello(self, peer: Peer, request: wire.Hello) -> wire.Welcome:
        peer.version = request.client_version
        peer.account.rename(check_name(request.name))
        peer.account.max_wait_s = check_wait(request.max_wait_s)
        if not peer.account.pid:  # of another namespace of processes, where it has a number
            peer.account.process = f"pid {request.pid}"
        self._engine.mounts.add(request.mounts, request.profiles)
        running = self._engine.settings
        mounts = self._engine.mounts.all
        return wire.Welcome(
            __version__,
            os.getpid(),
            mounts,
            running.cache,
            running.agent,
            running.metadata,
            running.qos,
        )

    async def _write_begin(self, peer: Peer, request: wire.WriteBegin) -> wire.WriteStarted:
        engine = self._engine
        located = engine.mounts.locate(request.path)
        check_writable(located)
        await engine.names.admit(located)
        if request.mode != "overwrite":
            honoured = await engine.mounts.writing_capabilities(located)
            creates = request.mode == "create"
            if not (honoured.conditional_put if creates else honoured.conditional_replace):
                raise Unsupported(
                    f"{located.origin.url} does not keep this condition on writes",
                    path=request.path,
                    remedy="write without a condition, or use another store",
                )
        number = engine.writes.begin(located, request.mode, request.token)
        self._writers.setdefault(peer.account.process, set()).add(number)
        return wire.WriteStarted(number)

    async def _process_may_be_gone(self, gone: Peer) -> None:
        """End the writes and leases of a process whose last connection has gone."""
        if any(peer.account.process == gone.account.process for peer in self.peers.values()):
            return
        self._engine.governing.gone(gone.account.process)
        for number in self._writers.pop(gone.account.process, ()):
            await self._engine.writes.abort(number)

    async def _write_data(self, request: wire.WriteData) -> wire.Done:
        await self._engine.writes.data(request.write, request.data)
        return wire.Done(len(request.data))

    async def _write_finish(self, request: wire.WriteFinish) -> wire.Found:
        record = await self._engine.writes.finish(request.write)
        return found(record, record.validated_s)

    async def _write_abort(self, request: wire.WriteAbort) -> wire.Done:
        await self._engine.writes.abort(request.write)
        return wire.Done()

    async def _prefetch(self, request: wire.Prefetch) -> wire.Job:
        return wire.Job(await self._engine.jobs.start(request))

    async def _job_query(self, request: wire.JobQuery) -> wire.Job:
        wait_s = min(request.wait_s, MAX_WAIT_S)
        return wire.Job(await self._table_with(request.job).query(request.job, wait_s))

    async def _job_cancel(self, request: wire.JobCancel) -> wire.Job:
        return wire.Job(await self._table_with(request.job).cancel(request.job))

    def _table_with(self, job: str) -> JobTable[Any]:
        engine = self._engine
        return engine.snapshots.table if engine.snapshots.has(job) else engine.jobs.table

    async def _snapshot_create(self, request: wire.SnapshotCreate) -> wire.Job:
        return wire.Job(await self._engine.snapshots.create(request))

    async def _snapshot_remove(self, request: wire.SnapshotRemove) -> wire.Done:
        await self._engine.snapshots.remove(request.name)
        return wire.Done(1)

    async def _status(self, request: wire.StatusQuery) -> wire.Status:
        clients = [
            {"pid": peer.pid, "version": peer.version, "requests": peer.requests}
            for peer in self.peers.values()
        ]
        return wire.Status(
            status_body(
                self._engine,
                clients=clients,
                dropped_peers=self.dropped_peers,
                internal_errors=self.internal_errors,
            )
        )

    async def _mounts(self, request: wire.MountList) -> wire.Mounts:
        return wire.Mounts(self._engine.mounts.all)

    async def _shutdown(self, request: wire.Shutdown) -> wire.Done:
        self.stopping.set()
        return wire.Done()


def bind(path: str) -> socket.socket:
    """Return a listening socket at ``path``, mode 0600. A path too long for the kernel is bound
    through its directory's descriptor."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    Path(path).unlink(missing_ok=True)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
        with contextlib.suppress(OSError):
            os.close(folder)
    listener.listen(BACKLOG)
    return listener
