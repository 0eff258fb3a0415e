"""Versions that a snapshot froze: found in the index, or bound by the agent; never another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from tiercache import records, wire
from tiercache.client.batch import Item, Outcomes, fill_plain
from tiercache.client.link import Link
from tiercache.client.resolver import Binding, Name, Resolver
from tiercache.errors import StaleHandle, TiercacheError
from tiercache.model import Kind
from tiercache.policy import snapshots
from tiercache.ports import IndexReader
from tiercache.records import ObjectRecord


def held(index: IndexReader, name: Name, binding: Binding) -> tuple[bytes, ObjectRecord] | None:
    """Return the record, raw and decoded, where the index knows the name with this version."""
    raw = index.get(records.object_key(name.digest))
    if raw is None:
        return None
    record = records.decode_object(raw)
    same = record.kind is Kind.FILE and record.token == binding.object.token
    return (raw, record) if same else None


def bind(link: Link, name: Name, binding: Binding) -> ObjectRecord:
    """Let the agent see to it that the name has the frozen version, and return what is known of
    that. Raises StaleHandle where it has another, and OriginUnavailable."""
    answer = link.request(wire.Bind((_span(name, binding, 0, 0),)), wire.Bound)
    _check(answer.data[0], name, binding)
    frozen = binding.object
    return ObjectRecord(
        origin=name.origin,
        key=name.key,
        kind=Kind.FILE,
        token=frozen.token,
        size_bytes=frozen.size_bytes,
        mtime_s=frozen.mtime_s,
        validated_s=-inf,
        validated_unix_s=binding.created_unix_s,
    )


def fill_many(
    link: Link, resolver: Resolver, items: Sequence[Item], epoch: int, meanwhile: Callable[[], None]
) -> Outcomes:
    """Have parts of many names filled, in one frame those of mounts (``fill_plain``) and in one
    those of snapshots. Names that cannot be resolved are left to whoever reads them."""
    outcomes: Outcomes = {}
    plain: list[Item] = []
    frozen: dict[Item, tuple[Name, Binding]] = {}
    for item in items:
        if snapshots.SUFFIX not in item[0]:
            plain.append(item)
            continue
        try:
            name = resolver.locate(item[0])
        except TiercacheError as error:
            outcomes[item] = error
            continue
        if name.binding is None:
            plain.append(item)
        else:
            frozen[item] = (name, name.binding)
    if plain:
        outcomes.update(fill_plain(link, plain, epoch, meanwhile))
    if frozen:
        request = wire.Bind(
            tuple(
                _span(name, binding, offset, _inside(binding, offset, length))
                for (_, offset, length), (name, binding) in frozen.items()
            )
        )
        bound = link.request(request, wire.Bound, meanwhile=meanwhile)
        for (item, (name, binding)), found in zip(frozen.items(), bound.data, strict=True):
            outcomes[item] = None
            try:
                _check(found, name, binding)
            except TiercacheError as error:
                outcomes[item] = error
    return outcomes


def _inside(binding: Binding, offset: int, length: int | None) -> int:
    left = max(0, binding.object.size_bytes - offset)
    return left if length is None else min(length, left)


def _span(name: Name, binding: Binding, offset: int, length: int) -> wire.FrozenSpan:
    frozen = binding.object
    return wire.FrozenSpan(
        name.path,
        frozen.token,
        frozen.size_bytes,
        frozen.mtime_s,
        binding.created_unix_s,
        offset,
        length,
    )


def _check(found: wire.Found | wire.Failure, name: Name, binding: Binding) -> None:
    if isinstance(found, wire.Failure):
        raise wire.error_of(found)
    frozen = binding.object
    if found.kind is not Kind.FILE or found.token != frozen.token:
        raise StaleHandle(
            snapshots.changed(binding.snapshot, frozen.token, found.token, stale=found.stale),
            path=name.path,
            remedy=snapshots.CHANGED_REMEDY,
        )
