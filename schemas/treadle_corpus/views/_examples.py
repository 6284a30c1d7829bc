"""The examples that views are made of. `response` always lists indices of messages to train on; the others are context."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict

from treadle_schemas.split import Side

__all__ = ["Attempt", "DpoPair", "EvalExample", "KtoExample", "Messages", "Origin", "RlGroup", "SftExample"]

Messages: TypeAlias = list[dict[str, Any]]
Tools: TypeAlias = list[dict[str, Any]] | None

Origin = Literal["logged", "reward", "preference", "demonstration"]
"""Why an example is there: a logged response, a difference of rewards, or what somebody preferred or demonstrated."""


class SftExample(TypedDict):
    """One sequence. `steps` counts the messages that each step of the episode sent, so its sum is what the steps held apart."""

    messages: Messages
    tools: Tools
    response: list[int]
    task_id: str | None
    episode_id: str
    interaction_id: str
    reward: float | None
    split: Side
    origin: Origin
    steps: list[int]


class DpoPair(TypedDict):
    """Two answers of one task. `prompt` is what both begin with, up to the first assistant turn at most.

    `chosen_response` and `rejected_response` are indices into `chosen` and `rejected`. An id is null where the answer was demonstrated, or
    stands only in a preference; `margin` is the difference of the rewards, null where one is missing.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: Tools
    chosen_response: list[int]
    rejected_response: list[int]
    task_id: str | None
    chosen_id: str | None
    rejected_id: str | None
    chosen_reward: float | None
    rejected_reward: float | None
    margin: float | None
    split: Side
    origin: Origin


class KtoExample(TypedDict):
    """One answer and whether it was good. `response` are indices into `completion`."""

    prompt: Messages
    completion: Messages
    response: list[int]
    label: bool
    tools: Tools
    task_id: str | None
    episode_id: str
    interaction_id: str
    reward: float | None
    split: Side
    origin: Origin


class Attempt(TypedDict):
    """One trajectory at a task. `token_ids` and `logprobs` have an entry for each index in `response`: null where none were logged."""

    messages: Messages
    tools: Tools
    response: list[int]
    reward: float
    token_ids: list[list[int] | None]
    logprobs: list[list[float] | None]
    episode_id: str
    interaction_id: str
    model: str | None
    release: str | None


class RlGroup(TypedDict):
    """The attempts at one task, to be weighed against each other."""

    group: str
    task_id: str | None
    split: Side
    attempts: list[Attempt]


class EvalExample(TypedDict):
    """One logged trajectory to evaluate on, whatever became of it. `metrics` maps a name to [state, value]."""

    messages: Messages
    tools: Tools
    response: list[int]
    reward: float | None
    metrics: dict[str, list[Any]]
    group: str
    task_id: str | None
    episode_id: str
    interaction_id: str
    split: Side
