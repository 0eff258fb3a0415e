"""The values of a QoS policy: what an operator grants to whom. docs/qos.md is the contract.

A ``Policy`` is what the file says; a ``Plan`` is what holds of it at one moment, with schedules,
overrides and measured node rates applied. Governor, quotas and backends know plans only.
Rates are tokens a second: bytes for READ and WRITE, operations for OPERATIONS.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf

# The identity of whoever no rule matches, and its class. Always there; a policy may give it shares.
DEFAULT_IDENTITY = "default"
DEFAULT_CLASS = "default"
# The name under which the agent's own bulk work (prefetch, checksums of snapshots) asks, where its
# client configured none: so that a rule can tell a prefetch from a training job.
PREFETCH_NAME = "prefetch"


class Resource(IntEnum):
    """What is rationed. The values index ``Shares`` and rates."""

    READ = 0
    WRITE = 1
    OPERATIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one identity or class has of one resource, in tokens a second.

    ``reserve`` is granted before anything else; ``limit`` is never exceeded by more than ``burst``
    tokens (None: the governor's default, a share of a second of ``limit``); ``weight`` divides
    what is left among those of one priority.
    """

    reserve: float = 0.0
    limit: float = inf
    weight: float = 1.0
    burst: float | None = None


Shares = tuple[Share, Share, Share]
NO_SHARES: Shares = (Share(), Share(), Share())
Rates = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Bytes of the cache. Below ``min_bytes`` nobody else evicts them; above ``soft_bytes`` they go
    first when room is needed; ``max_bytes`` and ``pin_max_bytes`` are never exceeded. None: no such
    bound."""

    min_bytes: int = 0
    soft_bytes: int | None = None
    max_bytes: int | None = None
    pin_max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPlan:
    """A priority class now; higher ``priority`` goes first. ``shares`` bound all of its identities
    together; ``in_flight`` the requests at the agent of all of them."""

    name: str = DEFAULT_CLASS
    priority: int = 0
    shares: Shares = NO_SHARES
    in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityPlan:
    """One identity now. ``in_flight`` bounds its requests at the agent; who waits longer than
    ``max_wait_s`` gets Throttled (None: waits as long as it takes)."""

    name: str = DEFAULT_IDENTITY
    class_name: str = DEFAULT_CLASS
    shares: Shares = NO_SHARES
    in_flight: int | None = None
    max_wait_s: float | None = None
    capacity: Capacity = Capacity()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPlan:
    """What may be asked of one account, bucket or prefix, in requests and bytes a second.

    ``origin`` is the beginning of an origin URL at a name's end ("s3://", "s3://bucket",
    "s3://bucket/prefix"), or "endpoint:" and an endpoint's name; every plan that covers a request
    must grant it. ``adaptive``: the rate falls when the server puts off, and comes back slowly.
    """

    origin: str
    get: float = inf
    put: float = inf
    list: float = inf
    bytes: float = inf
    adaptive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What holds now. ``node`` is what the node delivers in all. ``safe_share`` (0–1) of its limit,
    or of the node where it has none, is what a process goes on with when the agent has been gone
    for long: an equal part, where an identity has so many processes that this is less.
    ``identities`` and ``classes`` always hold the default ones."""

    node: Rates = (inf, inf, inf)
    safe_share: float = 0.1
    classes: tuple[ClassPlan, ...] = (ClassPlan(),)
    identities: tuple[IdentityPlan, ...] = (IdentityPlan(),)
    backends: tuple[BackendPlan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who asks, as far as the agent can tell: ``user`` and ``groups`` come from the kernel (names,
    and numbers as text beside them), ``name`` is what the client says and a policy may let it."""

    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    name: str = ""
    access_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatRule:
    """One line of what a claimant's paths are charged to: the first whose ``path`` covers a name
    holds ("" covers all). The last one always covers all."""

    path: str
    identity: str


def covers(path: str, name: str) -> bool:
    """Say whether a name is at or below a path (a prefix that ends where a name does); "" covers
    all."""
    return not path or name == path or name.startswith(path + "/")
