"""Views of pairs: dpo, and the same for a reward model.

Three things make a pair: a difference of rewards within a task, a preference, and a demonstration, which is better than what was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from treadle_schemas.canonical import content_hash
from treadle_schemas.records import Feedback

from treadle_corpus.reader import CorpusRow, SplitChoice
from treadle_corpus.views._examples import DpoPair, Origin
from treadle_corpus.views._said import Answer, judged, of_step, of_trajectory, told
from treadle_corpus.views._trajectories import Step, Trajectory, slot_of, trajectories
from treadle_corpus.views._view import Account, View, row_key

__all__ = ["dpo", "reward"]

CAP = 16
"""Pairs of a task: one with a hundred attempts must not weigh as much as a thousand tasks with two."""


def dpo(
    rows: Iterable[CorpusRow], *, min_margin: float = 0.0, cap: int | None = CAP, split: SplitChoice = "train"
) -> View[DpoPair]:
    """Pairs of trajectories within a task (split group) and slot whose rewards differ by at least `min_margin`, at most `cap` a task.

    A trajectory has its last step's reward. Of too many pairs those with the greatest margin stay, then a choice that depends on their
    ids alone. Preferences and demonstrations make pairs of their own, which no cap touches; a preference overrules rewards. Both halves
    are of one side of the split, and begin with the same messages and tools.

    Drops: `no_response`, `no_reward`, `no_pair`. Left out: `over_cap`, `no_shared_prompt`, `same_answer`, `overruled`, `other_missing` (the
    row that another is preferred over is not here), `preference_without_answer`, `demonstration_without_answer`.
    """
    return _view("dpo", rows, min_margin, cap, split)


def reward(
    rows: Iterable[CorpusRow], *, min_margin: float = 0.0, cap: int | None = CAP, split: SplitChoice = "train"
) -> View[DpoPair]:
    """The pairs of the dpo view, for a reward model: `margin` says by how much."""
    return _view("reward", rows, min_margin, cap, split)


@dataclass
class _Pairs:
    account: Account
    made: list[tuple[tuple[str, ...], DpoPair]] = field(default_factory=list)
    ranked: set[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=set)
    """(better, worse) rows, as somebody said."""

    def add(self, win: Answer, loss: Answer, origin: Origin, rows: Iterable[CorpusRow]) -> None:
        """Make a pair, or count why there is none."""
        pair = _pair(win, loss, origin)
        if isinstance(pair, str):
            self.account.left_out[pair] += 1
            return
        for row in rows:
            self.account.use(row)
        group = win.row.split_group
        self.made.append(
            ((group, *row_key(win.row), *row_key(loss.row), origin, content_hash([pair["rejected"]])), pair)
        )


def _view(
    name: str, rows: Iterable[CorpusRow], min_margin: float, cap: int | None, split: SplitChoice
) -> View[DpoPair]:
    account = Account.of(name, rows, split)
    pairs = _Pairs(account)
    found = trajectories(account.rows)
    _said(found, pairs)
    graded: list[tuple[Trajectory, Answer]] = []
    for trajectory in found:
        answer = of_trajectory(trajectory)
        reason = "no_response" if answer is None else "no_reward" if trajectory.row.grade.reward is None else "no_pair"
        for step in trajectory.steps:
            account.drop(step.row, reason)
        if answer is not None and answer.reward is not None:
            graded.append((trajectory, answer))
    graded.sort(key=lambda one: (one[1].row.split_group, slot_of(one[1].row), one[1].row.split))
    for _, members in groupby(graded, key=lambda one: (one[1].row.split_group, slot_of(one[1].row), one[1].row.split)):
        _by_margin(list(members), pairs, min_margin, cap)
    pairs.made.sort(key=lambda made: made[0])
    return account.close([pair for _, pair in pairs.made])


def _said(found: list[Trajectory], pairs: _Pairs) -> None:
    """Pairs out of preferences and demonstrations."""
    steps = {row_key(step.row): step for trajectory in found for step in trajectory.steps}
    by_id: dict[str, list[Step]] = {}
    for step in steps.values():
        by_id.setdefault(step.row.interaction_id, []).append(step)
    for step in steps.values():
        for feedback in step.row.feedback:
            if feedback.kind == "comment":
                continue
            if feedback.over is not None:
                _over(step, feedback, by_id, pairs)
                continue
            own, other = judged(step), told(step, feedback)
            if other is None:
                pairs.account.left_out[f"{feedback.kind}_without_answer"] += 1
            elif own is None:
                pairs.account.left_out["no_response"] += 1
            elif feedback.kind == "demonstration":
                pairs.add(other, own, "demonstration", [step.row])
            else:
                pairs.add(own, other, "preference", [step.row])


def _over(step: Step, feedback: Feedback, by_id: dict[str, list[Step]], pairs: _Pairs) -> None:
    others = by_id.get(feedback.over or "", [])
    near = [other for other in others if other.row.episode_id == step.row.episode_id] or others
    near = [other for other in near if other.row.split == step.row.split and other is not step]
    if not near:
        pairs.account.left_out["other_missing"] += 1
    for other in near:
        better, worse = of_step(step), of_step(other)
        if better is None or worse is None:
            pairs.account.left_out["no_response"] += 1
            continue
        ranked = (row_key(step.row), row_key(other.row))
        if ranked in pairs.ranked:  # said twice
            continue
        pairs.ranked.add(ranked)
        pairs.add(better, worse, "preference", [step.row, other.row])


def _by_margin(group: list[tuple[Trajectory, Answer]], pairs: _Pairs, min_margin: float, cap: int | None) -> None:
    candidates = list(_candidates(group, pairs, min_margin, cap))
    kept = 0
    for _, (winner, win), (loser, loss) in sorted(candidates, key=lambda c: c[0]):
        if cap is not None and kept >= cap:
            pairs.account.left_out["over_cap"] += 1
            continue
        before = len(pairs.made)
        rows = [step.row for trajectory in (winner, loser) for step in trajectory.steps]
        pairs.add(win, loss, "reward", rows)
        kept += len(pairs.made) - before


_Member = tuple[Trajectory, Answer]


def _candidates(
    group: list[_Member], pairs: _Pairs, min_margin: float, cap: int | None
) -> Iterator[tuple[tuple[float, str], _Member, _Member]]:
    best, worst = _extremes(group, cap)
    for win in best:
        for loss in worst:
            margin = _reward(win) - _reward(loss)
            if margin <= 0 or margin < min_margin:
                continue
            keys = (row_key(win[1].row), row_key(loss[1].row))
            if keys in pairs.ranked or (keys[1], keys[0]) in pairs.ranked:
                pairs.account.left_out["overruled"] += 1
                continue
            yield (-margin, content_hash([*map(list, keys)])), win, loss


def _extremes(group: list[_Member], cap: int | None) -> tuple[list[_Member], list[_Member]]:
    """The best and the worst attempts: the widest pairs are among them, so a task of ten thousand attempts costs no hundred million.

    Twice the cap of each, since some pairs may turn out to be none.
    """
    ordered = sorted(group, key=lambda one: (-_reward(one), content_hash(list(row_key(one[1].row)))))
    if cap is None or len(ordered) <= 4 * cap:
        return ordered, ordered
    return ordered[: 2 * cap], ordered[-2 * cap :]


def _reward(member: _Member) -> float:
    reward = member[1].reward
    assert reward is not None
    return reward


def _pair(win: Answer, loss: Answer, origin: Origin) -> DpoPair | str:
    shared = 0
    for a, b in zip(win.messages, loss.messages, strict=False):
        if a != b or a.get("role") == "assistant":
            break
        shared += 1
    if not shared or win.tools != loss.tools:
        return "no_shared_prompt"
    if win.messages == loss.messages:
        return "same_answer"
    return DpoPair(
        prompt=win.messages[:shared],
        chosen=win.messages[shared:],
        rejected=loss.messages[shared:],
        tools=win.tools,
        chosen_response=[i - shared for i in win.own],
        rejected_response=[i - shared for i in loss.own],
        task_id=win.row.interaction.get("task_id"),
        chosen_id=win.id,
        rejected_id=loss.id,
        chosen_reward=win.reward,
        rejected_reward=loss.reward,
        margin=None if win.reward is None or loss.reward is None else win.reward - loss.reward,
        split=win.row.split,
        origin=origin,
    )
