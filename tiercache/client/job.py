"""A prefetch job as its starter holds it."""

from __future__ import annotations

import time

from tiercache import wire
from tiercache.client.link import Link
from tiercache.model import JobProgress

# One long poll; the agent answers earlier when the job ends.
POLL_S = 10.0


class Job:
    """Thread safe. The job itself runs in the agent and does not need this object."""

    def __init__(self, link: Link, progress: JobProgress) -> None:
        self._link = link
        self._last = progress
        self.id = progress.id

    def progress(self, wait_s: float = 0.0) -> JobProgress:
        """Return the job's state, waiting up to ``wait_s`` for its end. Raises NotFound where the
        agent was replaced and the job was not a background one."""
        if not self._last.ended:
            self._last = self._link.request(wire.JobQuery(self.id, wait_s), wire.Job).progress
        return self._last

    def wait(self, timeout_s: float | None = None) -> JobProgress:
        """Wait for the end and return it. Raises TimeoutError.

        A job that ended with failures does not raise: see ``state``, ``failed`` and ``errors``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
            progress = self.progress(max(0.0, left))
            if progress.ended:
                return progress
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} is still running")

    def cancel(self) -> JobProgress:
        """End the job; what was fetched stays."""
        self._last = self._link.request(wire.JobCancel(self.id), wire.Job).progress
        return self._last
