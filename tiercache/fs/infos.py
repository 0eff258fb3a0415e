"""What the namespace says, as fsspec describes it."""

from __future__ import annotations

from typing import Any

from tiercache.errors import OriginUnavailable
from tiercache.fs.files import file_info, stat_info
from tiercache.model import Entry, Kind, Listing, Stat

Info = dict[str, Any]


def info_of(path: str, known: Stat) -> Info:
    """Return fsspec's description of a path."""
    if known.kind is Kind.DIRECTORY:
        return directory_info(path)
    return stat_info(known)


def directory_info(path: str) -> Info:
    return {"name": path, "size": 0, "type": "directory"}


def entry_info(path: str, entry: Entry) -> Info:
    if entry.kind is Kind.DIRECTORY:
        return directory_info(path)
    return file_info(path, size=entry.size_bytes, version=entry.token, mtime_s=entry.mtime_s)


def refuse_partial(listing: Listing, path: str) -> None:
    """Raise OriginUnavailable for what is known of a directory in part: fsspec has no room for
    the mark, and a part taken for the whole would be trained on."""
    if listing.partial:
        raise OriginUnavailable(
            "the directory was never listed whole, and its origin is offline",
            path=path,
            remedy="Namespace.list returns what is known, marked partial",
        )
