"""What the guard knows of one slot: a fold over `.progress`, with the broker's timestamps as the only clock.

Each row enters once, at one fixed age: when the clock of its partition (the newest timestamp seen there) passes its append time plus
`age_s`, with the value it had then. Both arms are read at the same age, so a release is not blamed for outcomes that are only late.
A row first seen when it is already older enters never: what it was worth at that age nobody knows any more.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import msgspec
from treadle_schemas import Grade, Metric, Progress, SettingError

from treadle_trainer.guard._eprocess import EProcess
from treadle_trainer.policy import GuardPolicy

__all__ = ["HELD_ROWS", "Alarm", "GuardState", "live_value"]

HELD_ROWS = 4096
"""Rows of a release kept while no floor exists to test them against; beyond it the oldest are let go."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """The evidence for a rollback of `release`: it fell below the floor, after so many rows of it had reached the age."""

    release: str
    predecessor: str
    after_rows: int
    floor: float
    baseline: float
    baseline_rows: int
    live_mean: float
    e_value: float
    alpha: float
    age_s: float
    metric: str


def live_value(grade: Grade, metric: Metric | None, policy: GuardPolicy) -> float | None:
    """The value of a row in [0, 1] as of its age, or None where it does not count.

    Absent and pending count as the metric's declared value for absence; without one the row is left out, in both arms alike.
    """
    state = grade.metrics.get(policy.metric)
    if state is None and policy.metric == "reward":
        state = ("pending", None) if grade.reward is None else ("observed", grade.reward)
    value = state[1] if state is not None and state[0] == "observed" else metric.absent if metric is not None else None
    if value is None or isinstance(value, str):
        return None
    x = min(1.0, max(0.0, (float(value) - policy.low) / (policy.high - policy.low)))
    return 1.0 - x if metric is not None and metric.direction == "minimise" else x


class _Waiting(msgspec.Struct, array_like=True):
    due_ms: int
    release: str
    value: float | None


class _Arm(msgspec.Struct):
    """One release. `recent` are the newest values, `held` those not yet tested, `baseline` what the floor was made of."""

    entered: int = 0
    recent: list[float] = []
    held: list[float] = []
    test: EProcess | None = None
    term: int = 0
    baseline: tuple[float, int] = (0.0, 0)


class _Saved(msgspec.Struct):
    clocks: dict[int, int]
    waiting: dict[int, list[tuple[str, str, _Waiting]]]
    arms: dict[str, _Arm]
    excluded: int
    late: int


class GuardState:
    """The fold of one slot. `observe` takes records in partition order; `judge` asks for the champion."""

    def __init__(self, slot: str, policy: GuardPolicy, metric: Metric | None) -> None:
        self.slot = slot
        self.policy = policy
        self._metric = metric
        self._clocks: dict[int, int] = {}
        self._rows: dict[int, dict[tuple[str, str], _Waiting]] = {}
        self._due: dict[int, list[tuple[int, str, str]]] = {}
        self._arms: dict[str, _Arm] = {}
        self.excluded = 0
        """Rows that reached their age without a value and without a rule for absence."""
        self.late = 0
        """Records of rows older than the age and not waiting: corrections after entry, and rows first seen too late."""

    def observe(self, partition: int, timestamp_ms: int, progress: Progress | None) -> None:
        """One record of `.progress`; None for a clock record. `timestamp_ms` is the broker's."""
        clock = max(timestamp_ms, self._clocks.get(partition, 0))
        self._clocks[partition] = clock
        self._enter(partition, clock)
        if progress is None or progress.slot != self.slot or progress.release is None:
            return
        key = (progress.episode_id, progress.interaction_id)
        value = live_value(progress.grade, self._metric, self.policy)
        waiting = self._rows.setdefault(partition, {})
        known = waiting.get(key)
        if known is not None:
            known.value = value
            return
        due = progress.append_ms + round(self.policy.age_s * 1000)
        if clock > due:
            self.late += 1
            return
        waiting[key] = _Waiting(due, progress.release, value)
        heapq.heappush(self._due.setdefault(partition, []), (due, *key))

    def judge(self, champion: str, predecessor: str, term: int = 0) -> Alarm | None:
        """The alarm against `champion`, if there is one.

        Its floor is made once in a `term` (which time it is champion), from the predecessor's newest rows of that moment. A new term,
        say after a person promoted it again, starts with no evidence against it.
        """
        arm = self._arms.get(champion)
        if arm is None:
            return None
        if arm.test is not None and arm.term != term:
            arm.test = None
        if arm.test is None:
            before = self._arms.get(predecessor)
            if before is None or len(before.recent) < self.policy.min_baseline:
                return None
            baseline = sum(before.recent) / len(before.recent)
            arm.baseline, arm.term = (baseline, len(before.recent)), term
            arm.test = EProcess(floor=baseline - self.policy.tolerance, alpha=self.policy.alpha)
        # the floor depends on the other arm alone, so rows that came before it may be tested after it
        for value in arm.held:
            if arm.test.alarmed_after is None:  # the alarm reports the evidence that it was raised on
                arm.test = arm.test.add(value)
        arm.held = []
        test = arm.test
        if test.alarmed_after is None:
            return None
        return Alarm(
            release=champion,
            predecessor=predecessor,
            after_rows=test.alarmed_after,
            floor=test.floor,
            baseline=arm.baseline[0],
            baseline_rows=arm.baseline[1],
            live_mean=test.mean,
            e_value=test.evidence,
            alpha=test.alpha,
            age_s=self.policy.age_s,
            metric=self.policy.metric,
        )

    def live(self) -> dict[str, dict[str, Any]]:
        """By release: rows entered, the mean of the newest, and the evidence against it, for reports."""
        return {
            release: {
                "rows": arm.entered,
                "mean": sum(arm.recent) / len(arm.recent) if arm.recent else None,
                "floor": arm.test.floor if arm.test else None,
                "evidence": arm.test.evidence if arm.test else None,
            }
            for release, arm in self._arms.items()
        }

    def save(self) -> bytes:
        """Everything the fold holds, as JSON."""
        waiting = {p: [(*key, row) for key, row in rows.items()] for p, rows in self._rows.items()}
        return msgspec.json.encode(_Saved(self._clocks, waiting, self._arms, self.excluded, self.late))

    def restore(self, data: bytes) -> None:
        """Take up what `save` gave. Raises SettingError when it is not that."""
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except msgspec.MsgspecError as err:
            raise SettingError(f"the guard's saved state cannot be read: {err}") from err
        self._clocks, self._arms = saved.clocks, saved.arms
        self.excluded, self.late = saved.excluded, saved.late
        self._rows = {p: {(e, i): row for e, i, row in rows} for p, rows in saved.waiting.items()}
        self._due = {p: [(row.due_ms, *key) for key, row in rows.items()] for p, rows in self._rows.items()}
        for heap in self._due.values():
            heapq.heapify(heap)

    def _enter(self, partition: int, clock: int) -> None:
        heap = self._due.get(partition, [])
        # strictly: a record with the very timestamp of the age is still part of it
        while heap and heap[0][0] < clock:
            _, episode, interaction = heapq.heappop(heap)
            row = self._rows[partition].pop((episode, interaction))
            if row.value is None:
                self.excluded += 1
                continue
            arm = self._arms.setdefault(row.release, _Arm())
            arm.entered += 1
            arm.recent.append(row.value)
            del arm.recent[: -self.policy.baseline_rows]
            arm.held.append(row.value)
            del arm.held[:-HELD_ROWS]
