"""Attempts of the model in training: sampled, carried out, scored. Each is one sequence of tokens with a mask of those it sampled itself.

The context of a turn is what was sampled so far, token by token, with what the world said in between (`data.continuing`): the model is
trained on exactly what it did, in exactly the context in which it did it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, TypeVar

import torch
from treadle_schemas.calls import invalid_calls
from treadle_schemas.environment import Attempt, Environment, Task

from treadle_trainer.data.continuing import between
from treadle_trainer.errors import DataRefused, EvaluationFailed, RewardFailed
from treadle_trainer.evaluate.player import Sampled, end_tokens, prompt_ids, sample
from treadle_trainer.methods._prompts import Prompt
from treadle_trainer.scorecard.calls import read_text
from treadle_trainer.scorecard.evaluators import run_evaluator

__all__ = ["Rollout", "Writer", "answer", "perform"]

T = TypeVar("T")
Noise = Callable[[int], torch.Tensor]
"""Of a turn the uniform numbers in [0, 1) by which its tokens are drawn: [attempts, max_new_tokens]."""

SAMPLED_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One attempt. `sampled` says of each token of the completion whether the model wrote it; the others are the world's."""

    prompt_ids: list[int]
    completion_ids: list[int]
    sampled: list[bool]
    logprobs: list[float]
    reward: float | None
    """None: nobody can say."""
    invalid: float
    """Share of its messages with a tool call that cannot be carried out."""
    cut: bool
    """Whether it ended because no further turn fitted into `max_length`."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The model as it is now, and how it is sampled."""

    model: Any
    tokenizer: Any
    temperature: float
    max_length: int
    on_token: Callable[[], None]

    def write(self, contexts: Sequence[list[int]], noise: torch.Tensor) -> list[Sampled]:
        """What it writes in each context."""
        out: list[Sampled] = []
        for at in range(0, len(contexts), SAMPLED_AT_ONCE):
            part = slice(at, at + SAMPLED_AT_ONCE)
            out += sample(
                self.model, self.tokenizer, contexts[part], noise[part], self.temperature, on_token=self.on_token
            )
        return out


def answer(writer: Writer, prompts: Sequence[Prompt], noise: Noise, function: str) -> list[Rollout]:
    """One answer to each prompt, scored by the reward function.

    It is called once with all answers, in the form of an evaluator's. Raises RewardFailed, SettingError.
    """
    said = writer.write([prompt.ids for prompt in prompts], noise(0))
    messages = [_message(one.text) for one in said]
    answers = [
        {
            "messages": prompt.messages,
            "tools": prompt.tools,
            "text": one.text,
            "message": message,
            "logged": prompt.logged,
            "task_id": prompt.task_id,
            "tags": prompt.tags,
        }
        for prompt, one, (message, _) in zip(prompts, said, messages, strict=True)
    ]
    rewards = _scored(function, answers)
    return [
        Rollout(
            prompt_ids=prompt.ids,
            completion_ids=one.token_ids,
            sampled=[True] * len(one.token_ids),
            logprobs=one.logprobs,
            reward=reward,
            invalid=float(broken or invalid_calls(message, prompt.tools) > 0),
            cut=False,
        )
        for prompt, one, (message, broken), reward in zip(prompts, said, messages, rewards, strict=True)
    ]


def _scored(function: str, answers: list[dict[str, Any]]) -> list[float | None]:
    try:
        rewards = run_evaluator(f"reward={function}", answers)
    except EvaluationFailed as err:
        traceback.print_exception(err)  # the log is where its maker looks
        raise RewardFailed(str(err).replace("evaluator reward", f"reward function {function}", 1)) from err
    for reward in rewards:
        if reward is not None and not isfinite(reward):
            raise RewardFailed(f"reward function {function}: expected finite numbers or None, got {reward!r}")
    return rewards


def _message(text: str) -> tuple[dict[str, Any], bool]:
    """What was written as an OpenAI message, and whether it begins a call that is none."""
    import json

    reading = read_text(text)
    if not reading.calls:
        return {"role": "assistant", "content": text}, reading.broken
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
        for n, c in enumerate(reading.calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}, reading.broken


