"""Names below paths, with their full paths."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tiercache.cli.output import say
from tiercache.model import Entry, Kind
from tiercache.units import format_bytes

if TYPE_CHECKING:
    from tiercache.namespace import Namespace


@dataclass(frozen=True, slots=True)
class Named:
    """An entry with its full path; ``relative`` is its name below the path that was asked."""

    path: str
    relative: str
    entry: Entry

    @property
    def is_file(self) -> bool:
        return self.entry.kind is Kind.FILE


def join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


def base_name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


class Names(list[Named]):
    """What a directory holds; ``partial`` where only some of it is known."""

    partial = False


def listed(
    namespace: Namespace, path: str, *, recursive: bool, may_be_partial: bool = False
) -> Names:
    """Return what a directory holds, or the one object that the path is. What is known of a
    directory in part is said on standard error, or raises OriginUnavailable where a part will
    not do. Raises NotFound."""
    found = namespace.stat(path)
    if found.is_file:
        name = base_name(path)
        entry = Entry(name, Kind.FILE, found.size_bytes, found.version, found.mtime_s)
        return Names([Named(path, name, entry)])
    entries = namespace.list(path, recursive)
    if entries.partial:
        warn_of_partial(path, raises=not may_be_partial)
    names = Names(Named(join(path, entry.name), entry.name, entry) for entry in entries)
    names.partial = entries.partial
    return names


def warn_of_partial(path: str, *, raises: bool) -> None:
    from tiercache.errors import OriginUnavailable

    cause = "the directory was never listed whole, and its origin is offline"
    if raises:
        raise OriginUnavailable(
            cause, path=path, remedy="tiercache status says since when; ls shows what is known"
        )
    say(f"tiercache: {path}: partial: {cause}; there may be other names")


def with_directories(found: list[Named], path: str) -> list[Named]:
    """Add the directories that recursive listings leave to be guessed from names, in order."""
    known = {named.relative for named in found}
    more: dict[str, Named] = {}
    for named in found:
        parent = named.relative
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in known or parent in more:
                break
            if parent:
                more[parent] = Named(join(path, parent), parent, Entry(parent, Kind.DIRECTORY))
    return sorted([*found, *more.values()], key=lambda named: named.relative)


def as_json(named: Named) -> dict[str, Any]:
    entry = named.entry
    return {
        "path": named.path,
        "name": named.relative,
        "kind": kind_name(entry.kind),
        "size_bytes": entry.size_bytes,
        "version": entry.token,
        "mtime_s": entry.mtime_s,
    }


def kind_name(kind: Kind) -> str:
    return "directory" if kind is Kind.DIRECTORY else "file"


def shown_time(seconds: float) -> str:
    """Return local time, "-" where there is none."""
    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def shown_bytes(count: int, human: bool) -> str:
    return format_bytes(count) if human else str(count)
