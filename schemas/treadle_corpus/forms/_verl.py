"""verl: chats for its multi-turn SFT, which trains on every assistant turn, and prompts for RL. It reads Parquet."""

from __future__ import annotations

from typing import Any

from treadle_corpus.forms._shape import IMAGES, NO_QUESTION, Convert, learned, prompts_of
from treadle_corpus.images import has_images
from treadle_corpus.views import RlGroup, SftExample

__all__ = ["VIEWS"]


def sft(example: SftExample, loose: bool) -> list[dict[str, Any]] | str:
    """messages and tools, where every assistant turn is to be trained on."""
    if has_images(example["messages"]):
        return IMAGES
    made = learned(example["messages"], example["response"], loose)
    if isinstance(made, str):
        return made
    return [{"messages": made, **({"tools": example["tools"]} if example["tools"] else {})}]


def rl(group: RlGroup, loose: bool) -> list[dict[str, Any]] | str:
    """One line a question. `ground_truth` is the last message of the best logged attempt."""
    if any(has_images(attempt["messages"]) for attempt in group["attempts"]):
        return IMAGES
    lines = []
    for prompt, tools, attempts in prompts_of(group):
        best = max(attempts, key=lambda attempt: float(attempt["reward"]))
        answer = best["messages"][best["response"][-1]].get("content")
        lines.append(
            {
                "data_source": "treadle",
                "prompt": prompt,
                "ability": "agent",
                "reward_model": {"style": "rule", "ground_truth": answer if isinstance(answer, str) else ""},
                "extra_info": {
                    "split": group["split"],
                    "task": group["group"],
                    "logged_rewards": [attempt["reward"] for attempt in attempts],
                },
                **({"tools": tools} if tools else {}),
            }
        )
    return lines or NO_QUESTION


VIEWS: dict[str, Convert] = {"rl": rl, "sft": sft}
