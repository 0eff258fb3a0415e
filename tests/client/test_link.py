"""A client's connections to its agent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tiercache import wire
from tiercache.client.link import Link


def no_agent() -> None:
    raise AssertionError("an agent is started")


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    """A link with one connection, and the agent's end of that."""
    link = Link(
        socket_path="/nowhere",
        mounts=(),
        profiles=(),
        start_agent=no_agent,
        accept=lambda welcome: None,
    )
    ours, theirs = socket.socketpair()
    link._idle.append(ours)
    with theirs:
        yield link, theirs
        link.close()


@pytest.mark.timeout(20)
def test_what_needs_no_answer_waits_for_no_agent_that_does_not_read(
    ends: tuple[Link, socket.socket],
) -> None:
    """Whoever tells may hold a lock that all readers of its process need."""
    link, theirs = ends
    message = wire.Advise("/m/" + "x" * 1000, "token", 0, 1)
    told = 0
    while link.tell(message):
        told += 1
    assert told > 10
    began_s = time.monotonic()
    assert not any(link.tell(message) for _ in range(100))
    assert time.monotonic() - began_s < 1.0
    # The agent goes on: nothing was cut short, and there is room again.
    expected, read = wire.frame(message) * told, bytearray()
    while len(read) < len(expected):
        read += theirs.recv(1 << 20)
    assert bytes(read) == expected
    assert link.tell(message)


def test_half_a_message_ends_its_connection(ends: tuple[Link, socket.socket]) -> None:
    link, theirs = ends
    assert not link.tell(wire.Advise("/m/" + "x" * (8 << 20), "token", 0, 1))
    assert not link.tell(wire.Advise("/m/x", "token", 0, 1)), "that connection is gone"
    while theirs.recv(1 << 20):
        pass


def test_an_agent_that_is_gone_is_told_nothing(ends: tuple[Link, socket.socket]) -> None:
    link, theirs = ends
    theirs.close()
    assert not link.tell(wire.Wake())
