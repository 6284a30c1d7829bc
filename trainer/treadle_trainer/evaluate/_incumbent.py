"""An incumbent that cannot be played: a hosted model, known by the held-out rows that it was logged with.

What is known of it is what its episodes earned and used. The candidate, which can be played, is measured in one of two ways:

- in the **environment**, on fresh held-out tasks, whose `success` has to be in the unit of the rewards;
- without one by **imitation**: it answers, greedily, what the incumbent was asked. Where it says the same it earns the same; anything else
  counts as the least reward there is, though it may be as good. So its score is a lower bound of what it would earn, and "not worse than
  by the margin" stays true. Only episodes of one answer are fit for that: after another first step the log knows no second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.images import has_images
from treadle_corpus.views import evaluation
from treadle_schemas import Split
from treadle_schemas.moments import to_micros

from treadle_trainer.data import newest
from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.evaluate._compare import limits_of, play
from treadle_trainer.jobs import JobRunner
from treadle_trainer.policy import ScorecardPolicy, TrainingPolicy
from treadle_trainer.scorecard.rows import EvalRow, Measured
from treadle_trainer.scorecard.run import Limits, measure_models

__all__ = ["SAVINGS", "AgainstLog", "Incumbent", "against_log", "incumbent"]

SAVINGS: Final = ("cost", "latency_s", "length")
"""What a logged episode tells of what it used: US dollars, seconds, tokens written. Each is the sum over its interactions."""
MAX_NEW_TOKENS: Final = 256
"""Longest answer of an imitation."""

ByTask = dict[str, list[float]]
"""Task (split group) -> a value for each of its episodes."""


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """What the log knows: rewards and what was spent, by task. `rows` are the believed rows that it was made of, newest first."""

    rewards: ByTask
    spent: dict[str, ByTask]
    rows: list[CorpusRow]


@dataclass(frozen=True, kw_only=True)
class AgainstLog:
    """The candidate beside such an incumbent. `kind`: how the candidate was measured."""

    kind: Literal["environment", "imitation"]
    candidate: ByTask
    incumbent: ByTask
    savings: dict[str, tuple[ByTask, ByTask]]
    """By metric of which less is better: candidate's, incumbent's."""
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)
    """For the evidence."""

    @property
    def fresh(self) -> bool:
        """Whether the candidate's tasks were drawn for this comparison."""
        return self.kind == "environment"


def incumbent(
    corpus: Corpus,
    release: str,
    hosted_model: str | None,
    slot: str,
    believed: Callable[[CorpusRow], bool],
    *,
    episodes: int,
) -> Incumbent:
    """The newest `episodes` held-out episodes of a version that a release served, with a known reward.

    Rows of before it was registered name no release: these count by the id of the hosted model. An episode that another release of the slot
    served as well, or of which a row is not believed, is nobody's.
    """
    by_episode: dict[str, list[CorpusRow]] = {}
    foreign: set[str] = set()
    for row in corpus.rows("heldout"):
        said = row.interaction
        if said.get("slot", "main") != slot:
            continue
        named = said.get("release")
        if named != release and not (named is None and hosted_model is not None and said.get("model") == hosted_model):
            foreign.add(row.episode_id)
        elif believed(row):
            by_episode.setdefault(row.episode_id, []).append(row)
        else:
            foreign.add(row.episode_id)
    last = [rows[-1] for name, rows in by_episode.items() if name not in foreign and _reward(rows) is not None]
    return _known([by_episode[row.episode_id] for row in newest(last, episodes)])


def _known(episodes: Iterable[list[CorpusRow]]) -> Incumbent:
    rewards: ByTask = {}
    spent: dict[str, ByTask] = {name: {} for name in SAVINGS}
    kept: list[CorpusRow] = []
    for rows in episodes:
        task = rows[0].split_group
        reward = _reward(rows)
        assert reward is not None
        rewards.setdefault(task, []).append(reward)
        for name, value in _spent(rows).items():
            spent[name].setdefault(task, []).append(value)
        kept += rows
    return Incumbent(rewards=rewards, spent=spent, rows=kept)


