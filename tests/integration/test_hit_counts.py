"""What status says of hits is what clients read, whoever used the connection meanwhile."""

from __future__ import annotations

from pathlib import Path

import tiercache
from tiercache.settings import AgentSettings, CacheSettings, MountSettings, Settings, TotalBytes
from tiercache.units import MIB


def test_hits_are_told_later_when_no_connection_is_idle(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "a.bin").write_bytes(b"x" * 1000)
    settings = Settings(
        cache=CacheSettings(dir=str(tmp_path / "cache"), limit=TotalBytes(256 * MIB)),
        mounts=(MountSettings(path="/data", origin=f"file://{origin}"),),
        agent=AgentSettings(idle_timeout_s=5.0),
    )
    with tiercache.connect(settings, embedded=True) as ns:
        ns.read("/data/a.bin")
        before = ns.status()["reads"]["/data"]["hits"]
        for _ in range(7):
            ns.read("/data/a.bin")
        # The janitor's report meets a thread that waits for its answer on the only connection.
        idle, reader = ns.client.link._idle, ns.client.reader
        busy = [idle.pop() for _ in range(len(idle))]
        reader.report_use()
        idle.extend(busy)
        assert ns.status()["reads"]["/data"]["hits"] == before + 7
        assert ns.status()["reads"]["/data"]["hits"] == before + 7  # and told only once
