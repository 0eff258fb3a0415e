"""The interval checkers, on histories whose answer is known: ttl 300 ms, absence 200 ms."""

from __future__ import annotations

import pytest

from tests.consistency.made_histories import (
    FAILED,
    UNKNOWN,
    create,
    delete,
    history,
    operation,
    read,
    write,
)
from tiercache.testing.consistency.intervals import CLOSE_TO_OPEN, Promise, check
from tiercache.testing.consistency.operations import (
    ABSENT,
    ORIGIN,
    Kind,
    Operation,
    body_of,
    value_in,
)

EVENTUAL = Promise(ttl_s=0.3, negative_ttl_s=0.2)
RESENDING = Promise(ttl_s=0.3, negative_ttl_s=0.2, resends_s=0.25)
IMMUTABLE = Promise(ttl_s=0.3, negative_ttl_s=0.2, binds=True)

X, Y = write("x", 0, 10, site=ORIGIN), write("y", 100, 110, site=ORIGIN)
TWO = [X, Y]

ACCEPTED: dict[str, tuple[Promise, list[Operation]]] = {
    "old within its ttl": (EVENTUAL, [*TWO, read("x", 410, 420)]),
    "old, and marked": (EVENTUAL, [*TWO, read("x", 900, 901, stale=True)]),
    "absent within the negative ttl": (EVENTUAL, [X, read("", 210, 220)]),
    "a listing's absence within the ttl": (EVENTUAL, [X, read("", 300, 320, kind=Kind.LIST)]),
    "removed within the ttl": (EVENTUAL, [X, delete(100, 110, site="b"), read("x", 400, 401)]),
    "a lost write may come late": (
        EVENTUAL,
        [write("x", 0, 10, site="b", outcome=UNKNOWN), Y, read("x", 900, 901)],
    ),
    "a lost removal may come late": (
        EVENTUAL,
        [X, delete(20, 30, site="b", outcome=UNKNOWN), Y, read("", 900, 901)],
    ),
    "a write that was sent twice may come late": (
        RESENDING,
        [write("x", 0, 250, site="b"), write("y", 300, 310, site=ORIGIN), read("x", 900, 901)],
    ),
    "an error is no absence": (EVENTUAL, [X, operation(Kind.READ, 900, 901, outcome=UNKNOWN)]),
    "the other of two writes at once": (
        EVENTUAL,
        [write("x", 0, 60, site=ORIGIN), write("y", 50, 110, site="b"), read("x", 900, 901)],
    ),
    "own writes at once": (EVENTUAL, [write("x", 0, 10), read("x", 10, 11)]),
    "own write beside the read": (EVENTUAL, [X, write("y", 20, 40), read("x", 30, 35)]),
    "an open after a close": (CLOSE_TO_OPEN, [*TWO, read("y", 111, 112, kind=Kind.HANDLE)]),
    "an open beside a write": (CLOSE_TO_OPEN, [*TWO, read("x", 105, 120, kind=Kind.HANDLE)]),
    "bound for good": (IMMUTABLE, [*TWO, read("x", 20, 30), read("x", 900, 901)]),
    "bound at each site": (IMMUTABLE, [*TWO, read("x", 20, 30), read("y", 900, 901, site="b")]),
    "unbound by a write of its own": (
        IMMUTABLE,
        [X, read("x", 20, 30), write("y", 40, 50), read("y", 60, 70)],
    ),
    "unbound by a conflict": (
        IMMUTABLE,
        [*TWO, read("x", 20, 30), create("z", 200, 210, outcome=FAILED), read("y", 300, 301)],
    ),
    "what is served for want of better binds nothing": (
        IMMUTABLE,
        [*TWO, read("x", 120, 130, stale=True), read("y", 140, 150)],
    ),
    "served for want of better while another binds": (
        IMMUTABLE,
        [*TWO, read("y", 120, 160), read("x", 130, 150, process="a2", stale=True)],
    ),
    "listings show the truth": (
        IMMUTABLE,
        [*TWO, read("x", 20, 30), read("y", 120, 130, kind=Kind.LIST), read("x", 140, 150)],
    ),
}
REJECTED: dict[str, tuple[Promise, list[Operation], str]] = {
    "old beyond its ttl": (EVENTUAL, [*TWO, read("x", 411, 420)], "1.0 ms before|301.0 ms before"),
    "absent beyond the negative ttl": (EVENTUAL, [X, read("", 211, 220)], "201.0 ms before"),
    "a stale absence": (EVENTUAL, [X, read("", 900, 901, stale=True)], "the absence had been"),
    "a listing's absence": (EVENTUAL, [X, read("", 311, 320, kind=Kind.LIST)], "301.0 ms before"),
    "removed beyond the ttl": (
        EVENTUAL,
        [X, delete(100, 110, site="b"), read("x", 411, 412)],
        "301.0 ms before",
    ),
    "removed, written, and seen absent": (
        EVENTUAL,
        [X, delete(20, 30, site="b"), Y, read("", 900, 901)],
        "the absence had been",
    ),
    "an own write that is not seen": (EVENTUAL, [X, write("y", 20, 30), read("x", 31, 32)], "own"),
    "not even while marked stale": (
        EVENTUAL,
        [X, write("y", 20, 30), read("x", 31, 32, stale=True)],
        "own node",
    ),
    "an own removal that is not seen": (EVENTUAL, [X, delete(20, 30), read("x", 31, 32)], "own"),
    "an own write, absent": (EVENTUAL, [write("y", 20, 30), read("", 31, 32)], "own node"),
    "from the future": (EVENTUAL, [read("x", 0, 5), write("x", 6, 7)], "before it was written"),
    "from nowhere": (EVENTUAL, [read("x", 0, 5)], "no value that was written"),
    "a mixture": (EVENTUAL, [*TWO, read("x and y", 120, 121)], "no value that was written"),
    "a write that was sent once does not come late": (
        RESENDING,
        [write("x", 0, 249, site="b"), write("y", 300, 310, site=ORIGIN), read("x", 900, 901)],
        "590.0 ms before",
    ),
    "nor does another program's": (
        RESENDING,
        [write("x", 0, 250, site=ORIGIN), write("y", 300, 310), read("x", 900, 901, site="b")],
        "590.0 ms before",
    ),
    "a write that failed": (
        EVENTUAL,
        [X, create("y", 20, 30, outcome=FAILED), read("y", 40, 50)],
        "reported as failed",
    ),
    "a token for two values": (
        EVENTUAL,
        [
            write("x", 0, 1, token="t", site=ORIGIN),
            write("y", 2, 3, token="t", site=ORIGIN),
        ],
        "one version token",
    ),
    "an open that is too old": (
        CLOSE_TO_OPEN,
        [*TWO, read("x", 111, 112, kind=Kind.HANDLE)],
        "1.0 ms before the call",
    ),
    "an open that sees nothing": (CLOSE_TO_OPEN, [X, read("", 11, 12)], "the absence had been"),
    "the origin itself": (EVENTUAL, [*TWO, read("x", 111, 112, site=ORIGIN)], "own node"),
    "bound anew": (IMMUTABLE, [*TWO, read("x", 20, 30), read("y", 900, 901)], "had been bound"),
    "bound, and absent": (IMMUTABLE, [X, read("x", 20, 30), read("", 40, 50)], "had been"),
    "bound, and another for want of better": (
        IMMUTABLE,
        [*TWO, read("y", 120, 130), read("x", 140, 150, stale=True)],
        "had been bound",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    promise, operations = ACCEPTED[name]
    assert check(history(*operations), promise) == []


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name: str) -> None:
    promise, operations, said = REJECTED[name]
    found = check(history(*operations), promise)
    assert found and any(any(part in v.rule for part in said.split("|")) for v in found), found
    assert found[0].offender in operations


def test_bodies_name_their_value_from_every_page_on() -> None:
    for size in (64, 4095, 65_536, 65_600, 300_000):
        body = body_of("h1", "k0", "a1.3", size)
        assert len(body) == size
        assert value_in("h1", "k0", body, size_bytes=size) == "a1.3"
        if size > 65_536:
            rest = body[65_536:]
            assert value_in("h1", "k0", rest, offset=65_536, size_bytes=size) == "a1.3"


ONE, OTHER = (body_of("h1", "k0", value, 70_000) for value in ("a1.3", "b1.4"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ONE[:65_536] + OTHER[65_536:], "mixed"),
        (ONE[:65_536] + bytes(70_000 - 65_536), "mixed"),
        (body_of("h1", "k0", "a1.3", 69_999) + b"x", "under the size"),
        (body_of("h1", "k1", "a1.3", 70_000), "another object"),
        (bytes(70_000), "rubbish"),
        (b"", "rubbish"),
    ],
)
def test_bytes_of_no_value_are_no_value(data: bytes, said: str) -> None:
    found = value_in("h1", "k0", data, size_bytes=70_000)
    assert said in found and found not in ("a1.3", "b1.4", ABSENT)
