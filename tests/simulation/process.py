"""A worker process: the shipped lane on a thread, and around it what Faust and the clockwork do, as calls of the scheduler.

Faust's part is its order: revoke the lane and wait for it, join, take the generation over, assign. A stopped process does none of it; a
dead one is started again by a supervisor, on the disks it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle_streams.join import INPUTS, META_KEY, TIMER_PREFIX, Input, Meta
from treadle_streams.worker._clockwork import Reading
from treadle_streams.worker._faults import Faults, Step
from treadle_streams.worker._lane import Lane
from treadle_streams.worker._ports import Ports
from treadle_streams.worker._settings import WorkerSettings

from simulation.clients import Consumer, Mail, Offsets, Producer
from simulation.disk import Batch, Database, Disk
from simulation.group import Joined
from simulation.log import Entry
from simulation.scheduler import Killed, Owner, Task

if TYPE_CHECKING:
    from simulation.cluster import Cluster

__all__ = ["Process"]

_HEARTBEAT_S = 1.0
_TICK_S = 2.0


class _Steps(Faults):
    """The lane's own hook between two steps."""

    def __init__(self, process: Process) -> None:
        super().__init__({})
        self._process = process

    def after(self, step: Step) -> None:
        if step == "plan" and self.timers_only:
            self._process.in_flight = {"timer", *self._process.in_flight & {"regrade"}}
        self._process.point(step)


class _Copying:
    """Guards the database of a copy."""

    def __init__(self, process: Process) -> None:
        self.written = process.copied
        self.alive = process.alive


