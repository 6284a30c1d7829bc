"""Dataset views: what a version says to a training method. Pure functions over rows.

Both take the rows of one version in any order and put out the same examples in the same order. Messages are verbatim. Steps of a growing
episode, each repeating the messages before it, become one trajectory, so that no turn counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypedDict

from treadle_schemas.canonical import dumps
from treadle_schemas.moments import to_micros

from treadle_corpus.reader import CorpusRow

__all__ = ["VIEWS", "DpoPair", "SftExample", "dpo", "jsonl", "rewarded", "sft"]

Messages = list[dict[str, Any]]


class SftExample(TypedDict):
    """One sequence. `response` lists the indices of the messages to train on; the others are context."""

    messages: Messages
    tools: list[dict[str, Any]] | None
    response: list[int]
    task_id: str | None
    episode_id: str
    interaction_id: str
    reward: float | None
    split: str


class DpoPair(TypedDict):
    """Two trajectories of one task. `prompt` is what both begin with, up to the first assistant turn at most."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: list[dict[str, Any]] | None
    task_id: str | None
    chosen_id: str
    rejected_id: str
    chosen_reward: float
    rejected_reward: float
    split: str


def rewarded(row: CorpusRow) -> bool:
    """reward > 0, the default of the sft view. No reward is not above zero."""
    return row.grade.reward is not None and row.grade.reward > 0


def sft(rows: Iterable[CorpusRow], where: Callable[[CorpusRow], bool] = rewarded) -> Iterator[SftExample]:
    """One example a trajectory, trained on the turns of the steps that pass `where`."""
    for steps in _trajectories(rows):
        last = steps[-1]
        response = sorted({i for step in steps if where(step.row) for i in step.own})
        if response:
            yield SftExample(
                messages=last.row.interaction["messages"],
                tools=last.row.interaction.get("tools"),
                response=response,
                task_id=last.row.interaction.get("task_id"),
                episode_id=last.row.episode_id,
                interaction_id=last.row.interaction_id,
                reward=last.row.grade.reward,
                split=last.row.split,
            )


def dpo(rows: Iterable[CorpusRow]) -> Iterator[DpoPair]:
    """Every pair of a trajectory with reward > 0 and one with reward <= 0 within a task. A trajectory has its last step's reward.

    Rows without a task pair by what they were asked (their split group). Rows without a reward are in no pair.
    """
    ends = sorted((steps[-1].row for steps in _trajectories(rows)), key=lambda r: (r.split_group, *_id(r)))
    for _, group in groupby(ends, key=lambda r: r.split_group):
        graded = [(row, row.grade.reward) for row in group if row.grade.reward is not None]
        for win, win_reward in graded:
            for loss, loss_reward in graded:
                if win_reward > 0 >= loss_reward:
                    yield _pair(win, loss, win_reward, loss_reward)


VIEWS: dict[str, Callable[[Iterable[CorpusRow]], Iterator[Any]]] = {"sft": sft, "dpo": dpo}
"""The views by the name that `treadle corpus export --view` takes."""


def jsonl(examples: Iterable[Any]) -> Iterator[bytes]:
    """One JSON line an example."""
    for example in examples:
        yield dumps(example) + b"\n"


@dataclass(frozen=True)
class _Step:
    row: CorpusRow
    own: list[int]
    """Indices of the messages that this step said: its marks, without marks every assistant turn that the step before lacks."""


def _trajectories(rows: Iterable[CorpusRow]) -> Iterator[list[_Step]]:
    for _, episode in groupby(sorted(rows, key=_id), key=lambda r: r.episode_id):
        steps: list[_Step] = []
        for row in sorted(episode, key=_step_order):
            messages = row.interaction["messages"]
            said = steps[-1].row.interaction["messages"] if steps else []
            if steps and not (len(said) < len(messages) and messages[: len(said)] == said):
                yield steps
                steps, said = [], []
            steps.append(_Step(row, _own(row, len(said))))
        if steps:
            yield steps


def _own(row: CorpusRow, known: int) -> list[int]:
    marks = row.interaction.get("response")
    if marks is not None:
        return [int(i) for i in marks]
    return [i for i, m in enumerate(row.interaction["messages"]) if i >= known and m.get("role") == "assistant"]


def _pair(win: CorpusRow, loss: CorpusRow, win_reward: float, loss_reward: float) -> DpoPair:
    chosen, rejected = win.interaction["messages"], loss.interaction["messages"]
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b or a.get("role") == "assistant":
            break
        shared += 1
    return DpoPair(
        prompt=chosen[:shared],
        chosen=chosen[shared:],
        rejected=rejected[shared:],
        tools=win.interaction.get("tools"),
        task_id=win.interaction.get("task_id"),
        chosen_id=win.interaction_id,
        rejected_id=loss.interaction_id,
        chosen_reward=win_reward,
        rejected_reward=loss_reward,
        split=win.split,
    )


def _id(row: CorpusRow) -> tuple[str, str]:
    return (row.episode_id, row.interaction_id)


def _step_order(row: CorpusRow) -> tuple[int, int, str]:
    return (
        row.interaction.get("step", 0),
        to_micros(row.interaction["started_at"], "$.started_at"),
        row.interaction_id,
    )
