"""What lies in docker/ cannot be run here, but it can be read: every reference in it must hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

from tests.docs.markdown import ROOT
from tiercache.cli.program import COMMANDS
from tiercache.config.loading import load
from tiercache.testing.emulators import Azurite, EmulatorMissing, FakeGcs, SeaweedS3
from tiercache.testing.object_servers import AZURE_ACCOUNT, AZURE_KEY, S3_ACCESS_KEY, S3_SECRET_KEY

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose"
UNIT = DOCKER / "systemd" / "tiercache-agent@.service"
USER_ID = 10001


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DOCKER / "kubernetes" / "daemonset.yaml").read_text())
    return {document["kind"]: document for document in documents}


def is_command(words: list[str]) -> bool:
    """Return whether ``tiercache WORDS`` names a command that there is."""
    entry = COMMANDS.get(words[0])
    return words[1] in entry[1] if isinstance(entry, tuple) else entry is not None


# Dockerfile


def test_dockerfile_copies_what_exists_and_runs_a_command() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    command = re.search(r"^CMD \[(.+)\]$", text, re.MULTILINE)
    assert command and is_command(re.findall(r'"([^"]+)"', command[1]))
    assert f"ARG UID={USER_ID}" in text and re.search(r"^USER tiercache$", text, re.MULTILINE)


# compose


def test_compose_refers_to_what_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"s3", "azure", "gcs", "seed", "agent", "job"}
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"
        assert set(service.get("networks", ())) <= set(compose["networks"]), name
        assert set(service.get("depends_on", ())) <= set(services), name
        assert "image" in service


def test_compose_job_shares_process_numbers_and_has_no_secrets(compose: dict[str, Any]) -> None:
    agent, job = compose["services"]["agent"], compose["services"]["job"]
    assert job["pid"] == "service:agent"
    assert not [name for name in job["environment"] if "KEY" in name or "SECRET" in name]
    given = agent["environment"]
    assert given["AWS_ACCESS_KEY_ID"] == S3_ACCESS_KEY
    assert given["AWS_SECRET_ACCESS_KEY"] == S3_SECRET_KEY
    assert given["AZURE_STORAGE_ACCOUNT_KEY"] == AZURE_KEY


def test_compose_configuration_parses(compose: dict[str, Any]) -> None:
    loaded = load(str(COMPOSE / "tiercache.toml"), environ={})
    hosts = {
        profile.endpoint.split("//")[1].partition(":")[0]
        for profile in loaded.settings.profiles.values()
        if profile.endpoint
    }
    assert hosts == {"s3", "gcs", "azure"} <= set(compose["services"])


def test_compose_uses_the_versions_that_are_tested(compose: dict[str, Any]) -> None:
    azurite = re.search(r"^AZURITE := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert azurite and f"--package={azurite[1]}" in compose["services"]["azure"]["command"]


@pytest.fixture
def origins(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of seed, agent and job, with emulators in place of the containers."""
    with ExitStack() as stack:
        try:
            s3 = stack.enter_context(SeaweedS3())
            azure = stack.enter_context(Azurite())
            gcs = stack.enter_context(FakeGcs())
        except EmulatorMissing as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        config = (COMPOSE / "tiercache.toml").read_text()
        for there, here in (
            ("http://s3:8333", s3.endpoint),
            ("http://gcs:4443", gcs.endpoint),
            (f"http://azure:10000/{AZURE_ACCOUNT}", azure.endpoint),
            ('"/cache"', f'"{tmp_path}/cache"'),
        ):
            assert there in config
            config = config.replace(there, here)
        file = tmp_path / "tiercache.toml"
        file.write_text(config)
        yield {
            **os.environ,
            **s3.env,
            **azure.env,
            "S3_ENDPOINT": s3.endpoint,
            "GCS_ENDPOINT": gcs.endpoint,
            "AZURE_ENDPOINT": azure.endpoint,
            "TIERCACHE_CONFIG": str(file),
            "TIERCACHE_AGENT__IDLE_TIMEOUT": "5s",
        }


@pytest.mark.slow
@pytest.mark.emulator
def test_compose_scripts_run(origins: dict[str, str]) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env=origins,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run(str(COMPOSE / "seed.py"))
    try:
        said = run(str(COMPOSE / "job.py"))
    finally:
        run("-m", "tiercache", "agent", "stop")
    for mount, count in (("/images", 4), ("/tables", 4), ("/samples", 200)):
        assert f"{mount}: {count} objects" in said, said


# Kubernetes


def test_kubernetes_documents_are_whole(kubernetes: dict[str, dict[str, Any]]) -> None:
    assert set(kubernetes) == {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet", "Job"}
    for document in kubernetes.values():
        assert document["apiVersion"] and document["metadata"]["name"]


def test_kubernetes_configuration_parses(
    kubernetes: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(kubernetes["ConfigMap"]["data"]["config.toml"])
    directory = load(str(file), environ={}).settings.cache.dir
    for kind in ("DaemonSet", "Job"):
        for container in kubernetes[kind]["spec"]["template"]["spec"]["containers"]:
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert any(directory.startswith(f"{mount}/") for mount in mounts), kind


def test_kubernetes_pods_hold_together(kubernetes: dict[str, dict[str, Any]]) -> None:
    selector = kubernetes["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert selector == kubernetes["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("DaemonSet", "Job"):
        pod = kubernetes[kind]["spec"]["template"]["spec"]
        assert pod["hostPID"] is True
        assert pod["securityContext"]["runAsUser"] == USER_ID
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_kubernetes_commands_exist(kubernetes: dict[str, dict[str, Any]]) -> None:
    agent = kubernetes["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
    assert is_command(agent["args"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = agent[probe]["exec"]["command"]
        assert command[0] == "tiercache" and is_command(command[1:])
    job = kubernetes["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert job[0] == "tiercache" and is_command(job[1:])


# systemd


def test_systemd_unit_is_valid(tmp_path: Path) -> None:
    text = UNIT.read_text()
    command = re.search(r"^ExecStart=(\S+) (.+)$", text, re.MULTILINE)
    assert command and is_command(command[2].split())
    if shutil.which("systemd-analyze") is None:
        return
    # It looks for the program and the mount point, which are not on this machine.
    program = shutil.which("true")
    assert program is not None
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(command[1], program))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 and "tiercache-agent" not in done.stdout, done.stdout
