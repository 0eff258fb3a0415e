"""What a client says of an object that it knows."""

from __future__ import annotations

from math import inf
from time import time

from tiercache import wire
from tiercache.client.entry import Entry
from tiercache.client.resolver import Binding
from tiercache.errors import NotFound
from tiercache.model import Consistency, Kind, Stat
from tiercache.policy.freshness import age_s
from tiercache.records import ObjectRecord


def stat_of(path: str, entry: Entry, now_s: float, boot_id: str) -> Stat:
    """Return the stat of a version known by heart, at ``now_s`` of this boot."""
    record = entry.record
    same_boot = record.boot == boot_id
    age = age_s(
        record.validated_s,
        now_s,
        same_boot=same_boot,
        validated_unix_s=record.validated_unix_s,
        unix_s=0.0 if same_boot else time(),
    )
    return Stat(
        path,
        Kind.FILE,
        record.size_bytes,
        record.token,
        record.mtime_s,
        age,
        entry.stale,
        record.validated_unix_s or -inf,
        entry.mount.consistency,
    )


def frozen_stat(path: str, binding: Binding) -> Stat:
    """Return the stat of a name in a snapshot, confirmed when that was made; it is bound
    for good, whatever the mount's consistency."""
    frozen = binding.object
    age = max(0.0, time() - binding.created_unix_s)
    return Stat(
        path,
        Kind.FILE,
        frozen.size_bytes,
        frozen.token,
        frozen.mtime_s,
        age,
        validated_unix_s=binding.created_unix_s,
        consistency=Consistency.IMMUTABLE,
    )


def known_stat(
    path: str,
    known: ObjectRecord | wire.Found,
    age: float,
    consistency: Consistency,
    *,
    stale: bool = False,
) -> Stat:
    """Return the stat of what the index or the agent says. Raises NotFound for an absence."""
    if known.kind is Kind.ABSENT:
        raise NotFound("no such object or directory", path=path)
    return Stat(
        path=path,
        kind=Kind(known.kind),
        size_bytes=known.size_bytes,
        version=known.token,
        mtime_s=known.mtime_s,
        age_s=age,
        stale=stale,
        validated_unix_s=known.validated_unix_s or -inf,
        consistency=consistency,
    )
