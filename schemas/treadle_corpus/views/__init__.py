"""Dataset views: what a version says to a training method. Pure functions over rows.

Each takes the rows of one version in any order and puts out the same examples in the same order, and says of every row that is in none
why not. Messages are verbatim. Steps of a growing episode, each repeating the messages before it, become one trajectory, so that no turn
is trained twice; the other rules are in docs/views.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle_corpus.views._examples import (
    Attempt,
    DpoPair,
    EvalExample,
    KtoExample,
    Messages,
    Origin,
    RlGroup,
    SftExample,
)
from treadle_corpus.views._groups import rl
from treadle_corpus.views._pairs import dpo, reward
from treadle_corpus.views._single import evaluation, kto, sft
from treadle_corpus.views._view import View, every_row, jsonl, repetition, rewarded

__all__ = [
    "VIEWS",
    "Attempt",
    "DpoPair",
    "EvalExample",
    "KtoExample",
    "Messages",
    "Origin",
    "RlGroup",
    "SftExample",
    "View",
    "dpo",
    "evaluation",
    "every_row",
    "jsonl",
    "kto",
    "repetition",
    "reward",
    "rewarded",
    "rl",
    "sft",
]

VIEWS: dict[str, Callable[..., View[Any]]] = {
    "dpo": dpo,
    "eval": evaluation,
    "kto": kto,
    "reward": reward,
    "rl": rl,
    "sft": sft,
}
"""The views by the name that `treadle corpus export --view` takes. Each takes rows and `split`, and what its own function names."""
