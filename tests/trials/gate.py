"""The gate on simulated candidates: a task is won or lost by champion and candidate, differently on a share `differing` of tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from treadle_trainer.gate import GenerationLedger, Paired, group_key, judge

__all__ = ["Campaign", "campaign", "power"]

ALPHA = 0.05
DIFFERING = 0.3
CHAMPION = 0.6
"""Chance of the champion on a task."""
RESAMPLES = 600


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What 50 turns of candidates that are no better led to."""

    turns: int
    promoted: int
    drift: float
    """What the promotions changed the true quality by, where candidates differ from the champion by nothing or less."""


def campaign(seed: int, *, turns: int = 50, tasks: int = 256, fresh: bool, effect: float = 0.0) -> Campaign:
    """Candidates that truly are `effect` (0 or less) better than the champion of their turn, judged turn after turn.

    `fresh`: each turn draws its own tasks, as an environment does. Otherwise one held-out set judges all of them, and its alpha is spent;
    the champion's luck on it stays: a candidate that got through by luck raises the bar that the next is measured at.
    """
    rng = np.random.default_rng(seed)
    ledger, promoted = GenerationLedger(), 0
    groups = [f"g{i}" for i in range(tasks)]
    champion = (rng.random(tasks) < CHAMPION).astype(float)
    for turn in range(turns):
        if fresh:
            champion = (rng.random(tasks) < CHAMPION).astype(float)
            ledger, alpha, _ = ledger.spend_whole(str(turn), ALPHA)
            kept = np.arange(tasks)
        else:
            ledger, alpha, usable = ledger.spend(str(turn), groups, ALPHA, min_groups=64)
            kept = np.array([i for i, group in enumerate(groups) if group_key(group) in usable])
        candidate = _candidate(rng, champion, effect)
        verdict = _judged(candidate[kept], champion[kept], alpha, turn)
        if verdict == "promote":
            promoted += 1
            champion = candidate
    return Campaign(turns=turns, promoted=promoted, drift=promoted * effect)


def power(effect: float, *, tasks: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Share of each verdict on candidates that truly are `effect` better, on fresh tasks with all of alpha."""
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for run in range(runs):
        champion = (rng.random(tasks) < CHAMPION).astype(float)
        found[_judged(_candidate(rng, champion, effect), champion, ALPHA, run)] += 1
    return {name: found[name] / runs for name in ("promote", "reject", "not_enough_evidence")}


def _candidate(rng: np.random.Generator, champion: NDArray[np.float64], effect: float) -> NDArray[np.float64]:
    """Wins some tasks that the champion loses and loses some that it wins, so that the expected difference is `effect`.

    Given the champion's results, so that being lucky on a set of tasks does not make it hard to equal: the null is exact.
    """
    lost, won = champion < 0.5, champion > 0.5
    up, down = (DIFFERING + effect) / 2, (DIFFERING - effect) / 2
    u = rng.random(len(champion))
    gains = lost & (u < up * len(champion) / max(1, int(lost.sum())))
    losses = won & (u < down * len(champion) / max(1, int(won.sum())))
    return np.where(gains, 1.0, np.where(losses, 0.0, champion))


def _judged(candidate: NDArray[np.float64], champion: NDArray[np.float64], alpha: float, seed: int) -> str:
    paired = Paired(
        candidate=candidate.tolist(), champion=champion.tolist(), clusters=[str(i) for i in range(len(candidate))]
    )
    return judge(paired, alpha=alpha, seed=seed, resamples=RESAMPLES).decision
