"""The guard on a simulated `.progress`: episodes of two arms, outcomes that come late, wins ten times faster than losses."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from treadle_schemas import Grade, Metric, Progress
from treadle_trainer.guard import GuardState
from treadle_trainer.policy import CanaryPolicy, GuardPolicy

__all__ = ["Covered", "Outcome", "Traffic", "lift", "trial", "watch"]

OLD, NEW, NEXT = "shop/main/r1", "shop/main/r2", "shop/main/r3"
SECOND_MS = 1000
AGE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What happens: chance of a win of either release, and the mean delay of wins and losses in seconds."""

    old: float
    new: float
    win_delay_s: float = 120.0
    loss_delay_s: float = 1200.0
    absent: float | None = None
    """What a reward that is not there counts as. None: the row is left out."""


class Outcome(NamedTuple):
    """What the guard did, after how many episodes of the new release had reached the age."""

    decision: str | None
    after: int | None


def watch(traffic: Traffic, *, seed: int, episodes: int, baseline: int = 512, alpha: float = 0.01) -> Outcome:
    """A champion after its predecessor: first `baseline` episodes of the old release, then `episodes` of the new one."""
    policy = GuardPolicy(age_s=AGE_S, alpha=alpha, baseline_rows=baseline, min_baseline=64, fast={})
    state = GuardState("main", policy, _metric(traffic))
    arms = [OLD] * baseline + [NEW] * episodes
    for record in _records(traffic, arms, random.Random(seed)):
        state.observe(*record)
        if record[2] is None:
            alarm = state.judge(NEW, OLD)
            if alarm is not None:
                return Outcome("roll back", alarm.after_rows)
    return Outcome(None, None)


def trial(
    traffic: Traffic, *, seed: int, episodes: int, share: float = 0.2, alpha: float = 0.05, tolerance: float = 0.05
) -> Outcome:
    """A canary beside its champion, until it has served `episodes` episodes."""
    policy = GuardPolicy(age_s=AGE_S, alpha=alpha, tolerance=tolerance, fast={})
    state = GuardState("main", policy, _metric(traffic), CanaryPolicy(alpha=alpha, max_episodes=episodes))
    state.serve(OLD, canary=(NEW, 1, 0))
    rng = random.Random(seed)
    arms = [NEW if rng.random() < share else OLD for _ in range(int(episodes / share * 1.5))]
    for record in _records(traffic, arms, rng):
        state.observe(*record)
        if record[2] is None:
            verdict = state.verdict()
            if verdict is not None:
                return Outcome(verdict.decision, verdict.canary_units)
    return Outcome(None, None)


class Covered(NamedTuple):
    """Whether the interval of the lift held the true lift at every moment, and how wide it was in the end."""

    always: bool
    width: float


def lift(traffic: Traffic, *, seed: int, episodes: int, share: float = 0.02) -> Covered:
    """A control (`traffic.old`) beside champions (`traffic.new`), of which the name changes half way, over `episodes` episodes of both."""
    state = GuardState("main", GuardPolicy(age_s=AGE_S, fast={}), _metric(traffic))
    state.serve(NEW, control=(OLD, 0))
    rng = random.Random(seed)
    arms = [OLD if rng.random() < share else (NEW if n < episodes / 2 else NEXT) for n in range(episodes)]
    truth = _at_age(traffic, traffic.new) - _at_age(traffic, traffic.old)
    always, width = True, 2.0
    for partition, at, progress in _records(traffic, arms, rng):
        if at >= episodes * 5 * SECOND_MS + AGE_S * SECOND_MS:
            state.serve(NEXT, control=(OLD, 0))
        state.observe(partition, at, progress)
        if progress is None:
            total = state.report()["lift"]["total"]
            always = always and total["low"] <= truth <= total["high"]
            width = total["high"] - total["low"]
    return Covered(always, width)


def _at_age(traffic: Traffic, won: float) -> float:
    """The mean at the age: of those whose outcome is there by then, or with the others counted as absence says."""
    seen_won = won * (1 - math.exp(-AGE_S / traffic.win_delay_s))
    seen_lost = (1 - won) * (1 - math.exp(-AGE_S / traffic.loss_delay_s))
    if traffic.absent is None:
        return seen_won / (seen_won + seen_lost)
    return seen_won + traffic.absent * (1 - seen_won - seen_lost)


def _metric(traffic: Traffic) -> Metric:
    return Metric(name="reward", absent=traffic.absent)


def _records(traffic: Traffic, arms: list[str], rng: random.Random) -> list[tuple[int, int, Progress | None]]:
    """An episode every ten seconds, its outcome after its delay, a clock record every minute, and an hour after the last."""
    heap: list[tuple[int, int, Progress | None]] = []
    for n, release in enumerate(arms):
        at = n * 10 * SECOND_MS
        won = rng.random() < (traffic.old if release == OLD else traffic.new)
        delay_s = rng.expovariate(1 / (traffic.win_delay_s if won else traffic.loss_delay_s))
        heapq.heappush(heap, (at, 2 * n, _progress(n, release, at, None)))
        heapq.heappush(heap, (at + int(delay_s * SECOND_MS), 2 * n + 1, _progress(n, release, at, float(won))))
    end = len(arms) * 10 * SECOND_MS + int((AGE_S + 3600) * SECOND_MS)
    for k, at in enumerate(range(0, end, 60 * SECOND_MS)):
        heapq.heappush(heap, (at, 2 * len(arms) + k, None))
    out = []
    while heap:
        at, _, progress = heapq.heappop(heap)
        out.append((0, at, progress))
    return out


def _progress(n: int, release: str, append_ms: int, value: float | None) -> Progress:
    state = ("pending", None) if value is None else ("observed", value)
    return Progress(
        episode_id=f"e{n}",
        interaction_id=f"e{n}",
        task_id=None,
        agent="a",
        slot="main",
        release=release,
        grade=Grade(metrics={"reward": state}, reward=value, completeness=1.0, settled=False, grading_version=1),  # type: ignore[dict-item]
        split="train",
        revision=1,
        append_ms=append_ms,
        ended_at="2026-01-01T00:00:00Z",
    )
