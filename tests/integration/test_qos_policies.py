"""The life of a policy on a real agent: files, reloads, applying, overrides, restarts, audit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.cache_rig import kill_agent, wait_for
from tests.integration.qos_rig import (
    SLOW,
    Rig,
    enlist,
    generation,
    leases_of,
    owners,
    qos_of,
    slot_of,
    with_version,
)
from tiercache import wire
from tiercache.errors import ConfigError, FormatError, NotFound, Unsupported
from tiercache.policy import lease_words as words
from tiercache.qos_reports import IdentityNow, Show

pytestmark = pytest.mark.timeout(120)

FASTER = SLOW.replace('"2MB/s"', '"3MB/s"')


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


def identity(told: Show, name: str = "slow") -> IdentityNow:
    return next(one for one in told.identities if one.name == name)


def read_limit(told: Show) -> float | None:
    return identity(told).shares.read.limit


def audit(rig: Rig) -> list[dict[str, Any]]:
    path = rig.cache / "qos-audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_changed_file_is_in_force_within_seconds_and_clients_see_it(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos, before = qos_of(client), enlist(client, "slow")
    epoch = client.state.words[1]
    assert (qos.show().source, read_limit(qos.show())) == (str(rig.policy), 2e6)
    rig.write_policy(FASTER)
    wait_for(lambda: generation(client) == before.generation + 1)
    assert client.state.words[1] > epoch  # names are looked up again, and with them identities
    after = enlist(client, "slow")
    assert read_limit(qos.show()) == 3e6
    assert [seat.slot for seat in after.seats] == [seat.slot for seat in before.seats]
    wait_for(lambda: slot_of(client, after.seats[0])[words.RATE_READ] == 3_000_000)
    wait_for(lambda: any(line["what"] == "reload" for line in audit(rig)))
    line = next(line for line in audit(rig) if line["what"] == "reload")
    assert any("read.limit" in text for text in line["differences"])


def test_a_broken_file_changes_nothing_and_is_told_of(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos, before = qos_of(client), generation(client)
    told = qos.show()
    broken = [
        b"nonsense",
        with_version('[[identity]]\nname = "slow"\ncolour = "red"').encode(),
        b"\xff",
    ]
    errors: set[str] = set()
    for text in broken:
        rig.policy.write_bytes(text)
        wait_for(lambda: qos.show().error not in ("", *errors))
        errors.add(qos.show().error)
        assert str(rig.policy) in qos.show().error
        assert (generation(client), read_limit(qos.show())) == (before, 2e6)
        assert qos.show().text == told.text
    status = json.loads(client.link.request(wire.StatusQuery(), wire.Status).body)
    assert status["qos"]["error"] == qos.show().error
    rig.write_policy(SLOW)
    wait_for(lambda: not qos.show().error)
    assert generation(client) == before


def test_a_file_that_is_gone_changes_nothing(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    before = generation(client)
    rig.policy.unlink()
    wait_for(lambda: "no such file" in qos_of(client).show().error)
    assert generation(client) == before


def test_a_node_without_its_file_keeps_to_the_last_good_one_after_a_restart(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    before = generation(client)
    rig.policy.write_text("nonsense")
    assert kill_agent(rig.cache)
    told = qos_of(client).show()
    assert read_limit(told) == 2e6
    assert str(rig.policy) in told.error
    assert generation(client) > before


def test_a_node_that_has_become_slower_keeps_its_policy(rig: Rig) -> None:
    """Reservations are cut in proportion; only a new text is held against the node."""
    text = """
