"""One comparison of candidate and champion, run as a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from treadle_corpus import Corpus
from treadle_schemas import Split

from treadle_trainer.data import heldout_examples, read_examples
from treadle_trainer.gate import Paired, Slice
from treadle_trainer.jobs import EnvironmentSpec, JobRunner, LikelihoodSpec
from treadle_trainer.policy import TrainingPolicy

__all__ = ["Comparison", "compare"]

ROWS = "heldout.jsonl"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired scores: `clusters[i]` is the held-out group of pair i.

    `metrics` has further metrics of both, `labels` what divides the pairs into slices. `fresh`: the tasks were drawn for this comparison.
    """

    kind: Literal["environment", "logged"]
    candidate: list[float]
    champion: list[float]
    clusters: list[str]
    seed: int
    metrics: dict[str, Paired] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether the tasks were drawn for this comparison, and will not be used again."""
        return self.kind == "environment"

    def slices(self, tolerance: float) -> list[Slice]:
        """A slice for each value of each label."""
        return [
            Slice(name=f"{label}={value}", rows=[i for i, v in enumerate(values) if v == value], tolerance=tolerance)
            for label, values in self.labels.items()
            for value in sorted(set(values))
        ]

    def on(self, rows: Sequence[int]) -> Comparison:
        """The same, of some of its pairs."""
        return replace(
            self,
            candidate=[self.candidate[i] for i in rows],
            champion=[self.champion[i] for i in rows],
            clusters=[self.clusters[i] for i in rows],
            metrics={
                name: Paired(
                    candidate=[m.candidate[i] for i in rows],
                    champion=[m.champion[i] for i in rows],
                    clusters=[m.clusters[i] for i in rows],
                )
                for name, m in self.metrics.items()
            },
            labels={label: [values[i] for i in rows] for label, values in self.labels.items()},
        )


def compare(
    runner: JobRunner,
    name: str,
    *,
    policy: TrainingPolicy,
    corpus: Corpus,
    split: Split,
    candidate: Path,
    champion: Path,
    seed: int,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Score both models by the policy's evaluation. Raises JobFailed."""
    models = {"champion": str(champion), "candidate": str(candidate)}
    folder = runner.prepare(name)
    if policy.environment is not None:
        spec = EnvironmentSpec(
            models=models,
            environment=policy.environment,
            evaluator=policy.evaluator,
            tasks=policy.eval_tasks,
            seed=seed,
            split=split,
            labels=policy.gate.slices,
        )
        result = runner.run(name, spec, timeout_s=policy.timeout_s, on_progress=on_progress, should_stop=should_stop)
        return _comparison("environment", result, result["clusters"], result["labels"], seed)
    selection = heldout_examples(corpus, folder / ROWS, newest_rows=policy.eval_tasks)
    if not selection.examples:
        return Comparison(kind="logged", candidate=[], champion=[], clusters=[], seed=seed)
    rows = LikelihoodSpec(models=models, rows=str(selection.path), max_length=policy.max_length)
    result = runner.run(name, rows, timeout_s=policy.timeout_s, on_progress=on_progress, should_stop=should_stop)
    clusters = [selection.groups[i] for i in result["rows"]]
    labels = _labels(corpus, selection.path, result["rows"], policy.gate.slices)
    return _comparison("logged", result, clusters, labels, seed)


def _comparison(
    kind: Literal["environment", "logged"],
    result: dict[str, Any],
    clusters: list[str],
    labels: dict[str, list[str]],
    seed: int,
) -> Comparison:
    scores = result["scores"]
    candidate, champion = (result.get("metrics", {}).get(name, {}) for name in ("candidate", "champion"))
    return Comparison(
        kind=kind,
        candidate=scores["candidate"],
        champion=scores["champion"],
        clusters=clusters,
        seed=seed,
        metrics={
            name: Paired(candidate=candidate[name], champion=champion[name], clusters=clusters)
            for name in candidate.keys() & champion.keys()
        },
        labels=labels,
    )


def _labels(corpus: Corpus, examples: Path, rows: Sequence[int], wanted: Sequence[str]) -> dict[str, list[str]]:
    """By label: its value on each of the examples at `rows`. A label is `model`, `agent` or the name of a tag."""
    if not wanted:
        return {}
    ids = [(x["episode_id"], x["interaction_id"]) for x in read_examples(examples)]
    used = {ids[i] for i in rows}
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for row in corpus.rows("heldout"):
        if (row.episode_id, row.interaction_id) in used:
            interaction = row.interaction
            named = {"model": interaction.get("model"), "agent": interaction.get("agent")}
            said[row.episode_id, row.interaction_id] = {**named, **interaction.get("tags", {})}
    values = {label: [said[ids[i]].get(label) for i in rows] for label in wanted}
    return {label: ["" if value is None else str(value) for value in found] for label, found in values.items()}
