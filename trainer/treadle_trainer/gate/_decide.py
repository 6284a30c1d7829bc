"""One paired comparison: the effect is the mean of the differences d_i = candidate_i - champion_i, with bounds from `_bootstrap`.

A bootstrap cannot see what did not happen: with two differing tasks, both in the candidate's favour, every replicate is >= 0. Under
the null each differing task favours either side with probability 1/2, so m of them cannot carry less than 2**-m of chance (sign
test, Arbuthnot 1710). A promotion therefore also needs 2**-m <= alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate._bootstrap import RESAMPLES, by_cluster, resampled_means

__all__ = ["Decision", "Verdict", "decide", "more_tasks", "scores_of"]

Decision = Literal["promote", "canary", "reject", "not_enough_evidence"]
"""`canary`: better by offline evidence, which alone does not promote here; live rewards are to decide."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided and why.

    `effect` is the mean paired difference in the unit of the scores, `low` and `high` its one-sided bounds at level `alpha` (None
    where no alpha is left, or nothing was evaluated). `tasks` counts clusters,
    `rows` pairs, `differing` tasks on which the two differ. `more_tasks` estimates how many more would decide.
    """

    decision: Decision
    reason: str
    effect: float
    low: float | None
    high: float | None
    champion: float
    candidate: float
    tasks: int
    rows: int
    differing: int
    alpha: float
    more_tasks: int | None = None
    checks: tuple[dict[str, Any], ...] = ()
    """Slices and guard metrics that were looked at, as `_judge.CheckResult` says them."""


def decide(
    candidate: Sequence[float],
    champion: Sequence[float],
    clusters: Sequence[str],
    *,
    alpha: float = 0.05,
    min_tasks: int = 64,
    min_effect: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Compare paired scores; `clusters[i]` is the task of pair i.

    promote: the lower bound is above `min_effect`, on at least `min_tasks` tasks. reject: enough tasks, and the upper bound is below
    `min_effect` or the effect is not positive. Otherwise not enough evidence. Raises EvaluationFailed for unpaired or non-finite scores.
    """
    if not len(candidate) == len(champion) == len(clusters):
        raise EvaluationFailed(
            f"scores are not paired: {len(candidate)} of the candidate, {len(champion)} of the champion, {len(clusters)} tasks"
        )
    a, b = scores_of(candidate), scores_of(champion)
    if not len(a):
        return _verdict("not_enough_evidence", "nothing was evaluated", a, b, 0, 0, None, alpha, min_tasks)
    sums, counts = by_cluster(a - b, clusters)
    tasks, differing = len(sums), int(np.count_nonzero(sums))
    if alpha <= 0:
        reason = "the alpha of this generation of held-out tasks is spent; wait for new tasks"
        return _verdict("not_enough_evidence", reason, a, b, tasks, differing, None, alpha, None)
    means = resampled_means(sums, counts, resamples, seed)
    low, high = bounds = float(np.quantile(means, alpha)), float(np.quantile(means, 1 - alpha))
    effect = float(sums.sum() / counts.sum())
    if tasks < min_tasks:
        reason = f"{tasks} held-out tasks; the gate wants at least {min_tasks}"
        return _verdict("not_enough_evidence", reason, a, b, tasks, differing, bounds, alpha, min_tasks - tasks)
    level = f"{100 * (1 - alpha):g} %"
    if low > min_effect and 2.0**-differing <= alpha:
        reason = f"better by {effect:+.3f}; with {level} confidence by more than {low:+.3f}"
        return _verdict("promote", reason, a, b, tasks, differing, bounds, alpha, None)
    if high < min_effect or effect <= 0:
        reason = f"not better: {effect:+.3f}, with {level} confidence at most {high:+.3f}"
        return _verdict("reject", reason, a, b, tasks, differing, bounds, alpha, None)
    more = more_tasks(sums, counts, effect, alpha, min_effect)
    reason = f"{effect:+.3f} on {tasks} tasks could be chance: the {level} lower bound is {low:+.3f}, wanted above {min_effect:g}"
    return _verdict("not_enough_evidence", reason, a, b, tasks, differing, bounds, alpha, more)


def scores_of(values: Sequence[float]) -> NDArray[np.float64]:
    """The scores as an array. Raises EvaluationFailed for one that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise EvaluationFailed("a score is not a finite number")
    return array


def more_tasks(
    sums: NDArray[np.float64], counts: NDArray[np.float64], effect: float, alpha: float, min_effect: float
) -> int | None:
    """How many more tasks would make effect - z sd / sqrt(n) exceed `min_effect`, if the effect is what it looks like. None: none would."""
    if effect <= min_effect:
        return None
    n = len(sums)
    residual = sums - effect * counts
    sd = math.sqrt(float((residual**2).sum()) / max(1, n - 1)) / float(counts.mean())
    wanted = (NormalDist().inv_cdf(1 - alpha) * sd / (effect - min_effect)) ** 2
    return max(1, math.ceil(wanted) - n)


def _verdict(
    decision: Decision,
    reason: str,
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    tasks: int,
    differing: int,
    bounds: tuple[float, float] | None,
    alpha: float,
    more: int | None,
) -> Verdict:
    n = len(candidate)
    mean_a, mean_b = (float(candidate.mean()), float(champion.mean())) if n else (0.0, 0.0)
    return Verdict(
        decision=decision,
        reason=reason,
        effect=mean_a - mean_b,
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        champion=mean_b,
        candidate=mean_a,
        tasks=tasks,
        rows=n,
        differing=differing,
        alpha=alpha,
        more_tasks=more,
    )
