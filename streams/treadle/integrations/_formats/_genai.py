"""A call of a model as OpenTelemetry's GenAI conventions say it in a span's attributes: messages made of parts, as JSON text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError

from treadle.integrations._formats._shape import (
    Asked,
    Reply,
    Sample,
    arguments_text,
    as_list,
    function_tool,
    picked,
    total_usage,
)

__all__ = ["genai_call"]

_PREFIX: Final = "gen_ai.request."
_USAGE: Final = "gen_ai.usage."
_FINISH: Final = {"tool_call": "tool_calls"}


def genai_call(attributes: Mapping[str, Any]) -> tuple[Asked, Reply]:
    """The request and the reply; without messages where the instrumentation kept them back."""
    asked: list[dict[str, Any]] = []
    system = as_list(_opened(attributes.get("gen_ai.system_instructions")))
    if system:
        asked.append({"role": "system", "content": _content(system)})
    for message in as_list(_opened(attributes.get("gen_ai.input.messages"))):
        asked += _messages(message, "user")
    produced = as_list(_opened(attributes.get("gen_ai.output.messages")))
    answer = [one for message in produced for one in _messages(message, "assistant")]
    reasons = as_list(_opened(list(attributes.get("gen_ai.response.finish_reasons") or ())))
    reason = reasons[0] if reasons else produced[-1].get("finish_reason") if produced else None
    request = {name.removeprefix(_PREFIX): given for name, given in attributes.items() if name.startswith(_PREFIX)}
    usage = {name.removeprefix(_USAGE): given for name, given in attributes.items() if name.startswith(_USAGE)}
    tools = [function_tool(tool) for tool in as_list(_opened(attributes.get("gen_ai.tool.definitions")))]
    return (
        Asked(messages=asked, model=request.get("model"), tools=tools or None, sampling=picked(request)),
        Reply(
            samples=[Sample(messages=answer, finish_reason=_FINISH.get(str(reason), reason))] if answer else [],
            response_id=attributes.get("gen_ai.response.id"),
            model=attributes.get("gen_ai.response.model"),
            usage=total_usage(usage),
        ),
    )


def _messages(message: Any, role: str) -> list[dict[str, Any]]:
    """One message of parts: each tool result is a message of its own, what else it says another."""
    if not isinstance(message, dict):
        return [{"role": role, "content": str(message)}]
    role = message.get("role") or role
    results, calls, thoughts, rest = [], [], [], []
    for part in as_list(message.get("parts")):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_call_response":
            told = part.get("result", part.get("response"))
            content = told if isinstance(told, str) else arguments_text(told)
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": content})
        elif kind == "tool_call":
            function = {"name": part.get("name"), "arguments": arguments_text(part.get("arguments") or {})}
            calls.append({"id": part.get("id"), "type": "function", "function": function})
        elif kind in ("thinking", "reasoning"):
            thoughts.append(str(part.get("content") or ""))
        else:
            rest.append(part)
    if not (calls or thoughts or rest):
        return results or [{"role": role, "content": message.get("content")}]
    shown: dict[str, Any] = {"role": role, "content": _content(rest) if rest else None}
    if thoughts:
        shown["reasoning_content"] = "".join(thoughts)
    if calls:
        shown["tool_calls"] = calls
    return [*results, shown]


def _content(parts: list[Any]) -> str | list[Any]:
    if all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return "".join(str(part.get("content") or "") for part in parts)
    return [_part(part) for part in parts]


def _part(part: Any) -> Any:
    if not isinstance(part, dict):
        return {"type": "text", "text": str(part)}
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": str(part.get("content") or "")}
    if part.get("modality") == "image" and kind == "uri":
        return {"type": "image_url", "image_url": {"url": part.get("uri")}}
    if part.get("modality") == "image" and kind == "blob":
        return {"type": "image_url", "image_url": {"url": f"data:{part.get('mime_type')};base64,{part.get('content')}"}}
    return part


def _opened(given: Any) -> Any:
    if isinstance(given, str):
        try:
            return loads(given)
        except ContractError:
            return None
    return given
