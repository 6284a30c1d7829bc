"""Which rows count, when, and with what value. Pure; the broker's timestamps are the only clock.

Each row enters once, at one fixed age: when the clock of its partition (the newest timestamp seen there) passes its append time plus
`age_s`, with the value it had then. Both arms are read at the same age, so a release is not blamed for outcomes that are only late.
A row first seen when it is already older enters never: what it was worth at that age nobody knows any more. Of an episode, the first row
to enter counts: the others share its fate, and tests that took them for news would be sure too soon.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import NamedTuple

import msgspec
from treadle_schemas import Grade, Metric, Progress
from treadle_schemas.records import Vitals

from treadle_trainer.policy import GuardPolicy

__all__ = ["SEEN_EPISODES", "Unit", "Units", "fast_values", "live_value"]

SEEN_EPISODES = 20_000
"""Episodes remembered, so that one counts once; beyond it the oldest are forgotten. 0.4 MB in the saved state."""


class Unit(NamedTuple):
    """An episode that counts now: one value of one metric, in [0, 1], higher is better."""

    release: str
    append_ms: int
    metric: str
    value: float


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


def fast_values(vitals: Vitals | None, policy: GuardPolicy) -> dict[str, float]:
    """The fast metrics of an interaction in [0, 1], higher is better. A cost that nobody told is left out."""
    if vitals is None:
        return {}
    told: dict[str, float | None] = {
        "error": float(vitals.error),
        "invalid_calls": float(vitals.invalid_calls > 0),
        "latency_s": vitals.latency_ms / 1000,
        "cost": vitals.cost,
    }
    return {
        name: 1.0 - min(1.0, max(0.0, value / one.high))
        for name, one in policy.fast.items()
        if (value := told[name]) is not None
    }


class _Waiting(msgspec.Struct, array_like=True):
    due_ms: int
    append_ms: int
    release: str
    value: float | None


class UnitsState(msgspec.Struct):
    """Everything that `Units` remembers."""

    clocks: dict[int, int] = {}
    waiting: dict[int, list[tuple[str, str, _Waiting]]] = {}
    entered: list[str] = []
    told: list[str] = []
    excluded: int = 0
    late: int = 0
    repeated: int = 0


class Units:
    """The rows of one slot on their way to counting. Records of a partition come in order."""

    def __init__(self, slot: str, policy: GuardPolicy, metric: Metric | None) -> None:
        self._slot, self._policy, self._metric = slot, policy, metric
        self._clocks: dict[int, int] = {}
        self._rows: dict[int, dict[tuple[str, str], _Waiting]] = {}
        self._due: dict[int, list[tuple[int, str, str]]] = {}
        self._entered: dict[str, None] = {}
        self._told: dict[str, None] = {}
        self.excluded = 0
        """Rows that reached their age without a value and without a rule for absence."""
        self.late = 0
        """Records of rows older than the age and not waiting: corrections after entry, and rows first seen too late."""
        self.repeated = 0
        """Rows of episodes that had counted already."""

    def observe(self, partition: int, timestamp_ms: int, progress: Progress | None) -> list[Unit]:
        """One record of `.progress`; None for a clock record. `timestamp_ms` is the broker's. Returns what counts from now on."""
        clock = max(timestamp_ms, self._clocks.get(partition, 0))
        self._clocks[partition] = clock
        out = self._enter(partition, clock)
        if progress is None or progress.slot != self._slot or progress.release is None:
            return out
        key = (progress.episode_id, progress.interaction_id)
        value = live_value(progress.grade, self._metric, self._policy)
        waiting = self._rows.setdefault(partition, {})
        known = waiting.get(key)
        if known is not None:
            known.value = value
            return out
        due = progress.append_ms + round(self._policy.age_s * 1000)
        if clock > due:
            self.late += 1
            return out
        waiting[key] = _Waiting(due, progress.append_ms, progress.release, value)
        heapq.heappush(self._due.setdefault(partition, []), (due, *key))
        fast = fast_values(progress.vitals, self._policy)
        if fast and _first(self._told, progress.episode_id):
            out += [Unit(progress.release, progress.append_ms, name, value) for name, value in fast.items()]
        return out

    def save(self) -> UnitsState:
        """What `restore` takes."""
        waiting = {p: [(*key, row) for key, row in rows.items()] for p, rows in self._rows.items()}
        return UnitsState(
            self._clocks, waiting, list(self._entered), list(self._told), self.excluded, self.late, self.repeated
        )

    def restore(self, saved: UnitsState) -> None:
        """Take up what `save` gave."""
        self._clocks = saved.clocks
        self.excluded, self.late, self.repeated = saved.excluded, saved.late, saved.repeated
        self._entered, self._told = dict.fromkeys(saved.entered), dict.fromkeys(saved.told)
        self._rows = {p: {(e, i): row for e, i, row in rows} for p, rows in saved.waiting.items()}
        self._due = {p: [(row.due_ms, *key) for key, row in rows.items()] for p, rows in self._rows.items()}
        for heap in self._due.values():
            heapq.heapify(heap)

    def _enter(self, partition: int, clock: int) -> list[Unit]:
        out = []
        heap = self._due.get(partition, [])
        # strictly: a record with the very timestamp of the age is still part of it
        while heap and heap[0][0] < clock:
            _, episode, interaction = heapq.heappop(heap)
            row = self._rows[partition].pop((episode, interaction))
            if row.value is None:
                self.excluded += 1
            elif _first(self._entered, episode):
                out.append(Unit(row.release, row.append_ms, "reward", row.value))
            else:
                self.repeated += 1
        return out


def _first(seen: dict[str, None], episode: str) -> bool:
    key = hashlib.blake2b(episode.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    if key in seen:
        return False
    seen[key] = None
    while len(seen) > SEEN_EPISODES:
        del seen[next(iter(seen))]
    return True
