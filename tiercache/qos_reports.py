"""What is asked and told of the QoS policy: arguments and answers of ``wire.QosQuery`` ("show",
"top", "explain") and ``wire.QosChange`` ("apply", "set", "unset", "calibrate"), as JSON.

Rates are tokens a second: bytes for read and write, operations for operations. None is no bound,
also in JSON (null), where infinity has no word: an encoder of msgspec writes it so by itself.
"""

from __future__ import annotations

import msgspec

from tiercache.model import BackendStatus


class RatesNow(msgspec.Struct, frozen=True, kw_only=True):
    """A rate of each resource."""

    read: float | None = None
    write: float | None = None
    operations: float | None = None


class ShareNow(msgspec.Struct, frozen=True, kw_only=True):
    """What an identity or class has of one resource now: schedules and overrides applied."""

    reserve: float = 0.0
    limit: float | None = None
    weight: float = 1.0
    burst: float | None = None


class SharesNow(msgspec.Struct, frozen=True, kw_only=True):
    read: ShareNow = ShareNow()
    write: ShareNow = ShareNow()
    operations: ShareNow = ShareNow()


class CapacityNow(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the cache: what an identity holds, and its bounds."""

    used_bytes: int = 0
    pinned_bytes: int = 0
    min_bytes: int = 0
    soft_bytes: int | None = None
    max_bytes: int | None = None
    pin_max_bytes: int | None = None


class ClassNow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    priority: int = 0
    shares: SharesNow = SharesNow()
    in_flight: int | None = None


class IdentityNow(msgspec.Struct, frozen=True, kw_only=True):
    """``rules`` are the match rules that lead to it, as text."""

    name: str
    class_name: str
    shares: SharesNow = SharesNow()
    in_flight: int | None = None
    max_wait_s: float | None = None
    capacity: CapacityNow = CapacityNow()
    rules: tuple[str, ...] = ()


class OverrideNow(msgspec.Struct, frozen=True, kw_only=True):
    """A value set by hand: "read.limit" of an identity, as it was written ("200MB/s"). ``left_s``
    None: until it is unset."""

    identity: str
    key: str
    value: str
    left_s: float | None = None


class ScheduleNow(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule in force, of the ``kind`` "class" or "identity" called ``name``; ``when`` as it
    is written ("Mon-Fri 08:00-20:00")."""

    kind: str
    name: str
    when: str


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """The policy in force. ``generation`` 0: none is. ``source`` is the file it was read from,
    "applied" where it came by ``qos apply``; ``error`` why a newer text of the source is refused,
    the last good one being in force. ``text`` is what is in force, as it was written. ``node`` is
    what the plan counts with, ``measured`` what calibration found; ``next_change_s`` when a
    schedule or an override begins or ends."""

    generation: int = 0
    source: str = ""
    error: str = ""
    profile: str = ""
    text: str = ""
    node: RatesNow = RatesNow()
    measured: RatesNow = RatesNow()
    measured_unix_s: float | None = None
    classes: tuple[ClassNow, ...] = ()
    identities: tuple[IdentityNow, ...] = ()
    overrides: tuple[OverrideNow, ...] = ()
    schedules: tuple[ScheduleNow, ...] = ()
    backends: tuple[BackendStatus, ...] = ()
    next_change_s: float | None = None


class IdentityUse(msgspec.Struct, frozen=True, kw_only=True):
    """What one identity does at the moment, and has done since the agent started.

    ``rates`` are of about the last second; ``share`` (0–1) the greatest part of what the node has
    of any resource. ``waiting`` processes and jobs wait, or requests at a backend, the longest for
    ``waiting_s``, on ``bound_by``: "limit read" (its own), "class operations", "node read",
    "in flight", "s3://bucket get" (a backend's), "" where nobody waits. Counters: ``waits`` waits
    that took ``waited_s`` together, ``throttled`` given up after max_wait, and bytes and
    operations charged.
    """

    identity: str
    class_name: str = ""
    priority: int = 0
    processes: int = 0
    rates: RatesNow = RatesNow()
    share: float = 0.0
    waiting: int = 0
    waiting_s: float = 0.0
    bound_by: str = ""
    waits: int = 0
    waited_s: float = 0.0
    throttled: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    operations: int = 0
    used_bytes: int = 0
    pinned_bytes: int = 0


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets how much, and who waits. ``identities`` are all of the policy, the busiest first."""

    generation: int = 0
    node: RatesNow = RatesNow()
    used: RatesNow = RatesNow()
    identities: tuple[IdentityUse, ...] = ()
    backends: tuple[BackendStatus, ...] = ()


class Explain(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of "explain"."""

    identity: str
    path: str


class RuleSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that covers the path. ``reason`` says why it lost; empty for the one that holds.
    ``refused``: it would match if the claimant might use the name."""

    identity: str
    rule: str
    reason: str = ""
    refused: bool = False


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody is charged to: ``claimant`` as text ("user 'ann', name 'train'"; ``pids`` are
    the processes that are connected so), by which rule and why."""

    claimant: str
    identity: str
    reason: str
    rules: tuple[RuleSeen, ...] = ()
    pids: tuple[int, ...] = ()


class BucketNow(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket at the frontend: ``of`` is "identity", "class" or "node"; a negative
    ``level`` is debt, and whoever needs the bucket waits until it is paid."""

    of: str
    resource: str
    rate: float | None = None
    level: float | None = None
    burst: float | None = None


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Why ``identity`` gets what it gets at ``path``. ``claims``: how those who match one of its
    rules are charged there, which may be to another identity. ``schedules`` and ``overrides`` are
    those that made the shares what they are. ``backends``: what a miss pays besides."""

    generation: int
    path: str
    identity: IdentityNow
    of_class: ClassNow
    use: IdentityUse
    claims: tuple[Claim, ...] = ()
    schedules: tuple[ScheduleNow, ...] = ()
    overrides: tuple[OverrideNow, ...] = ()
    buckets: tuple[BucketNow, ...] = ()
    backends: tuple[BackendStatus, ...] = ()


class Apply(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of "apply": the whole text of a policy file, and the file's name for errors."""

    text: str
    file: str = ""
    dry_run: bool = False


class SetValues(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of "set": values as they are written in a policy ("200MB/s"), by key
    ("read.limit"); for ``for_s`` seconds, None until "unset"."""

    identity: str
    values: dict[str, str]
    for_s: float | None = None


class UnsetValues(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of "unset"; no keys: all that was set of the identity."""

    identity: str
    keys: tuple[str, ...] = ()


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to "apply", "set", "unset" and "calibrate": the generation now in force, and in words
    what is different from before. A dry run changes nothing and tells what would be."""

    generation: int
    differences: tuple[str, ...] = ()
    node: RatesNow = RatesNow()
    dry_run: bool = False


class QuotaNow(msgspec.Struct, frozen=True, kw_only=True):
    """What an identity holds of the cache, in bytes as the device allocates them, with each
    extent's overhead. ``used_bytes`` counts against ``max_bytes``: with it ``reserved_bytes`` of
    fills under way, and ``held_bytes`` that were evicted and are still held open by readers.
    ``unpinned_bytes`` are covered by its pins and may be evicted, since ``pin_max_bytes`` forbids
    to hold them. Counters since the agent started: ``denied`` requests for room, of
    ``denied_bytes``, were read through; ``pins_refused`` pins."""

    identity: str
    used_bytes: int = 0
    reserved_bytes: int = 0
    held_bytes: int = 0
    pinned_bytes: int = 0
    unpinned_bytes: int = 0
    extents: int = 0
    min_bytes: int = 0
    soft_bytes: int | None = None
    max_bytes: int | None = None
    pin_max_bytes: int | None = None
    denied: int = 0
    denied_bytes: int = 0
    pins_refused: int = 0


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to "quotas". Where none are ``in_force`` all is charged to the default identity."""

    in_force: bool = False
    capacity_bytes: int = 0
    quotas: tuple[QuotaNow, ...] = ()


class QuotaProblem(msgspec.Struct, frozen=True):
    """A sum of an identity that was ``recorded`` and is not what was ``found``; ``what`` says of
    what."""

    identity: str
    what: str
    recorded: int
    found: int


class QuotaCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to "quota-check". "quota-repair" makes the sums agree, and is answered by
    ``Changed``."""

    problems: tuple[QuotaProblem, ...] = ()
