"""One comparison of candidate and champion, run as a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.views import every_row
from treadle_schemas import Split, TreadleError

from treadle_trainer.errors import JobStopped
from treadle_trainer.gate import Paired, Slice
from treadle_trainer.jobs import EnvironmentSpec, JobRunner
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.scorecard.rows import Measured, select_rows
from treadle_trainer.scorecard.run import Limits, Measurement, measure_models, rows_for

__all__ = ["Comparison", "compare", "limits_of", "play"]


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
    others: dict[str, Paired] = field(default_factory=dict)
    """Metrics of the scorecard that the gate names, each on rows of its own."""
    parts: dict[str, list[str]] = field(default_factory=dict)
    """What else divides the tasks of an environment: the keys of their data that take a few values."""
    found: Measurement | None = None
    """What the same job measured for a scorecard."""
    trouble: str | None = None
    """Why it could not, where it was to."""

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
    believed: Callable[[CorpusRow], bool] = every_row,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Score both models by the policy's evaluation. Raises JobFailed.

    On logged rows only those decide whose label is `believed`, and the same job measures for the policy's scorecard.
    """
    limits = limits_of(policy, on_progress, should_stop)
    models = {"champion": champion, "candidate": candidate}
    if policy.environment is None:
        return _logged(runner, name, policy, corpus, models, seed, believed, limits)
    return _comparison(play(runner, name, policy, policy.environment, models, split, seed, limits), seed)


def limits_of(
    policy: TrainingPolicy, on_progress: Callable[[dict[str, Any]], None] | None, should_stop: Callable[[], bool]
) -> Limits:
    """What a policy lets one job have."""
    return Limits(
        timeout_s=policy.timeout_s, memory_gb=policy.memory_gb, on_progress=on_progress, should_stop=should_stop
    )


def play(
    runner: JobRunner,
    name: str,
    policy: TrainingPolicy,
    environment: str,
    models: Mapping[str, Path],
    split: Split,
    seed: int,
    limits: Limits,
) -> dict[str, Any]:
    """Let models act on the same fresh held-out tasks of an environment. Returns what the job said. Raises JobFailed."""
    spec = EnvironmentSpec(
        models={which: str(folder) for which, folder in models.items()},
        environment=environment,
        evaluator=policy.evaluator,
        tasks=policy.eval_tasks,
        seed=seed,
        split=split,
        labels=policy.gate.slices,
    )
    return runner.run(
        name,
        spec,
        timeout_s=limits.timeout_s,
        memory_gb=limits.memory_gb,
        on_progress=limits.on_progress,
        should_stop=limits.should_stop,
    )


def _logged(
    runner: JobRunner,
    name: str,
    policy: TrainingPolicy,
    corpus: Corpus,
    models: dict[str, Path],
    seed: int,
    believed: Callable[[CorpusRow], bool],
    limits: Limits,
) -> Comparison:
    """How likely both find the held-out rows that succeeded: the mean log-likelihood a response token of each, in nats."""
    found, trouble = None, None
    chosen: dict[str, Any] = {"deciding": policy.eval_tasks, "labels": policy.gate.slices, "believed": believed}
    if policy.scorecard is not None:
        try:
            measured = rows_for(corpus, policy.scorecard, **chosen)
            if measured.rows:
                found = measure_models(
                    runner, name, models, measured, policy.scorecard, limits, max_length=policy.max_length
                )
        except JobStopped:
            raise
        except TreadleError as err:  # what the gate needs is measured without it
            trouble = str(err)
    whole = found
    if found is None:
        measured = select_rows(corpus, 0, **chosen)
        if not measured.rows:
            return Comparison(kind="logged", candidate=[], champion=[], clusters=[], seed=seed, trouble=trouble)
        found = measure_models(runner, name, models, measured, None, limits, max_length=policy.max_length)
    return replace(_likelihoods(found, policy.gate.slices, seed), found=whole, trouble=trouble)


def _likelihoods(found: Measurement, labels: Sequence[str], seed: int) -> Comparison:
    measured: Measured = found.measured
    ours, theirs = (found.values[model]["log_likelihood"] for model in ("candidate", "champion"))
    # what is too long for one of them is left out for both
    places = [n for n, row in enumerate(measured.rows) if row.decides and str(n) in ours and str(n) in theirs]
    return Comparison(
        kind="logged",
        candidate=[ours[str(n)] for n in places],
        champion=[theirs[str(n)] for n in places],
        clusters=[measured.rows[n].group for n in places],
        seed=seed,
        labels={label: [measured.rows[n].labels.get(label, "") for n in places] for label in labels},
    )


def _comparison(result: dict[str, Any], seed: int) -> Comparison:
    scores, clusters = result["scores"], result["clusters"]
    candidate, champion = (result.get("metrics", {}).get(name, {}) for name in ("candidate", "champion"))
    return Comparison(
        kind="environment",
        candidate=scores["candidate"],
        champion=scores["champion"],
        clusters=clusters,
        seed=seed,
        metrics={
            name: Paired(candidate=candidate[name], champion=champion[name], clusters=clusters)
            for name in candidate.keys() & champion.keys()
        },
        labels=result["labels"],
        parts=result["parts"],
    )
