"""Log, group, workers and faults of one schedule, and what befalls them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

from treadle.errors import LogError
from treadle_schemas import WorkspaceSettings, topics
from treadle_streams.worker.errors import InputFailed, TransactionFailed

from simulation.disk import Disk
from simulation.faults import Faults
from simulation.group import Group
from simulation.log import CLEANUP_S, Log
from simulation.process import Process
from simulation.scheduler import Killed, Scheduler

__all__ = ["Cluster"]

_EXPECTED: Final = (TransactionFailed, InputFailed, LogError)
"""What ends a worker in the course of things; a supervisor starts it again."""

logging.getLogger("treadle_streams.worker").setLevel(logging.CRITICAL)


class Cluster:
    """The world of one schedule."""

    def __init__(self, scheduler: Scheduler, settings: WorkspaceSettings, faults: Faults) -> None:
        self.scheduler = scheduler
        self.settings = settings
        self.partitions = settings.partitions
        self.faults = faults
        self.log = Log(scheduler)
        self.group = Group(scheduler, settings.partitions)
        self.processes: dict[str, Process] = {}
        """By name, those that run."""
        self.disks: dict[str, dict[int, Disk]] = {}
        self.wanted: set[str] = set()
        self.violations: list[str] = []
        self.coverage: Counter[tuple[str, str]] = Counter()
        """Faults by (point, event kind)."""
        self.ends: Counter[str] = Counter()
        """Workers that ended by themselves, by error."""
        self._away_until_s = 0.0
        self._slow_until_s: dict[int, float] = {}
        self._names = {kind: topics.topic(settings.workspace, kind) for kind in topics.DATA_TOPICS}
        self._changelog = f"{topics.group(settings.workspace, 'join')}-rows-changelog"
        scheduler.after(CLEANUP_S, self._clean_up)

    # What processes ask.

    def topic(self, kind: str) -> str:
        """A topic's name."""
        return self._changelog if kind == "changelog" else self._names[kind]

    def latency_s(self) -> float:
        """One way over the network."""
        return 0.0005 + 0.0045 * self.scheduler.random.random()

    def held_s(self, partitions: Iterable[int] = ()) -> float:
        """How long a request waits before it is served: the broker is away, or one of the partitions is slow."""
        now_s = self.scheduler.now_s
        if self._away_until_s <= now_s and not self._slow_until_s:
            return 0.0
        until_s = max([self._away_until_s, *(self._slow_until_s.get(p, 0.0) for p in partitions)])
        return max(0.0, until_s - now_s)

    def reached(self, process: Process, point: str) -> None:
        """A process is between two steps; a fault may strike it here. Raises Killed."""
        fault = self.faults.at(process.name, point)
        if fault is None:
            return
        self.coverage.update((point, kind) for kind in process.at_risk(point))
        self.scheduler.note("fault:", fault.text, "at", point, "of", process.name)
        if fault.stop_s:
            self.stop(process, fault.stop_s)
            self.scheduler.wait(0.0)
        else:
            self.kill(process, fault.loss, fault.away_s)
            raise Killed

    # Workers.

    def start(self, name: str) -> None:
        """Start a worker, on the disks it had."""
        if name in self.wanted and name not in self.processes:
            process = self.processes[name] = Process(self, name, self.disks.setdefault(name, {}))
            process.start()

    def kill(self, process: Process, loss: str, away_s: float) -> None:
        """SIGKILL, and another start; `loss` says what becomes of the machine's disks."""
        self.scheduler.kill(process)
        self.processes.pop(process.name, None)
        for disk in self.disks[process.name].values():
            if disk.unlogged:
                # some of them may have been flushed by themselves; none that was not can come back
                disk.lose_last(self.scheduler.random.randint(0, disk.unlogged))
                disk.flush()
            if loss == "wiped":
                disk.wipe()
            elif loss == "power":
                disk.lose_last(self.scheduler.random.randint(0, 3))
        self.scheduler.after(away_s, lambda: self.start(process.name))

    def stop(self, process: Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.scheduler.stop(process)

        def woken() -> None:
            if not process.dead:
                self.scheduler.note(process.name, "wakes")
                self.scheduler.resume(process)

        self.scheduler.after(seconds, woken)

    def failed(self, process: Process, err: BaseException) -> None:
        """A worker ends by itself."""
        self.scheduler.note(process.name, "ends:", type(err).__name__)
        self.ends[type(err).__name__] += 1
        if not isinstance(err, _EXPECTED):
            self.violations.append(f"{process.name} ended with {type(err).__name__}: {err}")
        self.kill(process, "", 0.5)

    def ended(self, process: Process) -> None:
        """A worker has ended in order."""
        self.scheduler.note(process.name, "has left")
        self.processes.pop(process.name, None)
        self.scheduler.kill(process)
        self.start(process.name)

    # Other faults.

    def away(self, seconds: float) -> None:
        """The broker answers nothing for a while."""
        self._away_until_s = self.scheduler.now_s + seconds
        self.group.hold(seconds)

    def slow(self, partition: int, seconds: float) -> None:
        """One partition is neither read nor written for a while."""
        self._slow_until_s[partition] = self.scheduler.now_s + seconds
        for kind in self._names:
            log = self.log[self.topic(kind), partition]
            self.scheduler.after(seconds, log.changed)

    def _clean_up(self) -> None:
        self.scheduler.after(CLEANUP_S, self._clean_up)
        if self._away_until_s <= self.scheduler.now_s:
            self.log.expire()
            self.group.expire()
