"""The whole judgement: the primary comparison, then what must not get worse, then what the evidence is good for.

Slices and guard metrics are vetoes. Each is tested for harm: with confidence 1 - regression_alpha / checks (Bonferroni, so that a harmless
candidate is refused in at most regression_alpha of cases), is the candidate worse by more than the tolerance? A significant yes rejects.

Non-inferiority turns the primary question round: is the candidate with confidence 1 - alpha less than `margin` worse, and with the same
confidence cheaper or faster by at least the wanted share? (Blackwelder 1982, "Proving the null hypothesis in clinical trials".) The
incumbent may be known by its logged rows alone; where these are of other tasks, the two samples are resampled independently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.gate._bootstrap import RESAMPLES, by_cluster, resampled_means
from treadle_trainer.gate._decide import Verdict, decide, scores_of

__all__ = ["Check", "CheckResult", "Paired", "Slice", "judge", "judge_against_log"]

MIN_CHECK_TASKS = 16
"""Fewer tasks than this say nothing about a slice: a bootstrap of a handful is no bound."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Scores of the same rows by both models, higher is better; `clusters[i]` is the task of row i."""

    candidate: Sequence[float]
    champion: Sequence[float]
    clusters: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the primary comparison that must not get worse: the rows at `rows`."""

    name: str
    rows: Sequence[int]
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """A guard metric that must not get worse by more than `tolerance`, in its own unit. `minimise`: lower is better."""

    name: str
    scores: Paired
    tolerance: float = 0.0
    direction: Literal["maximise", "minimise"] = "maximise"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found. `effect` is positive where the candidate is better; `high` its one-sided upper bound, None: too few tasks."""

    name: str
    effect: float
    high: float | None
    tolerance: float
    tasks: int
    regressed: bool


