"""Announced orders: where readers stand, what comes next, and what goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.eviction import Candidate, of_pack, to_go
from tiercache.policy.order import CURRENT, STRAYS, Order, Orders


def order_of(text: str) -> Order:
    return Order([letter.encode() for letter in text])


def test_a_name_is_next_read_at_its_first_unread_place() -> None:
    order = order_of("abcab")
    assert [order.distance(name) for name in (b"a", b"b", b"c", b"x")] == [0, 1, 2, None]
    order.read(0)
    assert (order.low, order.distance(b"a"), order.distance(b"b")) == (1, 2, 0)
    order.reach = 4
    order.read(3)  # out of turn: the place before it is still waited for
    assert (order.low, order.distance(b"a")) == (1, None)
    order.read(1)
    order.read(2)
    assert (order.low, order.distance(b"b"), order.distance(b"c")) == (4, 0, None)
    order.read(4)
    assert order.is_over and order.reach == 5


def test_a_read_that_nobody_saw_is_passed_over_when_most_of_the_window_was_read() -> None:
    order = order_of("abcdefgh")
    order.reach = 4
    for place in (1, 2):
        order.read(place)
        assert order.low == 0  # half of the window
    order.read(3)
    assert order.low == 4 and order.distance(b"a") is None


def test_a_miss_within_reach_is_progress_and_one_far_ahead_is_not() -> None:
    order = Order([b"%d" % number for number in range(1000)])
    order.reach = 10
    assert order.touch(b"0") and order.low == 1
    assert order.touch(b"11")  # the reader is faster than the prefetch
    assert not order.touch(b"500") and order.low == 1
    assert not order.touch(b"nobody announced it")
    assert order.distance(b"500") == 499


def test_a_reader_that_has_moved_is_followed_and_a_random_one_is_not() -> None:
    order = Order([b"%d" % number for number in range(5000)])
    for number in range(STRAYS):  # all over the order
        assert not order.touch(b"%d" % (200 + number * 97))
    assert order.low == 0
    for number in range(STRAYS - 1):
        assert not order.touch(b"%d" % (4000 + number))
    assert order.touch(b"%d" % (4000 + STRAYS - 1))
    assert order.low == order.reach == 4000 + STRAYS
    assert order.distance(b"3999") is None


def test_a_hit_in_the_window_says_that_strays_were_no_move() -> None:
    order = Order([b"%d" % number for number in range(5000)])
    order.reach = 2
    for number in range(STRAYS - 1):
        order.touch(b"%d" % (4000 + number))
    order.read(0)
    assert not order.touch(b"4100") and order.low == 1


def test_what_is_being_read_stays_near_until_its_end() -> None:
    order = order_of("abcdef")
    order.reach = 2
    order.begin(0)
    assert (order.low, order.distance(b"a"), order.is_near(b"a")) == (1, 0, True)
    assert order.current == (b"a",)
    order.end(b"a")
    assert order.distance(b"a") is None and not order.is_near(b"a")


def test_of_many_begun_the_last_are_near() -> None:
    order = Order([b"%d" % number for number in range(100)])
    order.reach = 100
    for place in range(CURRENT + 1):
        order.begin(place)
    assert len(order.current) == CURRENT and not order.is_near(b"0") and order.is_near(b"1")


def test_of_several_orders_the_nearest_read_counts() -> None:
    orders, first, second = Orders(), order_of("abcd"), order_of("xd")
    assert not orders and orders.farthest == 0 and orders.distance(b"d") is None
    orders.open(first)
    orders.open(second)
    second.reach = 2
    assert orders and orders.farthest == 4
    assert (orders.distance(b"d"), orders.is_near(b"d"), orders.is_near(b"c")) == (1, True, False)
    orders.close(second)
    assert orders.distance(b"d") == 3


@given(st.text("abcde", max_size=30), st.lists(st.integers(0, 29), max_size=60), st.integers(1, 9))
def test_it_agrees_with_a_list_of_unread_places(text: str, reads: list[int], window: int) -> None:
    order = order_of(text)
    for place in reads:
        if place >= len(text):
            continue
        order.reach = max(order.reach, min(len(text), order.low + window))
        order.read(place)
        assert order.is_read(place)
        assert order.low <= order.reach <= len(text)
        assert order.is_over == (order.low == len(text))
        for name in set(text):
            unread = [i for i, x in enumerate(text) if x == name and not order.is_read(i)]
            expected = unread[0] - order.low if unread else None
            assert order.distance(name.encode()) == expected


@given(st.text("abcde", max_size=30), st.lists(st.sampled_from("abcdex"), max_size=90))
def test_misses_never_move_an_order_back(text: str, names: list[str]) -> None:
    order, low = order_of(text), 0
    for name in names:
        order.touch(name.encode())
        assert low <= order.low <= order.reach <= len(text)
        low = order.low


# -- what goes first --------------------------------------------------------------------------

STRANGER, SPARED = Candidate(1), Candidate(2, visited=True)
LATE, SOON, NEAR = Candidate(3, 90), Candidate(4, 10), Candidate(5, 2, is_near=True)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], []),
        ([NEAR, SOON, SPARED, LATE, STRANGER], [1, 3, 4, 2, 5]),
        ([SOON, LATE], [3, 4]),
        ([NEAR, SPARED], [2, 5]),
        ([Candidate(7), Candidate(6)], [7, 6]),  # in the order of the queue
        ([Candidate(7, 5.0), Candidate(6, 5.0)], [7, 6]),
    ],
)
def test_strangers_go_first_then_the_farthest(
    candidates: list[Candidate], expected: list[int]
) -> None:
    assert to_go(candidates) == expected


def test_what_refused_to_go_is_asked_last() -> None:
    assert to_go([STRANGER, LATE, NEAR], refused={1}) == [3, 5, 1]


def test_a_pack_is_read_when_its_objects_are_on_average() -> None:
    orders = Orders()
    order = order_of("abcdefgh")
    orders.open(order)
    order.reach = 2
    assert of_pack(9, [b"c", b"e"], orders) == Candidate(9, 3.0)
    assert of_pack(9, [b"c", b"x"], orders) == Candidate(9, 5.0)  # x at the end of all
    assert of_pack(9, [b"a", b"h"], orders) == Candidate(9, 3.5, is_near=True)
    # a quarter announced is not worth its room
    assert of_pack(9, [b"a", b"x", b"y", b"z"], orders) == Candidate(9)
    assert of_pack(9, [], orders) == Candidate(9)
