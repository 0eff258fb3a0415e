"""Hits by mount, counted in this process and reported to the agent from time to time."""

from __future__ import annotations

from tiercache import wire
from tiercache.client.entry import Use
from tiercache.client.link import Link


class Uses:
    """Single dict operations, atomic by themselves."""

    def __init__(self) -> None:
        self._by_mount: dict[str, Use] = {}

    def of(self, mount: str) -> Use:
        use = self._by_mount.get(mount)
        return use if use is not None else self._by_mount.setdefault(mount, Use(mount))

    def report(self, link: Link) -> None:
        """Tell the agent of hits since last said; what cannot be told now is kept for later."""
        said = [(use, use.hits, use.hit_bytes) for use in list(self._by_mount.values()) if use.hits]
        report = wire.ReportUse(tuple((use.mount, hits, count) for use, hits, count in said))
        if said and link.tell(report):
            for use, hits, count in said:
                use.hits -= hits
                use.hit_bytes -= count
