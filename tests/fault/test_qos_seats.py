"""Slots of the lease file at their end, and what a client that stores nonsense can do to others."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiercache.agent import accounts
from tiercache.agent.accounts import Account, bulk_account, claimant_of
from tiercache.agent.governing import NAMES_COUNT, Governing
from tiercache.agent.seats import Seats
from tiercache.clock import BootClock, FakeClock
from tiercache.config.qos_policy import parse_policy
from tiercache.extents.lease_file import LeaseFileWriter
from tiercache.extents.shared_state import SharedStateWriter
from tiercache.policy import lease_words as words
from tiercache.policy.governor import Governor
from tiercache.policy.qos import ClassPlan, IdentityPlan, Plan, Share
from tiercache.policy.qos_schedule import Moment

pytestmark = pytest.mark.timeout(60)

POLICY = """
version = 1
[[identity]]
name = "a"
match = { name = "a" }
read.limit = "10MB/s"
max_wait = "2s"
[[identity]]
name = "b"
match = { name = "b" }
"""


def plan_of(*names: str, limit: float = 1e6) -> Plan:
    share = Share(limit=limit)
    return Plan(
        classes=(ClassPlan(),),
        identities=tuple(
            IdentityPlan(name=name, shares=(share, Share(), share)) for name in ("default", *names)
        ),
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LeaseFileWriter]:
    writer = LeaseFileWriter(tmp_path / "leases.state")
    yield writer
    writer.close()


@pytest.fixture
def governing(tmp_path: Path, file: LeaseFileWriter) -> Iterator[Governing]:
    state = SharedStateWriter(tmp_path / "shared.state")
    yield Governing(file, state, BootClock(), lambda identity, sentence: None)
    state.close()


def account(process: int, name: str = "") -> Account:
    return Account(process, os.getpid(), os.getuid(), os.getgid(), name)


def keep_to(governing: Governing, text: str = POLICY) -> None:
    policy = parse_policy(text, where="policy")
    governing.keep_to(policy, policy.plan(Moment(weekday=0, minute=0)))


async def test_without_a_free_slot_a_process_goes_at_safe_rates(governing: Governing) -> None:
    keep_to(governing)
    governing.start()
    try:
        for process in range(words.SLOTS_COUNT):
            enlisted = await governing.enlist(account(process), "a")
            assert enlisted.seats[0].slot >= 0
        first = await governing.enlist(account(0), "a")
        assert first.seats[0].slot >= 0  # its own, again
        none_left = await governing.enlist(account(10_000), "a")
        seat = none_left.seats[0]
        assert (seat.slot, seat.owner, seat.max_wait_s) == (-1, 0, 2.0)
        assert 0 < seat.safe_read <= 1e6
        governing.gone(7)
        given = await governing.enlist(account(10_000), "a")
        assert given.seats[0].slot >= 0
        assert given.seats[0].owner not in {seat.owner for seat in first.seats}
    finally:
        await governing.stop()


async def test_a_name_that_gives_way_to_others_finds_that_out(
    governing: Governing, file: LeaseFileWriter
) -> None:
    """Else who reads under it would wait for ever for grants that nobody stores."""
    keep_to(governing)
    governing.start()
    try:
        (seat,) = (await governing.enlist(account(1), "a")).seats
        slot = file.slots[seat.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
        for number in range(NAMES_COUNT - 1):
            await governing.enlist(account(1), f"job-{number}")
        assert slot[words.OWNER] == seat.owner
        await governing.enlist(account(1), "a")  # the one that was asked for last stays
        for number in range(NAMES_COUNT - 1):
            await governing.enlist(account(1), f"other-{number}")
        assert slot[words.OWNER] == seat.owner
        await governing.enlist(account(1), "one more")
        assert slot[words.OWNER] != seat.owner
        (again,) = (await governing.enlist(account(1), "a")).seats
        slot = file.slots[again.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
        assert slot[words.OWNER] == again.owner and slot[words.GRANT_READ]
    finally:
        await governing.stop()


async def test_the_end_of_a_policy_frees_all_and_another_begins_anew(governing: Governing) -> None:
    keep_to(governing)
    governing.start()
    try:
        one = await governing.enlist(account(1), "a")
        governing.keep_to(None, None)
        assert governing.generation == 0
        assert governing.seats.free == words.SLOTS_COUNT
        assert (await governing.enlist(account(1), "a")).seats == ()
        governing.gone(1)
        keep_to(governing)
        two = await governing.enlist(account(1), "a")
        assert two.generation == one.generation + 1
        assert two.seats[0].owner != one.seats[0].owner
    finally:
        await governing.stop()


async def test_marks_stay_with_their_identities(governing: Governing) -> None:
    keep_to(governing)
    a, b = governing.mark_of("a"), governing.mark_of("b")
    assert 1 < a != b > 1
    assert (governing.marked(a), governing.marked(1)) == ("a", None)
    keep_to(governing, POLICY.replace('"a"', '"c"'))
    assert governing.mark_of("b") == b
    assert (governing.mark_of("a"), governing.marked(governing.mark_of("c"))) == (1, "c")


def test_what_a_client_stores_is_taken_with_care(file: LeaseFileWriter) -> None:
    """Counters that go back or leap say nothing; waits of the future began now."""
    clock, seats = FakeClock(), Seats(file)
    governor = Governor(plan_of("liar", "honest"), clock.now())
    liar = seats.take(governor, 1, "liar")
    honest, mate = seats.take(governor, 2, "honest"), seats.take(governor, 3, "liar")
    assert liar is not None and honest is not None and mate is not None
    theirs = file.slots[liar.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
    mine = file.slots[honest.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
    for value in (0, 1, words.UNLIMITED, words.UNLIMITED - 1, 1 << 63, 5, 0):
        for word in range(1, words.SLOT_WORDS):
            theirs[word] = value
        for _ in range(20):
            clock.advance(0.01)
            seats.collect(governor, clock.now())
            governor.turn(clock.now())
            seats.publish(governor, shares=True)
            mine[words.USED_READ] += 100
    assert mine[words.GRANT_READ] > mine[words.USED_READ]
    mates = file.slots[mate.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
    assert mates[words.GRANT_READ] > 0  # nor does it ruin its own identity
    assert theirs[words.OWNER] == liar.owner  # it cannot give its slot away
    report = {one.name: one for one in governor.report()}
    assert report["honest"].levels[0] > 0


@pytest.mark.parametrize("value", [0, 3, words.UNLIMITED])
def test_what_was_written_over_is_restored(file: LeaseFileWriter, value: int) -> None:
    """Else who pays from there would wait for ever, or be lost."""
    seats, governor = Seats(file), Governor(plan_of("a"), 0.0)
    lease = seats.take(governor, 1, "a")
    assert lease is not None
    slot = file.slots[lease.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
    before = slot.tolist()
    slot[words.USED_READ] += 1000
    slot[words.USED_OPS] += 10
    seats.collect(governor, 0.01)
    for word in range(words.SLOT_WORDS):
        slot[word] = value
    for turn in range(2, 5):
        seats.collect(governor, turn / 100)
        governor.turn(turn / 100)
        seats.publish(governor, shares=True)
    assert slot[words.OWNER] == lease.owner
    assert (slot[words.USED_READ], slot[words.USED_OPS]) == (1000, 10)
    assert slot[words.GRANT_READ] > 1000 and slot[words.GRANT_OPS] > 10
    assert slot[words.RATE_READ] == before[words.RATE_READ]


@pytest.mark.parametrize("plan", [plan_of("a"), Plan()])
def test_a_grant_that_was_written_over_is_restored(file: LeaseFileWriter, plan: Plan) -> None:
    """Its owner waits for it, and where nothing is rationed it never changes by itself."""
    seats, governor = Seats(file), Governor(plan, 0.0)
    lease = seats.take(governor, 1, "a")
    assert lease is not None
    slot = file.slots[lease.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
    slot[words.GRANT_READ] = slot[words.GRANT_OPS] = 0
    slot[words.WANT_READ], slot[words.WANT_OPS], slot[words.WAITING_NS] = 4096, 1, 1
    for turn in range(1, 4):
        seats.collect(governor, turn / 100)
        governor.turn(turn / 100)
        seats.publish(governor, shares=True)
    assert slot[words.GRANT_READ] and slot[words.GRANT_OPS]


def test_processes_that_die_at_once_are_charged(file: LeaseFileWriter) -> None:
    """Each has one operation when it comes; together they keep to the limit all the same."""
    seats, governor = Seats(file), Governor(plan_of("a"), 0.0)  # 1 MB/s
    admitted = 0
    for process in range(1, 101):
        lease = seats.take(governor, process, "a")
        assert lease is not None
        slot = file.slots[lease.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
        if slot[words.GRANT_READ]:
            slot[words.USED_READ] += 100_000
            slot[words.USED_OPS] += 1
            admitted += 1
        seats.leave(governor, process)
        governor.turn(process / 100)
    assert seats.free == words.SLOTS_COUNT
    assert 5 <= admitted <= 12  # 1 s at 10 a second, and a burst
    governor.assert_invariants()


async def test_a_file_of_zeros_is_filled_again(governing: Governing, file: LeaseFileWriter) -> None:
    keep_to(governing)
    governing.start()
    try:
        enlisted = await governing.enlist(account(1), "a")
        file.begin()
        file.turn_off()
        governing.wake()
        deadline = asyncio.get_running_loop().time() + 10
        while file.generation <= enlisted.generation:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
            governing.wake()
        again = await governing.enlist(account(1), "a")
        assert again.generation == file.generation
        seat = again.seats[0]
        slot = file.slots[seat.slot * words.SLOT_WORDS :][: words.SLOT_WORDS]
        assert slot[words.OWNER] == seat.owner and slot[words.GRANT_READ]
    finally:
        await governing.stop()


def test_a_slot_serves_its_process_under_another_identity(file: LeaseFileWriter) -> None:
    seats, governor = Seats(file), Governor(plan_of("a", "b"), 0.0)
    one = seats.take(governor, 1, "a")
    assert one is not None
    file.slots[one.slot * words.SLOT_WORDS + words.USED_READ] = 500
    seats.keep(governor, 1, ["b"])
    two = seats.take(governor, 1, "b")
    assert two is one and (two.identity, len(seats)) == ("b", 1)
    assert seats.take(governor, 2, "a") is not one
    seats.leave(governor, 1)
    assert file.slots[one.slot * words.SLOT_WORDS + words.OWNER] == 0
    assert seats.free == words.SLOTS_COUNT - 1


def test_safe_rates_of_all_who_pay_for_an_identity_keep_to_its_limit(
    file: LeaseFileWriter,
) -> None:
    """Also those of processes that came first, and use nothing now."""
    seats, governor = Seats(file), Governor(plan_of("a", limit=1e6), 0.0)
    taken = [seats.take(governor, process, "a") for process in range(50)]
    for turn in range(1, 20):
        governor.turn(turn / 10)
        seats.publish(governor, shares=True)
    safe = [file.slots[lease.slot * words.SLOT_WORDS + words.SAFE_READ] for lease in taken if lease]
    assert len(safe) == 50 and 0 < sum(safe) <= 1e6
    for process in range(45):
        seats.leave(governor, process)
    seats.publish(governor, shares=True)
    assert taken[49] is not None
    assert file.slots[taken[49].slot * words.SLOT_WORDS + words.SAFE_READ] == 1e5


def test_the_groups_of_a_process_are_told_while_it_lives() -> None:
    own = claimant_of(os.getpid(), os.getuid(), os.getgid(), "n")
    assert {str(group) for group in os.getgroups()} <= own.groups
    assert (str(os.getuid()) in own.users, own.name) == (True, "n")
    gone = claimant_of(0, os.getuid(), os.getgid(), "")
    assert str(os.getgid()) in gone.groups
    other = claimant_of(1, 12345, 54321, "")  # another user's: its groups are not taken
    assert other.users == frozenset({"12345"})
    assert other.groups == frozenset({"54321"})


def test_a_user_database_that_was_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claimant_of(0, 54321, 54321, "").users == frozenset({"54321"})
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ada"))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="ml"))
    found = claimant_of(0, 54321, 54321, "")
    accounts._user_name.cache_clear()
    accounts._group_name.cache_clear()
    assert found.users == frozenset({"54321", "ada"})
    assert found.groups == frozenset({"54321", "ml"})


def test_a_job_asks_as_prefetch_where_its_client_has_no_name() -> None:
    assert bulk_account("j1").name == "prefetch"
    assert bulk_account("j1", name="train").name == "train"
    assert bulk_account("j1").uid == os.geteuid()


async def test_turns_go_on_after_an_error(
    governing: Governing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep_to(governing)
    governing.start()
    try:
        enlisted = await governing.enlist(account(1), "a")
        before = governing.turns
        lease = next(iter(governing.seats))
        payer, lease.payer = lease.payer, -1  # one that the governor does not know
        governing.wake()
        while "a turn of the governor failed" not in caplog.text:
            await asyncio.sleep(0.01)
        lease.payer = payer
        governing.wake()
        while governing.turns == before:
            await asyncio.sleep(0.01)
        assert enlisted.seats
    finally:
        await governing.stop()
