"""Jobs in their table: outcomes, how many are remembered, cancelling, stopping."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from tiercache.agent.job_table import KEPT_JOBS, Job, JobTable
from tiercache.errors import CacheFull, NotFound
from tiercache.model import JobProgress, JobState

pytestmark = pytest.mark.timeout(60)


@dataclass(slots=True, kw_only=True)
class Task(Job):
    error: Exception | None = None
    waits: bool = False

    def progress(self) -> JobProgress:
        return JobProgress(
            id=self.id,
            state=self.state,
            paths=(),
            message=self.message,
            error_class=self.error_class,
            ended=bool(self.ended),
        )


async def work(task: Task) -> None:
    if task.error is not None:
        raise task.error
    if task.waits:
        await asyncio.Event().wait()


def table() -> JobTable[Task]:
    return JobTable[Task](work, unknown=": gone", remedy="begin it again")


async def test_outcomes() -> None:
    ended: list[tuple[str, bool]] = []

    async def note(task: Task) -> None:
        ended.append((task.id, bool(task.ended)))

    jobs = JobTable[Task](work, note)
    jobs.begin(Task(id="ok"))
    jobs.begin(Task(id="full", error=CacheFull("no room")))
    jobs.begin(Task(id="bug", error=ZeroDivisionError("by zero")))
    assert jobs.running == 3
    done, full, bug = [await jobs.query(name, 5) for name in ("ok", "full", "bug")]
    assert (done.state, done.ended) == (JobState.DONE, True)
    assert (full.state, full.message, full.error_class) == (
        JobState.FAILED,
        "no room",
        "CacheFull",
    )
    assert bug.error_class == "TiercacheError"
    assert bug.message == "internal error: ZeroDivisionError: by zero"
    assert (jobs.internal_errors, jobs.running) == (1, 0)
    assert ended == [("ok", True), ("full", True), ("bug", True)]


async def test_the_last_ended_are_remembered_and_all_that_run() -> None:
    jobs = table()
    jobs.begin(Task(id="first", waits=True))
    for number in range(KEPT_JOBS + 5):
        jobs.begin(Task(id=f"{number}"))
    await jobs.query(f"{KEPT_JOBS + 4}", 5)
    jobs.begin(Task(id="last", waits=True))
    assert len(jobs.all()) == KEPT_JOBS + 2
    with pytest.raises(NotFound, match=r"no job 4: gone \(begin it again\)"):
        await jobs.query("4", 0)
    assert (await jobs.query("5", 0)).ended
    assert (await jobs.query("first", 0.01)).state is JobState.RUNNING
    assert (await jobs.cancel("first")).state is JobState.CANCELLED
    assert (await jobs.cancel("first")).state is JobState.CANCELLED
    await jobs.stop()
    assert jobs.stopping and (await jobs.query("last", 0)).state is JobState.CANCELLED
