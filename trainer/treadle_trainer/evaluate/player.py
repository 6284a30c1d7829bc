"""The play loop: a model acts in an environment, many attempts in one batch.

Used by agents that live in an environment, and by the evaluation of a release on held-out tasks. It keeps what training may need
later: the messages, the token ids that the model really sampled, and their log-probabilities. Needs torch and transformers.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from treadle_schemas.calls import invalid_share
from treadle_schemas.environment import Attempt, Environment, Message, Task, Verdict

from treadle_trainer.data.rendering import as_template_wants

__all__ = ["Episode", "Render", "Sampled", "end_tokens", "evaluate", "load", "play", "prompt_ids", "sample"]

Render = Callable[[Sequence[Message]], str]
"""Renders a prompt up to where the assistant begins to write, as the tokenizer's chat template would."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished attempt.

    `response` holds the indices of the messages the model wrote; `token_ids` and `logprobs` go with these, one list a message, end
    token included. The log-probabilities are those of the distribution sampled from. `verdicts` is what the world will report.
    """

    task: Task
    messages: list[Message]
    response: list[int]
    token_ids: list[list[int]]
    logprobs: list[list[float]]
    success: float
    verdicts: list[Verdict]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One sampled continuation: its text without special tokens, its token ids and their log-probabilities."""

    text: str
    token_ids: list[int]
    logprobs: list[float]


@dataclass(kw_only=True)
class _Run:
    attempt: Attempt
    response: list[int]
    token_ids: list[list[int]]
    logprobs: list[list[float]]
    is_open: bool = True


def evaluate(
    model_folder: str, environment: Environment, tasks: Sequence[Task], seed: int, *, max_new_tokens: int = 32
) -> list[dict[str, float]]:
    """What the model in `model_folder` makes of each task, sampled at temperature 1. The default evaluator of a policy.

    `score`: success. `valid`: the share of its messages whose tool calls name a tool that was offered, with a JSON object as arguments.
    `length`: tokens it wrote.
    """
    model, tokenizer = load(model_folder)
    tools: list[dict[str, Any]] | None = getattr(environment, "tools", None)
    return [
        {
            "score": episode.success,
            "valid": 1.0 - invalid_share([episode.messages[i] for i in episode.response], tools),
            "length": float(sum(map(len, episode.token_ids))),
        }
        for episode in play(model, tokenizer, environment, tasks, seed, max_new_tokens=max_new_tokens)
    ]


def load(model_folder: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a local Hugging Face folder, for inference, on CUDA where there is one. Never executes code from it."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder), local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(str(model_folder), local_files_only=True, use_safetensors=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


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
    render: Render | None = None,
) -> list[Episode]:
    """Play every task once, in the given order, until its attempt is over.

    The noise of a task depends on `seed`, its place in `tasks` and the turn, not on what the model did before: two models played with the
    same tasks and seed are compared on common random numbers. `temperature` 0 takes the likeliest token. `render` replaces the chat
    template where a cheaper equal of it exists.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = [_Run(attempt=environment.start(task), response=[], token_ids=[], logprobs=[]) for task in tasks]
    tools: list[dict[str, Any]] | None = getattr(environment, "tools", None)
    try:
        while any(run.is_open for run in runs):
            # drawn for all tasks, also those already over, so that each keeps its own numbers
            noise = torch.rand(len(runs), max_new_tokens, generator=generator)
            places = [i for i, run in enumerate(runs) if run.is_open]
            for first in range(0, len(places), batch_size):
                chunk = places[first : first + batch_size]
                _act(model, tokenizer, [runs[i] for i in chunk], noise[chunk], temperature, tools, render)
        return [_finish(run, environment, random.Random(f"{seed}-{i}")) for i, run in enumerate(runs)]
    finally:
        for run in runs:
            run.attempt.close()


def _act(
    model: Any,
    tokenizer: Any,
    runs: list[_Run],
    noise: torch.Tensor,
    temperature: float,
    tools: list[dict[str, Any]] | None,
    render: Render | None,
) -> None:
    prompts = [prompt_ids(tokenizer, run.attempt.messages, tools, render) for run in runs]
    for run, sampled in zip(runs, sample(model, tokenizer, prompts, noise, temperature), strict=True):
        run.response.append(len(run.attempt.messages))
        run.token_ids.append(sampled.token_ids)
        run.logprobs.append(sampled.logprobs)
        run.is_open = run.attempt.act(sampled.text)


def _finish(run: _Run, environment: Environment, rng: random.Random) -> Episode:
    return Episode(
        task=run.attempt.task,
        messages=run.attempt.messages,
        response=run.response,
        token_ids=run.token_ids,
        logprobs=run.logprobs,
        success=run.attempt.success(),
        verdicts=environment.outcomes(run.attempt, rng),
    )


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], tools: list[dict[str, Any]] | None, render: Render | None = None
) -> list[int]:
    """The token ids of a prompt, ending where the assistant begins to write."""
    if render is not None:
        return list(tokenizer(render(messages), add_special_tokens=False)["input_ids"])
    wanted = as_template_wants(tokenizer.get_chat_template(None, tools), messages)
    ids = tokenizer.apply_chat_template(list(wanted), tools=tools, add_generation_prompt=True, return_dict=False)
    return list(ids)


@torch.no_grad()  # not inference mode: a model in training may keep what it computes here, such as the angles of its positions
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    noise: torch.Tensor,
    temperature: float,
    *,
    on_token: Callable[[], None] | None = None,
) -> list[Sampled]:
    """Continue each prompt until its end token, or as many tokens as `noise` has columns.

    `noise` is (prompts, tokens), uniform in [0, 1): a token is drawn by inverting the cumulative distribution at it. `on_token` is called
    before each token of the batch, and may raise.
    """
    device = model.device
    ids, mask = _left_padded(prompts, tokenizer.pad_token_id)
    ids, mask, noise = ids.to(device), mask.to(device), noise.to(device)
    ends = torch.tensor(sorted(end_tokens(model, tokenizer)), device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    tokens: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    # without it the first step computes the logits of every prompt token
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    step_ids, step_positions, cache = ids, positions, None
    for step in range(noise.shape[1]):
        if on_token is not None:
            on_token()
        out = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=step_positions,
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        cache = out.past_key_values
        token, score = _draw(out.logits[:, -1].float(), noise[:, step], temperature)
        tokens.append(torch.where(done, -1, token))
        scores.append(score)
        done |= torch.isin(token, ends)
        if bool(done.all()):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        step_ids, step_positions = token[:, None], step_positions[:, -1:] + 1
    return _collect(tokenizer, torch.stack(tokens, 1), torch.stack(scores, 1))


def _draw(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, and its log-probability under the distribution it was drawn from (temperature 0: under the model's)."""
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    logprobs = (logits / temperature).log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    # Rounding leaves the last sum a little off 1. Below it, right=True always finds a token, and one of positive probability.
    total = cumulative[:, -1:]
    target = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _collect(tokenizer: Any, tokens: torch.Tensor, scores: torch.Tensor) -> list[Sampled]:
    rows: list[list[int]] = tokens.tolist()
    ids = [[token for token in row if token >= 0] for row in rows]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [
        Sampled(text=text, token_ids=row, logprobs=score[: len(row)])
        for text, row, score in zip(texts, ids, scores.tolist(), strict=True)
    ]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a turn: the tokenizer's and those of the model's generation settings (a number, a list or none)."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}


def _left_padded(prompts: Sequence[Sequence[int]], pad: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad if pad is not None else 0, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[i, width - len(prompt) :] = 1
    return ids, mask
