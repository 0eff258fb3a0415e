"""What an origin's requests and bytes would have cost, by the dated list in ``prices.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

FILE = Path(__file__).parent / "prices.toml"
DEFAULT_NETWORK = "same-region"


class Store(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars for 1,000 requests, for a GB read out of the store and for one put into it, and
    for a GB that lies there a month. A DELETE costs nothing in any of them."""

    get_per_1000: float
    put_per_1000: float
    list_per_1000: float
    read_per_gb: float
    write_per_gb: float = 0.0
    gb_month: float
    source: str


class Volume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block volume: dollars a GB and month. Its operations are free up to ``iops``, and each one
    a second beyond costs ``iops_month`` a month."""

    gb_month: float
    iops: int
    iops_month: float
    source: str


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dollars for a GB that crosses a network."""

    per_gb: float
    source: str


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    store: str
    transfer: str


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    date: str
    gb_bytes: int
    stores: dict[str, Store]
    volumes: dict[str, Volume]
    transfers: dict[str, Transfer]
    networks: dict[str, Route]

    def dollars(self, tiers: Mapping[str, int], network: str = "") -> float:
        """Return the cost of the origin's counts in ``tiers`` (``benchmarks.sampler`` names
        them) over a network profile; one that has no price counts as ``same-region``."""
        route = self.networks.get(network, self.networks[DEFAULT_NETWORK])
        gigabytes = tiers.get("origin_bytes", 0) / self.gb_bytes
        return self.store_dollars(tiers, route.store) + gigabytes * (
            self.transfers[route.transfer].per_gb
        )

    def store_dollars(self, tiers: Mapping[str, int], name: str) -> float:
        """Return what a store asks for them, what is beyond it left out."""
        store = self.stores[name]

        def count(name: str) -> int:
            return tiers.get(f"origin_{name}", 0)

        requests = (
            (count("requests_get") + count("requests_head")) * store.get_per_1000
            + count("requests_put") * store.put_per_1000
            + count("requests_list") * store.list_per_1000
        ) / 1000
        read_gb, written_gb = (
            count("bytes") / self.gb_bytes,
            count("received_bytes") / self.gb_bytes,
        )
        return requests + read_gb * store.read_per_gb + written_gb * store.write_per_gb


@cache
def prices() -> Prices:
    """Return the list. Raises msgspec.ValidationError for one that is not whole."""
    return msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), Prices)
