"""Copying verified bytes out of the extents that an entry holds open.

What the device does not give (a file cut off, EIO) is no longer trusted: the caller's general path
then verifies those pages again, which reports them and has them fetched.
"""

from __future__ import annotations

import os
from io import BytesIO

from tiercache.client.entry import Entry
from tiercache.ports import ExtentReader

_pread = os.pread
_preadv = os.preadv


def read_whole(ext: ExtentReader, entry: Entry, span: tuple[int, int], offset: int) -> bytes | None:
    """Return bytes ``span`` (start, end) of the object, which lie at ``offset`` of the extent;
    None where the device does not give them all."""
    start, end = span
    try:
        data = _pread(ext.fd, end - start, offset)
    except OSError:
        data = b""
    if len(data) == end - start:
        return data
    entry.distrust(start, end)
    return None


def into_whole(
    ext: ExtentReader, entry: Entry, start: int, buffer: memoryview, offset: int
) -> bool:
    """Fill ``buffer`` from ``offset`` of the extent, which is byte ``start`` of the object; False
    where the device does not give it all."""
    part, left = buffer, len(buffer)
    while left:
        try:
            count = _preadv(ext.fd, (part,), offset)
        except OSError:
            count = 0
        if not count:
            entry.distrust(start, start + len(buffer))
            return False
        left -= count
        if left:
            part = part[count:]
            offset += count
    return True


def copy(entry: Entry, start: int, end: int, visited: memoryview) -> bytes | None:
    """Return verified bytes; None where an extent was let go of meanwhile or fails."""
    segments = entry.segments_of(start, end)
    if len(segments) == 1:
        segment = segments[0]
        ext = segment.held.ext
        if ext is None:
            return None
        visited[segment.slot] = entry.mark
        offset = segment.base + start - segment.start
        return read_whole(ext, entry, (start, end), offset)
    whole = BytesIO(bytes(end - start))
    with whole.getbuffer() as view:
        copied = copy_into(entry, start, view, visited)
    return whole.getvalue() if copied else None


def copy_into(entry: Entry, start: int, buffer: memoryview, visited: memoryview) -> bool:
    """The same into a buffer; False where an extent was let go of meanwhile or fails."""
    end = start + len(buffer)
    for segment in entry.segments_of(start, end):
        ext = segment.held.ext
        if ext is None:
            return False
        first, last = max(start, segment.start), min(end, segment.end)
        visited[segment.slot] = entry.mark
        part = buffer[first - start : last - start]
        offset = segment.base + first - segment.start
        if not into_whole(ext, entry, first, part, offset):
            return False
    return True