@dataclass(kw_only=True)
class _Run:
    """An attempt on its way. `context` is all tokens so far, of which the first `begin` are the prompt."""

    task: Task
    attempt: Attempt
    context: list[int]
    begin: int
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    response: list[int] = field(default_factory=list)
    is_open: bool = True
    cut: bool = False


def perform(
    writer: Writer, environment: Environment, name: str, tasks: Sequence[Task], noise: Noise, max_new_tokens: int
) -> list[Rollout]:
    """One attempt at each task, played to its end in a world of its own; the reward is its `success()`.

    Raises RewardFailed where the environment raises or says nothing finite, DataRefused where a beginning does not fit into `max_length`.
    """
    tools: list[dict[str, Any]] | None = getattr(environment, "tools", None)
    ends = end_tokens(writer.model, writer.tokenizer)
    runs: list[_Run] = []
    try:
        for task in tasks:
            attempt = _asked(name, "start", task, lambda task=task: environment.start(task))  # type: ignore[misc]
            ids = prompt_ids(writer.tokenizer, attempt.messages, tools)
            runs.append(_Run(task=task, attempt=attempt, context=ids, begin=len(ids)))
            if len(ids) + max_new_tokens > writer.max_length:
                raise DataRefused(
                    f"environment {name}: task {task.task_id!r} begins with {len(ids)} tokens, and with {max_new_tokens} new ones "
                    f"that is more than max_length {writer.max_length}"
                )
        turn = 0
        while going := [n for n, run in enumerate(runs) if run.is_open]:
            numbers = noise(turn)[going]
            written = writer.write([runs[n].context for n in going], numbers)
            for n, one in zip(going, written, strict=True):
                _take(runs[n], one, writer, tools, ends, name, max_new_tokens)
            turn += 1
        return [_finished(run, name, tools) for run in runs]
    finally:
        for run in runs:
            run.attempt.close()


def _take(run: _Run, said: Sampled, writer: Writer, tools: Any, ends: set[int], name: str, max_new_tokens: int) -> None:
    """Carry out what was written, and make the context of the next turn."""
    at = len(run.attempt.messages)
    run.response.append(at)
    run.context = run.context + said.token_ids
    run.sampled += [True] * len(said.token_ids)
    run.logprobs += said.logprobs
    run.is_open = bool(_asked(name, "act", run.task, lambda: run.attempt.act(said.text)))
    messages = run.attempt.messages
    if len(messages) <= at or messages[at].get("role") != "assistant":
        raise RewardFailed(
            f"environment {name}: act of task {run.task.task_id!r} did not append the assistant's message first"
        )
    if not run.is_open:
        return
    told = between(writer.tokenizer, messages, at, tools, last=said.token_ids[-1], ends=ends)
    if len(run.context) + len(told) + max_new_tokens > writer.max_length:
        run.is_open, run.cut = False, True
        return
    run.context = run.context + told
    run.sampled += [False] * len(told)
    run.logprobs += [0.0] * len(told)


def _finished(run: _Run, name: str, tools: Any) -> Rollout:
    reward = _asked(name, "success", run.task, lambda: float(run.attempt.success()))
    if not isfinite(reward):
        raise RewardFailed(f"environment {name}: success of task {run.task.task_id!r} is {reward!r}, no finite number")
    said = [run.attempt.messages[n] for n in run.response]
    return Rollout(
        prompt_ids=run.context[: run.begin],
        completion_ids=run.context[run.begin :],
        sampled=run.sampled,
        logprobs=run.logprobs,
        reward=reward,
        invalid=sum(invalid_calls(message, tools) > 0 for message in said) / len(said),
        cut=run.cut,
    )


def _asked(name: str, what: str, task: Task, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as err:
        traceback.print_exc()  # the log is where its maker looks
        raise RewardFailed(
            f"environment {name}: {what} of task {task.task_id!r} raised {type(err).__name__}: {err}"
        ) from err
