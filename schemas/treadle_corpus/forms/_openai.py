"""OpenAI fine-tuning: chat lines with weights, preference lines, and prompts for reinforcement fine-tuning."""

from __future__ import annotations

from typing import Any

from treadle_corpus.forms._shape import NO_QUESTION, Convert, prompts_of, short_pair_of
from treadle_corpus.views import DpoPair, RlGroup, SftExample

__all__ = ["VIEWS"]


def sft(example: SftExample, loose: bool) -> list[dict[str, Any]] | str:
    """A chat; `weight` says of each assistant turn whether it is trained on."""
    end, marked = example["response"][-1] + 1, set(example["response"])
    messages = [
        {**message, "weight": int(i in marked)} if message.get("role") == "assistant" else message
        for i, message in enumerate(example["messages"][:end])
    ]
    return [{"messages": messages, **_tools(example["tools"])}]


def dpo(pair: DpoPair, loose: bool) -> list[dict[str, Any]] | str:
    """input, preferred_output, non_preferred_output: each output is one message of the assistant."""
    made = short_pair_of(pair, loose)
    if isinstance(made, str):
        return made
    return [
        {
            "input": {"messages": made.prompt, **_tools(pair["tools"])},
            "preferred_output": made.chosen,
            "non_preferred_output": made.rejected,
        }
    ]


def rl(group: RlGroup, loose: bool) -> list[dict[str, Any]] | str:
    """One line a question; `reference` is the answer of the best logged attempt, for the grader."""
    lines = []
    for prompt, tools, attempts in prompts_of(group):
        best = max(attempts, key=lambda attempt: float(attempt["reward"]))
        answer = best["messages"][best["response"][-1]].get("content")
        lines.append(
            {
                "messages": prompt,
                **_tools(tools),
                "reference": answer,
                "reference_reward": best["reward"],
                "task": group["group"],
            }
        )
    return lines or NO_QUESTION


def _tools(tools: Any) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


VIEWS: dict[str, Convert] = {"dpo": dpo, "rl": rl, "sft": sft}
