"""Answers: a conversation and which of its messages are the answer; logged, demonstrated, or the worse half of a preference."""

from __future__ import annotations

from dataclasses import dataclass

from treadle_schemas.records import Feedback

from treadle_corpus.reader import CorpusRow
from treadle_corpus.views._examples import Messages, Tools
from treadle_corpus.views._trajectories import Step, Trajectory

__all__ = ["Answer", "judged", "of_step", "of_trajectory", "told"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation up to the last message to train on. `own` are the indices of those, never empty."""

    messages: Messages
    own: list[int]
    tools: Tools
    row: CorpusRow
    logged: bool
    """Whether the row itself said it; otherwise somebody said it of the row."""

    @property
    def id(self) -> str | None:
        """The interaction that said it."""
        return self.row.interaction_id if self.logged else None

    @property
    def reward(self) -> float | None:
        """What it was worth, where it was tried."""
        return self.row.grade.reward if self.logged else None


def of_trajectory(trajectory: Trajectory) -> Answer | None:
    """All that a trajectory said, or None where it said nothing."""
    own = trajectory.own
    if not own:
        return None
    return Answer(trajectory.messages[: own[-1] + 1], own, trajectory.tools, trajectory.row, True)


def of_step(step: Step) -> Answer | None:
    """What one step said, or None where it said nothing."""
    return _answer(step, list(step.own))


def judged(step: Step) -> Answer | None:
    """What a demonstration or a preference over an answer is about: the response, or its last turn where nobody marked the response.

    An imported conversation of many turns is not answered anew from its first turn on.
    """
    return _answer(step, _judged(step))


def told(step: Step, feedback: Feedback) -> Answer | None:
    """The messages of a demonstration or a preference, behind what the step was asked. None where they hold no assistant turn.

    They are the answer alone, or repeat the question before it.
    """
    own = _judged(step)
    prompt = step.messages[: own[0]] if own else step.messages
    answer = feedback.messages or []
    if answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]
    said = [len(prompt) + i for i, message in enumerate(answer) if message.get("role") == "assistant"]
    if not said:
        return None
    return Answer([*prompt, *answer][: said[-1] + 1], said, step.row.interaction.get("tools"), step.row, False)


def _judged(step: Step) -> list[int]:
    return list(step.own if step.row.interaction.get("response") is not None else step.own[-1:])


def _answer(step: Step, own: list[int]) -> Answer | None:
    if not own:
        return None
    return Answer(step.messages[: own[-1] + 1], own, step.row.interaction.get("tools"), step.row, True)
