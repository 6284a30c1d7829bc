"""The gate: is the candidate better than the champion? A pure function of paired scores.

The effect is the mean of the paired differences d_i = candidate_i - champion_i. Rows of one task are not independent, so tasks are
resampled, never rows: a paired cluster bootstrap (Davison & Hinkley 1997, section 3.8; Cameron, Gelbach & Miller 2008). With
clusters c drawn with replacement, the replicate is sum_c(sum of d in c) / sum_c(rows in c); its alpha quantile is the one-sided
lower bound, its (1 - alpha) quantile the upper one.

A bootstrap cannot see what did not happen: with two differing tasks, both in the candidate's favour, every replicate is >= 0. Under
the null each differing task favours either side with probability 1/2, so m of them cannot carry less than 2**-m of chance (sign
test, Arbuthnot 1710). A promotion therefore also needs 2**-m <= alpha.

Alpha is spent per generation of held-out groups: the k-th decision on one generation gets alpha / (k (k + 1)), which sums to alpha
over all k. A generation of fresh tasks, drawn for one decision and never used again, may spend it whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treadle_trainer.errors import EvaluationFailed

__all__ = ["AlphaLedger", "Decision", "Verdict", "decide"]

Decision = Literal["promote", "reject", "not_enough_evidence"]
RESAMPLES = 4000
"""Resampling error of a 5 % quantile is then about 0.35 % in probability, 20 ms for 256 tasks."""
_CHUNK_CELLS = 4_000_000
"""Cells of one block of resampled indices: 32 MB."""


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
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(champion, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationFailed("a score is not a finite number")
    if not len(a):
        return _verdict("not_enough_evidence", "nothing was evaluated", a, b, 0, 0, None, alpha, min_tasks)
    sums, counts = _by_cluster(a - b, clusters)
    tasks, differing = len(sums), int(np.count_nonzero(sums))
    if alpha <= 0:
        reason = "the alpha of this generation of held-out tasks is spent; wait for new tasks"
        return _verdict("not_enough_evidence", reason, a, b, tasks, differing, None, alpha, None)
    low, high = bounds = _bounds(sums, counts, alpha, resamples, seed)
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
    more = _more_tasks(sums, counts, effect, alpha, min_effect)
    reason = f"{effect:+.3f} on {tasks} tasks could be chance: the {level} lower bound is {low:+.3f}, wanted above {min_effect:g}"
    return _verdict("not_enough_evidence", reason, a, b, tasks, differing, bounds, alpha, more)


@dataclass(frozen=True)
class AlphaLedger:
    """How much alpha each generation of held-out groups has given to which decision. Immutable: `spend` returns the next ledger."""

    spent: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    """generation -> (decision key, alpha given), in order."""

    def spend(self, generation: str, key: str, alpha: float, *, whole: bool = False) -> tuple[AlphaLedger, float]:
        """The ledger after decision `key` on `generation`, and the alpha it may use.

        The same key again gets what it got (a repeated job is one decision). `whole` takes all that is left: right for tasks drawn
        fresh for this decision. Otherwise the k-th decision gets alpha / (k (k + 1)). Never more than `alpha` in sum.
        """
        given = self.spent.get(generation, ())
        for known, value in given:
            if known == key:
                return self, value
        k = len(given) + 1
        left = max(0.0, alpha - sum(value for _, value in given))
        share = left if whole else min(left, alpha / (k * (k + 1)))
        return AlphaLedger({**self.spent, generation: (*given, (key, share))}), share


def _by_cluster(d: NDArray[np.float64], clusters: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    index: dict[str, int] = {}
    at = np.array([index.setdefault(c, len(index)) for c in clusters])
    sums: NDArray[np.float64] = np.bincount(at, weights=d, minlength=len(index)).astype(np.float64)
    return sums, np.bincount(at, minlength=len(index)).astype(np.float64)


def _bounds(
    sums: NDArray[np.float64], counts: NDArray[np.float64], alpha: float, resamples: int, seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n = len(sums)
    chunk = max(1, _CHUNK_CELLS // n)
    means = np.empty(resamples)
    for start in range(0, resamples, chunk):
        drawn = rng.integers(0, n, (min(chunk, resamples - start), n))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return float(np.quantile(means, alpha)), float(np.quantile(means, 1 - alpha))


def _more_tasks(
    sums: NDArray[np.float64], counts: NDArray[np.float64], effect: float, alpha: float, min_effect: float
) -> int | None:
    # at which n would effect - z sd / sqrt(n) exceed min_effect, if the effect is what it looks like
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
