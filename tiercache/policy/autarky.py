"""How long it takes to fetch what an outage would take away."""

from __future__ import annotations

# Where nothing was measured: a tenth of a common 10 Gbit/s card, which most links to a cloud keep.
ASSUMED_BYTES_PER_S = 100_000_000
# Small objects cost requests rather than bytes: 64 in flight at 114 ms each, as across an ocean,
# are 560 a second.
OBJECTS_PER_S = 500


def fetch_s(missing_bytes: int, missing: int, *, bytes_per_s: int) -> float:
    """Return how long a prefetch of so many bytes in so many objects takes, about."""
    return max(missing_bytes / (bytes_per_s or ASSUMED_BYTES_PER_S), missing / OBJECTS_PER_S)
