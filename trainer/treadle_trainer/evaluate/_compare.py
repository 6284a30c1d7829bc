"""One comparison of candidate and champion, run as a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treadle_corpus import Corpus
from treadle_schemas import Split, content_hash

from treadle_trainer.data import heldout_examples
from treadle_trainer.jobs import EnvironmentSpec, JobRunner, LikelihoodSpec
from treadle_trainer.policy import TrainingPolicy

__all__ = ["Comparison", "compare"]

ROWS = "heldout.jsonl"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Paired scores.

    `clusters[i]` is the held-out group of pair i; `generation` identifies the set of groups, for the spending of alpha.
    """

    kind: Literal["environment", "logged"]
    candidate: list[float]
    champion: list[float]
    clusters: list[str]
    generation: str
    seed: int


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
        )
        result = runner.run(name, spec, timeout_s=policy.timeout_s, on_progress=on_progress, should_stop=should_stop)
        clusters = result["clusters"]
        # the tasks were drawn for this comparison: another seed, another generation
        generation = content_hash(["environment", policy.environment, seed, sorted(clusters)])
        return _comparison("environment", result, clusters, generation, seed)
    selection = heldout_examples(corpus, folder / ROWS, newest_rows=policy.eval_tasks)
    if not selection.examples:
        return Comparison(kind="logged", candidate=[], champion=[], clusters=[], generation="", seed=seed)
    rows = LikelihoodSpec(models=models, rows=str(selection.path), max_length=policy.max_length)
    result = runner.run(name, rows, timeout_s=policy.timeout_s, on_progress=on_progress, should_stop=should_stop)
    clusters = [selection.groups[i] for i in result["rows"]]
    return _comparison("logged", result, clusters, content_hash(["logged", sorted(set(clusters))]), seed)


def _comparison(
    kind: Literal["environment", "logged"], result: dict[str, Any], clusters: list[str], generation: str, seed: int
) -> Comparison:
    scores = result["scores"]
    return Comparison(
        kind=kind,
        candidate=scores["candidate"],
        champion=scores["champion"],
        clusters=clusters,
        generation=generation,
        seed=seed,
    )
