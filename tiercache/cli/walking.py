"""Names below paths, with their full paths."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

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


def listed(namespace: Namespace, path: str, *, recursive: bool) -> list[Named]:
    """Return what a directory holds, or the one object that the path is. Raises NotFound."""
    found = namespace.stat(path)
    if found.is_file:
        name = base_name(path)
        entry = Entry(name, Kind.FILE, found.size_bytes, found.version, found.mtime_s)
        return [Named(path, name, entry)]
    return [
        Named(join(path, entry.name), entry.name, entry)
        for entry in namespace.list(path, recursive)
    ]


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
