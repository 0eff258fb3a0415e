"""Freshness: until when a mount may answer from what it knows, without asking its origin.

Times are seconds of CLOCK_BOOTTIME, taken when the confirming request was *sent*: an answer that
took ten seconds is ten seconds old on arrival. A time from another boot means nothing, so such
knowledge counts as expired (but immutable bindings hold).
"""

from __future__ import annotations

from math import inf

from tiercache.model import Consistency, Kind
from tiercache.settings import MountSettings


def fresh_until_s(
    mount: MountSettings, *, kind: Kind, validated_s: float, same_boot: bool
) -> float:
    """Return the time until which the knowledge may be used unasked.

    close-to-open has none: an open asks (reads of one handle do not). Nor has strong: every call
    asks. ``validated_s`` is -inf where the knowledge was called into doubt (``invalidate``, a
    write of unknown outcome): then even an immutable binding is asked for once.
    """
    if kind is Kind.FILE:
        match mount.consistency:  # the default first: ~0.1 µs a case, at each first touch
            case Consistency.EVENTUAL:
                return validated_s + mount.ttl_s if same_boot else -inf
            case Consistency.IMMUTABLE:
                return inf if validated_s > -inf else -inf
            case Consistency.CLOSE_TO_OPEN | Consistency.STRONG:
                return -inf
    if not same_boot or always_asks(mount):
        return -inf
    ttl_s = mount.negative_ttl_s if kind is Kind.ABSENT else mount.ttl_s
    return validated_s + ttl_s


def listing_fresh_until_s(mount: MountSettings, *, validated_s: float, same_boot: bool) -> float:
    """Return the same for a listing. Names may appear in an immutable mount (only the binding
    name → version is for good), so its listings age by ``ttl_s`` too."""
    if not same_boot or always_asks(mount):
        return -inf
    return validated_s + mount.ttl_s


def always_asks(mount: MountSettings) -> bool:
    """Return whether every look-up is a question to the origin, sent after the caller came."""
    return mount.consistency in (Consistency.CLOSE_TO_OPEN, Consistency.STRONG)


def may_serve_stale(mount: MountSettings, kind: Kind) -> bool:
    """Return whether expired knowledge may be served while the origin cannot be reached.

    Absence is never served stale: "cannot be reached" is not "not found" (DESIGN, tenet 6).
    """
    if kind is Kind.ABSENT:
        return False
    match mount.consistency:
        case Consistency.IMMUTABLE:
            return True
        case Consistency.EVENTUAL:
            return mount.offline != "error"
        case Consistency.CLOSE_TO_OPEN:
            return mount.offline == "stale"
        case Consistency.STRONG:
            return False


def age_s(
    validated_s: float,
    now_s: float,
    *,
    same_boot: bool,
    validated_unix_s: float = 0.0,
    unix_s: float = 0.0,
) -> float:
    """Return how long ago knowledge was confirmed. The clock of another boot does not say; then
    the wall clock does (``unix_s`` is now), and where nobody noted its time, it is inf."""
    if same_boot:
        return max(0.0, now_s - validated_s)
    return max(0.0, unix_s - validated_unix_s) if validated_unix_s else inf