def judge(
    primary: Paired,
    *,
    slices: Sequence[Slice] = (),
    checks: Sequence[Check] = (),
    alpha: float = 0.05,
    regression_alpha: float = 0.05,
    min_tasks: int = 64,
    min_effect: float = 0.0,
    margin: float | None = None,
    savings: Sequence[Check] = (),
    saving_share: float = 0.0,
    admits_only: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Judge a candidate.

    With `margin`, non-inferiority: the lower bound must be above -margin, and for one of `savings` (its `direction` is not looked at: lower
    is better) the candidate must use less than (1 - saving_share) of the champion's, each at level alpha / len(savings). `admits_only`:
    the evidence may admit to a canary, and promotes nothing. Raises EvaluationFailed for unpaired or non-finite scores.
    """
    verdict = decide(
        primary.candidate,
        primary.champion,
        primary.clusters,
        alpha=alpha,
        min_tasks=min_tasks,
        min_effect=min_effect if margin is None else -margin,
        seed=seed,
        resamples=resamples,
    )
    if margin is not None:
        verdict = _non_inferior(verdict, margin, savings, saving_share, alpha, seed, resamples)
    results = _checked(primary, slices, checks, regression_alpha, seed, resamples)
    return _concluded(verdict, results, admits_only)


def judge_against_log(
    candidate: Mapping[str, Sequence[float]],
    incumbent: Mapping[str, Sequence[float]],
    *,
    margin: float,
    savings: Mapping[str, tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]]],
    saving_share: float = 0.0,
    alpha: float = 0.05,
    min_tasks: int = 64,
    admits_only: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Non-inferiority against an incumbent of which only logged rows are there: task -> its scores, for either side.

    Where at least `min_tasks` tasks are in both, they are compared task by task; otherwise as two independent samples of tasks. `savings`
    names metrics of which lower is better, (candidate's, incumbent's), compared in the same way.
    """
    effect = _difference(candidate, incumbent, 1.0, min_tasks, seed, resamples)
    low, high = (float(np.quantile(effect.means, q)) for q in (alpha, 1 - alpha)) if len(effect.means) else (0.0, 0.0)
    enough = effect.tasks >= min_tasks
    base = Verdict(
        decision="not_enough_evidence",
        reason=f"{effect.tasks} tasks; the gate wants at least {min_tasks}",
        effect=effect.effect,
        low=low if len(effect.means) else None,
        high=high if len(effect.means) else None,
        champion=_mean(incumbent),
        candidate=_mean(candidate),
        tasks=effect.tasks,
        rows=sum(map(len, candidate.values())),
        differing=effect.tasks,
        alpha=alpha,
        more_tasks=None if enough else min_tasks - effect.tasks,
    )
    if not enough:
        return base
    level = f"{100 * (1 - alpha):g} %"
    if high < -margin:
        return dataclasses.replace(
            base, decision="reject", reason=f"worse by {-effect.effect:.3f}, beyond the margin {margin:g} ({level})"
        )
    if low <= -margin:
        reason = f"{effect.effect:+.3f}: with {level} confidence above {low:+.3f}, wanted above {-margin:+.3f}"
        return dataclasses.replace(base, reason=reason)
    short = _unseen_losses(margin, alpha) - effect.tasks
    if short > 0:
        return dataclasses.replace(base, reason=_too_few(margin), more_tasks=short)
    found = []
    for name, (ours, theirs) in savings.items():
        saved = _difference(ours, theirs, 1.0 - saving_share, min_tasks, seed, resamples)
        if saved.tasks >= min_tasks and float(np.quantile(saved.means, 1 - alpha / len(savings))) < 0:
            found.append(f"{name} {_mean(ours):.4g} against {_mean(theirs):.4g}")
    return _concluded(_with_savings(base, margin, found, saving_share), (), admits_only)


@dataclass(frozen=True)
class _Difference:
    effect: float
    tasks: int
    means: np.typing.NDArray[np.float64]


def _difference(
    ours: Mapping[str, Sequence[float]],
    theirs: Mapping[str, Sequence[float]],
    scale: float,
    min_tasks: int,
    seed: int,
    resamples: int,
) -> _Difference:
    """Mean over tasks of ours - scale * theirs: paired where enough tasks are in both, else of two independent samples of tasks."""
    both = sorted(ours.keys() & theirs.keys())
    if len(both) >= min_tasks:
        d = np.array([_task(ours[t]) - scale * _task(theirs[t]) for t in both])
        return _Difference(float(d.mean()), len(both), resampled_means(d, np.ones(len(d)), resamples, seed))
    if not ours or not theirs:
        return _Difference(0.0, 0, np.empty(0))
    a = np.array([_task(values) for _, values in sorted(ours.items())])
    b = scale * np.array([_task(values) for _, values in sorted(theirs.items())])
    means = resampled_means(a, np.ones(len(a)), resamples, seed) - resampled_means(
        b, np.ones(len(b)), resamples, seed + 1
    )
    return _Difference(float(a.mean() - b.mean()), min(len(a), len(b)), means)


def _task(values: Sequence[float]) -> float:
    array = scores_of(values)
    if not len(array):
        raise EvaluationFailed("a task has no scores")
    return float(array.mean())


def _mean(scores: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([_task(values) for values in scores.values()])) if scores else 0.0


def _non_inferior(
    verdict: Verdict, margin: float, savings: Sequence[Check], share: float, alpha: float, seed: int, resamples: int
) -> Verdict:
    if verdict.decision == "reject" and (verdict.high is None or verdict.high >= -margin):
        # `decide` also rejects an effect that is not positive; here only one beyond the margin is a reason
        reason = f"{verdict.effect:+.3f} on {verdict.tasks} tasks: not shown to be within the margin {margin:g}"
        verdict = dataclasses.replace(verdict, decision="not_enough_evidence", reason=reason)
    if verdict.low is None or verdict.low <= -margin or verdict.decision == "reject" or verdict.more_tasks is not None:
        return verdict
    short = _unseen_losses(margin, alpha) - verdict.tasks
    if short > 0:
        return dataclasses.replace(verdict, decision="not_enough_evidence", reason=_too_few(margin), more_tasks=short)
    found = []
    for saving in savings:
        a, b = scores_of(saving.scores.candidate), scores_of(saving.scores.champion)
        sums, counts = by_cluster(a - (1.0 - share) * b, saving.scores.clusters)
        means = resampled_means(sums, counts, resamples, seed)
        if float(np.quantile(means, 1 - alpha / len(savings))) < 0:
            found.append(f"{saving.name} {a.mean():.4g} against {b.mean():.4g}")
    return _with_savings(verdict, margin, found, share)


def _unseen_losses(margin: float, alpha: float) -> int:
    # a bootstrap cannot see what did not happen: losses on a share `margin` of tasks stay unseen on n with chance (1 - margin)^n
    return math.ceil(math.log(alpha) / math.log1p(-margin)) if 0 < margin < 1 else 1


def _too_few(margin: float) -> str:
    return f"too few tasks to rule losses on {100 * margin:g} % of them out"


def _with_savings(verdict: Verdict, margin: float, found: Sequence[str], share: float) -> Verdict:
    within = f"not worse than by {margin:g} ({verdict.effect:+.3f}, lower bound {verdict.low:+.3f})"
    if found:
        return dataclasses.replace(verdict, decision="promote", reason=f"{within}, and saves: {', '.join(found)}")
    wanted = f" by {100 * share:g} %" if share else ""
    reason = f"{within}, but not shown to be cheaper or faster{wanted}"
    return dataclasses.replace(verdict, decision="not_enough_evidence", reason=reason)


def _checked(
    primary: Paired, slices: Sequence[Slice], checks: Sequence[Check], alpha: float, seed: int, resamples: int
) -> tuple[CheckResult, ...]:
    level = alpha / max(1, len(slices) + len(checks))
    candidate, champion = scores_of(primary.candidate), scores_of(primary.champion)
    out = []
    for part in slices:
        rows = list(part.rows)
        d = candidate[rows] - champion[rows]
        clusters = [primary.clusters[i] for i in rows]
        out.append(_harm(part.name, d, clusters, part.tolerance, level, seed, resamples))
    for check in checks:
        d = scores_of(check.scores.candidate) - scores_of(check.scores.champion)
        signed = -d if check.direction == "minimise" else d
        out.append(_harm(check.name, signed, check.scores.clusters, check.tolerance, level, seed, resamples))
    return tuple(out)


def _harm(
    name: str,
    d: np.typing.NDArray[np.float64],
    clusters: Sequence[str],
    tolerance: float,
    level: float,
    seed: int,
    resamples: int,
) -> CheckResult:
    if len(d) != len(clusters):
        raise EvaluationFailed(f"{name}: {len(d)} scores for {len(clusters)} tasks")
    sums, counts = by_cluster(d, clusters) if len(d) else (np.empty(0), np.empty(0))
    effect = float(sums.sum() / counts.sum()) if len(d) else 0.0
    if len(sums) < MIN_CHECK_TASKS:
        return CheckResult(name=name, effect=effect, high=None, tolerance=tolerance, tasks=len(sums), regressed=False)
    high = float(np.quantile(resampled_means(sums, counts, resamples, seed), 1 - level))
    worse = int(np.count_nonzero(sums < 0))
    # the sign test of `_decide`, for harm: a few unlucky tasks do not refuse a candidate
    regressed = high < -tolerance and 2.0**-worse <= level
    return CheckResult(name=name, effect=effect, high=high, tolerance=tolerance, tasks=len(sums), regressed=regressed)


def _concluded(verdict: Verdict, results: Sequence[CheckResult], admits_only: bool) -> Verdict:
    verdict = dataclasses.replace(verdict, checks=tuple(asdict(result) for result in results))
    bad = [result for result in results if result.regressed]
    if bad and verdict.decision == "promote":
        said = ", ".join(f"{r.name} by {-r.effect:.3f}" for r in bad)
        return dataclasses.replace(verdict, decision="reject", reason=f"{verdict.reason}; but worse on {said}")
    if admits_only and verdict.decision == "promote":
        reason = f"{verdict.reason}; offline evidence admits to a canary, live rewards decide"
        return dataclasses.replace(verdict, decision="canary", reason=reason)
    return verdict
