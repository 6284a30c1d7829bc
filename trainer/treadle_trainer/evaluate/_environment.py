"""Evaluation by playing (inside a job process): fresh held-out tasks of an environment, the same for every model."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from treadle_schemas import Split
from treadle_schemas.environment import Environment, Task, load_environment

from treadle_trainer.errors import EvaluationFailed
from treadle_trainer.jobs._spec import EnvironmentSpec

__all__ = ["Evaluator", "heldout_tasks", "load_evaluator", "score"]

Evaluator = Callable[[str, Environment, Sequence[Task], int], list[float]]
"""(model folder, environment, tasks, seed) -> the score of each task in [0, 1], in order."""
DRAWS_PER_TASK = 8
"""Tasks drawn for one wanted, beyond what the held-out share makes necessary: an environment with few groups repeats itself."""


def score(spec: EnvironmentSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Scores by model, and the tasks they belong to."""
    environment = load_environment(spec.environment)
    evaluator = load_evaluator(spec.evaluator)
    tasks = heldout_tasks(environment, spec.tasks, spec.seed, spec.split)
    scores: dict[str, list[float]] = {}
    for name, folder in spec.models.items():
        start = time.monotonic()
        values = [float(x) for x in evaluator(folder, environment, tasks, spec.seed)]
        if len(values) != len(tasks) or not all(math.isfinite(x) for x in values):
            raise EvaluationFailed(
                f"{spec.evaluator}: expected {len(tasks)} finite scores for {name}, got {len(values)}"
            )
        scores[name] = values
        progress(stage="evaluate", model=name, mean=sum(values) / len(values), seconds=time.monotonic() - start)
    return {"scores": scores, "clusters": [task.task_id for task in tasks]}


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
