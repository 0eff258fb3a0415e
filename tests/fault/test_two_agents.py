"""Several agents and configurations for one cache directory; directories that are not ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tiercache
from tests.fault.cache_rig import (
    ROOT,
    FileOrigin,
    agent_pid,
    cache_settings,
    end,
    is_agent,
    kill_agent,
    namespace,
    start_script,
    wait_for,
)
from tests.fault.origin_rig import agent_pids
from tests.fault.other_user import NOBODY, as_root, run_as_nobody
from tiercache.client.link import connect
from tiercache.errors import AccessDenied, ConfigError
from tiercache.settings import (
    AgentSettings,
    CacheSettings,
    FreeSpaceRatio,
    MountSettings,
    ProfileSettings,
    Settings,
    TotalBytes,
)
from tiercache.testing.datasets import object_bytes
from tiercache.testing.object_servers import ObjectServer, S3Server
from tiercache.units import MIB

AGENTS = 8
DATA = object_bytes("two-agents", 200_000)  # small: one GET fetches it


@pytest.fixture
def origin(tmp_path: Path) -> FileOrigin:
    made = FileOrigin(tmp_path / "origin")
    made.put("a", DATA)
    return made


@pytest.fixture
def settings(tmp_path: Path, origin: FileOrigin) -> Iterator[Settings]:
    found = cache_settings(tmp_path / "c", origin.url)
    yield found
    if os.path.isdir(found.cache.dir):
        kill_agent(found.cache.dir)


def with_mount(settings: Settings, mount: MountSettings) -> Settings:
    return msgspec.structs.replace(settings, mounts=(mount,))


# -- one serves -----------------------------------------------------------------------------


def test_of_agents_started_at_once_exactly_one_serves(settings: Settings) -> None:
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "tiercache.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        for _ in range(AGENTS)
    ]
    try:
        for agent in agents:
            assert agent.stdin is not None
            agent.stdin.write(msgspec.json.encode(settings))
            agent.stdin.close()
        said = [msgspec.json.decode(a.stdout.readline())["state"] for a in agents if a.stdout]
        assert sorted(said) == ["busy"] * (AGENTS - 1) + ["ready"]
        serving = agents[said.index("ready")]
        for agent in agents:
            if agent is not serving:
                assert agent.wait(timeout=20) == 0
        assert agent_pids(settings) == [serving.pid] == [agent_pid(settings.cache.dir)]
        with tiercache.connect(settings) as ns:
            assert ns.read("/m/a") == DATA
            assert ns.status()["agent"]["pid"] == serving.pid
            ns.shut_down_agent()
        assert serving.wait(timeout=20) == 0
    finally:
        for agent in agents:
            end(agent)


def test_clients_that_come_at_once_all_work_with_one_agent(settings: Settings) -> None:
    script = (
        "print(hashlib.sha256(ns.read('/m/a')).hexdigest(), ns.status()['agent']['pid'], "
        "flush=True)\n"
        "sys.stdin.read()\n"
    )
    clients = [start_script(script, settings, stdin=subprocess.PIPE) for _ in range(AGENTS)]
    try:
        lines = {client.stdout.readline() for client in clients if client.stdout}
        assert len(lines) == 1, lines  # one digest, one agent
        (pid,) = agent_pids(settings)
        assert int(lines.pop().split()[1]) == pid
        with tiercache.connect(settings) as ns:
            (asked,) = ns.status()["origins"]
            assert asked["requests"]["get"] == 1
    finally:
        for client in clients:
            end(client)


# -- configurations -------------------------------------------------------------------------


def test_configurations_that_name_one_origin_share_its_data(
    settings: Settings, s3: S3Server, new_bucket: Callable[[ObjectServer], str]
) -> None:
    bucket = new_bucket(s3)
    s3.put(bucket, "deep/b", DATA)
    profile = s3.profile("p")
    profiles = {"default": ProfileSettings(), "p": profile}
    settings = msgspec.structs.replace(settings, profiles=profiles)
    one = with_mount(settings, MountSettings(path="/one", origin=s3.url(bucket), profile="p"))
    two = with_mount(
        settings, MountSettings(path="/two", origin=s3.url(bucket, "deep"), profile="p")
    )
    with namespace(one) as ns, tiercache.connect(two) as ns2:
        assert ns.read("/one/deep/b") == DATA
        assert ns2.read("/two/b") == DATA
        assert ns2.read(s3.url(bucket, "deep/b")) == DATA
        (asked,) = ns.status()["origins"]
        assert asked["requests"]["get"] == 1
        assert ns.locate("/one/deep/b") == ns2.locate("/two/b")
        assert [mount.path for mount in ns2.mounts()] == ["/one", "/two"]
        ns.evict("/one/deep/b")
        assert ns2.cached_bytes("/two/b") == 0


def contradictions(settings: Settings) -> dict[str, Settings]:
    (mount,) = settings.mounts
    replace = msgspec.structs.replace
    return {
        "/m": with_mount(settings, replace(mount, origin="file:///another")),
        "ttl": with_mount(settings, replace(mount, ttl_s=1.0)),
        "profile 'default'": replace(
            settings, profiles={"default": ProfileSettings(region="mars-north-1")}
        ),
    }


@pytest.mark.parametrize("what", ["/m", "ttl", "profile 'default'"])
def test_a_configuration_that_contradicts_the_agents_is_refused(
    settings: Settings, what: str
) -> None:
    with namespace(settings) as ns:
        with pytest.raises(ConfigError) as caught:
            tiercache.connect(contradictions(settings)[what])
        assert ("/m" if what == "ttl" else what) in caught.value.message
        assert "tiercache agent stop" in caught.value.remedy
        assert ns.read("/m/a") == DATA  # the one that was first goes on
        with tiercache.connect(settings) as ns2:
            assert ns2.read("/m/a") == DATA


def with_cache(settings: Settings, **values: Any) -> Settings:
    cache = msgspec.structs.replace(settings.cache, **values)
    return msgspec.structs.replace(settings, cache=cache)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"limit": TotalBytes(128 * MIB)},
            r"capacity is 128 MiB .* here, .* is 64.0 MiB .* agent",
        ),
        ({"limit": FreeSpaceRatio(0.25)}, r"cache\.free_space is 25% here, cache\.capacity is 64"),
        ({"memory_bytes": 65 * MIB}, r"cache\.memory is 65.0 MiB .* here, 64.0 MiB .* agent"),
    ],
)
def test_limits_that_the_running_agent_does_not_keep_are_refused(
    settings: Settings, values: dict[str, Any], message: str
) -> None:
    with namespace(settings) as ns:
        with pytest.raises(ConfigError, match=message) as caught:
            tiercache.connect(with_cache(settings, **values))
        assert caught.value.path == settings.cache.dir
        assert "tiercache agent stop" in caught.value.remedy
        assert ns.read("/m/a") == DATA


def test_a_client_that_names_no_limits_takes_those_of_the_agent(settings: Settings) -> None:
    default = CacheSettings()
    silent = with_cache(settings, limit=default.limit, memory_bytes=default.memory_bytes)
    with namespace(settings), tiercache.connect(silent) as ns:
        assert ns.status()["cache"]["capacity_bytes"] == 64 * MIB
        assert ns.read("/m/a") == DATA


def test_what_the_running_agent_does_otherwise_without_harm_is_said(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    agent = AgentSettings(metrics_address="127.0.0.1:9", log_level="debug", idle_timeout_s=1.0)
    other = msgspec.structs.replace(settings, agent=agent)
    with namespace(settings), tiercache.connect(other) as ns:
        assert ns.read("/m/a") == DATA
    said = [record.getMessage() for record in caplog.records if record.name == "tiercache.client"]
    assert [message.split()[0] for message in said] == ["agent.metrics_address", "agent.log_level"]
    assert all("tiercache agent stop" in message for message in said)


# -- coming and going -----------------------------------------------------------------------


def serving_pid(settings: Settings) -> int:
    """Return the process that listens on the directory's socket, 0 for none."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            connect(sock, str(Path(settings.cache.dir) / "agent.sock"))
        except OSError:
            return 0
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_clients_of_an_agent_that_leaves_go_on_with_the_next(
    settings: Settings, origin: FileOrigin, number: signal.Signals
) -> None:
    """Misses from several threads, and newcomers, while one agent after the other goes."""
    objects = origin.fill("leaving", [300_000] * 40, prefix="l/")
    left = list(objects)
    wrong: list[str] = []
    ending = threading.Event()

    def work() -> None:
        while left and not ending.is_set():
            key = left.pop()
            with tiercache.connect(settings) as newcomer:
                for ns_ in (ns, newcomer):
                    if ns_.read(f"/m/{key}") != objects[key]:
                        wrong.append(key)

    with namespace(settings) as ns:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        pids = set[int]()
        try:
            for _ in range(4):
                wait_for(lambda: serving_pid(settings) not in {0, *pids} or not left, timeout_s=20)
                pid = serving_pid(settings)
                if pid and pid not in pids:
                    pids.add(pid)
                    os.kill(pid, number)
        finally:
            for thread in threads:
                thread.join(60)
                ending.set()
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert not left
        assert len(pids) > 1


