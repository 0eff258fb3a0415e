"""Status: all that an operator asks, as one document, with the keys of docs/operations.md."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from tiercache.agent.engine import Engine
from tiercache.records import FORMAT_VERSION
from tiercache.version import __version__
from tiercache.wire import WIRE_VERSION


def status_body(
    engine: Engine,
    *,
    clients: list[dict[str, Any]],
    dropped_peers: int,
    internal_errors: int,
) -> bytes:
    """Return the document as JSON. Sizes in bytes, times in seconds, counters since start."""
    return msgspec.json.encode(
        document(
            engine, clients=clients, dropped_peers=dropped_peers, internal_errors=internal_errors
        )
    )


def document(
    engine: Engine,
    *,
    clients: list[dict[str, Any]],
    dropped_peers: int,
    internal_errors: int,
) -> dict[str, Any]:
    space, ledger = engine.space, engine.space.ledger
    return {
        "agent": {
            "pid": os.getpid(),
            "version": __version__,
            "format_version": FORMAT_VERSION,
            "wire_version": WIRE_VERSION,
            "internal_errors": internal_errors
            + engine.jobs.table.internal_errors
            + engine.snapshots.table.internal_errors,
            "dropped_peers": dropped_peers,
        },
        "cache": {
            "dir": engine.settings.cache.dir,
            "capacity_bytes": space.capacity_bytes,
            "used_bytes": ledger.used_bytes,
            "index_bytes": ledger.overhead_bytes,
            "pinned_bytes": engine.contents.pinned_bytes(),
            "extents": len(space.live),
            "packs": sum(state.is_pack for state in space.live.values()),
            "evicted_extents": space.evicted_extents,
            "evicted_bytes": space.evicted_bytes,
            "corrupt_pages": engine.corrupt_pages,
            "disputed_pages": engine.disputed_pages,
            "device_problem": engine.device.problem or space.shortage,
            "device_failures": engine.device.failures,
            "index_commits": engine.index.commits,
        },
        "memory": {
            "limit_bytes": engine.memory.limit_bytes,
            "held_bytes": engine.memory.held_bytes,
        },
        "mounts": [msgspec.to_builtins(mount) for mount in engine.mounts.all],
        "reads": reads(engine),
        "metadata": engine.catalog.status(),
        "origins": [{"url": origin.url, **snapshot(origin)} for origin in engine.mounts.origins],
        "endpoints": [
            msgspec.to_builtins(endpoint.status())
            | {"pending_revalidations": engine.names.pending.count(endpoint)}
            for endpoint in engine.endpoints.all()
        ],
        "pins": engine.pins.paths,
        "qos": engine.qos.desk.status(),
        "jobs": [msgspec.to_builtins(job) for job in engine.jobs.table.all()],
        "clients": clients,
    }


def reads(engine: Engine) -> dict[str, dict[str, int]]:
    """Return counters by mount. Hits are what clients have reported so far."""
    filler = engine.filler
    mounts = engine.hits.keys() | filler.filled.keys() | filler.read_through_total.keys()
    return {
        mount: {
            "hits": engine.hits.get(mount, [0, 0])[0],
            "hit_bytes": engine.hits.get(mount, [0, 0])[1],
            "filled_bytes": filler.filled.get(mount, 0),
            "read_through_bytes": filler.read_through_total.get(mount, 0),
        }
        for mount in sorted(mounts)
    }


def snapshot(origin: object) -> dict[str, Any]:
    """Return an origin's counters and breaker where its wrapper keeps them."""
    take = getattr(origin, "snapshot", None)
    return take() if callable(take) else {}
