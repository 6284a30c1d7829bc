"""The trainer as a process: new corpus versions wake it, one job at a time, and every decision is told on `.releases`.

It keeps little: how far it has read `.snapshots` for each slot, written after the turn that the records asked for. What was decided lies in
the registry, so a turn that a crash cut short is found unfinished and done, and one that was finished is not done again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from treadle.errors import LogError
from treadle.log import Admin, Record, TailReader
from treadle_corpus import Corpus, CorpusError, CorpusRef, resolve_target
from treadle_schemas import ContractError, SnapshotRecord, TreadleError
from treadle_schemas.codec import SNAPSHOT, decode
from treadle_schemas.topics import topic

from treadle_trainer._files import locked, write_atomically
from treadle_trainer._workspace import workspace_settings
from treadle_trainer.errors import DiskFull, JobRefused, JobStopped, NoChampion
from treadle_trainer.jobs import NO_ROOM, JobRunner
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.queue import JOB_PARTS, Job, JobQueue, service_lock
from treadle_trainer.registry import Outbox, Registry, slots
from treadle_trainer.reporting import Reporter, SlotReport
from treadle_trainer.storage import Storage, wanted_by
from treadle_trainer.turn import TurnReport, job_key, run_turn

__all__ = ["TrainerService"]

log = logging.getLogger("treadle.trainer")

POLL_S = 0.2
LOOK_EVERY_S = 2.0
RETRY_S = 2.0
ROOM_RETRY_S = 20.0
"""Between two looks for room on a disk that has none: they walk through everything that the trainer keeps."""


class TrainerService:
    """Trains for every slot below the registry root that has a policy, or for those of one workspace."""

    def __init__(
        self,
        registry_root: Path,
        jobs: JobRunner,
        bootstrap_servers: str,
        workspace: str | None = None,
        storage: Storage | None = None,
        report: Path | None = None,
    ) -> None:
        """`storage` makes room before each job; without one nothing is freed, and a full disk is found out by the job. `report` is the
        file in which it says how it is.
        """
        self._reporter = Reporter(report)
        self._root = registry_root
        self._runner = jobs
        self._storage = storage
        self._servers = bootstrap_servers
        self._workspace = workspace
        self._desks: dict[tuple[str, str], _Desk] = {}
        self._looked = -LOOK_EVERY_S
        self._troubles: dict[tuple[str, str], str] = {}

    def run(self, should_stop: Callable[[], bool], *, once: bool = False) -> None:
        """Serve until told to stop; with `once`, until nothing is left to do. An unreachable Kafka is waited for."""
        self._runner.warm()
        try:
            while not should_stop():
                busy = self.tick(should_stop)
                if once and not busy and all(desk.idle for desk in self._desks.values()):
                    return
        finally:
            for desk in self._desks.values():
                desk.close()
            self._desks.clear()

    def tick(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """One look at every slot: read `.snapshots`, do at most one turn each, publish. True where a turn was done."""
        self._look_for_slots()
        self._reporter.beat()
        if not self._desks:
            time.sleep(POLL_S)
        worked = False
        for name, desk in list(self._desks.items()):
            try:
                worked = desk.tick(POLL_S / len(self._desks), should_stop) or worked
                self._troubles.pop(name, None)
            except JobStopped:
                log.info("%s/%s: stopped in the middle of a turn; it is done anew at the next start", *name)
                return False
            except LogError as err:
                self._leave(name, err)
            except OSError as err:
                if err.errno not in NO_ROOM:
                    raise
                # nothing can be written down now, not even that: what ran is found unfinished, and goes on once there is room
                self._leave(name, DiskFull(f"{err}: the disk is full; `treadle job prune` frees some"))
        return worked

    def _leave(self, name: tuple[str, str], err: TreadleError) -> None:
        """Come back to a slot a little later, as after a restart."""
        self._trouble(name, err)
        self._desks.pop(name).close()
        self._looked = time.monotonic() - LOOK_EVERY_S + RETRY_S

    def _look_for_slots(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        for workspace, slot in slots(self._root, self._workspace):
            if (workspace, slot) in self._desks or not (self._root / workspace / slot / "policy.json").exists():
                continue
            try:
                self._desks[workspace, slot] = _Desk(
                    self._root, self._servers, workspace, slot, self._runner, self._storage, self._reporter
                )
            except TreadleError as err:
                self._trouble((workspace, slot), err)
            except OSError as err:
                if err.errno not in NO_ROOM:
                    raise
                self._trouble((workspace, slot), DiskFull(f"{err}: the disk is full; `treadle job prune` frees some"))

    def _trouble(self, name: tuple[str, str], err: TreadleError) -> None:
        if self._troubles.get(name) != str(err):  # once, not every two seconds
            log.warning("%s/%s: %s", *name, err)
        self._troubles[name] = str(err)


class _State(msgspec.Struct):
    """trainer.json: the next offset of `.snapshots`, and by corpus the newly settled rows that have not led to a turn yet."""

    position: int = 0
    new_rows: dict[str, int] = {}
    last_ms: int = 0
    """When the last job that a version started began."""


class _Desk:
    """One slot."""

    def __init__(
        self,
        root: Path,
        servers: str,
        workspace: str,
        slot: str,
        runner: JobRunner,
        storage: Storage | None,
        reporter: Reporter,
    ) -> None:
        self.name = f"{workspace}/{slot}"
        self._root, self._servers, self._workspace, self._slot = root, servers, workspace, slot
        self._runner, self._storage, self._reporter = runner, storage, reporter
        self._registry = Registry(root, workspace, slot)
        self._held = ExitStack()
        # two services would each take what the other one does for what a crash left
        if not self._held.enter_context(locked(service_lock(self._registry.path), wait=False)):
            self._held.close()
            raise JobRefused(f"{self.name}: another trainer serves it; this one takes over when that ends")
        try:
            self._open()
        except BaseException:
            self._held.close()
            raise

    def _open(self) -> None:
        self._outbox = Outbox(self._registry, self._servers)
        self._path = self._registry.path / "trainer.json"
        self._state = self._read_state()
        self._queue = JobQueue(self._registry.path)
        self._queue.recover()
        self._topic = topic(self._workspace, "snapshots")
        self._newest: dict[str, tuple[SnapshotRecord, Record]] = {}
        self._resting = False
        """Whether what is left waits for its time on the schedule."""
        self._told = ""
        self._retry_at = 0.0
        self._published_size = -1
        where = (self._topic, 0)
        admin = Admin(self._servers)
        if self._topic not in admin.partitions():
            raise LogError(f"{self._topic} does not exist (yet)", retriable=True)
        start, end = admin.start_offsets([where])[where], admin.end_offsets([where])[where]
        if not start <= self._state.position <= end:  # another topic of that name: the workspace was made anew
            self._state = _State(position=start)
        self._reader = TailReader(self._servers, {where: self._state.position})
        self._reporter.tell(self.name, SlotReport(state="idle"))
        log.info("%s: waiting for corpus versions from offset %d", self.name, self._state.position)

    @property
    def idle(self) -> bool:
        """Whether everything on `.snapshots` has been seen and nothing is left to train on."""
        return bool(self._reader.at_end) and (self._resting or not self._newest) and self._queue.next() is None

    def tick(self, timeout_s: float, should_stop: Callable[[], bool]) -> bool:
        """Read; with everything read, do the next turn that is due. True where one was done."""
        self._publish()
        for record in self._reader.poll(timeout_s):
            self._take(record)
        if not self._reader.at_end or time.monotonic() < self._retry_at:
            return False
        try:
            asked = self._queue.next()
            if asked is None and not self._newest:
                self._reporter.tell(self.name, SlotReport(state="idle"))
                return False
            policy = TrainingPolicy.load(self._root, self._workspace, self._slot)
        except TreadleError as err:
            self._wait(str(err))
            return False
        if policy is None:
            return False
        # what a person asked for goes before what a version started
        worked = self._turns(policy, should_stop) if asked is None else self._perform(policy, asked, {}, should_stop)
        self._publish()
        return worked

    def close(self) -> None:
        """Let go of the slot and of the connection."""
        self._reporter.tell(self.name, None)
        self._held.close()
        self._reader.close()

    def _take(self, record: Record) -> None:
        try:
            event = decode(record.value, record.headers)
            if event.type != SNAPSHOT:
                return
            snapshot = msgspec.convert(event.data, SnapshotRecord)
        except (ContractError, msgspec.ValidationError) as err:
            log.error("%s@%d is not understood: %s", record.topic, record.offset, err)
            return
        # several versions at once: the newest holds all their rows
        self._state.new_rows[snapshot.corpus] = self._state.new_rows.get(snapshot.corpus, 0) + snapshot.new_rows
        self._newest[snapshot.corpus] = (snapshot, record)

    def _turns(self, policy: TrainingPolicy, should_stop: Callable[[], bool]) -> bool:
        worked = self._resting = False
        for corpus, (snapshot, record) in list(self._newest.items()):
            wanted = policy.corpus is None or Path(policy.corpus).absolute() == Path(corpus).absolute()
            if wanted and policy.trigger != "manual" and self._state.new_rows[corpus] >= policy.min_new_rows:
                if policy.trigger == "schedule" and _now_ms() < self._state.last_ms + policy.every_s * 1000:
                    self._resting = True
                    continue  # it stays the newest, until its time has come
                self._state.last_ms = _now_ms()
                if not self._turn(policy, snapshot, record, should_stop):
                    return False
                worked = True
                self._state.new_rows[corpus] = 0
            else:
                self._queue.supersede(corpus, f"v{snapshot.version} came, and by the policy starts no job")
            del self._newest[corpus]
        if self._newest:
            return worked
        # everything read has been dealt with: only now may a restart skip it
        self._state.position = self._reader.positions[self._topic, 0]
        write_atomically(self._path, msgspec.json.encode(self._state))
        return worked

    def _turn(
        self, policy: TrainingPolicy, snapshot: SnapshotRecord, record: Record, should_stop: Callable[[], bool]
    ) -> bool:
        """Do one turn. False where it cannot be done yet; a turn that failed is recorded and counts as done."""
        context: dict[str, Any] = {
            "snapshot": {
                "created_at": snapshot.created_at,
                "last_append_ms": snapshot.last_append_ms,
                "offset": record.offset,
                "seen_ms": _now_ms(),
                "append_ms": record.timestamp_ms,
            }
        }
        job, _ = self._queue.submit(snapshot.corpus, snapshot.version, fingerprint=policy.fingerprint, actor="trainer")
        why = f"job {job.number} on v{job.version} took its place"
        self._queue.supersede(snapshot.corpus, why, keep=job.number)
        if job.state in ("done", "cancelled", "failed", "superseded"):
            return True  # what is not done, a person resumes
        return self._perform(policy, job, context, should_stop)

    def _perform(
        self, policy: TrainingPolicy, job: Job, context: dict[str, Any], should_stop: Callable[[], bool]
    ) -> bool:
        """Do a job of the queue. False where it cannot be done yet; one that failed or was cancelled counts as done."""
        ref = CorpusRef(resolve_target(job.corpus), job.version)
        number, key = job.number, ""
        try:
            wanted = policy.changed(job.settings)
            settings = workspace_settings(self._servers, self._workspace)
            try:
                with Corpus.open(ref) as corpus:
                    key = job_key(corpus, wanted, job.label)
            except CorpusError:
                key = ""  # run_turn records why
            if not self._has_room(wanted, job, key):
                return False
            self._queue.start(number, key)
            self._reporter.tell(self.name, SlotReport(state="running", job=number))
            log.info("%s: job %d: training on %s", self.name, number, ref)
            report = run_turn(
                ref,
                wanted,
                self._registry,
                split=settings.split,
                runner=self._runner,
                label=job.label,
                context={**context, "queue": number},
                should_stop=lambda: self._should_stop(should_stop, number),
            )
            self._reporter.tell(self.name, SlotReport(state="idle"))
        except JobStopped:
            if self._queue.cancelling(number):
                self._queue.end(number, "cancelled", reason="cancelled while it ran")
                for part in JOB_PARTS:
                    self._runner.tidy(f"{key}-{part}", done=False)
                self._reporter.tell(self.name, SlotReport(state="idle"))
                return True
            self._queue.end(number, "queued", reason="the service ended; it goes on when that starts again")
            raise
        except LogError as err:
            self._queue.end(number, "queued", reason=str(err))
            raise
        except NoChampion as err:
            self._queue.end(number, "queued", reason=str(err))
            self._wait(str(err))
            return False
        except JobRefused as err:  # cancelled before it began
            log.info("%s: %s", self.name, err)
            return True
        except TreadleError as err:
            self._reporter.tell(self.name, SlotReport(state="idle"))
            log.error("%s: job %d: the turn on %s failed: %s", self.name, number, ref, err)
            self._queue.end(number, "failed", reason=str(err))
            self._told = ""
            return True
        self._told = ""
        self._queue.end(number, "done", reason=report.reason, decision=report.decision, release=str(report.candidate))
        _log_report(self.name, ref, report)
        return True

    def _should_stop(self, should_stop: Callable[[], bool], number: int) -> bool:
        """Asked several times a second while a job runs."""
        self._reporter.beat()
        return should_stop() or self._queue.cancelling(number)

    def _has_room(self, policy: TrainingPolicy, job: Job, key: str) -> bool:
        """Make room for a job. False where there is none: the job waits, and says why, until somebody makes some."""
        if self._storage is None:
            return True
        folder = self._runner.root / f"{key}-{JOB_PARTS[0]}"
        try:
            freed, use = self._storage.make_room(wanted_by(policy, self._registry, folder), f"job {job.number}")
        except DiskFull as err:
            if job.reason != str(err):
                self._queue.end(job.number, "queued", reason=str(err))
            self._wait(str(err), ROOM_RETRY_S, problem=True)
            return False
        self._reporter.kept(use)
        for one in freed:
            log.info(
                "%s: freed %s bytes for job %d: %s of %s", self.name, f"{one.bytes:,}", job.number, one.kind, one.of
            )
        return True

    def _wait(self, why: str, retry_s: float = RETRY_S, *, problem: bool = False) -> None:
        self._reporter.tell(self.name, SlotReport(state="waiting", reason=why, problem=problem))
        if why != self._told:  # once, not every two seconds
            log.warning("%s: waiting: %s", self.name, why)
        self._told, self._retry_at = why, time.monotonic() + retry_s

    def _publish(self) -> None:
        audit = self._registry.path / "audit.jsonl"
        size = audit.stat().st_size if audit.exists() else 0
        if size == self._published_size:
            return
        try:
            self._outbox.publish()
            self._published_size = size
        except LogError as err:
            log.warning("%s: not yet told on .releases: %s", self.name, err)

    def _read_state(self) -> _State:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_State)
        except (FileNotFoundError, msgspec.MsgspecError):
            return _State()  # the registry knows what was decided


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _log_report(name: str, ref: CorpusRef, report: TurnReport) -> None:
    again = " (decided before)" if report.repeated else ""
    log.info("%s: %s on %s: %s%s: %s", name, report.candidate, ref, report.decision, again, report.reason)