def test_an_idle_agent_leaves_and_what_it_cached_stays(settings: Settings) -> None:
    agent = msgspec.structs.replace(settings.agent, idle_timeout_s=0.5)
    settings = msgspec.structs.replace(settings, agent=agent)
    with tiercache.connect(settings) as ns:
        assert ns.read("/m/a") == DATA
        first = agent_pid(settings.cache.dir)
        # Somebody is connected for twice the time-out: it stays.
        assert not waited(lambda: not is_agent(first, settings.cache.dir), 1.2)
    wait_for(lambda: not is_agent(first, settings.cache.dir))
    assert not (Path(settings.cache.dir) / "agent.sock").exists()
    with namespace(settings) as ns:
        assert agent_pid(settings.cache.dir) != first
        assert ns.cached_bytes("/m/a") == len(DATA)
        assert ns.read("/m/a") == DATA
        assert all(not asked["requests"]["get"] for asked in ns.status()["origins"])


def waited(condition: object, seconds: float) -> bool:
    """Return whether the condition came to hold within so many seconds."""
    assert callable(condition)
    try:
        wait_for(condition, timeout_s=seconds)
    except AssertionError:
        return False
    return True


def test_an_embedded_engine_and_an_agent_never_serve_at_once(settings: Settings) -> None:
    with namespace(settings) as ns, tiercache.connect(settings, embedded=True) as ns2:
        assert ns2.status()["agent"]["pid"] == ns.status()["agent"]["pid"] != os.getpid()
        assert ns2.read("/m/a") == DATA
    with tiercache.connect(settings, embedded=True) as ns, tiercache.connect(settings) as ns2:
        assert ns2.status()["agent"]["pid"] == ns.status()["agent"]["pid"] == os.getpid()
        assert ns2.read("/m/a") == DATA


