"""What a method that samples begins with: prompts of a corpus version, or tasks of an environment, of the train side only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from treadle_corpus import Corpus, CorpusRef, CorpusRow
from treadle_corpus.images import has_images
from treadle_corpus.views import evaluation
from treadle_schemas import SettingError
from treadle_schemas.environment import Environment, Task, load_environment
from treadle_schemas.moments import to_micros

from treadle_trainer.data._selection import side_rows
from treadle_trainer.errors import DataRefused
from treadle_trainer.evaluate.player import prompt_ids
from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["MOST_TASKS", "Found", "Prompt", "find_prompts", "find_tasks", "load_world", "places", "prompts_a_step"]

MOST_TASKS: Final = 4096
"""Tasks that are drawn from an environment at most; a longer training sees them again."""
DRAWS_PER_TASK: Final = 4
"""Tasks drawn for one wanted, beyond what the held-out share makes necessary: some are too long."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation up to where the assistant answers, as `ids` by the chat template, and what was logged there."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    logged: dict[str, Any]
    task_id: str | None
    tags: dict[str, Any]
    ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Prompts or tasks, each with the tokens of its beginning; and what became of the rows (or tasks) that were looked at.

    `rows == used + sum(dropped.values())`; `left_out` counts prompts that could have been made and were not, by reason.
    """

    items: Sequence[Any]
    ids: Sequence[list[int]]
    rows: int
    used: int
    dropped: dict[str, int]
    left_out: dict[str, int]


def find_prompts(spec: TrainSpec, tokenizer: Any) -> Found:
    """The prompts of a version's train rows: the messages before the last response of each trajectory.

    With `prompts` task one of each split group, that of its newest row. Left out: `same_task`, `images`, `too_long` (with
    `max_new_tokens` more than `max_length`). Raises DataRefused where none is left, TemplateRefused.
    """
    with Corpus.open(CorpusRef(Path(spec.corpus), spec.version)) as corpus:
        rows = list(side_rows(corpus, "train", spec.newest_rows))
        of_row = {(row.episode_id, row.interaction_id): row for row in rows}
        view = evaluation(rows, split="train")
        left_out: Counter[str] = Counter()
        newest: dict[Any, tuple[int, Any]] = {}
        for n, example in enumerate(view):
            ended = _ended(of_row[example["episode_id"], example["interaction_id"]])
            key = example["group"] if spec.prompts == "task" else n
            if key in newest:
                left_out["same_task"] += 1
            if key not in newest or newest[key][0] <= ended:
                newest[key] = (ended, example)
        found = []
        for _, example in newest.values():
            *asked, logged = example["messages"]
            if has_images(asked):
                left_out["images"] += 1
                continue
            ids = prompt_ids(tokenizer, asked, example["tools"])
            if len(ids) + spec.max_new_tokens > spec.max_length:
                left_out["too_long"] += 1
                continue
            row = of_row[example["episode_id"], example["interaction_id"]]
            tags = row.interaction.get("tags") or {}
            found.append(
                Prompt(
                    messages=asked,
                    tools=example["tools"],
                    logged=logged,
                    task_id=example["task_id"],
                    tags=tags,
                    ids=ids,
                )
            )
        if not found:
            raise DataRefused(f"{corpus}: its {view.rows} train rows give no prompt: {_why(view.dropped, left_out)}")
    return Found(
        items=found,
        ids=[prompt.ids for prompt in found],
        rows=view.rows,
        used=view.used,
        dropped=dict(view.dropped),
        left_out=dict(left_out),
    )


def find_tasks(spec: TrainSpec, tokenizer: Any, environment: Environment) -> Found:
    """Tasks of the environment on the train side of the split: one for each group of attempts, at most MOST_TASKS.

    Dropped: `heldout`. Left out: `too_long`. Raises DataRefused where none is left, TemplateRefused.
    """
    split = spec.split
    if split is None:
        raise SettingError("a training in an environment wants the split of the workspace, to stay on its train side")
    wanted = min(spec.steps * prompts_a_step(spec), MOST_TASKS)
    tools: list[dict[str, Any]] | None = getattr(environment, "tools", None)
    tasks: list[Task] = []
    ids: list[list[int]] = []
    looked = heldout = too_long = 0
    for task in environment.tasks(math.ceil(wanted / (1 - split.share)) * DRAWS_PER_TASK, spec.seed):
        looked += 1
        if split.side(task.task_id) != "train":
            heldout += 1
            continue
        asked = prompt_ids(tokenizer, task.messages, tools)
        if len(asked) + spec.max_new_tokens > spec.max_length:
            too_long += 1
            continue
        tasks.append(task)
        ids.append(asked)
        if len(tasks) == wanted:
            break
    dropped = {"heldout": heldout} if heldout else {}
    left_out = {"too_long": too_long} if too_long else {}
    if not tasks:
        raise DataRefused(
            f"environment {spec.environment}: its {looked} tasks give nothing to train on: {_why(dropped, left_out)}"
        )
    return Found(
        items=tasks, ids=ids, rows=looked, used=looked - heldout - too_long, dropped=dropped, left_out=left_out
    )


def load_world(name: str) -> Environment:
    """The environment. Raises SettingError, also where its constructor raises."""
    try:
        return load_environment(name)
    except SettingError:
        raise
    except Exception as err:
        raise SettingError(f"environment {name!r} cannot be constructed: {type(err).__name__}: {err}") from err


def prompts_a_step(spec: TrainSpec) -> int:
    """Groups of attempts of one step. Raises SettingError where its attempts are no whole groups."""
    ranks = 1 if spec.launch is None else spec.launch.processes
    attempts = spec.batch * spec.accumulate * ranks
    if attempts % spec.group or spec.group < 2:
        raise SettingError(
            f"group={spec.group}: a step has batch x accumulate x processes = {spec.batch} x {spec.accumulate} x {ranks} = "
            f"{attempts} attempts, which are no whole groups of at least 2"
        )
    return attempts // spec.group


def places(step: int, count: int, items: int, seed: int) -> list[int]:
    """Which `count` of `items` things step `step` takes: all of them once, in an order of the seed, then all in another order."""
    return [int(_order(n // items, items, seed)[n % items]) for n in range(step * count, (step + 1) * count)]


@lru_cache(maxsize=4)
def _order(epoch: int, items: int, seed: int) -> Any:
    return np.random.default_rng([abs(seed), epoch]).permutation(items)


def _ended(row: CorpusRow) -> int:
    return to_micros(row.interaction["ended_at"], "$.ended_at")


def _why(*counts: Any) -> str:
    merged = Counter[str]()
    for one in counts:
        merged.update(one)
    return ", ".join(f"{name} {n}" for name, n in sorted(merged.items())) or "there are none"
