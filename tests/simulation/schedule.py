"""One schedule: a seed to a history, workers, faults, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.workspace import Credit
from treadle_streams.join import INPUTS, Grading, Plan, batch, episodes, references, regrade, retention
from treadle_streams.worker import _lane

from simulation.cluster import Cluster
from simulation.events import WORKSPACE, draw
from simulation.faults import Faults
from simulation.log import Entry
from simulation.process import Process
from simulation.scheduler import Scheduler
from simulation.verdict import verdict

__all__ = ["Result", "run", "settings_of"]

_BUSY_S: Final = 18.0
"""Events and faults come in this time."""
_PATIENCE_S: Final = 120.0
"""After the last fault everything must be joined, and settled, within this time."""
_FAR_MS: Final = 48 * 3_600_000
"""The broker's clock is set ahead by this at the end: then every row's time is up, and none has expired."""


_CREDITS: Final = (Credit(rule="discounted", gamma=0.5), Credit(rule="all"), Credit(rule="last"))
_LIMITS: Final = (
    (batch, "MAX_ROWS_BY_TIME"),
    (episodes, "MAX_ROWS"),
    (references, "MAX_SENT"),
    (regrade, "MAX_ROWS"),
    (retention, "MAX_ENDED"),
)
"""What one transaction takes at most of rows and records that no event brings: half of the schedules have one to five."""
_REWARDS: Final = ("reward + COALESCE(score, 0)", "reward - COALESCE(score, 0)", "reward")


@dataclass(slots=True)
class Result:
    """What came of a schedule."""

    seed: int
    events: int
    faults: Counter[str]
    coverage: Counter[tuple[str, str]]
    ends: Counter[str]
    violations: list[str]
    trace: list[str] | None = field(default=None, repr=False)
    """Every step in words, where asked for: two runs of one seed agree on it."""


@cache
def settings_of(partitions: int, version: int = 1) -> tuple[WorkspaceSettings, Grading]:
    """The workspace of a schedule, and its grading, by the settings that it has first, second, third."""
    settings = WorkspaceSettings(
        workspace=WORKSPACE,
        partitions=partitions,
        metrics=(
            Metric(name="reward", required=True, horizon_s=6.0),
            Metric(name="score", aggregate="mean", horizon_s=12.0, absent=0.5),
            Metric(name="done", type="bool", level="episode", horizon_s=6.0),
        ),
        credit=_CREDITS[version - 1],
        reward=_REWARDS[version - 1],
        grading_version=version,
        grace_s=1.0,
        created_at="2026-01-01T00:00:00Z",
    )
    return settings, Grading(settings)


def run(seed: int, *, without: frozenset[str] = frozenset(), trace: bool = False) -> Result:
    """Run one schedule. `without` leaves out faults of these kinds (see Faults)."""
    scheduler = Scheduler(seed)
    if trace:
        scheduler.trace = []
    draws = Random(seed ^ 0x5EED)
    settings, _ = settings_of(draws.choice((2, 3, 4)))
    faults = Faults(Random(seed ^ 0xFA17), 1.0, _BUSY_S, without)
    cluster = Cluster(scheduler, settings, faults)
    history = draw(draws, settings.partitions, draws.randint(50, 60))
    bursts = [draws.uniform(0.1, _BUSY_S) for _ in range(8)]
    events = 0
    for events_of_one in history:
        at_s = draws.choice(bursts) + draws.uniform(0.0, 0.2) if draws.random() < 0.8 else draws.uniform(0.1, _BUSY_S)
        for event in events_of_one:
            events += 1
            entry = Entry(event.key, event.value, event.headers, 0, kind=event.kind)
            scheduler.after(at_s, partial(_append, cluster, (event.topic, event.partition), entry))
            at_s += draws.choice((0.0, 0.0, draws.uniform(0.0, 3.0)))
    for _ in range(2):
        jump_ms = draws.randint(2_000, 15_000)
        scheduler.after(draws.uniform(2.0, _BUSY_S), partial(_jump, cluster, jump_ms))
    for at_s in sorted(draws.uniform(2.0, _BUSY_S) for _ in range(2)):
        scheduler.after(at_s, partial(_change_settings, cluster))
    cluster.wanted |= {"a", "b"}
    for name in ("a", "b"):
        cluster.start(name)
    faults.schedule(cluster)
    end = _End(cluster, faults)
    scheduler.after(_BUSY_S + 3.0, end.look)
    limits = Random(seed ^ 0x11417)
    try:
        with ExitStack() as patches:
            # compiled once, not once a process
            compiled = patch.object(_lane, "Grading", lambda now: settings_of(now.partitions, now.grading_version)[1])
            patches.enter_context(compiled)
            patches.enter_context(patch.object(_lane, "plan", partial(_noted, vars(_lane)["plan"], scheduler)))
            if limits.random() < 0.5:
                for module, name in _LIMITS:
                    patches.enter_context(patch.object(module, name, limits.randint(1, 5)))
            scheduler.run()
        violations = cluster.violations + end.violations
        if not violations:
            grading = settings_of(settings.partitions, cluster.settings.grading_version)[1]
            violations = verdict(cluster, grading, end.clock_ms)
    finally:
        scheduler.close()
    return Result(
        seed,
        events,
        faults.struck,
        cluster.coverage,
        cluster.ends,
        violations,
        scheduler.trace,
    )


def _append(cluster: Cluster, place: tuple[str, int], entry: Entry) -> None:
    entry.append_ms = cluster.log.broker_ms()
    cluster.log.append((cluster.topic(place[0]), place[1]), entry)
    cluster.scheduler.note("event:", entry.kind, *place)


def _jump(cluster: Cluster, jump_ms: int) -> None:
    cluster.scheduler.note("clock:", jump_ms)
    cluster.log.skew_ms += jump_ms


def _change_settings(cluster: Cluster) -> None:
    settings = cluster.settings
    cluster.settings, _ = settings_of(settings.partitions, settings.grading_version + 1)
    cluster.scheduler.note("settings:", cluster.settings.grading_version)


def _noted(inner: Callable[..., Plan], scheduler: Scheduler, *args: Any, **more: Any) -> Plan:
    """`plan`, and the process knows when it grades kept rows anew."""
    if more.get("background"):
        assert scheduler.current is not None
        process = scheduler.current.owner
        assert isinstance(process, Process)
        process.in_flight = process.in_flight | {"regrade"}
    return inner(*args, **more)


class _End:
    """Waits until everything is joined; then until every row's time is up; then ends the schedule."""

    def __init__(self, cluster: Cluster, faults: Faults) -> None:
        self._cluster = cluster
        self._faults = faults
        self._before: list[int] = []
        self._far_ms = 0
        self.clock_ms = 0
        self.violations: list[str] = []

    def look(self) -> None:
        """Once in a while."""
        cluster = self._cluster
        if cluster.violations:
            cluster.scheduler.finish()
            return
        sizes = [log.end for place, log in sorted(cluster.log.partitions.items())]
        quiet, self._before = sizes == self._before, sizes
        if self._faults.over and quiet and self._joined():
            if self._far_ms:
                self.clock_ms = min(m.clock_ms for p in cluster.processes.values() for m in p.lane.view.metas.values())
                cluster.scheduler.finish()
                return
            _jump(cluster, _FAR_MS)
            self._far_ms = cluster.log.broker_ms()
        if cluster.scheduler.now_s > _BUSY_S + _PATIENCE_S:
            where = {p.name: p.lane.view for p in cluster.processes.values()}
            self.violations.append(f"never settled: {where}"[:2_000])
            cluster.scheduler.finish()
            return
        cluster.scheduler.after(1.0, self.look)

    def _joined(self) -> bool:
        cluster = self._cluster
        if cluster.processes.keys() != cluster.wanted:
            return False
        owners: dict[int, Process] = {}
        for process in cluster.processes.values():
            view = process.lane.view
            if process.stopped or view.state != "running" or process.lane.regrading:
                return False
            if process.reading.settings_end < 2 * cluster.settings.grading_version:
                return False
            owners |= dict.fromkeys(view.metas, process)
        if len(owners) < cluster.partitions or any(log.open for log in cluster.log.partitions.values()):
            return False
        for partition, process in owners.items():
            meta = process.lane.view.metas[partition]
            if meta.clock_ms <= self._far_ms:
                return False
            for kind in INPUTS:
                log = cluster.log[cluster.topic(kind), partition]
                if meta.offsets.get(kind, 0) < log.end:
                    return False
        return True
