"""Who may take how much, whose extents go for whom, and the queue of each identity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.eviction import Sieve
from tiercache.policy.ledger import Account, Ledger
from tiercache.policy.placement import Placement
from tiercache.policy.qos import Capacity, IdentityPlan, Plan
from tiercache.policy.quotas import Queues, Quotas, capacities_of
from tiercache.units import GIB, KIB, MIB


def quotas_of(
    held: dict[str, int], capacities: dict[str, Capacity], *, capacity_bytes: int = GIB
) -> tuple[Ledger, Quotas]:
    ledger = Ledger(capacity_bytes)
    for number, (identity, count) in enumerate(held.items(), 1):
        ledger.charge(number, count, identity)
    quotas = Quotas(ledger, Placement.of_capacity(capacity_bytes))
    quotas.replace(capacities)
    return ledger, quotas


# -- decisions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "reserved", "largest", "count", "lacking"),
    [
        (0, 0, None, 10 * GIB, 0),
        (100, 0, 1000, 900, 0),
        (100, 0, 1000, 901, 1),
        (100, 300, 1000, 601, 1),
        (1200, 0, 1000, 0, 200),
        (1000, 0, 1000, 0, 0),
        (0, 0, 0, 1, 1),
    ],
)
def test_max(held: int, reserved: int, largest: int | None, count: int, lacking: int) -> None:
    ledger, quotas = quotas_of({"ann": held}, {"ann": Capacity(max_bytes=largest)})
    assert ledger.reserve(reserved, "ann")
    assert quotas.lacking_bytes("ann", count) == lacking
    assert quotas.lacking_bytes("bob", count) == 0
    assert quotas.over() == (["ann"] if largest is not None and held + reserved > largest else [])


def test_what_readers_hold_of_evicted_extents_counts() -> None:
    ledger, quotas = quotas_of({"ann": 900}, {"ann": Capacity(max_bytes=1000, min_bytes=500)})
    ledger.gone(1)
    assert quotas.lacking_bytes("ann", 101) == 1
    assert quotas.spare_bytes("ann") == -500, "but nobody can read it any more"
    ledger.discharge(1)
    assert quotas.lacking_bytes("ann", 1000) == 0


def test_a_large_max_keeps_one_pack_for_copying_forward() -> None:
    _, quotas = quotas_of({}, {"ann": Capacity(max_bytes=160 * MIB)}, capacity_bytes=100 * GIB)
    pack_bytes = quotas.placement("ann").pack_bytes
    assert pack_bytes == 10 * MIB, "a sixteenth"
    assert quotas.ceiling_bytes("ann") == 150 * MIB
    assert quotas.lacking_bytes("ann", 151 * MIB) == MIB
    assert quotas.lacking_bytes("ann", 160 * MIB, use_headroom=True) == 0
    assert quotas.lacking_bytes("ann", 161 * MIB, use_headroom=True) == MIB


@pytest.mark.parametrize(
    ("largest", "extent_bytes", "pack_bytes"),
    [
        (None, 800 * MIB, 64 * MIB),
        (10**12, 800 * MIB, 64 * MIB),
        (160 * MIB, 10 * MIB, 10 * MIB),
        (4 * MIB, 256 * KIB, MIB),
        (1, 64 * KIB, MIB),
    ],
)
def test_extents_of_a_bounded_identity_are_small(
    largest: int | None, extent_bytes: int, pack_bytes: int
) -> None:
    _, quotas = quotas_of({}, {"ann": Capacity(max_bytes=largest)}, capacity_bytes=100 * GIB)
    placement, whole = quotas.placement("ann"), quotas.placement("bob")
    assert (placement.extent_bytes, placement.pack_bytes) == (extent_bytes, pack_bytes)
    assert placement.small_object_bytes == whole.small_object_bytes, "names do not change sides"


@pytest.mark.parametrize(
    ("worker", "identity", "count", "allowed"),
    [
        ("bob", "ann", 400, True),
        ("bob", "ann", 401, False),
        ("ann", "ann", 900, True),
        ("ann", "bob", 100, True),
        ("ann", "bob", 101, False),
        ("cat", "default", 50, True),
    ],
)
def test_min(worker: str, identity: str, count: int, allowed: bool) -> None:
    _, quotas = quotas_of({"ann": 900, "bob": 100, "default": 50}, {"ann": Capacity(min_bytes=500)})
    assert quotas.may_evict(worker, identity, count) is allowed


def test_what_leaves_already_is_not_promised_twice() -> None:
    ledger, quotas = quotas_of({"ann": 300, "cat": 1}, {"ann": Capacity(min_bytes=500)})
    ledger.charge(7, 600, "ann")
    assert quotas.spare_bytes("ann") == 400
    ledger.leave(1, True)
    assert quotas.spare_bytes("ann") == 100
    ledger.leave(1, False)
    assert quotas.spare_bytes("ann") == 400


def test_soft_the_most_above_first() -> None:
    _, quotas = quotas_of(
        {"ann": 900, "bob": 700, "cat": 500, "dan": 999},
        {name: Capacity(soft_bytes=n) for name, n in (("ann", 600), ("bob", 300), ("cat", 500))},
    )
    assert quotas.over_soft(["ann", "bob", "cat", "dan"]) == ["bob", "ann"]


def test_pin_max() -> None:
    ledger, quotas = quotas_of({"ann": 600, "bob": 600}, {"ann": Capacity(pin_max_bytes=700)})
    assert quotas.may_pin("ann", 700) and not quotas.may_pin("ann", 701)
    ledger.pin(1, True)
    ledger.hold(1, 60)
    assert quotas.may_pin("ann", 40) and not quotas.may_pin("ann", 41)
    assert quotas.may_pin("bob", 10**12)
    quotas.replace({"ann": Capacity(pin_max_bytes=600)})
    assert not quotas.may_pin("ann", 0), "above a bound that was lowered"


def test_a_plan_that_bounds_nobody_is_none() -> None:
    bounded = IdentityPlan(name="ann", capacity=Capacity(min_bytes=1))
    assert capacities_of(None) == capacities_of(Plan()) == {}
    found = capacities_of(Plan(identities=(IdentityPlan(), bounded)))
    assert found == {"default": Capacity(), "ann": Capacity(min_bytes=1)}


# -- the ledger by identity -----------------------------------------------------------------


def test_an_extent_passes_on_with_all_that_counts() -> None:
    ledger = Ledger(1000)
    ledger.charge(1, 400, "ann")
    ledger.pass_on(1, "bob")
    assert ledger.account("ann") == Account()
    assert ledger.account("bob") == Account(live_bytes=400, extents=1)
    ledger.charge(1, 500)
    ledger.gone(1)
    assert ledger.account("bob") == Account(gone_bytes=500)
    assert ledger.discharge(1) == 500 and ledger.account("bob") == Account()
    ledger.assert_invariants()


@pytest.mark.parametrize("use", ["pin", "leave", "hold", "gone"])
def test_what_is_in_use_does_not_pass_on(use: str) -> None:
    ledger = Ledger(1000)
    ledger.charge(1, 400, "ann")
    {
        "pin": lambda: ledger.pin(1, True),
        "leave": lambda: ledger.leave(1, True),
        "hold": lambda: ledger.hold(1, 4096),
        "gone": lambda: ledger.gone(1),
    }[use]()
    with pytest.raises(AssertionError, match="in use"):
        ledger.pass_on(1, "bob")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["charge", "pin", "unpin", "leave", "stay", "gone", "discharge", "pass"]),
        st.integers(1, 5),
        st.integers(0, 500),
        st.sampled_from(["ann", "bob", ""]),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_accounts_are_the_sums_of_their_extents(
    actions: list[tuple[str, int, int, str]],
) -> None:
    """Against a list of what is true of each extent."""
    ledger = Ledger(10**9)
    truth: dict[int, dict[str, object]] = {}
    for what, extent, count, identity in actions:
        known = truth.get(extent)
        if what == "charge":
            ledger.charge(extent, count, identity)
            entry = truth.setdefault(extent, {"who": identity, "flags": set()})
            entry["bytes"] = count
        elif known is None:
            continue
        elif what in ("pin", "unpin"):
            ledger.pin(extent, what == "pin")
            _flag(known, "pinned", what == "pin")
        elif what in ("leave", "stay"):
            ledger.leave(extent, what == "leave")
            _flag(known, "leaving", what == "leave")
        elif what == "gone":
            ledger.gone(extent)
            known["flags"] = {"gone"}
        elif what == "discharge":
            assert ledger.discharge(extent) == known["bytes"]
            del truth[extent]
        elif not known["flags"]:
            ledger.pass_on(extent, identity)
            known["who"] = identity
    ledger.assert_invariants()
    for identity in ("ann", "bob", ""):
        mine = [entry for entry in truth.values() if entry["who"] == identity]

        def total(flag: str, mine: list[dict[str, object]] = mine) -> int:
            return sum(e["bytes"] for e in mine if flag in e["flags"])  # type: ignore[misc,operator]  # a dict of anything

        account = ledger.account(identity)
        everything = sum(entry["bytes"] for entry in mine)  # type: ignore[misc]  # the same
        assert account.used_bytes == everything
        assert account.gone_bytes == total("gone")
        assert account.pinned_bytes == total("pinned")
        assert account.leaving_bytes == total("leaving")
        assert account.extents == sum("gone" not in e["flags"] for e in mine)  # type: ignore[operator]  # the same


def _flag(entry: dict[str, object], name: str, on: bool) -> None:
    flags = entry["flags"]
    assert isinstance(flags, set)
    if "gone" not in flags:
        (flags.add if on else flags.discard)(name)


# -- queues ---------------------------------------------------------------------------------


def evicted(queues: Queues, identities: list[str], visited: set[int]) -> int:
    """Evict one of these identities as the agent does."""

    def take(entry: int) -> bool:
        if entry in visited:
            visited.discard(entry)
            return True
        return False

    chosen = queues.nearest([i for i in identities if i in queues.identities()])
    victim = queues.of(chosen).victim(take_visited=take, evictable=lambda _: True)
    assert victim is not None
    queues.remove(victim, chosen)
    return victim


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_unvisited_entries_go_in_the_order_of_their_coming(owners: list[str]) -> None:
    queues = Queues()
    for number, owner in enumerate(owners, 1):
        queues.insert(number, owner)
    going = [evicted(queues, ["a", "b", "c"], set()) for _ in owners]
    assert going == list(range(1, len(owners) + 1)), "as from one queue"


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=30),
    st.sets(st.integers(1, 30)),
    st.integers(1, 10),
)
def test_over_a_round_everybody_is_asked_once(
    owners: list[str], visited: set[int], rounds: int
) -> None:
    """No identity gives way twice as often as its share of unvisited entries."""
    queues = Queues()
    for number, owner in enumerate(owners, 1):
        queues.insert(number, owner)
    unvisited = [n for n in range(1, len(owners) + 1) if n not in visited]
    bits = set(visited)
    going = [evicted(queues, ["a", "b", "c"], bits) for _ in unvisited]
    assert len(going) == len(set(going))
    if not visited & set(range(1, len(owners) + 1)):
        assert sorted(going) == unvisited


def test_one_that_was_protected_does_not_pay_for_all_others() -> None:
    queues = Queues()
    for number in range(1, 21):
        queues.insert(number, "ab"[number % 2])
    for _ in range(5):  # "b" may not give way meanwhile
        assert evicted(queues, ["a"], set()) % 2 == 0
    going = [evicted(queues, ["a", "b"], set()) for _ in range(10)]
    assert going == [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def test_moving_regrouping_and_survivors() -> None:
    queues = Queues()
    for number in range(1, 5):
        queues.insert(number, "a")
    queues.move(1, "a", "b")
    assert queues.identities() == ["a", "b"] and len(queues) == 4 and 1 in queues
    assert queues.of("a").step() == 2
    queues.insert_passed(9, "a")
    assert list(queues.of("a")) == [2, 9, 3, 4]
    queues.regroup(lambda entry: "x" if entry % 2 else "y")
    assert list(queues.of("y")) == [2, 4]
    assert sorted(queues.of("x")) == [1, 3, 9]
    queues.remove(9, "x")
    with pytest.raises(KeyError):
        queues.remove(9, "x")


def test_a_sample_takes_from_each_as_it_has() -> None:
    queues = Queues()
    for number in range(1, 41):
        queues.insert(number, "a" if number <= 30 else "b")
    found = list(queues.sample(["a", "b"], 8))
    assert sum(entry <= 30 for entry in found) == 6 and len(found) == 8
    assert sorted(queues.sample(["a", "b"], 100)) == list(range(1, 41))


def test_a_step_back_asks_the_same_again() -> None:
    queue = Sieve()
    for entry in (1, 2, 3):
        queue.insert(entry)
    assert queue.step() == 1
    queue.step_back(1)
    assert (queue.next, queue.hand) == (1, 1)
    assert [queue.step() for _ in range(4)] == [1, 2, 3, 1]
    assert Sieve().step() == 0
