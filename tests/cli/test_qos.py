"""tiercache qos on a real agent: show, top, explain, apply, set, unset, audit, completion."""

from __future__ import annotations

import getpass
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fault.cache_rig import wait_for
from tiercache.cli import diagnosis_qos, program
from tiercache.config.loading import load
from tiercache.config.qos_policy import parse_policy
from tiercache.namespace import Namespace, connect
from tiercache.qos_reports import Explained, IdentityUse, Show, Top
from tiercache.settings import QosSettings, Settings
from tiercache.units import MIB

pytestmark = pytest.mark.timeout(120)

USER = getpass.getuser()
POLICY = f"""\
version = 1
[node]
read = "2GB/s"
write = "1GB/s"
operations = "100k/s"
[[class]]
name = "batch"
priority = 10
read = {{ limit = "1500MB/s" }}
[[class.schedule]]
when = "00:00-24:00"
priority = 20
[[identity]]
name = "training"
class = "batch"
match = {{ name = "training" }}
read = {{ reserve = "25%", limit = "1GB/s" }}
in_flight = 32
capacity = {{ max = "64MiB" }}
[[identity]]
name = "scratch"
match = {{ path = "/m/scratch" }}
[[identity]]
name = "people"
match = {{ user = "{USER}" }}
operations = {{ limit = "1k/s" }}
[[backend]]
origin = "file://"
get = 500
"""
BROKEN = POLICY.replace('limit = "1GB/s"', 'limits = "1GB/s"')


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Node:
    """An agent of this process, and the command line beside it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.root = root
        self.cache = root / "cache"
        self.config = root / "config.toml"
        self.policy = root / "policy.toml"
        (root / "origin").mkdir()
        (root / "origin" / "a").write_bytes(b"a" * MIB)
        self.config.write_text(
            f'[cache]\ndir = "{self.cache}"\ncapacity = "256MiB"\n'
            f'[[mount]]\npath = "/m"\norigin = "file://{root}/origin"\n'
        )
        self.ns: Namespace | None = None

    def start(self) -> Namespace:
        self.ns = connect(self.config, embedded=True)
        return self.ns

    def close(self) -> None:
        if self.ns is not None:
            self.ns.close()

    def __call__(self, *arguments: str) -> Ran:
        code = program.run(["--config", str(self.config), "qos", *arguments])
        said = self._capsys.readouterr()
        return Ran(code, said.out, said.err)

    def ok(self, *arguments: str) -> Ran:
        ran = self(*arguments)
        assert ran.code == 0, ran.err
        return ran

    def show(self) -> Show:
        return msgspec.json.decode(self.ok("show", "--json").out, type=Show, strict=True)

    def apply(self, text: str = POLICY) -> Ran:
        self.policy.write_text(text)
        return self("apply", str(self.policy), "--yes")


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Node]:
    made = Node(tmp_path, capsys)
    yield made
    made.close()


@pytest.fixture
def busy(node: Node) -> Node:
    """With the policy in force, and something read by the test itself."""
    ns = node.start()
    assert node.apply().code == 0
    assert ns.read("/m/a") == b"a" * MIB
    return node


# -- nothing to look at ---------------------------------------------------------------------


@pytest.mark.parametrize("command", [["show"], ["top", "--once"], ["explain", "x", "/m"]])
def test_without_an_agent(node: Node, command: list[str]) -> None:
    ran = node(*command)
    assert ran.code == 3 and ran.out == ""
    assert "no agent runs" in ran.err and "tiercache agent start" in ran.err
    assert not node.cache.exists()


def test_without_a_policy(node: Node) -> None:
    node.start()
    for command in (["show"], ["top", "--once"]):
        assert node.ok(*command).out.startswith("no policy is in force")
    assert node.show() == Show()
    assert node.ok("audit").out == ""
    for command in (["explain", "x", "/m"], ["set", "x", "read.limit=1MB/s"]):
        ran = node(*command)
        assert ran.code in (3, 4) and "no QoS policy is in force" in ran.err
        assert "tiercache qos apply" in ran.err


# -- apply ----------------------------------------------------------------------------------


def test_a_policy_is_applied_whole_or_not_at_all(node: Node) -> None:
    ns = node.start()
    node.policy.write_text(POLICY)
    dry = node.ok("apply", str(node.policy), "--dry-run")
    assert "training" in dry.out and dry.err == "no policy is in force\n"
    assert node.show().generation == 0
    asked = node("apply", str(node.policy))
    assert asked.code == 2 and "--yes" in asked.err
    ran = node.apply()
    assert ran.code == 0 and ran.out == dry.out and "is in force" in ran.err
    first = node.show().generation
    assert first > 0
    assert node.ok("show", "--text").out == POLICY
    refused = node.apply(BROKEN)
    assert refused.code == 4 and "limits" in refused.err and f"{node.policy}:" in refused.err
    assert node.show().generation == first
    assert node.apply().out == "nothing changes\n"
    changed = node.apply(POLICY.replace("1GB/s", "500MB/s"))
    assert "500MB/s" in changed.out
    now = node.show()
    assert now.generation > first and now.identities[0].shares.read.limit == 500e6
    assert ns.status()["qos"]["generation"] == now.generation
    assert node("apply", str(node.root / "none"), "--yes").code == 3
    node.policy.write_bytes(b"\xff")
    assert node("apply", str(node.policy), "--yes").code == 4


def test_what_is_applied_holds_for_the_next_agent(node: Node) -> None:
    node.start()
    node.apply()
    node.close()
    node.start()
    assert node.show().text == POLICY and node.show().generation > 0


def test_show(busy: Node) -> None:
    told = busy.show()
    assert [one.name for one in told.identities] == ["training", "scratch", "people", "default"]
    assert [one.name for one in told.classes] == ["batch", "default"]
    assert told.classes[0].priority == 20
    assert [(one.name, one.when) for one in told.schedules] == [("batch", "00:00-24:00")]
    training = told.identities[0]
    assert (training.shares.read.reserve, training.shares.read.limit) == (5e8, 1e9)
    assert training.capacity.max_bytes == 64 * MIB and training.in_flight == 32
    assert (told.node.read, told.node.operations) == (2e9, 1e5)
    text = busy.ok("show").out
    for part in ("generation", "training", "500 MB/s", "64.0 MiB", "00:00-24:00", f"user '{USER}'"):
        assert part in text


@pytest.mark.parametrize(("answer", "code", "generation"), [("y", 0, 1), ("n", 130, 0)])
def test_a_terminal_is_asked(node: Node, answer: str, code: int, generation: int) -> None:
    node.start()
    node.policy.write_text(POLICY)
    command = [sys.executable, "-m", "tiercache", "--config", str(node.config), "qos", "apply"]
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover
        os.execv(sys.executable, [*command, str(node.policy)])
    try:
        os.write(terminal, f"{answer}\n".encode())
        said = b""
        with suppress(OSError):  # the end of a terminal
            while data := os.read(terminal, 4096):
                said += data
    finally:
        os.close(terminal)
        status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == code, said
    assert b"Put it into force?" in said
    assert node.show().generation == generation


# -- set and unset --------------------------------------------------------------------------


def test_values_are_set_over_the_policy(busy: Node) -> None:
    before = busy.show().generation
    ran = busy.ok("set", "training", "read.limit=600MB/s", "in_flight=3")
    assert "600MB/s" in ran.out and "is in force" in ran.err
    told = busy.show()
    assert told.generation > before
    assert told.identities[0].shares.read.limit == 6e8 and told.identities[0].in_flight == 3
    assert [(one.key, one.value, one.left_s) for one in told.overrides] == [
        ("read.limit", "600MB/s", None),
        ("in_flight", "3", None),
    ]
    busy.ok("unset", "training", "in_flight")
    assert busy.show().identities[0].in_flight == 32
    assert [one.key for one in busy.show().overrides] == ["read.limit"]
    busy.ok("unset", "training")
    assert busy.show().overrides == () and busy.show().identities[0].shares.read.limit == 1e9
    again = busy("unset", "training")
    assert again.code in (3, 4) and "training" in again.err


def test_what_is_set_for_a_while_ends_by_itself(busy: Node) -> None:
    busy.ok("set", "training", "read.limit=600MB/s", "--for", "700ms")
    (override,) = busy.show().overrides
    assert override.left_s is not None and 0 < override.left_s <= 0.7
    wait_for(lambda: not busy.show().overrides)
    wait_for(lambda: busy.show().identities[0].shares.read.limit == 1e9)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["set", "trainin", "read.limit=1MB/s"], (3, 4), "training"),
        (["set", "training", "read.limits=1MB/s"], (4,), "read.limit"),
        (["set", "training", "read.limit=fast"], (4,), "MB/s"),
        (["set", "training", "read.limit=0"], (4,), "above 0"),
        (["set", "training", "read.limit"], (2,), "KEY=VALUE"),
        (["set", "training", "in_flight=1", "in_flight=2"], (2,), "twice"),
        (["set", "training", "in_flight=1", "in_flight =2"], (2,), "twice"),
        (["unset", "training", "read.burst"], (3,), "read.burst is not set by hand"),
        (["unset", "training"], (3,), "nothing is set by hand"),
        (["set", "training", "in_flight=1", "--for", "x"], (2,), "--for"),
        (["set", "training", "in_flight=1", "--for", "0s"], (2,), "--for"),
        (["explain", "trainin", "/m"], (3,), "did you mean training"),
        (["explain", "training", "m"], (2,), "/m"),
        (["top", "--interval", "1ms"], (2,), "--interval"),
    ],
)
def test_mistakes(busy: Node, command: list[str], code: tuple[int, ...], said: str) -> None:
    generation = busy.show().generation
    ran = busy(*command)
    assert ran.code in code and said in ran.err and len(ran.err.splitlines()) <= 2
    assert busy.show().generation == generation and not busy.show().overrides


def test_the_node_is_measured(busy: Node) -> None:
    before = busy.show().measured_unix_s or 0.0
    ran = busy.ok("calibrate")
    assert "read " in ran.out and "the node is busy" in ran.err
    told = busy.show()
    assert (told.measured_unix_s or 0.0) > before and (told.measured.read or 0.0) > 0
    # What the policy says of the node goes before what was measured.
    assert told.node.read == 2e9


# -- explain and top ------------------------------------------------------------------------


def test_explain_tells_which_rule_holds_and_why_others_lost(busy: Node) -> None:
    busy.ok("set", "people", "operations.limit=2k/s", "--for", "1h")
    told = msgspec.json.decode(
        busy.ok("explain", "people", "/m/scratch/x", "--json").out, type=Explained
    )
    mine = next(claim for claim in told.claims if claim.pids)
    assert mine.pids == (os.getpid(),) and mine.identity == "people"
    assert [(rule.identity, bool(rule.reason)) for rule in mine.rules] == [
        ("people", False),
        ("scratch", True),
    ]
    assert told.identity.shares.operations.limit == 2000
    assert [one.key for one in told.overrides] == ["operations.limit"]
    assert ("identity", "operations") in [(one.of, one.resource) for one in told.buckets]
    assert ("file://", "get", 500) in [(one.scope, one.kind, one.limit) for one in told.backends]
    text = busy.ok("explain", "people", "/m/scratch/x").out
    for part in (
        f"user '{USER}'",
        "lost: path '/m/scratch' → scratch: user goes before path",
        "by override: operations.limit = 2k/s",
        "nobody waits",
    ):
        assert part in text, text
    text = busy.ok("explain", "training", "/m/a").out
    assert "by schedule of class batch: 00:00-24:00" in text
    assert "at most 32 requests of the identity in flight" in text


def test_top_tells_who_gets_how_much(busy: Node) -> None:
    wait_for(lambda: _use(busy, "people").read_bytes >= MIB)
    told = msgspec.json.decode(busy.ok("top", "--once", "--json").out, type=Top, strict=True)
    assert {one.identity for one in told.identities} == {
        "training", "scratch", "people", "default",
    }  # fmt: skip
    fields = set(IdentityUse.__struct_fields__)
    document = busy.ok("top", "--once", "--json").json
    assert all(set(one) == fields for one in document["identities"])
    use = _use(busy, "people")
    assert use.operations >= 1 and use.processes >= 1 and use.waiting == 0
    assert (told.node.read, told.generation) == (2e9, busy.show().generation)
    text = busy.ok("top", "--once").out
    assert text.startswith("generation ") and "rd MB/s" in text and "people" in text


def _use(node: Node, identity: str) -> IdentityUse:
    told = msgspec.json.decode(node.ok("top", "--once", "--json").out, type=Top)
    return next(one for one in told.identities if one.identity == identity)


def test_top_tells_who_waits_at_a_backend(busy: Node) -> None:
    assert busy.apply(POLICY.replace("get = 500", "get = 2")).code == 0
    assert busy.ns is not None
    for number in range(40):
        (busy.root / "origin" / f"{number}.bin").write_bytes(bytes(2 * MIB))
    job = busy.ns.prefetch("/m")
    try:
        wait_for(lambda: _use(busy, "people").bound_by == "file:// get")
        use = _use(busy, "people")
        assert use.waiting >= 1 and use.waiting_s > 0
        assert "on: file:// get" in busy.ok("explain", "people", "/m/1.bin").out
    finally:
        job.cancel()
        busy.apply(POLICY)
    wait_for(lambda: not _use(busy, "people").waiting)


@contextmanager
def spawned(node: Node, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command beside the test; whatever happens, it is gone in the end."""
    command = [sys.executable, "-m", "tiercache", "--config", str(node.config), "qos", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_top_goes_on_until_it_is_interrupted(busy: Node) -> None:
    with spawned(busy, "top", "--interval", "100ms", "--json") as process:
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert {one["generation"] for one in told} == {busy.show().generation}


# -- the audit log --------------------------------------------------------------------------


def test_every_change_is_in_the_audit_log(busy: Node) -> None:
    busy.ok("set", "training", "read.limit=600MB/s", "--for", "1h")
    busy.policy.write_text(POLICY.replace("1GB/s", "900MB/s"))
    assert "900MB/s" in busy.ok("apply", str(busy.policy), "--dry-run").out
    busy.ok("unset", "training")
    assert busy.apply(BROKEN).code == 4
    lines = [json.loads(line) for line in busy.ok("audit", "--json").out.splitlines()]
    assert [line["what"] for line in lines] == ["apply", "set", "unset", "apply"]
    assert "refused" in lines[3] and lines[2]["user"] == USER
    assert all(abs(line["unix_s"] - time.time()) < 120 for line in lines)
    assert len(busy.ok("audit", "-n", "1").out.splitlines()) == 1
    assert "training" in busy.ok("audit").out


def test_the_audit_log_is_followed(busy: Node) -> None:
    with spawned(busy, "audit", "-n", "1", "--follow", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["what"] == "apply"
        busy.ok("set", "training", "in_flight=5")
        line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert line["what"] == "set" and "in_flight" in line["differences"][0]


# -- completion -----------------------------------------------------------------------------


def complete(node: Node, monkeypatch: pytest.MonkeyPatch, words: str, count: int) -> list[str]:
    monkeypatch.setenv("_TIERCACHE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(count))
    monkeypatch.setenv("TIERCACHE_CONFIG", str(node.config))
    with pytest.raises(SystemExit):
        program.run([])
    said = node._capsys.readouterr()
    assert said.err == ""
    return said.out.split()


def test_names_of_identities_are_completed(busy: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(busy, monkeypatch, "tiercache qos explain tr", 3) == ["training"]
    assert complete(busy, monkeypatch, "tiercache qos set ", 3) == [
        "training", "scratch", "people", "default",
    ]  # fmt: skip
    busy.close()
    assert complete(busy, monkeypatch, "tiercache qos explain tr", 3) == []


def test_an_agent_that_hangs_completes_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.cache.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(node.cache / "agent.sock"))
        silent.listen()
        assert complete(node, monkeypatch, "tiercache qos explain tr", 3) == []


# -- doctor ---------------------------------------------------------------------------------


def findings(settings: Settings) -> list[tuple[str, str]]:
    return [(str(one.level), one.text) for one in diagnosis_qos.policy(settings)]


def test_doctor_looks_at_the_policy(node: Node) -> None:
    plain = load(str(node.config)).settings
    assert findings(plain) == [("ok", "none: everybody gets what there is")]
    node.policy.write_text(BROKEN)
    settings = msgspec.structs.replace(plain, qos=QosSettings(policy=str(node.policy)))
    ((level, text),) = findings(settings)
    assert level == "fail" and "limits" in text and f"{node.policy}:" in text
    node.policy.write_text(POLICY)
    assert findings(settings)[0][0] in ("ok", "warn")
    node.policy.unlink()
    assert findings(settings)[0][0] == "fail"
    node.start()
    node.apply()
    assert ("ok", f"generation {node.show().generation} is in force, from applied") in findings(
        plain
    )


@pytest.mark.parametrize(
    ("node_read", "reserve", "found"),
    [
        (inf, "25%", ["what a reserve of read are shares of a node whose read rate is not known"]),
        (1e9, "25%", []),
        (inf, "1MB/s", []),
    ],
)
def test_shares_of_nobody_knows_what_reserve_nothing(
    node_read: float, reserve: str, found: list[str]
) -> None:
    text = f"""
version = 1
[[identity]]
name = "a"
match = {{ name = "a" }}
read = {{ reserve = "{reserve}" }}
"""
    told = list(diagnosis_qos.without_effect(parse_policy(text, where="x"), (node_read, inf, inf)))
    assert [sentence.split(":")[0] for sentence in told] == found
