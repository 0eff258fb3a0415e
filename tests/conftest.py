"""Emulators shared by the whole test run, an environment of the tests' own, and seeds."""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings

from tiercache.testing.emulators import EmulatorMissing
from tiercache.testing.keeper import shared_server
from tiercache.testing.object_servers import AzureServer, GcsServer, ObjectServer, S3Server

SEED_VARIABLE = "TIERCACHE_TEST_SEED"
FOREIGN_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "TIERCACHE_")
KEPT_VARIABLES = {SEED_VARIABLE, "TIERCACHE_AZURITE_DIR", "TIERCACHE_HISTORIES"}

settings.register_profile(
    "tiercache",
    deadline=None,  # two cores shared by several workers make single examples slow
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tiercache")


def pytest_configure(config: pytest.Config) -> None:
    # xdist workers inherit the controller's environment, and so its seed.
    os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(2**32)))
    # Started in the background of a shell without job control, a process ignores Ctrl-C, and so
    # would every program that a test starts in order to interrupt it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    return f"{SEED_VARIABLE}={os.environ[SEED_VARIABLE]}"


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's credentials, configuration and caches; hand out the emulators' keys."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(FOREIGN_PREFIXES) and name not in KEPT_VARIABLES:
                patch.delenv(name)
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "AWS_CONFIG_FILE"):
            patch.setenv(name, str(home / name.lower()))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
        for name, value in S3Server("").env.items():
            patch.setenv(name, value)
        for name, value in AzureServer("").env.items():
            if name != "AZURE_STORAGE_CONNECTION_STRING":  # it names the endpoint
                patch.setenv(name, value)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield


@pytest.fixture(scope="session")
def seed() -> int:
    """The run's seed; a failure prints it in the header, and the variable repeats it."""
    return int(os.environ[SEED_VARIABLE])


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the whole run, the same in every xdist worker."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def _shared(kind: str, directory: Path) -> Iterator[ObjectServer]:
    try:
        server = shared_server(kind, directory)
        with server as started:
            yield started
    except EmulatorMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def s3(run_directory: Path) -> Iterator[S3Server]:
    """SeaweedFS, shared by the run: make a bucket of your own (fixture ``new_bucket``)."""
    with _shared("s3", run_directory) as server:
        yield cast(S3Server, server)


@pytest.fixture(scope="session")
def moto_s3(run_directory: Path) -> Iterator[S3Server]:
    """moto, shared by the run: takes keys of every shape and checks no signature."""
    with _shared("moto_s3", run_directory) as server:
        yield cast(S3Server, server)


@pytest.fixture(scope="session")
def azure(run_directory: Path) -> Iterator[AzureServer]:
    """Azurite, shared by the run."""
    with _shared("azure", run_directory) as server:
        yield cast(AzureServer, server)


@pytest.fixture(scope="session")
def gcs(run_directory: Path) -> Iterator[GcsServer]:
    """fake-gcs-server, shared by the run; gcsfs finds it through STORAGE_EMULATOR_HOST."""
    with _shared("gcs", run_directory) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield cast(GcsServer, server)


@pytest.fixture
def new_bucket() -> Callable[[ObjectServer], str]:
    """Return a function that makes a bucket nobody else uses and returns its name."""
    return lambda server: server.make_bucket(f"test-{uuid.uuid4().hex[:16]}")
