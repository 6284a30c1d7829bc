"""Axolotl: `type: chat_template`, where a field of each message says whether it is trained on, and its form of preferences."""

from __future__ import annotations

from typing import Any

from treadle_corpus.forms._shape import IMAGES, Convert, short_pair_of
from treadle_corpus.images import has_images
from treadle_corpus.views import DpoPair, SftExample

__all__ = ["VIEWS"]


def sft(example: SftExample, loose: bool) -> list[dict[str, Any]] | str:
    """messages with `train`."""
    if has_images(example["messages"]):
        return IMAGES
    end, marked = example["response"][-1] + 1, set(example["response"])
    messages = [{**message, "train": i in marked} for i, message in enumerate(example["messages"][:end])]
    return [{"messages": messages, **({"tools": example["tools"]} if example["tools"] else {})}]


def dpo(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """messages, chosen, rejected: each answer is one message."""
    if has_images([*pair["prompt"], *pair["chosen"], *pair["rejected"]]):
        return IMAGES
    made = short_pair_of(pair, loose)
    if isinstance(made, str):
        return made
    return [
        {
            "messages": made.prompt,
            "chosen": made.chosen[0],
            "rejected": made.rejected[0],
            **({"tools": pair["tools"]} if pair["tools"] else {}),
        }
    ]


VIEWS: dict[str, Convert] = {"dpo": dpo, "sft": sft}