def against_log(
    runner: JobRunner,
    name: str,
    known: Incumbent,
    *,
    policy: TrainingPolicy,
    split: Split,
    candidate: Path,
    seed: int,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AgainstLog:
    """Measure a candidate beside what is known of the incumbent. Raises EvaluationFailed where a saving is not measured, JobFailed."""
    limits = limits_of(policy, on_progress, should_stop)
    models = {"candidate": candidate}
    kind: Literal["environment", "imitation"]
    if policy.environment is not None:
        kind = "environment"
        scores, used = _played(play(runner, name, policy, policy.environment, models, split, seed, limits))
    else:
        kind = "imitation"
        scores, used, known = _imitated(runner, name, policy, known, models, limits)
    _price(used, policy.gate.usd_per_million_tokens)
    for wanted in policy.gate.savings:
        if scores and wanted not in used:
            hint = " (gate.usd_per_million_tokens gives it a price)" if wanted == "cost" else ""
            raise EvaluationFailed(
                f"the policy's gate names the saving {wanted!r}, but of the candidate is measured: "
                f"{', '.join(sorted(set(used) & set(SAVINGS))) or 'none'}{hint}"
            )
    facts = {
        "incumbent_episodes": sum(map(len, known.rewards.values())),
        "incumbent_tasks": len(known.rewards),
        "candidate_tasks": len(scores),
        "shared_tasks": len(known.rewards.keys() & scores.keys()),
    }
    return AgainstLog(
        kind=kind,
        candidate=scores,
        incumbent=known.rewards,
        savings={n: (used.get(n, {}), known.spent[n]) for n in policy.gate.savings},
        seed=seed,
        facts=facts,
    )


def _played(result: dict[str, Any]) -> tuple[ByTask, dict[str, ByTask]]:
    tasks = result["clusters"]
    metrics = result.get("metrics", {}).get("candidate", {})
    return _by_task(tasks, result["scores"]["candidate"]), {n: _by_task(tasks, v) for n, v in metrics.items()}


def _imitated(
    runner: JobRunner,
    name: str,
    policy: TrainingPolicy,
    known: Incumbent,
    models: dict[str, Path],
    limits: Limits,
) -> tuple[ByTask, dict[str, ByTask], Incumbent]:
    """Scores and lengths of the candidate, and the incumbent on the same episodes."""
    steps = Counter(row.episode_id for row in known.rows)
    single = [r for r in known.rows if steps[r.episode_id] == 1 and not has_images(r.interaction["messages"])]
    examples = [example for example in evaluation(single) if len(example["response"]) == 1]
    rows = [
        EvalRow(
            messages=example["messages"],
            response=example["response"],
            tools=example["tools"],
            reward=example["reward"],
            group=example["group"],
        )
        for example in examples
    ]
    if not rows:
        return {}, {}, _known([])
    plan = ScorecardPolicy(generate=len(rows), max_new_tokens=min(MAX_NEW_TOKENS, policy.max_length // 2))
    measured = Measured(rows=rows, pairs=[])
    found = measure_models(runner, name, models, measured, plan, limits, max_length=policy.max_length)
    values = found.values["candidate"]
    least = min([0.0, *(value for values in known.rewards.values() for value in values)])
    of_episode = {row.episode_id: row for row in single}
    scores: ByTask = {}
    length: ByTask = {}
    answered: list[list[CorpusRow]] = []
    for index, same in values["exact"].items():
        row = rows[int(index)]
        answered.append([of_episode[examples[int(index)]["episode_id"]]])
        assert row.reward is not None
        scores.setdefault(row.group, []).append(row.reward if same else least)
        length.setdefault(row.group, []).append(values["length"][index])
    return scores, {"length": length}, _known(answered)


def _price(used: dict[str, ByTask], usd_per_million_tokens: float | None) -> None:
    if usd_per_million_tokens is not None and "cost" not in used and "length" in used:
        per_token = usd_per_million_tokens / 1e6
        used["cost"] = {task: [per_token * n for n in values] for task, values in used["length"].items()}


def _by_task(tasks: Iterable[str], values: Iterable[float]) -> ByTask:
    out: ByTask = {}
    for task, value in zip(tasks, values, strict=True):
        out.setdefault(task, []).append(value)
    return out


def _reward(rows: Iterable[CorpusRow]) -> float | None:
    """The mean of the known rewards of an episode's rows: what the whole earned, where its outcome is credited to each."""
    known = [row.grade.reward for row in rows if row.grade.reward is not None]
    return sum(known) / len(known) if known else None


def _spent(rows: Iterable[CorpusRow]) -> dict[str, float]:
    """What an episode used, by metric; one that an interaction does not tell is left out."""
    told: dict[str, list[float | None]] = {name: [] for name in SAVINGS}
    for row in rows:
        said = row.interaction
        told["cost"].append(said.get("cost"))
        micros = to_micros(said["ended_at"], "$.ended_at") - to_micros(said["started_at"], "$.started_at")
        told["latency_s"].append(max(0.0, micros / 1e6))
        told["length"].append(_written(said))
    return {name: sum(v for v in values if v is not None) for name, values in told.items() if None not in values}


def _written(interaction: dict[str, Any]) -> float | None:
    usage = interaction.get("usage") or {}
    for name in ("completion_tokens", "output_tokens"):
        if isinstance(usage.get(name), int):
            return float(usage[name])
    sampled = interaction.get("token_ids")
    return float(sum(map(len, sampled))) if sampled else None
