"""The client's link to the agent: connections, and starting an agent where there is none.

Thread safe: each request takes a connection of its own from the pool. Nothing of it survives a
fork: the child begins with an empty pool.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tiercache import wire
from tiercache.errors import AgentUnavailable, ConfigError, FormatError, TiercacheError
from tiercache.settings import MountSettings, ProfileSettings, QosSettings
from tiercache.version import __version__

# The agent answers within the origin's deadline; this is for one that is stopped or wedged.
ANSWER_TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 5.0
# How often a request is sent again after its agent died. Each round starts an agent at most once;
# some find only that a connection is of an agent before. Then it may be what kills them.
ATTEMPTS = 10
START_TIMEOUT_S = 15.0
# An agent that announced itself listens; one that gives way to another may wait for its end.
RESTART_S = 0.3
# The deadline ends the attempts long before; and an agent that dies at once three times over
# will die a fourth time.
START_ATTEMPTS = 100
SILENT_ATTEMPTS = 3
POLL_S = 0.005
# A fill that waits for room may wait for extents that this very process holds open.
MEANWHILE_S = 0.01
# Holds an answer with the bytes of a random read.
RECEIVE_BYTES = wire.MAX_INLINE_BYTES + 4096

_TIMEVAL = struct.Struct("@ll")
_buffers = threading.local()

R = TypeVar("R", bound=wire.Response)

# What must not be sent twice: the agent may have done it before it died.
_ONCE = (wire.WriteData, wire.WriteFinish, wire.CopyObject)


class Link:
    """Requests and answers. ``start_agent`` returns when an agent serves, or raises; ``accept``
    is called with the welcome of each agent that answers, and raises for one not to be used.
    ``qos`` says what this client calls itself for the QoS policy, and how long it waits."""

    def __init__(
        self,
        *,
        socket_path: str,
        mounts: tuple[MountSettings, ...],
        profiles: tuple[ProfileSettings, ...],
        start_agent: Callable[[], None],
        accept: Callable[[wire.Welcome], None],
        qos: QosSettings = QosSettings(),
    ) -> None:
        # Constant after construction
        self._socket_path = socket_path
        self._hello = wire.frame(
            wire.Hello(__version__, os.getpid(), mounts, profiles, qos.name, qos.max_wait_s)
        )
        self._start_agent = start_agent
        self._accept = accept
        # Guarded by _lock (list operations are atomic by themselves)
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self.welcome: wire.Welcome | None = None

    # -- connections ------------------------------------------------------------------------

    def _connect(self, within_s: float = ANSWER_TIMEOUT_S) -> socket.socket:
        """Return a greeted connection. Raises OSError where nobody listens, and what the agent
        says against us or we against it."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            connect(sock, self._socket_path)
            wait_in_kernel(sock, within_s)
            sock.sendall(self._hello)
            answer = receive(sock)
            if isinstance(answer, wire.Failure):
                raise wire.error_of(answer)
            assert isinstance(answer, wire.Welcome)
            if self.welcome is None or self.welcome.agent_pid != answer.agent_pid:
                self._accept(answer)
        except BaseException:
            sock.close()
            raise
        self.welcome = answer
        return sock

    def _take(self) -> socket.socket:
        """Return a connection, starting an agent where none listens. Raises AgentUnavailable."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with contextlib.suppress(OSError, EOFError):
            return self._connect()
        with self._lock:
            deadline = time.monotonic() + START_TIMEOUT_S
            for attempt in range(1, START_ATTEMPTS + 1):
                # Again and again: the agent that was faster than ours may be one that is leaving,
                # and ours may have been killed before it could say a word.
                sock: socket.socket | None = None
                try:
                    with self._alone(deadline):
                        sock = self._connect_within(0.0, deadline)
                        if sock is None:
                            self._start_agent()
                            sock = self._connect_within(RESTART_S, deadline)
                except AgentUnavailable:
                    if attempt >= SILENT_ATTEMPTS or time.monotonic() > deadline:
                        raise
                if sock is not None:
                    return sock
            raise AgentUnavailable(
                "no agent stays", path=self._socket_path, remedy="see agent.log beside the socket"
            )

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        """Be the one process of the node that starts an agent: of the many whose agent has just
        died, the others wait and find the new one. Goes on regardless past the deadline."""
        try:
            log = os.path.dirname(self._socket_path) + "/agent.log"
            fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield  # nobody has ever started one here; or the start says what is wrong with it
            return
        try:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL_S)
            yield
        finally:
            os.close(fd)

    def _connect_within(self, seconds: float, deadline: float) -> socket.socket | None:
        """Return a connection, None where nobody listens for so long. Raises AgentUnavailable
        past the deadline, and what the agent says against us."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self._connect()
            except (FormatError, ConfigError):
                raise
            except (OSError, EOFError) as error:
                now = time.monotonic()
                if now > deadline:
                    raise AgentUnavailable(
                        f"no agent answers: {error}",
                        path=self._socket_path,
                        remedy="see agent.log in the cache directory",
                    ) from error
                if now > until:
                    return None
                time.sleep(POLL_S)

    def ensure(self) -> None:
        """Make sure that an agent serves."""
        self._idle.append(self._take())

    def request(
        self, message: wire.Request, kind: type[R], *, meanwhile: Callable[[], None] | None = None
    ) -> R:
        """Send one request and return its answer, which is of ``kind``. ``meanwhile`` is called
        every MEANWHILE_S for as long as that takes.

        Raises the agent's error; AgentUnavailable where the agent dies and a repetition could do
        the thing twice, or where no agent can be started.
        """
        frame = wire.frame(message)
        for attempt in range(ATTEMPTS):
            sock = self._take()
            self._busy.add(sock)
            sent = False
            try:
                sock.sendall(frame)
                sent = True
                if meanwhile is not None:
                    _wait_with(sock, meanwhile)
                answer = receive(sock)
            except (TimeoutError, BlockingIOError) as error:
                sock.close()
                raise AgentUnavailable(
                    f"the agent has not answered {type(message).__name__} for "
                    f"{ANSWER_TIMEOUT_S:.0f} s",
                    path=getattr(message, "path", ""),
                    remedy="it is stopped or wedged: tiercache agent stop, then try again",
                ) from error
            except (OSError, EOFError) as error:
                sock.close()
                self._drop_idle()
                # A frame that was not sent whole was not acted upon; nor was one that the agent
                # left unread at its end, at least in part, which is what a reset says here.
                sent = sent and not isinstance(error, ConnectionResetError)
                if (sent and isinstance(message, _ONCE)) or attempt == ATTEMPTS - 1:
                    raise AgentUnavailable(
                        f"the agent went away during {type(message).__name__}: {error}",
                        path=getattr(message, "path", ""),
                    ) from error
                continue
            except BaseException:
                # Interrupted between question and answer: this connection is out of step.
                sock.close()
                raise
            finally:
                self._busy.discard(sock)
            self._idle.append(sock)
            if isinstance(answer, wire.Failure):
                raise wire.error_of(answer)
            assert isinstance(answer, kind), f"{type(answer).__name__} for {kind.__name__}"
            return answer
        raise AssertionError("unreachable")

    def ask(self, message: wire.Request, kind: type[R], *, within_s: float) -> R | None:
        """Return the answer of the agent that serves now; None where none does, or where it takes
        more than ``within_s`` to greet or to answer. Starts none, and never raises for it."""
        while True:
            try:
                sock, is_new = self._idle.pop(), False
            except IndexError:
                found, is_new = self._reached(within_s), True
                if found is None:
                    return None
                sock = found
            try:
                wait_in_kernel(sock, within_s)
                sock.sendall(wire.frame(message))
                answer = receive(sock)
            except (OSError, EOFError) as error:
                sock.close()
                if is_new or isinstance(error, TimeoutError | BlockingIOError):
                    return None
                continue  # the connection was to an agent before
            except BaseException:
                sock.close()
                raise
            self._keep(sock)
            return answer if isinstance(answer, kind) else None

    def find(self, *, within_s: float) -> bool:
        """Return whether an agent serves, with a connection to it idle. Starts none."""
        sock = self._reached(within_s)
        if sock is not None:
            self._keep(sock)
        return sock is not None

    def is_wedged(self, *, within_s: float) -> bool:
        """Return whether somebody listens who does not greet within so long. Starts no agent."""
        try:
            self._keep(self._connect(within_s))
        except (TimeoutError, BlockingIOError):
            return True
        except (OSError, EOFError, TiercacheError):
            pass  # nobody, or one that has something against us, which the next request says
        return False

    def _reached(self, within_s: float) -> socket.socket | None:
        """Return a new connection whose calls end after so long."""
        try:
            return self._connect(within_s)
        except (OSError, EOFError, TiercacheError):
            return None  # what an agent has against us is for the next request to say

    def _keep(self, sock: socket.socket) -> None:
        wait_in_kernel(sock, ANSWER_TIMEOUT_S)
        self._idle.append(sock)

    def tell(self, message: wire.Request) -> bool:
        """Send what has no answer, if a connection is idle; return whether it was sent. Never
        starts an agent, never raises for one that is gone, never waits for one that does not
        read."""
        try:
            sock = self._idle.pop()
        except IndexError:
            return False
        frame = wire.frame(message)
        try:
            sent = sock.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            sock.close()
            return False
        if 0 < sent < len(frame):
            sock.close()  # nothing can follow half a message
        else:
            self._idle.append(sock)
        return sent == len(frame)

    def tell_best_effort(self, message: wire.Request) -> None:
        """Send a request whose outcome matters to nobody any more."""
        with contextlib.suppress(TiercacheError, OSError):
            self.request(message, wire.Done)

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        self._drop_idle()

    def abandon(self) -> None:
        """In a forked child: close its copies of all connections, those in use by the parent's
        threads too, or the agent would go on seeing the parent after it has died."""
        self._drop_idle()
        for sock in self._busy:
            sock.close()


