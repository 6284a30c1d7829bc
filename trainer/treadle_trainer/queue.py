"""The jobs of a slot: what was asked for, what became of it. Files that survive every restart, changed under one lock.

One job is one turn on one corpus version with one configuration; asking twice gives the same job. The service does them one after the
other, a device never has two. A job that a crash cut short goes on: its turn is known by its key, and a training by its checkpoints.

    queued -> running -> done | failed | cancelled      queued -> cancelled | superseded      failed, cancelled, superseded -> queued
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace
from treadle_schemas.moments import now

from treadle_trainer._files import locked, write_atomically
from treadle_trainer.errors import JobMissing, JobRefused

__all__ = ["JOB_PARTS", "RESUMABLE", "Job", "JobQueue", "State", "served", "service_lock"]

State = Literal["queued", "running", "done", "failed", "cancelled", "superseded"]
"""`superseded`: a version asked for it, it had not begun, and a newer version asked as well."""
JOB_PARTS: Final = ("train", "evaluate", "scorecard")
"""The folders of a job with key KEY are KEY-train and so on."""
RESUMABLE: Final = ("failed", "cancelled", "superseded")


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job. `settings` are those of the slot's policy that differ for it, by dotted name."""

    number: int
    corpus: str
    version: int
    settings: dict[str, Any] = {}
    label: str = ""
    fingerprint: str = ""
    """Of the whole configuration when it was asked for."""
    actor: str = "user"
    state: State = "queued"
    key: str | None = None
    """Names its folders (JOB_PARTS) once it has begun."""
    cancelling: bool = False
    decision: str | None = None
    release: str | None = None
    reason: str | None = None
    submitted_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None

    @property
    def automatic(self) -> bool:
        """Whether a new corpus version asked for it."""
        return self.actor == "trainer"


class JobQueue:
    """The jobs of one slot below `folder`/queue, a file each. Safe among processes; reading needs no lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "queue"
        self._lock = folder / "queue.lock"
        self._done: set[int] = set()
        """Jobs that are done, which they stay: nothing to look at again."""

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return [self.job(number) for number in self._numbers()]

    def job(self, number: int) -> Job:
        """Job `number`. Raises JobMissing."""
        path = self._folder / f"{number}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Job)
        except FileNotFoundError:
            raise JobMissing(f"{path}: there is no job {number}; `treadle job list` shows which there are") from None
        except msgspec.MsgspecError as err:
            raise JobMissing(f"{path}: not a job: {err}") from err

    def submit(
        self,
        corpus: str,
        version: int,
        *,
        fingerprint: str,
        settings: dict[str, Any] | None = None,
        label: str = "",
        actor: str = "user",
    ) -> tuple[Job, bool]:
        """Ask for a job. Returns it, and whether it is new.

        The same version, configuration and label are one job, whatever became of it. What a person asks for waits no longer for the
        version that asked first.
        """
        with locked(self._lock):
            jobs = self.jobs()
            for job in jobs:
                if (job.corpus, job.version, job.fingerprint, job.label) == (corpus, version, fingerprint, label):
                    if settings is not None and job.settings != settings and job.state not in ("running", "done"):
                        job = self._write(replace(job, settings=settings))  # its limits, or what else shapes nothing
                    if job.automatic and actor != job.actor and job.state in ("queued", "superseded"):
                        job = self._write(replace(job, actor=actor, state="queued", reason=None, ended_at=None))
                    return job, False
            job = Job(
                number=1 + max((job.number for job in jobs), default=0),
                corpus=corpus,
                version=version,
                settings=settings or {},
                label=label,
                fingerprint=fingerprint,
                actor=actor,
                submitted_at=now(),
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._write(job), True

    def next(self) -> Job | None:
        """The oldest job that somebody asked for and nobody has begun."""
        for number in self._numbers():
            if number in self._done:
                continue
            job = self.job(number)
            if job.state == "queued" and not job.automatic:
                return job
            if job.state == "done":
                self._done.add(number)
        return None

    def supersede(self, corpus: str, reason: str, *, keep: int | None = None) -> None:
        """End the automatic jobs on a corpus that wait and have not begun, but for job `keep`: their version is no longer the newest, or
        no longer starts anything.
        """
        with locked(self._lock):
            for job in self.jobs():
                if job.corpus == corpus and job.automatic and job.state == "queued" and job.number != keep:
                    self._write(replace(job, state="superseded", reason=reason, ended_at=now()))

    def recover(self) -> None:
        """Put back what a crash of the service left running. Only the service calls this, before it begins anything."""
        with locked(self._lock):
            for job in self.jobs():
                if job.state == "running" and job.cancelling:
                    why = "cancelled while it ran"
                    self._write(replace(job, state="cancelled", cancelling=False, reason=why, ended_at=now()))
                elif job.state == "running":
                    self._write(replace(job, state="queued", reason="the service was cut short; it goes on"))

    def start(self, number: int, key: str) -> Job:
        """It begins. Raises JobRefused where it is cancelled meanwhile."""
        with locked(self._lock):
            job = self.job(number)
            if job.state not in ("queued", "running"):
                raise JobRefused(f"job {number} is {job.state}; `treadle job resume` queues it again")
            return self._write(replace(job, state="running", key=key, started_at=now(), ended_at=None, reason=None))

    def end(
        self, number: int, state: State, *, reason: str, decision: str | None = None, release: str | None = None
    ) -> Job:
        """It is over, or with state `queued` put back."""
        with locked(self._lock):
            job = replace(
                self.job(number),
                state=state,
                reason=reason,
                decision=decision,
                release=release,
                cancelling=False,
                ended_at=None if state == "queued" else now(),
            )
            return self._write(job)

    def cancel(self, number: int) -> Job:
        """Let it end: at once where it waits, within seconds where it runs. Raises JobRefused where it is over."""
        with locked(self._lock):
            job = self.job(number)
            if job.state == "queued":
                return self._write(replace(job, state="cancelled", ended_at=now(), reason="cancelled before it began"))
            if job.state != "running":
                raise JobRefused(f"job {number} is {job.state} already")
            return self._write(replace(job, cancelling=True))

    def resume(self, number: int) -> Job:
        """Queue a job again that failed, was cancelled or superseded; what it had done is not done again. Raises JobRefused for others."""
        with locked(self._lock):
            job = self.job(number)
            if job.state not in RESUMABLE:
                raise JobRefused(f"job {number} is {job.state}; only one that is {', '.join(RESUMABLE)} can be resumed")
            return self._write(replace(job, state="queued", actor="user", cancelling=False, reason=None, ended_at=None))

    def cancelling(self, number: int) -> bool:
        """Whether somebody wants it to end."""
        return self.job(number).cancelling

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdecimal())

    def _write(self, job: Job) -> Job:
        write_atomically(self._folder / f"{job.number}.json", msgspec.json.format(msgspec.json.encode(job), indent=1))
        return job


def service_lock(folder: Path) -> Path:
    """The file that the service locks as long as it serves the slot in `folder`."""
    return folder / "trainer.lock"


def served(folder: Path) -> bool:
    """Whether a service on this machine serves the slot in `folder` now."""
    with locked(service_lock(folder), wait=False) as free:
        return not free
