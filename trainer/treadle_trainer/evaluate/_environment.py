"""Evaluation by playing (inside a job process): fresh held-out tasks of an environment, the same for every model."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treadle_schemas import Split
from treadle_schemas.environment import Environment, Task, load_environment

from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.jobs._spec import EnvironmentSpec

__all__ = ["Evaluator", "Scored", "heldout_tasks", "load_evaluator", "score"]

Scored = float | Mapping[str, float]
"""The score of a task in [0, 1], or several metrics of it by name, `score` among them."""
Evaluator = Callable[[str, Environment, Sequence[Task], int], Sequence[Scored]]
"""(model folder, environment, tasks, seed) -> what became of each task, in order."""
MAX_VALUES = 12
"""More values than that make a key of a task's data no kind of task, but a detail of it."""
DRAWS_PER_TASK = 8
"""Tasks drawn for one wanted, beyond what the held-out share makes necessary: an environment with few groups repeats itself."""


def score(spec: EnvironmentSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Scores and other metrics by model, the tasks they belong to, and the labels of these."""
    environment = load_environment(spec.environment)
    evaluator = load_evaluator(spec.evaluator)
    tasks = heldout_tasks(environment, spec.tasks, spec.seed, spec.split)
    scores: dict[str, list[float]] = {}
    metrics: dict[str, dict[str, list[float]]] = {}
    for name, folder in spec.models.items():
        start = time.monotonic()
        values = evaluator(folder, environment, tasks, spec.seed)
        if len(values) != len(tasks):
            raise EvaluationFailed(
                f"{spec.evaluator}: expected {len(tasks)} finite scores for {name}, got {len(values)}"
            )
        found = _by_metric(values, f"{spec.evaluator}: {name}")
        scores[name], metrics[name] = found.pop("score"), found
        mean = sum(scores[name]) / len(tasks)
        progress(stage="evaluate", model=name, mean=mean, seconds=time.monotonic() - start)
    return {
        "scores": scores,
        "metrics": metrics,
        "clusters": [task.task_id for task in tasks],
        "labels": {label: [str(task.data.get(label, "")) for task in tasks] for label in spec.labels},
        "parts": _parts(tasks),
    }


def _parts(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The keys of the tasks' data that take a few short values each, and what they are on every task."""
    names = {name for task in tasks for name, value in task.data.items() if isinstance(value, str | bool | int)}
    said = {name: [str(task.data.get(name, "")) for task in tasks] for name in sorted(names)}
    return {name: values for name, values in said.items() if 2 <= len(set(values)) <= MAX_VALUES}


def _by_metric(values: Sequence[Scored], where: str) -> dict[str, list[float]]:
    """Metric -> its value of each task. Raises EvaluationFailed where a task lacks one, or a value is not a finite number."""
    plain = [dict(value) if isinstance(value, Mapping) else {"score": value} for value in values]
    out: dict[str, list[float]] = {}
    for name in plain[0]:
        try:
            out[name] = [float(one[name]) for one in plain]
        except (KeyError, TypeError, ValueError) as err:
            raise EvaluationFailed(f"{where}: metric {name!r} is not a number on every task: {err!r}") from err
        if not all(math.isfinite(x) for x in out[name]):
            raise EvaluationFailed(f"{where}: metric {name!r}: expected finite scores")
    if "score" not in out:
        raise EvaluationFailed(f"{where}: the metrics {', '.join(out)} have no 'score' among them")
    return out


def heldout_tasks(environment: Environment, n: int, seed: int, split: Split) -> list[Task]:
    """The first `n` tasks of distinct held-out groups. Fewer where the environment has fewer; raises EvaluationFailed for none."""
    if split.share <= 0:
        raise EvaluationFailed("the workspace holds nothing out (held-out share 0), so no task is fit to evaluate on")
    found: dict[str, Task] = {}
    for task in environment.tasks(math.ceil(n / split.share) * DRAWS_PER_TASK, seed):
        if split.side(task.task_id) == "heldout" and task.task_id not in found:
            found[task.task_id] = task
            if len(found) == n:
                break
    if not found:
        raise EvaluationFailed(f"the environment gave no held-out task at a held-out share of {split.share:g}")
    return list(found.values())


def load_evaluator(name: str) -> Evaluator:
    """The function `pkg.module:function`. Raises EvaluationFailed naming what is wrong with it."""
    module_name, _, function = name.partition(":")
    try:
        found: Evaluator = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as err:
        raise EvaluationFailed(f"evaluator {name!r} cannot be loaded: {err}") from err
    return found
