"""Tool calls between a model's text and OpenAI chat messages.

A model writes a call as JSON, `{"name": ..., "arguments": {...}}`, bare or inside `<tool_call>` tags as Qwen and Hermes do.
Whatever is not such a call is prose. Model output is outside data: nothing here raises for it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from treadle_schemas.environment import Message

__all__ = [
    "Call",
    "assistant_call",
    "assistant_prose",
    "compact",
    "parse_call",
    "tool_answer",
    "tool_schema",
    "written_call",
]

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One parsed tool call: its name, its decoded arguments, and these as the compact JSON string that messages carry."""

    name: str
    arguments: dict[str, Any]
    arguments_json: str


def parse_call(text: str) -> Call | None:
    """The call in a model's text, or None for prose."""
    tagged = _TAGGED.search(text)
    try:
        value = json.loads(tagged.group(1) if tagged else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        return None
    return Call(name=name, arguments=arguments, arguments_json=compact(arguments))


def _refuse_constant(name: str) -> NoReturn:
    # json reads NaN and Infinity although JSON has neither
    raise ValueError(f"{name} is not JSON")


def compact(value: Any) -> str:
    """JSON without spaces, ASCII only: what the tiny model writes and reads."""
    return json.dumps(value, separators=(",", ":"))


def assistant_call(name: str, arguments_json: str, index: int) -> Message:
    """The assistant turn that makes the `index`-th call of an attempt."""
    function = {"name": name, "arguments": arguments_json}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{index}", "type": "function", "function": function}],
    }


def written_call(name: str, arguments_json: str) -> str:
    """A call as the tiny model writes it; the chat template renders the same text from `assistant_call`."""
    return f'{{"name":"{name}","arguments":{arguments_json}}}'


def assistant_prose(text: str) -> Message:
    """The assistant turn of a model that wrote prose."""
    # A lone surrogate can be no part of a UTF-8 record nor of a tokenizer's input.
    return {"role": "assistant", "content": text.encode(errors="replace").decode()}


def tool_answer(result: dict[str, Any], index: int) -> Message:
    """The tool's answer to the `index`-th call of an attempt."""
    return {"role": "tool", "tool_call_id": f"call_{index}", "content": compact(result)}


def tool_schema(name: str, description: str, properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The OpenAI description of a tool whose arguments are all required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}
