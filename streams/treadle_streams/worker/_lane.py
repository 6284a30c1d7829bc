"""The fenced lane: one thread that polls, plans, commits and applies, for the partitions that Faust says are ours.

Faust's loop talks to it through `assign` and `revoke` only. A batch is planned on state of one assignment and sent with that assignment's
generation; whatever ends an assignment drops what was not committed, and the next one reads it again from the log.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from treadle.keys import ring_of
from treadle_schemas.moments import now
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.join import INPUTS, Arrival, Grading, Meta, Plan, plan
from treadle_streams.worker._clockwork import Reading, View
from treadle_streams.worker._inputs import Inputs
from treadle_streams.worker._ports import REAL, MailPort, Ports
from treadle_streams.worker._recovery import Overtaken, asked_until_there, recover
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._standby import Standbys
from treadle_streams.worker._store import PartitionStore
from treadle_streams.worker._transaction import Membership, Transactions
from treadle_streams.worker.errors import WorkerStuck

__all__ = ["Lane"]

_log = logging.getLogger(__name__)

_NONE: Final[Mapping[int, Any]] = {}
_COPY_WAIT_S: Final = 0.05
"""How long a worker that owns nothing waits for records to copy before it looks for messages."""
_CREATED_END: Final = 2
"""End of the settings' topic of a workspace that was never changed: one record, and the marker of its transaction."""
REFUSED_PATIENCE_S: Final = 60.0
"""After a refused batch the group must give a new assignment within this time, or the worker ends."""


@dataclass(slots=True)
class _Assign:
    epoch: int
    generation: int
    member_id: str
    databases: Mapping[int, Any]
    standbys: Mapping[int, Any]
    done: Future[bool]


@dataclass(slots=True)
class _Revoke:
    done: Future[bool]


@dataclass(slots=True)
class _Close:
    done: Future[bool]


@dataclass(slots=True)
class _Work:
    """What one partition has to plan in a batch."""

    arrivals: list[Arrival]
    positions: dict[str, int]
    at_end_ms: dict[str, int]


