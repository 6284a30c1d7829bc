"""The scorecard of a turn's candidate: measured before the gate decides, so that what is decided and told carries it.

It costs a second or two of a tiny model's turn, and lets the gate use its metrics, a person who is asked for approval see it, and a judge's
spend count to the turn. Where there is no environment it is the same job as the gate's comparison. What goes wrong with it is recorded and
ends no turn, unless the gate names one of its metrics: then nothing can be decided.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from treadle_corpus import Corpus
from treadle_schemas import ReleaseId

from treadle_trainer.errors import EvaluationFailed, JobStopped
from treadle_trainer.evaluate import Comparison
from treadle_trainer.gate import Paired
from treadle_trainer.jobs import JobRunner
from treadle_trainer.policy import ScorecardPolicy, TrainingPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.scorecard.card import Played, brief
from treadle_trainer.scorecard.evaluators import split_evaluator
from treadle_trainer.scorecard.metrics import for_gate
from treadle_trainer.scorecard.rows import Measured
from treadle_trainer.scorecard.run import Limits, Measurement, keep, measure_models, rows_for

__all__ = ["Carded", "card_of", "gate_metrics"]

_BETTER: Mapping[str, Literal[-1, 0, 1]] = {"score": 1, "valid": 1}
"""Of the metrics of the default evaluator; more tokens are neither better nor worse."""


@dataclass(frozen=True, kw_only=True)
class Carded:
    """What a turn's evidence says of the scorecard and of its judges, and what was measured."""

    evidence: dict[str, Any]
    judge: dict[str, Any] | None = None
    found: Measurement | None = None
    trouble: str | None = None
    """Why there is none."""
    own: list[str] = field(default_factory=list)
    """The evaluators' names."""


def card_of(
    registry: Registry,
    candidate: ReleaseId,
    champion: ReleaseId,
    corpus: Corpus,
    runner: JobRunner,
    job: str,
    policy: TrainingPolicy,
    plan: ScorecardPolicy,
    comparison: Comparison | None,
    limits: Limits,
) -> Carded:
    """Measure, unless the comparison has done so already, and store the scorecard. Raises JobStopped alone.

    Beside a champion without a model folder the candidate is measured alone.
    """
    start = time.monotonic()
    try:
        weights = registry.manifest(champion).kind == "model"
        models = {"champion": registry.folder(champion)} if weights else {}
        models["candidate"] = registry.folder(candidate)
        found = _found(runner, job, models, corpus, policy, plan, comparison, limits)
        card, path = keep(
            registry,
            candidate,
            champion if weights else None,
            corpus,
            plan,
            found,
            max_length=policy.max_length,
            played=_played(comparison, policy),
        )
    except JobStopped:
        raise
    except Exception as err:  # whatever it is, the turn has its own evidence
        why = str(err) or type(err).__name__
        return Carded(evidence={"failed": why, "seconds": round(time.monotonic() - start, 3)}, trouble=why)
    in_job = found.seconds if comparison is not None and comparison.found is found else 0.0
    return Carded(
        evidence={
            "path": str(path.relative_to(registry.root)),
            "seconds": round(time.monotonic() - start + in_job, 3),
            **brief(card),
        },
        judge=None if card.judge is None else _plain(card.judge),
        found=found,
        own=[split_evaluator(text)[0] for text in plan.evaluators],
    )


def gate_metrics(policy: TrainingPolicy, comparison: Comparison, carded: Carded | None) -> dict[str, Paired]:
    """The metrics that the gate names and the comparison itself does not give, from the scorecard.

    Those that it does not give either are left out. Raises EvaluationFailed where it should have given one and could not.
    """
    wanted = [name for name in (*policy.gate.guards, *policy.gate.savings) if name not in comparison.metrics]
    if not wanted or carded is None:
        return {}
    if carded.found is None:
        raise EvaluationFailed(
            f"the policy's gate names {', '.join(wanted)}, which the scorecard is to give; but that failed: {carded.trouble}"
        )
    said = {
        name: for_gate(name, carded.found.measured, carded.found.values, carded.own, carded.found.failures)
        for name in wanted
    }
    return {name: paired for name, paired in said.items() if paired is not None}


def _found(
    runner: JobRunner,
    job: str,
    models: Mapping[str, Path],
    corpus: Corpus,
    policy: TrainingPolicy,
    plan: ScorecardPolicy,
    comparison: Comparison | None,
    limits: Limits,
) -> Measurement:
    if comparison is not None and comparison.trouble is not None:
        raise EvaluationFailed(comparison.trouble)
    if comparison is not None and comparison.found is not None:
        return comparison.found
    measured = rows_for(corpus, plan)
    if not measured.rows and not measured.pairs:  # the environment's part is worth having alone
        return Measurement(
            measured=Measured(rows=[], pairs=[]), values={"candidate": {}}, judge=None, failures={}, seconds=0.0
        )
    return measure_models(runner, job, models, measured, plan, limits, max_length=policy.max_length)


def _played(comparison: Comparison | None, policy: TrainingPolicy) -> Played | None:
    """What the turn's own comparison in the environment says, so that nothing is played twice."""
    if comparison is None or comparison.kind != "environment" or not comparison.candidate:
        return None
    told = {name: (1 if guard.direction == "maximise" else -1) for name, guard in policy.gate.guards.items()}
    kinds: dict[str, Literal[-1, 0, 1]] = {**_BETTER, **dict.fromkeys(policy.gate.savings, -1), **told}  # type: ignore[dict-item]
    return Played(
        metrics={
            "score": (list(comparison.candidate), list(comparison.champion)),
            **{name: (list(m.candidate), list(m.champion)) for name, m in sorted(comparison.metrics.items())},
        },
        clusters=list(comparison.clusters),
        labels=comparison.parts,
        kinds=kinds,
    )


def _plain(spend: Any) -> dict[str, Any]:
    return {name: getattr(spend, name) for name in ("calls", "prompt_tokens", "completion_tokens", "seconds")}
