"""Background jobs: begun, asked after, cancelled, and what became of them.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from tiercache.agent.device import NotCached
from tiercache.errors import NotFound, TiercacheError
from tiercache.model import JobProgress, JobState

log = logging.getLogger("tiercache.agent")

# Ended jobs that can still be asked for.
KEPT_JOBS = 100


@dataclass(slots=True, kw_only=True)
class Job(ABC):
    """What every job has. Its work may set ``state`` to what it ended as; else it is done."""

    id: str
    started: float = field(default_factory=monotonic)
    ended: float = 0.0
    state: JobState = JobState.RUNNING
    message: str = ""
    error_class: str = ""
    task: asyncio.Task[None] | None = None

    @property
    def elapsed_s(self) -> float:
        return (self.ended or monotonic()) - self.started

    @abstractmethod
    def progress(self) -> JobProgress: ...

    def fail(self, error: Exception) -> None:
        self.state = JobState.FAILED
        self.message = str(error)
        self.error_class = type(error).__name__


J = TypeVar("J", bound=Job)


async def _nothing(job: Job) -> None:
    pass


class JobTable(Generic[J]):
    """Jobs of one kind: ``work`` is what one does, ``ended`` what comes after it, whatever its
    outcome; ``unknown`` and ``remedy`` say more about a job that is not there."""

    def __init__(
        self,
        work: Callable[[J], Awaitable[None]],
        ended: Callable[[J], Awaitable[None]] = _nothing,
        *,
        unknown: str = "",
        remedy: str = "",
    ) -> None:
        self._work = work
        self._ended = ended
        self._unknown = unknown
        self._remedy = remedy
        self.jobs: dict[str, J] = {}
        self.stopping = False
        # Jobs that ended by a defect of ours.
        self.internal_errors = 0

    @property
    def running(self) -> int:
        return sum(not job.ended for job in self.jobs.values())

    def begin(self, job: J) -> JobProgress:
        """Start a job's task; forget the oldest ended ones."""
        self.jobs[job.id] = job
        ended = [other.id for other in self.jobs.values() if other.ended]
        for old in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self.jobs[old]
        job.task = asyncio.create_task(self._run(job))
        return job.progress()

    def _job(self, job_id: str) -> J:
        job = self.jobs.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id}{self._unknown}", remedy=self._remedy)
        return job

    async def query(self, job_id: str, wait_s: float) -> JobProgress:
        """Return the job's state, waiting up to ``wait_s`` for it to end. Raises NotFound."""
        job = self._job(job_id)
        if wait_s > 0 and job.task is not None and not job.ended:
            await asyncio.wait({job.task}, timeout=wait_s)
        return job.progress()

    async def cancel(self, job_id: str) -> JobProgress:
        """Raises NotFound."""
        job = self._job(job_id)
        if job.task is not None and not job.ended:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
        return job.progress()

    def all(self) -> list[JobProgress]:
        return [job.progress() for job in self.jobs.values()]

    async def stop(self) -> None:
        """Cancel all, and wait until they have ended."""
        self.stopping = True
        tasks = [job.task for job in self.jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: J) -> None:
        try:
            await self._work(job)
            if job.state is JobState.RUNNING:
                job.state = JobState.DONE
        except asyncio.CancelledError:
            job.state = JobState.CANCELLED
            job.message = "cancelled"
        except (TiercacheError, OSError, NotCached) as error:
            job.fail(error)
        except Exception as error:  # the task's top: nobody else would ever see it
            self.internal_errors += 1
            log.exception("internal error in job %s", job.id)
            job.fail(TiercacheError(f"internal error: {type(error).__name__}: {error}"))
        finally:
            job.ended = monotonic()
            await self._ended(job)