class Lane(threading.Thread):
    """See the module. `generation` says the group's generation as Faust knows it now; `failed` ends the process."""

    def __init__(
        self,
        settings: WorkerSettings,
        workspace: WorkspaceSettings,
        generation: Callable[[], int],
        reading: Callable[[], Reading],
        failed: Callable[[BaseException], None],
        ports: Ports = REAL,
    ) -> None:
        super().__init__(name="treadle-lane", daemon=True)
        self._settings = settings
        self._workspace = workspace
        self._grading = grading_of(workspace)
        self._generation = generation
        self._reading = reading
        self._failed = failed
        self._ports = ports
        self._monotonic = ports.monotonic
        self._faults = ports.faults()
        self._mail: MailPort = ports.mail()
        self._epoch = 0
        self._closing = False
        self._stores: dict[int, PartitionStore] = {}
        self._metas: dict[int, Meta] = {}
        self._behind: set[int] = set()
        self._member: Membership | None = None
        self._refused_at: float | None = None
        self._read_number = 0
        self._settings_end = _CREATED_END
        self._regrading: list[int] = []
        self.view = View()
        """What the lane is at; replaced, never changed."""
        self.ticked = self._monotonic()
        """When the lane last made progress, or found nothing to do."""
        self.committing_since: float | None = None
        """When the transaction under way began; None: there is none."""

    # Called from Faust's loop.

    def assign(
        self, generation: int, member_id: str, databases: Mapping[int, Any], standbys: Mapping[int, Any] = _NONE
    ) -> Future[bool]:
        """Take partitions over, and keep copies of others, the `standbys`.

        The future tells whether the state of the first was rebuilt, or another assignment came first.
        """
        self._epoch += 1
        done: Future[bool] = Future()
        if self._closing:
            done.set_result(False)
        else:
            self._mail.put(_Assign(self._epoch, generation, member_id, databases, standbys, done))
        return done

    def revoke(self) -> Future[bool]:
        """Let go of everything; done when no transaction of the old assignment is under way and its databases are free."""
        self._epoch += 1
        done: Future[bool] = Future()
        if self._closing:
            done.set_result(True)
        else:
            self._mail.put(_Revoke(done))
        return done

    def close(self) -> Future[bool]:
        """End after the batch under way; what is asked later is answered at once."""
        self._epoch += 1
        self._closing = True
        done: Future[bool] = Future()
        self._mail.put(_Close(done))
        return done

    # The thread, or whoever takes the turns.

    def run(self) -> None:
        """The thread: whatever it cannot handle ends the process."""
        try:
            self.open()
            while self.step():
                pass
        except BaseException as err:
            self._failed(err)

    def open(self) -> None:
        """Make the clients; before the first step. Raises TransactionFailed."""
        self._transactions = Transactions(self._settings, self._faults, self._ports)
        self._inputs = Inputs(self._settings.servers, self._settings.workspace, self._ports)
        self._admin = self._ports.admin(self._settings.servers)
        self._standbys = Standbys(self._settings, self._ports)

    def step(self) -> bool:
        """Do what a message asks, or else take a turn; False after the last one. Raises what ends a worker (errors.py)."""
        self.ticked = self._monotonic()
        message = self._next_message()
        match message:
            case _Close(done):
                self._drop("waiting")
                self._inputs.close()
                self._standbys.close()
                done.set_result(True)
                return False
            case _Revoke(done):
                self._drop("waiting")
                self._refused_at = None
                done.set_result(True)
            case _Assign():
                message.done.set_result(self._take_over(message))
            case None if self._member is not None:
                self._turn()
                self._feed()
            case None:
                self._expect_assignment()
        return True

    def _next_message(self) -> _Assign | _Revoke | _Close | None:
        try:
            # a member without partitions has nothing to poll, and would turn on the spot
            found: _Assign | _Revoke | _Close = (
                self._mail.get_nowait() if self._metas or self._standbys else self._mail.get(timeout=0.2)
            )
        except queue.Empty:
            return None
        return found

    def _take_over(self, asked: _Assign) -> bool:
        self._drop("recovering")

        def current() -> bool:
            self.ticked = self._monotonic()
            return self._epoch == asked.epoch and self._generation() == asked.generation

        started = self._monotonic()
        try:
            # what lies on disk belongs to one creation of the workspace and of the changelog
            changelog = asked_until_there(self._ports, current, lambda: self._admin.topic_id(self._settings.changelog))
            identity = f"{self._workspace.created_at} {changelog}"
            self._stores, standbys = (
                {p: PartitionStore(db, identity, self._ports.write_batch) for p, db in databases.items()}
                for databases in (asked.databases, asked.standbys)
            )
            self._metas, self._behind = recover(self._settings, self._ports, self._admin, self._stores, current)
        except Overtaken:
            self._drop("waiting")
            return False
        if any(meta.grading > self._workspace.grading_version for meta in self._metas.values()):
            self._follow_settings()  # a worker that knew of newer ones had these partitions
        self._regrading = sorted(p for p, m in self._metas.items() if m.regraded < self._workspace.grading_version)
        self._member = Membership(asked.generation, asked.member_id)
        self._inputs.assign({(k, p): m.offsets.get(k, 0) for p, m in self._metas.items() for k in INPUTS})
        self._standbys.assign(standbys)
        self._read_number = self._reading().number
        _log.info(
            "generation %d: took over partitions %s in %.2f s, %d records replayed",
            asked.generation,
            sorted(self._stores),
            self._monotonic() - started,
            sum(store.replayed for store in self._stores.values()),
        )
        self._show("running")
        return True

    def _turn(self) -> None:
        """Poll, then commit what came in transactions of bounded size; once a second also what time alone brings."""
        arrivals = self._inputs.poll(self._settings.batch_records, self._settings.gather_s)
        reading = self._reading()
        fresh = reading.number != self._read_number
        self._read_number = reading.number
        if reading.settings_end > self._settings_end:
            self._follow_settings()
            self._settings_end = reading.settings_end
        *most, last = _slices(arrivals, self._settings.batch_bytes)
        for part in most:
            if not self._batch({p: _Work(records, {}, {}) for p, records in _by_partition(part).items()}):
                return
        by_partition = _by_partition(last)
        # one partition a turn is graded anew, so that what arrives waits for little
        again = self._regrading.pop(0) if self._regrading else None
        work = {
            p: self._work(p, by_partition.get(p, []), reading, fresh)
            for p in self._metas
            if fresh or p in by_partition or p == again
        }
        self._batch(work, again)
        if fresh:
            self._scrub()

    def _scrub(self) -> None:
        """Write the files of one partition anew from which something was erased."""
        for partition, store in self._stores.items():
            if store.scrub_due:
                episodes = store.scrub()
                _log.info("partition %d: nothing of %d erased episodes is left in its files", partition, episodes)
                self._show("running")
                return

    def _feed(self) -> None:
        """As much as a batch takes, so that the partitions of our own wait for little."""
        if self._member is None or not self._standbys:
            return
        if self._standbys.feed(self._settings.batch_records, 0.0 if self._metas else _COPY_WAIT_S):
            self._show("running")

    @property
    def regrading(self) -> bool:
        """Are kept rows left to be graded by the present settings? Then turns are useful without events."""
        return bool(self._regrading)

    def _follow_settings(self) -> None:
        """Take the settings of the workspace as they are now; kept rows are graded by them in the background."""
        found = self._ports.settings(self._settings.servers, self._settings.workspace)
        if found.grading_version > self._workspace.grading_version:
            _log.info("grading version %d: grading kept rows anew", found.grading_version)
        if found.grading_version >= self._workspace.grading_version:
            self._workspace, self._grading = found, grading_of(found)
            self._regrading = sorted(p for p, m in self._metas.items() if m.regraded < found.grading_version)

    def _work(self, partition: int, arrivals: list[Arrival], reading: Reading, fresh: bool) -> _Work:
        # everything polled is in this batch, so the consumer's positions are the partition's
        positions: dict[str, int] = {k: self._inputs.positions[k, partition] for k in INPUTS}
        ends: dict[str, int] = {}
        if fresh and partition in reading.broker_ms:
            at = reading.broker_ms[partition]
            ends = {k: at for k in INPUTS if positions[k] >= reading.ends[k, partition]}
        return _Work(arrivals, positions, ends)

    def _batch(self, work: Mapping[int, _Work], again: int | None = None) -> bool:
        """Plan and commit, and again while time has made more rows due. False: the assignment is over."""
        todo = dict(work)
        while todo:
            plans = [self._plan(partition, one, background=partition == again) for partition, one in todo.items()]
            if not self._commit(plans, timers_only=not any(one.arrivals for one in todo.values())):
                return False
            self._regrading += [made.partition for made in plans if made.partition == again and made.background]
            again = None
            todo = {made.partition: _Work([], {}, {}) for made in plans if made.more}
        return True

    def _plan(self, partition: int, work: _Work, *, background: bool) -> Plan:
        return plan(
            partition,
            self._metas[partition],
            self._stores[partition],
            work.arrivals,
            self._grading,
            graded_at=now(),
            positions=work.positions,
            at_end_ms=work.at_end_ms,
            background=background,
        )

    def _commit(self, plans: Iterable[Plan], *, timers_only: bool) -> bool:
        member = self._member
        epoch = self._epoch
        assert member is not None
        real: list[Plan] = []
        for made in plans:
            if made.empty and made.partition not in self._behind:
                self._metas[made.partition] = made.meta  # only its clock moved; a restart finds it again
            else:
                real.append(made)
        if real:
            self._faults.batch += 1
            self._faults.timers_only = timers_only
            metas = {made.partition: made.meta.encode() for made in real}
            # 2. to 6., see _transaction
            self.committing_since = self._monotonic()
            logged = self._transactions.run(real, metas, member)
            self.committing_since = None
            if logged is None:
                _log.warning("generation %d: a batch was refused, its partitions are no longer ours", member[0])
                self._refused_at = self._monotonic()
                self._drop("waiting")
                return False
            if self._generation() != member[0]:
                # committed, but no longer ours: the next owner, perhaps we, reads it from the changelog
                self._drop("waiting")
                return False
            # 7. local
            for made in real:
                self._stores[made.partition].apply(made, metas[made.partition], logged[made.partition])
                self._metas[made.partition] = made.meta
                self._behind.discard(made.partition)
            self._faults.after("local")
        self._show("running")
        self.ticked = self._monotonic()
        return self._epoch == epoch

    def _drop(self, state: str) -> None:
        self._member = None
        self._inputs.assign({})
        self._standbys.assign({})
        self._stores = {}
        self._metas = {}
        self._behind = set()
        self._regrading = []
        self._show(state)

    def _show(self, state: str) -> None:
        generation = self._member[0] if self._member is not None else -1
        scrubs = sum(store.scrub_due for store in self._stores.values())
        self.view = View(state, generation, dict(self._metas), self._faults.batch, self._standbys.copies, scrubs)

    def _expect_assignment(self) -> None:
        if self._refused_at is not None and self._monotonic() - self._refused_at > REFUSED_PATIENCE_S:
            raise WorkerStuck(f"a batch was refused and no assignment came for {REFUSED_PATIENCE_S:g} s")


def grading_of(workspace: WorkspaceSettings) -> Grading:
    """The grading of a workspace, with the keys that open what is sealed."""
    if workspace.encrypt == "nothing":
        return Grading(workspace)
    return Grading(workspace, ring_of(workspace.workspace))


def _slices(arrivals: list[Arrival], limit_bytes: int) -> list[list[Arrival]]:
    """The arrivals in parts of bounded size, in order; at least one part, perhaps empty."""
    parts: list[list[Arrival]] = [[]]
    size = 0
    for arrival in arrivals:
        size += len(arrival.value or b"")
        if size > limit_bytes and parts[-1]:
            parts.append([])
            size = len(arrival.value or b"")
        parts[-1].append(arrival)
    return parts


def _by_partition(arrivals: Iterable[Arrival]) -> dict[int, list[Arrival]]:
    out: dict[int, list[Arrival]] = {}
    for arrival in arrivals:
        out.setdefault(arrival.partition, []).append(arrival)
    return out
