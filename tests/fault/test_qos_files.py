"""What the agent keeps of a policy on the device: on one that fails, in odd shapes, over time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tiercache.agent.audit import AUDIT_BYTES, DENIALS_S, Audit
from tiercache.agent.calibration import FALLBACK_READ, FILE_BYTES, Calibration, Measured
from tiercache.agent.policing import Places, Policing
from tiercache.clock import FakeClock
from tiercache.config import qos_language
from tiercache.errors import CacheFull, ConfigError
from tiercache.policy.qos import Plan, Rates, Resource
from tiercache.policy.qos_rules import Policy

pytestmark = pytest.mark.timeout(60)

TEXT = """
version = 1
[node]
read = "1GB/s"
write = "1GB/s"
[[identity]]
name = "a"
match = { name = "a" }
read.limit = "10MB/s"
[[identity.schedule]]
when = ["Mon-Sun 08:00-20:00"]
read.limit = "20MB/s"
"""


class Room:
    """Room in a cache, lent and given back."""

    def __init__(self) -> None:
        self.lent = 0
        self.is_full = False

    async def reserve(self, count: int) -> None:
        if self.is_full:
            raise CacheFull("no room")
        self.lent += count

    def release(self, count: int) -> None:
        self.lent -= count


class Bench:
    """A policing in a directory, with a clock that the test moves."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.root, self.room, self.clock = root, Room(), FakeClock()
        self.file = root / "policy.toml"
        self.executor = executor
        self.told: list[Plan | None] = []

    def calibration(self) -> Calibration:
        return Calibration(
            self.root / "calibration.json",
            self.clock,
            self.executor,
            self.room.reserve,
            self.room.release,
        )

    def audit(self) -> Audit:
        return Audit(str(self.root / "audit.jsonl"), self.clock, self.executor)

    def lines(self, name: str = "audit.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / name).read_text().splitlines()]

    def policing(self, *, configured: bool = True) -> Policing:
        def changed(policy: Policy | None, plan: Plan | None) -> None:
            self.told.append(plan)

        places = Places(
            configured=str(self.file) if configured else "",
            applied=self.root / "applied.toml",
            last_good=self.root / "last-good.toml",
            overrides=self.root / "overrides.json",
            calibration=self.root / "calibration.json",
            audit=self.root / "audit.jsonl",
        )
        found = Policing(
            places,
            qos_language,
            self.clock,
            self.executor,
            self.calibration(),
            self.audit(),
            changed,
        )
        found.load()
        return found

    @property
    def node(self) -> Rates:
        plan = self.told[-1]
        assert plan is not None
        return plan.node

    @property
    def limit(self) -> float:
        plan = self.told[-1]
        assert plan is not None
        return plan.identities[0].shares[Resource.READ].limit


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(2) as executor:
        yield Bench(tmp_path, executor)


async def test_schedules_begin_and_end_when_they_are_due(bench: Bench) -> None:
    bench.file.write_text(TEXT)
    policing = bench.policing()
    seen = [bench.limit]
    for _ in range(4):
        assert policing.standing.policy is not None
        due_s = policing.standing.policy.next_change_s(policing.moment())
        assert due_s is not None
        if due_s > 5:
            bench.clock.advance(due_s - 5)
            await policing.look()
            assert bench.limit == seen[-1]
        bench.clock.advance(10)
        await policing.look()
        seen.append(bench.limit)
    assert sorted(set(seen)) == [10e6, 20e6]
    assert all(one != other for one, other in pairwise(seen))
    assert len(bench.told) == 5  # told of changes alone


@pytest.mark.parametrize("kind", ["pipe", "directory", "empty", "long", "socket"])
async def test_what_is_no_file_is_no_policy_and_keeps_nobody(bench: Bench, kind: str) -> None:
    bench.file.write_text(TEXT)
    policing = bench.policing()
    bench.file.unlink()
    if kind == "pipe":
        os.mkfifo(bench.file)
    elif kind == "directory":
        bench.file.mkdir()
    elif kind == "socket":
        os.mknod(bench.file, 0o140600)
    else:
        bench.file.write_bytes(b"#" * (100_000 if kind == "long" else 0))
    await policing.look()
    assert str(bench.file) in policing.error
    assert len(bench.told) == 1
    again = bench.policing()  # nor does it keep an agent from starting
    assert again.standing.text == TEXT
    assert str(bench.file) in again.error


async def test_what_cannot_be_kept_for_the_next_agent_holds_and_is_told(bench: Bench) -> None:
    policing = bench.policing(configured=False)
    (bench.root / "applied.toml").mkdir()
    await policing.apply(TEXT, "")
    assert bench.limit in (10e6, 20e6)
    assert "not kept for the next agent" in policing.error
    assert sorted(os.listdir(bench.root)) == ["applied.toml"]  # nothing half written


async def test_what_is_set_by_hand_is_kept_or_refused(bench: Bench) -> None:
    bench.file.write_text(TEXT)
    policing = bench.policing()
    (bench.root / "overrides.json").mkdir()
    with pytest.raises(OSError, match="overrides"):
        await policing.set_values("a", {"read.limit": "5MB/s"}, None)
    assert not policing.overrides and len(bench.told) == 1
    (bench.root / "overrides.json").rmdir()
    for number in range(300):
        try:
            await policing.set_values("a", {"in_flight": str(number + 1)}, 60.0)
        except ConfigError:
            pytest.fail("what is set again takes the place of what was")
    assert len(policing.overrides) == 1
    bench.clock.advance(61)
    await policing.look()
    assert not policing.overrides


@pytest.mark.parametrize("no_time_s", [0.0, -1.0])
async def test_what_would_end_at_once_is_refused(bench: Bench, no_time_s: float) -> None:
    bench.file.write_text(TEXT)
    with pytest.raises(ConfigError, match="would end at once"):
        await bench.policing().set_values("a", {"in_flight": "3"}, no_time_s)
    assert not (bench.root / "overrides.json").exists()


async def test_a_storm_of_denials_is_a_line_in_ten_seconds(bench: Bench) -> None:
    audit = bench.audit()
    for _ in range(1000):
        audit.denied("a", "too slow")
        audit.denied("b", "too full")
    await audit.flush()
    assert [(line["identity"], line.get("suppressed")) for line in bench.lines()] == [
        ("a", None),
        ("b", None),
    ]
    bench.clock.advance(DENIALS_S)
    await audit.flush()
    assert [line["suppressed"] for line in bench.lines()[2:]] == [999, 999]
    bench.clock.advance(DENIALS_S)
    await audit.flush()
    assert len(bench.lines()) == 4  # nothing more happened
    audit.denied("a", "again")
    await audit.flush()
    assert bench.lines()[4]["reason"] == "again"
    assert all(line["unix_s"] > FakeClock.UNIX_S for line in bench.lines())


async def test_the_audit_log_stays_small(bench: Bench) -> None:
    audit = bench.audit()
    for number in range(3000):
        audit.note("set", number=number, text="x" * 50)
        if not number % 7:
            await audit.flush()
    await audit.flush()
    sizes = [path.stat().st_size for path in bench.root.glob("audit.jsonl*")]
    assert len(sizes) == 2 and max(sizes) <= AUDIT_BYTES
    numbers = [
        line["number"] for name in ("audit.jsonl.1", "audit.jsonl") for line in bench.lines(name)
    ]
    assert numbers == list(range(numbers[0], 3000))
    for number in range(3000):
        audit.note("set", number=number, text="y" * 50)
    await audit.flush()  # more at once than there is room for
    assert [line["number"] for line in bench.lines()][-1] == 2999
    assert max(path.stat().st_size for path in bench.root.glob("audit.jsonl*")) <= AUDIT_BYTES


@pytest.mark.parametrize("text", ["x" * 70_000, "\n" * 70_000, "é" * 70_000])
async def test_a_change_of_many_words_is_audited_all_the_same(bench: Bench, text: str) -> None:
    audit = bench.audit()
    audit.note("set", user="ada", refused="short")
    audit.note("apply", user="ada", generation=7, differences=["short", *[text] * 100])
    audit.note("set", user="ada", refused=text)
    await audit.flush()
    first, second, third = bench.lines()
    assert (first["refused"], second["user"], second["generation"]) == ("short", "ada", 7)
    assert second["differences"][0] == "short" and len(second["differences"]) == 101
    assert third["refused"][:1000] == text[:1000]


@pytest.mark.parametrize("kind", ["directory", "pipe", "full"])
async def test_an_audit_log_that_cannot_be_written_stops_nothing(
    bench: Bench, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "directory":
        (bench.root / "audit.jsonl").mkdir()
    elif kind == "pipe":
        os.mkfifo(bench.root / "audit.jsonl")
    else:
        (bench.root / "audit.jsonl").write_bytes(b"x" * AUDIT_BYTES)
        (bench.root / "audit.jsonl.1").mkdir()
    audit = bench.audit()
    audit.note("set", identity="a")
    await audit.flush()
    assert '"identity":"a"' in caplog.text


async def test_a_node_is_measured_within_the_cache(bench: Bench) -> None:
    calibration = bench.calibration()
    calibration.capacity_bytes = 64 << 20
    measured = await calibration.measure()
    assert not measured.is_fallback
    assert measured.read > 1e6 and measured.write > 1e5
    assert bench.room.lent == 0
    assert os.listdir(bench.root) == ["calibration.json"]
    again = bench.calibration()
    again.load()
    assert again.measured == measured
    assert FILE_BYTES <= 64 << 20  # a small one lends less


async def test_a_node_that_delivers_all_that_was_measured_is_believed_to_deliver_more(
    bench: Bench,
) -> None:
    measured = Measured(read=100e6, write=50e6)
    (bench.root / "calibration.json").write_bytes(msgspec.json.encode(measured))
    bench.file.write_text('version = 1\n[node]\nread = "auto"\nwrite = "auto"\n')
    policing = bench.policing()
    used = [0.0, 0.0, 0.0]
    policing.used = lambda: (used[0], used[1], used[2])

    async def deliver(read_per_s: float, write_per_s: float, seconds: float) -> Rates:
        bench.clock.advance(seconds)
        used[0] += read_per_s * seconds
        used[1] += write_per_s * seconds
        await policing.look()
        plan = bench.told[-1]
        assert plan is not None
        return plan.node

    assert (await deliver(90e6, 20e6, 1.0))[:2] == (100e6, 50e6)
    assert (await deliver(99e6, 20e6, 1.0))[0] == 100e6
    assert (await deliver(99e6, 20e6, 1.0))[0] == pytest.approx(110e6)
    assert (await deliver(110e6, 50e6, 30.0))[0] == pytest.approx(110e6)  # too long ago
    for read_per_s in (0.0, 40e9, 0.0):  # an object that was paid at once: ``local_path``
        assert (await deliver(read_per_s, 0.0, 1.0))[0] == pytest.approx(110e6)
    for _ in range(40):  # the hardware's end
        node = await deliver(min(300e6, bench.node[0]), 0.0, 1.0)
    assert 300e6 < node[0] <= 1.1 * 300e6 / 0.97 and node[1] == 50e6
    again = bench.calibration()
    again.load()
    assert again.rates[:2] == node[:2]


async def test_a_file_that_is_written_again_is_no_newer_text(bench: Bench) -> None:
    """The node has become slower than what it reserves, which the policy in force may."""
    (bench.root / "calibration.json").write_bytes(
        msgspec.json.encode(Measured(read=100e6, write=50e6))
    )
    text = 'version = 1\n[[identity]]\nname = "a"\nmatch = {name = "a"}\nread.reserve = "200MB/s"\n'
    bench.file.write_text(text)
    policing = bench.policing()
    assert (policing.error, bench.node[0]) == ("", 100e6)
    other = bench.root / "other"
    for written in (text, text + "# newer\n", text):
        other.write_text(written)
        other.rename(bench.file)
        await policing.look()
        assert bool(policing.error) is (written != text)
    assert len(bench.told) == 1


async def test_a_node_that_cannot_be_measured_has_careful_rates(bench: Bench) -> None:
    bench.room.is_full = True
    calibration = bench.calibration()
    measured = await calibration.measure()
    assert (measured.is_fallback, measured.read) == (True, FALLBACK_READ)
    assert "assumed" in calibration.sentences()[0]
    assert calibration.rates[Resource.OPERATIONS] == float("inf")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "read": 1, "write": 1}', "\xff"])
async def test_a_measurement_that_cannot_be_read_is_made_anew(bench: Bench, text: str) -> None:
    (bench.root / "calibration.json").write_text(text, encoding="latin-1")
    calibration = bench.calibration()
    calibration.load()
    assert calibration.measured is None
