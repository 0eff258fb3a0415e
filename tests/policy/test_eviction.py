"""SIEVE against the algorithm of the paper, written over a plain list."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.eviction import Probation, Sieve


class ListSieve:
    """The same over a list, oldest first. ``hand`` is the entry to look at next, None for the
    oldest."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.hand: int | None = None

    def _after(self, entry: int) -> int | None:
        place = self.queue.index(entry) + 1
        return self.queue[place] if place < len(self.queue) else None

    def remove(self, entry: int) -> None:
        if self.hand == entry:
            self.hand = self._after(entry)
        self.queue.remove(entry)

    def insert_passed(self, entry: int) -> None:
        place = len(self.queue) if self.hand is None else self.queue.index(self.hand)
        self.queue.insert(place, entry)

    def sample(self, count: int) -> list[int]:
        start = 0 if self.hand is None else self.queue.index(self.hand)
        turned = self.queue[start:] + self.queue[:start]
        if count < len(turned):
            self.hand = turned[count]
        elif turned:
            self.hand = turned[0]
        return turned[:count]

    def victim(self, visited: set[int], pinned: set[int]) -> int | None:
        for _ in range(2 * len(self.queue)):
            entry = self.queue[0] if self.hand is None else self.hand
            self.hand = self._after(entry)
            if entry in pinned:
                continue
            if entry in visited:
                visited.discard(entry)
                continue
            return entry
        return None


Step = tuple[
    Literal["insert", "survive", "visit", "remove", "evict", "pin", "unpin", "sample"], int
]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("insert", "insert", "survive", "visit", "remove"),
                *("evict", "evict", "pin", "unpin", "sample"),
            ]
        ),
        st.integers(1, 12),
    ),
    max_size=80,
)


def take(bits: set[int], entry: int) -> bool:
    if entry not in bits:
        return False
    bits.discard(entry)
    return True


@given(STEPS)
def test_it_is_the_algorithm_of_the_paper(steps: list[Step]) -> None:
    sieve, model = Sieve(), ListSieve()
    visited, model_visited, pinned = set[int](), set[int](), set[int]()
    for kind, entry in steps:
        known = entry in model.queue
        match kind:
            case "insert" if not known:
                sieve.insert(entry)
                model.queue.append(entry)
            case "survive" if not known:
                sieve.insert_passed(entry)
                model.insert_passed(entry)
            case "sample":
                assert sieve.sample(entry) == model.sample(entry)
            case "visit" if known:
                visited.add(entry)
                model_visited.add(entry)
            case "remove" if known:
                sieve.remove(entry)
                model.remove(entry)
            case "pin":
                pinned.add(entry)
            case "unpin":
                pinned.discard(entry)
            case "evict":
                found = sieve.victim(
                    take_visited=lambda e: take(visited, e), evictable=lambda e: e not in pinned
                )
                assert found == model.victim(model_visited, pinned)
                if found is not None:
                    sieve.remove(found)
                    model.remove(found)
            case _:
                pass
        assert visited == model_visited
        assert list(sieve) == model.queue
        assert len(sieve) == len(model.queue)
        assert (entry in sieve) == (entry in model.queue)
    assert 0 not in sieve


def never(_: int) -> bool:
    return False


def always(_: int) -> bool:
    return True


def filled(count: int) -> Sieve:
    sieve = Sieve()
    for entry in range(1, count + 1):
        sieve.insert(entry)
    return sieve


def evict(sieve: Sieve, visited: set[int]) -> int | None:
    found = sieve.victim(take_visited=lambda entry: take(visited, entry), evictable=always)
    if found is not None:
        sieve.remove(found)
    return found


def test_an_unvisited_queue_leaves_in_order() -> None:
    sieve = filled(4)
    assert [evict(sieve, set()) for _ in range(5)] == [1, 2, 3, 4, None]


def test_survivors_keep_their_place_and_a_scan_leaves_before_them() -> None:
    sieve, visited = filled(4), {1, 2}
    assert evict(sieve, visited) == 3
    assert visited == set()
    for entry in range(5, 9):  # a scan: read once each
        sieve.insert(entry)
    assert [evict(sieve, visited) for _ in range(5)] == [4, 5, 6, 7, 8]
    assert list(sieve) == [1, 2]


def test_all_visited_costs_one_round_and_the_oldest_goes() -> None:
    visited = {1, 2, 3}
    assert evict(filled(3), visited) == 1
    assert visited == set()


def test_nothing_evictable_ends() -> None:
    assert filled(3).victim(take_visited=always, evictable=never) is None
    assert filled(3).victim(take_visited=always, evictable=always) is None  # visited all the time
    assert Sieve().victim(take_visited=never, evictable=always) is None


def test_misuse_is_refused() -> None:
    sieve = filled(1)
    with pytest.raises(ValueError, match="already"):
        sieve.insert(1)
    sieve.sample(1)
    with pytest.raises(ValueError, match="already"):
        sieve.insert_passed(1)
    with pytest.raises(KeyError):
        sieve.remove(2)
    assert list(sieve) == [1]


def test_probation_ends_by_bytes_in_the_order_of_coming() -> None:
    probation = Probation(100)
    probation.enter(1)
    assert probation.advance(60) == []
    probation.enter(2)
    assert probation.advance(39) == []
    assert probation.advance(1) == [1]
    assert probation.advance(60) == [2]
    assert probation.advance(1000) == []
    probation.enter(3)
    probation.enter(4)
    assert probation.advance(100) == [3, 4]
