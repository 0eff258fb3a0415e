"""The breaker's states, event by event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.policy.breaker import (
    HEALTHY,
    BreakerPolicy,
    BreakerState,
    Mode,
    abandoned,
    admit,
    failed,
    succeeded,
)

POLICY = BreakerPolicy(failures=3, failing_s=2.0, open_s=1.0, open_cap_s=3.0)

# (now, event) … and then the mode expected and whether a request is admitted at the last time.
LONG_OUTAGE = ((0, 0), (1, 0), (2, 0), (3, 1), (4, 0), (6, 1), (7, 0), (10, 1), (11, 0))
CLOSED, OPEN, HALF = Mode.CLOSED, Mode.OPEN, Mode.HALF_OPEN
TABLE = [
    ("fresh", [], 0.0, CLOSED, True),
    ("two failures are too few", [(0, "f"), (9, "f")], 9.0, CLOSED, True),
    ("a burst is too short", [(0, "f"), (0, "f"), (0, "f"), (1.9, "f")], 1.9, CLOSED, True),
    ("three over two seconds", [(0, "f"), (1, "f"), (2, "f")], 2.0, OPEN, False),
    ("a success starts anew", [(0, "f"), (1, "f"), (1, "s"), (2, "f")], 2.0, CLOSED, True),
    ("still open before its time", [(0, "f"), (1, "f"), (2, "f")], 2.99, OPEN, False),
    ("then one probe", [(0, "f"), (1, "f"), (2, "f")], 3.0, HALF, True),
    ("and only one", [(0, "f"), (1, "f"), (2, "f"), (3, "a")], 3.0, HALF, False),
    ("a good probe closes", [(0, "f"), (1, "f"), (2, "f"), (3, "a"), (4, "s")], 4.0, CLOSED, True),
    ("a bad one opens", [(0, "f"), (1, "f"), (2, "f"), (3, "a"), (4, "f")], 4.0, OPEN, False),
    ("for twice as long", [(0, "f"), (1, "f"), (2, "f"), (3, "a"), (4, "f")], 5.99, OPEN, False),
    ("and no longer", [(0, "f"), (1, "f"), (2, "f"), (3, "a"), (4, "f")], 6.0, HALF, True),
    ("up to the cap", [(n, "fa"[i]) for n, i in LONG_OUTAGE], 14.0, HALF, True),
    (
        "a cancelled probe makes room at once",
        [(0, "f"), (1, "f"), (2, "f"), (3, "a"), (3, "c")],
        3.0,
        HALF,
        True,
    ),
    ("late failures change nothing", [(0, "f"), (1, "f"), (2, "f"), (2.5, "f")], 3.0, HALF, True),
    ("a late success closes", [(0, "f"), (1, "f"), (2, "f"), (2.5, "s")], 2.5, CLOSED, True),
    ("cancelling when closed is nothing", [(0, "f"), (1, "c"), (2, "f")], 2.0, CLOSED, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "now_s", "mode", "admitted"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_table(events: list[tuple[float, str]], now_s: float, mode: Mode, admitted: bool) -> None:
    state, answer = admit(play(events), now_s)
    assert (state.mode, answer) == (mode, admitted)


def test_it_says_since_when() -> None:
    assert play([(10, "f"), (11, "f"), (12.5, "f")]).since_s == 10
    assert play([(10, "f"), (11, "s"), (12, "f")]).since_s == 12


def test_healthy_is_one_value() -> None:
    assert play([(0, "f"), (1, "s")]) is HEALTHY


@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from("fsac")), max_size=60))
def test_it_never_stays_shut(steps: list[tuple[float, str]]) -> None:
    now_s = 0.0
    events = []
    for step_s, event in steps:
        now_s += step_s
        events.append((now_s, event))
    state = play(events)
    if state.mode is not Mode.HALF_OPEN:
        assert admit(state, now_s + POLICY.open_cap_s)[1]
    assert state.open_for_s <= POLICY.open_cap_s


def play(events: list[tuple[float, str]]) -> BreakerState:
    state = HEALTHY
    for now_s, event in events:
        match event:
            case "f":
                state = failed(state, now_s, policy=POLICY)
            case "s":
                state = succeeded(state)
            case "a":
                state, _ = admit(state, now_s)
            case _:
                state = abandoned(state)
    return state
