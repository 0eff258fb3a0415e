"""What the agent knows of a name, as it goes over the socket."""

from __future__ import annotations

from tiercache.records import ObjectRecord
from tiercache.wire import Found


def found(record: ObjectRecord, fresh_until: float, *, stale: bool = False) -> Found:
    """Return the wire form of a record."""
    return Found(
        kind=record.kind,
        token=record.token,
        size_bytes=record.size_bytes,
        mtime_s=record.mtime_s,
        validated_s=record.validated_s,
        fresh_until_s=fresh_until,
        stale=stale,
        validated_unix_s=record.validated_unix_s,
    )
