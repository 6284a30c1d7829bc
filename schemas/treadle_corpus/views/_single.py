"""Views of single answers: sft, kto, eval."""

from __future__ import annotations

from collections.abc import Iterable

from treadle_corpus.reader import CorpusRow, SplitChoice
from treadle_corpus.views._examples import EvalExample, KtoExample, Origin, SftExample
from treadle_corpus.views._said import Answer, judged, of_trajectory, told
from treadle_corpus.views._trajectories import Step, Trajectory, trajectories
from treadle_corpus.views._view import Account, View, Where, rewarded

__all__ = ["evaluation", "kto", "sft"]


def sft(rows: Iterable[CorpusRow], where: Where = rewarded, *, split: SplitChoice = "train") -> View[SftExample]:
    """One example a trajectory, trained on the turns of the steps that pass `where`; and one a demonstration.

    Drops: `no_response` (nothing of it is marked, or its turns were said by an earlier step), `no_reward`, `not_selected`.
    """
    account = Account.of("sft", rows, split)
    examples: list[SftExample] = []
    for trajectory in trajectories(account.rows):
        chosen = [step for step in trajectory.steps if step.own and where(step.row)]
        if chosen:
            examples.append(_logged(trajectory, chosen))
        for step in trajectory.steps:
            if step in chosen:
                account.use(step.row)
            elif not step.own:
                account.drop(step.row, "no_response")
            else:
                account.drop(step.row, "no_reward" if step.row.grade.reward is None else "not_selected")
            examples += _demonstrated(step, account, step in chosen)
    return account.close(examples)


def kto(rows: Iterable[CorpusRow], *, split: SplitChoice = "train") -> View[KtoExample]:
    """One example a trajectory with a reward, desirable above zero. Demonstrations are desirable, answers that lost a preference are not.

    Drops: `no_response`, `no_reward`.
    """
    account = Account.of("kto", rows, split)
    examples: list[KtoExample] = []
    for trajectory in trajectories(account.rows):
        answer, reward = of_trajectory(trajectory), trajectory.row.grade.reward
        for step in trajectory.steps:
            if answer is None or reward is None:
                account.drop(step.row, "no_response" if answer is None else "no_reward")
            else:
                account.use(step.row)
        if answer is not None and reward is not None:
            examples.append(_labelled(answer, reward > 0, "logged"))
        for step in trajectory.steps:
            for feedback in step.row.feedback:
                if feedback.messages is None:
                    continue
                said = told(step, feedback)
                if said is None:
                    account.left_out[f"{feedback.kind}_without_answer"] += 1
                    continue
                account.use(step.row)
                good = feedback.kind == "demonstration"
                examples.append(_labelled(said, good, "demonstration" if good else "preference"))
    return account.close(examples)


def evaluation(rows: Iterable[CorpusRow], *, split: SplitChoice = "heldout") -> View[EvalExample]:
    """One example a trajectory, whatever its reward, with its metrics. The only view whose default is the held-out side.

    Drops: `no_response`.
    """
    account = Account.of("eval", rows, split)
    examples: list[EvalExample] = []
    for trajectory in trajectories(account.rows):
        answer, row = of_trajectory(trajectory), trajectory.row
        for step in trajectory.steps:
            if answer is None:
                account.drop(step.row, "no_response")
            else:
                account.use(step.row)
        if answer is not None:
            examples.append(
                EvalExample(
                    messages=answer.messages,
                    tools=answer.tools,
                    response=answer.own,
                    reward=row.grade.reward,
                    metrics={name: list(state) for name, state in sorted(row.grade.metrics.items())},
                    group=row.split_group,
                    task_id=row.interaction.get("task_id"),
                    episode_id=row.episode_id,
                    interaction_id=row.interaction_id,
                    split=row.split,
                )
            )
    return account.close(examples)


def _logged(trajectory: Trajectory, chosen: list[Step]) -> SftExample:
    last = trajectory.row
    return SftExample(
        messages=trajectory.messages,
        tools=trajectory.tools,
        response=sorted(i for step in chosen for i in step.own),
        task_id=last.interaction.get("task_id"),
        episode_id=last.episode_id,
        interaction_id=last.interaction_id,
        reward=last.grade.reward,
        split=last.split,
        origin="logged",
        steps=[len(step.messages) for step in trajectory.steps],
    )


def _demonstrated(step: Step, account: Account, learned: bool) -> Iterable[SftExample]:
    logged = judged(step)
    for feedback in step.row.feedback:
        if feedback.kind != "demonstration":
            continue
        answer = told(step, feedback)
        if answer is None:
            account.left_out["demonstration_without_answer"] += 1
        elif learned and logged is not None and logged.messages == answer.messages:
            account.left_out["demonstration_as_logged"] += 1
        else:
            account.use(step.row)
            yield SftExample(
                messages=answer.messages,
                tools=answer.tools,
                response=answer.own,
                task_id=step.row.interaction.get("task_id"),
                episode_id=step.row.episode_id,
                interaction_id=step.row.interaction_id,
                reward=None,
                split=step.row.split,
                origin="demonstration",
                steps=[len(answer.messages)],
            )


def _labelled(answer: Answer, label: bool, origin: Origin) -> KtoExample:
    first = answer.own[0]
    return KtoExample(
        prompt=answer.messages[:first],
        completion=answer.messages[first:],
        response=[i - first for i in answer.own],
        label=label,
        tools=answer.tools,
        task_id=answer.row.interaction.get("task_id"),
        episode_id=answer.row.episode_id,
        interaction_id=answer.row.interaction_id,
        reward=answer.reward,
        split=answer.row.split,
        origin=origin,
    )
