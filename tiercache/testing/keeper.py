"""One emulator shared by many test processes, kept for as long as any of them lives.

``python -m tiercache.testing.keeper KIND NAME`` runs the emulator and listens on an abstract
Unix socket. Every user holds a connection: the kernel closes it when its process dies, however
it dies, so the count of users is never wrong. When the last one leaves, the emulator is stopped,
and only then does that user see its connection close.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tiercache.testing.emulators import (
    Azurite,
    Emulator,
    EmulatorFailed,
    EmulatorMissing,
    FakeGcs,
    MotoS3,
    SeaweedS3,
)
from tiercache.testing.object_servers import AzureServer, GcsServer, ObjectServer, S3Server

KINDS: dict[str, tuple[type[Emulator], type[ObjectServer]]] = {
    "s3": (SeaweedS3, S3Server),
    "azure": (Azurite, AzureServer),
    "gcs": (FakeGcs, GcsServer),
    "moto_s3": (MotoS3, S3Server),
}
START_TIMEOUT_S = 90.0  # three attempts of an emulator's own time-out
STOP_TIMEOUT_S = 15.0
FIRST_USER_TIMEOUT_S = 30.0


@contextlib.contextmanager
def shared_server(kind: str, directory: Path) -> Iterator[ObjectServer]:
    """Yield the server of this kind that all users of ``directory`` share, starting it if need
    be. Raises EmulatorMissing or EmulatorFailed. The last to leave waits for its end."""
    KINDS[kind][0].find()
    connection, endpoint = _join(kind, directory)
    with connection:
        yield KINDS[kind][1](endpoint)
        connection.settimeout(STOP_TIMEOUT_S)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.recv(1)


def _join(kind: str, directory: Path) -> tuple[socket.socket, str]:
    digest = hashlib.sha256(f"{os.getuid()} {directory.resolve()}".encode()).hexdigest()
    name = f"tiercache-{kind}-{digest[:16]}"
    with (directory / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = directory / f"{kind}.log"
        keeper: subprocess.Popen[bytes] | None = None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            joined = _connect(name)
            if joined is not None:
                return joined
            if keeper is not None and keeper.poll() is not None:
                break
            if keeper is None:
                keeper = _spawn(kind, name, log)
            time.sleep(0.02)
    raise EmulatorFailed(f"the keeper of {kind} did not come up:\n{log.read_text()[-4000:]}")


def _connect(name: str) -> tuple[socket.socket, str] | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(START_TIMEOUT_S)
    try:
        connection.connect("\0" + name)
        line = connection.makefile("rb", buffering=0).readline()
    except OSError:
        line = b""
    if not line:
        connection.close()
        return None
    return connection, json.loads(line)["endpoint"]


def _spawn(kind: str, name: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tiercache.testing.keeper", kind, name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def main(arguments: list[str]) -> int:
    """Keep one emulator until its last user leaves."""
    kind, name = arguments
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + name)
    except OSError:
        # A keeper of this name is about to end; whoever started us tries again.
        time.sleep(0.1)
        return 1
    with KINDS[kind][0]() as emulator:
        listener.listen(1024)
        last = _serve_users(listener, json.dumps({"endpoint": emulator.endpoint}) + "\n")
        listener.close()
    if last is not None:
        last.close()
    return 0


def _serve_users(listener: socket.socket, greeting: str) -> socket.socket | None:
    """Greet users until none is left; return the last one's connection, still open."""
    users: list[socket.socket] = []
    while True:
        timeout_s = None if users else FIRST_USER_TIMEOUT_S
        ready, _, _ = select.select([listener, *users], [], [], timeout_s)
        if not ready:
            return None
        for source in ready:
            if source is listener:
                user, _ = listener.accept()
                with contextlib.suppress(ConnectionError):
                    user.sendall(greeting.encode())
                users.append(user)
            elif len(users) == 1:
                return source
            else:
                users.remove(source)
                source.close()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (EmulatorMissing, EmulatorFailed) as error:
        sys.exit(str(error))
