"""A worker of a training job, as a program: it reads a shuffled epoch and checks every byte.

Standard input holds one JSON document: settings, seed, and (path, SHA-256) pairs. Each step is one
line of standard output: [number, seconds, whether the bytes were right]. The last line says how
late this machine was meanwhile with a thread that only sleeps.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
import time

import msgspec

from tiercache.fs import TierCacheFileSystem
from tiercache.namespace import Namespace
from tiercache.settings import Settings

STEP_S = 0.03
BEAT_S = 0.01


class Plan(msgspec.Struct):
    """What one worker does."""

    settings: Settings
    seed: int
    samples: list[tuple[str, str]]


class Metronome:
    """Measures how late a thread wakes up on this machine."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            before = time.monotonic()
            self._stopped.wait(BEAT_S)
            self.late_s = max(self.late_s, time.monotonic() - before - BEAT_S)

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return self.late_s


def read(ns: Namespace, fs: TierCacheFileSystem, number: int, path: str) -> bytes:
    """Read a sample as one of the ways that loaders have."""
    match number % 3:
        case 0:
            return ns.read(path)
        case 1:
            data: bytes = fs.cat_file(path)
            return data
        case _:
            with ns.open(path) as file:
                return file.read()


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    ns = Namespace(plan.settings)
    fs = TierCacheFileSystem(asynchronous=False)
    fs.namespace = ns
    metronome = Metronome()
    samples = list(plan.samples)
    random.Random(plan.seed).shuffle(samples)
    for number, (path, expected) in enumerate(samples):
        started = time.monotonic()
        try:
            right = hashlib.sha256(read(ns, fs, number, path)).hexdigest() == expected
        except OSError as error:
            right = False
            print(f"{path}: {error}", file=sys.stderr, flush=True)
        print(msgspec.json.encode([number, time.monotonic() - started, right]).decode(), flush=True)
        time.sleep(STEP_S)
    print(msgspec.json.encode([-1, metronome.stop(), True]).decode(), flush=True)
    ns.close()


if __name__ == "__main__":
    main()
