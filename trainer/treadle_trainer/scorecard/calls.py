"""Tool calls in messages and in what a model wrote. Pure.

A logged message says what it calls in `tool_calls`. A model writes it as its template taught it; what the published templates have in
common is a JSON object of arguments, with the tool's name inside it or right before it:

    <tool_call>{"name": "find", "arguments": {"id": 7}}</tool_call>      Qwen, Hermes
    {"name": "find", "parameters": {"id": 7}}                            Llama 3
    [TOOL_CALLS][{"name": "find", "arguments": {"id": 7}}]               Mistral
    <call>find {"id": 7}</call>    find({"id": 7})                       others
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["Call", "Reading", "calls_of", "read_text"]

_DECODER: Final = json.JSONDecoder()
_NAME_BEFORE: Final = re.compile(r"([A-Za-z_][\w.\-]*)[\s(:=>]*$")
_TRIES: Final = 64
"""Places of a text at which JSON may begin without being any, before the rest is taken for prose."""
_MARKERS: Final = ("<tool_call", "<call", "[TOOL_CALLS]", "<|python_tag|>", "<function")


class Call(NamedTuple):
    """One call: the tool's name, and its arguments as JSON says them."""

    name: str
    arguments: Any


class Reading(NamedTuple):
    """What a text calls. `broken`: it begins a call, or JSON, that is none."""

    calls: tuple[Call, ...]
    broken: bool


def calls_of(messages: Sequence[dict[str, Any]]) -> tuple[Call, ...]:
    """The calls of logged messages, in order. Arguments that are no JSON stay the text that they are."""
    found = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            found.append(Call(str(function.get("name", "")), _parsed(function.get("arguments"))))
    return tuple(found)


def read_text(text: str) -> Reading:
    """The calls that a model wrote."""
    calls: list[Call] = []
    broken = False
    at = failed = 0
    while (start := _next(text, at)) is not None and failed < _TRIES:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            broken = True
            failed += 1
            at = start + 1
            continue
        found = list(_named(value)) or _by_name_before(text[at:start], value)
        calls += found
        at = end
    # braces that are no JSON are no call either, inside of prose
    marked = any(marker in text for marker in _MARKERS)
    began = marked or text.lstrip().startswith(("{", "["))
    return Reading(tuple(calls), not calls and (marked or (broken and began)))


def _next(text: str, at: int) -> int | None:
    places = [place for opening in "{[" if (place := text.find(opening, at)) >= 0]
    return min(places, default=None)


def _named(value: Any) -> Iterator[Call]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict) and isinstance(each.get("name"), str):
            for key in ("arguments", "parameters"):
                if key in each:
                    yield Call(each["name"], _parsed(each[key]))
                    break


def _by_name_before(before: str, value: Any) -> list[Call]:
    name = _NAME_BEFORE.search(before)
    return [Call(name[1], value)] if name is not None and isinstance(value, dict) else []


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
