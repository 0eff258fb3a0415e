"""What a network is like: faults that a test asks for, and profiles of networks that exist.

Values only. ``proxy.FaultyProxy`` makes them happen.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

MS = 1e-3
MB = 1e6
NORMAL_P99 = 2.3263478740408408  # of the standard normal distribution
WINDOW_BYTES = 2 * 1024 * 1024  # of a well-tuned TCP stream: what bounds it over a long way


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to requests that match; several fields combine where that makes sense.

    Matching: ``methods`` (empty: all), ``path_contains`` (of the decoded target), and at most
    ``times`` requests (None: for ever).
    """

    methods: tuple[str, ...] = ()
    path_contains: str = ""
    times: int | None = None

    first_byte_delay_s: float = 0.0
    """Each answer's head leaves this much after it is there."""
    connection_bytes_per_s: float = 0.0
    """Answers on one connection flow no faster (0: unlimited)."""
    respond_status: int = 0
    """Answer with this status without asking the server."""
    retry_after_s: int | None = None
    """The ``Retry-After`` header that goes with ``respond_status``."""
    lose_answer: bool = False
    """Let the server carry the request out, then drop the connection instead of answering."""
    ignore_if_match: bool = False
    """Strip ``If-Match`` and ``If-None-Match``, as of a server that ignores them. The signature
    goes too, so the server must let anyone in: moto, fake-gcs, or, to read, SeaweedS3 with a
    bucket named ``open-…``."""
    reset_after_bytes: int | None = None
    """Reset the connection after this many body bytes of the answer (0: after its head)."""
    truncate_after_bytes: int | None = None
    """Deliver this many body bytes, then close in good order, or, with ``truncate_stalls``,
    stay silent with the connection open until ``heal``."""
    truncate_stalls: bool = False


NO_FAULT = Fault()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstByteDelay:
    """A lognormal distribution, given by its median and its 99th percentile.

    Raises ``ValueError`` unless 0 < median ≤ p99.
    """

    median_s: float
    p99_s: float

    def __post_init__(self) -> None:
        if not 0 < self.median_s <= self.p99_s:
            raise ValueError(f"not 0 < median ≤ p99: {self.median_s} s, {self.p99_s} s")

    def draw(self, rng: random.Random) -> float:
        """Return a delay in seconds. The same state of ``rng`` gives the same delay."""
        sigma = math.log(self.p99_s / self.median_s) / NORMAL_P99
        return self.median_s * math.exp(sigma * rng.gauss(0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkProfile:
    """The way to an object store, and the store's own patience. None: no limit, no delay.

    Rates are bytes a second and hold for each direction by itself, as on a full-duplex link.
    Raises ``ValueError`` for a rate that is not positive.
    """

    name: str
    source: str
    """Where the figures come from, and which are assumptions."""
    first_byte: FirstByteDelay | None = None
    """From the request's last byte to the answer's first. It includes what the server behind
    the proxy takes; a slower server is not hurried."""
    connection_bytes_per_s: float | None = None
    total_bytes_per_s: float | None = None
    """Of all connections together."""
    requests_per_s: float | None = None
    """Requests beyond it are answered with ``throttle_status``; the server never sees them."""
    throttle_status: int = 503
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        rates = (self.connection_bytes_per_s, self.total_bytes_per_s, self.requests_per_s)
        if any(rate is not None and rate <= 0 for rate in rates):
            raise ValueError(f"a rate of {self.name!r} is not positive")


def _window_over(round_trip_s: float) -> float:
    """Return the bytes a second of one stream whose window is full all the time."""
    return WINDOW_BYTES / round_trip_s


_PROFILES = (
    NetworkProfile(name="local", source="No shaping: the server as it is."),
    NetworkProfile(
        name="premium",
        first_byte=FirstByteDelay(median_s=3 * MS, p99_s=9 * MS),
        connection_bytes_per_s=200 * MB,
        total_bytes_per_s=1250 * MB,
        source="Amazon S3 User Guide, S3 Express One Zone: consistent single-digit millisecond "
        "first bytes, read as p99 9 ms; Quickwit (S3 Express speculations, 2023) guesses 5 ms at "
        "p90. The median of 3 ms is our assumption. In all: a 10 Gbit/s card. "
        "The rate a connection is our assumption.",
    ),
    NetworkProfile(
        name="same-region",
        first_byte=FirstByteDelay(median_s=25 * MS, p99_s=100 * MS),
        connection_bytes_per_s=90 * MB,
        total_bytes_per_s=1250 * MB,
        requests_per_s=5500.0,
        source="Amazon S3 User Guide, performance guidelines and design patterns: 85–90 MB/s a "
        "request, 5,500 GET a second a prefix, first bytes of roughly 100–200 ms, here the tail; "
        "Quickwit (2023): typically up to 30 ms, 80 ms not rare, 80 MB/s. In all: a 10 Gbit/s "
        "card.",
    ),
    NetworkProfile(
        name="cross-region",
        first_byte=FirstByteDelay(median_s=114 * MS, p99_s=250 * MS),
        connection_bytes_per_s=_window_over(88.6 * MS),
        total_bytes_per_s=625 * MB,
        requests_per_s=5500.0,
        source="Published table of AWS inter-region latency (2017): N. Virginia to Frankfurt "
        "88.6 ms, to which same-region's median is added. A connection: a window of 2 MiB each "
        "round trip. In all: EC2 User Guide, 5 Gbit/s out of the region. p99 is our assumption.",
    ),
    NetworkProfile(
        name="wan",
        first_byte=FirstByteDelay(median_s=242 * MS, p99_s=800 * MS),
        connection_bytes_per_s=_window_over(216.7 * MS),
        total_bytes_per_s=125 * MB,
        requests_per_s=5500.0,
        source="The same table: N. Virginia to Singapore 216.7 ms, to which same-region's median "
        "is added. A connection: a window of 2 MiB each round trip. In all: an uplink of "
        "1 Gbit/s. The uplink and p99, of the public internet, are our assumptions.",
    ),
)
PROFILES: dict[str, NetworkProfile] = {profile.name: profile for profile in _PROFILES}
LOCAL = PROFILES["local"]
