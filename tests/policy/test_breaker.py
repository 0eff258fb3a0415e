"""The breaker's states, event by event."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercache.model import EndpointState
from tiercache.policy.breaker import (
    HEALTHY,
    BreakerPolicy,
    BreakerState,
    Mode,
    abandoned,
    admit,
    due_s,
    endpoint_state,
    failed,
    remembered,
    silent,
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


OPENED = play([(0, "f"), (1, "f"), (2, "f")])  # at 2, for 1 s


@pytest.mark.parametrize(("draw", "due"), [(0.0, 2.5), (0.5, 2.75), (1.0, 3.0)])
def test_probes_of_many_nodes_are_spread_over_half_their_wait(draw: float, due: float) -> None:
    assert due_s(OPENED, draw) == due
    assert not admit(OPENED, due - 0.01, draw=draw)[1] and admit(OPENED, due, draw=draw)[1]


@pytest.mark.parametrize(
    ("events", "now_s", "since_s", "mode", "down_since_s"),
    [
        ([], 1.9, 0.0, CLOSED, 0.0),
        ([], 2.0, 0.0, OPEN, 0.0),
        ([(1, "f")], 2.0, 0.5, CLOSED, 1.0),
        ([(1, "f")], 2.5, 0.5, OPEN, 0.5),
        ([(1, "f")], 4.0, 2.0, OPEN, 1.0),
        ([(0, "f"), (1, "f"), (2, "f")], 9.0, 0.0, OPEN, 0.0),
    ],
)
def test_silence_opens_it_too(
    events: list[tuple[float, str]], now_s: float, since_s: float, mode: Mode, down_since_s: float
) -> None:
    state = silent(play(events), now_s, since_s=since_s, policy=POLICY)
    assert (state.mode, state.since_s) == (mode, down_since_s)


def test_what_another_process_saw_is_probed_at_once() -> None:
    state, admitted = admit(remembered(50.0, since_s=10.0), 50.0)
    assert admitted and state.since_s == 10.0
    again = failed(state, 51.0, policy=POLICY)
    assert (again.mode, again.open_for_s) == (OPEN, POLICY.open_s)


@pytest.mark.parametrize(
    ("events", "now_s", "troubled_s", "expected"),
    [
        ([], 0.0, -inf, EndpointState.ONLINE),
        ([], 40.0, 10.1, EndpointState.DEGRADED),
        ([], 40.0, 10.0, EndpointState.ONLINE),
        ([(1, "f")], 99.0, 1.0, EndpointState.DEGRADED),
        ([(0, "f"), (1, "f"), (2, "f")], 2.0, 2.0, EndpointState.OFFLINE),
        ([(0, "f"), (1, "f"), (2, "f"), (3, "a")], 3.0, 2.0, EndpointState.OFFLINE),
        ([(0, "f"), (1, "f"), (2, "f"), (3, "a"), (3, "s")], 3.0, 2.0, EndpointState.DEGRADED),
    ],
)
def test_what_users_are_told(
    events: list[tuple[float, str]], now_s: float, troubled_s: float, expected: EndpointState
) -> None:
    found = endpoint_state(play(events), now_s, troubled_s=troubled_s, policy=POLICY)
    assert found is expected
