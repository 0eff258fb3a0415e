"""The emulators start, serve, survive a restart, pause, and never outlive their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiercache.testing.emulators import (
    Azurite,
    Emulator,
    EmulatorFailed,
    EmulatorMissing,
    FakeGcs,
    MotoS3,
    SeaweedS3,
)
from tiercache.testing.keeper import shared_server
from tiercache.testing.object_servers import AzureServer, GcsServer, ObjectServer, S3Server

ALL = (SeaweedS3, Azurite, FakeGcs, MotoS3)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture(params=["s3", "azure", "gcs", "moto_s3"])
def server(request: pytest.FixtureRequest) -> ObjectServer:
    found: ObjectServer = request.getfixturevalue(request.param)
    return found


def test_stores_lists_and_deletes(
    server: ObjectServer, new_bucket: Callable[[ObjectServer], str]
) -> None:
    bucket = new_bucket(server)
    server.make_bucket(bucket)  # making it again is no error
    server.put(bucket, "one/ü %2F?#&+.bin", b"first")
    assert server.put_many(bucket, ((f"many/{n:03}", bytes([n])) for n in range(100))) == 100
    assert server.get(bucket, "one/ü %2F?#&+.bin") == b"first"
    assert server.keys(bucket, "many/") == [f"many/{n:03}" for n in range(100)]
    server.delete(bucket, "one/ü %2F?#&+.bin")
    assert len(server.keys(bucket)) == 100


def test_gives_profile_and_credentials(server: ObjectServer) -> None:
    profile = server.profile("origin")
    assert profile.name == "origin"
    assert profile.endpoint == server.endpoint
    assert server.profile(endpoint="http://127.0.0.1:1").endpoint == "http://127.0.0.1:1"
    assert all(server.env.values())
    assert server.url("bucket", "a/b") == f"{server.scheme}://bucket/a/b"


def test_many_buckets_fit(s3: S3Server, new_bucket: Callable[[ObjectServer], str]) -> None:
    for _ in range(12):  # by its defaults SeaweedFS is full at the third
        s3.put(new_bucket(s3), "key", b"data")


def test_only_open_buckets_are_readable_by_anyone(s3: S3Server) -> None:
    for bucket in ("open-bucket", "closed-bucket"):
        s3.make_bucket(bucket)
        s3.put(bucket, "a/key", b"data")
    with urllib.request.urlopen(f"{s3.endpoint}/open-bucket/a/key", timeout=10) as answer:
        assert answer.read() == b"data"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{s3.endpoint}/closed-bucket/a/key", timeout=10)


@pytest.fixture(params=ALL, ids=lambda kind: kind.name)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with request.param() as started:
        yield started


def test_life(emulator: Emulator) -> None:
    """One start serves several checks: starting is what costs."""
    emulator.make_bucket("bucket")
    emulator.put("bucket", "key", b"data")
    endpoint, directory, pid = emulator.endpoint, emulator.directory, emulator.pid
    assert directory is not None

    emulator.pause()
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
    emulator.resume()
    assert emulator.get("bucket", "key") == b"data"

    if emulator.keeps_data:
        emulator.restart()
        assert emulator.get("bucket", "key") == b"data"
        emulator.kill()
        emulator.start()
        assert emulator.get("bucket", "key") == b"data"
        assert emulator.endpoint == endpoint
    else:
        with pytest.raises(RuntimeError, match="memory"):
            emulator.restart()

    emulator.pause()  # a paused server ends as well
    pid = emulator.pid
    emulator.close()
    assert not is_running(pid)
    assert not directory.exists()
    assert not [name for port in emulator.ports for name in Path("/tmp").glob(f"*-{port}.sock")]


OWNER = """
import sys
from tiercache.testing.emulators import FakeGcs
with FakeGcs() as server:
    print(server.pid, server.directory, flush=True)
    sys.stdin.read()
"""


def test_dies_with_its_owner(gcs: GcsServer) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        pid_text, directory = owner.stdout.readline().split()
        assert is_running(int(pid_text))
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(int(pid_text)) and not Path(directory).exists())


SHARER = """
import sys
from pathlib import Path
from tiercache.testing.keeper import shared_server
with shared_server("gcs", Path(sys.argv[1])) as server:
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""


def answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/storage/v1/b", timeout=5):
            return True
    except OSError:
        return False


def test_is_shared_until_the_last_user_is_gone(gcs: GcsServer, tmp_path: Path) -> None:
    users = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    endpoints = {user.stdout.readline().strip() for user in users if user.stdout}
    assert len(endpoints) == 1
    endpoint = endpoints.pop()
    for user in users[:2]:
        user.kill()
        user.communicate(timeout=10)
    with shared_server("gcs", tmp_path) as again:
        assert again.endpoint == endpoint
    assert answers(endpoint)
    users[2].communicate(timeout=20)  # closes its input: it leaves in good order
    assert not answers(endpoint), "the last user left before the server did"


def test_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Azurite, "_folders", staticmethod(lambda: [tmp_path]))
    with pytest.raises(EmulatorMissing, match="make emulators"):
        Azurite().start()


class Broken(FakeGcs):
    name = "broken"

    def command(self, directory: Path) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no such thing as a start')"]


def test_shows_the_log_of_a_server_that_fell() -> None:
    emulator = Broken()
    with pytest.raises(EmulatorFailed, match="no such thing"):
        emulator.start()
    assert emulator.directory is None


def test_azure_account_is_in_the_endpoint(azure: AzureServer) -> None:
    assert azure.endpoint.endswith("/devstoreaccount1")
    assert os.environ["AZURE_STORAGE_ACCOUNT_NAME"] == "devstoreaccount1"