class Process(Owner):
    """One life of a worker. `disks` are its machine's, by partition."""

    def __init__(self, cluster: Cluster, name: str, disks: dict[int, Disk]) -> None:
        super().__init__(name)
        self.cluster = cluster
        self.scheduler = cluster.scheduler
        self.disks = disks
        self.generation = -1
        self.reading = Reading()
        self.in_flight: set[str] = set()
        """Event kinds of the batch under way."""
        self.task: Task | None = None
        self._member_id: str | None = None
        self._rejoining = False
        self._partitions: list[int] = []
        self.ports = Ports(
            producer=lambda config: Producer(self, config),
            consumer=lambda config: Consumer(self, self._read_changelog),
            inputs=lambda config: Consumer(self, self.fetched),
            admin=lambda servers: Offsets(self),
            mail=lambda: Mail(self),
            faults=lambda: _Steps(self),
            write_batch=Batch,
            monotonic=lambda: self.scheduler.now_s,
            sleep=self._sleep,
            settings=lambda servers, workspace: cluster.settings,
        )
        random = self.scheduler.random
        self._copies = random.random() < 0.4
        """Does it keep copies of what it does not own?"""
        self.settings = WorkerSettings(
            workspace=cluster.settings.workspace,
            servers="simulated",
            home=Path("/nowhere"),
            batch_records=random.choice((4, 20, 2_000, 2_000)),
            batch_bytes=random.choice((600, 16 << 20, 16 << 20, 16 << 20)),
            gather_s=0.5,
        )
        self.lane = Lane(
            self.settings, cluster.settings, lambda: self.generation, lambda: self.reading, self._failed, self.ports
        )

    def start(self) -> None:
        """Run."""
        self.scheduler.note(self.name, "starts")
        self.task = self.scheduler.spawn(self, self.lane.run)
        self._later(self._join)
        self._later(self._tick, 1.0)

    def leave(self) -> None:
        """End in order: the lane closes, the member leaves the group."""

        def closed() -> None:
            if self._member_id is not None:
                self.cluster.group.leave(self._member_id)
            self.cluster.ended(self)

        self._rejoining = True
        self._then(self.lane.close(), closed)

    # What the simulated clients and the disks tell.

    def alive(self) -> None:
        """Raises Killed."""
        if self.dead:
            raise Killed

    def point(self, name: str) -> None:
        """Between two steps: here a fault may strike."""
        self.alive()
        self.scheduler.note(self.name, name)
        self.cluster.reached(self, name)

    def written(self) -> None:
        """A write to a local database is durable."""
        self.point("local part" if self.lane.view.state == "running" else "replay")

    def copied(self) -> None:
        """A write to the database of a copy is durable."""
        self.point("replay")

    def _read_changelog(self, entries: Iterable[Entry]) -> None:
        # a lane that runs reads it for its copies only
        self.point("replay" if self.lane.view.state == "running" else "fetch")

    def fetched(self, entries: Iterable[Entry]) -> None:
        """What came with a poll, of inputs or of the changelog."""
        if self.lane.view.state == "running":
            self.in_flight = {entry.kind for entry in entries if entry.kind is not None}
        self.point("fetch")

    def at_risk(self, point: str) -> set[str]:
        """Event kinds that a fault would hit now: those of the batch, in recovery those that are not committed yet."""
        log = self.cluster.log
        kinds: set[str] = set()
        if any(key.startswith(TIMER_PREFIX) for p in self._partitions for key in self.disks[p].data):
            kinds.add("timer")
        metas = [self.disks[p].data.get(META_KEY) for p in self._partitions]
        if any(m is None or Meta.decode(m).regraded < self.cluster.settings.grading_version for m in metas):
            kinds.add("regrade")
        if self.lane.view.state == "running" and point != "replay":
            return self.in_flight | kinds if point == "fetch" else self.in_flight
        for partition in self._partitions:
            for kind in INPUTS:
                place = (self.cluster.topic(kind), partition)
                for entry in log[place].entries[log.positions.get(place, 0) :]:
                    if entry.kind is not None:
                        kinds.add(entry.kind)
        return kinds

    # The member.

    def _join(self) -> None:
        member_id = self._member_id

        def joined(told: Joined) -> None:
            self._later(lambda: self._joined(told))

        # under way, it reaches the coordinator even if its sender has stopped
        self.scheduler.after(
            self.cluster.latency_s(), lambda: None if self.dead else self.cluster.group.join(member_id, joined)
        )

    def _joined(self, told: Joined) -> None:
        self._rejoining = False
        self.generation, self._member_id, self._partitions = told.generation, told.member_id, told.partitions
        self._beat(told.generation)
        self._later(lambda: self._take_over(told), self.scheduler.random.uniform(0.0, 0.3))

    def _take_over(self, told: Joined) -> None:
        if self._rejoining or self.generation != told.generation:
            return  # as the hooks do: another rebalance has begun
        databases = {p: Database(self.disks.setdefault(p, Disk()), self) for p in told.partitions}
        others = set(range(self.cluster.partitions)) - set(told.partitions) if self._copies else ()
        copies = {p: Database(self.disks.setdefault(p, Disk()), _Copying(self)) for p in sorted(others)}
        self.lane.assign(told.generation, told.member_id, databases, copies)

    def _beat(self, generation: int) -> None:
        member_id = self._member_id
        if self._rejoining or generation != self.generation or member_id is None:
            return

        def served() -> None:
            if self.cluster.held_s() > 0:
                self.scheduler.after(self.cluster.held_s(), served)
                return
            heard = self.cluster.group.heartbeat(member_id, generation)
            if heard == "fine":
                self._later(lambda: self._beat(generation), _HEARTBEAT_S)
            else:
                self._later(lambda: self._lost(heard, generation))

        self.scheduler.after(self.cluster.latency_s(), served)

    def _lost(self, heard: str, generation: int) -> None:
        if self._rejoining or generation != self.generation:
            return
        self.scheduler.note(self.name, "hears", heard)
        self._rejoining = True
        if heard == "unknown":
            self._member_id = None
        self._then(self.lane.revoke(), self._join)

    def _then(self, done: Future[bool], what: Callable[[], None]) -> None:
        done.add_done_callback(lambda _: self._later(what))

    # The clockwork.

    def _tick(self) -> None:
        self._later(self._tick, _TICK_S)
        view = self.lane.view
        if view.state != "running" or self.cluster.held_s() > 0:
            return
        partitions = sorted(view.metas)
        log = self.cluster.log
        times: dict[int, int] = {}
        ends: dict[tuple[Input, int], int] = {}
        settings_end = 0

        def tell() -> None:
            times.update(dict.fromkeys(partitions, log.broker_ms()))
            self._later(lambda: self.scheduler.after(self.cluster.latency_s(), look))

        def look() -> None:
            nonlocal settings_end
            settings_end = 2 * self.cluster.settings.grading_version
            ends.update({(k, p): log[self.cluster.topic(k), p].end for k in INPUTS for p in partitions})
            self._later(read)

        def read() -> None:
            self.reading = Reading(self.reading.number + 1, times, ends, settings_end=settings_end)

        self.scheduler.after(self.cluster.latency_s(), tell)

    # Ends.

    def _failed(self, err: BaseException) -> None:
        if not self.dead:
            self.cluster.failed(self, err)

    def _sleep(self, seconds: float) -> None:
        self.scheduler.wait(seconds)

    def _later(self, call: Callable[[], Any], delay_s: float | None = None) -> None:
        self.scheduler.after(self.cluster.latency_s() if delay_s is None else delay_s, call, self)
