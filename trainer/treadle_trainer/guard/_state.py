"""What the guard knows of one slot: a fold over `.progress` that asks three questions.

- Has the champion fallen below its predecessor? The two do not serve at the same time, so the predecessor's newest values make a floor.
- Is the canary worse, or better, than the champion beside it? `_trial`.
- What is the lift over the control? `_trial`.

Pure: times are those of the records, who serves is told by `serve`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import msgspec
from treadle_schemas import Metric, Progress, SettingError

from treadle_trainer.guard._eprocess import EProcess
from treadle_trainer.guard._trial import REWARD, Lift, LiveVerdict, Trial
from treadle_trainer.guard._units import Unit, Units, UnitsState
from treadle_trainer.policy import CanaryPolicy, GuardPolicy

__all__ = ["HELD_UNITS", "Alarm", "GuardState", "lower_bound"]

HELD_UNITS = 4096
"""Values of a release kept while no floor exists to test them against; beyond it the oldest are let go."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """The evidence for a rollback of `release`: its `metric` fell below the floor, after so many of its rows had reached the age.

    `baseline` is the predecessor's mean over `baseline_rows`; the floor is the lower bound of what its mean can be, minus the tolerance.
    """

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


def lower_bound(mean: float, n: int, alpha: float) -> float:
    """One-sided lower bound of the mean of values in [0, 1]: Wilson's score bound (1927), which counts every value as 0 or 1.

    No distribution on [0, 1] with that mean varies more, so for others it is only wider than need be.
    """
    z = NormalDist().inv_cdf(1 - alpha)
    centre = mean + z * z / (2 * n)
    return max(0.0, (centre - z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))) / (1 + z * z / n))


class _Arm(msgspec.Struct):
    """One metric of one release. `recent` are the newest values, `held` those not yet tested, `baseline` what the floor was made of."""

    entered: int = 0
    recent: list[float] = []
    held: list[float] = []
    test: EProcess | None = None
    term: int = 0
    baseline: tuple[float, int] = (0.0, 0)


class _Saved(msgspec.Struct):
    units: UnitsState
    arms: dict[str, dict[str, _Arm]]
    trial: Trial | None
    lift: Lift | None


class GuardState:
    """The fold of one slot. `serve` tells who serves, `observe` takes records in partition order, `judge` and `verdict` ask."""

    def __init__(
        self, slot: str, policy: GuardPolicy, metric: Metric | None, canary: CanaryPolicy | None = None
    ) -> None:
        self.slot = slot
        self.policy = policy
        self.canary = canary or CanaryPolicy()
        self._units = Units(slot, policy, metric)
        self._arms: dict[str, dict[str, _Arm]] = {}
        self._trial: Trial | None = None
        self._lift: Lift | None = None

    @property
    def excluded(self) -> int:
        """Rows that reached their age without a value and without a rule for absence."""
        return self._units.excluded

    @property
    def late(self) -> int:
        """Records of rows older than the age and not waiting: corrections after entry, and rows first seen too late."""
        return self._units.late

    def serve(
        self,
        champion: str | None,
        *,
        canary: tuple[str, int, int] | None = None,
        control: tuple[str, int] | None = None,
    ) -> None:
        """Who serves now: `canary` as (release, term, since in ms), `control` as (release, since in ms).

        A new canary, a new term of it or another champion begins a trial without evidence; so does another control a lift.
        """
        trial = self._trial
        if canary is None or champion is None:
            self._trial = None
        elif trial is None or (trial.canary, trial.champion, trial.term) != (canary[0], champion, canary[1]):
            self._trial = Trial.begin(canary[0], champion, canary[1], canary[2], self.policy, self.canary)
        if control is None or champion is None or control[0] == champion:
            self._lift = None if control is None else self._lift
        elif self._lift is None or (self._lift.control, self._lift.since_ms) != control:
            self._lift = Lift.begin(control[0], control[1], champion, self.canary.alpha)
        else:
            self._lift.serve(champion)

    def observe(self, partition: int, timestamp_ms: int, progress: Progress | None) -> None:
        """One record of `.progress`; None for a clock record. `timestamp_ms` is the broker's."""
        for unit in self._units.observe(partition, timestamp_ms, progress):
            self._count(unit)

    def verdict(self) -> LiveVerdict | None:
        """What the canary's live evidence decides, None while it decides nothing or there is no canary."""
        return self._trial.verdict(self.policy, self.canary) if self._trial is not None else None

    def judge(self, champion: str, predecessor: str, term: int = 0) -> Alarm | None:
        """The alarm against `champion`, if there is one.

        Its floors are made once in a `term` (which time it is champion), from the predecessor's newest values of that moment. A new term,
        say after a person promoted it again, starts with no evidence against it. Of alpha, half goes to the reward and the rest to the
        fast metrics; of each share, half is spent on where the predecessor's mean lies.
        """
        for metric, share in self._shares().items():
            alarm = self._judged(champion, predecessor, term, metric, self.policy.alpha * share)
            if alarm is not None:
                return alarm
        return None

    def live(self) -> dict[str, dict[str, Any]]:
        """By release: units entered, the mean of the newest, and the evidence against it, for reports."""
        return {
            release: {
                "rows": arm.entered,
                "mean": sum(arm.recent) / len(arm.recent) if arm.recent else None,
                "floor": arm.test.floor if arm.test else None,
                "evidence": arm.test.evidence if arm.test else None,
            }
            for release, metrics in self._arms.items()
            if (arm := metrics.get(REWARD)) is not None
        }

    def report(self) -> dict[str, Any]:
        """What is known now, as plain values: releases, the trial with its effects, the lift over the control."""
        trial, lift = self._trial, self._lift
        return {
            "metric": self.policy.metric,
            "age_s": self.policy.age_s,
            "releases": self.live(),
            "trial": None
            if trial is None
            else {
                "canary": trial.canary,
                "champion": trial.champion,
                "episodes": trial.metrics[REWARD].pairing.units,
                "effects": {name: msgspec.to_builtins(one.effect) for name, one in trial.metrics.items()},
            },
            "lift": None
            if lift is None
            else {
                "control": lift.control,
                "champion": lift.champion,
                "episodes": lift.total.pairing.units,
                "total": msgspec.to_builtins(lift.total.effect),
                "now": msgspec.to_builtins(lift.now.effect),
            },
        }

    def save(self) -> bytes:
        """Everything the fold holds, as JSON."""
        return msgspec.json.encode(_Saved(self._units.save(), self._arms, self._trial, self._lift))

    def restore(self, data: bytes) -> None:
        """Take up what `save` gave. Raises SettingError when it is not that."""
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except msgspec.MsgspecError as err:
            raise SettingError(f"the guard's saved state cannot be read: {err}") from err
        self._units.restore(saved.units)
        self._arms, self._trial, self._lift = saved.arms, saved.trial, saved.lift

    def _shares(self) -> dict[str, float]:
        fast = self.policy.fast
        return {REWARD: 0.5 if fast else 1.0, **dict.fromkeys(fast, 0.5 / max(1, len(fast)))}

    def _count(self, unit: Unit) -> None:
        arm = self._arms.setdefault(unit.release, {}).setdefault(unit.metric, _Arm())
        arm.entered += 1
        arm.recent.append(unit.value)
        del arm.recent[: -self.policy.baseline_rows]
        arm.held.append(unit.value)
        del arm.held[:-HELD_UNITS]
        if self._trial is not None:
            self._trial.add(unit.release, unit.append_ms, unit.metric, unit.value)
        if self._lift is not None and unit.metric == REWARD:
            self._lift.add(unit.release, unit.append_ms, unit.value)

    def _judged(self, champion: str, predecessor: str, term: int, metric: str, alpha: float) -> Alarm | None:
        arm = self._arms.get(champion, {}).get(metric)
        if arm is None:
            return None
        if arm.test is not None and arm.term != term:
            arm.test = None
        if arm.test is None:
            before = self._arms.get(predecessor, {}).get(metric)
            if before is None or len(before.recent) < self.policy.min_baseline:
                return None
            mean, n = sum(before.recent) / len(before.recent), len(before.recent)
            tolerance = self.policy.tolerance if metric == REWARD else self.policy.fast[metric].tolerance
            arm.baseline, arm.term = (mean, n), term
            arm.test = EProcess(floor=lower_bound(mean, n, alpha / 2) - tolerance, alpha=alpha / 2)
        # the floor depends on the other arm alone, so values that came before it may be tested after it
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
            alpha=alpha,
            age_s=self.policy.age_s if metric == REWARD else 0.0,
            metric=self.policy.metric if metric == REWARD else metric,
        )
