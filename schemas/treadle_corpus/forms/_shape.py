"""What the forms have in common: prompts, the turns that follow them, and whether a form can say which of those are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

from treadle_corpus.views import DpoPair, KtoExample, Messages, RlGroup

__all__ = [
    "IMAGES",
    "IMAGE_PLACE",
    "NEEDS_MASKS",
    "NO_QUESTION",
    "SEVERAL_MESSAGES",
    "UNMARKED",
    "Convert",
    "Pair",
    "answer_of",
    "learned",
    "pair_of",
    "prompts_of",
    "tools_text",
]

Convert: TypeAlias = Callable[[Any, bool], list[dict[str, Any]] | str]
"""(example, loose) -> lines, or why there are none."""

NEEDS_MASKS = "needs_masks"
"""What the form trains on as a whole holds turns that nobody marked: tool answers, users, other speakers."""
UNMARKED = "unmarked_turns"
"""The form trains on every assistant turn, and some of them nobody marked."""
SEVERAL_MESSAGES = "several_messages"
"""The form takes one message as an answer."""
IMAGES = "images"
"""The form has no place for images."""
IMAGE_PLACE = "image_place"
"""The form has no place for images in answers and tool results."""
NO_QUESTION = "no_question"
"""What all begin with holds no message of the user."""


class Pair(NamedTuple):
    """Two answers behind everything that they have in common."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


def pair_of(pair: DpoPair, loose: bool) -> Pair | str:
    """The pair with as long a prompt as can be: turns that both halves share teach nothing, since their likelihoods cancel."""
    chosen, rejected = pair["chosen"], pair["rejected"]
    # each half keeps its last message that is trained on
    most = min(pair["chosen_response"][-1], pair["rejected_response"][-1])
    shared = 0
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    halves = ((chosen, pair["chosen_response"]), (rejected, pair["rejected_response"]))
    if not loose and any(set(range(shared, len(said))) - set(own) for said, own in halves):
        return NEEDS_MASKS
    return Pair([*pair["prompt"], *chosen[:shared]], chosen[shared:], rejected[shared:])


def short_pair_of(pair: DpoPair, loose: bool) -> Pair | str:
    """The same for forms whose answers are one message."""
    made = pair_of(pair, loose)
    if not isinstance(made, str) and (len(made.chosen) > 1 or len(made.rejected) > 1):
        return SEVERAL_MESSAGES
    return made


def answer_of(example: KtoExample, loose: bool) -> tuple[Messages, Messages] | str:
    """Prompt and completion, where all of the completion is trained on."""
    if not loose and len(example["response"]) < len(example["completion"]):
        return NEEDS_MASKS
    return example["prompt"], example["completion"]


def learned(messages: Messages, response: Collection[int], loose: bool) -> Messages | str:
    """The messages up to the last one to train on, if every assistant turn among them is."""
    end = max(response) + 1
    turns = {i for i, message in enumerate(messages[:end]) if message.get("role") == "assistant"}
    if not loose and turns - set(response):
        return UNMARKED
    return messages[:end]


def prompts_of(group: RlGroup) -> list[tuple[Messages, Any, list[dict[str, Any]]]]:
    """The different questions of a group, each with its tools and its attempts: what was asked before the first turn of the agent."""
    out: dict[str, tuple[Messages, Any, list[dict[str, Any]]]] = {}
    for attempt in group["attempts"]:
        prompt = attempt["messages"][: attempt["response"][0]]
        if any(message.get("role") == "user" for message in prompt):
            key = json.dumps([prompt, attempt["tools"]], sort_keys=True)
            tried: list[dict[str, Any]] = out.setdefault(key, (prompt, attempt["tools"], []))[2]
            tried.append({**attempt})
    return list(out.values())


def tools_text(tools: Sequence[dict[str, Any]] | None) -> dict[str, str]:
    """Tools as a JSON text: as a table, the schemas of different tools would be filled up with each other's fields."""
    return {"tools": json.dumps(list(tools))} if tools else {}