# -- directories that are not ours ----------------------------------------------------------


def refusal(settings: Settings, *, embedded: bool) -> Exception:
    try:
        tiercache.connect(settings, embedded=embedded).close()
    except (ConfigError, AccessDenied) as error:
        return error
    raise AssertionError("was taken for a cache")


@pytest.mark.parametrize("mode", [0o755, 0o700])
@pytest.mark.parametrize("embedded", [True, False])
def test_a_directory_with_other_files_is_refused(
    settings: Settings, mode: int, embedded: bool
) -> None:
    root = Path(settings.cache.dir)
    root.mkdir()
    (root / "thesis.tex").write_text("twelve years of work")
    root.chmod(mode)
    error = refusal(settings, embedded=embedded)
    assert isinstance(error, ConfigError)
    assert error.path == str(root)
    assert "not a cache" in error.message and error.remedy
    assert root.stat().st_mode & 0o777 == mode
    assert {file.name for file in root.iterdir()} <= {"thesis.tex", "agent.log"}


def test_an_empty_directory_that_others_may_enter_is_taken_and_closed(settings: Settings) -> None:
    Path(settings.cache.dir).mkdir(mode=0o755)
    with namespace(settings) as ns:
        assert ns.read("/m/a") == DATA
    assert Path(settings.cache.dir).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("embedded", [True, False])
def test_a_file_in_the_place_of_the_directory(settings: Settings, embedded: bool) -> None:
    Path(settings.cache.dir).write_text("a file")
    error = refusal(settings, embedded=embedded)
    assert isinstance(error, ConfigError)
    assert error.path == settings.cache.dir
    assert "--cache-dir" in error.remedy
    assert Path(settings.cache.dir).read_text() == "a file"


@as_root
@pytest.mark.parametrize("embedded", [True, False])
def test_somebody_elses_directory_is_refused(settings: Settings, embedded: bool) -> None:
    root = Path(settings.cache.dir)
    root.mkdir(mode=0o700)
    os.chown(root, NOBODY, NOBODY)
    error = refusal(settings, embedded=embedded)
    assert isinstance(error, AccessDenied)
    assert error.path == str(root)
    assert "another user" in error.message and error.remedy
    assert root.stat().st_uid == NOBODY


@as_root
def test_a_directory_that_may_not_be_entered_is_refused(settings: Settings) -> None:
    """As an ordinary user meets root's directory."""
    root = Path(settings.cache.dir)
    root.mkdir(mode=0o700)

    def attempt() -> str:
        try:
            tiercache.connect(settings)
        except ConfigError as error:
            return f"{error.path} {error.remedy}"
        return "connected"

    said = run_as_nobody(attempt)
    assert said == f"{root} name a writable place with --cache-dir or cache.dir"