[[identity]]
name = "slow"
match = [{ name = "slow" }]
read.reserve = "1GB/s"
"""
    rig.cache.mkdir(mode=0o700)
    (rig.cache / "superblock.json").write_text(
        '{"magic": "tiercache", "format_version": 1, "created": "2026-01-31T12:00:00Z"}'
    )
    (rig.cache / "qos-policy.toml").write_text(with_version(text))
    (rig.cache / "qos-calibration.json").write_text(
        '{"read": 500e6, "write": 1e9, "measured_unix_s": 1.0, "version": 1}'
    )
    client = rig.client(policy=False)
    told = qos_of(client).show()
    assert (told.generation, told.error) == (1, "")
    assert identity(told).shares.read.reserve == 500e6
    with pytest.raises(ConfigError):
        qos_of(client).apply(with_version(text.replace("1GB/s", "2GB/s")))


def test_a_node_is_measured_once_and_when_asked(rig: Rig) -> None:
    rig.write_policy('[[identity]]\nname = "slow"\nread.limit = "50%"\nmatch = [{ name = "s" }]\n')
    client = rig.client()
    qos = qos_of(client)
    wait_for(lambda: generation(client) == 2, timeout_s=30.0)
    told = qos.show()
    assert told.measured.read and told.measured.write and told.measured.operations is None
    assert read_limit(told) == told.measured.read / 2
    kept = json.loads((rig.cache / "qos-calibration.json").read_text())
    assert kept["read"] == told.measured.read
    assert not kept["is_fallback"]
    assert kill_agent(rig.cache)
    assert qos.show().measured == told.measured
    again = qos.calibrate()
    assert (qos.show().measured_unix_s or 0) > (told.measured_unix_s or 0)
    assert any("page cache" in line for line in again.differences)
    status = json.loads(client.link.request(wire.StatusQuery(), wire.Status).body)
    assert status["cache"]["used_bytes"] < 8_000_000  # the room it took is free again
    assert not list(rig.cache.glob("*.probe"))


def test_a_policy_is_applied_and_outlives_its_agent(rig: Rig) -> None:
    client = rig.client(policy=False)
    qos = qos_of(client)
    assert qos.show() == Show()
    wanted = qos.apply(with_version(SLOW), dry_run=True)
    assert wanted.generation == generation(client) == 0
    assert any("slow" in text for text in wanted.differences)
    done = qos.apply(with_version(SLOW))
    assert done.generation == generation(client) == 1
    assert (done.differences, done.node.read) == (wanted.differences, 1e9)
    assert qos.show().source == "applied"
    kept = rig.cache / "qos-policy.toml"
    assert kept.read_text() == with_version(SLOW)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert qos.apply(with_version(SLOW)).differences == ()
    assert kill_agent(rig.cache)
    assert read_limit(qos.show()) == 2e6
    assert generation(client) == 2
    assert enlist(client, "slow").generation == 2


def test_a_policy_that_cannot_be_kept_is_refused_whole(rig: Rig) -> None:
    client = rig.client(policy=False)
    qos = qos_of(client)
    qos.apply(with_version(SLOW))
    for text in ("nonsense", with_version(SLOW + '[[identity]]\nname = "slow"\n'), "x" * 70_000):
        with pytest.raises(ConfigError, match=r"mine\.toml"):
            qos.apply(text, file="mine.toml")
    assert (generation(client), qos.show().text) == (1, with_version(SLOW))


def test_what_a_file_says_is_not_applied_over(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos = qos_of(client)
    with pytest.raises(ConfigError, match="and not what is applied") as caught:
        qos.apply(with_version(FASTER))
    assert str(rig.policy) in caught.value.message
    assert (generation(client), read_limit(qos.show())) == (1, 2e6)
    qos.apply(with_version(SLOW))  # its own text: nothing to do
    rig.write_policy(FASTER)
    qos.apply(with_version(FASTER))  # need not wait for the next look
    assert read_limit(qos.show()) == 3e6


def test_what_is_set_by_hand_outlives_agent_and_policy_until_its_time(rig: Rig) -> None:
    client = rig.client(policy=False)
    qos = qos_of(client)
    qos.apply(with_version(SLOW))
    changed = qos.set("slow", {"read.limit": "5MB/s", "in_flight": "3"}, for_s=3600)
    assert changed.generation == generation(client) == 2
    qos.apply(with_version(FASTER))
    assert kill_agent(rig.cache)
    told = qos.show()
    assert (read_limit(told), identity(told).in_flight) == (5e6, 3)
    assert [(one.key, one.value) for one in told.overrides] == [
        ("read.limit", "5MB/s"),
        ("in_flight", "3"),
    ]
    assert all(3500 < (one.left_s or 0) <= 3600 for one in told.overrides)
    qos.unset("slow", ["in_flight"])
    assert (read_limit(qos.show()), identity(qos.show()).in_flight) == (5e6, None)
    qos.unset("slow")
    assert read_limit(qos.show()) == 3e6
    with pytest.raises(NotFound, match="nothing is set by hand"):
        qos.unset("slow")


def test_what_is_set_for_a_time_ends_by_itself(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos = qos_of(client)
    qos.set("slow", {"read.limit": "5MB/s"}, for_s=0.5)
    before = generation(client)
    wait_for(lambda: generation(client) == before + 1)
    assert (read_limit(qos.show()), qos.show().overrides) == (2e6, ())


def test_changes_that_mean_nothing_are_refused(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos = qos_of(client)
    changes: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: qos.set("slaw", {"read.limit": "5MB/s"}), NotFound),
        (lambda: qos.set("slow", {"read.limits": "5MB/s"}), ConfigError),
        (lambda: qos.set("slow", {"in_flight": "3", "read.limit": "soon"}), ConfigError),
        (lambda: qos.set("slow", {"read.reserve": "2GB/s", "read.limit": "3GB/s"}), ConfigError),
        (lambda: qos.unset("slow", ["read.limit"]), NotFound),
        (lambda: qos.explain("slaw", "/m"), NotFound),
    ]
    for change, error in changes:
        with pytest.raises(error):
            change()
    assert (generation(client), qos.show().overrides) == (1, ())


def test_arguments_that_are_none_harm_nobody(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    for raw in (b"", b"{", b"\xff", b'{"identity": 3}', b"[" * 100_000):
        for what in ("show", "top"):
            client.link.request(wire.QosQuery(what, raw), wire.Status)
        with pytest.raises(FormatError):
            client.link.request(wire.QosQuery("explain", raw), wire.Status)
        for what in ("apply", "set", "unset"):
            with pytest.raises(FormatError):
                client.link.request(wire.QosChange(what, raw), wire.Status)
        for kind in (wire.QosQuery, wire.QosChange):
            with pytest.raises(Unsupported):
                client.link.request(kind("nonsense", raw), wire.Status)
    assert generation(client) == 1


def test_who_changed_what_is_in_the_audit_log(rig: Rig) -> None:
    client = rig.client(policy=False)
    qos = qos_of(client)
    qos.apply(with_version(SLOW))
    qos.set("slow", {"read.limit": "5MB/s"}, for_s=60)
    with pytest.raises(ConfigError):
        qos.apply("nonsense")
    lines = audit(rig)
    assert [line["what"] for line in lines] == ["apply", "set", "apply"]
    assert all((line["pid"], line["uid"]) == (os.getpid(), os.getuid()) for line in lines)
    assert lines[0]["before"] == 0 and lines[0]["generation"] == 1
    assert lines[1]["differences"] == ["slow: read.limit = 5MB/s for 60 s"]
    assert "nonsense" not in lines[0] and lines[2]["refused"]
    assert (rig.cache / "qos-audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_policy_ends_no_lease_of_those_it_does_not_change(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    first = enlist(client, "slow")
    slot = slot_of(client, first.seats[0])
    slot[words.USED_OPS] += 3
    rig.write_policy(SLOW.replace('"slow"', '"sluggish"'))
    wait_for(lambda: generation(client) == 2)
    assert slot[words.OWNER] == first.seats[0].owner  # who has not heard yet pays on
    second = enlist(client, "slow")
    assert [seat.identity for seat in second.seats] == ["scratch", "default"]
    third = enlist(client, "sluggish")
    assert third.seats[-1].identity == "sluggish"
    assert len(owners(client)) == 3  # a lease that nobody names any more is used again


def test_top_tells_who_uses_and_who_waits(rig: Rig) -> None:
    rig.write_policy(SLOW)
    client = rig.client()
    qos = qos_of(client)
    slot = slot_of(client, enlist(client, "slow").seats[0])
    assert [one.identity for one in qos.top().identities] == ["default", "scratch", "slow"]
    slot[words.USED_OPS] += 40
    slot[words.USED_READ] += 4_000_000
    client.link.tell(wire.Wake())
    wait_for(lambda: next(iter(qos.top().identities)).identity == "slow")
    use = qos.top().identities[0]
    assert (use.read_bytes, use.operations, use.processes) == (4_000_000, 40, 1)
    slot[words.WANT_READ], slot[words.WANT_OPS] = 65536, 1
    slot[words.WAITING_NS] = leases_of(client).header[words.TURN_WORD]
    wait_for(lambda: qos.top().identities[0].waiting)
    use = qos.top().identities[0]
    assert "read" in use.bound_by and use.waiting_s >= 0
    why = qos.explain("slow", "/m/x")
    assert why.identity.name == why.use.identity == "slow"
    assert any(bucket.of == "identity" and (bucket.level or 0) < 0 for bucket in why.buckets)
    assert any(os.getpid() in claim.pids for claim in why.claims)
