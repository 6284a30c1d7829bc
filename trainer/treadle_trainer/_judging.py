"""Step 4 of a turn: what was measured goes to the gate, with the alpha that is left for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from treadle_schemas import ReleaseId, SettingError

from treadle_trainer._alpha import spend_alpha, spend_alpha_whole
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.evaluate import SAVINGS, AgainstLog, Comparison
from treadle_trainer.gate import Check, Paired, Verdict, group_key, judge, judge_against_log
from treadle_trainer.policy import TrainingPolicy

__all__ = ["check_beside_log", "judged"]


def check_beside_log(policy: TrainingPolicy, champion: ReleaseId) -> None:
    """Whether a candidate can be judged beside a hosted champion. Raises SettingError naming the setting."""
    gate = policy.gate
    rules = [
        (policy.base is not None, "base", policy.base, "the model folder to train from: a hosted model has none"),
        (gate.mode == "non_inferiority", "gate.mode", gate.mode, "non_inferiority: its logged rows show no more"),
        (
            set(gate.savings) <= set(SAVINGS),
            "gate.savings",
            gate.savings,
            f"among {', '.join(SAVINGS)}: its log has no others",
        ),
        (not gate.slices, "gate.slices", gate.slices, "none: they compare task by task"),
        (not gate.guards, "gate.guards", sorted(gate.guards), "none: they compare task by task"),
    ]
    for holds, name, value, wanted in rules:
        if not holds:
            raise SettingError(f"policy {name}={value!r}: the champion {champion} is hosted, so expected {wanted}")


def judged(policy: TrainingPolicy, folder: Path, key: str, found: Comparison | AgainstLog) -> Verdict:
    """What the gate says of the job `key`, whose alpha is spent in the registry at `folder`.

    Raises EvaluationFailed where the policy's gate names a metric that nobody measured.
    """
    if isinstance(found, AgainstLog):
        return _by_log(policy, folder, key, found)
    return _by_comparison(policy, folder, key, found)


def _by_comparison(policy: TrainingPolicy, folder: Path, key: str, comparison: Comparison) -> Verdict:
    gate = policy.gate
    if comparison.fresh:
        alpha = spend_alpha_whole(folder, key, gate.alpha)
    else:
        groups = comparison.clusters
        chosen = spend_alpha(folder, key, groups, gate.alpha, min_groups=gate.min_tasks)
        alpha = chosen.alpha
        comparison = comparison.on([i for i, group in enumerate(groups) if group_key(group) in chosen.groups])
    inferiority = gate.mode == "non_inferiority"
    return judge(
        Paired(candidate=comparison.candidate, champion=comparison.champion, clusters=comparison.clusters),
        slices=comparison.slices(gate.slice_tolerance),
        checks=[
            Check(name=name, scores=_metric(comparison, name), tolerance=g.tolerance, direction=g.direction)
            for name, g in gate.guards.items()
        ],
        alpha=alpha,
        regression_alpha=gate.regression_alpha,
        min_tasks=gate.min_tasks,
        min_effect=gate.min_effect,
        margin=gate.margin if inferiority else None,
        savings=[Check(name=n, scores=_metric(comparison, n)) for n in gate.savings] if inferiority else [],
        saving_share=gate.saving_share,
        admits_only=not comparison.fresh and not policy.allow_offline_promotion,
        seed=comparison.seed,
    )


def _by_log(policy: TrainingPolicy, folder: Path, key: str, found: AgainstLog) -> Verdict:
    """Beside a hosted champion. Its rows are used again by every candidate, so alpha is spent on their groups."""
    gate = policy.gate
    chosen = spend_alpha(folder, key, found.incumbent, gate.alpha, min_groups=gate.min_tasks)

    def usable(tasks: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return {task: values for task, values in tasks.items() if group_key(task) in chosen.groups}

    return judge_against_log(
        found.candidate if found.fresh else usable(found.candidate),
        usable(found.incumbent),
        margin=gate.margin,
        savings={
            name: (ours if found.fresh else usable(ours), usable(theirs))
            for name, (ours, theirs) in found.savings.items()
        },
        saving_share=gate.saving_share,
        alpha=chosen.alpha,
        min_tasks=gate.min_tasks,
        admits_only=not found.fresh and not policy.allow_offline_promotion,
        seed=found.seed,
    )


def _metric(comparison: Comparison, name: str) -> Paired:
    given = {**comparison.others, **comparison.metrics}
    if name not in given:
        known = ", ".join(sorted(given)) or "none"
        raise EvaluationFailed(f"the policy's gate names the metric {name!r}, but the evaluation gave: {known}")
    return given[name]
