"""``kill -9`` of the process that writes the index, in the middle of its commits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fault.cache_rig import ROOT, end
from tiercache.metadata.lmdb_store import LmdbStore

ROUNDS = 40

# Keeps a reader, as every client does (the last one out would repair by closing), and forks
# writers that commit as fast as they can; a line says that one has begun.
WRITERS = """
import os, signal, sys
from tiercache.metadata.lmdb_store import LmdbReader, LmdbStore
if os.fork() == 0:
    reader = LmdbReader(sys.argv[1])
    reader.sequence()
    os.write(1, b"reading\\n")
    while True:
        signal.pause()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store = LmdbStore(sys.argv[1])
        os.write(1, b"%d\\n" % os.getpid())
        while True:
            number = store.sequence() + 1
            store.commit({b"a": b"%d" % number, b"b": b"%d" % number})
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def test_a_new_writer_reads_what_the_dead_one_left(tmp_path: Path, seed: int) -> None:
    """A commit cut off in its last step is there for the next writer: then it must be there for
    what that writer reads before its first commit, or it would plan on what is no longer so."""
    rng = random.Random(seed)
    path = str(tmp_path / "index.lmdb")
    LmdbStore(path).close()
    writers = subprocess.Popen(
        [sys.executable, "-c", WRITERS, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        bufsize=0,
        start_new_session=True,
    )
    assert writers.stdin is not None and writers.stdout is not None
    try:
        assert writers.stdout.readline() == b"reading\n"
        for _ in range(ROUNDS):
            writers.stdin.write(b"go\n")
            pid = int(writers.stdout.readline())
            time.sleep(rng.uniform(0.001, 0.02))
            os.kill(pid, signal.SIGKILL)
            assert writers.stdout.readline() == b"dead\n"
            store = LmdbStore(path)
            found = store.sequence()
            assert store.get(b"a") == store.get(b"b") == (b"%d" % found if found else None)
            after = b"%d" % (found + 1)
            assert store.commit({b"a": after, b"b": after}) == found + 1
            store.close()
    finally:
        os.killpg(writers.pid, signal.SIGKILL)
        end(writers)
