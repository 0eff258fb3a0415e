"""Whose turn it is: priority, arrival, and the oldest now and then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.turns import FEW, OLDEST_EVERY, Turns


def served(turns: Turns[str], count: int) -> list[str]:
    found = []
    for _ in range(count):
        turn = turns.next()
        assert turn is not None
        turns.serve(turn)
        found.append(turn.item)
    return found


def test_priority_goes_before_arrival_and_arrival_decides_within_one() -> None:
    turns: Turns[str] = Turns()
    for arrived, (item, priority) in enumerate([("low", 0), ("a", 5), ("higher", 9), ("b", 5)]):
        turns.join(item, priority=priority, arrived=arrived)
    assert served(turns, 4) == ["higher", "a", "b", "low"]
    assert turns.next() is None and len(turns) == 0


def test_who_comes_back_with_an_old_number_has_lost_nothing() -> None:
    turns: Turns[str] = Turns()
    turns.join("later", priority=0, arrived=7)
    turns.join("earlier", priority=0, arrived=3)
    assert served(turns, 2) == ["earlier", "later"]


def test_the_oldest_has_its_turn_whatever_comes() -> None:
    turns: Turns[str] = Turns()
    turns.join("low", priority=-3, arrived=0)
    order = []
    for arrived in range(1, 3 * OLDEST_EVERY):
        turns.join("high", priority=1, arrived=arrived)
        order += served(turns, 1)
    assert order.index("low") == OLDEST_EVERY - 1
    assert order.count("low") == 1


def test_a_promoted_turn_keeps_its_arrival() -> None:
    turns: Turns[str] = Turns()
    low = turns.join("low", priority=0, arrived=0)
    turns.join("high", priority=2, arrived=1)
    turns.join("middle", priority=1, arrived=2)
    assert turns.promote(low, -1) is low
    low = turns.promote(low, 2)
    assert len(turns) == 3 and served(turns, 3) == ["low", "high", "middle"]
    assert turns.promote(low, 9) is low and len(turns) == 0


def test_what_does_not_fit_keeps_its_turn() -> None:
    turns: Turns[str] = Turns()
    turns.join("large", priority=1, arrived=0)
    turns.join("small", priority=1, arrived=1)
    first = turns.next()
    assert first is not None and first.item == "large" and turns.next() is first


def test_many_who_leave_are_forgotten() -> None:
    turns: Turns[int] = Turns()
    stays = turns.join(-1, priority=0, arrived=-1)
    for number in range(20 * FEW):
        turns.leave(turns.join(number, priority=number % 3, arrived=number))
    assert len(turns) == 1 and turns.next() is stays
    assert sum(len(heap) for heap in turns._by_priority.values()) <= FEW + 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.integers(-2, 2)),
            st.tuples(st.just("serve"), st.just(0)),
            st.tuples(st.just("leave"), st.integers(0, 30)),
        ),
        max_size=80,
    )
)
def test_it_is_the_sorted_list_that_it_says(steps: list[tuple[str, int]]) -> None:
    turns: Turns[int] = Turns()
    model: list[tuple[int, int]] = []  # (-priority, arrived)
    joined = {}
    count = 0
    for arrived, (what, value) in enumerate(steps):
        if what == "join":
            joined[arrived] = turns.join(arrived, priority=value, arrived=arrived)
            model.append((-value, arrived))
        elif what == "leave" and model:
            gone = model.pop(value % len(model))
            turns.leave(joined[gone[1]])
            turns.leave(joined[gone[1]])
        elif what == "serve" and model:
            oldest = count % OLDEST_EVERY == OLDEST_EVERY - 1
            expected = min(model, key=lambda one: one[1]) if oldest else min(model)
            turn = turns.next()
            assert turn is not None and turn.item == expected[1]
            turns.serve(turn)
            model.remove(expected)
            count += 1
        assert len(turns) == len(model)
        assert sorted(turn.item for turn in turns.all()) == sorted(one[1] for one in model)
