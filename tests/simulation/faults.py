"""The faults of a schedule: which, when, where. A process fault waits, armed, until a process reaches its point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from simulation.cluster import Cluster

__all__ = ["PASSING", "POINTS", "Fault", "Faults", "Loss"]

Loss = Literal["", "power", "wiped"]

STEPS: Final = (
    "fetch",
    "plan",
    "begin",
    "produce",
    "flush part",
    "flush",
    "send unanswered",
    "send",
    "commit unanswered",
    "commit",
    "local part",
    "local",
)
RECOVERY: Final = ("replay", "recover asked")
POINTS: Final = (*STEPS, *RECOVERY)
"""Every place between two durable steps. `unanswered`: the broker has done it, and nobody knows; `part`: some partitions have it."""
PASSING: Final = (
    "slow partition",
    "slow markers",
    "broker away",
    "rebalance",
    "worker joins",
    "worker leaves",
    "compaction",
    "positions reset",
)
"""Faults that strike no process at a point."""

_WEIGHTS: Final = (1, 3, 1, 1, 1, 2, 1, 2)
_POINT_WEIGHTS: Final = (*(2 for _ in STEPS), *(1 for _ in RECOVERY))
_TOGETHER: Final = {
    "slow markers": ("worker leaves", "rebalance", "rebalance"),
    "positions reset": ("kill", "worker leaves", "rebalance"),
    "broker away": ("kill", "stop"),
    "slow partition": ("rebalance", "kill"),
    "stop": ("rebalance", "worker joins", "kill"),
    "kill": ("stop", "broker away", "kill"),
}
"""What makes a fault worse while it is being dealt with."""
_PATIENCE_S: Final = 4.0
"""An armed fault whose point is not reached by then strikes at the next point of any process."""


@dataclass(slots=True)
class Fault:
    """Kill or stop a process. `name` None: whichever comes first."""

    point: str
    name: str | None
    stop_s: float
    """0: kill."""
    loss: Loss
    away_s: float
    """How long a killed worker is away."""
    skip: int
    """How many times the point is passed before."""
    armed_s: float = 0.0

    @property
    def text(self) -> str:
        """In words."""
        if self.stop_s:
            return f"stopped for {self.stop_s:.1f} s"
        return "killed" + {"": "", "power": " by a power failure", "wiped": ", its disks wiped"}[self.loss]


class Faults:
    """Drawn from the seed before anything happens, so that what is found does not move them."""

    def __init__(self, random: Random, from_s: float, to_s: float, without: frozenset[str] = frozenset()) -> None:
        """`without` leaves faults of these kinds out: kill, stop, and those of PASSING. The others are as they would be."""
        self._random = random
        self._armed: list[Fault] = []
        self._now_s: Callable[[], float] = lambda: 0.0
        self.planned: list[tuple[float, str, Fault | None]] = []
        self.struck: Counter[str] = Counter()
        drawn: list[tuple[float, str]] = []
        count = random.randint(4, 7)
        for n in range(count):
            at_s = random.uniform(from_s, to_s)
            kind = (
                random.choice(("kill", "stop"))
                if n < 2 or random.random() < 0.5
                else random.choices(PASSING, _WEIGHTS)[0]
            )
            if drawn and random.random() < 0.5:
                at_s, before = drawn[-1]
                at_s += random.uniform(0.0, random.choice((1.0, 5.0)))
                kind = random.choice(_TOGETHER.get(before, (kind,)))
            drawn.append((at_s, kind))
            fault = self._process_fault(kind) if kind in ("kill", "stop") else None
            if kind not in without:
                self.planned.append((at_s, kind, fault))

    @property
    def over(self) -> bool:
        """Has every fault struck?"""
        return not self._armed and sum(self.struck.values()) >= len(self.planned)

    def schedule(self, cluster: Cluster) -> None:
        """Put them on the agenda."""
        self._now_s = lambda: cluster.scheduler.now_s
        for at_s, kind, fault in self.planned:
            cluster.scheduler.after(at_s, partial(self._begin, cluster, kind, fault))

    def at(self, name: str, point: str) -> Fault | None:
        """The fault that strikes this process here, if one does."""
        now_s = self._now_s()
        for fault in self._armed:
            late = now_s - fault.armed_s > _PATIENCE_S
            here = fault.point == point and fault.name in (None, name)
            if here and fault.skip > 0 and not late:
                fault.skip -= 1
            elif here or late:
                self._armed.remove(fault)
                self.struck["stop" if fault.stop_s else "kill"] += 1
                return fault
        return None

    def _process_fault(self, kind: str) -> Fault:
        random = self._random
        stop_s = 0.0
        if kind == "stop":
            stop_s = random.choice((random.uniform(0.5, 5.0), random.uniform(4.5, 7.0), random.uniform(6.5, 14.0)))
        loss: Loss = random.choice(("", "", "power", "wiped"))
        point = random.choices(POINTS, _POINT_WEIGHTS)[0]
        name, skip = random.choice((None, "a", "b")), random.choice((0, 0, 1, 2))
        return Fault(point, name, stop_s, loss, random.uniform(0.2, 4.0), skip)

    def _begin(self, cluster: Cluster, kind: str, fault: Fault | None) -> None:
        random = self._random
        cluster.scheduler.note("fault begins:", kind, "" if fault is None else f"{fault.text} at {fault.point}")
        if fault is not None:
            fault.armed_s = cluster.scheduler.now_s
            self._armed.append(fault)
            if fault.point in RECOVERY:
                cluster.group.rebalance()
            return
        self.struck[kind] += 1
        match kind:
            case "slow partition":
                cluster.slow(random.randrange(cluster.partitions), random.uniform(1.0, 8.0))
            case "slow markers":
                cluster.log.slow_markers = 0.7
                cluster.scheduler.after(random.uniform(3.0, 9.0), lambda: setattr(cluster.log, "slow_markers", 0.0))
            case "broker away":
                cluster.away(random.uniform(0.5, 7.0))
            case "rebalance":
                cluster.group.rebalance()
            case "worker joins":
                cluster.wanted.add("c")
                cluster.start("c")
            case "worker leaves":
                running = [p for p in cluster.processes.values() if not p.stopped]
                if running:
                    random.choice(running).leave()
            case "compaction":
                cluster.log.compact(cluster.topic("changelog"))
            case "positions reset":
                how = random.choice((0.0, 0.5, 1.0))
                for place in list(cluster.log.positions):
                    cluster.log.positions[place] = int(cluster.log[place].stable * how)
                # a broker lets nobody set the positions of members at work: who owns the partitions next finds it
                cluster.scheduler.after(random.uniform(0.05, 1.0), cluster.group.rebalance)
