"""The queue of a slot: one job for one version and configuration, and no state from which it cannot go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from treadle_trainer._files import locked
from treadle_trainer.errors import JobMissing, JobRefused
from treadle_trainer.queue import Job, JobQueue, served, service_lock


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
    assert queue.submit("/c", 1, fingerprint="f", settings={"memory_gb": 8})[0].settings == {"steps": 5}
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
    with pytest.raises(JobRefused, match="only one that is failed, cancelled, superseded can be resumed"):
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
    assert queue.job(2).ended_at is not None


def test_a_newer_version_takes_the_place_of_those_that_wait_but_not_of_what_a_person_asked_for(queue: JobQueue) -> None:
    for version in (1, 2):
        _submit(queue, version, actor="trainer")
    _submit(queue, 3)
    queue.submit("/other", 1, fingerprint="f", actor="trainer")
    newest = _submit(queue, 4, actor="trainer")
    queue.start(2, "k")
    queue.supersede("/c", "job 5 on v4 took its place", keep=newest.number)
    states = ["superseded", "running", "queued", "queued", "queued"]
    assert [job.state for job in queue.jobs()] == states
    assert queue.job(1).reason == "job 5 on v4 took its place"
    # it may still be wanted: by its number, or by asking for the same again
    assert queue.resume(1).state == "queued"
    assert not queue.job(1).automatic
    queue.supersede("/other", "nothing starts it any more")
    again = queue.submit("/other", 1, fingerprint="f")[0]
    assert (again.number, again.state, again.automatic, again.reason) == (4, "queued", False, None)
    following = queue.next()
    assert following is not None
    assert following.number == 1


def test_what_is_asked_for_again_with_other_limits_has_those(queue: JobQueue) -> None:
    _submit(queue)
    queue.start(1, "k")
    queue.end(1, "failed", reason="took too much memory")
    job, new = queue.submit("/c", 1, fingerprint="f", settings={"memory_gb": 8})
    assert (job.number, new, job.state, job.settings) == (1, False, "failed", {"memory_gb": 8})
    assert queue.submit("/c", 1, fingerprint="f", actor="trainer")[0].settings == {"memory_gb": 8}


def test_who_serves_a_slot_can_be_asked(tmp_path: Path) -> None:
    assert not served(tmp_path)
    with locked(service_lock(tmp_path)):
        assert served(tmp_path)
    assert not served(tmp_path)


def test_a_job_that_is_not_there_or_not_a_job_names_its_file(queue: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(JobMissing, match="there is no job 7; `treadle job list`"):
        queue.job(7)
    _submit(queue)
    (tmp_path / "queue" / "1.json").write_text("{}")
    with pytest.raises(JobMissing, match=r"1\.json: not a job"):
        queue.job(1)
