"""The circuit breaker of one endpoint: stop asking a server that does not answer.

    closed ──failures──► open ──open_for_s passed──► half-open ──success──► closed
                          ▲                              │
                          └────────────failure───────────┘

Functions from state and event to state; ``now_s`` is any clock that only moves forward. Only the
endpoint's own prober sends the probe of the half-open state: while the breaker is open, no caller
waits for a server that may not answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tiercache.model import EndpointState


class Mode(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """It opens after ``failures`` in a row that span ``failing_s`` or more.

    Both are needed: 64 requests in flight fail together when a load balancer resets its
    connections, and retries must ride that out. Three seconds is longer than such a blip and
    shorter than one connect time-out. It stays open ``open_s`` at first and twice as long after
    each failed probe, up to ``open_cap_s``, so that a healed origin is used again within 15 s.

    A network that swallows everything shows no failure until requests time out. So once requests
    have gone unanswered for ``silent_s``, longer than a first byte takes around the world, a
    probe is sent, and another every ``probe_every_s`` while none is answered; each is given up
    after ``probe_timeout_s``. Silence of ``failing_s`` opens the breaker too. Trouble counts as
    recent for ``lately_s``.
    """

    failures: int = 5
    failing_s: float = 3.0
    open_s: float = 1.0
    open_cap_s: float = 15.0
    silent_s: float = 1.0
    probe_every_s: float = 0.5
    probe_timeout_s: float = 2.0
    lately_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """``since_s`` is when the first failure of the present row was seen, 0.0 where none."""

    mode: Mode = Mode.CLOSED
    failure_count: int = 0
    since_s: float = 0.0
    opened_s: float = 0.0
    open_for_s: float = 0.0


# The one healthy state: callers may compare by identity to skip all arithmetic.
HEALTHY = BreakerState()


def due_s(state: BreakerState, draw: float) -> float:
    """Return when an open breaker's next probe is due. ``draw`` from [0, 1) spreads the probes of
    many nodes over the second half of their wait."""
    return state.opened_s + state.open_for_s * (0.5 + 0.5 * draw)


def admit(state: BreakerState, now_s: float, *, draw: float = 1.0) -> tuple[BreakerState, bool]:
    """Decide whether a probe may go out; while closed, anything may. In half-open one is out."""
    match state.mode:
        case Mode.CLOSED:
            return state, True
        case Mode.HALF_OPEN:
            return state, False
        case Mode.OPEN:
            if now_s < due_s(state, draw):
                return state, False
            return _with_mode(state, Mode.HALF_OPEN), True


def succeeded(state: BreakerState) -> BreakerState:
    """The endpoint answered, whatever it said. Late answers close an open breaker too."""
    return HEALTHY


def failed(state: BreakerState, now_s: float, *, policy: BreakerPolicy) -> BreakerState:
    """A request got no answer. Failures that return while it is open change nothing."""
    match state.mode:
        case Mode.CLOSED:
            since_s = state.since_s if state.failure_count else now_s
            count = state.failure_count + 1
            opens = count >= policy.failures and now_s - since_s >= policy.failing_s
            return BreakerState(
                mode=Mode.OPEN if opens else Mode.CLOSED,
                failure_count=count,
                since_s=since_s,
                opened_s=now_s if opens else 0.0,
                open_for_s=policy.open_s if opens else 0.0,
            )
        case Mode.HALF_OPEN:
            return BreakerState(
                mode=Mode.OPEN,
                failure_count=state.failure_count + 1,
                since_s=state.since_s,
                opened_s=now_s,
                open_for_s=min(policy.open_cap_s, state.open_for_s * 2 or policy.open_s),
            )
        case Mode.OPEN:
            return state


def silent(
    state: BreakerState, now_s: float, *, since_s: float, policy: BreakerPolicy
) -> BreakerState:
    """Requests of ``since_s`` and later are unanswered, a probe among them."""
    if state.mode is not Mode.CLOSED or now_s - since_s < policy.failing_s:
        return state
    return BreakerState(
        mode=Mode.OPEN,
        failure_count=state.failure_count,
        since_s=min(since_s, state.since_s) if state.failure_count else since_s,
        opened_s=now_s,
        open_for_s=policy.open_s,
    )


def remembered(now_s: float, *, since_s: float) -> BreakerState:
    """The breaker was open when another process last looked: a probe is due at once."""
    return BreakerState(mode=Mode.OPEN, since_s=since_s, opened_s=now_s)


def endpoint_state(
    state: BreakerState, now_s: float, *, troubled_s: float, policy: BreakerPolicy
) -> EndpointState:
    """Return what users are told. ``troubled_s`` is when a request last failed or was put off,
    -inf where none ever was."""
    if state.mode is not Mode.CLOSED:
        return EndpointState.OFFLINE
    if state.failure_count or now_s - troubled_s < policy.lately_s:
        return EndpointState.DEGRADED
    return EndpointState.ONLINE


def abandoned(state: BreakerState) -> BreakerState:
    """The request was cancelled and says nothing; a probe makes room for the next at once."""
    return _with_mode(state, Mode.OPEN) if state.mode is Mode.HALF_OPEN else state


def _with_mode(state: BreakerState, mode: Mode) -> BreakerState:
    return BreakerState(
        mode=mode,
        failure_count=state.failure_count,
        since_s=state.since_s,
        opened_s=state.opened_s,
        open_for_s=state.open_for_s,
    )
