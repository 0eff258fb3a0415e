"""Freshness: the table of docs/semantics.md, mode by mode and kind by kind."""

from __future__ import annotations

from math import inf

import pytest

from tiercache.model import Consistency, Kind
from tiercache.policy.freshness import (
    age_s,
    always_asks,
    fresh_until_s,
    listing_fresh_until_s,
    may_serve_stale,
)
from tiercache.settings import MountSettings

SENT_S = 1000.0
FILE, DIRECTORY, ABSENT = Kind.FILE, Kind.DIRECTORY, Kind.ABSENT
IMMUTABLE, EVENTUAL, CLOSE_TO_OPEN, STRONG = (
    Consistency.IMMUTABLE,
    Consistency.EVENTUAL,
    Consistency.CLOSE_TO_OPEN,
    Consistency.STRONG,
)


def mount(consistency: Consistency, offline: str | None = None) -> MountSettings:
    return MountSettings(
        path="/m",
        origin="s3://b",
        consistency=consistency,
        ttl_s=60.0,
        negative_ttl_s=5.0,
        offline=offline,
    )


@pytest.mark.parametrize(
    ("consistency", "kind", "this_boot", "another_boot"),
    [
        (IMMUTABLE, FILE, inf, inf),  # the binding is for good, whatever the clock
        (IMMUTABLE, DIRECTORY, 1060.0, -inf),
        (IMMUTABLE, ABSENT, 1005.0, -inf),  # a name may still come to be
        (EVENTUAL, FILE, 1060.0, -inf),
        (EVENTUAL, DIRECTORY, 1060.0, -inf),
        (EVENTUAL, ABSENT, 1005.0, -inf),
        (CLOSE_TO_OPEN, FILE, -inf, -inf),
        (CLOSE_TO_OPEN, DIRECTORY, -inf, -inf),
        (CLOSE_TO_OPEN, ABSENT, -inf, -inf),
        (STRONG, FILE, -inf, -inf),
        (STRONG, DIRECTORY, -inf, -inf),
        (STRONG, ABSENT, -inf, -inf),
    ],
)
def test_fresh_until(
    consistency: Consistency, kind: Kind, this_boot: float, another_boot: float
) -> None:
    at = mount(consistency)
    assert fresh_until_s(at, kind=kind, validated_s=SENT_S, same_boot=True) == this_boot
    assert fresh_until_s(at, kind=kind, validated_s=SENT_S, same_boot=False) == another_boot


@pytest.mark.parametrize("consistency", list(Consistency))
@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("same_boot", [True, False])
def test_what_was_called_into_doubt_is_never_fresh(
    consistency: Consistency, kind: Kind, same_boot: bool
) -> None:
    at = mount(consistency)
    assert fresh_until_s(at, kind=kind, validated_s=-inf, same_boot=same_boot) == -inf
    assert listing_fresh_until_s(at, validated_s=-inf, same_boot=same_boot) == -inf


@pytest.mark.parametrize(
    ("consistency", "until"),
    [(IMMUTABLE, 1060.0), (EVENTUAL, 1060.0), (CLOSE_TO_OPEN, -inf), (STRONG, -inf)],
)
def test_listings_age_in_every_mode(consistency: Consistency, until: float) -> None:
    at = mount(consistency)
    assert listing_fresh_until_s(at, validated_s=SENT_S, same_boot=True) == until
    assert listing_fresh_until_s(at, validated_s=SENT_S, same_boot=False) == -inf


@pytest.mark.parametrize("offline", [None, "error", "stale"])
def test_absence_is_never_served_stale(offline: str | None) -> None:
    for consistency in Consistency:
        assert not may_serve_stale(mount(consistency, offline), ABSENT)


@pytest.mark.parametrize(
    ("consistency", "unsaid", "error", "stale"),
    [
        (IMMUTABLE, True, True, True),
        (EVENTUAL, True, False, True),
        (CLOSE_TO_OPEN, False, False, True),
        (STRONG, False, False, False),
    ],
)
def test_who_may_serve_stale(
    consistency: Consistency, unsaid: bool, error: bool, stale: bool
) -> None:
    for kind in (FILE, DIRECTORY):
        assert may_serve_stale(mount(consistency), kind) is unsaid
        assert may_serve_stale(mount(consistency, "error"), kind) is error
        assert may_serve_stale(mount(consistency, "stale"), kind) is stale


def test_who_always_asks() -> None:
    asking = [consistency for consistency in Consistency if always_asks(mount(consistency))]
    assert asking == [CLOSE_TO_OPEN, STRONG]


def test_age() -> None:
    assert age_s(1000.0, 1010.5, same_boot=True) == 10.5
    assert age_s(1000.0, 999.0, same_boot=True) == 0.0  # confirmed while we looked
    assert age_s(1000.0, 1010.5, same_boot=False) == inf
    assert age_s(1000.0, 10.5, same_boot=False, validated_unix_s=5e8, unix_s=5e8 + 60) == 60.0
    assert age_s(1000.0, 10.5, same_boot=False, validated_unix_s=5e8, unix_s=4e8) == 0.0
    assert age_s(-inf, 1010.5, same_boot=True) == inf
