"""``leases.state``: the mapping from which clients pay. ``policy/lease_words.py`` lays it out."""

from __future__ import annotations

import mmap
import os

from tiercache.errors import FormatError, NotFound
from tiercache.extents.mapped import make_file, map_file, release
from tiercache.policy.lease_words import (
    FILE_BYTES,
    GENERATION_WORD,
    GREATEST_WORD,
    HEADER_BYTES,
    MAGIC,
    SLOT_WORDS,
    TURN_WORD,
    UNLIMITED,
)


def _map(path: str) -> mmap.mmap:
    return map_file(path, magic=MAGIC, file_bytes=FILE_BYTES, what="lease file")


def _is_ours(path: str) -> bool:
    """Whether a file that is none of this format is what is left of one, or missing."""
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC))
    except FileNotFoundError:
        return True
    return MAGIC.startswith(magic) or not any(magic)


class LeaseFileReader:
    """A client's side. Survives forks, since the mapping is shared by parent and child.

    ``header[GENERATION_WORD]`` and ``header[TURN_WORD]`` are the agent's; slot ``n`` is the words
    from ``n * SLOT_WORDS`` on in ``slots``. Raises NotFound where no agent has made the file,
    FormatError for another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._mapping = _map(os.fspath(path))
        whole = memoryview(self._mapping).cast("Q")
        self.header: memoryview = whole[: HEADER_BYTES // 8].toreadonly()
        self.slots: memoryview = whole[HEADER_BYTES // 8 :]

    def close(self) -> None:
        """Release the views; the mapping goes when the last slice of it does."""
        release(self._mapping, self.header, self.slots)


class LeaseFileWriter:
    """The agent's side; one process at a time. Makes the file where it is missing, and anew where
    it was cut short or begins with zeros, as after a power cut: nothing in it outlives its agent.
    What an agent before left in it stands until ``begin``: clients go on with the shares that they
    had.

    Raises FormatError for a file of another format, OSError where the device has no room.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        try:
            self._mapping = _map(name)
        except (NotFound, FormatError):
            if not _is_ours(name):
                raise
            make_file(name, magic=MAGIC, file_bytes=FILE_BYTES)
            self._mapping = _map(name)
        whole = memoryview(self._mapping).cast("Q")
        self._header = whole[: HEADER_BYTES // 8]
        self.slots: memoryview = whole[HEADER_BYTES // 8 :]

    def begin(self) -> None:
        """End all leases of an agent before: all slots are free. Its generation stands until the
        policy is told anew or turned off: in between nobody reads without a policy."""
        self.slots[:] = memoryview(bytes(self.slots.nbytes)).cast("Q")

    @property
    def generation(self) -> int:
        """The policy's in force, 0 while it is off."""
        return int(self._header[GENERATION_WORD])

    def new_generation(self) -> int:
        """Tell every client that the policy has changed or begun; return its number, which no
        policy of this file had before."""
        greatest = self._header[GREATEST_WORD]
        # One that was counted up to here was stored by something else: any other will do.
        self._header[GREATEST_WORD] = greatest + 1 if greatest < UNLIMITED else 1
        self._header[GENERATION_WORD] = self._header[GREATEST_WORD]
        return self.generation

    def turn_off(self) -> None:
        """Tell every client that there is no policy."""
        self._header[GENERATION_WORD] = 0
        self._header[TURN_WORD] = 0

    def turned(self, now_ns: int) -> None:
        """Tell every client that the governor has just turned."""
        self._header[TURN_WORD] = now_ns

    def clear(self, slot: int) -> None:
        """Set all words of a slot to 0, its owner first: whoever still pays from it finds that it
        is no longer its own."""
        first = slot * SLOT_WORDS
        for word in range(first, first + SLOT_WORDS):
            self.slots[word] = 0

    def close(self) -> None:
        """Release the views; the mapping goes when the last slice of it does."""
        release(self._mapping, self._header, self.slots)
