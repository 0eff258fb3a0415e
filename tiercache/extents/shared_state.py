"""``shared.state``: the few bytes that agent and clients share through a mapping.

    offset  0   magic b"TCSTATE1"
    offset  8   u64  epoch: moves when a name or an extent moved; clients then forget names
    offset 16   u64  agent generation: moves at every agent start; clients then verify anew
    offset 24   zeros up to 4096
    offset 4096 visited: one byte for each extent slot, stored by readers, cleared by the agent

Integers are little-endian and aligned, so that each load and store is one instruction.
"""

from __future__ import annotations

import mmap
import os

from tiercache.extents.mapped import make_file, map_file, release

MAGIC = b"TCSTATE1"
HEADER_BYTES = 4096
# An extent costs an inode and ≥ 64 MiB unless the cache is small: 1 Mi slots cover 64 TiB.
VISITED_SLOTS = 1 << 20
FILE_BYTES = HEADER_BYTES + VISITED_SLOTS
EPOCH_WORD = 1
GENERATION_WORD = 2


def _map(path: str) -> mmap.mmap:
    return map_file(path, magic=MAGIC, file_bytes=FILE_BYTES, what="shared state")


class SharedStateReader:
    """A client's side. Survives forks, since the mapping is shared by parent and child.

    ``words[EPOCH_WORD]`` is the epoch, ``words[GENERATION_WORD]`` the agent generation (~40 ns
    each); ``visited[slot] = mark`` notes a hit (1 to 255: whose). Raises NotFound where no agent
    has made the file, FormatError for another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._mapping = _map(os.fspath(path))
        whole = memoryview(self._mapping)
        self.words: memoryview = whole[:HEADER_BYTES].cast("Q").toreadonly()
        self.visited: memoryview = whole[HEADER_BYTES:]

    def close(self) -> None:
        """Release the views; the mapping goes when the last slice of it does."""
        release(self._mapping, self.words, self.visited)


class SharedStateWriter:
    """The agent's side; one process at a time. Makes the file where it is missing.

    Raises FormatError for a file of another format, OSError where the device has no room.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        if not os.path.exists(name):
            make_file(name, magic=MAGIC, file_bytes=FILE_BYTES)
        self._mapping = _map(name)
        whole = memoryview(self._mapping)
        self.words: memoryview = whole[:HEADER_BYTES].cast("Q")
        self.visited: memoryview = whole[HEADER_BYTES:]

    @property
    def slots_count(self) -> int:
        return VISITED_SLOTS

    @property
    def epoch(self) -> int:
        return int(self.words[EPOCH_WORD])

    @property
    def generation(self) -> int:
        return int(self.words[GENERATION_WORD])

    def bump_epoch(self) -> None:
        """Tell every client that some name or extent it knows has moved."""
        self.words[EPOCH_WORD] += 1

    def bump_generation(self) -> None:
        """Tell every client that another agent has begun: pages are to be verified again."""
        self.words[GENERATION_WORD] += 1

    def visited_by(self, slot: int) -> int:
        return self.visited[slot]

    def take_visited(self, slot: int) -> int:
        """Return the mark that the last visitor since the last call has left, 0 for none, and
        clear it. A visit that falls between the two is lost, which costs SIEVE one second chance
        and no more."""
        mark = self.visited[slot]
        if mark:
            self.visited[slot] = 0
        return mark

    def close(self) -> None:
        """Release the views; the mapping goes when the last slice of it does."""
        release(self._mapping, self.words, self.visited)