def connect(sock: socket.socket, path: str) -> None:
    """Connect to a socket file whose path may be longer than the kernel's 107 bytes.

    Waits while the listener's queue is full, for CONNECT_TIMEOUT_S at most.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        while True:
            try:
                sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
    finally:
        os.close(folder)


def _wait_with(sock: socket.socket, meanwhile: Callable[[], None]) -> None:
    """Return when an answer begins to arrive. Raises TimeoutError after ANSWER_TIMEOUT_S."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if poll.poll(MEANWHILE_S * 1000):
        return
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not poll.poll(MEANWHILE_S * 1000):
        if time.monotonic() > deadline:
            raise TimeoutError
        meanwhile()


def wait_in_kernel(sock: socket.socket, seconds: float) -> None:
    """Set the socket's time-outs in the kernel: Python's own cost a poll before every call, with
    the interpreter given away and taken back around each. What times out raises BlockingIOError.
    """
    sock.setblocking(True)
    limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def receive(sock: socket.socket) -> wire.Response:
    """Read one response. Raises EOFError when the peer has gone.

    A connection carries one answer at a time, so what comes is taken in one call where it fits
    the thread's buffer.
    """
    buffer = _buffer()
    got = _some(sock, buffer)
    while got < wire.HEADER.size:
        got += _some(sock, buffer[got:])
    total = wire.HEADER.size + wire.parse_header(buffer[: wire.HEADER.size])
    if total > len(buffer):
        whole = memoryview(bytearray(total))
        whole[:got] = buffer[:got]
        buffer = whole
    while got < total:
        got += _some(sock, buffer[got:total])
    answer: wire.Response = wire.decode_response(buffer[wire.HEADER.size : total])
    return answer


def _some(sock: socket.socket, view: memoryview) -> int:
    got = sock.recv_into(view)
    if not got:
        raise EOFError("the agent closed the connection")
    return got


def _buffer() -> memoryview:
    buffer: memoryview | None = getattr(_buffers, "received", None)
    if buffer is None:
        buffer = _buffers.received = memoryview(bytearray(RECEIVE_BYTES))
    return buffer
