"""What messages alone tell of their health: whether tool calls can be carried out at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from treadle_schemas.events import Interaction

__all__ = ["invalid_calls", "invalid_share", "vitals"]


def invalid_calls(message: dict[str, Any], tools: Sequence[dict[str, Any]] | None) -> int:
    """How many tool calls of an OpenAI chat message name no tool of `tools` (None: any name goes), or have no JSON object as arguments."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return 0
    names = _names(tools)
    return sum(not _is_valid(call, names) for call in calls)


def invalid_share(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> float:
    """The share of `messages` with an invalid call; 0 without messages."""
    return sum(invalid_calls(message, tools) > 0 for message in messages) / len(messages) if messages else 0.0


def vitals(said: Interaction) -> tuple[int, int, float | None]:
    """Whether an interaction failed (0 or 1), how many of its tool calls are invalid, and its cost in US dollars."""
    before = 0 if said.transcript is None else said.transcript.count
    places = range(len(said.messages)) if said.response is None else (n - before for n in said.response)
    invalid = sum(invalid_calls(said.messages[n], said.tools) for n in places if n >= 0)
    return int(said.status == "error"), invalid, said.cost


def _names(tools: Sequence[dict[str, Any]] | None) -> set[str] | None:
    """The names of tools, whatever else an agent lists there. None: it lists nothing."""
    if not tools:
        return None
    names = set()
    for tool in tools:
        function = tool.get("function")
        name = (function if isinstance(function, dict) and function else tool).get("name")
        if isinstance(name, str):
            names.add(name)
    return names


def _is_valid(call: Any, names: set[Any] | None) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    if names is not None and function["name"] not in names:
        return False
    arguments = function.get("arguments", "")
    try:
        return isinstance(arguments, dict) or arguments == "" or isinstance(orjson.loads(arguments), dict)
    except (orjson.JSONDecodeError, TypeError):
        return False
