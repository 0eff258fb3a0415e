"""What the kernel knows of a process: CPU seconds, memory, bytes from block devices.

A process that is gone, or whose figures the kernel does not show us, reads as None.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiercache.namespace import Namespace

# The clock of a whole process's CPU time in clock_gettime(2), as glibc's clock_getcpuclockid
# makes it: nanoseconds where /proc/<pid>/stat has ticks of 10 ms, ended threads included.
_CPUCLOCK_SCHED = 2


def cpu_s(pid: int) -> float | None:
    """Return the CPU seconds, user's and system's, that all its threads have used."""
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


def own_cpu_s() -> float:
    """Return this process's CPU seconds and those of its children that have been waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def forget_peak_rss(pid: int) -> bool:
    """Let the peak begin anew from what is resident now; return whether the kernel did."""
    try:
        # proc(5): 5 resets the "high water mark". A kernel without it, or a foreign process.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss_bytes(pid: int) -> int | None:
    """Return the most that was resident at once since its start, or since the peak was
    forgotten."""
    return _kilobytes(pid, "VmHWM:")


def rss_bytes(pid: int) -> int | None:
    """Return what is resident now."""
    return _kilobytes(pid, "VmRSS:")


def device_read_bytes(pid: int) -> int | None:
    """Return the bytes that it has made block devices read, read-ahead included, and its
    waited-for children too; a hit in the page cache counts nothing."""
    found = _field(pid, "io", "read_bytes:")
    return None if found is None else int(found)


def alive(pid: int) -> bool:
    """Return whether it still runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def agent_pid(namespace: Namespace) -> int:
    """Return the agent that the namespace is connected to; 0 for none."""
    welcome = namespace.client.link.welcome
    return welcome.agent_pid if welcome is not None else 0


def own_peak_rss_bytes() -> int:
    """Return the peak of this process, for a worker to hand over before it ends. (ru_maxrss
    would be its parent's, which it was forked from.)"""
    return peak_rss_bytes(os.getpid()) or 0


def _kilobytes(pid: int, name: str) -> int | None:
    found = _field(pid, "status", name)
    return None if found is None else int(found.split()[0]) * 1024


def _field(pid: int, file: str, name: str) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return None
    return next((line[len(name) :].strip() for line in lines if line.startswith(name)), None)
