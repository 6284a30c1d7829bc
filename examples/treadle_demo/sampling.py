"""The trainer's play loop, with the demo's cheaper rendering where the model speaks the demo's chat template.

The agent plays with this; the trainer evaluates a release with the same loop and the plain template. A test holds both renderings equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle_schemas.environment import Environment, Message, Task
from treadle_trainer.evaluate import player
from treadle_trainer.evaluate.player import Episode, Render, Sampled, sample

from treadle_demo.model import CHAT_TEMPLATE, render
from treadle_demo.profiles import GPU

__all__ = ["Episode", "Sampled", "evaluate_long", "play", "prompt_ids", "sample"]


def play(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    tasks: Sequence[Task],
    seed: int,
    temperature: float = 1.0,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 1024,
) -> list[Episode]:
    """Play every task once: `treadle_trainer.evaluate.player.play`, for the demo's model without Jinja."""
    return player.play(
        model,
        tokenizer,
        environment,
        tasks,
        seed,
        temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        render=_cheaper_render(tokenizer),
    )


def evaluate_long(
    model_folder: str, environment: Environment, tasks: Sequence[Task], seed: int
) -> list[dict[str, float]]:
    """The evaluator of the gpu profile: the trainer's own, with room for arguments of free text."""
    return player.evaluate(model_folder, environment, tasks, seed, max_new_tokens=GPU.max_new_tokens)


def prompt_ids(tokenizer: Any, messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> list[int]:
    """The token ids of a prompt as `play` makes them, ending where the assistant begins to write."""
    return player.prompt_ids(tokenizer, messages, tools, _cheaper_render(tokenizer))


def _cheaper_render(tokenizer: Any) -> Render | None:
    return _prompt if tokenizer.chat_template == CHAT_TEMPLATE else None


def _prompt(messages: Sequence[Message]) -> str:
    return render(messages, add_generation_prompt=True)
