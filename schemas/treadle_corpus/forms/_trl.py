"""TRL: conversational prompt and completion, preference and unpaired preference, prompts.

sft lines train on every assistant turn of the completion with `assistant_only_loss=True`, and on nothing of the prompt. A trajectory in
which an unmarked assistant turn stands between marked ones becomes several lines. DPO and KTO have no such setting: they train on all
that follows the prompt.
"""

from __future__ import annotations

from typing import Any

from treadle_corpus.forms._shape import NO_QUESTION, Convert, answer_of, pair_of, prompts_of, tools_text
from treadle_corpus.views import DpoPair, KtoExample, RlGroup, SftExample

__all__ = ["VIEWS"]


def sft(example: SftExample, loose: bool) -> list[dict[str, Any]] | str:
    """One line for each run of marked turns without an unmarked assistant turn between them."""
    messages, marked = example["messages"], set(example["response"])
    runs: list[list[int]] = []
    open_run = False
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        if i not in marked:
            open_run = loose and open_run
        elif open_run:
            runs[-1].append(i)
        else:
            runs.append([i])
            open_run = True
    return [
        {
            "prompt": messages[: run[0]],
            "completion": messages[run[0] : run[-1] + 1],
            **tools_text(example["tools"]),
        }
        for run in runs
    ]


def dpo(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """prompt, chosen, rejected."""
    made = pair_of(pair, loose)
    return made if isinstance(made, str) else [{**made._asdict(), **tools_text(pair["tools"])}]


def reward(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """The same with a margin. A reward model reads the whole, so nothing needs masking."""
    made = pair_of(pair, True)
    assert not isinstance(made, str)
    # all lines have it or none: where it is not known, it asks for nothing
    return [{**made._asdict(), "margin": pair["margin"] or 0.0, **tools_text(pair["tools"])}]


def kto(example: KtoExample, loose: bool) -> list[dict[str, Any]] | str:
    """prompt, completion, label."""
    made = answer_of(example, loose)
    if isinstance(made, str):
        return made
    return [{"prompt": made[0], "completion": made[1], "label": example["label"], **tools_text(example["tools"])}]


def rl(group: RlGroup, loose: bool) -> list[dict[str, Any]] | str:
    """One line a question, with the logged rewards beside it, for whoever writes the reward function."""
    return [
        {
            "prompt": prompt,
            "task_id": group["task_id"],
            "group": group["group"],
            "logged_rewards": [attempt["reward"] for attempt in attempts],
            **tools_text(tools),
        }
        for prompt, tools, attempts in prompts_of(group)
    ] or NO_QUESTION


VIEWS: dict[str, Convert] = {"dpo": dpo, "kto": kto, "reward": reward, "rl": rl, "sft": sft}
