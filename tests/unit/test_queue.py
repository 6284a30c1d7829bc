"""The queue of a slot: one job for one version and configuration, and no state from which it cannot go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from treadle_trainer.errors import JobMissing, JobRefused
from treadle_trainer.queue import Job, JobQueue


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path)


def _submit(queue: JobQueue, version: int = 1, fingerprint: str = "f", **more: str) -> Job:
    return queue.submit("/c", version, fingerprint=fingerprint, **more)[0]


def test_asking_twice_is_one_job(queue: JobQueue) -> None:
    first, new = queue.submit("/c", 1, fingerprint="f", settings={"steps": 5})
    assert (first.number, new, first.state) == (1, True, "queued")
    assert queue.submit("/c", 1, fingerprint="f") == (first, False)
    queue.start(1, "k")
    queue.end(1, "done", reason="better", decision="promoted", release="w/main/r1")
    assert queue.submit("/c", 1, fingerprint="f")[0].state == "done"
    others = [_submit(queue, 2), _submit(queue, 1, "g"), _submit(queue, 1, "f", label="again")]
    assert [job.number for job in others] == [2, 3, 4]
    assert queue.jobs() == [queue.job(1), *others]


def test_jobs_are_begun_in_order_and_those_of_versions_by_their_versions(queue: JobQueue) -> None:
    _submit(queue, 1, actor="trainer")
    _submit(queue, 2)
    _submit(queue, 3)
    following = queue.next()
    assert following is not None
    assert following.number == 2
    queue.start(2, "k")
    following = queue.next()
    assert following is not None
    assert following.number == 3


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_is_asked_to_end(queue: JobQueue) -> None:
    _submit(queue)
    assert queue.cancel(1).state == "cancelled"
    with pytest.raises(JobRefused, match="job 1 is cancelled already"):
        queue.cancel(1)
    with pytest.raises(JobRefused, match="treadle job resume"):
        queue.start(1, "k")
    assert queue.resume(1).state == "queued"
    with pytest.raises(JobRefused, match="only a failed or cancelled one"):
        queue.resume(1)
    queue.start(1, "k")
    assert queue.cancel(1).state == "running"
    assert queue.cancelling(1)


def test_what_a_crash_left_running_goes_on_unless_it_was_being_cancelled(queue: JobQueue) -> None:
    for version in (1, 2):
        _submit(queue, version)
        queue.start(version, "k")
    queue.cancel(2)
    queue.recover()
    assert [(job.state, job.cancelling) for job in queue.jobs()] == [("queued", False), ("cancelled", False)]


def test_a_job_that_is_not_there_or_not_a_job_names_its_file(queue: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(JobMissing, match="there is no job 7; `treadle job list`"):
        queue.job(7)
    _submit(queue)
    (tmp_path / "queue" / "1.json").write_text("{}")
    with pytest.raises(JobMissing, match=r"1\.json: not a job"):
        queue.job(1)
