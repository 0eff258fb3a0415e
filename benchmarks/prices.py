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
    """Dollars for 1,000 requests, and for a GB read out of the store."""

    get_per_1000: float
    put_per_1000: float
    list_per_1000: float
    read_per_gb: float
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
    transfers: dict[str, Transfer]
    networks: dict[str, Route]

    def dollars(self, tiers: Mapping[str, int], network: str = "") -> float:
        """Return the cost of the origin's counts in ``tiers`` (``benchmarks.sampler`` names
        them) over a network profile; one that has no price counts as ``same-region``."""
        route = self.networks.get(network, self.networks[DEFAULT_NETWORK])
        store, transfer = self.stores[route.store], self.transfers[route.transfer]

        def count(name: str) -> int:
            return tiers.get(f"origin_{name}", 0)

        requests = (
            (count("requests_get") + count("requests_head")) * store.get_per_1000
            + count("requests_put") * store.put_per_1000
            + count("requests_list") * store.list_per_1000
        ) / 1000
        gigabytes = count("bytes") / self.gb_bytes
        return requests + gigabytes * (store.read_per_gb + transfer.per_gb)


@cache
def prices() -> Prices:
    """Return the list. Raises msgspec.ValidationError for one that is not whole."""
    return msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), Prices)
