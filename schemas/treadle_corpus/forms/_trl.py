"""TRL: conversational prompt and completion, preference and unpaired preference, prompts.

sft lines train on every assistant turn of the completion with `assistant_only_loss=True`, and on nothing of the prompt. A trajectory in
which an unmarked assistant turn stands between marked ones becomes several lines. DPO and KTO have no such setting: they train on all
that follows the prompt. With images TRL's SFT has none either, so a line has one run of answers.

Images become a column `images`, and placeholders in the prompt. If one line of a file has some, all lines have the column, and every
content is a list of parts, since a column holds one kind of thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from treadle_corpus.forms._shape import IMAGE_PLACE, NO_QUESTION, Convert, answer_of, pair_of, prompts_of, tools_text
from treadle_corpus.images import has_images, lift
from treadle_corpus.views import DpoPair, KtoExample, Messages, RlGroup, SftExample

__all__ = ["VIEWS", "finish"]


def sft(example: SftExample, loose: bool) -> list[dict[str, Any]] | str:
    """One line for each run of marked turns without an unmarked assistant turn between them."""
    messages, marked = example["messages"], set(example["response"])
    runs: list[list[int]] = []
    open_run, pictured = False, has_images(messages)
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        if i not in marked or (pictured and i and messages[i - 1].get("role") != "assistant"):
            open_run = loose and open_run and not pictured
        if i not in marked:
            continue
        if open_run:
            runs[-1].append(i)
        else:
            runs.append([i])
            open_run = True
    return _pictured(
        {"prompt": messages[: run[0]], "completion": messages[run[0] : run[-1] + 1], **tools_text(example["tools"])}
        for run in runs
    )


def dpo(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """prompt, chosen, rejected."""
    made = pair_of(pair, loose)
    return made if isinstance(made, str) else _pictured([{**made._asdict(), **tools_text(pair["tools"])}])


def reward(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """The same with a margin. A reward model reads the whole, so nothing needs masking."""
    made = pair_of(pair, True)
    assert not isinstance(made, str)
    # all lines have it or none: where it is not known, it asks for nothing
    return _pictured([{**made._asdict(), "margin": pair["margin"] or 0.0, **tools_text(pair["tools"])}])


def kto(example: KtoExample, loose: bool) -> list[dict[str, Any]] | str:
    """prompt, completion, label."""
    made = answer_of(example, loose)
    if isinstance(made, str):
        return made
    line = {"prompt": made[0], "completion": made[1], "label": example["label"], **tools_text(example["tools"])}
    return _pictured([line])


def rl(group: RlGroup, loose: bool) -> list[dict[str, Any]] | str:
    """One line a question, with the logged rewards beside it, for whoever writes the reward function."""
    return (
        _pictured(
            {
                "prompt": prompt,
                "task_id": group["task_id"],
                "group": group["group"],
                "logged_rewards": [attempt["reward"] for attempt in attempts],
                **tools_text(tools),
            }
            for prompt, tools, attempts in prompts_of(group)
        )
        or NO_QUESTION
    )


def finish(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All lines alike: if one has images, all have the column, and every content is a list of parts."""
    if not any("images" in line for line in lines):
        return lines
    return [
        {
            **{name: _in_parts(value) if name in _CHATS else value for name, value in line.items()},
            "images": line.get("images", []),
        }
        for line in lines
    ]


_CHATS = ("prompt", "completion", "chosen", "rejected")


def _pictured(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]] | str:
    """Images of the prompt as a column, or why that cannot be done."""
    out = []
    for line in lines:
        if has_images(line["prompt"]):
            if any(has_images([m]) for m in line["prompt"] if m.get("role") == "tool"):
                return IMAGE_PLACE  # TRL counts none there
            lifted = lift(line["prompt"])
            if isinstance(lifted, str):
                return lifted
            line = {**line, "prompt": lifted[0], "images": lifted[1]}
        if any(has_images(line[name]) for name in _CHATS[1:] if name in line):
            return IMAGE_PLACE
        out.append(line)
    return out


def _in_parts(messages: Messages) -> Messages:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


VIEWS: dict[str, Convert] = {"dpo": dpo, "kto": kto, "reward": reward, "rl": rl, "sft": sft}
