"""Starting: the import, a client to a running agent, and the agent itself."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec

import tiercache
from benchmarks.harness import Outcome, Race
from benchmarks.lab import Lab, stop_agent
from benchmarks.registry import measure
from benchmarks.workload import Workload
from tiercache.settings import ProfileSettings, Settings

# Each prints its own seconds: the interpreter's start is not ours.
IMPORT = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
CONNECT = """
import sys, time, msgspec, tiercache
from tiercache.namespace import connect
from tiercache.settings import Settings
import tiercache.compose
settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
started = time.perf_counter()
namespace = connect(settings)
print(time.perf_counter() - started)
namespace.close()
"""
COLD_CONNECT = """
import sys, time
text = sys.stdin.buffer.read()
started = time.perf_counter()
import msgspec, tiercache
from tiercache.settings import Settings
namespace = tiercache.connect(msgspec.json.decode(text, type=Settings))
print(time.perf_counter() - started)
namespace.close()
"""
SCRIPT_TIMEOUT_S = 60.0


def _script(code: str, text: bytes = b"") -> float:
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=text,
        capture_output=True,
        timeout=SCRIPT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace")[-500:])
    return float(done.stdout)


@measure("startup")
def startup(lab: Lab, workload: Workload) -> Outcome:
    """Imports, connections and an agent's start, each by its own clock."""
    race = Race(amount=1000.0, unit="ms", per="op")
    folder = lab.folder("origin")
    settings = lab.settings(origin=f"file://{folder}", profile=ProfileSettings(name="files"))
    text = msgspec.json.encode(settings)
    race.add("import fsspec", "rival", lambda: _script(IMPORT.format(module="fsspec")))
    race.add("import tiercache", "ours", lambda: _script(IMPORT.format(module="tiercache")))
    race.add(
        "import tiercache.namespace",
        "ours",
        lambda: _script(IMPORT.format(module="tiercache.namespace")),
    )
    race.add("python -c pass", "bound", _interpreter)
    with lab.namespace(settings):
        race.add("connect() to a running agent", "ours", lambda: _script(CONNECT, text))
        race.add(
            "import + connect() to a running agent", "ours", lambda: _script(COLD_CONNECT, text)
        )
        race.add("agent start", "ours", lambda: _agent_start(lab, folder.as_posix()))
        race.run(workload.load.rounds, warm_up=workload.load.warm_up)
    return Outcome(
        figures=race.figures,
        notes=("tiercache is imported lazily: the namespace comes with the first connect()",),
    )


def _interpreter() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=SCRIPT_TIMEOUT_S)
    return time.perf_counter() - started


def _agent_start(lab: Lab, folder: str) -> float:
    """Seconds that connect takes in an empty cache directory, the agent's start included."""
    settings: Settings = lab.settings(
        origin=f"file://{folder}", profile=ProfileSettings(name="files")
    )
    started = time.perf_counter()
    namespace = tiercache.connect(settings)
    seconds = time.perf_counter() - started
    stop_agent(namespace)
    return seconds
