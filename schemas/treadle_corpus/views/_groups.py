"""The rl view: attempts at one task, with what their maker logged of the sampling."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from treadle_corpus.reader import CorpusRow, SplitChoice
from treadle_corpus.views._examples import Attempt, RlGroup
from treadle_corpus.views._said import Answer, of_trajectory
from treadle_corpus.views._trajectories import Trajectory, slot_of, trajectories
from treadle_corpus.views._view import Account, View

__all__ = ["rl"]

MIN_ATTEMPTS = 2
"""Advantages are relative to the group: a lone attempt has none."""


def rl(rows: Iterable[CorpusRow], *, min_attempts: int = MIN_ATTEMPTS, split: SplitChoice = "train") -> View[RlGroup]:
    """The graded trajectories of each task (split group) and slot, in groups of at least `min_attempts`.

    Drops: `no_response`, `no_reward`, `alone`.
    """
    account = Account.of("rl", rows, split)
    tried: list[tuple[Trajectory, Answer]] = []
    for trajectory in trajectories(account.rows):
        answer = of_trajectory(trajectory)
        if answer is None or trajectory.row.grade.reward is None:
            _drop(account, trajectory, "no_response" if answer is None else "no_reward")
        else:
            tried.append((trajectory, answer))
    groups: list[RlGroup] = []
    tried.sort(key=lambda pair: _group(pair[0].row))  # stable: trajectories stay in their order
    for (name, _, side), members in groupby(tried, key=lambda pair: _group(pair[0].row)):
        group = list(members)
        if len(group) < min_attempts:
            for trajectory, _ in group:
                _drop(account, trajectory, "alone")
            continue
        for trajectory, _ in group:
            for step in trajectory.steps:
                account.use(step.row)
        groups.append(
            RlGroup(
                group=name,
                task_id=group[0][0].row.interaction.get("task_id"),
                split=side,
                attempts=[_attempt(trajectory, answer) for trajectory, answer in group],
            )
        )
    return account.close(groups)


def _attempt(trajectory: Trajectory, answer: Answer) -> Attempt:
    row, sampled = trajectory.row, _sampled(trajectory)
    assert row.grade.reward is not None
    return Attempt(
        messages=answer.messages,
        tools=answer.tools,
        response=answer.own,
        reward=row.grade.reward,
        token_ids=[sampled.get(i, (None, None))[0] for i in answer.own],
        logprobs=[sampled.get(i, (None, None))[1] for i in answer.own],
        episode_id=row.episode_id,
        interaction_id=row.interaction_id,
        model=row.interaction.get("model"),
        release=row.interaction.get("release"),
    )


def _sampled(trajectory: Trajectory) -> dict[int, tuple[Any, Any]]:
    """By message: its token ids and log-probabilities. They come by mark; where the counts differ nobody knows whose they are."""
    out: dict[int, tuple[Any, Any]] = {}
    for step in trajectory.steps:
        marks = step.row.interaction.get("response")
        said = list(step.own) if marks is None else [int(i) for i in marks]
        ids = step.row.interaction.get("token_ids") or []
        logprobs = step.row.interaction.get("logprobs") or []
        for n, index in enumerate(said):
            if index in step.own:
                out[index] = (
                    ids[n] if len(ids) == len(said) else None,
                    logprobs[n] if len(logprobs) == len(said) else None,
                )
    return out


def _group(row: CorpusRow) -> tuple[str, str, Any]:
    return (row.split_group, slot_of(row), row.split)


def _drop(account: Account, trajectory: Trajectory, reason: str) -> None:
    for step in trajectory.steps:
        account.drop(step.row, reason)
